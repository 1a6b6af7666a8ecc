"""Pointwise ops over tensors and numbers that may differ in dtype and shape: what operators do.

In: tensors and Python numbers as users write them. Out: one node, or a few where an op of the table
says less than the operator. Operators, methods and functions of the language share these.
"""

from __future__ import annotations

from typing import Any

from bngen.dtypes import BOOL, FLOAT, meet
from bngen.ir.ops import OPS
from bngen.lang.emission import cast, constant, emit
from bngen.lang.operands import coerce
from bngen.lang.trace import error
from bngen.lang.traced import Traced, check_tensor
from bngen.lang.types import Scalar, holds, is_scalar, kind_of, scalar_dtype

SHAPE_HINT = "shapes align at the last axis; a per-channel vector needs .view(1, -1, 1, 1)"


def arithmetic(op: str, *operands: Traced | Scalar, label: str | None = None) -> Traced:
    """A pointwise op over operands of mixed kinds, dtypes and shapes that broadcast."""
    label, row = label or op, OPS[op]
    xs = coerce(label, operands, wraps=row.wraps, rounds=row.rounds)
    if row.takes == "number" and xs[0].dtype == BOOL:
        raise error(f"{label}: not defined for bool", "convert it with .to(bg.float32)")
    return emit(op, *xs, label=label, hint=SHAPE_HINT)


def quotient(dividend: Traced | Scalar, divisor: Traced | Scalar, label: str = "div") -> Traced:
    """``dividend / divisor``; integers divide as float32."""
    xs = coerce(label, (dividend, divisor), floats=True, rounds=True)
    return emit("div", *xs, label=label, hint=SHAPE_HINT)


def floating(op: str, x: Traced, **attrs: Any) -> Traced:
    """A pointwise op of one operand in floating point; integers are taken as float32."""
    check_tensor(op, "x", x)
    return emit(op, x if x.type.is_float else cast(x, FLOAT), **attrs)


def logical(op: str, *operands: Traced, label: str) -> Traced:
    """A pointwise op over whether elements are other than zero."""
    for i, x in enumerate(operands):
        check_tensor(label, f"operand {i + 1}", x)
    truths = (x if x.dtype == BOOL else arithmetic("not_equal", x, 0) for x in operands)
    return arithmetic(op, *truths, label=label)


def bitwise(op: str, *operands: Traced | bool, label: str) -> Traced:
    """A pointwise op over bool tensors and Python's bools."""
    for x in operands:
        kind = x.dtype if isinstance(x, Traced) else scalar_dtype(x) if is_scalar(x) else None
        if kind != BOOL:
            found = x.type if isinstance(x, Traced) else kind_of(x)
            hint = "make bool of it first: x != 0"
            raise error(f"{label}: takes bool tensors, got {found}", hint)
    return arithmetic(op, *operands, label=label)


def power(x: Traced | Scalar, exponent: Traced | Scalar) -> Traced:
    """``x ** exponent``; the exponents that have cheaper and exacter ops use them."""
    if isinstance(x, Traced) and is_scalar(exponent):
        check_tensor("pow", "input", x)
        base = cast(x, meet(([x.dtype], [], [scalar_dtype(exponent)])))
        if exponent == 2 and base.dtype != BOOL:
            return arithmetic("mul", base, base, label="pow")
        if not base.type.is_float:
            return _integer_power(base, int(exponent))
        if exponent in (1, 0.5, -0.5, -1):
            return {
                1: lambda: base,
                0.5: lambda: floating("sqrt", base),
                -0.5: lambda: floating("rsqrt", base),
                -1: lambda: quotient(1.0, base, label="pow"),
            }[exponent]()
    base, exponent = coerce("pow", (x, exponent), rounds=True)
    if not base.type.is_float:
        hint = "convert one of them to floating point first, .float()"
        raise error(f"pow: {base.dtype} to a power that is known only later", hint)
    return emit("pow", base, exponent, hint=SHAPE_HINT)


def _integer_power(x: Traced, exponent: int) -> Traced:
    """By squaring; products wrap."""
    if x.dtype == BOOL:
        raise error("pow: not defined for bool", "convert it with .to(bg.float32)")
    if exponent < 0 or not holds(x.dtype, exponent):
        hint = "convert it to floating point first, .float()"
        raise error(f"pow: {x.name} is {x.type}, which has no power {exponent}", hint)
    result, square = None, x
    while exponent:
        if exponent & 1:
            result = square if result is None else arithmetic("mul", result, square, label="pow")
        exponent >>= 1
        if exponent:
            square = arithmetic("mul", square, square, label="pow")
    if result is None:
        return emit("broadcast_to", constant(1, x.dtype), label="pow", shape=x.shape)
    return result
