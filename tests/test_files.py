"""Files that appear whole or not at all; working folders that no killed process leaves for ever."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from bngen import files

PREFIX = ".work-"


@pytest.fixture
def parent(tmp_path):
    with files.opened(tmp_path) as descriptor:
        yield descriptor


def test_a_working_folder_goes_unless_it_was_renamed(parent, tmp_path):
    with files.working_folder(parent, PREFIX) as (name, folder):
        files.add_file(folder, "a", b"x")
        assert (tmp_path / name / "a").read_bytes() == b"x"
    assert list(tmp_path.iterdir()) == []
    with files.working_folder(parent, PREFIX) as (name, folder):
        os.rename(tmp_path / name, tmp_path / "kept")
    assert [p.name for p in tmp_path.iterdir()] == ["kept"]


def test_folders_in_use_stay(parent, tmp_path):
    with files.working_folder(parent, PREFIX) as (outer, _):
        with files.working_folder(parent, PREFIX):
            pass
        assert [p.name for p in tmp_path.iterdir()] == [outer]


def test_only_what_was_made_so_is_removed(parent, tmp_path):
    dead = f"{PREFIX}{'0' * 16}"
    for name in (dead, f"{PREFIX}mine", f"{PREFIX}{'0' * 17}", "0" * 16):
        (tmp_path / name).mkdir()
    (tmp_path / f"{PREFIX}{'1' * 16}").symlink_to(tmp_path / "0000000000000000")
    (tmp_path / f"{PREFIX}{'2' * 16}").write_text("")
    files.sweep(parent, PREFIX)
    assert dead not in os.listdir(tmp_path) and len(os.listdir(tmp_path)) == 5


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give files to another user")
def test_what_belongs_to_others_stays(parent, tmp_path):
    theirs = tmp_path / f"{PREFIX}{'0' * 16}"
    theirs.mkdir()
    os.chown(theirs, 12345, 0)
    files.sweep(parent, PREFIX)
    assert theirs.exists()


def test_without_locks_age_decides(parent, tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", unsupported)
    with files.working_folder(parent, PREFIX) as (name, _):
        files.sweep(parent, PREFIX)
        assert os.listdir(tmp_path) == [name]
        os.utime(tmp_path / name, (1, 1))
        files.sweep(parent, PREFIX)
        assert os.listdir(tmp_path) == []


def test_many_at_once(parent, tmp_path):
    """A folder that is taken for dead between its making and its locking is made again."""

    def work():
        for _ in range(100):
            with files.working_folder(parent, PREFIX) as (_, folder):
                files.add_file(folder, "a", b"x")

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert os.listdir(tmp_path) == []


# --- whole files ------------------------------------------------------------------------------


def test_a_file_is_written_and_replaced(tmp_path):
    path = tmp_path / "a"
    files.write_whole(path, b"one")
    path.chmod(0o640)
    files.write_whole(path, b"two")
    assert path.read_bytes() == b"two" and path.stat().st_mode & 0o777 == 0o640
    assert os.listdir(tmp_path) == ["a"]


def test_a_link_is_written_through(tmp_path):
    (tmp_path / "link").symlink_to("real")
    files.write_whole(tmp_path / "link", b"x")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real").read_bytes() == b"x"


def test_a_full_disk_leaves_what_was_there(tmpfs):
    place = tmpfs("size=64k")
    files.write_whole(place / "a", b"before")
    with pytest.raises(OSError, match="No space left"):
        files.write_whole(place / "a", bytes(1 << 20))
    assert (place / "a").read_bytes() == b"before" and os.listdir(place) == ["a"]


def test_devices_and_pipes_are_written_to_as_they_are(tmp_path):
    files.write_whole("/dev/null", b"x")
    with pytest.raises(OSError, match="No space left"):
        files.write_whole("/dev/full", b"x")
    assert os.path.exists("/dev/full") and not os.path.isfile("/dev/full")
    os.mkfifo(tmp_path / "pipe")
    read = []
    reader = threading.Thread(target=lambda: read.append((tmp_path / "pipe").read_bytes()))
    reader.start()
    files.write_whole(tmp_path / "pipe", b"x" * 100_000)
    reader.join()
    assert len(read[0]) == 100_000


def test_an_open_pipe_has_a_path(tmp_path):
    """As of ``--html >(gzip)`` and ``--json /dev/stdout``; its real path leads nowhere."""
    read, write = os.pipe()
    path = f"/dev/fd/{write}"
    assert files.obstacle(path) is None
    files.write_whole(path, b"x")
    assert os.read(read, 9) == b"x"
    os.close(read), os.close(write)


def test_what_can_be_told_beforehand(tmp_path):
    (tmp_path / "file").write_text("")
    for path, wrong in (
        (tmp_path, "is a folder"), (tmp_path / "new" / "file", None),
        (tmp_path / "file" / "below", "is no folder"), (tmp_path / "file", None),
    ):  # fmt: skip
        found = files.obstacle(path)
        assert (found is None) if wrong is None else found.endswith(wrong)
    assert files.folder_obstacle(tmp_path) is files.folder_obstacle(tmp_path / "a" / "b") is None
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        assert files.folder_obstacle(path) == f"{tmp_path / 'file'} is no folder"


def test_a_file_that_is_a_mount_of_its_own(tmpfs, tmp_path):
    (tmpfs() / "inside").write_text("")
    (tmp_path / "file").write_text("before")
    inside = tmp_path / "mounted0" / "inside"
    subprocess.run(["mount", "--bind", inside, tmp_path / "file"], check=True)
    try:
        files.write_whole(tmp_path / "file", b"after")
        assert inside.read_bytes() == b"after"
    finally:
        subprocess.run(["umount", tmp_path / "file"], check=True)


def test_a_killed_writer_leaves_the_file_and_the_next_one_cleans_up(tmp_path):
    (tmp_path / "a").write_bytes(b"before")
    code = (
        "import os, signal, sys\nfrom bngen import files\n"
        "files._write_all = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "files.write_whole(sys.argv[1], b'after')\n"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "a"], check=False)
    assert done.returncode == -signal.SIGKILL
    assert (tmp_path / "a").read_bytes() == b"before" and len(os.listdir(tmp_path)) == 2
    files.write_whole(tmp_path / "a", b"after")
    assert os.listdir(tmp_path) == ["a"]


def test_folders_change_places(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_text("")
    assert files.exchange(tmp_path / "one", tmp_path / "two")
    assert os.listdir(tmp_path / "one") == ["two"] and os.listdir(tmp_path / "two") == ["one"]
    with pytest.raises(FileNotFoundError):
        files.exchange(tmp_path / "one", tmp_path / "three")
