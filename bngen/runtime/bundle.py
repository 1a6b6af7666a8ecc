"""A compiled program as files, and back: plain data beside object code.

In: a `Built`, the kernels' library and object files. Out: contents by file name, the same in any
process. What is read is taken on trust in nothing that could make a call reach beyond its memory:
operands lie within the arena or the slot they name, and every name is one that a call fills. The
code itself is another matter; whoever loads it must know where it comes from.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from bngen.options import CHANNELS_LAST, MEMORY_FORMATS
from bngen.runtime import plain
from bngen.runtime.calls import Operand
from bngen.runtime.executor import Step
from bngen.runtime.plain import PlainError
from bngen.runtime.signature import Built, Signature

BUILT, MANIFEST, LIBRARY = "built.json", "manifest.json", "kernels.so"
DATA = (BUILT, MANIFEST)
"""The files that a `Built` is read from."""


def files(built: Built, library: bytes, objects: Mapping[str, bytes]) -> dict[str, bytes]:
    """A program's files by name.

    Args:
        built: what a module runs.
        library: a shared library of the kernels.
        objects: their object files, by symbol.
    """
    return {
        BUILT: _dumps(built),
        MANIFEST: plain.dumps(Mapping[str, Any], built.manifest),
        LIBRARY: library,
        **{object_file(symbol): content for symbol, content in objects.items()},
    }


def object_file(symbol: str) -> str:
    """The name of the file with a kernel's object code."""
    return f"{symbol}.o"


@dataclass(frozen=True)
class _Call:
    """A `Step` whose operands are given by number: they recur."""

    name: str
    symbol: str
    operands: tuple[int, ...]


@dataclass(frozen=True)
class _Form:
    """A `Built` as it is written."""

    format: int
    signature: Signature
    operands: tuple[Operand, ...]
    calls: tuple[_Call, ...]
    nbytes: int
    target: Any
    """As in the manifest, which is long and seldom asked for."""


_ELEMENT = re.compile(r"bool|(int|uint|float)[0-9]{1,2}")
_FORMAT = 1
"""Grows when a field changes its meaning."""


def built_of(contents: Mapping[str, bytes]) -> Built:
    """The `Built` of a program's files, of which it takes those of `DATA`.

    Raises:
        PlainError: for what `files` has not made. The manifest is not read before it is asked for.
    """
    form = plain.loads(_Form, contents[BUILT])
    if form.format != _FORMAT:
        raise PlainError(f"format {form.format}, not {_FORMAT}")
    operands = form.operands
    if any(not 0 <= number < len(operands) for call in form.calls for number in call.operands):
        raise PlainError("a call has an operand that is not there")
    steps = tuple(
        [Step(c.name, c.symbol, tuple([operands[i] for i in c.operands])) for c in form.calls]
    )
    _check(form.signature, operands, len(steps), form.nbytes)
    manifest = plain.Later(contents[MANIFEST], {"target": form.target})
    return Built(form.signature, steps, form.nbytes, manifest)


def _dumps(built: Built) -> bytes:
    numbers: dict[Operand, int] = {}
    calls = tuple(
        _Call(s.name, s.symbol, tuple(numbers.setdefault(o, len(numbers)) for o in s.operands))
        for s in built.steps
    )
    target = built.manifest["target"]
    form = _Form(_FORMAT, built.signature, tuple(numbers), calls, built.nbytes, target)
    return plain.dumps(_Form, form)


# --- what a reader may rely on ----------------------------------------------------------------


def _check(signature: Signature, operands: Iterable[Operand], steps: int, arena: int) -> None:
    given = (*signature.arguments, *signature.state, *signature.cotangents)
    results = (*signature.outputs, *signature.gradients)
    for spec in (*given, *results):
        last = spec.memory_format == CHANNELS_LAST
        if spec.memory_format not in MEMORY_FORMATS or (last and len(spec.shape) != 4):
            raise PlainError(f"{spec.name!r} is {spec.memory_format!r:.40} of shape {spec.shape}")
    inputs = {f"in:{spec.name}": _nbytes(spec.shape, spec.dtype) for spec in given}
    slots: dict[str, int] = {}
    for spec in results:
        if spec.slot is not None:
            end = _end(spec.offset, spec.shape, spec.dtype)
            slots[spec.slot] = max(slots.get(spec.slot, 0), end)
    if not slots.keys().isdisjoint(inputs):
        raise PlainError("results in the memory of an input")
    sizes: dict[str | None, int] = {**inputs, **slots, None: arena}
    copies = [operand for _, operand in signature.update_copies]
    copied = [spec.operand for spec in results if spec.operand is not None]
    for operand in (*operands, *copies, *copied):
        if _end(operand.offset, operand.shape, operand.dtype) > sizes.get(operand.slot, -1):
            raise PlainError(f"{operand} lies outside of its memory")
    sources = [spec.source for spec in results if spec.slot is None and spec.operand is None]
    named = [name for name, _ in signature.update_copies] + [c.name for c in signature.labels]
    for name in (*sources, *named):
        if f"in:{name}" not in inputs:
            raise PlainError(f"there is no input {name!r}")
    if arena < 0 or not 0 <= signature.forward_steps <= steps:
        raise PlainError("a negative size, or more steps forward than there are")


def _end(offset: int, shape: tuple[int, ...], dtype: str) -> int:
    if offset < 0:
        raise PlainError(f"offset {offset}")
    return offset + _nbytes(shape, dtype)


def _nbytes(shape: tuple[int, ...], dtype: str) -> int:
    if shape and min(shape) < 0:
        raise PlainError(f"shape {shape}")
    return math.prod(shape) * _itemsize(dtype)


@functools.cache
def _itemsize(dtype: str) -> int:
    # NumPy knows many more types, objects among them, and many names for each.
    if _ELEMENT.fullmatch(dtype):
        try:
            return np.dtype(dtype).itemsize
        except TypeError:
            pass
    raise PlainError(f"{dtype!r:.40} is no element type")
