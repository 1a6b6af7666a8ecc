"""The outside opinion: any graph evaluated and differentiated by PyTorch, and the tolerance rule.

`torch_run` maps each op of the table to PyTorch's own function (``torch.nn.functional`` wherever
there is one) and takes gradients with PyTorch's autograd of the *forward* graph; none of bngen's
meanings or rules takes part, but for the random numbers, which no library shares.

The tolerance rule (`assert_close`): per tensor, the largest error against float64 is at most four
times PyTorch's own float32 error, plus 16 units in the last place of the tensor's largest element.
On a tensor of a few elements that are left over from cancellation, PyTorch's error is a single
throw of dice and may be zero by luck. `torch_runs` throws several times: once on the arguments as
they are, and then on arguments moved by at most one unit in the last place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from bngen.ir.interp import run
from bngen.ir.node import Graph, Node
from bngen.ir.ops import OPS

FACTOR, ULPS = 4, 16


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
    cotangents: Sequence[np.ndarray] | None = None,
) -> TorchResults:
    """Evaluate a graph with PyTorch in ``dtype``; integers stay as they are.

    ``cotangents`` are one a floating-point output, ones when not given.
    """
    env = {
        item.name: torch.tensor(np.asarray(args[item.name])).to(_torch_dtype(item.value, dtype))
        for item in graph.inputs
    }
    for name in grad_wrt or ():
        env[name].requires_grad_()
    leaves = {name: env[name] for name in grad_wrt or ()}
    for node in graph.nodes:
        results = _evaluate(graph, node, env, dtype)
        env.update(zip((v.name for v in node.outputs), results, strict=True))
    outputs = tuple(env[v.name] for v in graph.outputs)
    return TorchResults(
        tuple(_array(t) for t in outputs),
        {target.name: _array(env[new.name]) for target, new in graph.updates},
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
    results = [torch_run(graph, args, torch.float32, grad_wrt, cotangents)]
    for _ in range(runs - 1):
        near = {name: _nearby(rng, array) for name, array in args.items()}
        seeds = None if cotangents is None else [_nearby(rng, c) for c in cotangents]
        results.append(torch_run(graph, near, torch.float32, grad_wrt, seeds))
    return results


def _nearby(rng, array: np.ndarray) -> np.ndarray:
    if not np.issubdtype(np.asarray(array).dtype, np.floating):
        return array
    array = np.asarray(array, np.float32)
    direction = rng.choice(np.float32([-np.inf, np.inf]), array.shape)
    moved = rng.integers(0, 2, array.shape) > 0
    # Zeros stay: a step from zero is no rounding error of anything.
    return np.where(moved & (array != 0), np.nextafter(array, direction), array)


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


def _torch_dtype(value, dtype: torch.dtype) -> torch.dtype:
    return dtype if value.type.is_float else getattr(torch, value.dtype)


def _evaluate(graph: Graph, node: Node, env, dtype) -> tuple[torch.Tensor, ...]:
    tensors = [None if v is None else env[v.name] for v in node.inputs]
    if node.op == "bn_update":
        return _bn_update(graph, node, env, tensors)
    result = TORCH_OPS[node.op](tensors, node.attrs)
    results = result if isinstance(result, tuple) else (result,)
    return tuple(t.to(_torch_dtype(v, dtype)) for t, v in zip(results, node.outputs, strict=True))


def _bn_update(graph: Graph, node: Node, env, tensors) -> tuple[torch.Tensor, torch.Tensor]:
    """What F.batch_norm leaves in its buffers, run on the very tensor the statistics are of."""
    running_mean, running_var, mean, var, momentum = tensors
    m = node.attrs["momentum"] if momentum is None else float(momentum)
    with torch.no_grad():
        producer = graph.producers().get(node.inputs[2])
        if producer is not None and producer.op in ("batch_norm", "bn_stats"):
            kept = running_mean.detach().clone(), running_var.detach().clone()
            F.batch_norm(env[producer.inputs[0].name], *kept, training=True, momentum=m)
            return kept
        n = node.attrs["count"]
        return torch.lerp(running_mean, mean, m), torch.lerp(running_var, var * n / (n - 1), m)


# --- ops ----------------------------------------------------------------------------------------


def _along(v: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return v.reshape(1, -1, *(1,) * (x.ndim - 2))


def _spatial(x: torch.Tensor) -> tuple[int, ...]:
    return (0, *range(2, x.ndim))


def _conv(x, w, attrs):
    top, bottom, left, right = attrs["padding"]
    padded = F.pad(x, (left, right, top, bottom))
    return F.conv2d(
        padded, w, stride=attrs["stride"], dilation=attrs["dilation"], groups=attrs["groups"]
    )


def _pullback(fn: Callable, primal: torch.Tensor, cotangent: torch.Tensor) -> torch.Tensor:
    """The vector-Jacobian product of ``fn`` by autograd."""
    primal = primal.detach().requires_grad_()
    with torch.enable_grad():
        return torch.autograd.grad(fn(primal), primal, cotangent)[0]


def _blank(attrs, like: torch.Tensor) -> torch.Tensor:
    return torch.zeros(attrs["shape"], dtype=like.dtype)


def _conv_grad_input(t, attrs):
    dy, w = t
    return _pullback(lambda x: _conv(x, w, attrs), _blank(attrs, dy), dy)


def _conv_grad_weight(t, attrs):
    x, dy = t
    return _pullback(lambda w: _conv(x, w, attrs), _blank(attrs, dy), dy)


def _max_pool(t, attrs):
    (x,) = t
    y, plane = F.max_pool2d(
        x, attrs["kernel"], attrs["stride"], attrs["padding"], attrs["dilation"],
        attrs["ceil_mode"], return_indices=True,
    )  # fmt: skip
    rows, cols = plane // x.shape[3], plane % x.shape[3]
    tops, lefts = _window_origins(y.shape, attrs)
    taps = (rows - tops) // attrs["dilation"][0] * attrs["kernel"][1]
    return y, taps + (cols - lefts) // attrs["dilation"][1]


def _window_origins(shape, attrs):
    tops = torch.arange(shape[2]) * attrs["stride"][0] - attrs["padding"][0]
    lefts = torch.arange(shape[3]) * attrs["stride"][1] - attrs["padding"][1]
    return tops[:, None], lefts[None, :]


def _max_pool_grad(t, attrs):
    dy, taps = t[0], t[1].long()
    tops, lefts = _window_origins(dy.shape, attrs)
    rows = tops + taps // attrs["kernel"][1] * attrs["dilation"][0]
    cols = lefts + taps % attrs["kernel"][1] * attrs["dilation"][1]
    plane = (rows * attrs["shape"][3] + cols).flatten(2)
    dx = _blank(attrs, dy)
    return dx.flatten(2).scatter_add(2, plane, dy.flatten(2)).reshape(dx.shape)


def _avg_pool(x, attrs):
    return F.avg_pool2d(
        x, attrs["kernel"], attrs["stride"], attrs["padding"], attrs["ceil_mode"],
        attrs["count_include_pad"],
    )  # fmt: skip


def _avg_pool_grad(t, attrs):
    return _pullback(lambda x: _avg_pool(x, attrs), _blank(attrs, t[0]), t[0])


def _adaptive_grad(t, attrs):
    size = attrs["output_size"]
    return _pullback(lambda x: F.adaptive_avg_pool2d(x, size), _blank(attrs, t[0]), t[0])


def _moments(x):
    var, mean = torch.var_mean(x, _spatial(x), unbiased=False)
    return mean, var


def _batch_norm(t, attrs):
    x, weight, bias = t
    y = F.batch_norm(x, None, None, weight, bias, training=True, eps=attrs["eps"])
    return (y, *_moments(x))


def _batch_norm_grad(t, attrs):
    """PyTorch's own gradient; ``mean`` and ``var`` are those of x."""
    dy, x, _, _, weight = t
    gamma = torch.ones_like(x[0, :, ...].flatten(1)[:, 0]) if weight is None else weight
    beta = torch.zeros_like(gamma)
    leaves = [v.detach().requires_grad_() for v in (x, gamma, beta)]
    with torch.enable_grad():
        y = F.batch_norm(
            leaves[0], None, None, leaves[1], leaves[2], training=True, eps=attrs["eps"]
        )
        return torch.autograd.grad(y, leaves, dy)


