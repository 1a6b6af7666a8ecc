"""`bngen build` on a stand-in compiler: targets, output folder, what is printed, how it fails."""

import json

import pytest

from bngen.cli import main as cli
from bngen.cli.console import SCHEMA
from bngen.errors import TargetError, warn
from tests.cli.conftest import MANIFEST

TINY = "tiny_densenet"
SMALL = (TINY, "--batch", "2", "--image", "32")


def files_of(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


@pytest.mark.parametrize(
    ("words", "asked"),
    [
        ([], ("llvm -mcpu=native", None, ())),
        (["--target", "llvm", "-mcpu=native"], ("llvm", "native", ())),
        (["--target", "llvm -mcpu=native"], ("llvm -mcpu=native", None, ())),
        (["-mcpu", "znver4"], ("llvm -mcpu=native", "znver4", ())),
        (["--mcpu=znver4"], ("llvm -mcpu=native", "znver4", ())),
        (["--target=llvm", "-mattr=+avx2,-avx512f"], ("llvm", None, "+avx2,-avx512f")),
        (["--target", "llvm", "-mattr", "-avx512f"], ("llvm", None, "-avx512f")),
        (["--target", '{"kind":"llvm"}'], ('{"kind":"llvm"}', None, ())),
    ],
)
def test_target_reaches_the_compiler(bngen, compiler, words, asked):
    outcome = bngen("build", *words, *SMALL)
    assert outcome.status == 0
    assert compiler.targets == [asked]


@pytest.mark.parametrize("typo", ["-mcpv=native", "-mcp=native", "-mcupu", "-m"])
def test_mistyped_target_flag_is_named(bngen, compiler, typo):
    outcome = bngen("build", "--target", "llvm", typo)
    assert outcome.status == 2
    assert f"'{typo.split('=')[0]}'" in outcome.error_line
    assert "-mcpu" in outcome.error_line
    assert not compiler.calls


def test_a_triple_beside_its_target_is_to_be_quoted(bngen, compiler):
    outcome = bngen("build", "--target", "llvm", "-mtriple=aarch64-linux-gnu", "-mcpu=neoverse-v1")
    assert outcome.status == 2 and '--target "llvm -mtriple=' in outcome.error_line


def test_options_reach_the_compiler(bngen, compiler):
    bngen("build", *SMALL, "--fusion", "mvf", "--schedules", "here", "--grad", "--emit", "asm")
    (call,) = compiler.calls
    assert call["program"].name == TINY
    assert call["program"].graph.inputs[0].value.shape == (2, 3, 32, 32)
    assert (call["fusion"], call["emit"], call["schedules"]) == ("mvf", ("asm",), "here")
    assert call["grad"] is True


@pytest.mark.parametrize("command", ["build", "verify"])
def test_the_memory_format_reaches_the_compiler(bngen, compiler, command):
    bngen(command, *SMALL)
    bngen(command, *SMALL, "--memory-format", "channels_last")
    formats = [call["memory_format"] for call in compiler.calls]
    assert formats == ["contiguous_format", "channels_last"]
    outcome = bngen(command, *SMALL, "--memory-format", "nhwc")
    assert outcome.status == 2 and "channels_last" in outcome.error_line


def test_densenet121_is_the_default(bngen, compiler):
    assert bngen("build").status == 0
    (call,) = compiler.calls
    assert call["program"].name == "densenet121"
    assert call["program"].graph.inputs[0].value.shape == (8, 3, 224, 224)
    assert (call["fusion"], call["emit"], call["grad"]) == ("icf", (), False)


def test_summary_on_stdout_progress_on_stderr(bngen, compiler, tmp_path):
    outcome = bngen("build", *SMALL)
    told = (
        "native, which is x86-64-v3", "9 ops before fusion, 4 kernels after",
        "forward 4.0 MiB of feature maps, read and written in a call",
        f"bngen-out/{TINY}: bundle.json, manifest.json, 1 in kernels",
        f"bngen explain bngen-out/{TINY}", f"mod = bngen.load('bngen-out/{TINY}')",
    )  # fmt: skip
    for fact in (TINY, *told):
        assert fact in outcome.out
    assert "[2/2] conv2d;bn_stats" in outcome.err.splitlines()
    assert "[" not in outcome.out


def test_the_next_line_is_python_and_runs_here(bngen, compiler, monkeypatch):
    assert "mod = bngen.load('a\"b')" in bngen("build", *SMALL, "--out", 'a"b').out
    monkeypatch.setitem(MANIFEST["target"], "arch", "aarch64")
    out = bngen("build", *SMALL, "--out", "arm").out
    assert "bngen.load('arm')   (in Python, on a machine" in out and "mod = " not in out


def test_a_warning_is_one_line(bngen, compiler, monkeypatch):
    monkeypatch.setattr(cli, "_invoke", lambda argv: warn("no output depends\n on 'x'"))
    assert bngen("build", *SMALL).err == "bngen: warning: no output depends on 'x'\n"


def test_quiet_says_nothing_on_stderr(bngen, compiler):
    assert bngen("build", *SMALL, "--quiet").err == ""


def test_json_is_all_there_is_on_stdout(bngen, compiler):
    summary = bngen("build", *SMALL, "--json").json
    assert summary["schema"] == SCHEMA
    assert summary["kernels"] == {"before": 9, "after": 4, "distinct": 3}
    assert summary["target"]["asked"] == "llvm -mcpu=native"
    assert summary["target"]["cpu"] == "x86-64-v3"
    assert summary["files"] == ["bundle.json", "kernels/k0.o", "manifest.json"]


def test_folder_holds_what_the_manifest_lists(bngen, compiler, tmp_path):
    bngen("build", *SMALL, "--out", "deep/er", "--emit", "tir,asm")
    folder = tmp_path / "deep" / "er"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["generator"].startswith("bngen ")
    assert manifest["program"] == TINY
    assert files_of(folder) == sorted([*manifest["files"], "manifest.json"])
    assert (folder / "asm" / "k1.s").read_text() == "asm of k1\n"
    assert (folder / "kernels" / "k0.o").exists()
    assert not (folder / "ll").exists()


def test_a_new_build_replaces_the_old(bngen, compiler, tmp_path):
    bngen("build", *SMALL, "--out", "out", "--emit", "tir,ll,asm")
    bngen("build", *SMALL, "--out", "out")
    assert files_of(tmp_path) == ["out/bundle.json", "out/kernels/k0.o", "out/manifest.json"]


# --- failing ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("failure", "status", "words"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (TargetError("no such CPU", hint="try znver4"), 2, "no such CPU (try znver4)"),
        (ZeroDivisionError("of\nours"), 101, "ZeroDivisionError: of ours"),
        (OSError(28, "No space left on device"), 2, "No space left"),
    ],
)
def test_failure_leaves_the_folder_as_it_was(bngen, compiler, tmp_path, failure, status, words):
    bngen("build", *SMALL, "--out", "out", "--emit", "tir")
    before = files_of(tmp_path)

    def fail():
        raise failure

    compiler.during = fail
    outcome = bngen("build", *SMALL, "--out", "out")
    assert (outcome.status, outcome.out) == (status, "")
    assert words in outcome.error_line
    assert "Traceback" not in outcome.err
    assert files_of(tmp_path) == before
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_failure_leaves_no_new_folder(bngen, compiler, tmp_path):
    def fail():
        raise KeyboardInterrupt

    compiler.during = fail
    assert bngen("build", *SMALL, "--out", "a/b/c").status == 130
    assert not list(tmp_path.iterdir())


