"""What a row of the PyTorch table is: see `ops`, which says what it is for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from bngen.torch_bridge.meanings import Meaning, spread


@dataclass(frozen=True)
class Spelling:
    """Calls of PyTorch that a function of bngen's language answers, arguments by name.

    Attributes:
        language: the function, as an attribute of ``bngen``.
        functions: PyTorch's functions.
        methods: names of methods of `torch.Tensor`; the tensor is the first argument.
        modules: classes of `torch.nn`.
        only: parameters that the language's function lacks, and the one value each may have.
    """

    language: str
    functions: tuple[Callable[..., Any], ...] = ()
    methods: tuple[str, ...] = ()
    modules: tuple[type[nn.Module], ...] = ()
    only: Mapping[str, Any] = field(default_factory=dict)

    def refusal(self, arguments: Mapping[str, Any]) -> str:
        """Why a call cannot be taken, as far as parameters tell that bngen lacks; "" if it can."""
        for name in self.only.keys() & arguments.keys():
            value, taken = arguments[name], self.only[name]
            if type(value) is not type(taken) or value != taken:
                return f"{self.language}: {name} is {value!r}, and bngen has it as {taken!r} alone"
        return ""


@dataclass(frozen=True)
class TorchOp:
    """One row.

    Attributes:
        op: bngen's name.
        meaning: (operands, attributes) -> results, in PyTorch.
        spellings: the calls of PyTorch that are this op.
        why_not: where there are none, why.
    """

    op: str
    meaning: Meaning
    spellings: tuple[Spelling, ...] = ()
    why_not: str = ""


IN_PLACE, OUT = {"inplace": False}, {"out": None}


def row_of(op: str, meaning: Meaning, *spellings: Spelling, why_not: str = "") -> TorchOp:
    """A row of whose calls each has its own parameters."""
    return TorchOp(op, meaning, spellings, why_not)


def call_of(
    op: str,
    *functions: Callable[..., Any],
    methods: tuple[str, ...] = (),
    modules: tuple[type[nn.Module], ...] = (),
    **only: Any,
) -> TorchOp:
    """A row whose meaning is the first function, for operands in order; all three have one name."""
    own = (op,) if hasattr(torch.Tensor, op) else ()
    spelling = Spelling(op, functions, (*own, *methods), modules, {**OUT, **only})
    return TorchOp(op, spread(functions[0]), (spelling,))
