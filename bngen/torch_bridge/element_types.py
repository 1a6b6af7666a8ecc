"""PyTorch's tensors as bngen's types, or why there is none; and as NumPy's arrays.

In: a tensor, fake or real. Out: its `TensorType`. Arrays are copies: NumPy and PyTorch do not hand
each other what only one of them has a type for.
"""

from __future__ import annotations

import numpy as np
import torch

from bngen.dtypes import DTYPES
from bngen.ir.types import TensorType

_NAMES = {getattr(torch, row.torch): row.name for row in DTYPES.values()}


class UnsupportedError(Exception):
    """A call that bngen's language has no words for; the message is the reason."""


def dtype_of(dtype: torch.dtype) -> str:
    """An element type's name in bngen.

    Raises:
        UnsupportedError: for one that bngen does not have.
    """
    if dtype not in _NAMES:
        raise UnsupportedError(f"bngen has no {dtype}")
    return _NAMES[dtype]


def type_of(value: torch.Tensor) -> TensorType:
    """A tensor's type in bngen.

    Raises:
        UnsupportedError: for a tensor that bngen has no type for, or that is on another device.
    """
    if type(value) not in (torch.Tensor, torch.nn.Parameter) and not _is_fake(value):
        raise UnsupportedError(f"a {type(value).__name__}")
    if value.device.type != "cpu":
        raise UnsupportedError(f"a tensor on {value.device}")
    if value.layout != torch.strided or value.is_quantized or value.is_nested:
        raise UnsupportedError(f"a {value.layout} tensor")
    if not all(isinstance(s, int) and s > 0 for s in value.shape):
        raise UnsupportedError(f"a tensor of shape {list(value.shape)}")
    return TensorType(tuple(value.shape), dtype_of(value.dtype))


def tensor_of(array: np.ndarray) -> torch.Tensor:
    """An array's numbers as a tensor of the same element type, in memory of its own."""
    row = DTYPES[array.dtype.name]
    return torch.tensor(array.astype(row.computed)).to(getattr(torch, row.torch))


def array_of(tensor: torch.Tensor) -> np.ndarray:
    """A tensor's numbers as an array of the same element type."""
    row = DTYPES[dtype_of(tensor.dtype)]
    return tensor.to(getattr(torch, row.computed)).numpy().astype(row.numpy, copy=False)


def _is_fake(value: object) -> bool:
    return isinstance(value, torch._subclasses.FakeTensor)
