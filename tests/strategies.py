"""Random programs, as graphs, and arguments for them.

`programs` draws networks of the kinds bngen is for: chains, residual sums, concatenations (dense
blocks that share prefixes, and others that do not), feature maps with many consumers, batch
normalization after anything, every pool, strided, dilated, grouped and depthwise convolutions, odd
channel counts, activations spelled out in primitives, running statistics. Shapes are small, so that
a compiler builds and runs one in less than a second.

`random_args` fills the inputs by the part they play (a convolution's weight, a variance, labels).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from hypothesis import note
from hypothesis import strategies as st

from bngen.errors import ProgramError
from bngen.ir.build import GraphBuilder, prune
from bngen.ir.node import Graph
from bngen.ir.ops import OPS
from bngen.ir.ops.row import ShapeError
from bngen.ir.types import TensorType, Value
from bngen.plan.formats import Formats

CHANNELS = (1, 3, 4, 8, 10, 16, 24, 50)
MAX_ELEMENTS = 6000
MIN_SAMPLES = 8
"""Samples of a channel below which no batch statistics are taken: with two, xhat is 1 and -1
whatever x is, the gradient is all rounding, and comparing roundings says nothing."""


@st.composite
def programs(draw, *, smooth: bool = False, heads: bool = True, max_layers: int = 6) -> Graph:
    """A random program that contains at least one layer.

    Args:
        draw: given by Hypothesis.
        smooth: leave out ops with kinks, whose gradients jump when rounding moves an element.
        heads: let some programs end in a classifier with a loss.
        max_layers: layers, dense blocks and residual blocks drawn at most.
    """
    net = Network(draw, smooth)
    for _ in range(draw(st.integers(1, max_layers))):
        net.layer()
    graph = net.with_loss() if heads and draw(st.integers(0, 3)) == 0 else net.finish()
    note(str(graph))
    return graph


@st.composite
def formats_of(draw, graph: Graph) -> Formats:
    """Which arrays of a program are channels-last: none, all that can be, or some."""
    inputs = [i.name for i in graph.inputs if len(i.value.shape) == 4]
    outputs = [i for i, v in enumerate(graph.outputs) if len(v.shape) == 4]
    kind = draw(st.sampled_from(("all", "some", "none")))
    if kind == "some":
        inputs = [name for name in inputs if draw(st.booleans())]
        outputs = [i for i in outputs if draw(st.booleans())]
    found = Formats() if kind == "none" else Formats(frozenset(inputs), frozenset(outputs))
    note(str(found))
    return found


def memory_format_of(formats: Formats) -> dict[str, str]:
    """What a user writes for it."""
    names = (*sorted(formats.inputs), *(f"return.{i}" for i in sorted(formats.outputs)))
    return dict.fromkeys(names, "channels_last")


class Network:
    """A program under way: the builder and the feature maps that later layers may read."""

    channels, batches, sides = CHANNELS, (2, 1, 3, 8), (5, 1, 2, 4, 7, 8)
    windows = ((3, 3), (1, 1), (1, 3), (3, 2))
    max_elements = MAX_ELEMENTS

    def __init__(self, draw: Callable, smooth: bool):
        self.draw, self.smooth = draw, smooth
        self.b = GraphBuilder(name="random_program")
        self.updates: list[tuple[Value, Value]] = []
        self.stats: list[Value] = []
        batch, side = draw(st.sampled_from(self.batches)), st.sampled_from(self.sides)
        shape = (batch, draw(st.sampled_from(self.channels)), draw(side), draw(side))
        self.maps = [self.b.input("x", TensorType(shape))]

    # Drawing.

    def pick(self, *options):
        return self.draw(st.sampled_from(options))

    def flag(self) -> bool:
        return self.draw(st.booleans())

    def source(self) -> Value:
        """Mostly the newest feature map, sometimes any: then that one has several consumers."""
        return self.maps[-1] if self.draw(st.integers(0, 3)) else self.pick(*self.maps)

    def keep(self, value: Value) -> Value:
        self.maps.append(value)
        return value

    def parameter(self, name: str, *shape: int) -> Value:
        return self.b.input(name, TensorType(shape), "parameter")

    def buffer(self, name: str, *shape: int) -> Value:
        return self.b.input(name, TensorType(shape), "buffer")

    # Layers.

    def layers(self) -> tuple[Callable[[Value], Value | None], ...]:
        return (
            self.conv, self.batch_norm, self.activation, self.bn_relu_conv, self.pool,
            self.residual, self.dense_block, self.other_concatenation, self.rescale,
            self.instance_norm, self.dropout, self.split, self.moved, self.resized,
        )  # fmt: skip

    def layer(self) -> None:
        made = self.pick(*self.layers())(self.source())
        # What grew too large by joining is left out, and pruned away.
        if made is not None and made.type.size <= self.max_elements:
            self.keep(made)

    def conv(self, x: Value, same: bool = False) -> Value | None:
        """A convolution of any kind; ``same`` keeps the shape."""
        c = x.shape[1]
        groups = self.pick(1, 1, 1, c, *(g for g in (2, 4) if c % g == 0))
        k = (
            c
            if same
            else groups * self.pick(1, *(m for m in (2, 3, 8, 10, 16) if m * groups <= 50))
        )
        r, s = self.pick(*self.windows)
        dilation = self.pick((1, 1), (1, 1), (2, 1))
        halo = [d * (e - 1) for d, e in zip(dilation, (r, s), strict=True)]
        even = (halo[0] // 2, halo[0] - halo[0] // 2, halo[1] // 2, halo[1] - halo[1] // 2)
        attrs = {"groups": groups, "dilation": dilation, "padding": even}
        if not same:
            attrs["padding"] = self.pick(even, even, (0, 0, 0, 0), (2, 0, 1, 1))
            attrs["stride"] = self.pick((1, 1), (1, 1), (2, 2), (1, 2))
        weight = self.parameter("conv.weight", k, c // groups, r, s)
        y = self.attempt("conv2d", x, weight, **attrs)
        if y is None or not self.flag():
            return y
        return self.b.emit("bias_add", y, self.parameter("conv.bias", k))

    def attempt(self, op: str, *operands: Value, **attrs) -> Value | None:
        """Emit, unless the window exceeds the map; the result stays small."""
        try:
            return self.b.emit(op, *operands, **attrs)
        except ShapeError:
            return None

    def batch_norm(self, x: Value) -> Value:
        """Training mode, in one op or by hand; evaluation mode; training where samples suffice."""
        c, eps = x.shape[1], self.pick(1e-5, 1e-3)
        weight = self.parameter("bn.weight", c) if self.flag() else None
        bias = self.parameter("bn.bias", c) if self.flag() else None
        form = self.pick("coarse", "coarse", "stats", "two sweeps", "evaluation")
        if x.type.size // c < MIN_SAMPLES or form == "evaluation":
            running = self.buffer("bn.running_mean", c), self.buffer("bn.running_var", c)
            return self.b.emit("bn_normalize", x, *running, weight, bias, eps=eps)
        if form == "coarse":
            y, mean, var = self.b.emit("batch_norm", x, weight, bias, eps=eps)
        else:
            mean, var = self.statistics(x, form)
            y = self.b.emit("bn_normalize", x, mean, var, weight, bias, eps=eps)
        self.track(x, mean, var)
        return y

    def statistics(self, x: Value, form: str) -> tuple[Value, Value]:
        if form == "stats":
            return self.b.emit("bn_stats", x)
        mean = self.b.emit("bn_mean", x)
        return mean, self.b.emit("bn_var", x, mean)

    def track(self, x: Value, mean: Value, var: Value) -> None:
        """Perhaps update running statistics, perhaps return the batch's own."""
        c = x.shape[1]
        if self.flag():
            old = self.buffer("bn.running_mean", c), self.buffer("bn.running_var", c)
            count, momentum = x.type.size // c, self.pick(0.1, 0.5)
            new = self.b.emit("bn_update", *old, mean, var, count=count, momentum=momentum)
            self.updates += zip(old, new, strict=True)
        if self.draw(st.integers(0, 4)) == 0:
            self.stats += [mean, var]

    def activation(self, x: Value) -> Value:
        kinked = ("relu", "relu6", "leaky_relu", "hard_swish", "elu")
        name = self.pick("silu", "sigmoid", "tanh", "mish", *(() if self.smooth else kinked * 2))
        emit = self.b.emit
        match name:
            case "relu6":
                return emit("hardtanh", x, lo=0.0, hi=6.0)
            case "leaky_relu":
                return emit("leaky_relu", x, slope=0.1)
            case "hard_swish":
                gate = emit("minimum", emit("maximum", emit("add", x, 3.0), 0.0), 6.0)
                return emit("mul", x, emit("mul", gate, 1 / 6))
            case "elu":
                # The exponential sees no positive number, where it might overflow.
                below = emit("sub", emit("exp", emit("minimum", x, 0.0)), 1.0)
                return emit("where", emit("greater", x, 0.0), x, below)
            case "mish":
                # sqrt(x * x + 1) stands in for |x|: a soft plus without overflow or kink.
                root = emit("sqrt", emit("add", emit("mul", x, x), 1.0))
                return emit("mul", x, emit("tanh", emit("mul", emit("add", x, root), 0.5)))
            case _:
                return emit(name, x)

    def bn_relu_conv(self, x: Value) -> Value | None:
        return self.conv(self.activation(self.batch_norm(x)))

    def pool(self, x: Value) -> Value | None:
        attrs = {
            "kernel": self.pick((2, 2), (3, 3), (3, 2)),
            "stride": self.pick((2, 2), (1, 1), (2, 3)),
            "padding": self.pick((0, 0), (1, 1), (1, 0)),
            "ceil_mode": self.flag(),
        }
        kind = self.pick("avg", "global", *(() if self.smooth else ("max", "max")))
        if kind == "global":
            size = self.pick((1, 1), (2, 3))
            return self.b.emit("adaptive_avg_pool2d", x, output_size=size)
        if kind == "avg":
            inside = self.flag()
            return self.attempt("avg_pool2d", x, **attrs, count_include_pad=inside)
        pooled = self.attempt("max_pool2d", x, **attrs)
        return pooled[0] if pooled else None

    def residual(self, x: Value) -> Value | None:
        """Pre- or post-activation, with a branch of any depth; the shortcut may be itself."""
        branch = x
        for _ in range(self.pick(1, 2, 0)):
            branch = self.conv(self.activation(self.batch_norm(branch)), same=True)
            if branch is None:
                return None
            self.keep(branch)
        return self.b.emit("add", x, branch) if self.flag() else self.b.emit("add", branch, x)

    def dense_block(self, x: Value) -> Value | None:
        """Each layer reads all maps so far, joined flat or on top of the previous join."""
        features, joined, nested = [x], x, self.flag()
        for _ in range(self.pick(2, 3, 4)):
            h = self.activation(self.batch_norm(joined))
            growth = self.pick(2, 3, 8)
            weight = self.parameter("dense.weight", growth, h.shape[1], 3, 3)
            features.append(self.b.emit("conv2d", h, weight, padding=(1, 1, 1, 1)))
            joined = (
                self.b.emit("cat", joined, features[-1])
                if nested
                else self.b.emit("cat", *features)
            )
        return joined if joined is not x else None

    def other_concatenation(self, x: Value) -> Value:
        """Maps that fit, in any order, the same one twice if it comes so."""
        n, _, h, w = x.shape
        fitting = [m for m in self.maps if (m.shape[0], *m.shape[2:]) == (n, h, w)]
        others = self.draw(st.lists(st.sampled_from(fitting), min_size=1, max_size=3))
        joined = others + [x] if self.flag() else [x, *others]
        return self.b.emit("cat", *joined)

    def rescale(self, x: Value) -> Value:
        """Broadcast arithmetic: a factor a channel, a row or a pixel, and a division."""
        _, c, h, w = x.shape
        shape = self.pick((c, 1, 1), (1, c, 1, 1), (h, 1), (1, 1, h, w), ())
        factor = self.parameter("scale", *shape)
        y = self.b.emit("mul", x, factor) if self.flag() else self.b.emit("sub", factor, x)
        below = self.b.emit("add", self.b.emit("mul", factor, factor), 1.0)
        return self.b.emit("div", y, below) if self.flag() else y

    def instance_norm(self, x: Value) -> Value:
        """A normalization of the user's own, over other axes than the batch's."""
        axes = self.pick((2, 3), (1, 2, 3))
        centred = self.b.emit("sub", x, self.b.emit("mean", x, axes=axes, keepdims=True))
        square = self.b.emit("mul", centred, centred)
        spread = self.b.emit("mean", square, axes=axes, keepdims=True)
        return self.b.emit("mul", centred, self.b.emit("rsqrt", self.b.emit("add", spread, 0.1)))

    def dropout(self, x: Value) -> Value:
        seed = self.b.input("seed", TensorType((), "int64"))
        noise = self.b.emit("random_uniform", seed, shape=x.shape, stream=self.pick(0, 1))
        kept = self.b.emit("greater_equal", noise, 0.25)
        return self.b.emit("where", kept, self.b.emit("mul", x, 4 / 3), 0.0)

    def split(self, x: Value) -> Value | None:
        """Channels parted and joined the other way round."""
        c = x.shape[1]
        if c < 2:
            return None
        at = self.draw(st.integers(1, c - 1))
        low = self.b.emit("slice", x, start=0, stop=at)
        high = self.b.emit("slice", x, start=at, stop=c)
        return self.b.emit("cat", self.activation(high), low)

    def moved(self, x: Value) -> Value:
        """Elements from other places: borders, mirrored, in turns, another order of parts."""
        axis = self.pick(1, 2, 3)
        extent, shape = x.shape[axis], x.shape
        match self.pick("border", "number", "mirror", "turn", "shuffle", "transpose"):
            case "border":
                pieces = (2, 0, 0, extent, 0, 1, 1, extent - 1, 0)
            case "number":
                pieces = (1, -1, 0, extent, 0, 1, 2, -1, 0)
            case "mirror":
                pieces = (extent, extent - 1, -1)
            case "turn":
                pieces = (
                    extent - extent // 2,
                    extent // 2,
                    1,
                    *(extent // 2, 0, 1)[: 3 * (extent > 1)],
                )
            case "shuffle":
                parts = next(p for p in (4, 3, 2, 1) if extent % p == 0)
                split = (*shape[:axis], parts, extent // parts, *shape[axis + 1 :])
                order = [i + (i == axis) - (i == axis + 1) for i in range(5)]
                return self.b.emit("rearrange", x, split=split, order=order, shape=shape)
            case "transpose":
                order = self.pick((0, 1, 3, 2), (0, 2, 3, 1), (0, 3, 1, 2))
                turned = [shape[i] for i in order]
                return self.b.emit("rearrange", x, split=shape, order=order, shape=turned)
        return self.b.emit("gather", x, axis=axis, pieces=pieces, fill=0.5)

    def resized(self, x: Value) -> Value:
        """Another height and width, or a transposed convolution."""
        sides = x.shape[2:]
        op = self.pick("resize_nearest", "resize_bilinear", "resize_bicubic", "transposed")
        if op == "transposed":
            weight = self.parameter("up.weight", x.shape[1], self.pick(3, 10), 3, 2)
            size = (x.shape[0], weight.shape[1], 2 * sides[0] + 1, 2 * sides[1])
            return self.b.emit("conv2d_grad_input", x, weight, stride=(2, 2), shape=size)
        size = self.pick([2 * s for s in sides], [s + 2 for s in sides], (3, 4))
        scale = tuple(s / o for s, o in zip(sides, size, strict=True))
        return self.b.emit(op, x, output_size=size, scale=scale)

    # Endings.

    def finish(self) -> Graph:
        """Return the last map, perhaps an earlier one, and statistics that were asked for."""
        earlier = self.maps[1:-1] if self.flag() else []
        chosen = [self.maps[-1], *([self.pick(*earlier)] if earlier else []), *self.stats]
        names = [f"y{i}" for i in range(len(chosen))] if self.flag() else []
        return self.graph(chosen, names)

    def with_loss(self) -> Graph:
        """A linear classifier and its mean cross entropy, spelled out."""
        x, emit = self.maps[-1], self.b.emit
        n, c = x.shape[:2]
        classes = self.pick(2, 5, 10)
        features = emit("reshape", emit("mean", x, axes=(2, 3)), shape=(n, c))
        weight = self.parameter("fc.weight", classes, c)
        logits = emit("matmul", features, weight, trans_b=True)
        logits = emit("bias_add", logits, self.parameter("fc.bias", classes))
        labels = self.b.input("labels", TensorType((n,), "int64"))
        peak = emit("stop_gradient", emit("amax", logits, axes=(1,), keepdims=True))
        shifted = emit("sub", logits, peak)
        total = emit("sum", emit("exp", shifted), axes=(1,), keepdims=True)
        log_probability = emit("sub", shifted, emit("log", total))
        hits = emit("mul", log_probability, emit("one_hot", labels, classes=classes))
        loss = emit("div", emit("neg", emit("sum", hits, axes=(0, 1))), float(n))
        return self.graph([loss], ["loss"])

    def graph(self, outputs: list[Value], names: list[str]) -> Graph:
        """The finished program, without what nothing needs; unused inputs stay."""
        return prune(
            self.b.finish(
                outputs,
                updates=self.updates,
                output_names=names,
                tuple_output=len(outputs) > 1 or self.flag(),
            )
        )


# --- arguments ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Role:
    """What an input is for: the op that reads it first, and as which operand."""

    op: str = ""
    operand: str = ""
    classes: int = 0


def roles(graph: Graph) -> dict[str, Role]:
    """The part each input plays."""
    table = {}
    for node in graph.nodes:
        names = [o.rstrip("?") for o in OPS[node.op].operands]
        for i, v in enumerate(node.inputs):
            operand = names[min(i, len(names) - 1)]
            if v is not None:
                classes = node.attrs.get("classes", 0)
                table.setdefault(v.name, Role(node.op, operand, classes))
    return {i.name: table.get(i.name, Role()) for i in graph.inputs}


def random_args(graph: Graph, seed: int, kind: str = "normal") -> dict[str, np.ndarray]:
    """An array for each input.

    Args:
        graph: the program.
        seed: of NumPy's generator; the same seed gives the same arrays.
        kind: ``normal`` or ``awkward``: scales of the mean beyond 1e4 standard deviations,
            groups of channels with very different variances, constant channels, and batch
            normalization weights that are zero or negative.
    """
    if kind not in ("normal", "awkward"):
        raise ProgramError(f"unknown kind of arguments {kind!r}", hint="use normal or awkward")
    rng = np.random.default_rng(seed)
    table = roles(graph)
    return {
        i.name: np.asarray(
            _contents(rng, i.value.type, table[i.name], kind == "awkward"), i.value.dtype
        )
        for i in graph.inputs
    }


def _contents(rng, type_: TensorType, role: Role, awkward: bool) -> np.ndarray:
    if not type_.is_float:
        return rng.integers(0, role.classes or 2**31 - 1, type_.shape)
    if role.operand in ("var", "running_var"):
        return (
            10 ** rng.uniform(-3, 3, type_.shape) if awkward else rng.uniform(0.5, 2, type_.shape)
        )
    if role.op in ("batch_norm", "bn_normalize") and role.operand == "weight":
        return _gamma(rng, type_.shape, awkward)
    if role.op in ("batch_norm", "bn_normalize") and role.operand == "bias":
        # Away from zero: a constant channel then lies on no activation's kink.
        return rng.choice([-1, 1], type_.shape) * rng.uniform(0.3, 1.5, type_.shape)
    values = rng.standard_normal(type_.shape)
    if role.operand == "weight" or role.op == "matmul":
        return values * np.sqrt(2 / max(1, np.prod(type_.shape[1:])))
    if awkward and len(type_.shape) == 4 and role.op:
        return _awkward_map(rng, values)
    return values


def _gamma(rng, shape, awkward: bool) -> np.ndarray:
    gamma = rng.uniform(0.5, 1.5, shape)
    return gamma * rng.choice([1.0, -1.0, 0.0], shape) if awkward else gamma


def _awkward_map(rng, values: np.ndarray) -> np.ndarray:
    """Per channel: a scale shared by its group of up to 16, a mean far away, or no spread."""
    channels = values.shape[1]
    group = int(rng.integers(1, 17))
    scales = 10.0 ** rng.uniform(-2, 2, -(-channels // group))
    scale = np.repeat(scales, group)[:channels]
    mean = rng.choice([0.0, 1.0, 1e2, 1e3, 1e4], channels) * scale
    spread = scale * (rng.uniform(size=channels) > 0.1)

    def along(v):
        return v.reshape(1, -1, 1, 1)

    return values * along(spread) + along(mean)
