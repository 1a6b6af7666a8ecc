"""How a compiled program is judged: awkward inputs, and how far it may stray from exact.

In: a program's graph; then for each `Case` what bngen, PyTorch in float32 and PyTorch in float64
made of it. Out: a `Finding` for each tensor. The rule: bngen's error against float64 is at most
`TIMES_TORCH` times PyTorch's own, plus `FEW_ULPS` units in the last place. NaN and infinities stand
exactly where PyTorch has them.

PyTorch's own error is the largest of several runs that are equally right: both memory layouts, and
inputs moved by one unit in the last place (`nudged`). One run is a single draw of rounding errors:
in a deep network it is now and then more than four times as lucky as any other correct program.

This module needs NumPy alone; who computes what is `verify_command`'s business.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from bngen.ir.interp import Results
from bngen.ir.node import Graph, Node, Value
from bngen.ir.ops import op_def

TIMES_TORCH = 4.0
FEW_ULPS = 16.0
ULP = float(np.finfo(np.float32).eps)

# --- what is compared -------------------------------------------------------------------------


@dataclass(frozen=True)
class Tensor:
    """A tensor that is compared.

    Attributes:
        name: how reports call it.
        kind: ``output``, ``mean``, ``variance``, ``running mean``, ``running variance`` or
            ``update``.
        value: the output of the instrumented graph that holds it; for an update, the input.
        partner: the variance that belongs to a mean, the mean that belongs to a variance.
    """

    name: str
    kind: str
    value: Value
    partner: Value | None = None


def instrument(graph: Graph) -> tuple[Graph, list[Tensor]]:
    """The graph with every BN's batch statistics among its outputs, and what to compare."""
    tensors = [
        Tensor(name, "output", v)
        for name, v in zip(_output_names(graph), graph.outputs, strict=True)
    ]
    for node in graph.nodes:
        if node.op in ("batch_norm", "bn_stats"):
            mean, var = node.outputs[-2:]
            name = _layer_name(node)
            tensors.append(Tensor(f"{name}.mean", "mean", mean, var))
            tensors.append(Tensor(f"{name}.var", "variance", var, mean))
    outputs = tuple(dict.fromkeys(t.value for t in tensors))
    tensors += _updated(graph)
    return replace(graph, outputs=outputs, output_names=(), tuple_output=True), tensors


def _output_names(graph: Graph) -> Sequence[str]:
    if graph.output_names:
        return graph.output_names
    if len(graph.outputs) == 1:
        return ["output"]
    return [f"output {i}" for i in range(len(graph.outputs))]


def _layer_name(node: Node) -> str:
    """A BN is called after its weight or bias; without them, after its result."""
    named = next((v.name for v in node.inputs[1:] if v is not None), node.out.name)
    return named.rsplit(".", 1)[0] if "." in named else node.out.name


def _updated(graph: Graph) -> Iterator[Tensor]:
    makers = graph.producers()
    held_by = {new: target for target, new in graph.updates}
    for target, new in graph.updates:
        maker = makers.get(new)
        if maker is None or maker.op != "bn_update":
            yield Tensor(target.name, "update", target)
            continue
        partner = next(v for v in maker.outputs if v != new)
        kind = "running mean" if new == maker.outputs[0] else "running variance"
        yield Tensor(target.name, kind, target, held_by.get(partner))


def collect(graph: Graph, tensors: Iterable[Tensor], results: Results) -> dict[str, np.ndarray]:
    """The compared tensors by the name of their value."""
    outputs = dict(zip((v.name for v in graph.outputs), results.outputs, strict=True))
    names = [t.value.name for t in tensors]
    return {n: np.asarray(outputs[n] if n in outputs else results.updates[n]) for n in names}


# --- how it is compared -----------------------------------------------------------------------


@dataclass(frozen=True)
class Finding:
    """One tensor of one case, judged; errors are relative to the tensor's natural scale.

    Attributes:
        case: the case's name.
        tensor: what was compared.
        error: bngen's largest error against float64.
        torch_error: PyTorch's largest error against float64.
        allowed: the largest error that passes.
        note: what is wrong besides, e.g. NaN in the wrong places.
    """

    case: str
    tensor: Tensor
    error: float
    torch_error: float
    allowed: float
    note: str = ""

    @property
    def ok(self) -> bool:
        """Whether the tensor passes."""
        return not self.note and self.error <= self.allowed


