"""The rules of the house, read from the source: who imports whom, and what files are called.

Imports inside functions count too: a lazy import is still a dependency.
"""

import ast
import re
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "bngen"
MODULES = sorted(p for p in PACKAGE.rglob("*.py") if "_schedules" not in p.parts)

# Leaves that anyone may import; they import nothing of bngen but each other.
LEAVES = {"dtypes", "errors", "files", "initializers", "labels", "options", "version"}
PLANNING = {"ir", "lang", "plan", "passes", "models"}
GENERATING = {"codegen", "lower", "scheduling", "target"}
# What a room (a folder or a top-level module) may import, besides itself and the leaves.
MAY_IMPORT = {
    "dtypes": set(),
    "errors": set(),
    "files": set(),
    "initializers": set(),
    "labels": set(),
    "options": set(),
    "version": set(),
    "ir": set(),
    "plan": {"ir"},
    "passes": {"ir", "plan"},
    "lang": {"ir", "passes"},
    "models": {"ir", "lang"},
    "programs": {"lang", "models"},
    "runtime": set(),
    "target": {"runtime"},  # of it, two files alone: see test_target_asks_the_host_only
    "lower": {"ir", "plan"},
    "scheduling": {"ir", "lower", "plan", "target"},
    "codegen": {"ir", "lower", "plan", "runtime", "scheduling", "target"},
    "tuning": PLANNING | GENERATING | {"runtime"},
    "binding": {"codegen", "ir", "passes", "plan", "runtime", "target"},
    "cache": {"ir", "runtime", "target", "tuning"},
    "compiler": PLANNING | GENERATING | {"binding", "cache", "runtime", "tuning"},
    "torch_bridge": {"ir", "models"},
    "verification": {"ir", "torch_bridge"},
    "bench": PLANNING | GENERATING | {"compiler", "programs", "runtime", "torch_bridge", "tuning"},
    "cli": {
        "bench", "cache", "compiler", "ir", "models", "programs", "runtime", "target",
        "tuning", "verification",
    },
    "": PLANNING | {"compiler", "runtime"},  # bngen/__init__.py: public names
}  # fmt: skip

NUMPY_ONLY = {"ir", "lang", "plan", "passes", "models", "verification"}
ONLY_THERE = {
    # In the bench, for the multiply-add loop that measures the machine's peak.
    "tvm": {"target", "lower", "scheduling", "codegen", "runtime", "bench"},
    "tvm_ffi": {"target", "lower", "scheduling", "codegen", "runtime"},
    "torch": {"torch_bridge", "bench"},
    "click": {"cli"},
    "rich": {"cli", "bench"},
    "optuna": {"tuning"},
    "matplotlib": {"bench"},
}
INSTANT = {"", "dtypes", "errors", "options", "version"}  # and the modules of `cli`


def room_of(path: Path) -> str:
    """The folder or top-level module a file belongs to; ``""`` for the package itself."""
    first = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return "" if first == "__init__" else first