def _bn_normalize(t, attrs):
    x, mean, var, weight, bias = t
    scale = torch.rsqrt(var + attrs["eps"])
    scale = scale if weight is None else scale * weight
    y = (x - _along(mean, x)) * _along(scale, x)
    return y if bias is None else y + _along(bias, x)


def _bn_grad_direct(t, attrs):
    dy, var, weight = t
    scale = torch.rsqrt(var + attrs["eps"])
    return dy * _along(scale if weight is None else scale * weight, dy)


def _bn_scale(t, attrs):
    var, weight = t
    scale = (var + attrs["eps"]).rsqrt()
    return scale if weight is None else scale * weight


def _bn_apply(t, attrs):
    x, mean, scale, bias = t
    y = (x - _along(mean, x)) * _along(scale, x)
    return y if bias is None else y + _along(bias, x)


def _bn_grad_apply(t, attrs):
    dy, x, *vectors = t
    mean, scale, mean_dy, slope = (_along(v, x) for v in vectors)
    return (dy - mean_dy - (x - mean) * slope) * scale


def _bn_grad_affine(t, attrs):
    x, mean, slope, offset = t
    return (x - _along(mean, x)) * _along(slope, x) + _along(offset, x)


def _bn_grad_sums(t, attrs):
    dy, x, mean = t
    return dy.sum(_spatial(x)), (dy * (x - _along(mean, x))).sum(_spatial(x))