def judge(
    case: str,
    tensors: Iterable[Tensor],
    ours: Mapping[str, np.ndarray],
    torch: Sequence[Mapping[str, np.ndarray]],
    exact: Mapping[str, np.ndarray],
) -> list[Finding]:
    """Compare one case's tensors.

    Args:
        case: its name.
        tensors: what to compare.
        ours: bngen's arrays by the name of the value.
        torch: the same for each of PyTorch's float32 runs; the first says where NaN belongs.
        exact: the same in float64.
    """
    return [_judge_one(case, t, ours, torch, exact) for t in tensors]


def _judge_one(case, tensor, ours, torch, exact) -> Finding:
    key = tensor.value.name
    a, b, *others = (np.asarray(m[key], np.float64) for m in (ours, *torch))
    if a.shape != b.shape:
        note = f"shape {list(a.shape)}, PyTorch has {list(b.shape)}"
        return Finding(case, tensor, math.inf, 0.0, 0.0, note)
    finite = np.isfinite(b) & np.isfinite(exact[key])
    scale = _scale(tensor, exact)
    error, *torch_errors = (_largest(x, exact[key], scale, finite) for x in (a, b, *others))
    torch_error = max(torch_errors)
    odd = ~np.isfinite(b)
    if not np.array_equal(a[odd], b[odd], equal_nan=True) or not np.isfinite(a[~odd]).all():
        return Finding(case, tensor, error, torch_error, 0.0, "NaN or infinity out of place")
    return Finding(case, tensor, error, torch_error, TIMES_TORCH * torch_error + FEW_ULPS * ULP)


def _largest(x, exact, scale, where) -> float:
    with np.errstate(invalid="ignore"):  # where both are infinite, which `where` leaves out
        difference = np.abs(x - exact)
    # A difference of nothing counts as nothing, even on a scale of nothing.
    with np.errstate(divide="ignore"):  # any difference on a scale of nothing is infinite
        relative = np.divide(difference, scale, out=np.zeros_like(difference), where=difference > 0)
    return float(np.max(relative, initial=0.0, where=where & np.isfinite(x)))


def _scale(tensor: Tensor, exact: Mapping[str, np.ndarray]) -> np.ndarray:
    """The size by which an error of a tensor is measured, element by element.

    A mean is measured by the root mean square of what was averaged, a variance by itself and by
    what rounding the mean alone costs it; anything else by the tensor's largest element. Channels
    of small variance are thus held to their own scale, not to their neighbours'.
    """
    x = np.abs(np.asarray(exact[tensor.value.name], np.float64))
    if tensor.partner is None or tensor.partner.name not in exact:
        return np.full(x.shape, np.max(x, initial=0.0, where=np.isfinite(x)))
    partner = np.abs(np.asarray(exact[tensor.partner.name], np.float64))
    if tensor.kind in ("mean", "running mean"):
        return np.sqrt(x * x + partner)
    return x + ULP * partner * partner


# --- on which inputs --------------------------------------------------------------------------

ROLES = {
    ("conv2d", "weight"): "weight",
    ("matmul", "b"): "weight",
    ("batch_norm", "weight"): "gamma",
    ("batch_norm", "bias"): "bias",
    ("bn_normalize", "weight"): "gamma",
    ("bn_normalize", "bias"): "bias",
    ("bn_normalize", "mean"): "mean",
    ("bn_normalize", "var"): "variance",
    ("bn_update", "running_mean"): "mean",
    ("bn_update", "running_var"): "variance",
    ("bias_add", "bias"): "bias",
    ("one_hot", "labels"): "labels",
}
"""What an input is for, by the operand it is first used as; everything else is ``data``."""


def roles(graph: Graph) -> dict[str, str]:
    """The role of every input by name."""
    found: dict[str, str] = {}
    inputs = {i.name for i in graph.inputs}
    for node in graph.nodes:
        operands = op_def(node.op).operands
        for operand, value in zip(operands, node.inputs, strict=False):
            role = ROLES.get((node.op, operand.rstrip("?")))
            if role and value is not None and value.name in inputs:
                found.setdefault(value.name, role)
    return {name: found.get(name, "data") for name in sorted(inputs)}


