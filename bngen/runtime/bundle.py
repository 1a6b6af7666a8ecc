"""A compiled program as files, and back: plain data beside object code.

In: a `Built`, the kernels' library and object files. Out: contents by file name, the same in any
process. What is read is taken on trust in nothing that could make a call reach beyond its memory:
operands lie within the arena or the slot they name, and every name is one that a call fills. The
code itself is another matter; whoever loads it must know where it comes from.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bngen.dtypes import DTYPES
from bngen.runtime import plain
from bngen.runtime.plain import PlainError
from bngen.runtime.signature import BACKWARD, FORWARD, Built, Signature, input_slot
from bngen.runtime.steps import CopyStep, KernelStep, Operand, Step

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
class _Step:
    """A `Step`, as it is written.

    Attributes:
        name: its name.
        symbol: of its kernel; ``""`` for a copy.
        operands: by number: they recur.
    """

    name: str
    symbol: str
    operands: tuple[int, ...]


@dataclass(frozen=True)
class _Form:
    """A `Built` as it is written."""

    format: int
    signature: Signature
    operands: tuple[Operand, ...]
    steps: tuple[_Step, ...]
    nbytes: int
    target: Any
    """As in the manifest, which is long and seldom asked for."""


_FORMAT = 2
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
    if any(not 0 <= number < len(operands) for step in form.steps for number in step.operands):
        raise PlainError("a step has an operand that is not there")
    steps = tuple([_step(s, [operands[i] for i in s.operands]) for s in form.steps])
    _check(form.signature, operands, form.nbytes)
    _check_calls(form.signature, steps)
    manifest = plain.Later(contents[MANIFEST], {"target": form.target})
    return Built(form.signature, steps, form.nbytes, manifest)


def _dumps(built: Built) -> bytes:
    numbers: dict[Operand, int] = {}
    steps = tuple(
        _Step(
            s.name,
            s.symbol if isinstance(s, KernelStep) else "",
            tuple(numbers.setdefault(o, len(numbers)) for o in s.operands),
        )
        for s in built.steps
    )
    target = built.manifest["target"]
    form = _Form(_FORMAT, built.signature, tuple(numbers), steps, built.nbytes, target)
    return plain.dumps(_Form, form)


def _step(written: _Step, operands: list[Operand]) -> Step:
    if written.symbol:
        return KernelStep(written.name, written.symbol, tuple(operands))
    if len(operands) != 2 or len({(o.shape, o.dtype) for o in operands}) != 1:
        raise PlainError(f"{written.name:.40} is no copy")
    return CopyStep(written.name, *operands)


# --- what a reader may rely on ----------------------------------------------------------------


def _check(signature: Signature, operands: Iterable[Operand], arena: int) -> None:
    given = (*signature.arguments, *signature.state, *signature.cotangents)
    inputs = {input_slot(spec.name): _nbytes(spec.shape, spec.dtype) for spec in given}
    slots: dict[str, int] = {}
    for spec in (*signature.outputs, *signature.gradients):
        end = _end(spec.offset, spec.shape, spec.dtype)
        slots[spec.slot] = max(slots.get(spec.slot, 0), end)
    if not slots.keys().isdisjoint(inputs):
        raise PlainError("results in the memory of an input")
    sizes: dict[str | None, int] = {**inputs, **slots, None: arena}
    for operand in operands:
        if _end(operand.offset, operand.shape, operand.dtype) > sizes.get(operand.slot, -1):
            raise PlainError(f"{operand} lies outside of its memory")
    for check in signature.labels:
        if input_slot(check.name) not in inputs:
            raise PlainError(f"there is no input {check.name!r}")
    if arena < 0:
        raise PlainError(f"an arena of {arena} bytes")


def _check_calls(signature: Signature, steps: Sequence[Step]) -> None:
    """Each step is in one call, and reads nothing that its call is not given."""
    ends = [0, *(call.stop for call in signature.calls)]
    names = tuple(call.name for call in signature.calls)
    starts = [call.start for call in signature.calls]
    if names not in ((FORWARD,), (FORWARD, BACKWARD)) or starts != ends[:-1]:
        raise PlainError(f"calls {', '.join(names):.60} one after the other are not all steps")
    if ends[-1] != len(steps) or ends != sorted(ends):
        raise PlainError(f"calls end with steps {ends[1:]} of {len(steps)}")
    arguments = [spec.name for spec in signature.arguments]
    state = [spec.name for spec in signature.state]
    cotangents = [spec.name for spec in signature.cotangents]
    comes_with = {
        FORWARD: (arguments, signature.outputs),
        BACKWARD: (cotangents, signature.gradients),
    }
    for call in signature.calls:
        given, results = comes_with[call.name]
        kept = state if call.name == FORWARD else call.reads
        if not {*arguments, *state}.issuperset(call.reads):
            raise PlainError(f"{call.name} reads what is neither an argument nor held")
        slots = {None, *map(input_slot, (*given, *kept)), *(spec.slot for spec in results)}
        for step in steps[call.start : call.stop]:
            if any(operand.slot not in slots for operand in step.operands):
                raise PlainError(f"{step.name:.40} reads what {call.name} is not given")


def _end(offset: int, shape: tuple[int, ...], dtype: str) -> int:
    if offset < 0:
        raise PlainError(f"offset {offset}")
    return offset + _nbytes(shape, dtype)


def _nbytes(shape: tuple[int, ...], dtype: str) -> int:
    if shape and min(shape) < 0:
        raise PlainError(f"shape {shape}")
    if dtype not in DTYPES:
        raise PlainError(f"{dtype!r:.40} is no element type")
    return math.prod(shape) * DTYPES[dtype].nbytes
