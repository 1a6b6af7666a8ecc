"""Batch normalization by the statistics of all ranks: one function, in graphs and in PyTorch.

In: a map, as `sync_layers` have it. Out: the map normalized (`sync_batch_norm`). Captured, that is
one call of the graph, which bngen's language answers; where a part of a model is left to PyTorch it
runs as it stands here. Results are those of PyTorch's ``SyncBatchNorm`` on GPUs.
"""

from __future__ import annotations

import contextlib
import contextvars
import re
from collections import Counter
from collections.abc import Callable, Container, Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch._subclasses import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor

from bngen.errors import BngenError
from bngen.moments import merged
from bngen.runtime.agreement import Agreement, Planned
from bngen.runtime.communicator import Communicator, Work, waiting_for
from bngen.runtime.signature import BACKWARD, FORWARD
from bngen.runtime.steps import MOMENTS, SUM
from bngen.torch_bridge.derivatives import first_derivatives
from bngen.torch_bridge.distributed import carrier_named
from bngen.torch_bridge.empty_shares import Follower, Layer, told

_ALONE = contextvars.ContextVar("_ALONE", default=False)


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Let layers normalize by this rank's batch, for what is not to wait for the others."""
    token = _ALONE.set(True)
    try:
        yield
    finally:
        _ALONE.reset(token)


@torch._dynamo.allow_in_graph
def sync_batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = True,
    momentum: float | Tensor = 0.1,
    eps: float = 1e-5,
    *,
    group: str = "",
    layer: str = "",
) -> Tensor:
    """``F.batch_norm`` in training, by the statistics of all ranks of a group.

    Args:
        input: ``[N, C]`` or ``[N, C, ...]``, of any batch size on each rank.
        running_mean: ``[C]``, updated in place; or None.
        running_var: ``[C]``, likewise.
        weight: factor ``[C]``.
        bias: summand ``[C]``.
        training: True.
        momentum: weight of the new batch in the running statistics.
        eps: added to the variance.
        group: the name of a process group.
        layer: what messages call it.

    Raises:
        BngenError: where AOTAutograd calls it, to see what it does.
        CallError: when the ranks do not meet.
    """
    if isinstance(input, FunctionalTensor):
        what = f"{layer or 'a layer'}: AOTAutograd takes calls apart that it cannot see into"
        hint = 'compile the model by bngen.compile, torch.compile(..., backend="bngen") or not'
        raise BngenError(what, hint=hint)
    if isinstance(input, FakeTensor):
        # Of one element for each channel PyTorch has no types of batch normalization in training.
        like = next(v for v in (weight, bias, running_mean, input) if v is not None)
        statistics = like.new_ones(2, input.shape[1])
        return F.batch_norm(input, *statistics, weight, bias, False, 0.0, eps)
    if _ALONE.get():
        given = input, weight, bias, running_mean, running_var
        return torch.batch_norm(*given, training, float(momentum), eps, False)
    if not input.numel():
        running = running_mean, running_var
        return Follower().normalized(input, running, weight, bias, group, layer)
    given = weight, bias, running_mean, running_var, momentum, eps
    followed = torch.is_grad_enabled() and input.requires_grad
    return _Synchronized.apply(input, *given, carrier_named(group), layer, followed)


