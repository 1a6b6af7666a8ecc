"""bngen's entry points as an installation writes them, for tests that run from a checkout."""

import tomllib
from pathlib import Path

import bngen

PYPROJECT = Path(bngen.__file__).parents[1] / "pyproject.toml"


def write_entry_points(folder: Path) -> Path:
    """Make a folder of distributions whose entry points are those of ``pyproject.toml``.

    Returns:
        The folder, to be put on Python's path.
    """
    groups = tomllib.loads(PYPROJECT.read_text())["project"]["entry-points"]
    info = folder / "bngen_entry_points-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: bngen-entry-points\nVersion: 1\n", encoding="utf-8"
    )
    lines = []
    for group, names in groups.items():
        lines += [f"[{group}]", *(f"{name} = {home}" for name, home in names.items())]
    (info / "entry_points.txt").write_text("\n".join(lines), encoding="utf-8")
    return folder
