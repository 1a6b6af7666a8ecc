"""Machine code from outside: TVM's runtime libraries, and libraries of compiled kernels.

In: paths. Out: addresses (`Entry`). Everything goes through ctypes: importing ``tvm_ffi`` imports
PyTorch where it is installed, and ``tvm`` its compiler, which takes seconds that a program whose
kernels are there already need not wait for.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bngen.errors import ToolchainError

_CONTEXT = (
    "TVMBackendAllocWorkspace", "TVMBackendFreeWorkspace", "TVMBackendParallelBarrier",
    "TVMBackendParallelLaunch", "TVMFFIEnvModLookupFromImports", "TVMFFIErrorSetRaisedFromCStr",
    "TVMFFIErrorSetRaisedFromCStrParts", "TVMFFIFunctionCall",
)  # fmt: skip
"""What compiled code calls through a variable ``__<name>``, filled in by whoever loads it."""

_PREFIX = "__tvm_ffi_"
"""What TVM puts before the name of a function that follows its calling convention."""


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


def load_kernels(
    path: Path, symbols: Iterable[str], functions: Mapping[str, int]
) -> dict[str, Entry]:
    """The kernels of a shared library that TVM's objects were linked to.

    Args:
        path: the library.
        symbols: names of kernels.
        functions: addresses of backend functions that replace those of TVM's runtime.

    Raises:
        ToolchainError: when it cannot be loaded or lacks a kernel.
    """
    ffi()  # Loaded first, with its names visible: kernels report errors to it.
    try:
        library = ctypes.CDLL(str(path))
        for name in _CONTEXT:
            variable = _variable(library, f"__{name}")
            if variable is not None:
                variable.value = functions.get(name) or address(_of_tvm(name))
        return {s: Entry(address(getattr(library, _PREFIX + s)), 0, library) for s in symbols}
    except (OSError, AttributeError) as error:
        raise ToolchainError(f"cannot load {path}: {error}", hint="remove that file") from None


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


class _Error(ctypes.Structure):
    """``TVMFFIObject`` and ``TVMFFIErrorCell`` of c_api.h, as far as the message."""

    _fields_ = (
        ("header", ctypes.c_uint64 * 3),
        ("kind", ctypes.c_void_p),
        ("kind_size", ctypes.c_size_t),
        ("message", ctypes.c_void_p),
        ("message_size", ctypes.c_size_t),
    )


def _of_tvm(name: str) -> Callable:
    libraries = (ffi, _runtime)
    return next(getattr(lib(), name) for lib in libraries if hasattr(lib(), name))


@functools.cache
def _runtime() -> ctypes.CDLL:
    return _library("tvm", "tvm_runtime")


def _library(package: str, stem: str) -> ctypes.CDLL:
    """A library that a Python package brings; the same one that importing the package loads."""
    spec = importlib.util.find_spec(package)
    folders = [Path(p) / "lib" for p in (spec.submodule_search_locations or ())] if spec else []
    for folder in folders:
        for path in (folder / f"lib{stem}.so", folder / f"lib{stem}.dylib"):
            if path.exists():
                return ctypes.CDLL(str(path), mode=os.RTLD_GLOBAL | os.RTLD_NOW)
    raise ToolchainError(f"no lib{stem} in {package}", hint="pip install apache-tvm")


def _variable(library: ctypes.CDLL, name: str) -> ctypes.c_void_p | None:
    try:
        return ctypes.c_void_p.in_dll(library, name)
    except ValueError:
        return None
