"""What a row of the op table is, and the shape rules and meanings that families share.

A shape rule takes operand types (None for a missing operand) and attributes and gives result types;
a meaning takes arrays and gives arrays, in whatever float type they have.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import bngen.arrays  # noqa: F401 - NumPy knows all element types
from bngen.dtypes import BOOL, meet
from bngen.ir.attributes import Kind, type_misfit
from bngen.ir.types import Attrs, TensorType

Types = Sequence[TensorType | None]
Arrays = Sequence[np.ndarray | None]
Infer = Callable[[Types, Attrs], tuple[TensorType, ...]]
Evaluate = Callable[[Arrays, Attrs], tuple[np.ndarray, ...]]
Across = Callable[[Sequence[Arrays], Attrs], Sequence[tuple[np.ndarray, ...]]]


class ShapeError(ValueError):
    """Operands that an op cannot take; the message names shapes and what would fit."""


@dataclass(frozen=True)
class OpDef:
    """One row of the table. What a pass or a lowering must know of an op is a facet of its row.

    Attributes:
        name: as written in the text form.
        kind: see the package's table.
        operands: operand names; a trailing ``?`` marks one that may be missing.
        infer: (operand types, attributes) -> result types; raises `ShapeError`.
        evaluate: (operand arrays, attributes) -> result arrays.
        defaults: attribute names and default values; ``...`` marks a required one.
        kinds: what an attribute may be where this op has its own form of it.
        results: what several results are called, after the op's own name.
        channel: operands that are vectors along axis 1 of the first operand.
        variadic: whether the last operand repeats.
        takes: element types of the operands: ``any``; ``number``, which is all but bool; ``float``,
            one floating-point type for all of them.
        rounds: results are computed, and rounded to their type: operands that are only stored are
            converted first. Else each element is an operand's, perhaps negated, or a number.
        accumulates: sums of products, in the accumulator of the operands' type, which results have.
        autocast: what becomes of an op that rounds in mixed precision, see `bngen.passes.autocast`:
            ``narrows`` its operands, or ``follows`` them; others are computed in full.
        finishes: adds to sums of products what belongs to them, before they are rounded.
        wraps: in integers, results are taken modulo the range.
        relation: of a comparison: its sign.
        literal: the result is the number in attribute ``value``.
        random: draws numbers; draws of one ``stream`` are the same.
        identity: each element of the result is one of the operand's, in the operand's type.
        converts: the operand in another element type.
        new_axis: an axis of the result that the operand does not have.
        class_numbers: the operand holds numbers below attribute ``classes``.
        moves: of an op that computes nothing: ``joins`` its operands along ``axis``, ``cuts`` its
            operand along it, ``reshapes`` or ``copies`` it.
        gathers: of a pointwise op: each element of the result is one of the operand's, from another
            place, or a number.
        combine: for ``reduce``: how two partial results join (``sum``, ``max``, ``moments``).
        averages: for ``reduce``: what was summed is divided by the number of summands.
        exact: of a partial reduction: sums in the element type's ``exact`` one, as a rounded sum
            and the rest.
        merges: folds partial results ``[row_groups, C]`` over the groups, or over each image's.
        direction: of a convolution: ``forward``, or which gradient it is (``input``, ``weight``).
        store_slot: results are final where they are stored, so that what is made of them can be
            computed there. Of a weight's gradient they are so only after the last pixel; copies
            and views have nests of their own.
        statistics: of an op whose last two results are a mean and a variance: those of the
            ``batch``, or ``running`` ones.
        across: of a collective: (operand arrays of each rank, attributes) -> result arrays of each.
        deferrable: an affine part of a gradient, which whoever reads it next may apply.
        sublayer: whether the names of kernels tell of it.
    """

    name: str
    kind: str
    operands: tuple[str, ...]
    infer: Infer
    evaluate: Evaluate
    defaults: dict[str, Any] = field(default_factory=dict)
    kinds: dict[str, Kind] = field(default_factory=dict)
    results: tuple[str, ...] = ()
    channel: tuple[str, ...] = ()
    variadic: bool = False
    takes: str = "any"
    rounds: bool = True
    accumulates: bool = False
    autocast: str = ""
    finishes: bool = False
    wraps: bool = False
    relation: str = ""
    literal: bool = False
    random: bool = False
    identity: bool = False
    converts: bool = False
    new_axis: int | None = None
    class_numbers: bool = False
    moves: str = ""
    gathers: bool = False
    combine: str = ""
    averages: bool = False
    exact: bool = False
    merges: bool = False
    direction: str = ""
    store_slot: bool = True
    statistics: str = ""
    across: Across | None = None
    deferrable: bool = False
    sublayer: bool = True

    @property
    def roles(self) -> tuple[str, ...]:
        """Operand names, without the mark of those that may be missing."""
        return tuple(name.rstrip("?") for name in self.operands)

    @property
    def is_partial(self) -> bool:
        """Whether it reduces the pixels of each group of rows: a store loop can hold it."""
        return "row_groups" in self.defaults

    @property
    def is_free(self) -> bool:
        """Whether its results never deserve memory: numbers, and elements that are elsewhere."""
        return self.literal or self.identity


# --- types and shapes -----------------------------------------------------------------------------


def broadcast_shapes(shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """NumPy's broadcasting rule, for extents of any size; raises `ShapeError` naming the shapes."""
    rank = max(map(len, shapes))
    columns = zip(*((1,) * (rank - len(s)) + tuple(s) for s in shapes), strict=True)
    extents = [{e for e in column if e != 1} for column in columns]
    if any(len(e) > 1 for e in extents):
        listed = " and ".join(str(list(s)) for s in shapes)
        raise ShapeError(f"shapes {listed} do not broadcast")
    return tuple(e.pop() if e else 1 for e in extents)


