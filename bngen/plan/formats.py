"""Memory formats: in which order the axes of users' arrays lie, as users declare it.

In: a program's graph and what was given as ``memory_format=``. Out: `Formats`. The words and what
they mean are PyTorch's: ``contiguous_format`` is C order; ``channels_last``, for rank 4 alone, is
an array ``[N,C,H,W]`` that lies in memory as ``(N,H,W,C)``. What becomes of it is `plan.layout`'s.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bngen.errors import BngenError
from bngen.ir.node import Graph
from bngen.ir.types import TensorType, Value
from bngen.labels import gradient_label
from bngen.options import CHANNELS_LAST, CONTIGUOUS, MEMORY_FORMATS

RESULT = "return"
"""All results; ``return.0`` is the first of them, ``return.loss`` the one with that label."""


@dataclass(frozen=True)
class Formats:
    """The arrays of a program that are channels-last; all others are in C order.

    Attributes:
        inputs: names of arguments, parameters and buffers.
        outputs: positions of results.
    """

    inputs: frozenset[str] = frozenset()
    outputs: frozenset[int] = frozenset()

    def __str__(self) -> str:
        return f"channels-last: {sorted(self.inputs)}, results {sorted(self.outputs)}"

    def of_input(self, name: str) -> str:
        """The format of an argument, parameter or buffer."""
        return MEMORY_FORMATS[name in self.inputs]

    def of_output(self, position: int) -> str:
        """The format of a result."""
        return MEMORY_FORMATS[position in self.outputs]

    def with_gradient(
        self, program: Graph, cotangents: Sequence[Value], gradients: Sequence[str]
    ) -> Formats:
        """Those of a program and its gradient.

        A gradient has the format of its input, and what arrives at a result has the result's.

        Args:
            program: the program.
            cotangents: what arrives at each floating-point result, in order.
            gradients: names of the inputs whose gradients are results, after the program's own.
        """
        floats = (i for i, v in enumerate(program.outputs) if v.type.is_float)
        arriving = {v.name for i, v in zip(floats, cotangents, strict=True) if i in self.outputs}
        own = len(program.outputs)
        last = {i for i, name in enumerate(gradients, own) if name in self.inputs}
        return Formats(self.inputs | arriving, self.outputs | last)


C_ORDER = Formats()
"""All arrays in C order."""


def declared_formats(graph: Graph, memory_format: Any) -> Formats:
    """What a user says of the arrays that a program takes and gives.

    Args:
        graph: the program.
        memory_format: None, for C order; a format for everything of rank 4; or a mapping to formats
            from names: of arguments, parameters and buffers, and of results (see `RESULT`). What
            it does not name is in C order, but that a gradient follows its input.

    Raises:
        BngenError: for what is no format, a name that the program does not have, or a format that
            an array of that rank cannot have.
    """
    if memory_format is None:
        return C_ORDER
    if isinstance(memory_format, Mapping):
        return _of_names(graph, memory_format)
    if _word(memory_format) == CONTIGUOUS:
        return C_ORDER
    inputs = frozenset(i.name for i in graph.inputs if _can_be_last(i.value.type))
    return Formats(inputs, _rank_four(graph, range(len(graph.outputs))))


def _of_names(graph: Graph, memory_format: Mapping[Any, Any]) -> Formats:
    types = {i.name: i.value.type for i in graph.inputs}
    results = _result_names(graph)
    inputs: dict[str, str] = {}
    outputs: dict[int, str] = {}
    # All results first, so that one of them can be an exception.
    for name, given in sorted(memory_format.items(), key=lambda item: item[0] != RESULT):
        word = _word(given, name)
        if name in types:
            inputs[name] = word
            fits = _can_be_last(types[name])
        elif name in results:
            fitting = _rank_four(graph, results[name])
            outputs |= dict.fromkeys(fitting, word)
            fits = bool(fitting)
        else:
            raise _unknown(graph, name, [*types, *results])
        if word == CHANNELS_LAST and not fits:
            raise BngenError(
                f"memory_format: {name!r} of {graph.name} cannot be {CHANNELS_LAST}, which is for "
                "arrays of rank 4",
                hint=f"leave {name!r} out",
            )
    follow = {gradient_label(name): word for name, word in inputs.items()}
    for i, label in enumerate(graph.output_names):
        if label in follow:
            outputs.setdefault(i, follow[label])
    return Formats(
        frozenset(n for n, word in inputs.items() if word == CHANNELS_LAST),
        frozenset(i for i, word in outputs.items() if word == CHANNELS_LAST),
    )


def _result_names(graph: Graph) -> dict[str, range]:
    """The positions that each name of results stands for; inputs' names go before them."""
    count = len(graph.outputs)
    one = {f"{RESULT}.{i}": range(i, i + 1) for i in range(count)}
    labelled = {f"{RESULT}.{n}": range(i, i + 1) for i, n in enumerate(graph.output_names) if n}
    return {RESULT: range(count), **one, **labelled}


def _rank_four(graph: Graph, positions: range) -> frozenset[int]:
    return frozenset(i for i in positions if _can_be_last(graph.outputs[i].type))


def _can_be_last(type_: TensorType) -> bool:
    return len(type_.shape) == 4


def _word(given: Any, name: Any = None) -> str:
    """A format by its word; PyTorch's own objects, such as ``torch.channels_last``, do as well."""
    word = given if isinstance(given, str) else str(given).removeprefix("torch.")
    if word not in MEMORY_FORMATS:
        of = "" if name is None else f" of {name!r}"
        hint = f"one of {', '.join(MEMORY_FORMATS)}"
        raise BngenError(f"memory_format{of} is {given!r}", hint=hint)
    return word


def _unknown(graph: Graph, name: Any, known: list[str]) -> BngenError:
    near = difflib.get_close_matches(str(name), known, 3) or known[:3]
    return BngenError(
        f"memory_format names {name!r}, which is no input or result of {graph.name}",
        hint=f"did you mean {' or '.join(map(repr, near))}?",
    )