def _bn_grad_input(t, attrs):
    """The input's gradient when the two sums are those of dy: `_batch_norm_grad`'s first result."""
    dy, x, mean, var, weight, _, _ = t
    return _batch_norm_grad((dy, x, mean, var, weight), attrs)[0]


def _rows(x, groups):
    return torch.movedim(x, 1, -1).reshape(groups, -1, x.shape[1])


def _partial_stats(t, attrs):
    rows = _rows(t[0], attrs["row_groups"])
    total = rows.sum(1)
    residual = (rows - total[:, None] / rows.shape[1]).sum(1)
    return total, rows.var(1, unbiased=False) * rows.shape[1], residual


def _partial_mean(t, attrs):
    total = _rows(t[0], attrs["row_groups"]).double().sum(1)
    rounded = total.to(t[0].dtype)
    return rounded, (total - rounded).to(t[0].dtype)


def _merge_mean(t, attrs):
    return ((t[0].double() + t[1].double()).sum(0) / attrs["count"]).to(t[0].dtype)


def _partial_var(t, attrs):
    x, mean = t
    return _rows(x - _along(mean, x), attrs["row_groups"]).square().sum(1)


def _merge_stats(t, attrs):
    """Mean and variance as moments about zero: another route than the table's merge."""
    total, m2, residual = (v.double() for v in t)
    count, dtype = attrs["count"], t[0].dtype
    means = (t[0] / count).double() + residual / count
    mean = means.mean(0)
    square = ((m2 - residual**2 / count) / count + means**2).mean(0)
    return mean.to(dtype), (square - mean**2).to(dtype)


def _partial_sums(t, attrs):
    dy, x, mean = t
    centred = x - _along(mean, x)
    return _rows(dy, attrs["row_groups"]).sum(1), _rows(dy * centred, attrs["row_groups"]).sum(1)


def _matmul(t, attrs):
    a, b = t
    return (a.T if attrs["trans_a"] else a) @ (b.T if attrs["trans_b"] else b)


def _one_hot(t, attrs):
    return torch.movedim(F.one_hot(t[0].long(), attrs["classes"]), -1, 1)


def _constant(t, attrs):
    return torch.tensor(attrs["value"], dtype=torch.float64)


def _from_numpy(op: str):
    """Random numbers are bngen's own definition; PyTorch has nothing to compare them with."""

    def evaluate(t, attrs):
        return torch.tensor(OPS[op].evaluate([x.numpy() for x in t], attrs)[0])

    return evaluate


def _spread(fn):
    return lambda t, a: fn(*t)


def _reduce(fn):
    return lambda t, a: fn(t[0], a["axes"], a["keepdims"]) if a["axes"] else t[0]


def _slice(t, attrs):
    return torch.narrow(t[0], attrs["axis"], attrs["start"], attrs["stop"] - attrs["start"])


