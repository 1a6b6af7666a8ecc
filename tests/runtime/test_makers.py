"""Of several that want the same made at once one makes it, and nobody waits in vain for long."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from bngen.runtime import makers
from bngen.runtime.makers import one_maker


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BNGEN_CACHE_DIR", str(tmp_path))
    return tmp_path


class Other(threading.Thread):
    """Another that wants the same made; it says when it may."""

    def __init__(self, key):
        super().__init__(daemon=True)
        self._key, self.begun = key, threading.Event()
        self.start()

    def run(self):
        with one_maker(self._key):
            self.begun.set()


def test_one_waits_for_who_makes_the_same_and_for_nobody_else():
    with one_maker("this"):
        same, other = Other("this"), Other("that")
        assert other.begun.wait(10)
        assert not same.begun.wait(0.1)
    assert same.begun.wait(10)


def test_those_who_have_waited_do_not_wait_for_each_other():
    inside, leave = threading.Barrier(3), threading.Event()

    def waited():
        with one_maker("this"):
            inside.wait(10)

    with one_maker("this"):
        threads = [threading.Thread(target=waited) for _ in range(2)]
        for thread in threads:
            thread.start()
        assert not leave.wait(0.1) and not inside.n_waiting
    inside.wait(10)  # with both of them in it
    for thread in threads:
        thread.join()


def test_who_is_killed_lets_the_others_go(cache):
    job = (
        "import time; from bngen.runtime.makers import one_maker\n"
        "with one_maker('this'): print('in', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", job], stdout=subprocess.PIPE)
    try:
        assert process.stdout.readline() == b"in\n"
        other = Other("this")
        assert not other.begun.wait(0.1)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert other.begun.wait(10)


def test_a_process_forked_meanwhile_holds_nothing(monkeypatch):
    opened, copies = makers._opened, []

    def forked():
        file = opened()
        copies.append(os.dup(file))
        return file

    monkeypatch.setattr(makers, "_opened", forked)
    with one_maker("this"):
        pass
    assert Other("this").begun.wait(10)
    for file in copies:
        os.close(file)


def test_nobody_waits_for_another_priority(monkeypatch):
    with one_maker("this"):
        monkeypatch.setattr(os, "getpriority", lambda *_: 19)
        assert Other("this").begun.wait(10)


def test_patience_ends(monkeypatch):
    monkeypatch.setattr(makers, "_PATIENCE", 0.05)
    with one_maker("this"):
        start = time.monotonic()
        assert Other("this").begun.wait(10)
        assert time.monotonic() - start >= 0.05


def test_without_a_cache_folder_nobody_waits(cache, monkeypatch):
    (cache / "file").write_text("no folder")
    monkeypatch.setenv("BNGEN_CACHE_DIR", str(cache / "file"))
    with one_maker("this"):
        assert Other("this").begun.wait(10)
