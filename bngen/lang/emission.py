"""Adding nodes to the running trace.

In: the name of an op and tensors. Out: its results, at the user's line; what does not fit is an
error there. Operands are taken as they are: `bngen.lang.operands` makes them meet before.
"""

from __future__ import annotations

import math
from typing import Any

from bngen.dtypes import DTYPES, INDEX
from bngen.ir.ops.row import ShapeError
from bngen.lang.trace import current_trace, error
from bngen.lang.traced import Traced, check_tensor, wrap
from bngen.lang.types import Scalar, holds


def emit_all(
    op: str,
    *operands: Traced | None,
    label: str | None = None,
    hint: str | None = None,
    name: str | None = None,
    **attrs: Any,
) -> tuple[Traced, ...]:
    """Apply an op of the table; all its results.

    Args:
        op: name in `bngen.ir.ops.OPS`.
        *operands: its operands in order, ``None`` for a missing one.
        label: what the user called, when that is not ``op``.
        hint: what to try when the operands do not fit.
        name: what the results are called; numbered by the op otherwise.
        **attrs: the op's attributes.

    Raises:
        ProgramError: operands do not fit, or belong to another trace.
    """
    label = label or op
    trace = current_trace(label)
    for i, x in enumerate(operands):
        if x is not None:
            check_tensor(label, f"operand {i + 1}", x)
    values = [None if x is None else x.value for x in operands]
    try:
        return tuple(wrap(trace, v) for v in trace.add(op, values, attrs, name=name))
    except ShapeError as e:
        raise error(f"{label}: {e}", hint) from None


def emit(op: str, *operands: Traced | None, **kwargs: Any) -> Traced:
    """Apply an op of the table; its first result. Arguments as for `emit_all`."""
    return emit_all(op, *operands, **kwargs)[0]


def constant(value: Scalar, dtype: str) -> Traced:
    """A zero-dimensional constant."""
    row = DTYPES[dtype]
    try:
        value = row.scalar(value)
    except (OverflowError, ValueError):  # An integer too large for a float, NaN for an integer.
        raise error(f"a number cannot be {dtype}", "use smaller ones") from None
    if row.kind == "int" and not holds(INDEX, value):
        raise error(f"a number cannot be {INDEX}", "use smaller ones")
    if row.is_float and abs(value) >= row.overflow:
        value = math.copysign(math.inf, value)  # As in PyTorch, and as rounding gives it.
    return emit("constant", value=value, dtype=dtype)


def cast(x: Traced, dtype: str) -> Traced:
    """The same numbers in another dtype; ``x`` itself where it is of that one."""
    return x if dtype == x.dtype else emit("cast", x, label="to", dtype=dtype)
