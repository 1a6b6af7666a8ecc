"""Compiled libraries: loaded from memory, immune to what happens on disks, gone when unused."""

import ctypes
import errno
import gc
import os
import subprocess

import numpy as np
import pytest

import bngen as bg
from bngen.errors import ToolchainError
from bngen.runtime import folders, memory_file, native, toolchain


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BNGEN_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """``library(7)``: the content of a library whose ``answer()`` is 7."""
    folder = tmp_path_factory.mktemp("sources")

    def make(number):
        (folder / "a.c").write_text(f"int answer(void) {{ return {number}; }}\n")
        command = [*toolchain.find_compiler(), *toolchain.FLAGS, "-o", "a.so", "a.c"]
        subprocess.run(command, cwd=folder, check=True)
        return (folder / "a.so").read_bytes()

    return make


def mapped():
    """Mappings of libraries that bngen has made."""
    with open("/proc/self/maps") as file:
        return sum("/memfd:bngen" in line for line in file)


def opened(content):
    return native.open_library(content, ctypes.CDLL, ("answer",))


def test_each_is_the_one_that_was_asked_for(library):
    """The loader knows libraries by name, and a descriptor's number is soon another's."""
    contents = [library(i) for i in range(5)]
    assert [opened(content).answer() for content in contents] == [0, 1, 2, 3, 4]


class _Loaded(ctypes.Structure):
    """The beginning of ``dl_phdr_info`` of link.h."""

    _fields_ = [("start", ctypes.c_void_p), ("name", ctypes.c_char_p)]


def names_in_memory():
    """By which paths the loader knows libraries that lie behind descriptors."""
    found = []

    def seen(info, _size, _data):
        found.append(os.fsdecode(info.contents.name or b""))
        return 0

    kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(_Loaded), ctypes.c_size_t, ctypes.c_void_p)
    ctypes.CDLL(None).dl_iterate_phdr(kind(seen), None)
    return [name for name in found if name.startswith("/proc/self/fd")]


def test_the_path_of_a_library_is_no_other_files(library, tmp_path):
    """A backtrace opens all libraries by their paths; one that has become short is a SIGBUS."""
    opened(library(1))
    bg.build(small(4), cache=False)
    later = [open(tmp_path / f"{i}", "wb") for i in range(20)]
    assert len(names := names_in_memory()) >= 2
    assert all(os.readlink(name).startswith("/memfd:bngen") for name in names)
    for file in later:
        file.close()


def test_a_file_that_is_no_library_is_closed():
    before = os.listdir("/proc/self/fd")
    for _ in range(5):
        with pytest.raises(ToolchainError):
            opened(b"nonsense")
    assert os.listdir("/proc/self/fd") == before


def test_paths_in_memory_are_never_equal_and_cannot_be_changed():
    seen = set()
    for _ in range(40):
        path, descriptor = memory_file.sealed(b"content")
        seen.add(path)
        with open(path, "rb") as file:
            assert file.read() == b"content"
        with pytest.raises(PermissionError):
            open(path, "wb").close()
        os.close(descriptor)
    assert len(seen) == 40


@pytest.mark.parametrize("content", [b"", b"\x7fELF", b"nonsense" * 1000, b"#!/bin/sh\nexit\n"])
def test_what_is_no_library_is_one_line(content):
    with pytest.raises(ToolchainError, match="cannot load a compiled library") as caught:
        opened(content)
    assert "\n" not in str(caught.value)
    with pytest.raises(ToolchainError):
        native.load(content, ["k0"])


def test_a_library_that_lacks_something(library):
    with pytest.raises(ToolchainError, match="lacks question"):
        native.open_library(library(1), ctypes.CDLL, ("answer", "question"))
    with pytest.raises(ToolchainError, match="lacks k0"):
        native.load(library(1), ["k0"])


def _no_memory_files(monkeypatch):
    def refused(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(os, "memfd_create", refused)


def test_without_files_in_memory_a_scratch_folder_serves(library, monkeypatch):
    _no_memory_files(monkeypatch)
    assert [opened(library(i)).answer() for i in (5, 6)] == [5, 6]
    with memory_file.written() as (path, descriptor):
        with open(path, "wb") as file:
            file.write(b"x")
        assert os.read(descriptor, 9) == b"x"


def test_nowhere_to_load_from_is_one_line(library, monkeypatch, tmpfs):
    _no_memory_files(monkeypatch)
    place = tmpfs("noexec")
    monkeypatch.setattr(folders, "_scratch_places", lambda: [(place, False)])
    with pytest.raises(ToolchainError, match="cannot load a compiled library"):
        opened(library(7))
    assert list(place.iterdir()) == []


# --- unloading --------------------------------------------------------------------------------


def small(channels):
    def net(x):
        return bg.relu(bg.layers.linear(x, "head", channels))

    return bg.trace(net, bg.Tensor((2, 6)), name="small")


@pytest.mark.parametrize("kept", [False, True])
def test_modules_that_are_gone_leave_no_code_behind(kept):
    x = np.ones((2, 6), np.float32)
    bg.build(small(4), grad=True, cache=kept).init(0)(x)
    gc.collect()
    before, open_before = mapped(), os.listdir("/proc/self/fd")
    for i in range(6):
        module = bg.build(small(4), grad=True, cache=kept).init(0)
        module(x)
        assert mapped() > before, "code is loaded from memory"
        module.backward(np.ones((2, 4), np.float32))
        del module
        gc.collect()
        assert mapped() == before, f"after build {i}"
    assert os.listdir("/proc/self/fd") == open_before


def test_code_stays_while_anything_of_a_module_is_in_use():
    module = bg.build(small(3), cache=False).init(0)
    call, x = module.forward, np.ones((2, 6), np.float32)
    expected = module(x)
    del module
    gc.collect()
    np.testing.assert_array_equal(call(x), expected)
