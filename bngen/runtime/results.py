"""Memory for what a call hands out: fresh, or for gradients the caller's own.

In: where the steps of a call write its results (`OutputSpec`), and the arrays that the caller gives
for gradients. Out: buffers by slot before the run, results after it. A kernel writes straight into
a caller's array where it can: dense in the memory format of the result, on a cache line, and read
by nothing in that call. Otherwise it writes to memory that is kept from call to call, from which
the gradient is copied, or added.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bngen.errors import CallError
from bngen.runtime.argspec import ArgSpec
from bngen.runtime.arguments import deliver, prepare
from bngen.runtime.buffers import Buffer, buffer
from bngen.runtime.executor import view
from bngen.runtime.formats import to_logical_order
from bngen.runtime.memory import ALIGNMENT, HUGE_PAGE, empty_aligned
from bngen.runtime.overlap import check_overlap
from bngen.runtime.signature import OutputSpec
from bngen.runtime.tensors import WriteBack, empty_tensor, in_logical_order, is_torch


@dataclass(frozen=True)
class Destination:
    """An array that the caller gives for a gradient.

    Attributes:
        given: as it was given, to be handed back.
        array: the same in memory order, C-contiguous; itself, or a copy.
        write_back: what is left to be done once the array has its new value.
    """

    given: Any
    array: np.ndarray
    write_back: WriteBack | None

    def direct(self, reads: Iterable[Buffer]) -> bool:
        """Whether a kernel may write to it while others still read ``reads``."""
        aligned = self.array.ctypes.data % ALIGNMENT == 0
        return aligned and not any(np.may_share_memory(self.array, other.array) for other in reads)

    def store(self, gradient: np.ndarray, accumulate: bool) -> Any:
        """Take the gradient over, unless it lies there already."""
        if accumulate:
            np.add(self.array, gradient, out=self.array)
        elif gradient.ctypes.data != self.array.ctypes.data:
            np.copyto(self.array, gradient)
        if self.write_back is not None:
            self.write_back()
        return self.given


class Results:
    """The results of one of a module's calls.

    Args:
        program: its name, for messages.
        specs: the results.
        alignment: of callers' arrays; see `arguments.prepare`.
    """

    def __init__(self, program: str, specs: Sequence[OutputSpec], alignment: int):
        self._program, self._alignment = program, alignment
        self._specs = {spec.name: spec for spec in specs}
        self._listed = tuple(specs)
        self._users: dict[str, list[OutputSpec]] = {}
        for spec in specs:
            self._users.setdefault(spec.slot, []).append(spec)
        self._nbytes = {slot: max(map(_end, users)) for slot, users in self._users.items()}
        # Of large arrays NumPy asks for huge pages, and PyTorch does not.
        self._tensors = {
            slot: users[0]
            for slot, users in self._users.items()
            if len(users) == 1 and not users[0].offset and self._nbytes[slot] < HUGE_PAGE
        }
        self._scratch: dict[str, Buffer] = {}

    def destinations(self, out: Mapping[str, Any] | None) -> dict[str, Destination]:
        """Arrays that the caller gives, by the name of the result; checked, and nothing has run.

        Raises:
            CallError: for names, types, shapes or memory that do not fit.
        """
        if out is None:
            return {}
        if not isinstance(out, Mapping):
            raise CallError(
                f"{self._program}: out is a dict of arrays by name, not a {type(out).__name__}",
                hint="backward(..., out={'weight': array})",
            )
        unknown = [name for name in out if name not in self._specs]
        if unknown:
            names = ", ".join(map(repr, list(self._specs)[:4])) or "none"
            raise CallError(
                f"{self._program}: out names {unknown[0]!r}, of which there is no gradient",
                hint=f"gradients are of {names}{', ...' if len(self._specs) > 4 else ''}",
            )
        specs = [_as_argument(self._specs[name]) for name in out]
        prepared = [
            prepare(value, spec, self._alignment, self._program)
            for value, spec in zip(out.values(), specs, strict=True)
        ]
        check_overlap(self._program, specs, list(out.values()))
        return {
            name: Destination(value, *two)
            for (name, value), two in zip(out.items(), prepared, strict=True)
        }

    def memory(
        self,
        as_torch: bool,
        given: Mapping[str, Destination] | None = None,
        accumulate: bool = False,
        reads: Iterable[Buffer] = (),
    ) -> dict[str, Buffer]:
        """Memory by slot for one call.

        Args:
            as_torch: whether what is fresh goes out as tensors.
            given: destinations of some results.
            accumulate: whether results are added to what is there.
            reads: what the call reads of the caller's memory.
        """
        if not given:
            return {slot: self._fresh(slot, as_torch) for slot in self._users}
        return {
            slot: self._buffer(slot, as_torch, given, accumulate, reads) for slot in self._users
        }

    def _fresh(self, slot: str, as_torch: bool) -> Buffer:
        alone = self._tensors.get(slot) if as_torch else None
        if alone is not None:
            return empty_tensor(alone.memory_shape, alone.dtype)
        return buffer(empty_aligned((self._nbytes[slot],), "uint8"))

    def _buffer(
        self,
        slot: str,
        as_torch: bool,
        given: Mapping[str, Destination],
        accumulate: bool,
        reads: Iterable[Buffer],
    ) -> Buffer:
        users = self._users[slot]
        if not all(spec.name in given for spec in users):
            return self._fresh(slot, as_torch)
        first = given[users[0].name]
        if len(users) == 1 and not accumulate and first.direct(reads):
            return buffer(first.array)
        if slot not in self._scratch:
            self._scratch[slot] = buffer(empty_aligned((self._nbytes[slot],), "uint8"))
        return self._scratch[slot]

    def handed_out(
        self,
        slots: Mapping[str, Buffer],
        as_torch: bool,
        given: Mapping[str, Destination] | None = None,
        accumulate: bool = False,
    ) -> list[Any]:
        """The results after the run, in order.

        Args:
            slots: what `memory` gave.
            as_torch: whether those in fresh memory go out as tensors.
            given: destinations of some results.
            accumulate: whether results are added to what is there.
        """
        results = []
        for spec in self._listed:
            there = slots[spec.slot]
            if is_torch(there.owner):
                results.append(in_logical_order(there.owner, spec.memory_format))
                continue
            array = view(there.array, spec.offset, spec.memory_shape, spec.dtype)
            if given and spec.name in given:
                results.append(given[spec.name].store(array, accumulate))
            else:
                results.append(deliver(to_logical_order(array, spec.memory_format), as_torch))
        return results


def _end(spec: OutputSpec) -> int:
    return spec.offset + math.prod(spec.shape) * np.dtype(spec.dtype).itemsize


def _as_argument(spec: OutputSpec) -> ArgSpec:
    name = f"out[{spec.name}]"
    return ArgSpec(name, spec.shape, spec.dtype, inplace=True, memory_format=spec.memory_format)
