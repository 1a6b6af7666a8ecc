"""Reductions over axes and what is made of them, named as in ``torch``."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from bngen.dtypes import BOOL, DTYPES, INDEX
from bngen.ir.attributes import shown
from bngen.lang.axes import axis_of, largest, reduction
from bngen.lang.emission import constant, emit
from bngen.lang.operands import rounded_once, same_float_type
from bngen.lang.pointwise import abs, bitwise_not, isfinite, isnan, logical_or, where
from bngen.lang.shapes import cat, narrow
from bngen.lang.tensor import Tensor
from bngen.lang.trace import error
from bngen.lang.traced import check_tensor
from bngen.lang.types import flag, is_scalar, real

Dims = int | Sequence[int] | None


def sum(input: Tensor, dim: Dims = None, keepdim: bool = False) -> Tensor:
    """Sum over axes, all of them by default; integers and bool add up as int64."""
    return check_tensor("sum", "input", input).sum(dim, keepdim)


def mean(input: Tensor, dim: Dims = None, keepdim: bool = False) -> Tensor:
    """Arithmetic mean over axes, all of them by default."""
    return check_tensor("mean", "input", input).mean(dim, keepdim)


def amax(input: Tensor, dim: Dims = None, keepdim: bool = False) -> Tensor:
    """Largest element over axes, all of them by default."""
    return check_tensor("amax", "input", input).amax(dim, keepdim)


def max(input: Tensor, dim: Dims = None, keepdim: bool = False) -> Tensor:
    """The same as `amax`: values only, no indices. For two tensors there is `maximum`."""
    return check_tensor("max", "input", input).max(dim, keepdim)


def amin(input: Tensor, dim: Dims = None, keepdim: bool = False) -> Tensor:
    """Smallest element over axes, all of them by default."""
    return _smallest("amin", check_tensor("amin", "input", input), dim, keepdim)


def min(input: Tensor, dim: Dims = None, keepdim: bool = False) -> Tensor:
    """The same as `amin`: values only, no indices. For two tensors there is `minimum`."""
    return _smallest("min", check_tensor("min", "input", input), dim, keepdim)


def _smallest(label: str, x: Tensor, dim: Dims, keepdim: bool) -> Tensor:
    """By an order that is reversed without loss: a sign in floats, the bits in integers."""
    if x.dtype == BOOL:
        return bitwise_not(largest(label, bitwise_not(x), dim, keepdim))
    if x.type.is_float:
        return -largest(label, -x, dim, keepdim)
    top = DTYPES[x.dtype].most if x.dtype.startswith("u") else -1
    return top - largest(label, top - x, dim, keepdim)


def prod(input: Tensor, dim: int | None = None, keepdim: bool = False) -> Tensor:
    """Product along an axis, or of all elements; integers and bool multiply as int64.

    Halves are multiplied again and again, so that the gradient needs no division: it is right where
    elements are zero.

    Args:
        input: a tensor.
        dim: the axis; without it the tensor is flattened.
        keepdim: keep the axis, of extent 1.
    """
    check_tensor("prod", "input", input)
    x = input if input.type.is_float else input.to(INDEX)
    keep = flag("prod", "keepdim", keepdim)
    if dim is None:
        x, axis, kept = x.reshape(-1), 0, (1,) * input.ndim
    elif not x.shape and dim in (0, -1):
        return x
    else:
        axis = axis_of("prod", x, dim)
        kept = tuple(1 if a == axis else extent for a, extent in enumerate(x.shape))
    while (extent := x.shape[axis]) > 1:
        half = extent // 2
        product = narrow(x, axis, 0, half) * narrow(x, axis, half, half)
        x = cat([product, narrow(x, axis, extent - 1, 1)], axis) if extent % 2 else product
    gone = () if dim is None else tuple(e for a, e in enumerate(x.shape) if a != axis)
    return x.reshape(kept if keep else gone)


def argmax(input: Tensor, dim: int | None = None, keepdim: bool = False) -> Tensor:
    """Where the largest element along an axis is, the first of equal ones; NaN is the largest.

    Args:
        input: a tensor of numbers.
        dim: the axis; without it the position is that in the flattened tensor.
        keepdim: keep the axis, of extent 1.
    """
    return _where_largest("argmax", input, dim, keepdim, lambda x, d: amax(x, d, True))


def argmin(input: Tensor, dim: int | None = None, keepdim: bool = False) -> Tensor:
    """Where the smallest element along an axis is; see `argmax`."""
    return _where_largest("argmin", input, dim, keepdim, lambda x, d: amin(x, d, True))


def _where_largest(
    label: str, x: Tensor, dim: int | None, keepdim: bool, extreme: Callable[[Tensor, int], Tensor]
) -> Tensor:
    check_tensor(label, "input", x)
    if x.dtype == BOOL:
        raise error(f"{label}: not defined for bool", "convert it with .to(bg.uint8)")
    x = x.detach()
    if not x.shape and dim in (None, 0, -1):
        return constant(0, INDEX)
    axis = 0 if dim is None else axis_of(label, x, dim)
    along = x.reshape(-1) if dim is None else x
    hit = along == extreme(along, axis)
    if x.type.is_float:
        hit = logical_or(hit, isnan(along))
    place = emit("positions", label=label, shape=along.shape, axis=axis)
    first = amin(where(hit, place, along.shape[axis]), axis, flag(label, "keepdim", keepdim))
    return first.reshape((1,) * x.ndim) if dim is None and keepdim else first


@rounded_once
def var(
    input: Tensor,
    dim: Dims | bool = None,
    unbiased: bool | None = None,
    keepdim: bool = False,
    *,
    correction: float | None = None,
) -> Tensor:
    """Mean squared distance from the mean, in two passes, so that a large mean costs no digits.

    Args:
        input: floating-point tensor.
        dim: axes, all of them by default; a bool in its place is ``unbiased``.
        unbiased: False divides by the number of elements, True by one less.
        keepdim: keep the axes, of extent 1.
        correction: what is taken from the number of elements, 1 by default.
    """
    return _moments("var", input, dim, unbiased, keepdim, correction)[0]


@rounded_once
def var_mean(
    input: Tensor,
    dim: Dims | bool = None,
    unbiased: bool | None = None,
    keepdim: bool = False,
    *,
    correction: float | None = None,
) -> tuple[Tensor, Tensor]:
    """`var`, and the mean."""
    return _moments("var_mean", input, dim, unbiased, keepdim, correction)


@rounded_once
def std(
    input: Tensor,
    dim: Dims | bool = None,
    unbiased: bool | None = None,
    keepdim: bool = False,
    *,
    correction: float | None = None,
) -> Tensor:
    """The square root of `var`; where that is 0, it has no gradient."""
    return _root(_moments("std", input, dim, unbiased, keepdim, correction)[0])


@rounded_once
def std_mean(
    input: Tensor,
    dim: Dims | bool = None,
    unbiased: bool | None = None,
    keepdim: bool = False,
    *,
    correction: float | None = None,
) -> tuple[Tensor, Tensor]:
    """`std`, and the mean."""
    square, mean = _moments("std_mean", input, dim, unbiased, keepdim, correction)
    return _root(square), mean


def _moments(
    label: str, x: Tensor, dim: Dims | bool, unbiased: bool | None, keepdim: bool,
    correction: float | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Variance and mean."""
    same_float_type(label, input=x)
    if isinstance(dim, bool):
        if unbiased is not None:
            raise error(f"{label}: unbiased is given twice")
        dim, unbiased = None, dim
    if unbiased is not None and correction is not None:
        raise error(f"{label}: takes unbiased or correction, not both")
    if correction is None:
        correction = 1 if unbiased is None else int(flag(label, "unbiased", unbiased))
    mean = reduction("mean", x, dim, True, label)
    off = x - mean.detach()  # the sum of which is 0, and with it the slope by the mean
    total = reduction("sum", off * off, dim, keepdim, label)
    count = x.numel() // mean.numel() - real(label, "correction", correction)
    square = total / (count if count > 0 else 0.0)
    return square, mean if keepdim else mean.reshape(square.shape)


