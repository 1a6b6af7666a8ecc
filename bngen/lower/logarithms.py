"""log, log1p and its inverse expm1 as arithmetic, so that loops over them vectorize.

In and out: TIR expressions of float32 or float64, within 1 unit in the last place of the exact
result over the whole range: subnormal arguments, zeros' signs, infinities and NaN included.

With ``x = 2**k * (1 + f)``, ``1 + f`` between ``sqrt(2) / 2`` and ``sqrt(2)``, and ``s = f / (2 +
f)``, ``log(1 + f)`` is ``f - f*f/2 + s * (f*f/2 + R(s*s))``. Source: reduction and coefficients are
those of FreeBSD's msun (e_log.c, e_logf.c, s_log1p.c, s_expm1.c, s_expm1f.c), whose branches are
selections here.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

from tvm import tirx

from bngen.lower.opaque import Expr, bind, dtype_of
from bngen.lower.opaque import sub as minus
from bngen.lower.transcendental import FORMATS, polynomial, power_of_two, whole_near


@dataclass(frozen=True)
class Series:
    """What suffices for a floating-point type.

    Attributes:
        start: the bits of ``sqrt(2) / 2``, from which ``1 + f`` runs.
        log2: log(2) as a sum whose first part times any exponent is exact.
        rest: R's coefficients, the highest power first; it has no constant term.
        expm1: coefficients of its reduced function, the highest power first.
        lift: digits by which a subnormal number is scaled before it is taken apart.
    """

    start: int
    log2: tuple[float, float]
    rest: tuple[float, ...]
    expm1: tuple[float, ...]
    lift: int


SERIES = {
    "float32": Series(
        0x3F3504F3, (6.9313812256e-1, 9.0580006145e-6),
        (2.4279078841e-1, 2.8498786688e-1, 4.0000972152e-1, 6.6666662693e-1),
        (1.5807170421e-3, -3.3333212137e-2, 1.0), 25,
    ),
    "float64": Series(
        0x3FE6A09E667F3BCD, (6.93147180369123816490e-1, 1.90821492927058770002e-10),
        (1.479819860511658591e-1, 1.531383769920937332e-1, 1.818357216161805012e-1,
         2.222219843214978396e-1, 2.857142874366239149e-1, 3.999999999940941908e-1,
         6.666666666666735130e-1),
        (-2.01099218183624371326e-07, 4.00821782732936239552e-06, -7.93650757867487942473e-05,
         1.58730158725481460165e-03, -3.33333333333331316428e-02, 1.0), 54,
    ),
}  # fmt: skip

NO_DIGIT_LEFT = 64.0
"""Beside ``2 ** 64`` a 1 has no digit in any of the types, nor has ``exp(-64)`` beside 1."""


def log(x: Expr) -> Expr:
    """The natural logarithm."""
    dtype = dtype_of(x)
    const = functools.partial(tirx.const, dtype=dtype)
    tiny, lift = _least_normal(dtype), SERIES[dtype].lift

    def parts(v: Expr) -> Expr:
        is_small = v < const(tiny)
        lifted = tirx.Select(is_small, v * const(2.0**lift), v)
        offset = tirx.Select(is_small, const(lift), const(0))

        def taken(k: Expr, m: Expr) -> Expr:
            return _combined(k - offset, m - const(1), const(0), dtype)

        return _edges(v, v, _taken_apart(lifted, dtype, taken), const)

    return bind(x, parts)


def log1p(x: Expr) -> Expr:
    """``log(1 + x)``, which keeps the digits of small results.

    What ``u = 1 + x`` loses by rounding is brought back to first order, ``(x - (u - 1)) / u``.
    """
    dtype = dtype_of(x)
    const = functools.partial(tirx.const, dtype=dtype)

    def corrected(v: Expr, u: Expr) -> Expr:
        def taken(k: Expr, m: Expr) -> Expr:
            near = tirx.EQ(k, const(0))
            lost = tirx.Select(
                k >= const(2), minus(const(1), minus(u, v)), minus(v, minus(u, const(1)))
            )
            f = tirx.Select(near, v, m - const(1))
            return bind(f, lambda f: _combined(k, f, tirx.Select(near, const(0), lost / u), dtype))

        value = _edges(v, u, _taken_apart(u, dtype, taken), const)
        return tirx.Select(tirx.EQ(v, const(0)), v, value)  # Zero keeps its sign.

    return bind(x, lambda v: bind(v + const(1), lambda u: corrected(v, u)))


def expm1(x: Expr) -> Expr:
    """``exp(x) - 1``, which keeps the digits of small results.

    With ``x = n*log(2) + r`` it is two to the ``n`` times ``(1 - 2**-n) + expm1(r)``, where c is
    what r has lost by rounding.
    """
    dtype = dtype_of(x)
    form, const = FORMATS[dtype], functools.partial(tirx.const, dtype=dtype)
    high, low = (const(v) for v in SERIES[dtype].log2)
    limit, most = const(NO_DIGIT_LEFT), const(form.range[1])

    def scaled(n: Expr, r: Expr, c: Expr) -> Expr:
        # From the limit on 2**-n is nothing beside 1, and below it is a normal number.
        least = tirx.Select(n > limit, const(0) - limit, const(0) - n)
        total = minus(const(1) - power_of_two(least, form), minus(_expm1_rest(r, c, dtype), r))
        half = whole_near(n * const(0.5), form)
        return bind(half, lambda h: total * power_of_two(h, form) * power_of_two(n - h, form))

    def reduced(v: Expr, n: Expr) -> Expr:
        return bind(v - n * high, lambda upper: bind(n * low, lambda lower: bind(
            minus(upper, lower), lambda r: bind(
                minus(minus(upper, r), lower), lambda c: scaled(n, r, c)
            )
        )))  # fmt: skip

    def clamped(v: Expr) -> Expr:
        return tirx.Select(v < const(0) - limit, const(0) - limit, tirx.Select(v > most, most, v))

    def whole(v: Expr) -> Expr:
        steps = whole_near(v * const(1.4426950408889634), form)
        return bind(steps, lambda n: reduced(v, n))

    def unless_zero(v: Expr) -> Expr:  # which keeps its sign
        return tirx.Select(tirx.EQ(v, const(0)), v, bind(clamped(v), whole))

    return bind(x, unless_zero)


def _expm1_rest(r: Expr, c: Expr, dtype: str) -> Expr:
    """What is to be taken from ``r`` for ``expm1(r + c)``."""
    const = functools.partial(tirx.const, dtype=dtype)

    def rest(half: Expr, square: Expr, ratio: Expr) -> Expr:
        t = const(3) - ratio * half
        return bind(t, lambda t: minus(minus(
            r * minus(square * (minus(ratio, t) / (const(6) - r * t)), c), c
        ), square))  # fmt: skip

    return bind(r * const(0.5), lambda half: bind(
        r * half, lambda square: bind(
            polynomial(square, SERIES[dtype].expm1, const),
            lambda ratio: rest(half, square, ratio),
        )
    ))  # fmt: skip


def _edges(v: Expr, u: Expr, value: Expr, const: Callable[..., Expr]) -> Expr:
    """Infinite at zero and infinity, no number below; ``u`` is what the logarithm is of."""
    infinity = const(math.inf)
    value = tirx.Select(u > const(0), value, tirx.Select(
        tirx.EQ(u, const(0)), const(-math.inf), tirx.Select(tirx.EQ(v, v), const(math.nan), v)
    ))  # fmt: skip
    return tirx.Select(tirx.EQ(u, infinity), infinity, value)


def _least_normal(dtype: str) -> float:
    return 2.0 ** (1 - FORMATS[dtype].bias)


def _taken_apart(x: Expr, dtype: str, body: Callable[[Expr, Expr], Expr]) -> Expr:
    """``body(k, m)`` with ``x = 2**k * m`` for a positive, finite ``x``."""
    form, start = FORMATS[dtype], SERIES[dtype].start
    whole = functools.partial(tirx.const, dtype=form.integer)

    def split(bits: Expr) -> Expr:
        steps = minus(bits, whole(start)) >> whole(form.mantissa)
        return bind(steps, lambda k: body(
            tirx.Cast(dtype, k),
            tirx.reinterpret(dtype, minus(bits, k << whole(form.mantissa))),
        ))  # fmt: skip

    return bind(tirx.reinterpret(form.integer, x), split)


def _combined(k: Expr, f: Expr, correction: Expr, dtype: str) -> Expr:
    """``k * log(2) + log(1 + f) + correction``, small parts first."""
    const = functools.partial(tirx.const, dtype=dtype)
    high, low = (const(v) for v in SERIES[dtype].log2)

    def summed(k: Expr, f: Expr, s: Expr) -> Expr:
        rest = bind(s * s, lambda z: z * polynomial(z, SERIES[dtype].rest, const))
        half = const(0.5) * f * f
        return bind(
            half, lambda h: minus(s * (h + rest) + (k * low + correction), h) + f + k * high
        )

    return bind(k, lambda k: bind(
        f, lambda f: bind(f / (const(2) + f), lambda s: summed(k, f, s))
    ))  # fmt: skip
