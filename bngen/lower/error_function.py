"""erf as arithmetic, so that loops over it vectorize.

In and out: TIR expressions of float32 or float64, within 1.5 units in the last place of the exact
result over the whole range: zeros' signs, infinities and NaN included.

Sources: in single precision Juffa's two polynomials (njuffa, "Accurate and vectorizable erff",
Stack Overflow 35148198, 2018). In double precision, below 1 the interpolation of ``erf(x) / x - 1``
at the Chebyshev points of ``x * x`` from 0 to 1, which is off by less than 1e-17; above, the
complement of Moshier's Cephes (ndtr.c).
"""

from __future__ import annotations

import functools
from collections.abc import Callable

from tvm import tirx

from bngen.lower.opaque import Expr, bind, dtype_of
from bngen.lower.transcendental import exp, polynomial, signed

Const = Callable[..., Expr]

SINGLE_SPLIT = 0.927734375
SINGLE_SMALL = (
    -5.96761703e-4, 4.99119423e-3, -2.67681349e-2, 1.12819925e-1, -3.76125336e-1, 1.28379166e-1,
)  # fmt: skip
SINGLE_HIGH = (-1.72853470e-5, 3.83197126e-4)
"""Of ``|x|``, times ``x * x``, beside `SINGLE_MIDDLE`."""
SINGLE_MIDDLE = (-3.88396438e-3, 2.42546219e-2)
SINGLE_LOW = (-1.06777877e-1, -6.34846687e-1, -1.28717512e-1)

DOUBLE_SMALL = (
    -7.795898827002142e-10, 1.3720064546777686e-08, -1.6208483801871705e-07, 1.6447424703317362e-06,
    -1.492473690741966e-05, 1.2055294904839707e-4, -8.548325975389692e-4, 5.2239776071164225e-3,
    -2.686617064323777e-2, 1.1283791670945006e-1, -3.7612638903183543e-1, 1.2837916709551256e-1,
)  # fmt: skip
DOUBLE_LARGEST = 6.5
"""From here on erf is 1 to the last digit."""
DOUBLE_ABOVE = (
    2.46196981473530512524e-10, 5.64189564831068821977e-1, 7.46321056442269912687,
    4.86371970985681366614e1, 1.96520832956077098242e2, 5.26445194995477358631e2,
    9.34528527171957607540e2, 1.02755188689515710272e3, 5.57535335369399327526e2,
)  # fmt: skip
DOUBLE_BELOW = (
    1.0, 1.32281951154744992508e1, 8.67072140885989742329e1, 3.54937778887819891062e2,
    9.75708501743205489753e2, 1.82390916687909736289e3, 2.24633760818710981792e3,
    1.65666309194161350182e3, 5.57535340817727675546e2,
)  # fmt: skip


def erf(x: Expr) -> Expr:
    """``2 / sqrt(pi)`` times the integral of ``exp(-t * t)`` from 0 to ``x``; odd."""
    dtype = dtype_of(x)
    const = functools.partial(tirx.const, dtype=dtype)
    unsigned = {"float32": _single, "float64": _double}[dtype]
    return bind(x, lambda v: signed(bind(tirx.abs(v), lambda t: unsigned(t, const)), v))


def _single(t: Expr, const: Const) -> Expr:
    def power(s: Expr) -> Expr:
        total = polynomial(t, SINGLE_HIGH, const) * s + polynomial(t, SINGLE_MIDDLE, const)
        for c in SINGLE_LOW:
            total = total * t + const(c)
        return total * t - t

    def both(s: Expr) -> Expr:
        small = polynomial(s, SINGLE_SMALL, const) * t + t
        return tirx.Select(t > const(SINGLE_SPLIT), const(1) - exp(power(s)), small)

    return bind(t * t, both)


def _double(t: Expr, const: Const) -> Expr:
    def complement(a: Expr) -> Expr:
        ratio = polynomial(a, DOUBLE_ABOVE, const) / polynomial(a, DOUBLE_BELOW, const)
        return exp(const(0) - a * a) * ratio

    small = bind(t * t, lambda s: polynomial(s, DOUBLE_SMALL, const) * t + t)
    most = const(DOUBLE_LARGEST)
    large = const(1) - bind(tirx.Select(t > most, most, t), complement)
    return tirx.Select(t < const(1), small, large)
