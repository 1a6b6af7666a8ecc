"""Runs kernels: steps over one arena, with slots for what changes from call to call.

In: functions and where each of their arguments lies (`Operand`). Out: `Executor.run`. Knows nothing
of graphs; what it is given is data, so that a saved library can be run by the same code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bngen.runtime.memory import Arena


@dataclass(frozen=True)
class Operand:
    """Where an argument of a kernel lies.

    Attributes:
        slot: name of the external buffer it is in; None for the arena.
        offset: bytes into the arena or the slot.
        shape: the shape the kernel's signature has.
        dtype: element type.
    """

    slot: str | None
    offset: int
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Step:
    """One call of a kernel."""

    name: str
    function: Any
    operands: tuple[Operand, ...]


class Executor:
    """A bound sequence of steps.

    Args:
        steps: in execution order.
        nbytes: size of the arena.
        fixed: external buffers that never move (parameters), by slot: aligned, C-contiguous.
    """

    def __init__(self, steps: Sequence[Step], nbytes: int, fixed: Mapping[str, np.ndarray]):
        import tvm_ffi

        self.arena = Arena(nbytes)
        self._share = tvm_ffi.from_dlpack
        self._tensors: dict[Operand, Any] = {}
        self._fixed = fixed
        self._steps: list[tuple[Any, list[Any], list[tuple[int, Operand]]]] = []
        for step in steps:
            arguments, open_slots = [], []
            for i, operand in enumerate(step.operands):
                tensor = self._constant(operand)
                arguments.append(tensor)
                if tensor is None:
                    open_slots.append((i, operand))
            self._steps.append((step.function, arguments, open_slots))

    def _constant(self, operand: Operand) -> Any:
        """The tensor of an operand that stays where it is; None for one that comes with a call."""
        if operand in self._tensors:
            return self._tensors[operand]
        if operand.slot is None:
            tensor = self.arena.tensor(operand.offset, operand.shape, operand.dtype)
        elif operand.slot in self._fixed:
            tensor = self._view(self._fixed[operand.slot], operand)
        else:
            return None
        self._tensors[operand] = tensor
        return tensor

    def _view(self, array: np.ndarray, operand: Operand) -> Any:
        return self._share(view(array, operand.offset, operand.shape, operand.dtype))

    def run(self, slots: Mapping[str, np.ndarray], start: int = 0, stop: int | None = None) -> None:
        """Call steps [start, stop) with this call's buffers."""
        for function, arguments, open_slots in self._steps[start:stop]:
            for i, operand in open_slots:
                arguments[i] = self._view(slots[operand.slot], operand)
            function(*arguments)
            for i, _ in open_slots:
                arguments[i] = None

    def read(self, operand: Operand) -> np.ndarray:
        """A view of an arena operand."""
        return self.arena.view(operand.offset, operand.shape, operand.dtype)


def view(array: np.ndarray, offset: int, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """``shape`` elements from byte ``offset`` of a C-contiguous array."""
    if not offset and array.shape == shape:
        return array
    flat = array.reshape(-1).view(np.uint8)
    count = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return flat[offset : offset + count].view(dtype).reshape(shape)
