"""THE PyTorch table: one row an op of bngen, what it means in PyTorch, and how PyTorch writes it.

In: nothing. Out: `TORCH_OPS`, and for the other direction `SPELLINGS` and `spelling_of`.

A row's *meaning* is a second, independent definition of the op: eager tensors in, eager tensors
out, in whatever element type they have, differentiable where the op is. `reference` evaluates whole
graphs by it, for `bngen verify` and for the tests.

A row's *spellings* are the calls in a PyTorch program that the op answers, as they stand in a graph
that ``torch.compile`` or ``torch.fx`` captured: functions, methods of a tensor, modules. Each names
the function of bngen's language to call instead. That takes PyTorch's arguments by PyTorch's
parameter names and refuses what it cannot do, with a reason; parameters that it lacks may only have
the value given here. A module is its function, called with those parameters that are attributes of
the module. Several ops together answer what `COMPOSED` lists.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from bngen.torch_bridge import meanings as m
from bngen.torch_bridge import normalization as bn
from bngen.torch_bridge.activations import ACTIVATIONS, COMPOSED_ACTIVATIONS
from bngen.torch_bridge.meanings import reduction, spread
from bngen.torch_bridge.spellings import OUT, Spelling, TorchOp
from bngen.torch_bridge.spellings import call_of as _call
from bngen.torch_bridge.spellings import row_of as _row

_SOFTMAX = {"dtype": None, "_stacklevel": 3}
_GRADIENT = "a gradient, which PyTorch leaves to autograd"
_PART = "a part of batch normalization that only bngen's passes make"
_GROUPS = "a reduction's part, which only bngen's passes make"

_TABLE = (
    # element by element
    _call("add", torch.add, operator.add),
    _call("sub", torch.sub, operator.sub, torch.subtract, methods=("subtract",)),
    _call("mul", torch.mul, operator.mul, torch.multiply, methods=("multiply",)),
    _call("div", torch.div, operator.truediv, torch.true_divide, methods=("true_divide",),
          rounding_mode=None),
    _call("fmod", torch.fmod),
    _call("maximum", torch.maximum),
    _call("minimum", torch.minimum),
    _call("pow", torch.pow, operator.pow),
    _call("greater", torch.gt, operator.gt, torch.greater, methods=("gt",)),
    _call("greater_equal", torch.ge, operator.ge, torch.greater_equal, methods=("ge",)),
    _call("less", torch.lt, operator.lt, torch.less, methods=("lt",)),
    _call("less_equal", torch.le, operator.le, torch.less_equal, methods=("le",)),
    _row("equal", spread(torch.eq), Spelling("equal", (torch.eq, operator.eq), ("eq",), only=OUT)),
    _call("not_equal", torch.ne, operator.ne, torch.not_equal, methods=("ne",)),
    _call("exp", torch.exp),
    _call("expm1", torch.expm1),
    _call("log", torch.log),
    _call("log1p", torch.log1p),
    _call("erf", torch.erf, torch.special.erf),
    _call("sin", torch.sin),
    _call("cos", torch.cos),
    _call("floor", torch.floor),
    _call("ceil", torch.ceil),
    _call("round", torch.round, decimals=0),
    _call("sign", torch.sign),
    _call("sqrt", torch.sqrt),
    _call("rsqrt", torch.rsqrt),
    _call("tanh", torch.tanh, F.tanh, modules=(nn.Tanh,)),
    _call("sigmoid", torch.sigmoid, F.sigmoid, modules=(nn.Sigmoid,)),
    _call("neg", torch.neg, operator.neg, torch.negative, methods=("negative",)),
    _call("abs", torch.abs, operator.abs, torch.absolute, methods=("absolute",)),
    *ACTIVATIONS,
    _row("where", spread(torch.where), Spelling("where", (torch.where,), only=OUT)),
    # The results of an op are brought to its declared type: that is the conversion.
    _row(
        "cast", spread(lambda x: x),
        Spelling("Tensor.to", methods=("to",),
                 only={"non_blocking": False, "copy": False,
                       "memory_format": torch.preserve_format}),
        Spelling("Tensor.float", methods=("float",), only={"memory_format": torch.preserve_format}),
    ),
    _row("copy", spread(torch.clone), why_not="made by layout and memory planning alone"),
    _row(
        "stop_gradient", spread(torch.detach),
        Spelling("detach", (torch.detach,), ("detach",)),
    ),
    _row("constant", m.constant, why_not="a number in PyTorch's program is no call"),
    _row("broadcast_to", lambda t, a: torch.broadcast_to(t[0], a["shape"]),
         Spelling("expand", (torch.broadcast_to,), ("expand",), only={"implicit": False})),
    _row("random_uniform", m.random_uniform,
         why_not="PyTorch's generators draw other numbers: what is random stays in PyTorch"),
    _row("positions", m.positions, why_not="torch.arange, where it is no constant of the graph"),
    _row("one_hot", m.one_hot,
         why_not="F.one_hot has its classes last, and refuses labels that are no class"),
    _row("bias_add", m.bias_add, why_not="a convolution's bias; PyTorch has no call for it alone"),
    # batch normalization
    _row(
        "batch_norm", bn.batch_norm,
        Spelling("batch_norm", (F.batch_norm,),
                 modules=(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)),
    ),
    _row("bn_normalize", bn.bn_normalize,
         why_not="F.batch_norm in evaluation, which the language's batch_norm answers"),
    _row("bn_update", bn.bn_update,
         why_not="a side effect of F.batch_norm, which the language's batch_norm answers"),
    _row("bn_stats", bn.bn_stats, why_not=_PART),
    _row("bn_mean", bn.bn_mean, why_not=_PART),
    _row("bn_var", bn.bn_var, why_not=_PART),
    _row("bn_scale", bn.bn_scale, why_not=_PART),
    _row("bn_apply", bn.bn_apply, why_not=_PART),
    _row("channel_scale", m.channel_scale, why_not=_PART),
    _row("bn_partial_stats", bn.bn_partial_stats, why_not=_PART),
    _row("bn_merge_stats", bn.bn_merge_stats, why_not=_PART),
    _row("bn_partial_mean", bn.bn_partial_mean, why_not=_PART),
    _row("bn_merge_mean", bn.bn_merge_mean, why_not=_PART),
    _row("bn_partial_var", bn.bn_partial_var, why_not=_PART),
    _row("batch_norm_grad", bn.batch_norm_grad, why_not=_GRADIENT),
    _row("bn_grad_input", bn.bn_grad_input, why_not=_GRADIENT),
    _row("bn_grad_direct", bn.bn_grad_direct, why_not=_GRADIENT),
    _row("bn_grad_affine", bn.bn_grad_affine, why_not=_GRADIENT),
    _row("bn_grad_apply", bn.bn_grad_apply, why_not=_GRADIENT),
    _row("bn_grad_sums", bn.bn_grad_sums, why_not=_GRADIENT),
    _row("bn_grad_partial_sums", bn.bn_grad_partial_sums, why_not=_GRADIENT),
    # several processes
    _row("all_reduce", bn.all_reduce,
         why_not="torch.distributed's functions work on tensors that have values, in place"),
    _row("bn_all_stats", bn.bn_all_stats, why_not=_PART),
    _row(
        "sync_batch_norm", bn.sync_batch_norm,
        why_not="nn.SyncBatchNorm refuses CPUs; bngen's own takes its place",
    ),
    _row("sync_batch_norm_grad", bn.sync_batch_norm_grad, why_not=_GRADIENT),
    # reductions
    _row("sum", reduction(torch.sum),
         Spelling("sum", (torch.sum,), ("sum",), only={"dtype": None, **OUT})),
    _row("mean", reduction(torch.mean),
         Spelling("mean", (torch.mean,), ("mean",), only={"dtype": None, **OUT})),
    _row("amax", reduction(torch.amax), Spelling("amax", (torch.amax,), ("amax",), only=OUT)),
    _row("partial_sum", m.partial_sum, why_not=_GROUPS),
    _row("partial_max", m.partial_max, why_not=_GROUPS),
    _row("sum_groups", m.sum_groups, why_not=_GROUPS),
    _row("max_groups", m.max_groups, why_not=_GROUPS),
    # sums of products, and windows
    _row("conv2d", m.conv2d, Spelling("conv2d", (F.conv2d,), modules=(nn.Conv2d,),
                                      only={"padding_mode": "zeros"})),
    _row(
        "conv2d_grad_input", m.conv2d_grad_input,
        Spelling("conv_transpose2d", (F.conv_transpose2d,), modules=(nn.ConvTranspose2d,),
                 only={"padding_mode": "zeros"}),
    ),
    _row("conv2d_grad_weight", m.conv2d_grad_weight, why_not=_GRADIENT),
    _row(
        "matmul", m.matmul,
        Spelling("matmul", (torch.matmul, operator.matmul), ("matmul",), only=OUT),
    ),
    _row(
        "max_pool2d", m.max_pool2d,
        Spelling("max_pool2d", (F.max_pool2d, torch.max_pool2d), modules=(nn.MaxPool2d,),
                 only={"return_indices": False}),
    ),
    _row("max_pool2d_grad", m.max_pool2d_grad, why_not=_GRADIENT),
    _row("avg_pool2d", m.avg_pool2d,
         Spelling("avg_pool2d", (F.avg_pool2d,), modules=(nn.AvgPool2d,))),
    _row("avg_pool2d_grad", m.avg_pool2d_grad, why_not=_GRADIENT),
    _row(
        "adaptive_avg_pool2d", m.adaptive_avg_pool2d,
        Spelling("adaptive_avg_pool2d", (F.adaptive_avg_pool2d,), modules=(nn.AdaptiveAvgPool2d,)),
    ),
    _row("adaptive_avg_pool2d_grad", m.adaptive_avg_pool2d_grad, why_not=_GRADIENT),
    # views
    _row("cat", lambda t, a: torch.cat(tuple(t), a["axis"]),
         Spelling("cat", (torch.cat, torch.concat), only=OUT),
         Spelling("stack", (torch.stack,), only=OUT)),
    _row(
        "slice", m.slice_,
        Spelling("Tensor.__getitem__", (operator.getitem,)),
        Spelling("narrow", (torch.narrow,), ("narrow",)),
        Spelling("split", (torch.split,), ("split",)),
        Spelling("chunk", (torch.chunk,), ("chunk",)),
        Spelling("unbind", (torch.unbind,), ("unbind",)),
    ),
    # index maps
    _row(
        "gather", m.gather,
        Spelling("pad", (F.pad, torch._C._nn.pad)),
        Spelling("flip", (torch.flip,), ("flip",)),
        Spelling("roll", (torch.roll,), ("roll",)),
        Spelling("repeat", methods=("repeat",)),
    ),
    _row(
        "rearrange", m.rearrange,
        Spelling("permute", (torch.permute,), ("permute",)),
        Spelling("transpose", (torch.transpose,), ("transpose",)),
        Spelling("swapaxes", (torch.swapaxes,), ("swapaxes",)),
        Spelling("swapdims", (torch.swapdims,), ("swapdims",)),
        Spelling("movedim", (torch.movedim, torch.moveaxis), ("movedim", "moveaxis")),
        Spelling("t", (torch.t,), ("t",)),
        Spelling("channel_shuffle", (F.channel_shuffle,), modules=(nn.ChannelShuffle,)),
        Spelling("pixel_shuffle", (F.pixel_shuffle,), modules=(nn.PixelShuffle,)),
        Spelling("pixel_unshuffle", (F.pixel_unshuffle,), modules=(nn.PixelUnshuffle,)),
    ),
    _row("resize_nearest", m.resize_nearest,
         Spelling("interpolate", (F.interpolate,), modules=(nn.Upsample,))),
    _row("resize_nearest_grad", m.resize_nearest_grad, why_not=_GRADIENT),
    _row("resize_bilinear", m.resize_bilinear,
         why_not="F.interpolate of another mode, which the language's interpolate answers"),
    _row("resize_bilinear_grad", m.resize_bilinear_grad, why_not=_GRADIENT),
    _row("resize_bicubic", m.resize_bicubic,
         why_not="F.interpolate of another mode, which the language's interpolate answers"),
    _row("resize_bicubic_grad", m.resize_bicubic_grad, why_not=_GRADIENT),
    _row(
        "reshape", lambda t, a: t[0].reshape(a["shape"]),
        Spelling("reshape", (torch.reshape,), ("reshape", "view")),
        Spelling("flatten", (torch.flatten,), ("flatten",), (nn.Flatten,)),
        Spelling("unflatten", (torch.unflatten,), ("unflatten",)),
        Spelling("squeeze", (torch.squeeze,), ("squeeze",)),
        Spelling("unsqueeze", (torch.unsqueeze,), ("unsqueeze",)),
    ),
)  # fmt: skip

TORCH_OPS: Mapping[str, TorchOp] = {row.op: row for row in _TABLE}

_REDUCED = {"size_average": None, "reduce": None}

COMPOSED = (
    *COMPOSED_ACTIVATIONS,
    Spelling("addcmul", (torch.addcmul,), ("addcmul",), only=OUT),
    Spelling("addcdiv", (torch.addcdiv,), ("addcdiv",), only=OUT),
    Spelling("conv1d", (F.conv1d,), modules=(nn.Conv1d,), only={"padding_mode": "zeros"}),
    Spelling("max_pool1d", (F.max_pool1d, torch.max_pool1d), modules=(nn.MaxPool1d,),
             only={"return_indices": False}),
    Spelling("avg_pool1d", (F.avg_pool1d,), modules=(nn.AvgPool1d,)),
    Spelling("adaptive_avg_pool1d", (F.adaptive_avg_pool1d,), modules=(nn.AdaptiveAvgPool1d,)),
    Spelling("adaptive_max_pool2d", (F.adaptive_max_pool2d,), modules=(nn.AdaptiveMaxPool2d,)),
    Spelling("group_norm", (F.group_norm,), modules=(nn.GroupNorm,)),
    Spelling("layer_norm", (F.layer_norm,), modules=(nn.LayerNorm,)),
    Spelling("instance_norm", (F.instance_norm,)),
    Spelling("local_response_norm", (F.local_response_norm,), modules=(nn.LocalResponseNorm,)),
    Spelling("linear", (F.linear,), modules=(nn.Linear,)),
    Spelling("softmax", (F.softmax, torch.softmax), ("softmax",), (nn.Softmax,), _SOFTMAX),
    Spelling(
        "log_softmax", (F.log_softmax, torch.log_softmax), ("log_softmax",), (nn.LogSoftmax,),
        _SOFTMAX,
    ),
    Spelling("logsumexp", (torch.logsumexp,), ("logsumexp",), only=OUT),
    Spelling("amin", (torch.amin,), ("amin",), only=OUT),
    Spelling("argmax", (torch.argmax,), ("argmax",), only=OUT),
    Spelling("argmin", (torch.argmin,), ("argmin",), only=OUT),
    Spelling("prod", (torch.prod,), ("prod",), only={"dtype": None, **OUT}),
    Spelling("var", (torch.var,), ("var",), only=OUT),
    Spelling("std", (torch.std,), ("std",), only=OUT),
    Spelling("var_mean", (torch.var_mean,)),
    Spelling("std_mean", (torch.std_mean,)),
    Spelling("norm", (torch.norm,), ("norm",), only={"dtype": None, **OUT}),
    Spelling("vector_norm", (torch.linalg.vector_norm,), only={"dtype": None, **OUT}),
    Spelling("normalize", (F.normalize,), only=OUT),
    Spelling(
        "cross_entropy", (F.cross_entropy,), modules=(nn.CrossEntropyLoss,), only=_REDUCED
    ),
    Spelling("nll_loss", (F.nll_loss,), modules=(nn.NLLLoss,), only=_REDUCED),
    Spelling(
        "binary_cross_entropy", (F.binary_cross_entropy,), modules=(nn.BCELoss,), only=_REDUCED
    ),
    Spelling("kl_div", (F.kl_div,), modules=(nn.KLDivLoss,), only=_REDUCED),
    Spelling("mse_loss", (F.mse_loss,), modules=(nn.MSELoss,), only={**_REDUCED, "weight": None}),
    Spelling("l1_loss", (F.l1_loss,), modules=(nn.L1Loss,), only={**_REDUCED, "weight": None}),
    Spelling("smooth_l1_loss", (F.smooth_l1_loss,), modules=(nn.SmoothL1Loss,), only=_REDUCED),
    Spelling("huber_loss", (F.huber_loss,), modules=(nn.HuberLoss,), only={"weight": None}),
)  # fmt: skip
"""What several ops answer together."""

SPELLINGS = (*(spelling for row in _TABLE for spelling in row.spellings), *COMPOSED)


def spelling_of(called: Callable[..., Any] | str | type[nn.Module]) -> Spelling | None:
    """Who answers a call: of a function, of a tensor's method by its name, or of a module's class.

    None where nothing does.
    """
    for spelling in SPELLINGS:
        # Not `in`: torch.Tensor's operators would be asked whether they are equal.
        known = (*spelling.functions, *spelling.methods, *spelling.modules)
        if any(called is c or (isinstance(called, str) and called == c) for c in known):
            return spelling
    return None
