"""The command line as a process: what it imports, exit statuses, closed pipes, signals."""

import os
import signal
import subprocess
import sys
import time

import pytest

HEAVY = {"tvm", "torch", "numpy", "rich"}


@pytest.mark.parametrize("words", [[], ["build"], ["verify"], ["bench"], ["tune"]])
def test_help_imports_nothing_heavy(words):
    code = (
        "import sys\nfrom bngen.cli.main import main\n"
        f"assert main([*{words!r}, '--help']) == 0\n"
        "print(*sorted({name.split('.')[0] for name in sys.modules}), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not HEAVY & set(done.stderr.split())


def test_the_package_is_the_command(tmp_path):
    """``python -m bngen``, down to its name in messages and its exit status."""
    command = [sys.executable, "-m", "bngen", "biuld"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("bngen: error: No such command 'biuld'")
    assert done.stderr.count("\n") == 1


def test_exit_status_of_a_usage_error(bngen_process):
    done = bngen_process("build", "no_such_net")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines()[-1].startswith("bngen: error: no built-in program")


def test_reader_that_leaves_is_no_error(tmp_path):
    read, write = os.pipe()
    os.close(read)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "bngen.cli.main", "--help"],
            cwd=tmp_path, stdout=write, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
    finally:
        os.close(write)
    assert done.returncode == 141
    assert done.stderr == ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_clean_up(tmp_path, number):
    (tmp_path / "slow.py").write_text(
        "import time\ndef net():\n    print('tracing', flush=True)\n    time.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "bngen.cli.main", "build", "slow.py:net", "--out", "out"],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # A shell lets what it starts in the background ignore the keyboard.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    try:
        while process.stderr.readline().strip() != "tracing":
            time.sleep(0.01)
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert (process.returncode, out) == (130, "")
    assert err == "bngen: interrupted; nothing was written\n"
    assert not (tmp_path / "out").exists()