TORCH_OPS: dict[str, Callable] = {
    **{
        name: _spread(fn)
        for name, fn in {
            "add": torch.add, "sub": torch.sub, "mul": torch.mul, "div": torch.div,
            "maximum": torch.maximum, "minimum": torch.minimum, "pow": torch.pow,
            "greater": torch.gt, "greater_equal": torch.ge, "less": torch.lt,
            "less_equal": torch.le, "equal": torch.eq, "not_equal": torch.ne,
            "exp": torch.exp, "log": torch.log, "sqrt": torch.sqrt, "rsqrt": torch.rsqrt,
            "tanh": torch.tanh, "sigmoid": torch.sigmoid, "silu": F.silu, "neg": torch.neg,
            "abs": torch.abs, "relu": F.relu, "where": torch.where, "copy": torch.clone,
            "stop_gradient": torch.Tensor.detach,
        }.items()
    },
    "leaky_relu": lambda t, a: F.leaky_relu(t[0], a["slope"]),
    "hardtanh": lambda t, a: F.hardtanh(t[0], a["lo"], a["hi"]),
    "cast": lambda t, a: t[0].to(getattr(torch, a["dtype"])) if "int" in a["dtype"] else t[0],
    "constant": _constant,
    "broadcast_to": lambda t, a: torch.broadcast_to(t[0], a["shape"]),
    "random_uniform": _from_numpy("random_uniform"),
    "one_hot": _one_hot,
    "bias_add": lambda t, a: t[0] + _along(t[1], t[0]),
    "sum": _reduce(torch.sum),
    "mean": _reduce(torch.mean),
    "amax": _reduce(torch.amax),
    "bn_stats": lambda t, a: _moments(t[0]),
    "bn_mean": lambda t, a: _moments(t[0])[0],
    "bn_var": lambda t, a: (t[0] - _along(t[1], t[0])).square().mean(_spatial(t[0])),
    "bn_normalize": _bn_normalize,
    "bn_grad_direct": _bn_grad_direct,
    "bn_grad_affine": _bn_grad_affine,
    "bn_scale": _bn_scale,
    "bn_apply": _bn_apply,
    "bn_grad_apply": _bn_grad_apply,
    "channel_scale": lambda t, a: t[0] * _along(t[1], t[0]),
    "bn_grad_sums": _bn_grad_sums,
    "bn_grad_input": _bn_grad_input,
    "bn_grad_partial_sums": _partial_sums,
    "bn_partial_stats": _partial_stats,
    "bn_partial_mean": _partial_mean,
    "bn_merge_mean": _merge_mean,
    "bn_partial_var": _partial_var,
    "bn_merge_stats": _merge_stats,
    "partial_sum": lambda t, a: _rows(t[0], a["row_groups"]).sum(1),
    "partial_max": lambda t, a: _rows(t[0], a["row_groups"]).amax(1),
    "batch_norm": _batch_norm,
    "batch_norm_grad": _batch_norm_grad,
    "conv2d": lambda t, a: _conv(*t, a),
    "conv2d_grad_input": _conv_grad_input,
    "conv2d_grad_weight": _conv_grad_weight,
    "matmul": _matmul,
    "max_pool2d": _max_pool,
    "max_pool2d_grad": _max_pool_grad,
    "avg_pool2d": lambda t, a: _avg_pool(t[0], a),
    "avg_pool2d_grad": _avg_pool_grad,
    "adaptive_avg_pool2d": lambda t, a: F.adaptive_avg_pool2d(t[0], a["output_size"]),
    "adaptive_avg_pool2d_grad": _adaptive_grad,
    "cat": lambda t, a: torch.cat(t, a["axis"]),
    "slice": _slice,
    "reshape": lambda t, a: t[0].reshape(a["shape"]),
}  # fmt: skip
"""Operands and attributes to results. bn_update needs to know where its statistics come from."""


# --- comparing ----------------------------------------------------------------------------------


def assert_close(ours, torch32, ref64, what: str, factor: float = FACTOR) -> None:
    """The tolerance rule, for one tensor, or a coarser one: ``factor`` times PyTorch's error.

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
    references = [*several, ref64]
    finite = np.logical_and.reduce([np.isfinite(r) for r in references])
    same = [np.isclose(ours, r, rtol=0, atol=0, equal_nan=True) for r in references]
    assert np.logical_or.reduce(same)[~finite].all(), f"{what}: NaN or infinity differs"
    if not finite.any():
        return
    ours, ref64, *several = (a[finite].astype(np.float64) for a in (ours, ref64, *several))
    scale = np.abs(ref64).max()
    theirs = max(np.abs(t - ref64).max() for t in several)
    allowed = factor * theirs + ULPS * np.finfo(np.float32).eps * scale
    error = np.abs(ours - ref64).max()
    # Stated so that a NaN of ours fails.
    assert error <= allowed, (
        f"{what}: error {error:.3g} exceeds {allowed:.3g} "
        f"(PyTorch's own {theirs:.3g}, largest element {scale:.3g})"
    )


def assert_same(ours, reference, what: str, rtol: float = 1e-9, floor: float = 1e-4) -> None:
    """Agreement of two tensors, relative to the largest element.

    What is all cancellation (a mean of what was centred) is compared as if it were of size
    ``floor``.
    """
    ours, reference = np.asarray(ours), np.asarray(reference)
    assert ours.shape == reference.shape, f"{what}: shape {ours.shape}, not {reference.shape}"
    scale = np.abs(reference).max(initial=floor, where=np.isfinite(reference))
    np.testing.assert_allclose(ours, reference, rtol=0, atol=rtol * scale, err_msg=what)


KINKS: dict[str, Callable] = {
    "relu": lambda x, a: np.abs(x[0]),
    "leaky_relu": lambda x, a: np.abs(x[0]),
    "abs": lambda x, a: np.abs(x[0]),
    "hardtanh": lambda x, a: np.minimum(np.abs(x[0] - a["lo"]), np.abs(x[0] - a["hi"])),
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
