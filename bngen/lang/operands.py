"""What the operands of an op must be, and the one dtype in which they meet.

Python numbers that meet a tensor become ``constant`` nodes, and mixed dtypes are resolved as in
PyTorch (a tensor outranks a zero-dimensional one, which outranks a Python number, unless the latter
is of a higher category: bool < integer < float); the casts are written into the graph, so that the
operands of every arithmetic op have one dtype.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from bngen.dtypes import BOOL, DTYPES, FLOAT, INDEX, meet
from bngen.ir.attributes import shown
from bngen.lang.emission import cast, constant
from bngen.lang.trace import error
from bngen.lang.traced import Traced, check_tensor
from bngen.lang.types import Scalar, holds, is_scalar, kind_of, scalar_dtype, wrapped


def same_float_type(label: str, optional: Sequence[str] = (), **operands: Traced | None) -> None:
    """Raise unless all operands are tensors of one floating-point dtype.

    Args:
        label: what the user called.
        optional: names of the operands that may be ``None``.
        **operands: by name.
    """
    first = None
    for name, x in operands.items():
        if x is None and name in optional:
            continue
        check_tensor(label, name, x)
        first = first or (name, x)
        if not x.type.is_float or x.dtype != first[1].dtype:
            found = f"{name} is {x.type}"
            if x is not first[1]:
                found = f"{first[0]} is {first[1].type} but {found}"
            raise error(f"{label}: {found}", "convert to one floating-point dtype with .to(...)")


def coerce(
    label: str,
    operands: Sequence[Any],
    *,
    wraps: bool = False,
    floats: bool = False,
    rounds: bool = False,
) -> list[Traced]:
    """All operands as tensors of the one dtype in which they meet.

    Args:
        label: what the user called.
        operands: tensors and numbers.
        wraps: take numbers modulo the range of an integer dtype.
        floats: take integers as floating-point numbers.
        rounds: what is computed of them is rounded, so that numbers need not be before.
    """
    for x in operands:
        if isinstance(x, Traced):
            check_tensor(label, "operand", x)
        elif not is_scalar(x):
            raise error(
                f"{label}: takes tensors and numbers, got {kind_of(x)}",
                "arrays enter a program as arguments, bg.parameter or bg.buffer",
            )
    dtype = meet(
        (
            [x.dtype for x in operands if isinstance(x, Traced) and x.shape],
            [x.dtype for x in operands if isinstance(x, Traced) and not x.shape],
            [scalar_dtype(x) for x in operands if not isinstance(x, Traced)],
        )
    )
    if floats and not DTYPES[dtype].is_float:
        dtype = FLOAT
    number = DTYPES[dtype].computed if rounds else dtype
    return [
        cast(x, dtype) if isinstance(x, Traced) else _number(label, x, number, wraps)
        for x in operands
    ]


def _number(label: str, x: Scalar, dtype: str, wraps: bool) -> Traced:
    """A number that meets tensors of ``dtype``; refused where it is none of that type's.

    Where results wrap, an integer counts modulo the range, as in PyTorch. PyTorch wraps it in
    comparisons, too, where nothing of what was written is left: ``uint8 > -1`` would
    be false everywhere.
    """
    if DTYPES[dtype].is_float:
        try:
            return constant(float(x), dtype)
        except OverflowError:
            raise error(f"{label}: {shown(x)} exceeds every floating-point number") from None
    if dtype == BOOL or holds(dtype, x):
        return constant(x, dtype)
    if wraps and holds(INDEX, x):
        return constant(wrapped(int(x), dtype), dtype)
    hint = "convert the tensor to a wider type first, such as .to(bg.int64) or .float()"
    raise error(f"{label}: {shown(x)} is no {dtype}, which the tensor beside it is", hint)


# --- types that are only stored ----------------------------------------------------------------


def computed(x: Traced | None) -> Traced | None:
    """A tensor in the dtype it is computed in, which for one that is only stored is another."""
    return x if x is None else cast(x, x.type.element.computed)


def rounded_once(fn: Callable[..., Any]) -> Callable[..., Any]:
    """A function of several ops that rounds its results, not each op's.

    That makes a difference where the first tensor is of a dtype that is only stored; the others are
    then of that dtype, or of the one it is computed in.
    """

    @functools.wraps(fn)
    def call(*args: Any, **kwargs: Any) -> Any:
        given = [x for x in (*args, *kwargs.values()) if isinstance(x, Traced)]
        first = next((x for x in given if x.type.is_float), None)
        if first is None or not first.type.element.stored_only:
            return fn(*args, **kwargs)
        if any(x.type.is_float and x.dtype not in _fitting(first) for x in given):
            return fn(*args, **kwargs)
        args = tuple(computed(x) if isinstance(x, Traced) else x for x in args)
        kwargs = {k: computed(x) if isinstance(x, Traced) else x for k, x in kwargs.items()}
        results = fn(*args, **kwargs)
        if isinstance(results, tuple):
            return tuple(_rounded(x, first.dtype) for x in results)
        return _rounded(results, first.dtype)

    return call


def _fitting(x: Traced) -> set[str]:
    return {x.dtype, x.type.element.computed}


def _rounded(x: Traced | None, dtype: str) -> Traced | None:
    return x if x is None or not x.type.is_float else cast(x, dtype)
