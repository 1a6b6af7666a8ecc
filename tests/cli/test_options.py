"""The option table: flags, variables, their mistakes, and the ladder of BNGEN_DEBUG."""

import dataclasses
import re
from pathlib import Path

import pytest

import bngen as package
from bngen import options
from bngen.cli.ablate import AblateRequest
from bngen.cli.bench import BenchRequest
from bngen.cli.build import BuildRequest
from bngen.cli.explain import ExplainRequest
from bngen.cli.main import _wants_traceback
from bngen.cli.profile import ProfileRequest
from bngen.cli.tune import TuneRequest
from bngen.cli.verify import VerifyRequest
from bngen.errors import UsageError

SMALL = ("tiny_densenet", "--batch", "2", "--image", "32")


@pytest.mark.parametrize(
    ("command", "request_type"),
    [
        ("build", BuildRequest),
        ("verify", VerifyRequest),
        ("bench", BenchRequest),
        ("tune", TuneRequest),
        ("explain", ExplainRequest),
        ("profile", ProfileRequest),
        ("ablate", AblateRequest),
    ],
)
def test_requests_have_a_field_for_each_row(command, request_type):
    rows = {row.name for row in options.options_of(command)} - {"debug"}
    assert {f.name for f in dataclasses.fields(request_type)} == rows | {"program"}


def test_the_table_is_sound():
    for command in options.ALL:
        flags = [flag for row in options.options_of(command) for flag in row.flags]
        assert len(flags) == len(set(flags))
    names = [row.env for row in options.OPTIONS if row.env]
    assert len(names) == len(set(names))
    assert "-m" not in flags
    assert all(name.startswith("BNGEN_") for name in names)


def test_every_variable_bngen_reads_is_in_the_table():
    package_folder = Path(options.__file__).parent
    texts = [p.read_text() for p in package_folder.rglob("*.py")]
    read = {name for text in texts for name in re.findall(r"\bBNGEN_[A-Z_]*[A-Z]\b", text)}
    assert "BNGEN_NUM_THREADS" in read
    assert read <= {row.env for row in options.OPTIONS}


def test_fusion_levels_are_the_compilers():
    from bngen.passes.fusion.levels import LEVELS

    assert tuple(LEVELS) == options.FUSION_CHOICES


@pytest.mark.parametrize("command", options.ALL)
def test_help_names_every_flag_and_variable(bngen, command):
    outcome = bngen(command, "--help")
    assert outcome.status == 0
    for row in options.options_of(command):
        for word in (*row.flags, *([row.env] if row.env else [])):
            assert word in outcome.out


def test_variables_set_what_flags_do_not(bngen, compiler, monkeypatch):
    monkeypatch.setenv("BNGEN_FUSION", "rcf")
    monkeypatch.setenv("BNGEN_NUM_THREADS", "1")
    monkeypatch.setenv("BNGEN_EMIT", "ll")
    monkeypatch.setenv("BNGEN_JSON", "1")
    summary = bngen("build", *SMALL, "--fusion", "mvf").json
    assert summary["fusion"] == "mvf"
    assert "ll/k0.ll" in summary["files"]
    bngen("verify", *SMALL)
    assert compiler.calls[1]["threads"] == 1


@pytest.mark.parametrize(
    ("words", "facts"),
    [
        (["--batch", "0"], ["--batch", "0", "x>=1"]),
        (["--batch", "many"], ["--batch", "many"]),
        (["--fusion", "all"], ["--fusion", "all", "icf"]),
        (["--emit", "tir,cuda"], ["--emit", "'cuda'", "tir, ll, asm"]),
        (["--schedule", "x"], ["--schedule", "--schedules"]),
        (["--threads", "2"], ["--threads"]),  # nothing runs
        (["one", "two"], ["two"]),
        (["--target"], ["--target"]),
    ],
)
def test_bad_flags_in_one_line(bngen, compiler, words, facts):
    outcome = bngen("build", *words)
    assert (outcome.status, outcome.out) == (2, "")
    assert outcome.err.count("\n") == 1
    for fact in facts:
        assert fact in outcome.error_line


def test_bad_variable_names_it(bngen, compiler, monkeypatch):
    monkeypatch.setenv("BNGEN_BATCH", "big")
    outcome = bngen("build")
    assert outcome.status == 2
    assert "BNGEN_BATCH" in outcome.error_line


def test_unknown_command(bngen):
    outcome = bngen("biuld")
    assert outcome.status == 2
    assert "build" in outcome.error_line


def test_no_command_prints_help(bngen):
    outcome = bngen()
    assert outcome.status == 0
    assert "verify" in outcome.out


def test_version(bngen):
    assert package.__version__ in bngen("--version").out


@pytest.mark.parametrize(("text", "value"), [("", 0), ("2", 2), ("99", 5)])
def test_debug_level(monkeypatch, text, value):
    monkeypatch.setenv("BNGEN_DEBUG", text)
    assert options.debug_level() == value


@pytest.mark.parametrize("text", ["-1", "x", "1.5"])
def test_bad_debug_level(monkeypatch, text):
    monkeypatch.setenv("BNGEN_DEBUG", text)
    with pytest.raises(UsageError, match=r"BNGEN_DEBUG=.* whole number"):
        options.debug_level()
    assert not _wants_traceback([])


def test_environment_of_the_python_interface(monkeypatch):
    monkeypatch.delenv("BNGEN_FUSION", raising=False)
    assert options.environment("fusion") == "icf"
    monkeypatch.setenv("BNGEN_FUSION", "mvf")
    assert options.environment("fusion") == "mvf"
    monkeypatch.setenv("BNGEN_FUSION", "best")
    with pytest.raises(UsageError, match="BNGEN_FUSION=best is none of none, rcf"):
        options.environment("fusion")


RUNGS = [
    (1, r"^pass fission: \d+ nodes, \d+ ms$"),
    (2, r"conv2d.*features\.conv0\.weight"),
    (3, r"^kernel k0: relu ; conv2d => rule conv kb=4$"),
    (4, r"^tir of k0:$"),
    (5, r"^asm of k1:$"),
]


@pytest.mark.parametrize("level", range(6))
def test_each_rung_shows_more(bngen, compiler, monkeypatch, level):
    monkeypatch.setenv("BNGEN_DEBUG", str(level))
    outcome = bngen("build", *SMALL)
    assert outcome.status == 0
    shown = [rung for rung, line in RUNGS if re.search(line, outcome.err, re.MULTILINE)]
    assert shown == list(range(1, level + 1))


def test_debug_flags_add_up(bngen, compiler, monkeypatch):
    monkeypatch.setenv("BNGEN_DEBUG", "0")
    err = bngen("build", *SMALL, "--debug", "--debug", "--debug").err
    assert "kernel k0:" in err
    assert "tir of k0" not in err
