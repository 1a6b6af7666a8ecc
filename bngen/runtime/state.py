"""Parameters and buffers of a module: arrays that kernels are bound to, filled from outside.

In: what the program declares, then states by name, as users have them. Out: arrays that never move,
and which of them were given other values since. Whether it is a good moment to change them is the
module's to know.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from bngen.dtypes import DTYPES
from bngen.errors import CallError
from bngen.initializers import Initializer
from bngen.runtime.argspec import ArgSpec
from bngen.runtime.formats import to_logical_order
from bngen.runtime.memory import empty_aligned
from bngen.runtime.tensors import array_of, is_torch


class State:
    """Values by name, zeros at first.

    Args:
        program: its name, for messages.
        specs: what it declares.
        initializers: how they are filled, by name; constants are so from the first.

    Attributes:
        arrays: where kernels find them, in memory order, constants among them.
        specs: what users see, by name: all but constants.
        initialized: whether they were given values.
        changes: how often one was given another value from outside of the program.
    """

    def __init__(
        self,
        program: str,
        specs: Sequence[ArgSpec],
        initializers: Mapping[str, Initializer] = MappingProxyType({}),
    ):
        self._program = program
        fixed = {s.name for s in specs if s.name in initializers and initializers[s.name].is_fixed}
        self.specs = {spec.name: spec for spec in specs if spec.name not in fixed}
        self.arrays = {spec.name: _zeros(spec) for spec in specs}
        for spec in (s for s in specs if s.name in fixed):
            there = to_logical_order(self.arrays[spec.name], spec.memory_format)
            drawn = initializers[spec.name].draw(np.random.default_rng(0), spec.shape, spec.dtype)
            np.copyto(there, drawn)
        self.initialized = not self.specs
        self.changes = 0
        self._last_change: dict[str, int] = {}

    def put(self, name: str, value: np.ndarray) -> None:
        """Give one another value; noted before it is written, so that half of one is noticed."""
        self.changes += 1
        self._last_change[name] = self.changes
        there = to_logical_order(self.arrays[name], self.specs[name].memory_format)
        np.copyto(there, value)

    def changed_since(self, changes: int, names: Iterable[str]) -> str | None:
        """The first of ``names`` that was given another value after so many ``changes``."""
        if changes == self.changes:
            return None
        return next((n for n in names if self._last_change.get(n, 0) > changes), None)

    def copies(self) -> dict[str, np.ndarray]:
        """Copies of all values, in their memory formats."""
        return {
            name: to_logical_order(self.arrays[name].copy(), spec.memory_format)
            for name, spec in self.specs.items()
        }

    def fitting(self, state: Mapping[str, Any], strict: bool) -> dict[str, np.ndarray]:
        """The values of a state that are this one's, checked; nothing is changed yet.

        Args:
            state: arrays or tensors by name.
            strict: whether the names must be the same.

        Raises:
            CallError: for names, shapes or dtypes that do not fit.
        """
        if not isinstance(state, Mapping):
            raise CallError(
                f"{self._program}: a state is a dict of arrays by name, not a "
                f"{type(state).__name__}",
                hint="load_state_dict(network.state_dict())",
            )
        missing = sorted(set(self.specs) - set(state))
        unknown = sorted(map(str, set(state) - set(self.specs)))
        if strict and (missing or unknown):
            what = f"missing {missing[:3]}" if missing else f"unknown {unknown[:3]}"
            count = len(missing or unknown)
            raise CallError(
                f"{self._program}: {count} names of the state do not match: {what}",
                hint="mod.state_dict() lists the names; strict=False takes what fits",
            )
        known = (spec for name, spec in self.specs.items() if name in state)
        return {spec.name: self._checked(spec, state[spec.name]) for spec in known}

    def _checked(self, spec: ArgSpec, value: Any) -> np.ndarray:
        """One value as an array; raises `CallError` unless it fits as it is."""
        try:
            array = array_of(value) if is_torch(value) else np.asarray(value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise CallError(
                f"{self._program}: {spec.name!r} cannot become an array: {error}",
                hint=f"pass {spec.dtype}{list(spec.shape)}",
            ) from None
        if isinstance(value, np.ma.MaskedArray):
            hint = "fill it first: .filled(0)"
            raise CallError(f"{self._program}: {spec.name!r} is masked", hint=hint)
        if array.dtype.str == f"|V{spec.numpy_dtype.itemsize}" and DTYPES[spec.dtype].stored_only:
            array = array.view(spec.numpy_dtype)  # NumPy's files do not name such a type.
        if array.shape != spec.shape or array.dtype != spec.numpy_dtype:
            raise CallError(
                f"{self._program}: {spec.name!r} is {array.dtype}{list(array.shape)}, "
                f"not {spec.dtype}{list(spec.shape)}",
                hint="convert it first",
            )
        return array


def _zeros(spec: ArgSpec) -> np.ndarray:
    array = empty_aligned(spec.memory_shape, spec.dtype)
    array.fill(0)
    return array