def imported_by(path: Path) -> Iterator[tuple[str, int, bool]]:
    """Dotted names of what a module imports, with the line and whether that runs on import."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    lazy = {
        id(inner)
        for outer in ast.walk(tree)
        if isinstance(outer, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for inner in ast.walk(outer)
    }
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(tree):
        eager = id(node) not in lazy
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno, eager) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            dotted = ".".join((*base, *([node.module] if node.module else [])))
            yield from ((f"{dotted}.{alias.name}", node.lineno, eager) for alias in node.names)


def rooms_imported_by(path: Path) -> Iterator[tuple[str, int]]:
    """The rooms of bngen a module imports, other than its own."""
    for name, line, _ in imported_by(path):
        parts = name.split(".")
        if parts[0] == "bngen":
            candidate = parts[1] if len(parts) > 1 else ""
            is_room = (
                len(parts) > 2
                or (PACKAGE / candidate).is_dir()
                or (PACKAGE / f"{candidate}.py").exists()
            )
            room = candidate if is_room else ""
            if room != room_of(path):
                yield room, line


def test_the_walk_sees_every_kind_of_import(tmp_path, monkeypatch):
    package = tmp_path / "bngen"
    (package / "ir").mkdir(parents=True)
    module = package / "ir" / "x.py"
    module.write_text(
        "import tvm.te\nfrom bngen.lang import trace\nfrom . import node\nfrom .. import errors\n"
        "def f():\n    from bngen import passes\n"
    )
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    assert list(imported_by(module)) == [
        ("tvm.te", 1, True),
        ("bngen.lang.trace", 2, True),
        ("bngen.ir.node", 3, True),
        ("bngen.errors", 4, True),
        ("bngen.passes", 6, False),
    ]


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_room_imports_only_what_it_may(path):
    room = room_of(path)
    assert room in MAY_IMPORT, f"{path.name} is in no room of the house: add it to MAY_IMPORT"
    allowed = MAY_IMPORT[room] | LEAVES
    breaches = [
        f"line {line}: {seen}" for seen, line in rooms_imported_by(path) if seen not in allowed
    ]
    assert not breaches, f"{path.relative_to(ROOT)} may not import {breaches}"


def test_no_cycle_between_rooms():
    uses: dict[str, set[str]] = {}
    for path in MODULES:
        uses.setdefault(room_of(path), set()).update(room for room, _ in rooms_imported_by(path))
    TopologicalSorter(uses).prepare()  # raises CycleError, naming the cycle


def test_the_table_itself_has_no_cycle():
    TopologicalSorter(MAY_IMPORT).prepare()


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_other_packages_stay_in_their_rooms(path):
    room = room_of(path)
    for name, line, _ in imported_by(path):
        top = name.split(".")[0]
        where = f"{path.relative_to(ROOT)}:{line}"
        assert room in ONLY_THERE.get(top, {room}), f"{where} imports {top}"
        if room in NUMPY_ONLY and top not in sys.stdlib_module_names:
            assert top in {"bngen", "numpy"}, f"{where} imports {top}"


def test_what_help_needs_is_imported_instantly():
    for path in (p for p in MODULES if room_of(p) in INSTANT or p.stem in ("main", "console")):
        for name, line, eager in imported_by(path):
            top = name.split(".")[0]
            if eager and top != "bngen":
                where = f"{path.relative_to(ROOT)}:{line}"
                assert top in sys.stdlib_module_names | {"click"}, f"{where} imports {top}"


def test_target_asks_the_host_only():
    seen = {name for path in (PACKAGE / "target").glob("*.py") for name, _, _ in imported_by(path)}
    assert {n for n in seen if n.startswith("bngen.runtime")} <= {
        "bngen.runtime.host", "bngen.runtime.host.Caches", "bngen.runtime.compiled_for.CompiledFor",
    }  # fmt: skip


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_module_says_what_it_is(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), f"{path.relative_to(ROOT)} has no docstring"
    stars = [n.lineno for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)
             and any(a.name == "*" for a in n.names)]  # fmt: skip
    assert not stars, f"{path.relative_to(ROOT)} imports * on lines {stars}"


def test_file_names():
    vague = {"utils", "util", "helpers", "misc", "stuff"}
    for path in MODULES:
        assert re.fullmatch(r"[a-z][a-z0-9_]*|__init__|__main__", path.stem), path
        assert path.stem not in vague, f"{path.relative_to(ROOT)} does not say what it holds"
    for folder in {p.parent for p in MODULES}:
        assert (folder / "__init__.py").exists(), f"{folder.relative_to(ROOT)} is no package"


def test_schedules_are_data():
    files = [p for p in (ROOT / "schedules").rglob("*") if p.is_file()]
    assert {p.suffix for p in files} <= {".md", ".toml"}, files
