"""What types and attributes may be: the kind and the range of each, declared here and nowhere else.

In: a type, or an op's name and its attributes. Out: None, or a clause that says what is wrong with
it, for whoever knows where it was written: the text form its line, tracing the user's own. What an
attribute may be beside operands of given shapes is the rule of the op itself (`ops.infer`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from bngen.dtypes import DTYPES, FLOAT, INDEX, NAMES
from bngen.ir.types import TensorType

MOST_AXES = 32
"""Axes of a tensor."""
MOST_BYTES = 2**63 - 1
"""Bytes of a tensor: what an offset can count."""
MOST = 2**31 - 1
"""Of windows, steps, groups, classes: what the index arithmetic of kernels holds."""
LONGEST = 60
"""Characters of a value that a message repeats."""


def shown(value: Any) -> str:
    """A value as a message repeats it: never long, whatever it is."""
    if isinstance(value, int) and value.bit_length() > 64:
        return f"an integer of {value.bit_length()} bits"
    if isinstance(value, (tuple, list)):
        items = [shown(v) for v in value[:8]] + ["..."] * (len(value) > 8)
        text = ", ".join(items) + "," * (isinstance(value, tuple) and len(items) == 1)
        text = f"({text})" if isinstance(value, tuple) else f"[{text}]"
    else:
        text = repr(value[:LONGEST] if isinstance(value, str) else value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def type_misfit(type_: TensorType) -> str | None:
    """Why no tensor can be of this type, or None where one can."""
    if type_.dtype not in DTYPES:
        return f"unknown element type {shown(type_.dtype)}"
    shape = type_.shape
    if not all(type(s) is int and s > 0 for s in shape):
        return f"{shown([*shape])} is no shape: extents are integers, 1 or more"
    if len(shape) > MOST_AXES:
        return f"a tensor of {len(shape)} axes, of which there are {MOST_AXES} at most"
    if type_.nbytes > MOST_BYTES:
        return f"{shown([*shape])} is too large: it takes 2^63 bytes or more"
    return None


# --- kinds ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kind:
    """What an attribute may be.

    Attributes:
        what: completes "must be".
        accepts: whether a value in plain Python types is one.
    """

    what: str
    accepts: Callable[[Any], bool]


def _is_integer(value: Any, least: int, most: int) -> bool:
    return type(value) is int and least <= value <= most


def _is_number(value: Any, least: float, most: float) -> bool:
    # Integers beyond 64 bits have no text that is read back, and may be no float.
    sized = type(value) is float or _is_integer(value, -(2**63), 2**63 - 1)
    return sized and least <= value <= most and (abs(value) <= _LARGEST or math.isinf(value))


def _integer(least: int, most: int = MOST) -> Kind:
    what = f"an integer from {least} to {most}"
    return Kind(what, lambda v: _is_integer(v, least, most))


def _integers(count: int, least: int, most: int = MOST) -> Kind:
    def accepts(value: Any) -> bool:
        listed = isinstance(value, tuple) and len(value) == count
        return listed and all(_is_integer(v, least, most) for v in value)

    return Kind(f"{count} integers from {least} to {most}", accepts)


def _number(least: float = -math.inf, most: float = math.inf) -> Kind:
    what = "a finite number" if most < math.inf else f"a number that {FLOAT} holds"
    what = what if least < 0 else f"{what}, {least:g} or more"
    return Kind(what, lambda v: _is_number(v, least, most))


def _is_shape(value: Any) -> bool:
    listed = isinstance(value, tuple) and len(value) <= MOST_AXES
    return listed and all(_is_integer(v, 1, MOST_BYTES) for v in value)


def _is_axes(value: Any) -> bool:
    listed = isinstance(value, tuple) and len(value) <= MOST_AXES
    return listed and all(_is_integer(v, -MOST_AXES, MOST_AXES - 1) for v in value)


def _is_scale(value: Any) -> bool:
    listed = isinstance(value, tuple) and len(value) == 2
    return listed and all(type(v) is float and _is_number(v, 0.0, _LARGEST) for v in value)


def _is_order(value: Any) -> bool:
    return _is_axes(value) and sorted(value) == [*range(len(value))]


def _is_pieces(value: Any) -> bool:
    listed = isinstance(value, tuple) and value and len(value) % 3 == 0
    return bool(listed) and all(
        _is_integer(v, (1, -1, -MOST)[i % 3], MOST) for i, v in enumerate(value)
    )


_LONGEST_NAME = 200


def _is_name(value: Any) -> bool:
    return type(value) is str and len(value) <= _LONGEST_NAME and value.isprintable()


_LARGEST = DTYPES[FLOAT].most
_FLAG = Kind("True or False", lambda v: type(v) is bool)
_PAIR = _integers(2, 1)
_AXIS = _integer(0, MOST_AXES - 1)
_POSITION = _integer(0, MOST_BYTES)

KINDS: dict[str, Kind] = {
    "align_corners": _FLAG,
    "alpha": _number(),
    "approximate": _FLAG,
    "average": _FLAG,
    "axes": Kind("a tuple of axes", _is_axes),
    "axis": _AXIS,
    "beta": _number(),
    "ceil_mode": _FLAG,
    "centred": _FLAG,
    "classes": _integer(1),
    "count": _integer(1, MOST_BYTES),
    "count_include_pad": _FLAG,
    "dilation": _PAIR,
    "divisor": _integer(-MOST),
    "dtype": Kind(f"one of {NAMES}", lambda v: isinstance(v, str) and v in DTYPES),
    "eps": _number(0.0, _LARGEST),
    # Which number, depends on the element type: see `value_misfit`.
    "fill": Kind("a number, True or False", lambda v: type(v) in (bool, int, float)),
    "group": Kind(f"a name of {_LONGEST_NAME} characters at most", _is_name),
    "groups": _integer(1),
    "hi": _number(),
    "input_scale": _number(),
    "keepdims": _FLAG,
    "kernel": _PAIR,
    "images": _integer(1),
    "lo": _number(),
    "momentum": _number(-_LARGEST, _LARGEST),
    "order": Kind("an order of axes", _is_order),
    "output_scale": _number(),
    "output_size": _PAIR,
    "padding": _integers(2, 0),
    "pieces": Kind("a tuple of count, start and step, again and again", _is_pieces),
    "row_groups": _integer(1),
    "scale": Kind("two finite numbers, 0 or more", _is_scale),
    "shape": Kind("a tuple of extents, each 1 or more", _is_shape),
    "slope": _number(),
    "split": Kind("a tuple of extents, each 1 or more", _is_shape),
    "start": _POSITION,
    "stop": _POSITION,
    "stream": _integer(0, 2**32 - 1),
    "stride": _PAIR,
    "threshold": _number(),
    "trans_a": _FLAG,
    "trans_b": _FLAG,
    # Which of them, depends on the element type: see `value_misfit`.
    "value": Kind("a number, True or False", lambda v: type(v) in (bool, int, float)),
}
"""Attribute -> what it may be, in every op that has no form of its own."""
SIDES = _integers(4, 0)
"""Padding of (top, bottom, left, right)."""


def attribute_misfit(attrs: Mapping[str, Any], own: Mapping[str, Kind]) -> str | None:
    """What is wrong with the first attribute that its kind does not accept, or None.

    Args:
        attrs: attributes of an op.
        own: what an attribute may be where the op has its own form of it.
    """
    for name, value in attrs.items():
        kind = own.get(name) or KINDS[name]
        if not kind.accepts(value):
            return f"{name} must be {kind.what}, got {shown(value)}"
    return None


def value_misfit(value: Any, dtype: str) -> str | None:
    """Why a constant of an element type cannot have this value, or None where it can."""
    if not isinstance(value, (bool, int, float)):
        return f"a constant is a number, not {shown(value)}"
    row = DTYPES[dtype]
    if isinstance(value, int):
        whole = DTYPES[INDEX] if row.is_float else row
        fits = whole.least <= value <= whole.most
    else:
        fits = row.is_float and (not math.isfinite(value) or abs(value) <= row.most)
    if not fits:
        return f"a constant of {dtype} cannot be {shown(value)}"
    return None
