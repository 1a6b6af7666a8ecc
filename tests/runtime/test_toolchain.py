"""The C compiler: compiled once, verified each time, and whatever else it does is one line."""

import ctypes
import logging
import os
import subprocess
import time

import pytest

from bngen.errors import ToolchainError
from bngen.runtime import native, toolchain

ANSWER = "int answer(void) { return %d; }\n"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BNGEN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(toolchain, "_hanging", set())
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    yield tmp_path / "cache"
    assert list((tmp_path / "tmp").iterdir()) == [], "no scratch files stay"


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "answer.c"
    path.write_text(ANSWER % 41)
    return path


@pytest.fixture
def runs(monkeypatch):
    """The commands that were run."""
    commands, run = [], toolchain._run

    def counted(command, *rest):
        commands.append(command)
        return run(command, *rest)

    monkeypatch.setattr(toolchain, "_run", counted)
    return commands


def answer(source):
    return toolchain.shared_library(source, ctypes.CDLL, ("answer",)).answer()


def test_a_source_is_compiled_once_and_again_when_it_changes(cache, source, runs):
    assert answer(source) == answer(source) == 41
    assert len(runs) == 1
    source.write_text(ANSWER % 42)
    assert answer(source) == 42
    assert len(runs) == len(os.listdir(cache / "native")) == 2


def test_another_command_is_another_library(source, runs, monkeypatch):
    assert answer(source) == 41
    monkeypatch.setenv("CC", "gcc -Danswer=answer")
    assert answer(source) == 41
    assert len(runs) == 2


@pytest.mark.parametrize("damage", [b"", b"\x7fELF", None, "flip"])
def test_a_damaged_library_is_compiled_again(cache, source, runs, damage):
    answer(source)
    (entry,) = (cache / "native").iterdir()
    content = (entry / "library.so").read_bytes()
    damaged = {None: content[:-1], "flip": content[:600] + b"\xff" + content[601:]}
    (entry / "library.so").write_bytes(damaged.get(damage, damage))
    assert answer(source) == 41
    assert len(runs) == 2
    assert (entry / "library.so").read_bytes() == content


def test_a_library_that_cannot_be_loaded_any_more_is_compiled_again(source, runs, monkeypatch):
    monkeypatch.setattr(toolchain._LIBRARIES, "read", lambda *_: (b"of another system",))
    assert answer(source) == 41
    assert len(runs) == 1


def test_a_source_that_does_not_compile_is_one_line(cache, source):
    source.write_text("int answer(void) { return x; }\n")
    with pytest.raises(ToolchainError, match="cannot compile answer.c: .*error") as caught:
        answer(source)
    assert "\n" not in str(caught.value)
    assert list(cache.glob("native/*")) == []


@pytest.mark.parametrize("make", [lambda p: p.write_text(""), lambda p: p.symlink_to(p)])
def test_a_cache_that_cannot_be_made_is_done_without(cache, source, make, caplog):
    make(cache)
    with caplog.at_level(logging.WARNING):
        assert answer(source) == 41
    assert "nothing is kept for the next time" in caplog.text


# --- compilers that are none ------------------------------------------------------------------


def test_no_compiler(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ToolchainError, match="install gcc, or name a C compiler in CC"):
        toolchain.find_compiler()


@pytest.mark.parametrize("named", ["", "  ", "\t"])
def test_a_blank_name_is_none(named, monkeypatch):
    monkeypatch.setenv("CC", named)
    assert toolchain.find_compiler() == [subprocess.getoutput("command -v cc")]


@pytest.mark.parametrize(
    "named",
    ["'gcc", 'gcc "-O2', "gcc\\", "''", '"" gcc', "/tmp", "/dev/null", "/nowhere/gcc", "no such",
     "gcc-of-nobody -O2", "-O2", "x" * 5000],
)  # fmt: skip
def test_a_malformed_name_is_one_line(named, source, monkeypatch):
    monkeypatch.setenv("CC", named)
    with pytest.raises(ToolchainError, match="CC") as caught:
        answer(source)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 250


