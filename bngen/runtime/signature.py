"""What a compiled program is, as data: names, shapes, results, steps and sizes.

In: nothing (nouns only). Out: what binding decides, a bundle keeps and a `Module` follows.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bngen.options import CONTIGUOUS
from bngen.runtime.argspec import ArgSpec
from bngen.runtime.formats import memory_shape
from bngen.runtime.steps import KernelStep, Step

FORWARD, BACKWARD = "forward", "backward"


def input_slot(name: str) -> str:
    """The slot of an input, by its name: an argument, a parameter or buffer, a cotangent."""
    return f"in:{name}"


@dataclass(frozen=True)
class CallSpec:
    """One of a program's calls.

    Attributes:
        name: ``forward``, and of a program with its gradient ``backward``.
        start: the first of its steps.
        stop: the step after the last.
        reads: names of arguments of the call before it, and of parameters and buffers, that it
            reads; empty for the first.
    """

    name: str
    start: int
    stop: int
    reads: tuple[str, ...] = ()


@dataclass(frozen=True)
class OutputSpec:
    """One result of a call, in memory that is made for each call and given away.

    Attributes:
        name: label, ``""`` where the program gave none; of a gradient, its input's name.
        shape: logical shape.
        dtype: element type.
        slot: slot that the steps write it to; small results share one.
        offset: bytes into the slot.
        memory_format: how it lies there, and in the caller's hands.
        done: of a gradient: the step before which it is complete, and read by no further one.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    slot: str
    offset: int = 0
    memory_format: str = CONTIGUOUS
    done: int = 0

    @functools.cached_property
    def memory_shape(self) -> tuple[int, ...]:
        """Its extents in memory order."""
        return memory_shape(self.shape, self.memory_format)


@dataclass(frozen=True)
class LabelCheck:
    """An input whose elements index classes: [0, classes), or ``ignore``."""

    name: str
    classes: int
    ignore: int | None = None


@dataclass(frozen=True)
class Signature:
    """Everything a call needs to know of the program.

    Attributes:
        program: its name.
        arguments: what a call takes, in order.
        state: parameters and buffers the module holds.
        cotangents: gradients of outputs that ``backward`` takes.
        outputs: results of the program.
        gradients: results of ``backward``, by input name.
        calls: which steps belong to which call.
        tuple_output: whether a single result is still returned in a tuple.
        named_outputs: whether results are returned by name.
        labels: inputs to check before a run.
        memory: bytes by use; see `Module.memory`.
    """

    program: str
    arguments: tuple[ArgSpec, ...]
    state: tuple[ArgSpec, ...]
    cotangents: tuple[ArgSpec, ...]
    outputs: tuple[OutputSpec, ...]
    gradients: tuple[OutputSpec, ...] = ()
    calls: tuple[CallSpec, ...] = ()
    tuple_output: bool = False
    named_outputs: bool = False
    labels: tuple[LabelCheck, ...] = ()
    memory: Mapping[str, int] = field(default_factory=dict)

    def call(self, name: str) -> CallSpec | None:
        """The call of that name."""
        return next((call for call in self.calls if call.name == name), None)


@dataclass(frozen=True)
class Built:
    """A compiled program as data: all that a module needs besides its machine code.

    Attributes:
        signature: names, shapes and results.
        steps: what its calls do, in order.
        nbytes: size of the arena.
        manifest: see `Module.manifest`.
    """

    signature: Signature
    steps: tuple[Step, ...]
    nbytes: int
    manifest: Mapping[str, Any]

    @property
    def kernels(self) -> tuple[KernelStep, ...]:
        """The steps that call kernels."""
        return tuple(step for step in self.steps if isinstance(step, KernelStep))
