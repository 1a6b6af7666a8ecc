"""Ops of bngen that are no single call of PyTorch, or one with other arguments: spelled out.

In: tensors in the order of the op's operands, None for one that is missing, and the op's
attributes. Out: a tensor, or a tuple of them. Everything is differentiable by PyTorch's autograd
that has a gradient in bngen; gradients themselves are autograd's own wherever it has them, so that
nothing here repeats a rule of bngen's. What belongs to which op is said in `ops`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bngen.dtypes import DTYPES
from bngen.ir.ops import op_def
from bngen.ir.ops.gather import FILLED, indices_of
from bngen.ir.ops.reduce import normalize_axes

Tensors = Sequence[Tensor | None]
Attributes = Mapping[str, Any]
Meaning = Callable[[Tensors, Attributes], Tensor | tuple[Tensor, ...]]


def spread(function: Callable[..., Tensor]) -> Meaning:
    """The meaning of an op whose operands are the arguments of a function, in order."""
    return lambda tensors, attrs: function(*tensors)


def along_channel(vector: Tensor, x: Tensor) -> Tensor:
    """A vector ``[C]`` shaped to broadcast along axis 1 of ``x``."""
    return vector.reshape(1, -1, *(1,) * (x.ndim - 2))


def _pullback(function: Callable[[Tensor], Tensor], primal: Tensor, cotangent: Tensor) -> Tensor:
    """The vector-Jacobian product of ``function`` by autograd."""
    primal = primal.detach().requires_grad_()
    with torch.enable_grad():
        return torch.autograd.grad(function(primal), primal, cotangent)[0]


def _blank(a: Attributes, like: Tensor) -> Tensor:
    return torch.zeros(a["shape"], dtype=like.dtype)


# --- numbers, movement, reductions --------------------------------------------------------------


def constant(t: Tensors, a: Attributes) -> Tensor:
    """A number, floats in double precision: rounded to float32, 0.1 would be another one there."""
    return torch.tensor(a["value"], dtype=getattr(torch, DTYPES[DTYPES[a["dtype"]].exact].torch))


def random_uniform(t: Tensors, a: Attributes) -> Tensor:
    """Random numbers as bngen's own table defines them: no library shares them."""
    (numbers,) = op_def("random_uniform").evaluate([t[0].numpy()], a)
    return torch.from_numpy(numbers)


def positions(t: Tensors, a: Attributes) -> Tensor:
    """Where each element lies along an axis."""
    extent, after = a["shape"][a["axis"]], len(a["shape"]) - a["axis"] - 1
    return torch.arange(extent).reshape(-1, *(1,) * after).broadcast_to(a["shape"])


def one_hot(t: Tensors, a: Attributes) -> Tensor:
    """Classes along axis 1; a label that is no class has none, where `F.one_hot` would refuse."""
    (labels,) = t
    classes = torch.arange(a["classes"]).reshape(-1, *(1,) * (labels.ndim - 1))
    return labels.unsqueeze(1) == classes


def bias_add(t: Tensors, a: Attributes) -> Tensor:
    """``x + bias``, the bias along the channels."""
    return t[0] + along_channel(t[1], t[0])


def channel_scale(t: Tensors, a: Attributes) -> Tensor:
    """``x * scale``, the scale along the channels."""
    return t[0] * along_channel(t[1], t[0])


def slice_(t: Tensors, a: Attributes) -> Tensor:
    """A range of one axis."""
    return t[0].narrow(a["axis"], a["start"], a["stop"] - a["start"])


def gather(t: Tensors, a: Attributes) -> Tensor:
    """Elements of one axis by their numbers, and the number where there is none."""
    (x,) = t
    indices = torch.tensor(indices_of(a))
    taken = x.index_select(a["axis"], indices.clamp(min=0))
    filled = (indices == FILLED).reshape(-1, *(1,) * (x.ndim - 1 - a["axis"]))
    return taken.masked_fill(filled, a["fill"])


def rearrange(t: Tensors, a: Attributes) -> Tensor:
    """Factors of the axes in another order."""
    return t[0].reshape(a["split"]).permute(a["order"]).reshape(a["shape"])


def matmul(t: Tensors, a: Attributes) -> Tensor:
    """A product of two matrices, either of them transposed."""
    left, right = t
    return (left.T if a["trans_a"] else left) @ (right.T if a["trans_b"] else right)


def reduction(function: Callable[..., Tensor]) -> Meaning:
    """A fold over axes; PyTorch takes an empty list of them to mean all."""

    def meaning(t: Tensors, a: Attributes) -> Tensor:
        axes = normalize_axes(a["axes"], t[0].ndim)
        return function(t[0], dim=axes, keepdim=a["keepdims"]) if axes else t[0]

    return meaning


# --- convolutions and pools ---------------------------------------------------------------------


def conv2d(t: Tensors, a: Attributes) -> Tensor:
    """PyTorch's convolution; unequal padding, which it does not take, is made before."""
    x, weight = t
    top, bottom, left, right = a["padding"]
    even = top == bottom and left == right
    x = x if even else F.pad(x, (left, right, top, bottom))
    padding = (top, left) if even else 0
    return F.conv2d(x, weight, None, a["stride"], padding, a["dilation"], a["groups"])


def conv2d_grad_input(t: Tensors, a: Attributes) -> Tensor:
    """PyTorch's transposed convolution, less the padding; what no window reads is 0."""
    dy, weight = t
    whole = F.conv_transpose2d(dy, weight, None, a["stride"], 0, 0, a["groups"], a["dilation"])
    (top, _, left, _), (h, w) = a["padding"], a["shape"][2:]
    below, right = h + top - whole.shape[2], w + left - whole.shape[3]
    return F.pad(whole, (-left, right, -top, below))