def script(tmp_path, text, mode=0o755):
    path = tmp_path / "compiler"
    path.write_text(text)
    path.chmod(mode)
    return str(path)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "cannot be run: Exec format error"),
        ("#!/nowhere/sh\n", "cannot be run: No such file"),
        ("#!/bin/sh\nexit 0\n", "wrote nothing"),
        ("#!/bin/sh\nexit 3\n", "cannot compile answer.c: no message"),
        ("#!/bin/sh\necho one >&2; echo 'two: error' >&2; exit 1\n", "answer.c: two: error"),
        ("#!/bin/sh\nprintf '\\377\\n' >&2; exit 1\n", "cannot compile answer.c"),
        ("#!/bin/sh\nkill -SEGV $$\n", "was killed by SIGSEGV"),
        ("#!/bin/sh\nkill -9 $$\n", "was killed by SIGKILL"),
        ("#!/bin/sh\nkill -40 $$\n", "was killed by signal 40"),
        ("#!/bin/sh\ntouch library.so\n", "cannot load a compiled library"),
        ("#!/bin/sh\nmkdir library.so\n", "Is a directory"),
        ("#!/bin/sh\necho nonsense > library.so\n", "cannot load a compiled library"),
        ("#!/bin/sh\ngcc -Danswer=question \"$@\"\n", "lacks answer"),
        ("#!/bin/sh\ncat; exit 1\n", "no message"),
        ("#!/bin/sh\nhead -c 300000000 /dev/zero >&2; exit 1\n", "cannot compile answer.c"),
    ],
)  # fmt: skip
def test_a_compiler_that_fails_is_one_line_and_nothing_is_kept(
    tmp_path, cache, source, monkeypatch, text, told
):
    monkeypatch.setenv("CC", script(tmp_path, text))
    with pytest.raises(ToolchainError, match=told) as caught:
        answer(source)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600
    assert list(cache.glob("native/*")) == []
    monkeypatch.delenv("CC")
    assert answer(source) == 41


def test_a_compiler_that_may_not_be_run_is_none(tmp_path, source, monkeypatch):
    monkeypatch.setenv("CC", script(tmp_path, "#!/bin/sh\n", 0o644))
    with pytest.raises(ToolchainError, match="names no program that can be run"):
        answer(source)


def processes_of(folder, patience=5.0):
    """Processes whose current folder lies in a folder, and that do not end soon."""
    deadline = time.monotonic() + patience
    while (found := _running_in(folder)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return found


def _running_in(folder):
    found = []
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        try:
            if os.readlink(f"/proc/{pid}/cwd").startswith(str(folder)):
                found.append(pid)
        except OSError:
            continue
    return found


@pytest.mark.parametrize("text", ["sleep 100 & sleep 100", "yes >&2", "exec sleep 100 >&- 2>&-"])
def test_a_compiler_that_hangs_is_ended_with_all_it_has_started(
    tmp_path, source, monkeypatch, text
):
    monkeypatch.setattr(toolchain, "_PATIENCE", 0.5)
    monkeypatch.setenv("CC", script(tmp_path, f"#!/bin/sh\n{text}\n"))
    begin = time.monotonic()
    with pytest.raises(ToolchainError, match=r"takes over 0.5 s to compile answer\.c"):
        answer(source)
    assert time.monotonic() - begin < 20
    assert processes_of(tmp_path / "tmp") == []
    monkeypatch.setattr(toolchain, "_PATIENCE", 1000)
    with pytest.raises(ToolchainError, match="takes over"):
        toolchain.link([b"object"])  # and it is not waited for again


def test_a_compiler_that_leaves_a_server_behind_is_not_waited_for(tmp_path, source, monkeypatch):
    wrapper = script(tmp_path, '#!/bin/sh\n(cd /; sleep 20) &\nexec gcc "$@"\n')
    monkeypatch.setenv("CC", wrapper)
    begin = time.monotonic()
    assert answer(source) == 41
    assert time.monotonic() - begin < 15


def test_an_interrupt_ends_the_compiler(tmp_path, source, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(toolchain, "_outcome", interrupted)
    monkeypatch.setenv("CC", script(tmp_path, "#!/bin/sh\nsleep 100\n"))
    with pytest.raises(KeyboardInterrupt):
        answer(source)
    assert processes_of(tmp_path / "tmp") == []


# --- linking ----------------------------------------------------------------------------------


def test_objects_become_a_library(tmp_path, source):
    command = [*toolchain.find_compiler(), "-c", "-fPIC", "-o", "a.o", source]
    subprocess.run(command, cwd=tmp_path, check=True)
    library = toolchain.link([(tmp_path / "a.o").read_bytes()])
    assert native.open_library(library, ctypes.CDLL, ("answer",)).answer() == 41


def test_what_is_no_object_is_one_line():
    with pytest.raises(ToolchainError, match="cannot link kernels") as caught:
        toolchain.link([b"nonsense"])
    assert "\n" not in str(caught.value)


def test_a_full_disk_is_one_line(tmpfs, monkeypatch, tmp_path, source):
    place = tmpfs("size=16k")
    monkeypatch.setattr("tempfile.tempdir", str(place))
    monkeypatch.setattr(toolchain.folders, "_scratch_places", lambda: [(place, False)])
    for make in (lambda: answer(source), lambda: toolchain.link([bytes(1 << 20)])):
        with pytest.raises(ToolchainError, match="No space left on device") as caught:
            make()
        assert "\n" not in str(caught.value)
    assert list(place.iterdir()) == []