def _root(x: Tensor) -> Tensor:
    """The square root of what is not negative; at 0 the slope is 0 as PyTorch has it of norms."""
    none = x == 0.0
    return where(none, 0.0, where(none, 1.0, x).sqrt())


@rounded_once
def vector_norm(input: Tensor, ord: float = 2, dim: Dims = None, keepdim: bool = False) -> Tensor:
    """A norm of the elements over axes (``torch.linalg.vector_norm``).

    Args:
        input: floating-point tensor.
        ord: 2, 1, 0 (how many are not zero), infinity or minus infinity.
        dim: axes, all of them by default.
        keepdim: keep the axes, of extent 1.
    """
    return _norm("vector_norm", input, ord, dim, keepdim)


@rounded_once
def norm(input: Tensor, p: float | str = "fro", dim: Dims = None, keepdim: bool = False) -> Tensor:
    """`vector_norm` by its older name; ``"fro"`` is the norm of order 2."""
    return _norm("norm", input, 2 if p == "fro" else p, dim, keepdim)


def _norm(label: str, x: Tensor, order: float, dim: Dims, keepdim: bool) -> Tensor:
    same_float_type(label, input=x)
    folds: dict[float, Callable[[], Tensor]] = {
        2: lambda: _root(reduction("sum", x * x, dim, keepdim, label)),
        1: lambda: reduction("sum", abs(x), dim, keepdim, label),
        0: lambda: reduction("sum", (x != 0.0).to(x.dtype), dim, keepdim, label),
        math.inf: lambda: largest(label, abs(x), dim, keepdim),
        -math.inf: lambda: _smallest(label, abs(x), dim, keepdim),
    }
    if not is_scalar(order) or order not in folds:
        raise error(f"{label}: has no order {shown(order)}", "use 2, 1, 0 or an infinity")
    return folds[order]()


