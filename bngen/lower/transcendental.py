"""exp, sigmoid, tanh as arithmetic, so that loops over them vectorize.

In and out: TIR expressions of float32 or float64. LLVM has no vectors of these functions: it calls
the C library once an element. Here they are polynomials and bit patterns, within 2 units in the
last place of the exact result over the whole range: subnormal results, zeros' signs, infinities
and NaN included. log and expm1 are in `logarithms`, erf in `error_function`.

Sources: reductions and coefficients are those of Moshier's Cephes (exp, expf, tanh, tanhf); the
scaling in two steps, which rounds a subnormal result once, is that of musl's and SLEEF's ldexp.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tvm import tirx

from bngen.lower.opaque import Expr, add, bind, dtype_of
from bngen.lower.opaque import sub as minus


@dataclass(frozen=True)
class Format:
    """A floating-point type, and the coefficients that suffice for it.

    Attributes:
        integer: the integer type of its bits.
        mantissa: bits after the point.
        bias: of the exponent.
        range: beyond these arguments exp is zero and infinite.
        log2: log(2) as a sum whose first part times any exponent is exact.
        exp: numerator and denominator of the reduced exp's rational part.
        tanh: numerator and denominator of ``tanh(x) / x - 1`` over ``x * x``.
    """

    integer: str
    mantissa: int
    bias: int
    range: tuple[float, float]
    log2: tuple[float, float]
    exp: tuple[tuple[float, ...], tuple[float, ...]]
    tanh: tuple[tuple[float, ...], tuple[float, ...]]


FORMATS = {
    "float32": Format(
        "int32", 23, 127, (-104.0, 89.0), (0.693359375, -2.12194440e-4),
        ((1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1,
          5.0000001201e-1), ()),
        ((-5.70498872745e-3, 2.06390887954e-2, -5.37397155531e-2, 1.33314422036e-1,
          -3.33332819422e-1), ()),
    ),
    "float64": Format(
        "int64", 52, 1023, (-746.0, 710.0), (6.93145751953125e-1, 1.42860682030941723212e-6),
        ((1.26177193074810590878e-4, 3.02994407707441961300e-2, 9.99999999999999999910e-1),
         (3.00198505138664455042e-6, 2.52448340349684104192e-3, 2.27265548208155028766e-1,
          2.00000000000000000005e0)),
        ((-9.64399179425052238628e-1, -9.92877231001918586564e1, -1.61468768441708447952e3),
         (1.0, 1.12811678491632931402e2, 2.23548839060100448583e3, 4.84406305325125486048e3)),
    ),
}  # fmt: skip
TANH_SMALL = 0.625
"""Below it tanh is a polynomial: one less a quotient would lose the digits of a small result."""


def exp(x: Expr) -> Expr:
    """``e ** x``: with ``x = n*log(2) + r``, the reduced ``exp(r)`` times two to the ``n``."""
    dtype = dtype_of(x)
    form, const = FORMATS[dtype], functools.partial(tirx.const, dtype=dtype)
    least, most = (const(v) for v in form.range)
    high, low = (const(v) for v in form.log2)

    def scaled(v: Expr, n: Expr) -> Expr:
        reduced = bind((v - n * high) - n * low, lambda r: _exp_reduced(r, form, const))
        half = whole_near(n * const(0.5), form)
        return bind(half, lambda h: reduced * power_of_two(h, form) * power_of_two(n - h, form))

    def clamped(v: Expr) -> Expr:  # A NaN is neither less nor more, and stays.
        return tirx.Select(v < least, least, tirx.Select(v > most, most, v))

    def whole(v: Expr) -> Expr:
        return bind(whole_near(v * const(1.4426950408889634), form), lambda n: scaled(v, n))

    return bind(x, lambda v: bind(clamped(v), whole))


def sigmoid(x: Expr) -> Expr:
    """``1 / (1 + exp(-x))``, by the exp that cannot overflow; small results keep their digits."""
    one, zero = tirx.const(1, dtype_of(x)), tirx.const(0, dtype_of(x))

    def quotient(v: Expr, tail: Expr) -> Expr:
        return tirx.Select(v >= zero, one, tail) / (one + tail)

    return bind(x, lambda v: bind(exp(zero - tirx.abs(v)), lambda tail: quotient(v, tail)))


def tanh(x: Expr) -> Expr:
    """A polynomial near zero, else ``1 - 2 / (exp(2|x|) + 1)``; odd to the sign of zero."""
    dtype = dtype_of(x)
    form, const = FORMATS[dtype], functools.partial(tirx.const, dtype=dtype)

    def small(a: Expr) -> Expr:
        ratio = bind(a * a, lambda z: z * _ratio(z, form.tanh, const))
        return ratio * a + a

    def unsigned(a: Expr) -> Expr:
        large = const(1) - const(2) / (exp(a + a) + const(1))
        return tirx.Select(a < const(TANH_SMALL), small(a), large)

    return bind(x, lambda v: signed(bind(tirx.abs(v), unsigned), v))


def rounded(x: Expr) -> Expr:
    """The nearest whole number, the even one of two; what has no digits after the point stays."""
    dtype = dtype_of(x)
    form = FORMATS[dtype]
    whole_from = tirx.const(2.0**form.mantissa, dtype)

    def unsigned(a: Expr) -> Expr:
        return tirx.Select(a < whole_from, minus(add(a, whole_from), whole_from), a)

    return bind(x, lambda v: signed(bind(tirx.abs(v), unsigned), v))


def signed(magnitude: Expr, like: Expr) -> Expr:
    """A number that is not negative, with the sign of another, be it a zero."""
    dtype = dtype_of(like)
    form = FORMATS[dtype]
    sign = tirx.const(-(1 << (form.mantissa + form.bias.bit_length() + 1)), form.integer)
    bits = [tirx.reinterpret(form.integer, w) for w in (magnitude, like)]
    return tirx.reinterpret(dtype, bits[0] | (bits[1] & sign))


def polynomial(x: Expr, coefficients: Sequence[float], const: Callable[..., Expr]) -> Expr:
    """Horner's rule, the highest power first."""
    return functools.reduce(lambda total, c: total * x + const(c), coefficients[1:],
                            const(coefficients[0]))  # fmt: skip


