"""A training step of unmodified models of torchvision and timm: bngen beside eager PyTorch.

``python -m tests.zoo_race --json FILE`` races each model of `MODELS` (or those that are named):
bngen as the backend of ``torch.compile`` against eager PyTorch in channels-last, a process each,
which take their turns warmed up, with gradients set to None before each step. Added are what is
planned: the share of bytes that kernels without a schedule move, kernels without fusion and with
it. ``--cold`` adds the first step of a process whose caches are empty.

The file is written after each model, and what it has is not done again: an interrupted race goes
on where it was. ``--markdown FILE`` writes the table. On a machine that others use, ``--clock cpu
--threads 1`` counts CPU seconds. Exit status 1 if a model could not be raced.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bngen import cache
from bngen.bench import machine
from bngen.bench.contenders import Entry
from bngen.bench.process import Process, Unavailable
from bngen.bench.race import race
from bngen.bench.startup import empty_caches
from bngen.errors import BngenError
from tests import zoo_fallback, zoo_models, zoo_worker

MODELS = """
    resnet18 resnext50_32x4d wide_resnet50_2 densenet121 mobilenet_v3_large efficientnet_b0
    regnet_y_400mf shufflenet_v2_x1_0 squeezenet1_1 googlenet inception_v3 mnasnet1_0 vgg16_bn
    convnext_tiny resnet26d ghostnet_100 repvgg_a0 dla34 hrnet_w18_small res2net50_26w_4s
    resnest14d skresnet18 cspresnet50 mixnet_s xception41 dpn68 ese_vovnet19b_dw nf_resnet26
    dm_nfnet_f0
""".split()
OURS, RIVALS = "backend", ("channels-last",)

Json = dict[str, Any]
Told = Callable[[str], None]


@dataclass(frozen=True)
class Asked:
    """What the race is to be.

    Attributes:
        batch: images in a batch.
        image: their height and width, at least the model's least.
        threads: of either side; all when None.
        clock: a key of `zoo_worker.CLOCKS`.
        rivals: forms of PyTorch that bngen races against.
        rounds: turns of each.
    """

    batch: int
    image: int
    threads: int | None
    clock: str
    rivals: tuple[str, ...]
    rounds: int

    def entries(self, name: str) -> list[Entry]:
        """bngen, then its rivals."""
        image = max(self.image, zoo_models.LEAST_IMAGE.get(name, 0))
        return [
            Entry(name, form, self.batch, image, threads=self.threads)
            for form in (OURS, *self.rivals)
        ]


class ZooProcess(Process):
    """A contender's process, which finds its model in the zoo."""

    worker = zoo_worker.__name__

    def obstacle(self) -> str:
        """Nothing is known before it starts."""
        return ""


def add_race(row: Json, asked: Asked, name: str, tell: Told) -> None:
    """Race a model."""
    clock = {zoo_worker.CLOCK: asked.clock}
    entries = asked.entries(name)
    row["race"] = race(entries, asked.rounds, tell, lambda entry: ZooProcess(entry, clock))


def add_plan(row: Json, asked: Asked, name: str, tell: Told) -> None:
    """Plan a model's kernels."""
    tell(f"{name}: planning")
    share = zoo_fallback.shares(name, asked.batch, asked.image)
    row["plan"] = {
        "kernels": share.kernels[1], "unfused": share.unfused, "share": share.share,
        "ops": dict(share.ops), "regions": list(share.explanation.regions),
    }  # fmt: skip


def add_cold(row: Json, asked: Asked, name: str, tell: Told) -> None:
    """Take bngen's first step of a model with empty caches."""
    tell(f"{name}: a first step with empty caches")
    with empty_caches() as variables:
        process = ZooProcess(asked.entries(name)[0], {zoo_worker.CLOCK: asked.clock, **variables})
        try:
            row["cold"] = process.start()
        finally:
            process.stop()


