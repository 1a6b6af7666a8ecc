"""Folders that nobody else can change: every ancestor counts, whatever links lead there."""

import os
import subprocess
import sys

import pytest

from bngen.errors import ToolchainError
from bngen.runtime import folders

ROOT = os.geteuid() == 0
needs_root = pytest.mark.skipif(not ROOT, reason="needs root, to give files to another user")
SOMEBODY = 12345


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("BNGEN_CACHE_DIR", str(tmp_path / "home" / "cache"))
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


def names(make=True):
    with folders.cache_folder("things", make) as descriptor:
        return os.listdir(descriptor)


def test_it_is_made_for_the_user_alone(home):
    assert names() == []
    for folder in (home / "cache", home / "cache" / "things"):
        assert folder.stat().st_mode & 0o777 == 0o700


def test_nothing_is_made_to_look(home):
    with pytest.raises(FileNotFoundError):
        names(make=False)
    assert list(home.iterdir()) == []


@pytest.mark.parametrize("below", ["", "cache", "cache/things"])
@pytest.mark.parametrize("mode", [0o777, 0o722, 0o702])
def test_a_folder_on_the_way_that_others_can_write_to(home, below, mode):
    names()
    (home / below).chmod(mode)
    with pytest.raises(ToolchainError, match=rf"others can write to {home / below}"):
        names()


@needs_root
@pytest.mark.parametrize("below", ["", "cache", "cache/things"])
def test_a_folder_on_the_way_that_belongs_to_somebody_else(home, below):
    names()
    os.chown(home / below, SOMEBODY, 0)
    with pytest.raises(ToolchainError, match=f"{below} belongs to another user .{SOMEBODY}."):
        names()


@needs_root
def test_a_folder_on_the_way_that_a_foreign_group_can_write_to(home):
    names()
    os.chown(home, 0, SOMEBODY)
    home.chmod(0o770)
    with pytest.raises(ToolchainError, match="others can write"):
        names()


def test_a_group_of_the_users_own_is_nobody_else(home, monkeypatch):
    home.chmod(0o770)
    monkeypatch.setattr(folders, "_own_group", lambda uid: home.stat().st_gid)
    assert names() == []
    monkeypatch.setattr(folders, "_own_group", lambda uid: None)
    with pytest.raises(ToolchainError, match="others can write"):
        names()


def test_the_place_itself_may_not_be_shared_as_tmp_is(home):
    names()
    home.chmod(0o1777)
    assert names() == []
    (home / "cache" / "things").chmod(0o1777)
    with pytest.raises(ToolchainError, match="others can write"):
        names()


def test_links_are_followed_and_checked(home, tmp_path):
    real = tmp_path / "real"
    real.mkdir()
    (home / "cache").symlink_to("../real")
    (home / "again").symlink_to(home / "cache")
    os.environ["BNGEN_CACHE_DIR"] = str(home / "again")
    assert names() == [] and (real / "things").is_dir()
    real.chmod(0o777)
    with pytest.raises(ToolchainError, match=f"others can write to .*{real.name}"):
        names()


@needs_root
def test_somebody_elses_link_is_not_followed(home, tmp_path):
    (home / "cache").symlink_to(tmp_path)
    os.lchown(home / "cache", SOMEBODY, 0)
    with pytest.raises(ToolchainError, match="cache is somebody else's link"):
        names()


@needs_root
def test_a_folder_in_tmp_that_somebody_else_was_quicker_to_make(home):
    home.chmod(0o1777)
    (home / "cache").mkdir()
    os.chown(home / "cache", SOMEBODY, 0)
    with pytest.raises(ToolchainError, match="belongs to another user"):
        names()


def test_a_link_that_leads_nowhere_is_made_to_lead_somewhere(home):
    (home / "cache").symlink_to("later")
    assert names() == [] and (home / "later" / "things").is_dir()


def _file(home):
    (home / "cache").write_text("")


def _loop(home):
    (home / "cache").symlink_to("cache")


def _pipe(home):
    os.mkfifo(home / "cache")


def _long(home):
    os.environ["BNGEN_CACHE_DIR"] = str(home / ("x" * 300))


@pytest.mark.parametrize("place", [_file, _loop, _pipe, _long])
def test_what_is_no_folder_is_one_line(home, place):
    place(home)
    for make in (False, True):
        with pytest.raises(ToolchainError, match=r"cannot use the cache folder .*BNGEN_CACHE_DIR"):
            names(make)


def test_a_path_longer_than_the_system_takes_at_once(home, monkeypatch):
    deep = home.joinpath(*(["x" * 200] * 30))
    monkeypatch.setenv("BNGEN_CACHE_DIR", str(deep))
    assert names() == [] == names(make=False)


