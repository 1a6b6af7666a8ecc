"""What a compiled program is, as data: names, shapes, results, steps and sizes.

In: nothing (nouns only). Out: what binding decides, a bundle keeps and a `Module` follows.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bngen.options import CONTIGUOUS
from bngen.runtime.arguments import ArgSpec
from bngen.runtime.calls import Operand
from bngen.runtime.executor import Step
from bngen.runtime.formats import memory_shape


@dataclass(frozen=True)
class OutputSpec:
    """One result of a call.

    Attributes:
        name: label, ``""`` where the program gave none.
        shape: logical shape.
        dtype: element type.
        slot: slot that the kernels write it to, in fresh memory of each call; None where it is
            copied from ``operand`` or from the input ``source``.
        offset: bytes into the slot.
        operand: where it lies in the arena.
        source: name of the input that it is.
        memory_format: how it lies, there and in the caller's hands.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    slot: str | None = None
    offset: int = 0
    operand: Operand | None = None
    source: str | None = None
    memory_format: str = CONTIGUOUS

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
        update_copies: (input name, operand) of updates that are copied after the run.
        forward_steps: how many steps come before ``backward``.
        tuple_output: whether a single result is still returned in a tuple.
        named_outputs: whether results are returned as a dict.
        labels: inputs to check before a run.
        memory: bytes by use; see `Module.memory`.
    """

    program: str
    arguments: tuple[ArgSpec, ...]
    state: tuple[ArgSpec, ...]
    cotangents: tuple[ArgSpec, ...]
    outputs: tuple[OutputSpec, ...]
    gradients: tuple[OutputSpec, ...] = ()
    update_copies: tuple[tuple[str, Operand], ...] = ()
    forward_steps: int = 0
    tuple_output: bool = False
    named_outputs: bool = False
    labels: tuple[LabelCheck, ...] = ()
    memory: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Built:
    """A compiled program as data: all that a module needs besides its machine code.

    Attributes:
        signature: names, shapes and results.
        steps: calls of kernels, in order.
        nbytes: size of the arena.
        manifest: see `Module.manifest`.
    """

    signature: Signature
    steps: tuple[Step, ...]
    nbytes: int
    manifest: Mapping[str, Any]