class _Synchronized(torch.autograd.Function):
    """One call of a layer, in eager PyTorch."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None,
        running_mean: Tensor | None, running_var: Tensor | None, momentum: float | Tensor,
        eps: float, carrier: Communicator, layer: str, followed: bool,
    ) -> Tensor:  # fmt: skip
        # Statistics and sums of what is only stored are not.
        wide = x.dtype if x.dtype.itemsize >= 4 else torch.float32
        # A rank whose layer is in a region says other things here, and both are told.
        planned = [Planned(FORWARD, MOMENTS, 2 * x.shape[1], "float64", layer, "in PyTorch")]
        if followed:
            dtype = str(wide).removeprefix("torch.")
            planned.append(Planned(BACKWARD, SUM, 2 * x.shape[1], dtype, layer, "in PyTorch"))
        _, followers = Agreement(f"{layer or 'a layer'}: ", carrier, planned).settled()
        count = x.numel() // x.shape[1]
        axes = (0, *range(2, x.ndim))
        var, mean = torch.var_mean(x.double(), axes, correction=0)
        head = np.array([count], "<f8")
        sent = np.concatenate([head, mean.numpy(), var.numpy()]).view(np.uint8)
        gathered = _waited(lambda: carrier.gather(sent), "batch statistics", layer, carrier)
        found = gathered.view("<f8")
        mean, var, total = merged(found[:, 0].astype(int), *np.split(found[:, 1:], 2, axis=1))
        mean, var = (torch.from_numpy(v).to(wide) for v in (mean, var))
        kept: tuple[Tensor, ...] = ()
        if running_mean is not None and running_var is not None:
            kept = running_mean, running_var
            unbiased = var * (total / (total - 1)) if total > 1 else var * torch.nan
            share = float(momentum)
            running_mean.lerp_(mean.to(running_mean.dtype), share)
            running_var.lerp_(unbiased.to(running_var.dtype), share)
        if followers:
            told(carrier, followers, [Layer(layer, kept)])
        ctx.save_for_backward(x, weight, mean, var)
        ctx.rest = eps, total, carrier, layer
        vectors = (v if v is None else v.to(wide) for v in (weight, bias))
        return F.batch_norm(x, mean, var, *vectors, False, 0.0, eps)

    @staticmethod
    @first_derivatives
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        x, weight, mean, var = ctx.saved_tensors
        eps, total, carrier, layer = ctx.rest
        shape, axes = (1, -1, *(1,) * (x.ndim - 2)), (0, *range(2, x.ndim))
        inv, dy = (var + eps).rsqrt(), dy.to(mean.dtype)
        xhat = (x - mean.reshape(shape)) * inv.reshape(shape)
        own = torch.stack([dy.sum(axes), (dy * xhat).sum(axes)])
        dx = None
        if ctx.needs_input_grad[0]:
            sent = own.numpy().flatten()  # which copies
            found = _waited(lambda: carrier.sum(sent), "sums of gradients", layer, carrier)
            sums = torch.from_numpy(found) / total
            mean_dy, mean_dy_xhat = (s.reshape(shape) for s in sums.chunk(2))
            inner = dy - mean_dy - xhat * mean_dy_xhat
            dx = (inner * (inv if weight is None else inv * weight).reshape(shape)).to(x.dtype)
        # Autograd rounds these to the types of what they are gradients of.
        vectors = (own[i] if ctx.needs_input_grad[n] else None for n, i in ((1, 1), (2, 0)))
        return dx, *vectors, *(None,) * 7


def _waited(begin: Callable[[], Work], what: str, layer: str, carrier: Communicator) -> np.ndarray:
    with waiting_for(f"{what} of {layer or 'a layer'}", carrier):
        return begin().result()


# --- in captured graphs -----------------------------------------------------------------------


_NO_NAMES = {"L", "self", "__self__", "call", "_modules", "_orig_mod", "module"}
_STEP = re.compile(r"\['?([^'\]]+)'?\]|\.?([^.\[\]]+)")


def name_layers(graph: fx.Graph) -> None:
    """Tell each such call of a captured graph which layer of the model it is.

    What wraps a model is no part of a name, unless two layers would have the same.
    """
    paths: dict[fx.Node, str] = {}
    for node in graph.nodes:
        if node.target is sync_batch_norm and "layer" not in node.kwargs:
            stack = node.meta.get("nn_module_stack") or {}
            paths[node] = str(list(stack.values())[-1][0]) if stack else ""
    short = {path: _name(path, _NO_NAMES) for path in paths.values()}
    often = Counter(short.values())
    for node, path in paths.items():
        name = short[path] if often[short[path]] == 1 else _name(path)
        node.kwargs = {**node.kwargs, "layer": name}


def _name(path: str, without: Container[str] = ()) -> str:
    words = ("".join(found) for found in _STEP.findall(path))
    return ".".join(word for word in words if word not in without)


def layers_of(
    nodes: Sequence[fx.Node], inputs: Sequence[fx.Node]
) -> tuple[tuple[str, str, tuple[int, ...]], ...]:
    """Of each synchronized layer among calls its process group, its name, its running statistics.

    Args:
        nodes: the calls.
        inputs: what they read from elsewhere; of which running statistics are told by number.
    """
    found = []
    for node in nodes:
        if node.target is sync_batch_norm:
            kept = tuple(inputs.index(n) for n in node.args[1:3] if n is not None)
            found.append((node.kwargs["group"], node.kwargs["layer"], kept))
    return tuple(found)


# --- without images ---------------------------------------------------------------------------


def without_images(module: fx.GraphModule) -> fx.GraphModule | _WithoutImages:
    """A cut graph, ready to run on a rank that has no image for some of its layers.

    Args:
        module: whose calls of `sync_batch_norm` are those that no region has taken.
    """
    calls = [n for n in module.graph.nodes if n.target is sync_batch_norm and _is_empty(n)]
    return _WithoutImages(module, calls) if calls else module


def _is_empty(call: fx.Node) -> bool:
    value = call.args[0].meta.get("val")  # type: ignore[union-attr]
    return isinstance(value, Tensor) and not value.numel()


class _WithoutImages:
    """A graph some of whose layers follow those of the other ranks."""

    def __init__(self, module: fx.GraphModule, calls: list[fx.Node]):
        self._module, self._layers = module, _FollowingLayers()
        module.add_submodule("bngen_following", self._layers)
        for node in calls:
            node.op, node.target = "call_module", "bngen_following"
        module.recompile()

    def __call__(self, *inputs: Any) -> Any:
        self._layers.follower = Follower()
        return self._module(*inputs)


class _FollowingLayers(nn.Module):
    """All of them: `sync_batch_norm`, of one forward."""

    follower: Follower

    def forward(
        self, input: Tensor, running_mean: Tensor | None, running_var: Tensor | None,
        weight: Tensor | None, bias: Tensor | None, *_: Any, group: str, layer: str,
    ) -> Tensor:  # fmt: skip
        running = running_mean, running_var
        return self.follower.normalized(input, running, weight, bias, group, layer)