def run(names: Sequence[str], asked: Asked, parts: Mapping[str, Any], file: Path | None) -> Json:
    """Do what is not in the file yet.

    Args:
        names: models.
        asked: how they race.
        parts: what a row is to have, and what adds it.
        file: where rows are kept.

    Returns:
        The report.

    Raises:
        BngenError: where the file is of another race.
    """
    settings = {"batch": asked.batch, "image": asked.image, "threads": asked.threads,
                "clock": asked.clock, "rivals": list(asked.rivals)}  # fmt: skip
    report: Json = {"settings": settings, "models": {}}
    if file is not None and file.exists():
        report = json.loads(file.read_text(encoding="utf-8"))
        if report["settings"] != settings:
            raise BngenError(f"{file} was raced with {report['settings']}", hint="another --json")
    report["machine"] = machine.describe(cache.target("llvm -mcpu=native"))
    for name in names:
        row = report["models"].setdefault(name, {})
        row.pop("error", None)
        for part in (p for p in parts if p not in row):
            try:
                parts[part](row, asked, name, lambda text: print(text, file=sys.stderr, flush=True))
            except (BngenError, Unavailable) as error:
                row["error"] = str(error)
        print(line(name, row), flush=True)
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return report


# --- tables -------------------------------------------------------------------------------------

COLUMNS = ("model", "bngen, ms", "eager, ms", "eager/bngen", "without a schedule",
           "kernels before, after", "first step cold, s")  # fmt: skip


def cells(name: str, row: Json) -> list[str]:
    """A model's row; what was not measured is left empty."""
    step, rival, ratio, share, kernels, cold = ("",) * 6
    if "race" in row:
        ours, *others = row["race"]["contenders"]
        step = f"{1e3 * ours['step']['median']:.0f}"
        rival = " / ".join(map(_told, others))
        ratio = " / ".join(f"{o['ratio']['step']['median']:.2f}" for o in others if "ratio" in o)
    if "plan" in row:
        share = f"{100 * row['plan']['share']:.1f} %"
        kernels = f"{row['plan']['unfused']}, {row['plan']['kernels']}"
    if "cold" in row:
        cold = f"{row['cold']['first_step']:.0f}"
    return [name, step, rival, ratio, share, kernels, cold]


def _told(other: Json) -> str:
    if other["status"] == "unavailable":
        return other["status"]
    mark = "" if other["status"] == "ok" else " (another loss)"
    return f"{1e3 * other['step']['median']:.0f}{mark}"


def line(name: str, row: Json) -> str:
    """A row for the terminal."""
    widths = (20, 9, 14, 12, 8, 12, 6)
    told = "  ".join(f"{c:>{w}}" for c, w in zip(cells(name, row), widths, strict=True))
    return told + (f"  {row['error']}" if "error" in row else "")


def markdown(report: Json) -> str:
    """The table, the models that gain least first."""
    lines = [f"| {' | '.join(COLUMNS)} |", f"|---|{'--:|' * (len(COLUMNS) - 1)}"]
    rows = sorted(report["models"].items(), key=lambda item: _ratio(item[1]))
    return "\n".join([*lines, *(f"| {' | '.join(cells(n, r))} |" for n, r in rows)]) + "\n"


def _ratio(row: Json) -> float:
    found = [o["ratio"]["step"]["median"] for o in _others(row) if "ratio" in o]
    return min(found, default=0.0)


def _others(row: Json) -> Iterator[Json]:
    yield from row.get("race", {"contenders": [None]})["contenders"][1:]


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("models", nargs="*", default=MODELS, metavar="MODELS")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--image", type=int, default=224)
    parser.add_argument("--threads", type=int, help="all of the machine's by default")
    parser.add_argument("--clock", choices=[*zoo_worker.CLOCKS], default="wall")
    parser.add_argument("--against", nargs="+", default=RIVALS, metavar="FORM")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each")
    parser.add_argument("--cold", action="store_true", help="also a first step, caches empty")
    parser.add_argument("--no-plan", action="store_true", help="plan nothing, race alone")
    parser.add_argument("--json", type=Path, help="the file of rows; what it has is not done again")
    parser.add_argument("--markdown", type=Path, help="a file to write the table to")
    args = parser.parse_args(argv)
    parts = {"race": add_race} | ({} if args.no_plan else {"plan": add_plan})
    parts |= {"cold": add_cold} if args.cold else {}
    asked = Asked(
        args.batch, args.image, args.threads, args.clock, tuple(args.against), args.rounds
    )
    try:
        zoo_models.libraries()
        report = run(args.models, asked, parts, args.json)
    except (zoo_models.NotInstalledError, BngenError) as error:
        print(error, file=sys.stderr)
        return 2
    table = markdown(report)
    print(f"\n{table}", end="")
    if args.markdown:
        args.markdown.write_text(table, encoding="utf-8")
    return 1 if any("error" in report["models"][name] for name in args.models) else 0


if __name__ == "__main__":
    sys.exit(main())
