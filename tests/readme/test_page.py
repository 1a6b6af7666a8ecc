"""The measurements' page: the section, and what its tables say."""

from bngen.bench.samples import ratios, summary
from bngen.bench.turns import PHASES
from tests.readme import page

MACHINE = {"cpu": "znver3", "model": "EPYC", "cpus": 2, "versions": {"bngen": "1", "torch": "2"}}


def row(name, seconds, warm=None, precision="float32", stationary=True):
    startup = {"total": 80.4, **({"warm": {"total": warm}} if warm else {})}
    return {
        "name": name, "status": "ok", "peak_bytes": 3 << 20, "startup": startup,
        "overhead": None, "precision": precision,
        "turns": {"steps": [3, 3], "discarded": [3, 3], "stationary": [True, stationary]},
        **{p: summary([seconds, seconds]) for p in PHASES},
        "ratio": {p: ratios([1.0, 1.0], [seconds, seconds]) for p in PHASES},
    }  # fmt: skip


def report(*rows, batch=8):
    race = {"program": "densenet121", "batch": batch, "image": 224, "fusion": "icf"}
    return {"machine": MACHINE, "kernels": [], "races": [{**race, "contenders": list(rows)}]}


def test_a_page():
    broken = {"name": "compile", "precision": "float32", "status": "unavailable"}
    half = row("bf16", 0.5, precision="bfloat16")
    first = report(row("bngen", 1.0, warm=2.34), row("none", 1.3), row("eager", 1.9), broken, half)
    second = report(row("bngen", 1.0), row("eager", 2.5), batch=32)
    text = page.measured({"latest.json": first, "batch32.json": second})
    lines = text.splitlines()
    assert lines[0] == "2 CPUs of EPYC (znver3); bngen 1, torch 2."
    assert lines[2] == "`benchmarks/latest.json`, medians of 2 turns:"
    assert (
        "| bngen `icf` | 1000 ms | 1000 ms | 1000 ms | 1.00x (1.00-1.00) | 3 MiB "
        "| 80 s, then 2.3 s |" in lines
    )
    assert (
        "| bngen `none` | 1300 ms | 1300 ms | 1300 ms | 1.30x (1.30-1.30) | 3 MiB | 80 s |" in lines
    )
    assert "| PyTorch compile | - | - | - | - | - | - |" in lines
    assert sum(line.startswith("| PyTorch bf16 *(bfloat16)* | 500 ms |") for line in lines) == 1
    assert sum(line.startswith("| densenet121, batch") for line in lines if "forward" in line) == 2
    goal = "| densenet121, batch 32: PyTorch's fastest | 2.80x | 3.60x | 2.50x | **not reached** |"
    assert goal in lines
    assert (
        "| densenet121, batch 8: memory of PyTorch | 0.50x | 0.35x | 1.00x | **not reached** |"
        in lines
    )


def test_every_row_of_a_table_has_the_cells_of_its_head():
    broken = {"name": "eager", "precision": "float32", "status": "unavailable"}
    text = page.measured({"x.json": report(row("bngen", 1.0), broken)})
    for table in text.split("\n\n")[2:]:
        assert len({line.count("|") for line in table.splitlines()}) == 1


def test_kernels_have_a_table_and_a_race_of_one_has_none():
    group = {
        "direction": "forward", "window": "3x3", "calls": 58, "seconds": 0.09, "peak_share": 1.15,
        "compared": 4, "onednn_seconds": 0.145, "ratio": 1.67, "worst": 1.47,
    }  # fmt: skip
    part = {"program": "densenet121", "groups": [group, {**group, "compared": 0}], "rows": []}
    part["summary"] = {"busy_share": 0.76}
    text = page.measured({"kernels.json": {**report(row("bngen", 1.0)), "kernels": [part]}})
    assert "| forward 3x3 | 58 | 90 ms | 115 | 145 ms | 1.67x | 1.47x |" in text.splitlines()
    assert "| forward 3x3 | 58 | 90 ms | 115 |  |  |  |" in text.splitlines()
    assert "over bngen's | peak memory" not in text


def test_the_section_is_replaced_and_nothing_else():
    readme = f"before\n{page.BEGIN}old\n{page.END}\nafter\n"
    assert page.section(readme) == "old\n"
    assert page.with_section(readme, "new\n") == f"before\n{page.BEGIN}new\n{page.END}\nafter\n"


def test_turns_that_were_not_stationary_are_told():
    noisy = report(row("bngen", 1.0), row("eager", 2.0, stationary=False))
    text = page.measured({"latest.json": noisy})
    assert "medians of 2 turns; 1 of 4 turns ended before the time was stationary:" in text


def test_without_measurements_there_is_no_page():
    assert page.measured({}) == ""
