"""Reductions over axes and what is made of them, named as in ``torch``."""

from __future__ import annotations

from collections.abc import Sequence

from bngen.lang.tensor import Tensor, axis_of, check_tensor, reduction, same_float_type

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


def log_softmax(input: Tensor, dim: int) -> Tensor:
    """``log(softmax(input))`` along one axis, without overflow."""
    shifted = _shifted("log_softmax", input, dim)
    return shifted - reduction("sum", shifted.exp(), dim, True).log()


def softmax(input: Tensor, dim: int) -> Tensor:
    """``exp(input)`` divided by its sum along one axis, without overflow."""
    e = _shifted("softmax", input, dim).exp()
    return e / reduction("sum", e, dim, True)


def _shifted(label: str, x: Tensor, dim: int) -> Tensor:
    """``x`` less its maximum along ``dim``: a shift that the result does not depend on."""
    same_float_type(label, input=x)
    return x - reduction("amax", x, axis_of(label, x, dim), True, label=label).detach()
