"""What the race of ranks says of more machines: ``python docs/scaling.py FILE``.

In: the ``ranks.json`` of `tests.race_of_ranks`. Out: its tables in ``docs/distributed.md``, and the
time of a step on 1 to 64 machines, as a table there and as ``docs/pictures/scaling.png``. These
times are an extrapolation; what they assume is `ASSUMED`, and the page says it.
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PAGE = HERE / "distributed.md"
MACHINES = (1, 2, 4, 8, 16, 32, 64)
_BLOCK = re.compile(r"(<!-- measured: (?P<file>\S*) -->\n).*?(<!-- end of measured -->)", re.DOTALL)


@dataclass(frozen=True)
class Network:
    """A network between machines.

    Attributes:
        latency: seconds of a message.
        bandwidth: bytes a second.
    """

    latency: float
    bandwidth: float


ASSUMED = Network(latency=50e-6, bandwidth=125e6)


class Steps:
    """Times of a step, extrapolated from one race.

    Args:
        race: as it is in the file.
    """

    def __init__(self, race: dict[str, Any]):
        rows = [row for row in race["contenders"] if "step" in row]
        plain = [r for r in rows if r["name"] == "ranks" and r["setting"]["stages"]]
        synced = [r for r in rows if r["name"] == "ranks, SyncBN"]
        speeds = {r["setting"]["bandwidth"]: r for r in plain}
        self.compute = speeds.pop(0.0)["step"]["median"]
        speed, slow = speeds.popitem()
        self._nbytes = slow["gradient_bytes"]
        self._ranks = race["ranks"]
        travel = self._travel(self._ranks, Network(0.0, 1e6 * speed))
        self._hides = travel - (slow["step"]["median"] - self.compute)
        delays = {r["setting"]["delay"] / 1000: r["step"]["median"] for r in synced}
        self._delays = sorted((d, seconds - self.compute) for d, seconds in delays.items())

    def _travel(self, machines: int, network: Network) -> float:
        """Seconds that gradients take to be averaged over a ring."""
        moved = 2 * (machines - 1) / machines * self._nbytes / network.bandwidth
        return moved + 2 * (machines - 1) * network.latency

    def plain(self, machines: int, network: Network = ASSUMED) -> float:
        """Seconds of a step of so many machines, each of which normalizes its own share."""
        if machines == 1:
            return self.compute
        return self.compute + max(0.0, self._travel(machines, network) - self._hides)

    def synced(self, machines: int, network: Network = ASSUMED) -> float:
        """The same with the statistics of all."""
        if machines == 1:
            return self.compute
        # A gather goes round a ring once and a sum twice; there are as many of either.
        delay = 1.5 * (machines - 1) * network.latency
        return self.plain(machines, network) + self.waits(delay)

    def waits(self, delay: float) -> float:
        """Seconds that synchronized layers add to a step: between what was measured, and on."""
        points = self._delays
        above = next((i for i, (d, _) in enumerate(points) if d >= delay), len(points) - 1)
        (d0, s0), (d1, s1) = points[max(above, 1) - 1], points[max(above, 1)]
        return s0 + (s1 - s0) * (delay - d0) / (d1 - d0)


def text(found: dict[str, Any], file: str) -> str:
    """What the page says of a race."""
    sys.path.insert(0, str(HERE.parent))
    from tests.race_of_ranks import table

    machine = found["machine"]
    lines = [f"{machine['cpus']} CPUs of {machine['model']} ({file}):", ""]
    for race in found["races"]:
        lines += [table(race), ""]
    lines += [
        "Extrapolated, milliseconds of a step, and the share that is left of so many times one "
        "machine's speed:",
        "",
        "| machines | " + " | ".join(map(str, MACHINES)) + " |",
        "|---|" + "--:|" * len(MACHINES),
    ]
    for race in found["races"]:
        steps = Steps(race)
        for name, seconds in (("", steps.plain), (", SyncBN", steps.synced)):
            cells = [
                f"{1000 * seconds(k):.0f} ({100 * steps.compute / seconds(k):.0f} %)"
                for k in MACHINES
            ]
            lines.append(f"| {race['network']}{name} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", "![Images a second against machines](pictures/scaling.png)"])


def with_measured(page: str, root: Path) -> str:
    """The page with what its block's file says; nothing where it names none."""

    def made(block: re.Match[str]) -> str:
        file = block["file"]
        inside = text(json.loads((root / file).read_text()), file) + "\n" if file != "-" else ""
        return f"{block[1]}{inside}{block[3]}"

    return _BLOCK.sub(made, page)


def draw(found: dict[str, Any], path: Path) -> None:
    """Images a second against the number of machines."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    races = found["races"]
    figure, axes = plt.subplots(
        1, len(races), figsize=(5.2 * len(races), 3.8), layout="constrained", squeeze=False
    )
    for axis, race in zip(axes[0], races, strict=True):
        steps, share = Steps(race), race["batch"] // race["ranks"]
        lines = (
            ("as many times one machine", lambda k, s=steps: s.compute, "k:"),
            ("each its own share's statistics", steps.plain, "o-"),
            ("statistics of the whole batch", steps.synced, "s-"),
        )
        for label, seconds, style in lines:
            axis.plot(MACHINES, [k * share / seconds(k) for k in MACHINES], style, label=label)
        axis.set(xscale="log", yscale="log", xlabel="machines", title=race["network"])
        axis.set_xticks(MACHINES, map(str, MACHINES))
        axis.minorticks_off()
        axis.set_ylabel(f"images a second, {share} a machine")
        axis.legend(fontsize="small")
    figure.savefig(path, dpi=110, bbox_inches="tight")
    plt.close(figure)


def main() -> None:
    """Write the page and the picture."""
    (file,) = sys.argv[1:]
    page = _BLOCK.sub(rf"<!-- measured: {file} -->\n\3", PAGE.read_text())
    PAGE.write_text(with_measured(page, Path.cwd()))
    draw(json.loads(Path(file).read_text()), HERE / "pictures" / "scaling.png")


if __name__ == "__main__":
    main()
