"""TVM's foreign function interface as addresses: entries of kernels, and the errors they report.

In: libraries of kernels, functions of ``tvm_ffi``. Out: `Entry`, messages. Everything goes through
ctypes: importing ``tvm`` takes seconds, and importing ``tvm_ffi`` imports PyTorch where it is
installed.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bngen.errors import ToolchainError


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


def load(library: Path, symbols: Iterable[str]) -> dict[str, Entry]:
    """The kernels of a shared library, by symbol; TVM's loader gives them its runtime's functions.

    The thread pool in use when they are loaded is theirs from then on.

    Raises:
        ToolchainError: for a file that is no library of kernels.
    """
    module = _call(b"ffi.ModuleLoadFromFile", os.fsencode(library))
    code = ctypes.CDLL(str(library))
    owner = (module, code)
    return {s: Entry(address(getattr(code, f"__tvm_ffi_{s}")), 0, owner) for s in symbols}


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


def _call(name: bytes, text: bytes) -> _Object:
    """The object that a global function of TVM makes of a text."""
    function, result = ctypes.c_void_p(), _Any()
    if ffi().TVMFFIFunctionGetGlobal(ctypes.byref(_Bytes(name, len(name))), ctypes.byref(function)):
        raise ToolchainError(raised())
    if not function.value:
        raise ToolchainError(f"TVM has no {name.decode()}", hint="pip install apache-tvm")
    try:
        argument = _Any(_RAW_STRING, 0, ctypes.cast(text, ctypes.c_void_p))
        if ffi().TVMFFIFunctionCall(function, ctypes.byref(argument), 1, ctypes.byref(result)):
            raise ToolchainError(raised())
    finally:
        ffi().TVMFFIObjectDecRef(function)
    return _Object(result.value)


_RAW_STRING = 8
"""``kTVMFFIRawStr``."""


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
