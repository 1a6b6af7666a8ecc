"""Entries on disk: whole or not there, never stale or damaged, never more than the limit."""

import itertools
import json
import logging
import os
import shutil
import subprocess
import sys

import pytest

from bngen import files
from bngen.runtime import store as store_module
from bngen.runtime.store import Store
from tests.profiles import THOROUGH

FILES = {"a.bin": b"\x00\x01" * 500, "b.txt": b"text"}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("BNGEN_CACHE_DIR", str(folder))
    store_module._warn.cache_clear()
    return folder


@pytest.fixture
def store():
    return Store("things", 1 << 20)


@pytest.fixture
def entry(cache, store):
    assert store.add("key", FILES)
    return cache / "things" / "key"


def used_at(entry_folder, seconds):
    os.utime(entry_folder, (seconds, seconds))


def test_what_was_added_is_read_by_another_store(entry):
    assert Store("things", 1 << 20).read("key", *FILES) == tuple(FILES.values())
    assert Store("things", 1 << 20).read("key") == ()


def test_nothing_is_read_under_another_key_or_name(entry, store):
    assert store.read("other", "a.bin") is None
    assert store.read("key", "c.bin") is None
    assert Store("others", 1 << 20).read("key", "a.bin") is None


def test_it_is_the_users_alone(entry):
    for path in (entry.parent, entry):
        assert path.stat().st_mode & 0o777 == 0o700
    assert {p.stat().st_mode & 0o777 for p in entry.iterdir()} == {0o600}


@pytest.mark.parametrize("shared", [".", "key"])
def test_a_folder_that_others_can_write_to_is_not_trusted(entry, store, shared):
    (entry.parent / shared).chmod(0o777)
    assert store.read("key", "a.bin") is None


@pytest.mark.parametrize("damage", [b"", b"\x00\x01" * 499 + b"\x00\x02", b"\x00\x01" * 501])
def test_a_damaged_file_is_no_file_and_can_be_written_again(entry, store, damage):
    (entry / "a.bin").write_bytes(damage)
    assert store.read("key", "b.txt") == (b"text",)
    assert store.read("key", "a.bin") is None
    assert store.read("key", "b.txt") is None, "the entry is given up"
    store.add("key", FILES)
    assert store.read("key", "a.bin") == (FILES["a.bin"],)


def _index_of(entry, change):
    index = json.loads((entry / "index.json").read_text())
    change(index)
    return json.dumps(index).encode()


HOSTILE = {
    "empty": lambda e: b"",
    "list": lambda e: b"[1]",
    "half": lambda e: b"{",
    "no text": lambda e: b"\xff",
    "deep": lambda e: b"[" * 100_000,
    "long number": lambda e: b'{"key":' + b"9" * 5000 + b"}",
    "another entry's": lambda e: _index_of(e, lambda i: i.update(key="other")),
    "no rows": lambda e: _index_of(e, lambda i: i.pop("files")),
    "odd rows": lambda e: _index_of(e, lambda i: i["files"].update({"a.bin": None})),
    "text for a size": lambda e: _index_of(e, lambda i: i["files"].update({"a.bin": ["1", "2"]})),
    "a size below 0": lambda e: _index_of(e, lambda i: i["files"]["a.bin"].__setitem__(0, -5)),
    "huge": lambda e: b" " * (5 << 20),
}


@pytest.mark.parametrize("index", HOSTILE)
def test_a_hostile_index_is_no_entry(entry, store, index):
    (entry / "index.json").write_bytes(HOSTILE[index](entry))
    assert store.read("key", "a.bin") is None
    assert store.add("key", FILES)
    assert store.read("key", "a.bin") == (FILES["a.bin"],)


def _replaced(path, make):
    path.unlink()
    make(path)


def _huge(path):
    with path.open("wb") as file:
        file.truncate(1 << 40)


@pytest.mark.parametrize("name", ["a.bin", "index.json"])
@pytest.mark.parametrize(
    "make",
    [
        lambda path: path.mkdir(),
        os.mkfifo,
        lambda path: path.symlink_to("/dev/zero"),
        lambda path: path.symlink_to(path.name),
        lambda path: path.symlink_to("/nowhere"),
        _huge,
    ],
)
def test_what_is_no_file_is_not_opened(entry, store, name, make):
    _replaced(entry / name, make)
    assert store.read("key", "a.bin") is None
    assert store.add("key", FILES)
    assert store.read("key", "a.bin") == (FILES["a.bin"],)


def test_a_link_to_the_right_content_is_not_followed(entry, store, tmp_path):
    (tmp_path / "elsewhere").write_bytes(FILES["a.bin"])
    _replaced(entry / "a.bin", lambda path: path.symlink_to(tmp_path / "elsewhere"))
    assert store.read("key", "a.bin") is None


@pytest.mark.parametrize("step", ["is_private", "_read_index", "_content"])
def test_a_folder_swapped_after_the_check_is_not_read(entry, store, cache, monkeypatch, step):
    """Names lead elsewhere from the check on; what was checked is what is read."""
    where = store_module.folders if step == "is_private" else store_module
    real = getattr(where, step)

    def swapped(*arguments):
        if not cache.with_name("before").exists():
            cache.rename(cache.with_name("before"))
            Store("things", 1 << 20).add("key", {"a.bin": b"evil", "b.txt": b"evil"})
        return real(*arguments)

    monkeypatch.setattr(where, step, swapped)
    assert store.read("key", *FILES) == tuple(FILES.values())


def test_names_do_not_lead_out_of_an_entry(entry, store, tmp_path):
    (tmp_path / "secret").write_bytes(b"x")
    assert store.read("key", "../../../secret") is None
    assert store.read("../things/key", "a.bin") is None