def _ratio(x: Expr, parts: tuple[Sequence[float], Sequence[float]], const: Callable) -> Expr:
    above, below = parts
    top = polynomial(x, above, const)
    return top / polynomial(x, below, const) if below else top


def _exp_reduced(r: Expr, form: Format, const: Callable[..., Expr]) -> Expr:
    """The exponential of what lies between ``-log(2) / 2`` and ``log(2) / 2``."""
    above, below = form.exp
    if not below:
        return polynomial(r, above, const) * (r * r) + r + const(1)

    def quotient(z: Expr) -> Expr:
        top = r * polynomial(z, above, const)
        return bind(top, lambda p: p / (polynomial(z, below, const) - p))

    return bind(r * r, quotient) * const(2) + const(1)


def _shifter(form: Format, dtype: str) -> Expr:
    """A number so large that floats beside it are whole."""
    return tirx.const(1.5 * 2.0**form.mantissa, dtype)


def whole_near(x: Expr, form: Format) -> Expr:
    """The nearest whole number, if it is of few digits. TVM makes no vectors of `nearbyint`."""
    shifter = _shifter(form, dtype_of(x))
    return minus(add(x, shifter), shifter)


def power_of_two(n: Expr, form: Format) -> Expr:
    """Two to the power of a float that is a whole number.

    Added to the shifter, it is the low bits of the sum. That is no conversion, which has no meaning
    for NaN and infinity.
    """
    dtype = dtype_of(n)
    shifted = tirx.reinterpret(form.integer, n + _shifter(form, dtype))
    bits = shifted + tirx.const(form.bias, form.integer)
    return tirx.reinterpret(dtype, bits << tirx.const(form.mantissa, form.integer))
