"""What a reader of a bundle relies on: nothing in its data makes a call reach beyond its memory.

In: data as it was read. Out: nothing, or a `PlainError`. Operands lie within the arena or the slot
they name, every name is one that a call fills, and parameters can be filled.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from bngen.dtypes import DTYPES
from bngen.initializers import EXACT, Initializer, misfit
from bngen.options import CHANNELS_LAST, MEMORY_FORMATS
from bngen.runtime.argspec import ArgSpec
from bngen.runtime.plain import PlainError
from bngen.runtime.signature import BACKWARD, FORWARD, Signature, input_slot
from bngen.runtime.steps import COMBINED, MOMENTS, Operand, StartStep, Step, WaitStep


def check_initializers(state: Sequence[ArgSpec], initializers: Sequence[Initializer]) -> None:
    """Each parameter and buffer has one that can fill it."""
    if len(state) != len(initializers):
        raise PlainError("initializers that are not those of the state")
    for spec, found in zip(state, initializers, strict=True):
        if wrong := misfit(found.name, found.numbers, spec.shape):
            raise PlainError(f"{spec.name}: {found.name!r:.40} {wrong}")
        if found.name in EXACT:
            try:
                np.array(found.numbers, spec.dtype)
            except (OverflowError, ValueError) as error:
                raise PlainError(f"{spec.name}: {error}") from None


def check_operands(signature: Signature, operands: Iterable[Operand], arena: int) -> None:
    """Operands lie in memory that a call has, and so do results."""
    given = (*signature.arguments, *signature.state, *signature.cotangents)
    for spec in (*given, *signature.outputs, *signature.gradients):
        last = spec.memory_format == CHANNELS_LAST
        if spec.memory_format not in MEMORY_FORMATS or (last and len(spec.shape) != 4):
            raise PlainError(f"{spec.name!r} is {spec.memory_format!r:.40} of shape {spec.shape}")
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


def check_calls(signature: Signature, steps: Sequence[Step]) -> None:
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


def check_exchanges(signature: Signature, steps: Sequence[Step]) -> None:
    """Each collective ends once, in the call in which it began, and gives what it is to give."""
    open_: dict[int, StartStep] = {}
    ends = {call.stop for call in signature.calls}
    for i, step in enumerate(steps):
        if isinstance(step, StartStep):
            if step.combine not in COMBINED or step.count < 0:
                raise PlainError(f"{step.name:.40} combines by {step.combine!r:.40}")
            open_[i] = step
        elif isinstance(step, WaitStep):
            if step.start not in open_:
                raise PlainError(f"{step.name:.40} waits for what is not under way")
            started = open_.pop(step.start)
            more = started.combine == MOMENTS
            counts = [_elements(s.operands) for s in (started, step)]
            kinds = {o.dtype for s in (started, step) for o in s.operands}
            if counts[0] + more != counts[1] or (more and counts[0] % 2) or len(kinds) != 1:
                raise PlainError(f"{step.name:.40} gives other than it takes")
        if i + 1 in ends and open_:
            raise PlainError("a call ends before what it has begun")


def _elements(operands: Iterable[Operand]) -> int:
    return sum(math.prod(operand.shape) for operand in operands)


def _end(offset: int, shape: tuple[int, ...], dtype: str) -> int:
    if offset < 0:
        raise PlainError(f"offset {offset}")
    return offset + _nbytes(shape, dtype)


def _nbytes(shape: tuple[int, ...], dtype: str) -> int:
    if shape and min(shape) < 0:
        raise PlainError(f"shape {shape}")
    return math.prod(shape) * _itemsize(dtype)


def _itemsize(dtype: str) -> int:
    if dtype not in DTYPES:
        raise PlainError(f"{dtype!r:.40} is no element type")
    return DTYPES[dtype].nbytes
