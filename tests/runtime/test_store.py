"""Entries on disk: whole or not there, never stale or damaged, never more than the limit."""

import logging
import os

import pytest

from bngen.runtime.store import Store

FILES = {"a.bin": b"\x00\x01" * 500, "b.txt": b"text"}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("BNGEN_CACHE_DIR", str(folder))
    return folder


def used_at(entry_folder, seconds):
    os.utime(entry_folder, (seconds, seconds))


def test_what_was_added_is_found_by_another_store():
    Store("things", 1 << 20).add("key", FILES)
    entry = Store("things", 1 << 20).find("key")
    assert {name: entry.read(name) for name in FILES} == FILES
    assert entry.path("b.txt").read_bytes() == b"text"


def test_nothing_is_found_under_another_key_or_name():
    Store("things", 1 << 20).add("key", FILES)
    assert Store("things", 1 << 20).find("other") is None
    assert Store("others", 1 << 20).find("key") is None


def test_the_folder_is_the_users_alone(cache):
    Store("things", 1 << 20).add("key", FILES)
    assert (cache / "things").stat().st_mode & 0o077 == 0


def test_a_folder_that_others_can_write_to_is_not_trusted(cache):
    store = Store("things", 1 << 20)
    store.add("key", FILES)
    (cache / "things").chmod(0o777)
    assert store.find("key") is None


@pytest.mark.parametrize("damage", [b"", b"\x00\x01" * 499 + b"\x00\x02"])
def test_a_damaged_file_is_no_file_and_can_be_written_again(cache, damage):
    store = Store("things", 1 << 20)
    store.add("key", FILES)
    (cache / "things" / "key" / "a.bin").write_bytes(damage)
    with pytest.raises(OSError, match=r"a\.bin is damaged"):
        store.find("key").path("a.bin")
    assert store.find("key") is None
    store.add("key", FILES)
    assert store.find("key").read("a.bin") == FILES["a.bin"]


@pytest.mark.parametrize("index", [b"", b"[1]", b"{", b"\xff"])
def test_a_damaged_index_is_no_entry(cache, index):
    store = Store("things", 1 << 20)
    store.add("key", FILES)
    (cache / "things" / "key" / "index.json").write_bytes(index)
    assert store.find("key") is None


def test_adding_twice_keeps_the_newer():
    store = Store("things", 1 << 20)
    store.add("key", FILES)
    assert store.add("key", {"a.bin": b"new"}).read("a.bin") == b"new"
    assert store.find("key").read("a.bin") == b"new"


def test_what_was_used_longest_ago_gives_way(cache):
    store = Store("things", 3000)
    for i, key in enumerate(("first", "second")):
        store.add(key, FILES)
        used_at(cache / "things" / key, 1000 + i)
    store.find("first")
    store.add("third", FILES)
    assert [store.find(k) is not None for k in ("first", "second", "third")] == [True, False, True]


def test_an_entry_above_the_limit_is_kept_alone(cache):
    store = Store("things", 10)
    store.add("first", FILES)
    store.add("second", FILES)
    assert sorted(p.name for p in (cache / "things").iterdir()) == ["second"]


def test_what_an_interrupted_process_left_goes_in_time(cache):
    store = Store("things", 1 << 20)
    store.add("first", FILES)
    for name, seconds in ((".new-old", 1000), (".new-now", None)):
        (cache / "things" / name).mkdir()
        if seconds:
            used_at(cache / "things" / name, seconds)
    store.add("second", FILES)
    assert sorted(p.name for p in (cache / "things").iterdir()) == [".new-now", "first", "second"]


def test_an_interrupt_while_writing_leaves_nothing(cache, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("bngen.runtime.store._take_place", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Store("things", 1 << 20).add("key", FILES)
    assert list((cache / "things").iterdir()) == []


def test_a_full_disk_is_a_warning(monkeypatch, caplog):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("bngen.runtime.store._take_place", full)
    with caplog.at_level(logging.WARNING):
        assert Store("things", 1 << 20).add("key", FILES) is None
    assert "nothing is kept for the next time: [Errno 28] No space left on device" in caplog.text
