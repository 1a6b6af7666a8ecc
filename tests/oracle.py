"""The outside opinion: any graph evaluated and differentiated by PyTorch, and comparing with it.

`torch_run` evaluates a graph by the PyTorch table (`bngen.torch_bridge.ops`) and takes gradients
with PyTorch's autograd of the *forward* graph; none of bngen's meanings or rules takes part, but
for the random numbers, which no library shares.

The tolerance rule is `bngen.verification.tolerance`; `assert_close` applies it to one tensor. On a
tensor of a few elements that are left over from cancellation, PyTorch's error is a single throw of
dice and may be zero by luck. `torch_runs` throws several times: once on the arguments as they are,
and then on arguments moved by at most one unit in the last place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from bngen.ir.interp import run
from bngen.ir.node import Graph
from bngen.torch_bridge import reference
from bngen.verification.tolerance import TIMES_TORCH, allowed, few_ulps, largest, nudged


@dataclass(frozen=True)
class TorchResults:
    """Outputs in order, updates by input name, gradients by input name; NumPy arrays."""

    outputs: tuple[np.ndarray, ...]
    updates: dict[str, np.ndarray]
    grads: dict[str, np.ndarray]


def torch_run(
    graph: Graph,
    args: Mapping[str, np.ndarray],
    dtype: torch.dtype = torch.float32,
    grad_wrt: Sequence[str] | None = None,
    cotangents: Iterable[np.ndarray] | None = None,
) -> TorchResults:
    """Evaluate a graph with PyTorch in ``dtype``; integers stay as they are.

    ``cotangents`` are one a floating-point output, ones when not given.
    """
    name = str(dtype).removeprefix("torch.")
    tensors = reference.inputs(graph, args, name)
    by_name = {v.name: t for v, t in tensors.items()}
    leaves = {n: by_name[n].requires_grad_() for n in grad_wrt or ()}
    results = reference.evaluate(graph, tensors, name)
    outputs = tuple(results[v] for v in graph.outputs)
    return TorchResults(
        tuple(_array(t) for t in outputs),
        {target.name: _array(results[new]) for target, new in graph.updates},
        _gradients(outputs, leaves, cotangents),
    )


def torch_runs(
    graph: Graph,
    args: Mapping[str, np.ndarray],
    grad_wrt: Sequence[str] | None = None,
    cotangents: Sequence[np.ndarray] | None = None,
    runs: int = 4,
) -> list[TorchResults]:
    """`torch_run` in float32, once as asked and then with floats a unit in the last place away."""
    rng = np.random.default_rng(0)
    args = {name: _single(array) for name, array in args.items()}
    results = [torch_run(graph, args, torch.float32, grad_wrt, cotangents)]
    for _ in range(runs - 1):
        near, seeds = nudged(args, rng), cotangents
        if cotangents is not None:
            seeds = nudged({str(i): _single(c) for i, c in enumerate(cotangents)}, rng).values()
        results.append(torch_run(graph, near, torch.float32, grad_wrt, seeds))
    return results


def _single(array: np.ndarray) -> np.ndarray:
    """Floats in single precision, whose last places are meant."""
    array = np.asarray(array)
    return array.astype(np.float32) if array.dtype.kind == "f" else array


def _gradients(outputs, leaves, cotangents) -> dict[str, np.ndarray]:
    floats = [t for t in outputs if t.is_floating_point()]
    given = [np.ones(t.shape) for t in floats] if cotangents is None else cotangents
    pairs = [
        (t, torch.tensor(np.asarray(c)).to(t.dtype))
        for t, c in zip(floats, given, strict=True)
        if t.requires_grad
    ]
    if not leaves or not pairs:
        return {name: np.zeros(t.shape, _array(t).dtype) for name, t in leaves.items()}
    found = torch.autograd.grad(
        [t for t, _ in pairs], list(leaves.values()), [c for _, c in pairs], allow_unused=True
    )
    return {
        name: _array(torch.zeros_like(leaf) if g is None else g)
        for (name, leaf), g in zip(leaves.items(), found, strict=True)
    }


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().numpy()


# --- comparing ----------------------------------------------------------------------------------


def assert_close(ours, torch32, ref64, what: str, times: float = TIMES_TORCH) -> None:
    """The tolerance rule, for one tensor, or a coarser one: ``times`` PyTorch's error.

    ``torch32`` is PyTorch's result in float32, or a list of several (see `torch_runs`); the error
    of the worst counts. Integers must be equal. Where the references are not finite, ours must be
    what one of them is.
    """
    several = torch32 if isinstance(torch32, (list, tuple)) else [torch32]
    ours, ref64, *several = (np.asarray(a) for a in (ours, ref64, *several))
    assert ours.shape == ref64.shape, f"{what}: shape {ours.shape}, not {ref64.shape}"
    if not np.issubdtype(ref64.dtype, np.floating):
        np.testing.assert_array_equal(ours, ref64, err_msg=what)
        return
    dtype, references = ours.dtype.name, [*several, ref64]
    finite = np.logical_and.reduce([np.isfinite(r) for r in references])
    same = [np.isclose(ours, r, rtol=0, atol=0, equal_nan=True) for r in references]
    assert np.logical_or.reduce(same)[~finite].all(), f"{what}: NaN or infinity differs"
    if not finite.any():
        return
    ours, ref64, *several = (a[finite].astype(np.float64) for a in (ours, ref64, *several))
    scale, theirs = largest(ref64), max(np.abs(t - ref64).max() for t in several)
    limit, error = allowed(theirs, scale, dtype, times), np.abs(ours - ref64).max()
    # Stated so that a NaN of ours fails.
    assert error <= limit, (
        f"{what}: error {error:.3g} exceeds {limit:.3g} "
        f"(PyTorch's own {theirs:.3g}, largest element {scale:.3g})"
    )


def assert_few_ulps(
    ours, reference, what: str = "", least: float = 0.0, each: bool = False
) -> None:
    """Agreement but for a few roundings, on the scale of the largest element, or of ``least``.

    For results that two libraries compute by the same few roundings; their types must agree, and
    NaN and infinities stand where they stand. With ``each``, every element on its own scale.
    """
    ours, reference = np.asarray(ours), np.asarray(reference)
    assert (ours.dtype, ours.shape) == (reference.dtype, reference.shape), what
    dtype = ours.dtype.name
    scale, relative = (least, few_ulps(1.0, dtype)) if each else (largest(reference, least), 0.0)
    np.testing.assert_allclose(
        ours, reference, rtol=relative, atol=few_ulps(scale, dtype), err_msg=what
    )


def assert_same(ours, reference, what: str, rtol: float = 1e-9, floor: float = 1e-4) -> None:
    """Agreement of two programs of one meaning in double precision, on the largest element's scale.

    Wider than a few roundings: they compute in another order, and roundings of one are multiplied
    by what follows, without PyTorch to say by how much. Still six digits closer than single
    precision. What is all cancellation (a mean of what was centred) is compared as if it were of
    size ``floor``. With ``rtol=0``, bit by bit.
    """
    ours, reference = np.asarray(ours), np.asarray(reference)
    assert ours.shape == reference.shape, f"{what}: shape {ours.shape}, not {reference.shape}"
    limit = rtol * largest(reference, floor)
    np.testing.assert_allclose(ours, reference, rtol=0, atol=limit, err_msg=what)


KINKS: dict[str, Callable] = {
    "relu": lambda x, a: np.abs(x[0]),
    "leaky_relu": lambda x, a: np.abs(x[0]),
    "abs": lambda x, a: np.abs(x[0]),
    "hardtanh": lambda x, a: np.minimum(np.abs(x[0] - a["lo"]), np.abs(x[0] - a["hi"])),
    "fmod": lambda x, a: np.abs(x[0] / x[1] - np.round(x[0] / x[1])),
    **dict.fromkeys(
        ("maximum", "minimum", "greater", "greater_equal", "less", "less_equal"),
        lambda x, a: np.abs(x[0] - x[1]),
    ),
}
"""How far each element is from a kink of the op."""


def kink_margin(graph: Graph, args: Mapping[str, np.ndarray]) -> float:
    """How close a program comes to a kink, relative to the tensor's largest element.

    Gradients jump there, so float32 and float64 may rightly disagree when this is about 1e-6.
    Elements exactly on a kink (zeros of an earlier ReLU, padding) do not count: they stay there in
    every precision. Windows of a max pool count by the gap between the two largest elements.
    """
    env = run(graph, args, "float64", keep=True).env
    margins = [1.0]
    for node in graph.nodes:
        arrays = [env[v.name] for v in node.operands]
        if node.op in KINKS:
            gaps = KINKS[node.op](arrays, node.attrs)
        elif node.op in ("max_pool2d", "amax"):
            gaps = _gaps(np.unique(arrays[0]))
        else:
            continue
        scale = max(np.abs(a).max(initial=0.0) for a in arrays)
        gaps = gaps[gaps > 0]
        if gaps.size and scale > 0:
            margins.append(float(gaps.min() / scale))
    return min(margins)


def _gaps(ordered: np.ndarray) -> np.ndarray:
    """Distances between neighbours: a bound from below on every window's gap."""
    return np.diff(ordered)
