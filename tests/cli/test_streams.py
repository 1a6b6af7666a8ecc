"""Streams and output files that are closed, full or read-only: one line, or done without."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bngen.cli import console

ROOT = Path(__file__).parents[2]
SMALL = "build tiny_densenet --batch 1 --image 32"

STAND_IN = """
import sys
from types import ModuleType
from tests.cli.conftest import StandInCompiler
import bngen.target.parse
stand_in = StandInCompiler()
module = ModuleType("bngen.compiler")
module.build, module.bundle = stand_in.build, stand_in.bundle
sys.modules["bngen.compiler"] = module
bngen.target.parse.Target.parse = stand_in.parse
from bngen.cli.main import run
run()
"""


@pytest.fixture
def shell(tmp_path):
    """``shell("build ... > /dev/full")``: a command line in a shell, on the stand-in compiler."""
    (tmp_path / "bngen.py").write_text(STAND_IN)

    def run(line, **variables):
        return subprocess.run(
            ["sh", "-c", f"{sys.executable} -P bngen.py {line}"],
            cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
            env={**os.environ, "PYTHONPATH": str(ROOT), **variables},
        )  # fmt: skip

    return run


def only_line(done):
    """The one line of an error, on standard error; the rest there is progress."""
    lines = [line for line in done.stderr.splitlines() if line.startswith("bngen")]
    assert len(lines) == 1 and "Traceback" not in done.stderr, done.stderr
    assert "bug in bngen" not in done.stderr
    return lines[0]


@pytest.mark.parametrize(
    "words", ["", "--help", "--version", "build --help", SMALL, f"{SMALL} --json"]
)
@pytest.mark.parametrize(
    ("redirected", "reason"),
    [(">/dev/full", "No space left on device"), ("1</dev/null", "Bad file descriptor")],
)
def test_a_result_that_cannot_be_written(shell, words, redirected, reason):
    done = shell(f"{words} {redirected}")
    assert done.returncode == 2
    assert only_line(done) == (
        f"bngen: error: cannot write to standard output: {reason} (send it elsewhere)"
    )


@pytest.mark.parametrize("redirected", ["2>/dev/full", "2>&-", "2</dev/null", "2>&- <&-"])
def test_what_cannot_be_logged_is_left_out(shell, redirected):
    done = shell(f"{SMALL} --json {redirected}")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["program"] == "tiny_densenet"
    assert shell(f"build no_such_net {redirected}").returncode == 2


@pytest.mark.parametrize("redirected", [">&-", "<&-", ">&- <&-", ">&- 2>&- <&-"])
def test_closed_streams_are_done_without(shell, tmp_path, redirected):
    """And no file takes their place: what is printed would end up in it."""
    done = shell(f"{SMALL} --out out --emit tir {redirected}")
    assert done.returncode == 0
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert (tmp_path / "out" / "tir" / "k0.tir.py").read_text() == "tir of k0\n"
    assert "tir/k0.tir.py" in manifest["files"]


def test_all_full(shell):
    assert shell(f"{SMALL} >/dev/full 2>&1").returncode == 2


def test_a_log_whose_reader_has_left(shell):
    done = shell(f"{SMALL} --json 2>&1 >out.json | true; cat out.json")
    assert json.loads(done.stdout)["program"] == "tiny_densenet"


def test_text_that_the_terminal_cannot_show(shell):
    done = shell(f"{SMALL} --out ü", PYTHONIOENCODING="ascii:strict")
    assert done.returncode == 0 and "\\xfc" in done.stdout
    name = os.fsdecode(b"\xff")
    done = shell(f"{SMALL} --out {name}", PYTHONIOENCODING="utf-8:strict")
    assert done.returncode == 0 and "\\udcff" in done.stdout


def test_quiet_is_quiet_about_warnings_too(bngen, compiler, caplog):
    compiler.during = lambda: logging.getLogger("bngen.runtime.store").warning("nothing is kept")
    bngen(*SMALL.split(), "--quiet")
    assert caplog.text == ""
    bngen(*SMALL.split())
    assert "nothing is kept" in caplog.text


def test_a_result_goes_past_the_bar(monkeypatch, capfd):
    """While rich draws, what is printed goes to where the bar is."""
    monkeypatch.setenv("FORCE_COLOR", "1")  # a terminal, to rich
    with console._rich_bar() as drawn:
        bar = console._Bar(drawn)
        bar.stage("measuring")
        with bar.paused():
            console.result("a table")
        bar.stage("measuring on")
    out, err = capfd.readouterr()
    assert out == "a table\n" and "measuring on" in err


# --- the output folder ------------------------------------------------------------------------


@pytest.mark.parametrize("options", [("size=20k",), ("nr_inodes=9",)])
def test_a_full_disk_leaves_what_was_there(bngen, compiler, tmpfs, options):
    place = tmpfs(*options)
    assert bngen(*SMALL.split(), "--out", place / "out").status == 0
    before = (place / "out" / "manifest.json").read_bytes()
    (place / "filler").write_bytes(b"x" * 3000)
    outcome = bngen(*SMALL.split(), "--out", place / "out", "--emit", "tir,ll,asm")
    assert (outcome.status, outcome.out) == (2, "")
    assert "No space left on device" in outcome.error_line
    assert f"cannot write {place / 'out'}" in outcome.error_line
    assert (place / "out" / "manifest.json").read_bytes() == before
    assert sorted(os.listdir(place)) == ["filler", "out"]


def test_a_read_only_disk_is_found_before_compiling(bngen, compiler, tmpfs):
    place = tmpfs("ro")
    outcome = bngen(*SMALL.split(), "--out", place / "deep" / "out")
    assert outcome.status == 2 and not compiler.calls
    assert "Read-only file system" in outcome.error_line


def test_a_mount_point_is_found_before_compiling(bngen, compiler, tmpfs):
    outcome = bngen(*SMALL.split(), "--out", tmpfs())
    assert outcome.status == 2 and not compiler.calls
    assert "is a mount point" in outcome.error_line


def test_a_link_stays_a_link(bngen, compiler, tmp_path):
    (tmp_path / "link").symlink_to("real")
    for _ in range(2):
        assert bngen(*SMALL.split(), "--out", "link").status == 0
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real" / "manifest.json").exists()


@pytest.mark.parametrize("out", ["~nobody-of-that-name/x", "x" * 300, "/proc/self/fd/x"])
def test_a_place_that_is_none(bngen, compiler, out):
    outcome = bngen(*SMALL.split(), "--out", out)
    assert outcome.status == 2 and not compiler.calls
    assert "--out" in outcome.error_line


def test_what_a_killed_build_left_goes_with_the_next(bngen, compiler, tmp_path, bngen_process):
    bngen(*SMALL.split(), "--out", "out")
    code = (
        "import os, signal\nfrom pathlib import Path\nfrom bngen.runtime import artifact\n"
        "with artifact.output_folder(Path('out')) as folder:\n"
        "    (folder / 'half').write_text('')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=False)
    (left,) = (p for p in tmp_path.iterdir() if p.name.startswith("."))
    assert (left / "new" / "half").exists() and (tmp_path / "out" / "manifest.json").exists()
    assert bngen(*SMALL.split(), "--out", "out").status == 0
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_where_folders_cannot_change_places_it_takes_two_steps(
    bngen, compiler, tmp_path, monkeypatch
):
    monkeypatch.setattr("bngen.files.exchange", lambda one, other: False)
    for emit in ("tir", "asm"):
        assert bngen(*SMALL.split(), "--out", "out", "--emit", emit).status == 0
    names = sorted(os.listdir(tmp_path / "out"))
    assert names == ["asm", "bundle.json", "kernels", "manifest.json"]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


# --- other errors of the world ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(28, "No space left on device"), "No space left on device"),
        (OSError(122, "Disk quota exceeded", "/home/x"), "/home/x: Disk quota exceeded"),
        (OSError(24, "Too many open files"), "Too many open files"),
        (MemoryError("Unable to allocate 8. TiB"), "not enough memory Unable to allocate 8. TiB"),
        (MemoryError(), "not enough memory"),
    ],
)
def test_what_the_machine_lacks_is_no_bug(bngen, compiler, error, words):
    def fail():
        raise error

    compiler.during = fail
    outcome = bngen(*SMALL.split())
    assert outcome.status == 2
    assert outcome.error_line == f"bngen: error: {words}"


def test_an_error_of_bngens_own_use_of_the_system_is_one(bngen, compiler):
    def fail():
        raise OSError(22, "Invalid argument")

    compiler.during = fail
    assert bngen(*SMALL.split()).status == 101