Fill = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]


def _normal(mean: float, std: float) -> Fill:
    return lambda rng, shape: mean + std * rng.standard_normal(shape)


def _he(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    fan_in = math.prod(shape[1:]) or 1
    return rng.standard_normal(shape) * math.sqrt(2.0 / fan_in)


def _uniform(lo: float, hi: float) -> Fill:
    return lambda rng, shape: rng.uniform(lo, hi, shape)


def _zero_and_negative(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return np.resize([0.0, -1.0, 0.5, -0.25], shape)


def _with_constant_channel(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    # One channel, not all: a network fed a constant alone computes differences of equal numbers,
    # and then its own rounding, which no two correct programs share.
    x = rng.standard_normal(shape)
    x[(slice(None),) * (x.ndim > 1) + (slice(0, 1),) * (x.ndim > 0)] = 3.0
    return x


def _with_nan(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    x = rng.standard_normal(shape)
    x.flat[rng.integers(x.size)] = np.nan
    return x


_USUAL: dict[str, Fill] = {
    "data": _normal(0.0, 1.0),
    "weight": _he,
    "gamma": _uniform(0.5, 1.5),
    "bias": _normal(0.0, 0.2),
    "mean": _normal(0.0, 0.2),
    "variance": _uniform(0.5, 1.5),
}


@dataclass(frozen=True)
class Case:
    """Inputs of one run: how each role is filled where that differs from the usual."""

    name: str
    fills: Mapping[str, Fill]


CASES = (
    Case("random", {}),
    Case("mean 1e4 times the spread", {"data": _normal(1e4, 1.0)}),
    Case("constant channel", {"data": _with_constant_channel}),
    Case("gamma zero and negative", {"gamma": _zero_and_negative}),
    Case("NaN in the input", {"data": _with_nan}),
)


def cases_for(graph: Graph) -> list[Case]:
    """The cases that differ from the usual on this program's inputs."""
    there = {role for name, role in roles(graph).items() if name in _filled(graph)}
    return [case for case in CASES if not case.fills or there & set(case.fills)]


def _filled(graph: Graph) -> set[str]:
    """Inputs that a case fills; the others keep what initialization gave them."""
    of = roles(graph)
    floats = (i for i in graph.inputs if i.value.type.is_float)
    return {i.name for i in floats if i.kind == "input" or of[i.name] not in ("weight", "data")}


def make_inputs(
    graph: Graph, case: Case, state: Mapping[str, np.ndarray], seed: int
) -> dict[str, np.ndarray]:
    """An array for every input of the graph.

    Args:
        graph: the program.
        case: what is awkward this time.
        state: initialized parameters and buffers; weights keep what is here, the vectors of BN
            are filled anew so that each of them matters.
        seed: seed of the random numbers.
    """
    rng = np.random.default_rng(seed)
    fills = {**_USUAL, **case.fills}
    of, filled, classes = roles(graph), _filled(graph), _label_ranges(graph)
    arrays = {}
    for item in graph.inputs:
        value = item.value
        if item.name in filled:
            array = np.asarray(fills[of[item.name]](rng, value.shape))
        elif item.kind == "input":
            array = rng.integers(0, classes.get(item.name, 2), value.shape)
        else:
            array = np.array(state[item.name])
        arrays[item.name] = np.asarray(array, value.dtype)
    return arrays


def nudged(inputs: Mapping[str, np.ndarray], seed: int) -> dict[str, np.ndarray]:
    """The inputs with each float a unit in the last place larger or smaller."""
    rng = np.random.default_rng(seed)

    def nudge(x: np.ndarray) -> np.ndarray:
        signs = rng.integers(0, 2, x.shape) * 2 - 1
        return x * (1 + np.finfo(x.dtype).eps * signs).astype(x.dtype)

    return {name: nudge(x) if x.dtype.kind == "f" else x for name, x in inputs.items()}


def _label_ranges(graph: Graph) -> dict[str, int]:
    """How many classes an integer input may name."""
    return {n.inputs[0].name: n.attrs["classes"] for n in graph.nodes if n.op == "one_hot"}
