"""Why a caller's value cannot be an argument, and what to do about it.

In: what was given and what is declared. Out: an `Unusable` to raise; which argument of which
program it is stands in the `CallError` that `arguments` makes of it.
"""

from __future__ import annotations

import numpy as np

from bngen.runtime.argspec import ArgSpec


class Unusable(Exception):
    """Why an argument cannot be used, and what to try."""

    def __init__(self, what: str, hint: str):
        super().__init__(what)
        self.what, self.hint = what, hint


def declared(spec: ArgSpec) -> str:
    """Its type, as messages write it."""
    return f"{spec.dtype}{list(spec.shape)}"


def wrong_dtype(got: str, expected: str, how: str) -> Unusable:
    """Element types differ; ``how`` converts."""
    return Unusable(f"is {got}, expected {expected}", f"convert it: {how}")


def wrong_shape(got: tuple[int, ...], expected: tuple[int, ...]) -> Unusable:
    """Shapes differ."""
    what = f"has shape {got}, expected {expected}"
    if len(got) != len(expected):
        what = f"has rank {len(got)}, shape {got}; expected rank {len(expected)}, shape {expected}"
    return Unusable(what, _shape_hint(got, expected))


def _shape_hint(got: tuple[int, ...], expected: tuple[int, ...]) -> str:
    if len(got) == len(expected) == 4 and got == (expected[0], *expected[2:], expected[1]):
        return "the order is N, C, H, W: transpose it by (0, 3, 1, 2)"
    if len(got) == len(expected) and got[1:] == expected[1:]:
        return f"a program is built for one size: build it with {got[0]} in place of {expected[0]}"
    if np.prod(got) == np.prod(expected):
        return "reshape it"
    return "a program is built for one shape"
