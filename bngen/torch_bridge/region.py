"""A region of a model as PyTorch calls it: bngen's forward and backward behind one autograd node.

In: what is to be built (`Asked`), and the loaded module of it. Out: a `Region`, which takes the
region's tensors and returns its results, with gradients where PyTorch wants them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from bngen.ir.node import Graph
from bngen.options import CHANNELS_LAST
from bngen.runtime.module import Module
from bngen.runtime.signature import BACKWARD
from bngen.torch_bridge.regions import Taken

AGAIN = (
    "Trying to backward through the graph a second time: a region compiled by bngen keeps nothing "
    "after its backward, retain_graph=True included. Add the losses up and call backward once, or "
    "call forward again."
)


@dataclass(frozen=True)
class Asked:
    """What is to be built of a region; equal regions share one build.

    Attributes:
        program: the text of its graph.
        wanted: of each argument, whether its gradient is wanted.
        formats: declared memory formats, by names as ``memory_format=`` takes them.
        threads: threads of a call.
    """

    program: str
    wanted: tuple[bool, ...]
    formats: tuple[tuple[str, str], ...]
    threads: int

    @classmethod
    def of(cls, taken: Taken) -> Asked:
        """What a region needs: tensors as they come, and results as eager would leave them."""
        flows = frozenset().union(*taken.reached)
        wanted = tuple(i in flows for i in range(len(taken.inputs)))
        named = dict(zip((i.name for i in taken.graph.inputs), taken.inputs, strict=True))
        named |= {f"return.{i}": node for i, node in enumerate(taken.outputs)}
        last = sorted(n for n, node in named.items() if is_channels_last(node.meta["val"]))
        formats = tuple((name, CHANNELS_LAST) for name in last)
        return cls(str(taken.graph), wanted, formats, torch.get_num_threads())

    def options(self, graph: Graph) -> dict[str, Any]:
        """Arguments of `bngen.bundle`."""
        names = [i.name for i, wanted in zip(graph.inputs, self.wanted, strict=True) if wanted]
        formats = dict(self.formats) or None
        if not names:
            return {"memory_format": formats}
        return {"grad": True, "wrt": names, "memory_format": formats}


def is_channels_last(value: torch.Tensor) -> bool:
    """Whether a tensor's channels lie innermost, and only so; of a view, those of a copy of it."""
    if value.ndim != 4:
        return False
    dense = torch.empty_like(value, device="meta")
    return not dense.is_contiguous() and dense.is_contiguous(memory_format=torch.channels_last)


class Region(torch.nn.Module):
    """One region, loaded.

    Args:
        built: its module, which other regions may share.
        taken: the region.
        wanted: of each argument, whether its gradient is wanted.
    """

    def __init__(self, built: Module, taken: Taken, wanted: tuple[bool, ...]):
        super().__init__()
        self.built, self.wanted, self.reached = built, wanted, taken.reached
        self.names = tuple(i.name for i in taken.graph.inputs)
        self.updated = {target.name for target, _ in taken.graph.updates}
        self.floats = tuple(v.type.is_float for v in taken.graph.outputs)
        backward = built.signature.call(BACKWARD)
        reads = set(backward.reads) - self.updated if backward else set()
        self.read = tuple(i for i, name in enumerate(self.names) if name in reads)

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The region's results."""
        if not any(self.wanted):
            return self.built.forward(*self.arguments(tensors))
        # A region may lie on both sides of a switch of gradients, which it has in its program.
        with torch.enable_grad():
            return _Differentiated.apply(self, *tensors)

    def arguments(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The tensors' own memory for bngen.

        Of running statistics without their count of changes: PyTorch's batch normalization does
        not count its updates, and its backward elsewhere in the model would refuse them.
        """
        return [
            t.data if name in self.updated else t.detach()
            for name, t in zip(self.names, tensors, strict=True)
        ]

    def flows(self, cotangents: Sequence[torch.Tensor | None]) -> frozenset[int]:
        """By number, the arguments that the gradients of results flow to."""
        given = zip(self.reached, cotangents, strict=True)
        return frozenset().union(*(reached for reached, g in given if g is not None))


class _Differentiated(torch.autograd.Function):
    """One call of a region's program, which waits for its backward."""

    @staticmethod
    def forward(ctx: Any, region: Region, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        results, call = region.built.record(*region.arguments(tensors))
        ctx.region, ctx.call = region, call
        ctx.set_materialize_grads(False)
        # For PyTorch's own check that nobody changes them before backward.
        ctx.save_for_backward(*(tensors[i] for i in region.read))
        apart = zip(results, region.reached, strict=True)
        ctx.mark_non_differentiable(*(r for r, reached in apart if not reached))
        return results

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *cotangents: torch.Tensor | None) -> tuple[Any, ...]:
        region: Region = ctx.region
        if ctx.call is None:
            raise RuntimeError(AGAIN)
        _ = ctx.saved_tensors  # raises where one of them was changed in place
        floats = [g for g, is_float in zip(cotangents, region.floats, strict=True) if is_float]
        call, ctx.call = ctx.call, None
        gradients = region.built.backward(*floats, call=call)
        flows = region.flows(cotangents)
        return None, *(
            gradients[name] if wanted and i in flows else None
            for i, (name, wanted) in enumerate(zip(region.names, region.wanted, strict=True))
        )
