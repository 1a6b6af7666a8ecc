"""TVM's foreign function interface as addresses: entries of kernels, and the errors they report.

In: libraries of kernels, functions of ``tvm_ffi``. Out: `Entry`, messages. Everything goes through
ctypes: importing ``tvm`` takes seconds, and importing ``tvm_ffi`` imports PyTorch where it is
installed.
"""

from __future__ import annotations

import _ctypes
import ctypes
import functools
import importlib.util
import logging
import os
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from bngen.errors import ToolchainError
from bngen.runtime import folders, memory_file

_LOG = logging.getLogger(__name__)
T = TypeVar("T")
L = TypeVar("L", bound=ctypes.CDLL)


@dataclass(frozen=True)
class Entry:
    """A function of TVM's calling convention, ``call(handle, arguments, count, result)``.

    Attributes:
        call: address of the code.
        handle: what it is called with first.
        owner: keeps the code loaded.
    """

    call: int
    handle: int
    owner: Any


def entry_of(function: Any) -> Entry:
    """The entry of a ``tvm_ffi.Function``."""
    return Entry(address(ffi().TVMFFIFunctionCall), function.__chandle__(), function)


def load(library: bytes, symbols: Iterable[str]) -> dict[str, Entry]:
    """The kernels of a shared library, by symbol; TVM's loader gives them its runtime's functions.

    The thread pool in use when they are loaded is theirs from then on. The library is unloaded when
    no entry is left.

    Args:
        library: its content. Code that is damaged may end the process.
        symbols: of the kernels.

    Raises:
        ToolchainError: for what is no library of these kernels, or where none can be loaded.
    """
    owner = _loaded(library, _Kernels)
    return {symbol: Entry(owner.address(symbol), 0, owner) for symbol in symbols}


def load_file(path: Path, symbols: Iterable[str]) -> dict[str, Entry]:
    """`load` of a library that lies in a file and stays there: profilers find its functions' names.

    Args:
        path: where it lies.
        symbols: of the kernels.

    Raises:
        ToolchainError: as `load`.
    """
    try:
        owner = _Kernels(str(path))
    except OSError as error:
        raise ToolchainError(f"cannot load {path}: {error}") from None
    return {symbol: Entry(owner.address(symbol), 0, owner) for symbol in symbols}


_staying: list[ctypes.CDLL] = []


def open_library(library: bytes, kind: type[L], symbols: Iterable[str]) -> L:
    """A shared library that stays loaded, by ctypes.

    Args:
        library: its content.
        kind: `ctypes.CDLL` or `ctypes.PyDLL`.
        symbols: what it must have.

    Raises:
        ToolchainError: for what is no such library, or where none can be loaded.
    """
    found = _loaded(library, kind)
    _staying.append(found)
    missing = [symbol for symbol in symbols if not hasattr(found, symbol)]
    if missing:
        raise ToolchainError(f"a compiled library lacks {missing[0]}")
    return found


def _loaded(library: bytes, load: Callable[[str], T]) -> T:
    """What ``load`` makes of a path to the library: in memory, or else in a scratch folder."""
    try:
        path, descriptor = memory_file.sealed(library)
        try:
            found = load(path)
        except BaseException:
            os.close(descriptor)
            raise
        weakref.finalize(found, os.close, descriptor).atexit = False
        return found
    except (OSError, ToolchainError) as error:
        _LOG.info("not loaded from memory: %s", error)
    with folders.scratch() as folder:
        path = folder / "library.so"
        try:
            path.write_bytes(library)
            return load(str(path))
        except OSError as error:
            raise ToolchainError(f"cannot load a compiled library: {error}") from None


class _Kernels:
    """A library of kernels, loaded by TVM and by ctypes; unloaded when it is no longer referred to.

    Args:
        path: is not needed any more once this object exists.
    """

    def __init__(self, path: str):
        self._code = ctypes.CDLL(path)
        # At the end of the process there is nobody left to unload it for.
        weakref.finalize(self, _ctypes.dlclose, self._code._handle).atexit = False
        self._module = _Object(Function("ffi.Module.load_from_file.so")(os.fsencode(path), b"so"))

    def address(self, symbol: str) -> int:
        """Where a kernel's code lies."""
        try:
            return address(getattr(self._code, f"__tvm_ffi_{symbol}"))
        except AttributeError:
            raise ToolchainError(f"a library of kernels lacks {symbol}") from None


