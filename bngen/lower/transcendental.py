"""tanh as arithmetic: LLVM has none, and TVM's loses the digits of small results.

In and out: TIR expressions of float32 or float64, within 2 units in the last place of the exact
result over the whole range: subnormal results, the sign of zero, infinities and NaN included.

Source: the reduction and the coefficients are those of Moshier's Cephes (tanh, tanhf).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tvm import tirx

from bngen.lower.coords import Expr, dtype_of


@dataclass(frozen=True)
class Format:
    """A floating-point type, and the coefficients that suffice for it.

    Attributes:
        integer: the integer type of its bits.
        mantissa: bits after the point.
        bias: of the exponent.
        tanh: numerator and denominator of ``tanh(x) / x - 1`` over ``x * x``.
    """

    integer: str
    mantissa: int
    bias: int
    tanh: tuple[tuple[float, ...], tuple[float, ...]]


FORMATS = {
    "float32": Format(
        "int32", 23, 127,
        ((-5.70498872745e-3, 2.06390887954e-2, -5.37397155531e-2, 1.33314422036e-1,
          -3.33332819422e-1), ()),
    ),
    "float64": Format(
        "int64", 52, 1023,
        ((-9.64399179425052238628e-1, -9.92877231001918586564e1, -1.61468768441708447952e3),
         (1.0, 1.12811678491632931402e2, 2.23548839060100448583e3, 4.84406305325125486048e3)),
    ),
}  # fmt: skip
TANH_SMALL = 0.625
"""Below it tanh is a polynomial: one less a quotient would lose the digits of a small result."""


def bind(value: Expr, body: Callable[[Expr], Expr]) -> Expr:
    """``body(value)`` with the value computed once."""
    if isinstance(value, (tirx.Var, tirx.IntImm, tirx.FloatImm)):
        return body(value)
    var = tirx.Var("v", dtype_of(value))
    return tirx.Let(var, value, body(var))


def tanh(x: Expr) -> Expr:
    """A polynomial near zero, else ``1 - 2 / (exp(2|x|) + 1)``; odd to the sign of zero."""
    dtype = dtype_of(x)
    form, const = FORMATS[dtype], functools.partial(tirx.const, dtype=dtype)

    def signed(v: Expr) -> Expr:
        a = tirx.abs(v)
        small = (a * a) * _ratio(a * a, form.tanh, const) * a + a
        large = const(1) - const(2) / (tirx.exp(a + a) + const(1))
        unsigned = tirx.Select(a < const(TANH_SMALL), small, large)
        sign = tirx.const(-(1 << (form.mantissa + form.bias.bit_length() + 1)), form.integer)
        bits = [tirx.reinterpret(form.integer, w) for w in (unsigned, v)]
        return tirx.reinterpret(dtype, bits[0] | (bits[1] & sign))

    return bind(x, signed)


def _polynomial(x: Expr, coefficients: Sequence[float], const: Callable[..., Expr]) -> Expr:
    """Horner's rule, the highest power first."""
    return functools.reduce(lambda total, c: total * x + const(c), coefficients[1:],
                            const(coefficients[0]))  # fmt: skip


def _ratio(x: Expr, parts: tuple[Sequence[float], Sequence[float]], const: Callable) -> Expr:
    above, below = parts
    top = _polynomial(x, above, const)
    return top / _polynomial(x, below, const) if below else top
