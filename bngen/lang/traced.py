"""A value of a trace: what tensors are to whatever adds nodes.

In: a trace and a value of its graph. Out: a tensor by `wrap`, or one that `check_tensor` let pass.
Users see `bngen.lang.tensor.Tensor`, which has operators and methods besides. These add nodes
themselves, so that what adds nodes knows this class alone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from bngen.ir.types import TensorType, Value
from bngen.lang.trace import Trace, current_trace, error
from bngen.lang.types import kind_of


class Traced:
    """A value of the program being traced, as whatever adds nodes knows it.

    Attributes:
        trace: the trace it belongs to.
        value: its name and type in the graph.
    """

    __slots__ = ("trace", "value")

    trace: Trace
    value: Value

    @property
    def name(self) -> str:
        """Its name in the graph."""
        return self.value.name

    @property
    def type(self) -> TensorType:
        """Shape and dtype together."""
        return self.value.type

    @property
    def shape(self) -> tuple[int, ...]:
        """Extents of its axes: known while tracing, so Python may compute with them."""
        return self.value.type.shape

    @property
    def dtype(self) -> str:
        """Element type."""
        return self.value.type.dtype

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    def __repr__(self) -> str:
        return f"<bngen.Tensor {self.name}: {self.type}>"

    def __format__(self, spec: str) -> str:
        return repr(self)

    def __copy__(self) -> Traced:
        return self

    def __deepcopy__(self, memo: Any) -> Traced:
        return self

    def __getattr__(self, name: str) -> Callable[..., Any]:
        """A function of the language as a method; see `bngen.lang.methods`."""
        methods = {} if name in Traced.__slots__ else self.trace.methods
        if name in methods:
            return functools.partial(methods[name], self)
        raise AttributeError(f"'Tensor' object has no attribute {name!r}", name=name, obj=self)

    def __dir__(self) -> list[str]:
        return [*object.__dir__(self), *self.trace.methods]


def wrap(trace: Trace, value: Value) -> Traced:
    """A tensor for a value of a trace, of the class that the trace was given."""
    tensor = object.__new__(trace.tensors)
    tensor.trace, tensor.value = trace, value
    return tensor


def check_tensor(label: str, operand: str, x: Any) -> Traced:
    """``x`` itself; raises when it is no tensor of the running trace."""
    trace = current_trace(label)
    if not isinstance(x, Traced):
        hint = "arrays enter a program as arguments, bg.parameter or bg.buffer"
        raise error(f"{label}: {operand} must be a tensor, got {kind_of(x)}", hint)
    if x.trace is not trace:
        raise error(
            f"{label}: {operand} {x.name!r} belongs to a trace of {x.trace.name!r}, "
            f"not to this one of {trace.name!r}",
            "pass it as an argument, or return it from the program that makes it",
        )
    return x