def raised() -> str:
    """The message of the error that a kernel has reported on this thread; it is taken away."""
    cell = ctypes.c_void_p()
    ffi().TVMFFIErrorMoveFromRaised(ctypes.byref(cell))
    if not cell.value:
        return "no message"
    found = _Error.from_address(cell.value)
    text = ctypes.string_at(found.message, found.message_size).decode(errors="replace")
    ffi().TVMFFIObjectDecRef(cell)
    return text


def address(function: Any) -> int:
    """Where a function of a ctypes library lies."""
    return ctypes.cast(function, ctypes.c_void_p).value or 0


@functools.cache
def ffi() -> ctypes.CDLL:
    """TVM's foreign function interface, ``libtvm_ffi``."""
    return _library("tvm_ffi", "tvm_ffi")


@functools.cache
def runtime() -> ctypes.CDLL:
    """TVM's runtime, ``libtvm_runtime``; loading it registers what kernels call, its pool too."""
    ffi()
    return _library("tvm", "tvm_runtime")


class _Object:
    """A counted reference to an object of TVM."""

    def __init__(self, handle: int):
        self._handle = handle

    def __del__(self) -> None:
        ffi().TVMFFIObjectDecRef(ctypes.c_void_p(self._handle))


class Function:
    """A global function of TVM's runtime, called with texts and whole numbers.

    Args:
        name: in TVM's registry.

    Raises:
        ToolchainError: where TVM has none of that name.
    """

    def __init__(self, name: str):
        self._handle, text = ctypes.c_void_p(), name.encode()
        key = _Bytes(text, len(text))
        if ffi().TVMFFIFunctionGetGlobal(ctypes.byref(key), ctypes.byref(self._handle)):
            raise ToolchainError(raised())
        if not self._handle.value:
            raise ToolchainError(f"TVM has no {name}", hint="pip install apache-tvm")

    def __call__(self, *arguments: bytes | int) -> int:
        """What it returns: an object's handle, or a number.

        Raises:
            ToolchainError: with its message, when it fails.
        """
        result = _Any()
        given = (_Any * len(arguments))(*map(_argument, arguments))
        if ffi().TVMFFIFunctionCall(self._handle, given, len(arguments), ctypes.byref(result)):
            raise ToolchainError(raised())
        return result.value or 0

    def __del__(self) -> None:
        ffi().TVMFFIObjectDecRef(self._handle)


def _argument(value: bytes | int) -> _Any:
    if isinstance(value, int):
        return _Any(_INT, 0, value)
    return _Any(_RAW_STRING, 0, ctypes.cast(value, ctypes.c_void_p))


_INT, _RAW_STRING = 1, 8
"""``kTVMFFIInt`` and ``kTVMFFIRawStr``."""


class _Any(ctypes.Structure):
    """``TVMFFIAny`` of c_api.h."""

    _fields_ = (("type", ctypes.c_int32), ("padding", ctypes.c_int32), ("value", ctypes.c_void_p))


class _Bytes(ctypes.Structure):
    """``TVMFFIByteArray`` of c_api.h."""

    _fields_ = (("data", ctypes.c_char_p), ("size", ctypes.c_size_t))


class _Error(ctypes.Structure):
    """``TVMFFIObject`` and ``TVMFFIErrorCell`` of c_api.h, as far as the message."""

    _fields_ = (
        ("header", ctypes.c_uint64 * 3),
        ("kind", ctypes.c_void_p),
        ("kind_size", ctypes.c_size_t),
        ("message", ctypes.c_void_p),
        ("message_size", ctypes.c_size_t),
    )


def _library(package: str, stem: str) -> ctypes.CDLL:
    """A library that a Python package brings; the same one that importing the package loads."""
    spec = importlib.util.find_spec(package)
    folders = [Path(p) / "lib" for p in (spec.submodule_search_locations or ())] if spec else []
    for folder in folders:
        for path in (folder / f"lib{stem}.so", folder / f"lib{stem}.dylib"):
            if path.exists():
                return ctypes.CDLL(str(path), mode=os.RTLD_GLOBAL | os.RTLD_NOW)
    raise ToolchainError(f"no lib{stem} in {package}", hint="pip install apache-tvm")
