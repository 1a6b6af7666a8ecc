"""What the caller of a module gives, brought in order: arguments, labels, gradients of results.

In: what stands between the brackets of a call. Out: values in the order of the signature, or a
`CallError`. What makes arrays of them is `arguments`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bngen.errors import CallError
from bngen.runtime.argspec import ArgSpec
from bngen.runtime.buffers import Buffer
from bngen.runtime.formats import to_logical_order
from bngen.runtime.signature import Signature, input_slot


def in_order(signature: Signature, args: Sequence[Any], named: Mapping[str, Any]) -> list[Any]:
    """Arguments by place and by name, in the program's order.

    Raises:
        CallError: for too many, too few or unknown ones.
    """
    names = [s.name for s in signature.arguments]
    unknown = [n for n in named if n not in names[len(args) :]]
    if len(args) + len(named) != len(names) or unknown:
        given = f"{len(args)} and {sorted(named)}" if named else str(len(args))
        raise CallError(
            f"{signature.program} takes {len(names)} arguments ({', '.join(names)}), got {given}"
        )
    return [*args, *(named[n] for n in names[len(args) :])]


def check_labels(signature: Signature, slots: Mapping[str, Buffer]) -> None:
    """Refuse class numbers beyond the classes.

    Args:
        signature: of the program.
        slots: its arguments, by slot.

    Raises:
        CallError: naming the first one.
    """
    for check in signature.labels:
        labels = slots[input_slot(check.name)].array
        wrong = (labels < 0) | (labels >= check.classes)
        also = ""
        if check.ignore is not None:
            wrong &= labels != check.ignore
            also = f", and {check.ignore} is ignored"
        if wrong.any():
            raise CallError(
                f"{signature.program}: {check.name!r} holds {labels[wrong][0]}, but there "
                f"are {check.classes} classes",
                hint=f"labels run from 0 to {check.classes - 1}{also}",
            )


class Cotangents:
    """The gradients of results that ``backward`` is given.

    Args:
        signature: of the program.
    """

    def __init__(self, signature: Signature):
        self._program, self._specs = signature.program, signature.cotangents
        self._constants: dict[tuple[str, int], np.ndarray] = {}

    def in_order(self, given: Sequence[Any]) -> Sequence[Any]:
        """One for each floating-point result; None is zeros.

        Args:
            given: as many, or none at all where each result is a scalar: ones, then.

        Raises:
            CallError: for another number of them.
        """
        if not given and all(s.shape == () for s in self._specs):
            return [self._constant(s, 1) for s in self._specs]
        if len(given) != len(self._specs):
            raise CallError(
                f"{self._program}: backward takes {len(self._specs)} gradients, got {len(given)}",
                hint="one for each floating-point output, in order; None for zeros",
            )
        return [
            self._constant(spec, 0) if value is None else value
            for spec, value in zip(self._specs, given, strict=True)
        ]

    def _constant(self, spec: ArgSpec, number: int) -> np.ndarray:
        """An array of one number; it is made once, and only read."""
        if (spec.name, number) not in self._constants:
            # Of zeros the system makes no pages before somebody writes to them.
            array = np.zeros(spec.memory_shape, spec.dtype)
            if number:
                array += number
            self._constants[spec.name, number] = to_logical_order(array, spec.memory_format)
        return self._constants[spec.name, number]
