"""The rows of `ops` for activations and losses of one element."""

from __future__ import annotations

import operator

import torch
import torch.nn.functional as F
from torch import nn

from bngen.torch_bridge.spellings import IN_PLACE, OUT, Spelling, call_of, row_of

_CELU = "F.celu and F.selu are this op with other numbers"


def _elu(t, a):
    x, scale, inner = t[0], a["output_scale"], a["input_scale"]
    if inner == 1:
        return F.elu(x, a["alpha"]) * scale
    return torch.where(x > 0, x, a["alpha"] * torch.expm1(torch.minimum(x, 0 * x) * inner)) * scale


def _hardsigmoid(t, a):
    # Not F.hardsigmoid, whose gradient is a sixth of single precision in double precision, too.
    return F.relu6(t[0] + 3) / 6


def _bce_with_logits(t, a):
    # Not F.binary_cross_entropy_with_logits, which cannot be differentiated by its pos_weight.
    x, target, weight = t
    share = 1 if weight is None else 1 + (weight - 1) * target
    return (1 - target) * x - share * F.logsigmoid(x)


ACTIVATIONS = (
    call_of("relu", F.relu, torch.relu, modules=(nn.ReLU,), inplace=False),
    call_of("silu", F.silu, modules=(nn.SiLU,), inplace=False),
    row_of(
        "leaky_relu", lambda t, a: F.leaky_relu(t[0], a["slope"]),
        Spelling("leaky_relu", (F.leaky_relu,), modules=(nn.LeakyReLU,), only=IN_PLACE),
    ),
    call_of("prelu", F.prelu, modules=(nn.PReLU,)),
    row_of(
        "hardtanh", lambda t, a: F.hardtanh(t[0], a["lo"], a["hi"]),
        Spelling("hardtanh", (F.hardtanh,), modules=(nn.Hardtanh,), only=IN_PLACE),
        Spelling("relu6", (F.relu6,), modules=(nn.ReLU6,), only=IN_PLACE),
    ),
    row_of(
        "clamp", lambda t, a: torch.clamp(t[0], a["lo"], a["hi"]),
        Spelling("clamp", (torch.clamp, torch.clip), ("clamp", "clip"), only=OUT),
        Spelling("clamp_min", (torch.clamp_min,), ("clamp_min",), only=OUT),
        Spelling("clamp_max", (torch.clamp_max,), ("clamp_max",), only=OUT),
    ),
    row_of(
        "hardsigmoid", _hardsigmoid,
        Spelling("hardsigmoid", (F.hardsigmoid,), modules=(nn.Hardsigmoid,), only=IN_PLACE),
    ),
    call_of("hardswish", F.hardswish, modules=(nn.Hardswish,), inplace=False),
    row_of(
        "gelu", lambda t, a: F.gelu(t[0], approximate="tanh" if a["approximate"] else "none"),
        Spelling("gelu", (F.gelu,), modules=(nn.GELU,)),
    ),
    row_of(
        "elu", _elu,
        Spelling("elu", (F.elu,), modules=(nn.ELU,), only=IN_PLACE),
        Spelling("celu", (F.celu, torch.celu), modules=(nn.CELU,), only=IN_PLACE),
        Spelling("selu", (F.selu, torch.selu), modules=(nn.SELU,), only=IN_PLACE),
    ),
    row_of(
        "softplus", lambda t, a: F.softplus(t[0], a["beta"], a["threshold"]),
        Spelling("softplus", (F.softplus,), modules=(nn.Softplus,)),
        Spelling("logsigmoid", (F.logsigmoid,), modules=(nn.LogSigmoid,)),
    ),
    call_of("mish", F.mish, modules=(nn.Mish,), inplace=False),
    row_of(
        "bce_with_logits", _bce_with_logits,
        Spelling("binary_cross_entropy_with_logits", (F.binary_cross_entropy_with_logits,),
                 modules=(nn.BCEWithLogitsLoss,), only={"size_average": None, "reduce": None}),
    ),
)  # fmt: skip

COMPOSED_ACTIVATIONS = (
    Spelling("square", (torch.square,), ("square",), only=OUT),
    Spelling("reciprocal", (torch.reciprocal,), ("reciprocal",), only=OUT),
    Spelling("isnan", (torch.isnan,), ("isnan",)),
    Spelling("isinf", (torch.isinf,), ("isinf",)),
    Spelling("isfinite", (torch.isfinite,), ("isfinite",)),
    Spelling("logical_and", (torch.logical_and,), ("logical_and",), only=OUT),
    Spelling("logical_or", (torch.logical_or,), ("logical_or",), only=OUT),
    Spelling("logical_xor", (torch.logical_xor,), ("logical_xor",), only=OUT),
    Spelling("logical_not", (torch.logical_not,), ("logical_not",), only=OUT),
    Spelling("bitwise_and", (torch.bitwise_and, operator.and_), ("bitwise_and",), only=OUT),
    Spelling("bitwise_or", (torch.bitwise_or, operator.or_), ("bitwise_or",), only=OUT),
    Spelling("bitwise_xor", (torch.bitwise_xor, operator.xor), ("bitwise_xor",), only=OUT),
    Spelling("bitwise_not", (torch.bitwise_not, operator.invert), ("bitwise_not",), only=OUT),
    Spelling("softsign", (F.softsign,), modules=(nn.Softsign,)),
    Spelling("tanhshrink", (F.tanhshrink,), modules=(nn.Tanhshrink,)),
    Spelling("hardshrink", (F.hardshrink,), ("hardshrink",), (nn.Hardshrink,)),
    Spelling("softshrink", (F.softshrink,), modules=(nn.Softshrink,)),
    Spelling("threshold", (F.threshold, torch.threshold), modules=(nn.Threshold,), only=IN_PLACE),
)
"""What several ops answer together."""