def test_bug_asks_for_a_report_and_debug_shows_the_traceback(bngen, compiler, monkeypatch):
    monkeypatch.setenv("BNGEN_DEBUG", "0")  # so that what --debug sets is taken back

    def fail():
        raise ZeroDivisionError("of ours")

    compiler.during = fail
    assert "report it" in bngen("build", *SMALL).error_line
    outcome = bngen("build", *SMALL, "--debug")
    assert outcome.status == 101
    assert "Traceback" in outcome.err


def test_writing_fails_in_one_line(bngen, compiler, monkeypatch, tmp_path):
    def full(self, *args, **kw):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    outcome = bngen("build", *SMALL)
    assert outcome.status == 2
    assert "No space left on device" in outcome.error_line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("out", ["file", "file/below", "/proc/nowhere"])
def test_unwritable_folder_is_found_before_compiling(bngen, compiler, tmp_path, out):
    (tmp_path / "file").write_text("mine")
    outcome = bngen("build", *SMALL, "--out", out)
    assert outcome.status == 2
    assert out.split("/")[-1] in outcome.error_line
    assert "--out" in outcome.error_line
    assert not compiler.calls
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("foreign", ["thesis.tex", "kernels/mine.o"])
def test_a_folder_with_other_files_is_never_replaced(bngen, compiler, tmp_path, foreign):
    bngen("build", *SMALL, "--out", "out")
    (tmp_path / "out" / foreign).write_text("mine")
    outcome = bngen("build", *SMALL, "--out", "out")
    assert outcome.status == 2
    assert foreign in outcome.error_line
    assert len(compiler.calls) == 1
    assert (tmp_path / "out" / foreign).read_text() == "mine"


def test_a_manifest_of_someone_else_protects_its_folder(bngen, compiler, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "manifest.json").write_text('{"files": []}')
    assert bngen("build", *SMALL, "--out", "out").status == 2


def test_an_empty_folder_is_used(bngen, compiler, tmp_path):
    (tmp_path / "out").mkdir()
    assert bngen("build", *SMALL, "--out", "out").status == 0
    assert "manifest.json" in files_of(tmp_path / "out")