def promote(types: Types) -> str:
    """PyTorch's promotion: float beats integer beats bool; within each, ranked beats scalar.

    So a scalar takes the type of the tensor it meets, unless it is of a higher category.
    """
    given = [t for t in types if t is not None]
    return meet(([t.dtype for t in given if t.shape], [t.dtype for t in given if not t.shape]))


def widens(row: OpDef, types: Types) -> bool:
    """Whether an op computes, and an operand is of a type that nothing is computed in."""
    stored = any(t is not None and t.element.stored_only for t in types)
    return stored and row.rounds and not row.accumulates


def check_dtypes(row: OpDef, types: Types) -> None:
    """Raise `ShapeError` where an op has no meaning for what its operands hold."""
    given = [t for t in types if t is not None]
    if row.takes == "number" and given and promote(given) == BOOL:
        raise ShapeError(f"not defined for bool, got {given[0]}")
    if row.takes == "float":
        for t in given:
            if not t.is_float:
                raise ShapeError(f"needs floating-point tensors, got {t}")
            if t.dtype != given[0].dtype:
                raise ShapeError(f"needs one floating-point type, got {given[0]} and {t}")


def check_widened(row: OpDef, types: Types) -> None:
    """Raise `ShapeError` where an op would compute in a type that is only stored."""
    if widens(row, types):
        stored = next(t for t in types if t is not None and t.element.stored_only)
        raise ShapeError(f"computes in {stored.element.computed}: {stored} must be cast first")


def infer_pointwise(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    """Broadcast shapes, promoted types."""
    shape = broadcast_shapes([t.shape for t in types if t is not None])
    return (TensorType(shape, promote(types)),)


def infer_float(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    """The same, and a floating-point type."""
    (result,) = infer_pointwise(types, attrs)
    if result.is_float:
        return (result,)
    raise ShapeError(f"needs a floating-point tensor, got {result}")


def alike(types: Types) -> None:
    """Raise unless all operands that are there have one shape."""
    present = [t for t in types if t is not None]
    if any(t.shape != present[0].shape for t in present):
        raise ShapeError(f"needs operands of one shape, got {', '.join(map(str, present))}")


def check_channels(types: Types, maps: int = 1) -> None:
    """Raise unless ``maps`` tensors of one shape come first, then vectors along their axis 1."""
    x = types[0]
    if len(x.shape) < 2:
        raise ShapeError(f"needs a channel axis (rank 2 or more), got {x}")
    alike(types[:maps])
    for t in types[maps:]:
        if t is not None and t.shape != (x.shape[1],):
            raise ShapeError(f"per-channel operand must have shape [{x.shape[1]}], got {t}")


def infer_first(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    """Result like the first operand; the others are vectors along axis 1 (``channel``)."""
    check_channels(types)
    return (types[0],)


def infer_first_of_two(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    """The same, where the second operand is a map like the first."""
    check_channels(types, 2)
    return (types[0],)


def infer_gradient(dy: TensorType, forward: TensorType, attrs: Attrs) -> tuple[TensorType, ...]:
    """A gradient of ``shape``, if ``dy`` is like the result that the op has on it."""
    if dy != forward:
        shape = list(attrs["shape"])
        raise ShapeError(f"on {shape} the op gives {forward}, so dy must be like it, got {dy}")
    return (TensorType(attrs["shape"], dy.dtype),)


def check_padded(x: TensorType) -> None:
    """Raise when an operand with its padding is no tensor any more."""
    if wrong := type_misfit(x):
        raise ShapeError(f"padding {wrong}")


# --- meanings -------------------------------------------------------------------------------------


def promoted(arrays: Arrays) -> list[np.ndarray]:
    """The operands in the type that `promote` gives, so that no scalar widens what it meets."""
    dtype = promote([TensorType(a.shape, a.dtype.name) for a in arrays])
    return [a.astype(dtype, copy=False) for a in arrays]


def along_channel(v: np.ndarray, rank: int) -> np.ndarray:
    """A vector ``[C]`` shaped to broadcast along axis 1 of a tensor of the given rank."""
    return v.reshape(1, -1, *(1,) * (rank - 2))


def pixel_axes(x: np.ndarray) -> tuple[int, ...]:
    """All axes but the channels'."""
    return (0, *range(2, x.ndim))


def windows(x, kernel, stride, dilation):
    """View ``[N,C,OH,OW,R,S]`` of an already padded ``[N,C,H,W]``."""
    span = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    view = np.lib.stride_tricks.sliding_window_view(x, span, axis=(2, 3))
    return view[:, :, :: stride[0], :: stride[1], :: dilation[0], :: dilation[1]]


def pad_hw(x, padding, value=0.0):
    """``[N,C,H,W]`` with ``value`` on its (top, bottom, left, right)."""
    t, b, le, r = padding
    return np.pad(x, ((0, 0), (0, 0), (t, b), (le, r)), constant_values=value)


def unary(fn: Callable[[np.ndarray], np.ndarray]) -> Evaluate:
    """The meaning of an op of one operand and no attributes."""
    return lambda arrays, attrs: (fn(arrays[0]),)


def pointwise(
    name: str,
    operands: tuple[str, ...],
    evaluate: Evaluate,
    infer: Infer = infer_pointwise,
    **facets: Any,
) -> OpDef:
    """A row of the kind ``pointwise``."""
    return OpDef(name, "pointwise", operands, infer, evaluate, **facets)