def conv2d_grad_weight(t: Tensors, a: Attributes) -> Tensor:
    """Autograd's gradient of `conv2d` by its weight."""
    x, dy = t
    return _pullback(lambda weight: conv2d((x, weight), a), _blank(a, dy), dy)


def max_pool2d(t: Tensors, a: Attributes) -> tuple[Tensor, Tensor]:
    """Maxima, and which tap of its window each is: PyTorch says which element of the map."""
    (x,) = t
    y, element = F.max_pool2d(
        x, a["kernel"], a["stride"], a["padding"], a["dilation"], a["ceil_mode"],
        return_indices=True,
    )  # fmt: skip
    rows, columns = element // x.shape[3], element % x.shape[3]
    tops, lefts = _window_origins(y.shape, a)
    taps = (rows - tops) // a["dilation"][0] * a["kernel"][1]
    return y, taps + (columns - lefts) // a["dilation"][1]


def _window_origins(shape: Sequence[int], a: Attributes) -> tuple[Tensor, Tensor]:
    tops, lefts = (torch.arange(shape[2 + i]) * a["stride"][i] - a["padding"][i] for i in range(2))
    return tops[:, None], lefts[None, :]


def max_pool2d_grad(t: Tensors, a: Attributes) -> Tensor:
    """Each element of ``dy`` added to where its window's maximum was."""
    dy, taps = t[0], t[1].long()
    tops, lefts = _window_origins(dy.shape, a)
    rows = tops + taps // a["kernel"][1] * a["dilation"][0]
    columns = lefts + taps % a["kernel"][1] * a["dilation"][1]
    elements = (rows * a["shape"][3] + columns).flatten(2)
    dx = _blank(a, dy)
    return dx.flatten(2).scatter_add(2, elements, dy.flatten(2)).reshape(dx.shape)


def avg_pool2d(t: Tensors, a: Attributes) -> Tensor:
    """PyTorch's average pool."""
    sizes = (a["kernel"], a["stride"], a["padding"])
    return F.avg_pool2d(t[0], *sizes, a["ceil_mode"], a["count_include_pad"], a["divisor"] or None)


def avg_pool2d_grad(t: Tensors, a: Attributes) -> Tensor:
    """Autograd's."""
    return _pullback(lambda x: avg_pool2d((x,), a), _blank(a, t[0]), t[0])


def adaptive_avg_pool2d(t: Tensors, a: Attributes) -> Tensor:
    """PyTorch's adaptive pool."""
    return F.adaptive_avg_pool2d(t[0], a["output_size"])


def adaptive_avg_pool2d_grad(t: Tensors, a: Attributes) -> Tensor:
    """Autograd's."""
    return _pullback(lambda x: adaptive_avg_pool2d((x,), a), _blank(a, t[0]), t[0])


def resize_nearest(t: Tensors, a: Attributes) -> Tensor:
    """PyTorch's, whose scale is the other way round."""
    (x,) = t
    sizes, scales = a["output_size"], [1 / s if s else None for s in a["scale"]]
    name = "_upsample_nearest_exact2d" if a["centred"] else "upsample_nearest2d"
    floats = x if x.is_floating_point() else x.double()
    return getattr(torch.ops.aten, name)(floats, sizes, *scales).to(x.dtype)


def resize_nearest_grad(t: Tensors, a: Attributes) -> Tensor:
    """Autograd's."""
    return _pullback(lambda x: resize_nearest((x,), a), _blank(a, t[0]), t[0])


def resize_bilinear(t: Tensors, a: Attributes) -> Tensor:
    """PyTorch's."""
    return _mixture(torch.ops.aten.upsample_bilinear2d, t[0], a)


def resize_bilinear_grad(t: Tensors, a: Attributes) -> Tensor:
    """Autograd's."""
    return _pullback(lambda x: resize_bilinear((x,), a), _blank(a, t[0]), t[0])


def resize_bicubic(t: Tensors, a: Attributes) -> Tensor:
    """PyTorch's."""
    return _mixture(torch.ops.aten.upsample_bicubic2d, t[0], a)


def resize_bicubic_grad(t: Tensors, a: Attributes) -> Tensor:
    """Autograd's."""
    return _pullback(lambda x: resize_bicubic((x,), a), _blank(a, t[0]), t[0])


def _mixture(function: Callable[..., Tensor], x: Tensor, a: Attributes) -> Tensor:
    """A function that is told the scale only where corners are not aligned."""
    aligned = a["align_corners"]
    scales = [None if aligned or not s else 1 / s for s in a["scale"]]
    return function(x, a["output_size"], aligned, *scales)


# --- parts of a reduction, one a group of rows --------------------------------------------------


def rows(x: Tensor, a: Attributes) -> Tensor:
    """``[row_groups, rows * columns of a group, C]``."""
    return torch.movedim(x, 1, -1).reshape(a["row_groups"], -1, x.shape[1])


def partial_sum(t: Tensors, a: Attributes) -> Tensor:
    """The sum of each group and channel."""
    return rows(t[0], a).sum(1)


def sum_groups(t: Tensors, a: Attributes) -> Tensor:
    """The sum of each image's groups."""
    return t[0].reshape(a["images"], -1, t[0].shape[1]).sum(1)


def max_groups(t: Tensors, a: Attributes) -> Tensor:
    """The largest of each image's groups."""
    return t[0].reshape(a["images"], -1, t[0].shape[1]).amax(1)


def partial_max(t: Tensors, a: Attributes) -> Tensor:
    """The largest element of each group and channel."""
    return rows(t[0], a).amax(1)
