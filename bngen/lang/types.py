"""Element types, shapes and numbers as users write them."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from typing import Any

import numpy as np

from bngen.dtypes import BOOL, DTYPES, FLOAT, INDEX, NAMES
from bngen.ir.attributes import shown, type_misfit
from bngen.ir.types import TensorType
from bngen.lang.trace import error

Scalar = bool | int | float
Ints = int | Sequence[int]


def dtype_name(label: str, dtype: Any) -> str:
    """An element type's name, from its name, NumPy's type object or PyTorch's."""
    if type(dtype).__module__ == "torch":
        dtype = str(dtype).removeprefix("torch.")
    try:
        name = np.dtype(dtype).name if dtype is not None else ""
    except (TypeError, ValueError):
        name = ""
    if name not in DTYPES:
        raise error(f"{label}: {dtype!r} is no dtype", f"use one of {NAMES}")
    return name


def tensor_type(shape: Any, dtype: Any = FLOAT) -> TensorType:
    """A checked `TensorType`; raises `ProgramError` at the user's line."""
    hint = "write extents and then the dtype: bg.Tensor[8, 3, 32, 32] or bg.Tensor[8, bg.int64]"
    extents = tuple(shape) if isinstance(shape, Sequence) else (shape,)
    for e in extents:
        if isinstance(e, bool) or not isinstance(e, numbers.Integral) or e < 1:
            raise error(f"Tensor: {shown(e)} is no extent, which is a positive integer", hint)
    type_ = TensorType(tuple(int(e) for e in extents), dtype_name("Tensor", dtype))
    if wrong := type_misfit(type_):
        raise error(f"Tensor: {wrong}", hint)
    return type_


def is_scalar(x: Any) -> bool:
    """Whether ``x`` is a Python or NumPy number that may meet a tensor."""
    return isinstance(x, bool | np.bool_ | numbers.Real)


def real(label: str, what: str, x: Any, least: float = -math.inf, most: float = math.inf) -> float:
    """``x`` as a float; raises `ProgramError` when it is no number or lies outside."""
    if isinstance(x, numbers.Real) and not isinstance(x, bool) and least <= x <= most:
        try:
            return float(x)
        except OverflowError:
            raise error(f"{label}: {what} exceeds every float, got {shown(x)}") from None
    if most < math.inf:
        bounds = f" from {least:g} to {most:g}"
    else:
        bounds = f", {least:g} or more" if least > -math.inf else ""
    raise error(f"{label}: {what} must be a number{bounds}, got {shown(x)}")


def integer(label: str, what: str, x: Any, least: int) -> int:
    """``x`` as an int; raises `ProgramError` when it is none or too small."""
    if isinstance(x, bool) or not isinstance(x, numbers.Integral) or x < least:
        raise error(f"{label}: {what} must be an integer, {least} or more, got {shown(x)}")
    return int(x)


def integers(label: str, given: tuple[Any, ...]) -> tuple[int, ...]:
    """Integers one by one, or in one sequence; raises `ProgramError` for anything else."""
    items = given[0] if len(given) == 1 and isinstance(given[0], Sequence) else given
    if not all(isinstance(i, numbers.Integral) and not isinstance(i, bool) for i in items):
        raise error(f"{label}: needs integers, got {shown(items)}")
    return tuple(int(i) for i in items)


def flag(label: str, what: str, x: Any) -> bool:
    """``x`` as a bool; raises `ProgramError` when it is no bool or number."""
    if not isinstance(x, bool | np.bool_ | numbers.Integral):
        raise error(f"{label}: {what} must be True or False, got {x!r}")
    return bool(x)


def scalar_dtype(x: Scalar) -> str:
    """What a number counts as when it meets tensors."""
    if isinstance(x, bool | np.bool_):
        return BOOL
    return INDEX if isinstance(x, numbers.Integral) else FLOAT


def holds(dtype: str, x: Scalar) -> bool:
    """Whether an integer type holds an integer."""
    return DTYPES[dtype].least <= int(x) <= DTYPES[dtype].most


def wrapped(x: int, dtype: str) -> int:
    """An integer modulo the range of an integer type."""
    least, most = DTYPES[dtype].least, DTYPES[dtype].most
    return (x - least) % (most - least + 1) + least


def kind_of(x: Any) -> str:
    """The type of a thing that is none of bngen's tensors, as messages call it."""
    if callable(x) and hasattr(x, "__name__") and not isinstance(x, type):
        return f"the function {x.__name__} itself"
    kind = type(x)
    return f"{kind.__module__}.{kind.__name__}" if kind.__name__ == "Tensor" else kind.__name__
