"""Functions that move no data by themselves, named as in ``torch``."""

from __future__ import annotations

from collections.abc import Sequence

from bngen.lang.tensor import Tensor, axis_of, check_tensor, emit
from bngen.lang.trace import error


def cat(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """Join tensors along an axis; channels are ``dim=1``.

    Args:
        tensors: of one dtype, and of one shape but for the extent along ``dim``.
        dim: the axis.
    """
    if not isinstance(tensors, Sequence) or not tensors:
        raise error("cat: needs a list of tensors", "bg.cat([a, b], dim=1)")
    for i, x in enumerate(tensors):
        check_tensor("cat", f"tensor {i + 1}", x)
    axis = axis_of("cat", tensors[0], dim)
    if len(tensors) == 1:
        return tensors[0]
    return emit("cat", *tensors, axis=axis, hint="only the joined axis may differ in extent")


def reshape(input: Tensor, shape: Sequence[int]) -> Tensor:
    """The same elements in order, in another shape; one extent may be -1."""
    return check_tensor("reshape", "input", input).reshape(shape)


def flatten(input: Tensor, start_dim: int = 0, end_dim: int = -1) -> Tensor:
    """Join the axes from ``start_dim`` to ``end_dim`` into one."""
    return check_tensor("flatten", "input", input).flatten(start_dim, end_dim)
