"""A region of a model as PyTorch calls it: bngen's forward and backward behind one autograd node.

In: a region's program and what its tensors are like. Out: a module that takes the region's tensors
and returns its results, with gradients where PyTorch wants them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from bngen.compiler import build
from bngen.errors import BngenError
from bngen.runtime.module import Module
from bngen.torch_bridge.regions import Taken


class Region(torch.nn.Module):
    """One region, built.

    Args:
        taken: the region.
        requires_grad: of each of its arguments, whether it needs a gradient.
    """

    def __init__(self, taken: Taken, requires_grad: Sequence[bool]):
        super().__init__()
        names = [i.name for i in taken.graph.inputs]
        self.wanted = tuple(requires_grad)
        self.names = tuple(names)
        self.built = _built(taken, [n for n, r in zip(names, requires_grad, strict=True) if r])
        updated = {target.name for target, _ in taken.graph.updates}
        self.updated = tuple(i for i, n in enumerate(names) if n in updated)

    def forward(self, *tensors: torch.Tensor) -> Any:
        """The region's results."""
        if torch.is_grad_enabled() and any(
            t.requires_grad and w for t, w in zip(tensors, self.wanted, strict=True)
        ):
            results = _Differentiated.apply(self, *tensors)
        else:
            results = self.built.forward(*map(torch.Tensor.detach, tensors))
        for i in self.updated:
            torch.autograd.graph.increment_version(tensors[i])
        return results if len(results) > 1 else results[0]


class _Differentiated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, region: Region, *tensors: torch.Tensor) -> Any:
        results, call = region.built.record(*map(torch.Tensor.detach, tensors))
        ctx.region, ctx.call = region, call
        ctx.set_materialize_grads(False)
        # For PyTorch's own check that nobody changes them before backward; no copies are made.
        ctx.save_for_backward(*(t for i, t in enumerate(tensors) if i not in region.updated))
        ctx.mark_non_differentiable(*(r for r in results if not r.is_floating_point()))
        return results

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *cotangents: torch.Tensor | None) -> Any:
        _ = ctx.saved_tensors  # raises where one of them was changed in place
        region: Region = ctx.region
        floats = [
            g for g, out in zip(cotangents, region.built.signature.outputs, strict=True)
            if out.dtype.startswith("float")
        ]  # fmt: skip
        gradients = region.built.backward(*floats, call=ctx.call)
        wanted = zip(region.names, region.wanted, strict=True)
        return None, *(gradients[name] if w else None for name, w in wanted)


def _built(taken: Taken, wrt: Sequence[str]) -> Module:
    try:
        return build(
            taken.graph, grad=bool(wrt), wrt=list(wrt) if wrt else None,
            threads=torch.get_num_threads(), memory_format=_formats(taken),
        )  # fmt: skip
    except BngenError as error:
        raise BngenError(
            f"{taken.name}: {error}", hint="BNGEN_FALLBACK=1 runs it in PyTorch"
        ) from error


def _formats(taken: Taken) -> dict[str, str]:
    """The declared memory formats of a region's tensors: as they come, and as eager would leave."""
    named = dict(zip((i.name for i in taken.graph.inputs), taken.inputs, strict=True))
    found = {name: node.meta["val"] for name, node in named.items()}
    results = zip(taken.graph.outputs, taken.outputs, strict=True)
    found |= {f"return.{i}": node.meta["val"] for i, (_, node) in enumerate(results)}
    return {name: "channels_last" for name, value in found.items() if is_channels_last(value)}


def is_channels_last(value: torch.Tensor) -> bool:
    """Whether a tensor's channels lie innermost, and only so."""
    layout = torch.channels_last
    return (
        value.ndim == 4 and not value.is_contiguous() and value.is_contiguous(memory_format=layout)
    )
