"""Parameters and buffers, declared where they are used and named by nested scopes."""

from __future__ import annotations

import hashlib
import numbers
from collections.abc import Sequence
from typing import Any

import numpy as np

from bngen.arrays import letter_of
from bngen.dtypes import FLOAT
from bngen.ir.build import plain
from bngen.ir.types import TensorType
from bngen.lang.emission import constant as scalar_constant
from bngen.lang.init import default_init, init_misfit
from bngen.lang.tensor import Tensor
from bngen.lang.trace import current_trace, error
from bngen.lang.traced import wrap
from bngen.lang.types import dtype_name, kind_of, tensor_type

Init = tuple | float | None

MOST_VALUES = 2**16
"""Elements of a constant, all of which stand in the program's text."""


class scope:  # noqa: N801 - read as a word of the language: with bg.scope("denseblock1")
    """Prefix the names of parameters and buffers declared inside: ``with bg.scope("layer1")``.

    Scopes nest; names join with dots.
    """

    def __init__(self, name: str):
        if not isinstance(name, str) or not name:
            raise error(f"scope: {name!r} cannot be a name", 'write bg.scope("layer1")')
        self.name = name

    def __enter__(self) -> scope:
        self._trace = current_trace("scope")
        self._trace.scopes.append(self.name)
        return self

    def __exit__(self, *exc: object) -> None:
        self._trace.scopes.pop()


def parameter(
    name: str, shape: int | Sequence[int], dtype: Any = FLOAT, init: Init = None
) -> Tensor:
    """A trained tensor that the compiled module holds, under its full dotted name.

    Declared again under the same full name it is the same tensor.

    Args:
        name: joined to the open scopes.
        shape: its shape.
        dtype: a floating-point dtype.
        init: a number, or an initializer of `bngen.lang.init`, as ``("normal", 0.01)``. By
            default as PyTorch's layers do: ``kaiming_uniform`` for two axes and more; for a
            vector ones if it is called ``weight``, else zeros.
    """
    type_ = tensor_type(shape, dtype)
    if not type_.is_float:
        raise error(f"parameter {name!r}: is {type_}", "use bg.buffer for what is not trained")
    return _declare(name, type_, "parameter", init)


def buffer(name: str, shape: int | Sequence[int], dtype: Any = FLOAT, init: Init = None) -> Tensor:
    """A tensor that the compiled module holds but does not train; zeros by default.

    Arguments as for `parameter`.
    """
    return _declare(name, tensor_type(shape, dtype), "buffer", 0 if init is None else init)


def constant(value: Any, dtype: Any = None) -> Tensor:
    """A tensor of numbers that the program holds, as masks and filters are.

    It is no state: `Module.init` and ``load_state_dict`` leave it alone. Equal constants are one.

    Args:
        value: an array, nested lists of numbers, or a number.
        dtype: its dtype; without it an array's own, float32 for Python's floats.
    """
    label = "constant"
    trace = current_trace(label)
    kind = dtype_name(label, dtype) if dtype is not None else None
    try:
        array = np.asarray(value)
        if kind is None and not hasattr(value, "dtype") and array.dtype.kind == "f":
            kind = FLOAT
        array = array.astype(kind or array.dtype)
    except (TypeError, ValueError, OverflowError) as e:
        raise error(f"{label}: {e}", "pass an array, or lists of numbers of one length") from None
    if letter_of(array.dtype) not in "biuf":
        raise error(f"{label}: {kind_of(value)} holds no numbers", "pass an array of numbers")
    type_ = tensor_type(array.shape, array.dtype)
    if not array.shape:
        return scalar_constant(array.item(), type_.dtype)
    if array.size > MOST_VALUES:
        hint = "declare it with bg.buffer, and load it with load_state_dict"
        raise error(f"{label}: {type_} has more than {MOST_VALUES} elements", hint)
    if letter_of(array.dtype) == "f" and np.isnan(array).any():
        raise error(f"{label}: {type_} holds NaN", "select it where it is wanted with bg.where")
    # By what it is: programs called in one another may bring equal ones, or others.
    digest = hashlib.sha256(f"{type_}".encode() + array.tobytes()).hexdigest()[:16]
    init = plain(("values", *array.ravel().tolist()))
    return wrap(trace, trace.declare(f"constant.{digest}", type_, "buffer", init))


def parameters() -> dict[str, Tensor]:
    """The parameters that the running trace has declared so far, by full name."""
    trace = current_trace("parameters")
    return {i.name: wrap(trace, i.value) for i in trace.inputs.values() if i.kind == "parameter"}


def _declare(name: str, type_: TensorType, kind: str, init: Init) -> Tensor:
    trace = current_trace(kind)
    if not isinstance(name, str) or not name:
        raise error(f"{kind}: {name!r} cannot be a name", f'write bg.{kind}("weight", shape)')
    full = trace.qualified(name)
    return wrap(trace, trace.declare(full, type_, kind, _checked_init(full, type_, init)))


def _checked_init(name: str, type_: TensorType, init: Init) -> tuple:
    if init is None:
        return default_init(name, type_.shape)
    if isinstance(init, numbers.Real):
        init = ("constant", init)
    init = plain(init)
    if isinstance(init, tuple) and init[:1] == ("values",):
        raise error(f"{name}: 'values' are a constant's", "write bg.constant(array)")
    if wrong := init_misfit(init, type_):
        raise error(f"{name}: {wrong}")
    return init