@pytest.mark.parametrize("make", [lambda p: p.write_text(""), lambda p: p.symlink_to("/tmp")])
def test_what_lies_in_the_place_of_an_entry_gives_way(entry, store, make):
    shutil.rmtree(entry)
    make(entry)
    assert store.read("key", "a.bin") is None
    assert store.add("key", FILES)
    assert store.read("key", "a.bin") == (FILES["a.bin"],)
    assert os.path.isdir("/tmp")


def test_adding_twice_keeps_the_newer(entry, store):
    assert store.add("key", {"a.bin": b"new"})
    assert store.read("key", "a.bin") == (b"new",)
    assert [p.name for p in entry.parent.iterdir()] == ["key"]


def test_what_was_used_longest_ago_gives_way(cache):
    store = Store("things", 3000)
    for i, key in enumerate(("first", "second")):
        store.add(key, FILES)
        used_at(cache / "things" / key, 1000 + i)
    store.read("first", "a.bin")
    store.add("third", FILES)
    there = [store.read(k, "a.bin") is not None for k in ("first", "second", "third")]
    assert there == [True, False, True]


def test_an_entry_above_the_limit_is_kept_alone(cache):
    store = Store("things", 10)
    store.add("first", FILES)
    store.add("second", FILES)
    assert sorted(p.name for p in (cache / "things").iterdir()) == ["second"]


def test_an_interrupt_while_writing_leaves_nothing(cache, store, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(store_module, "_take_place", interrupted)
    with pytest.raises(KeyboardInterrupt):
        store.add("key", FILES)
    assert list((cache / "things").iterdir()) == []


KILLED = """
import os, signal
from bngen import files
from bngen.runtime.store import Store
def stop(*_):
    os.kill(os.getpid(), signal.SIGKILL)
files.add_file = stop
Store("things", 1 << 20).add("killed", {"a": b"x"})
"""


def test_what_a_killed_process_left_goes_with_the_next_entry(cache, store):
    subprocess.run([sys.executable, "-c", KILLED], check=False)
    assert len(os.listdir(cache / "things")) == 1
    store.add("key", FILES)
    assert os.listdir(cache / "things") == ["key"]


RACER = """
import sys
from bngen.runtime.store import Store
store = Store("things", 1 << 20)
for _ in range(100):
    assert store.add("key", {"a.bin": b"x" * 1000, "b.bin": sys.argv[1].encode() * 1000})
    read = store.read("key", "a.bin", "b.bin")
    assert read is None or set(read[1]) in ({48}, {49}) and len(read[1]) == 1000
"""


def test_racers_agree_and_say_nothing(cache, store):
    racers = [
        subprocess.Popen([sys.executable, "-c", RACER, str(i)], stderr=subprocess.PIPE, text=True)
        for i in range(2)
    ]
    assert [(r.communicate()[1], r.returncode) for r in racers] == [("", 0)] * 2
    assert os.listdir(cache / "things") == ["key"]
    assert store.read("key", "a.bin") == (b"x" * 1000,)


# --- disks ------------------------------------------------------------------------------------


def test_a_full_disk_is_a_warning_and_leaves_nothing(tmpfs, monkeypatch, caplog):
    place = tmpfs("size=64k")
    monkeypatch.setenv("BNGEN_CACHE_DIR", str(place))
    store = Store("things", 1 << 20)
    assert store.add("small", FILES)
    assert not store.add("large", {"a.bin": bytes(1 << 20)})
    assert not store.add("large", {"a.bin": bytes(1 << 20)})
    assert [r.getMessage() for r in caplog.records] == [
        "nothing is kept for the next time: No space left on device"
    ]
    assert os.listdir(place / "things") == ["small"]
    assert store.read("small", "b.txt") == (b"text",)


def test_a_cache_that_can_only_be_read_is_read(tmpfs, monkeypatch, caplog):
    place = tmpfs()
    monkeypatch.setenv("BNGEN_CACHE_DIR", str(place))
    store = Store("things", 1 << 20)
    store.add("key", FILES)
    subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
    assert store.read("key", "b.txt") == (b"text",)
    assert store.read("other", "b.txt") is None
    assert not store.add("other", FILES)
    assert "nothing is kept for the next time: Read-only file system" in caplog.text


def test_a_quota_is_a_warning(store, monkeypatch, caplog):
    def over(*_):
        raise OSError(122, "Disk quota exceeded")

    monkeypatch.setattr(files, "_write_all", over)
    with caplog.at_level(logging.WARNING):
        assert not store.add("key", FILES)
    assert "nothing is kept for the next time: Disk quota exceeded" in caplog.text


def test_too_many_open_files_gives_nothing_up(entry, store, monkeypatch):
    def none_left(*_, **__):
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(store_module, "_content", none_left)
        assert store.read("key", "a.bin") is None
    assert store.read("key", "a.bin") == (FILES["a.bin"],)


# --- every byte -------------------------------------------------------------------------------


def test_no_flipped_bit_and_no_cut_goes_unnoticed(entry, store):
    """Bytes of the small file and of the index, in turn: what was written, or nothing."""
    whole = {name: (entry / name).read_bytes() for name in ("b.txt", "index.json")}
    for name, content in whole.items():
        places = range(0, len(content), 1 if THOROUGH else 5)
        flips = [
            content[:i] + bytes([content[i] ^ bit]) + content[i + 1 :]
            for i, bit in itertools.product(places, (1, 32, 128) if THOROUGH else (1,))
        ]
        for damaged in (*(content[:i] for i in places), *flips):
            (entry / name).write_bytes(damaged)
            read = store.read("key", "b.txt")
            assert read in (None, (b"text",)), damaged
            if read is None:
                store.add("key", FILES)
            else:
                (entry / name).write_bytes(content)
