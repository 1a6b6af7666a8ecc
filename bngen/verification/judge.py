"""How a compiled program is judged: what of it is compared, and whether that is close enough.

In: a program's graph; then for each case of `inputs` what bngen, PyTorch in the declared types and
PyTorch in float64 made of it. Out: a `Finding` for each tensor, by the rule of `tolerance`. NaN and
infinities stand exactly where PyTorch has them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from bngen.dtypes import DTYPES
from bngen.ir.interp import Results
from bngen.ir.node import Graph, Node
from bngen.ir.types import Value
from bngen.verification.tolerance import allowed, largest

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
        if node.row.statistics == "batch":
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
        if maker is None or maker.row.statistics != "running":
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
        torch: the same for each of PyTorch's runs; the first says where NaN belongs.
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
    return Finding(case, tensor, error, torch_error, allowed(torch_error, 1.0, tensor.value.dtype))


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
        return np.full(x.shape, largest(x))
    partner = np.abs(np.asarray(exact[tensor.partner.name], np.float64))
    if tensor.kind in ("mean", "running mean"):
        return np.sqrt(x * x + partner)
    return x + DTYPES[tensor.value.dtype].ulp * partner * partner