@rounded_once
def normalize(input: Tensor, p: float = 2.0, dim: Dims = 1, eps: float = 1e-12) -> Tensor:
    """``input`` divided by its `vector_norm` along axes, which counts as ``eps`` at least."""
    eps = real("normalize", "eps", eps, 0)
    length = _norm("normalize", input, p, dim, True)
    return input / emit("clamp", length, label="normalize", lo=eps)


@rounded_once
def logsumexp(input: Tensor, dim: Dims, keepdim: bool = False) -> Tensor:
    """``log(exp(input).sum(dim))`` without overflow."""
    same_float_type("logsumexp", input=input)
    top = reduction("amax", input, dim, True, label="logsumexp").detach()
    top = where(isfinite(top), top, 0.0)
    total = reduction("sum", (input - top).exp(), dim, keepdim, label="logsumexp").log()
    return total + top.reshape(total.shape)


@rounded_once
def log_softmax(input: Tensor, dim: int) -> Tensor:
    """``log(softmax(input))`` along one axis, without overflow."""
    shifted = _shifted("log_softmax", input, dim)
    return shifted - reduction("sum", shifted.exp(), dim, True).log()


@rounded_once
def softmax(input: Tensor, dim: int) -> Tensor:
    """``exp(input)`` divided by its sum along one axis, without overflow."""
    e = _shifted("softmax", input, dim).exp()
    return e / reduction("sum", e, dim, True)


def _shifted(label: str, x: Tensor, dim: int) -> Tensor:
    """``x`` less its maximum along ``dim``: a shift that the result does not depend on."""
    same_float_type(label, input=x)
    return x - reduction("amax", x, axis_of(label, x, dim), True, label=label).detach()
