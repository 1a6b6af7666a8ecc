"""One row a way of using an op: operands, attributes, and where to sample them.

Shared by the tests of meanings, of the text form, of gradients and of compiled kernels. Every
attribute of every op takes a value other than its default in some row.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bngen.ir.build import GraphBuilder
from bngen.ir.node import Graph
from bngen.ir.ops import OPS
from bngen.ir.types import TensorType


@dataclass(frozen=True)
class Operand:
    """An input of a case; ``draw`` makes its contents from a generator."""

    type: TensorType
    draw: Any


def normal(*shape):
    return Operand(TensorType(shape), lambda rng: rng.standard_normal(shape))


def positive(*shape):
    return Operand(TensorType(shape), lambda rng: rng.uniform(0.5, 2.0, shape))


def uniform(*shape):
    return Operand(TensorType(shape), lambda rng: rng.uniform(0, 1, shape))


def wide(*shape):
    """Values that reach far into what is flat or straight of an activation."""
    return Operand(TensorType(shape), lambda rng: 8 * rng.standard_normal(shape))


def tied(*shape):
    """Values from a handful, so that comparisons and maxima meet ties and kinks."""
    return Operand(TensorType(shape), lambda rng: rng.integers(-2, 3, shape).astype(float))


def integers(*shape, high=5, dtype="int64"):
    return Operand(TensorType(shape, dtype), lambda rng: rng.integers(0, high, shape))


def flags(*shape):
    return Operand(TensorType(shape, "bool"), lambda rng: rng.integers(0, 2, shape) > 0)


def scalar(value, dtype="float32"):
    return Operand(TensorType((), dtype), lambda rng: np.asarray(value, dtype))


@dataclass(frozen=True)
class Case:
    op: str
    operands: tuple[Operand | None, ...]
    attrs: dict[str, Any] = field(default_factory=dict)

    @property
    def id(self) -> str:
        shapes = "-".join("_" if o is None else str(o.type) for o in self.operands)
        attrs = ",".join(f"{k}={v}".replace(" ", "") for k, v in self.attrs.items())
        return f"{self.op}:{shapes}:{attrs}"

    @property
    def graph(self) -> Graph:
        """A program of one node that returns all of its results."""
        b = GraphBuilder(name=self.op)
        names = [o.rstrip("?") for o in OPS[self.op].operands]
        names += [f"{names[-1]}{i}" for i in range(1, len(self.operands))] if names else []
        values = [o and b.input(n, o.type) for n, o in zip(names, self.operands, strict=False)]
        result = b.emit(self.op, *values, **self.attrs)
        return b.finish(result if isinstance(result, tuple) else (result,))

    def args(self, seed: int = 0) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(seed)
        drawn = [o.draw(rng) for o in self.operands if o is not None]
        return {
            i.name: np.asarray(a, i.value.dtype)
            for i, a in zip(self.graph.inputs, drawn, strict=True)
        }


def case(op, *operands, **attrs):
    return Case(op, operands, attrs)


MAP = (2, 3, 5, 4)
_BINARY = ("add", "sub", "mul", "div", "maximum", "minimum")
_COMPARE = ("greater", "greater_equal", "less", "less_equal", "equal", "not_equal")
_UNARY = (
    "exp",
    "expm1",
    "tanh",
    "sigmoid",
    "silu",
    "neg",
    "abs",
    "sign",
    "relu",
    "stop_gradient",
    "copy",
    "erf",
    "sin",
    "cos",
    "floor",
    "ceil",
    "round",
)
_ACTIVATIONS = (
    "relu",
    "leaky_relu",
    "hardtanh",
    "hardsigmoid",
    "hardswish",
    "gelu",
    "elu",
    "softplus",
    "mish",
)

POINTWISE = [
    *(case(op, normal(*MAP), normal(*MAP)) for op in _BINARY),
    *(case(op, normal(*MAP), positive(3, 1, 1)) for op in _BINARY),
    *(case(op, positive(1, 3, 1, 1), positive(2, 1, 5, 4)) for op in _BINARY),
    *(case(op, scalar(1.5), positive(*MAP)) for op in _BINARY),
    *(case(op, scalar(2.5), scalar(0.5)) for op in _BINARY),
    *(case(op, tied(*MAP), tied(*MAP)) for op in ("maximum", "minimum", *_COMPARE)),
    case("add", integers(4), scalar(0.5)),
    case("mul", integers(4, dtype="int32"), integers(4)),
    case("fmod", normal(*MAP), positive(3, 1, 1)),
    case("fmod", wide(*MAP), normal(*MAP)),
    case("pow", positive(*MAP), normal(*MAP)),
    case("pow", positive(*MAP), normal(4)),
    case("pow", tied(2, 3), Operand(TensorType((3,)), lambda rng: np.array([0.0, 1.0, 2.0]))),
    *(case(op, normal(*MAP)) for op in _UNARY),
    *(case(op, positive(*MAP)) for op in ("log", "log1p", "sqrt", "rsqrt")),
    *(case(op, tied(*MAP)) for op in ("abs", "sign", *_ACTIVATIONS)),
    case("exp", scalar(0.5)),
    *(case(op, wide(*MAP)) for op in _ACTIVATIONS),
    case("leaky_relu", normal(*MAP), slope=0.2),
    case("gelu", wide(*MAP), approximate=True),
    case("elu", wide(*MAP), alpha=1.5, output_scale=1.25, input_scale=0.5),
    case("softplus", wide(*MAP), beta=2.0, threshold=5.0),
    case("softplus", wide(*MAP), threshold=math.inf),
    case("clamp", tied(*MAP), lo=-1.0),
    case("clamp", tied(*MAP), lo=0.0, hi=1.0),
    case("clamp", normal(*MAP), lo=0.5, hi=-0.5),
    case("prelu", tied(*MAP), normal(3)),
    case("prelu", normal(5, 3), normal(3)),
    case("bce_with_logits", wide(*MAP), uniform(*MAP)),
    case("bce_with_logits", wide(*MAP), uniform(*MAP), positive(5, 4)),
    case("hardtanh", tied(*MAP), lo=0.0, hi=2.0),
    case("where", flags(*MAP), normal(*MAP), normal(*MAP)),
    case("where", flags(3, 1, 1), scalar(0.0), normal(*MAP)),
    case("where", flags(*MAP), normal(1, 3, 1, 1), normal(5, 1)),
    case("cast", integers(*MAP), dtype="float32"),
    case("cast", flags(*MAP), dtype="float32"),
    case("cast", normal(*MAP), dtype="int32"),
    case("cast", normal(*MAP), dtype="float32"),
    case("constant", value=0.1),
    case("constant", value=3, dtype="int64"),
    case("broadcast_to", normal(3, 1, 4), shape=MAP),
    case("broadcast_to", scalar(2.0), shape=(2, 3)),
    case("random_uniform", integers(high=1000), shape=MAP),
    case("random_uniform", integers(high=1000, dtype="int32"), shape=(7,), stream=3),
    case("positions", shape=(3,)),
    case("positions", shape=MAP, axis=1),
    case("one_hot", integers(6), classes=5),
    case("one_hot", integers(2, 4, 3), classes=6),
    case("bias_add", normal(*MAP), normal(3)),
    case("bias_add", normal(4, 7), normal(7)),
]

BATCH_NORM = [
    case("bn_normalize", normal(*MAP), normal(3), positive(3), normal(3), normal(3), eps=1e-3),
    case("bn_normalize", normal(*MAP), normal(3), positive(3), None, normal(3)),
    case("bn_normalize", normal(6, 3), normal(3), positive(3), normal(3), None),
    case("bn_normalize", normal(*MAP), normal(3), positive(3), None, None),
    case("bn_grad_direct", normal(*MAP), positive(3), normal(3), eps=1e-3),
    case("bn_grad_direct", normal(*MAP), positive(3), None),
    case("bn_scale", positive(3), normal(3), eps=1e-3),
    case("bn_scale", positive(3), None),
    case("bn_apply", normal(*MAP), normal(3), normal(3), normal(3)),
    case("bn_apply", normal(6, 3), normal(3), normal(3), None),
    case("bn_grad_apply", normal(*MAP), normal(*MAP), *(normal(3) for _ in range(4))),
    case("channel_scale", normal(*MAP), normal(3)),
    case("bn_grad_affine", normal(*MAP), normal(3), normal(3), normal(3)),
    case("bn_update", normal(3), positive(3), normal(3), positive(3), count=40, momentum=0.3),
    case("bn_update", normal(3), positive(3), normal(3), positive(3), scalar(0.25), count=9),
    case("bn_stats", normal(*MAP)),
    case("bn_stats", normal(6, 3)),
    case("bn_mean", normal(*MAP)),
    case("bn_var", normal(*MAP), normal(3)),
    case("bn_partial_stats", normal(*MAP), row_groups=10),
    case("bn_partial_stats", normal(2, 3, 6, 4), row_groups=6),
    case("bn_partial_var", normal(*MAP), normal(3), row_groups=2),
    case("bn_merge_stats", normal(4, 3), positive(4, 3), normal(4, 3), count=6),
    case("bn_partial_mean", normal(*MAP), row_groups=10),
    case("bn_merge_mean", normal(4, 3), normal(4, 3), count=24),
    case("bn_grad_sums", normal(*MAP), normal(*MAP), normal(3)),
    case("bn_grad_partial_sums", normal(*MAP), normal(*MAP), normal(3), row_groups=2),
    case("batch_norm", normal(*MAP), normal(3), normal(3), eps=1e-3),
    case("batch_norm", normal(*MAP), None, normal(3)),
    case("batch_norm", normal(*MAP), normal(3), None),
    case("batch_norm", normal(8, 3), None, None),
    case("sync_batch_norm", normal(*MAP), normal(3), normal(3), eps=1e-3, group="all"),
    case("sync_batch_norm", normal(8, 3), None, normal(3)),
    case("bn_all_stats", normal(3), positive(3), count=40, group="all"),
    case("all_reduce", normal(3, 4)),
    case("all_reduce", normal(3), normal(2), average=True, group="all"),
]

REDUCTIONS = [
    case(op, operand, axes=axes, keepdims=keep)
    for op, operand in (("sum", normal(*MAP)), ("mean", normal(*MAP)), ("amax", tied(*MAP)))
    for axes, keep in (((0, 2, 3), False), ((1,), True), ((-1, 1), True), ((0, 1, 2, 3), False))
] + [
    case("partial_sum", normal(*MAP), row_groups=10),
    case("partial_max", normal(*MAP), row_groups=2),
    case("sum_groups", normal(6, 3), images=2),
    case("max_groups", normal(6, 3), images=3),
]

_CONVS = [
    ((2, 3, 6, 5), (4, 3, 3, 3), {}),
    ((2, 3, 6, 5), (4, 3, 3, 3), {"padding": (1, 1, 1, 1)}),
    ((1, 3, 7, 7), (4, 3, 3, 2), {"padding": (0, 2, 1, 0), "stride": (2, 3)}),
    ((2, 4, 7, 6), (6, 2, 3, 3), {"groups": 2, "dilation": (2, 1), "padding": (2, 2, 1, 1)}),
    ((2, 4, 5, 5), (4, 1, 3, 3), {"groups": 4, "padding": (1, 1, 1, 1), "stride": (2, 2)}),
    ((2, 3, 6, 6), (6, 1, 3, 3), {"groups": 3}),
    ((2, 5, 4, 4), (3, 5, 1, 1), {"stride": (2, 2)}),
    ((3, 4, 1, 1), (5, 4, 1, 1), {}),
]


def _conv_cases():
    for x, w, attrs in _CONVS:
        forward = case("conv2d", normal(*x), normal(*w), **attrs)
        dy = normal(*forward.graph.outputs[0].shape)
        yield forward
        yield case("conv2d_grad_input", dy, normal(*w), shape=x, **attrs)
        yield case("conv2d_grad_weight", normal(*x), dy, shape=w, **attrs)


_AVG = [
    {"kernel": (2, 2), "stride": (2, 2)},
    {"kernel": (3, 2), "stride": (2, 1), "padding": (1, 1)},
    {"kernel": (3, 3), "stride": (2, 2), "padding": (1, 1), "ceil_mode": True},
    {"kernel": (3, 3), "stride": (2, 2), "padding": (1, 1), "count_include_pad": False},
    {
        "kernel": (2, 3), "stride": (3, 2), "padding": (1, 0), "ceil_mode": True,
        "count_include_pad": False,
    },
    {"kernel": (3, 2), "stride": (2, 1), "padding": (1, 1), "divisor": 5},
]  # fmt: skip
_MAX = [
    *(a for a in _AVG if not a.keys() & {"count_include_pad", "divisor"}),
    {"kernel": (2, 2), "stride": (1, 2), "padding": (1, 0), "dilation": (2, 3), "ceil_mode": True},
]


def _taps(shape, attrs):
    """Window-local indices of some maximum, as a forward pool would give them."""
    x = case("max_pool2d", normal(*shape), **attrs)
    index = OPS["max_pool2d"].evaluate(list(x.args(7).values()), x.graph.nodes[0].attrs)[1]
    return Operand(TensorType(index.shape, "int32"), lambda rng: index)


def _pool_cases():
    shape = (2, 3, 7, 6)
    for attrs in _MAX:
        yield case("max_pool2d", normal(*shape), **attrs)
        yield case("max_pool2d", tied(*shape), **attrs)
        taps = _taps(shape, attrs)
        yield case("max_pool2d_grad", normal(*taps.type.shape), taps, shape=shape, **attrs)
    for attrs in _AVG:
        forward = case("avg_pool2d", normal(*shape), **attrs)
        yield forward
        dy = normal(*forward.graph.outputs[0].shape)
        yield case("avg_pool2d_grad", dy, shape=shape, **attrs)
    for size in ((1, 1), (3, 4), (8, 6)):
        yield case("adaptive_avg_pool2d", normal(*shape), output_size=size)
        dy = normal(2, 3, *size)
        yield case("adaptive_avg_pool2d_grad", dy, output_size=size, shape=shape)


STRUCTURE = [
    *_conv_cases(),
    *_pool_cases(),
    case("matmul", normal(3, 4), normal(4, 5)),
    case("matmul", normal(4, 3), normal(4, 5), trans_a=True),
    case("matmul", normal(3, 4), normal(5, 4), trans_b=True),
    case("matmul", normal(4, 3), normal(5, 4), trans_a=True, trans_b=True),
    case("cat", normal(*MAP), normal(2, 1, 5, 4), normal(*MAP)),
    case("cat", normal(2, 3), normal(4, 3), axis=0),
    case("cat", normal(2, 3)),
    case("slice", normal(*MAP), start=1, stop=3),
    case("slice", normal(*MAP), start=0, stop=2),
    case("slice", normal(*MAP), start=0, stop=3),
    case("slice", normal(*MAP), axis=3, start=1, stop=2),
    case("reshape", normal(*MAP), shape=(2, 60)),
    case("reshape", normal(1, 1), shape=()),
]

INDEX_MAPS = [
    case("gather", normal(*MAP), axis=2, pieces=(2, -1, 0, 5, 0, 1, 1, -1, 0), fill=0.5),
    case("gather", normal(*MAP), axis=1, pieces=(3, 2, -1)),
    case("gather", normal(*MAP), axis=3, pieces=(2, 2, -1, 4, 0, 1, 3, 3, 0)),
    case("gather", normal(6), axis=0, pieces=(2, 1, 3, 1, -1, 0)),
    case("gather", normal(2, 3), axis=1, pieces=(2, -1, 0)),
    case("gather", integers(2, 3), axis=1, pieces=(1, -1, 0, 3, 2, -1), fill=7),
    case("gather", flags(2, 3), axis=0, pieces=(2, 1, -1), fill=True),
    case("rearrange", normal(2, 6, 2, 3), split=(2, 2, 3, 2, 3), order=(0, 2, 1, 3, 4),
         shape=(2, 6, 2, 3)),
    case("rearrange", normal(2, 3, 4), split=(2, 3, 4), order=(2, 0, 1), shape=(4, 6)),
    case("rearrange", integers(2, 8, 1, 3), split=(2, 2, 2, 2, 3), order=(0, 1, 2, 4, 3),
         shape=(2, 2, 2, 6)),
    *(
        case(f"resize_{mode}", normal(*MAP), output_size=size, scale=scale, **attrs)
        for mode, flag in (
            ("nearest", "centred"), ("bilinear", "align_corners"), ("bicubic", "align_corners"),
        )
        for size, scale, attrs in (
            ((10, 8), (0.5, 0.5), {}),
            ((3, 9), (5 / 3, 4 / 9), {}),
            ((7, 4), (0.6, 1.0), {flag: True} if mode == "nearest" else {}),
            ((9, 1), (0.5, 4.0 if mode == "nearest" else 0.0), {flag: True}),
        )
    ),
    case("resize_nearest_grad", normal(2, 3, 9, 8), output_size=(9, 8), scale=(5 / 9, 0.5),
         shape=MAP, centred=True),
    *(
        case(f"resize_{mode}_grad", normal(2, 3, 9, 8), output_size=(9, 8), scale=(0.5, 3 / 7),
             shape=MAP, align_corners=True)
        for mode in ("bilinear", "bicubic")
    ),
    case("resize_bicubic_grad", normal(2, 3, 2, 9), output_size=(2, 9), scale=(2.5, 4 / 9),
         shape=MAP),
]  # fmt: skip

CASES = [*POINTWISE, *BATCH_NORM, *REDUCTIONS, *STRUCTURE, *INDEX_MAPS]