@pytest.mark.parametrize("name", ["a b", "a\nb", "'\"$(x)", "ü", os.fsdecode(b"\xff\xfe"), "-o"])
def test_odd_names(home, monkeypatch, name):
    monkeypatch.setenv("BNGEN_CACHE_DIR", str(home / name))
    assert names() == []
    assert (home / name / "things").is_dir()


def test_a_relative_path_starts_in_the_current_folder(home, monkeypatch):
    monkeypatch.chdir(home)
    monkeypatch.setenv("BNGEN_CACHE_DIR", "a/../b")
    (home / "a").mkdir()
    assert names() == []
    assert (home / "b" / "things").is_dir()


def test_a_current_folder_that_went(home, monkeypatch):
    gone = home / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert names() == []  # an absolute path does not care
    monkeypatch.setenv("BNGEN_CACHE_DIR", "relative")
    with pytest.raises(ToolchainError):
        names()


def test_where_the_cache_lies(monkeypatch, tmp_path):
    assert folders.cache_dir() == tmp_path / "home" / "cache"
    monkeypatch.setenv("BNGEN_CACHE_DIR", " ")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert str(folders.cache_dir()) == "/somewhere/bngen"
    monkeypatch.setenv("HOME", "/home/user")
    for relative in ("", "some/where"):
        monkeypatch.setenv("XDG_CACHE_HOME", relative)
        assert str(folders.cache_dir()) == "/home/user/.cache/bngen"


@pytest.mark.parametrize("own", ["", "~/cache", "~nobody-of-that-name/cache"])
def test_without_a_home(homeless, monkeypatch, own):
    monkeypatch.setenv("BNGEN_CACHE_DIR", own)
    with pytest.raises(ToolchainError, match="set BNGEN_CACHE_DIR"):
        folders.cache_dir()


# --- scratch ----------------------------------------------------------------------------------


@pytest.fixture
def tmp(tmp_path, monkeypatch):
    """Where temporary files go."""

    def at(folder):
        monkeypatch.setattr("tempfile.tempdir", None if folder is None else str(folder))
        return folder

    (tmp_path / "tmp").mkdir()
    at(tmp_path / "tmp")
    return at


def test_scratch_goes_when_it_is_done_with(tmp, tmp_path):
    with folders.scratch() as folder:
        assert folder.parent == tmp_path / "tmp"
        assert folder.stat().st_mode & 0o777 == 0o700
        (folder / "file").write_bytes(b"x")
    assert list((tmp_path / "tmp").iterdir()) == []


KILLED = """
import os, signal, tempfile
from bngen.runtime import folders
with folders.scratch() as folder:
    (folder / "file").write_text("")
    print(folder, flush=True)
    {end}
"""


def run(code, tmp_path):
    return subprocess.Popen(
        [sys.executable, "-c", code], env={**os.environ, "TMPDIR": str(tmp_path / "tmp")},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_what_a_killed_process_left_goes_with_the_next(tmp, tmp_path):
    killed = run(KILLED.format(end="os.kill(os.getpid(), signal.SIGKILL)"), tmp_path)
    left, _ = killed.communicate()
    assert os.listdir(left.strip()) == ["file"]
    living = run(KILLED.format(end="input()"), tmp_path)
    used = living.stdout.readline().strip()
    (tmp_path / "tmp" / "bngen-scratch-mine").mkdir()
    with folders.scratch() as folder:
        there = {str(p) for p in (tmp_path / "tmp").iterdir()}
    assert there == {used, str(folder), str(tmp_path / "tmp" / "bngen-scratch-mine")}
    living.communicate("\n")
    assert not os.path.exists(used)


def test_where_others_can_write_is_no_place_for_it(tmp, tmp_path, home):
    (tmp_path / "tmp").chmod(0o777)
    with folders.scratch() as folder:
        assert folder.parent == home / "cache" / "scratch"
    (tmp_path / "tmp").chmod(0o1777)
    with folders.scratch() as folder:
        assert folder.parent == tmp_path / "tmp"


@pytest.mark.parametrize("options", [("size=4k",), ("ro",), ("size=1g", "nr_inodes=1")])
def test_a_full_or_read_only_place_is_passed_over(tmp, tmpfs, home, options):
    place = tmp(tmpfs(*options))
    with folders.scratch() as folder:
        assert folder.parent == home / "cache" / "scratch"
    assert list(place.iterdir()) == []


def test_no_place_at_all_is_one_line(tmp, tmp_path, home, monkeypatch):
    tmp(tmp_path / "missing")
    (home / "cache").write_text("")
    monkeypatch.setattr(folders, "_scratch_places", lambda: [(tmp_path / "missing", False)])
    with pytest.raises(ToolchainError, match="set TMPDIR"), folders.scratch():
        pass
