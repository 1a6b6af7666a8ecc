"""A region of a model as PyTorch calls it: bngen's forward and backward behind one autograd node.

In: a region as it was cut. Out: what it asks to be built (`asked_of`); with the loaded module of
that a `Region`, which takes the region's tensors and returns its results, with gradients where
PyTorch wants them.

Where there are other processes, which want gradients as soon as they are there, the region's
arguments pass through identities (`stages`), each of which runs a part of the backward.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from bngen.options import CHANNELS_LAST, environment
from bngen.runtime.host import share_of_cpus
from bngen.runtime.module import Module
from bngen.runtime.signature import BACKWARD
from bngen.runtime.threads import default_threads
from bngen.torch_bridge.asked import Asked
from bngen.torch_bridge.derivatives import first_derivatives, tokens
from bngen.torch_bridge.distributed import carrier_named
from bngen.torch_bridge.empty_shares import Layer, told
from bngen.torch_bridge.reference import evaluate
from bngen.torch_bridge.regions import Taken
from bngen.torch_bridge.stages import UnderWay, is_shared, reads, stages_of, tapped


def asked_of(taken: Taken) -> Asked:
    """What a region needs: tensors as they come, and results as eager would leave them."""
    flows = frozenset().union(*taken.reached)
    wanted = tuple(i in flows for i in range(len(taken.inputs)))
    named = dict(zip((i.name for i in taken.graph.inputs), taken.inputs, strict=True))
    named |= {f"return.{i}": node for i, node in enumerate(taken.outputs)}
    last = sorted(n for n, node in named.items() if is_channels_last(node.meta["val"]))
    formats = tuple((name, CHANNELS_LAST) for name in last)
    return Asked(str(taken.graph), wanted, formats, _threads())


def _threads() -> int:
    """BNGEN_NUM_THREADS, else PyTorch's; where torchrun has left it one, a share of the CPUs."""
    count = torch.get_num_threads()
    by_share = count == 1 and share_of_cpus() is not None
    return default_threads() if by_share or environment("threads") is not None else count


def is_channels_last(value: torch.Tensor) -> bool:
    """Whether a tensor's channels lie innermost, and only so; of a view, those of a copy of it."""
    if value.ndim != 4:
        return False
    dense = torch.empty_like(value, device="meta")
    return not dense.is_contiguous() and dense.is_contiguous(memory_format=torch.channels_last)


def _unusual_strides(value: torch.Tensor) -> tuple[int, ...]:
    """Strides of a dense tensor whose axes lie in another order than regions give; else ()."""
    if value.is_contiguous() or is_channels_last(value):
        return ()
    dense = torch.empty_like(value, device="meta")
    return () if dense.is_contiguous() else dense.stride()


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
        self.graph = taken.graph
        self.names = tuple(i.name for i in taken.graph.inputs)
        self.updated = {target.name for target, _ in taken.graph.updates}
        self.floats = tuple(v.type.is_float for v in taken.graph.outputs)
        self._strides = tuple(_unusual_strides(node.meta["val"]) for node in taken.outputs)
        backward = built.signature.call(BACKWARD)
        kept = set(backward.reads) - self.updated if backward else set()
        self.read = tuple(i for i, name in enumerate(self.names) if name in kept)
        last_read = reads(built.bundle.built.steps, self.names)
        self.stages = stages_of(built.signature, self.names, last_read)
        self.layers = taken.layers

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The region's results."""
        if not any(self.wanted):
            arguments = self.arguments(tensors)
            results = self.built.forward(*arguments)
            self.lead(arguments)
            return self.as_eager(results)
        # A region may lie on both sides of a switch of gradients, which it has in its program.
        with torch.enable_grad():
            under_way = UnderWay(self.built, tokens(tensors))
            if len(self.stages) > 1 and is_shared():
                tensors = tapped(tensors, self.stages, under_way)
            return _Differentiated.apply(self, under_way, *tensors)

    def arguments(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The tensors' own memory for bngen.

        Of running statistics without their count of changes: PyTorch's batch normalization does
        not count its updates, and its backward elsewhere in the model would refuse them.
        """
        return [
            t.data if name in self.updated else t.detach()
            for name, t in zip(self.names, tensors, strict=True)
        ]

    def lead(self, arguments: Sequence[torch.Tensor]) -> None:
        """Tell ranks without images, if there are some, what the forward has left in buffers."""
        for group, followers in self.built.followers.items():
            if followers:
                layers = [
                    Layer(name, tuple(arguments[i] for i in kept))
                    for of, name, kept in self.layers
                    if of == group
                ]
                told(carrier_named(group), followers, layers)

    def as_eager(self, results: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Results in the order of memory that eager leaves them in, which may be any."""
        return tuple(
            torch.empty_strided(r.shape, s, dtype=r.dtype).copy_(r) if s else r
            for r, s in zip(results, self._strides, strict=True)
        )

    def flows(self, cotangents: Sequence[torch.Tensor | None]) -> frozenset[int]:
        """By number, the arguments that the gradients of results flow to."""
        given = zip(self.reached, cotangents, strict=True)
        return frozenset().union(*(reached for reached, g in given if g is not None))

    def joined(self, cotangents: Sequence[torch.Tensor | None]) -> bool:
        """Whether a zero for what nobody has asked for is added to what is handed on."""
        left = zip(self.reached, cotangents, strict=True)
        others = frozenset().union(*(reached for reached, g in left if g is None))
        return not others.isdisjoint(self.flows(cotangents))

    def by_pytorch(
        self, tensors: Sequence[torch.Tensor], cotangents: Sequence[torch.Tensor | None]
    ) -> dict[str, torch.Tensor]:
        """Gradients of those results alone that have a cotangent, by name of the argument."""
        flows = sorted(self.flows(cotangents))
        # The program says what is rounded: a caller's autocast has no part in it.
        with torch.enable_grad(), torch.autocast("cpu", enabled=False):
            leaves = [t.detach().requires_grad_(i in flows) for i, t in enumerate(tensors)]
            found = evaluate(
                self.graph, dict(zip(self.graph.input_values(), leaves, strict=True)), None
            )
            pairs = zip(self.graph.outputs, cotangents, strict=True)
            results, given = zip(*((found[v], g) for v, g in pairs if g is not None), strict=True)
            gradients = torch.autograd.grad(
                results, [leaves[i] for i in flows], given, materialize_grads=True
            )
        return dict(zip((self.names[i] for i in flows), gradients, strict=True))


@dataclass(frozen=True)
class _Rest:
    """All arguments, for `Region.by_pytorch`."""

    tensors: tuple[torch.Tensor, ...]
    versions: tuple[int, ...]

    @classmethod
    def of(cls, region: Region, arguments: Sequence[torch.Tensor]) -> _Rest | None:
        if sum(map(bool, region.reached)) < 2:
            return None
        return cls(tuple(arguments), tuple(map(_version, arguments)))

    def unchanged(self) -> tuple[torch.Tensor, ...]:
        """The arguments, as they were."""
        for tensor, version in zip(self.tensors, self.versions, strict=True):
            if _version(tensor) != version:
                raise RuntimeError(
                    "one of the variables needed for gradient computation has been modified by an "
                    f"inplace operation: a tensor of shape {list(tensor.shape)}"
                )
        return self.tensors


def _version(tensor: torch.Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


class _Differentiated(torch.autograd.Function):
    """One call of a region's program, which waits for its backward."""

    @staticmethod
    def forward(
        ctx: Any, region: Region, under_way: UnderWay, *tensors: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        arguments = region.arguments(tensors)
        results, call = region.built.record(*arguments)
        region.lead(arguments)
        results = region.as_eager(results)
        ctx.region, ctx.call, ctx.rest = region, call, _Rest.of(region, arguments)
        ctx.under_way, ctx.tokens = under_way, under_way.tokens
        ctx.set_materialize_grads(False)
        # For PyTorch's own check that nobody changes them before backward.
        ctx.save_for_backward(*(tensors[i] for i in region.read))
        apart = zip(results, region.reached, strict=True)
        ctx.mark_non_differentiable(*(r for r, reached in apart if not reached))
        return results

    @staticmethod
    @first_derivatives
    def backward(ctx: Any, *cotangents: torch.Tensor | None) -> tuple[Any, ...]:
        region: Region = ctx.region
        # Raises where one of them was changed in place, or where the graph was not retained.
        _ = ctx.saved_tensors
        floats = [g for g, is_float in zip(cotangents, region.floats, strict=True) if is_float]
        # What is kept lives as long as PyTorch's graph of the caller.
        retain = torch._C._autograd._get_current_graph_task_keep_graph()
        # Where ranks meet, one of them cannot go another way.
        whole = region.joined(cotangents) and not region.built.groups
        gradients = ctx.under_way.begin(floats, ctx.call, retain, whole=whole)
        if whole and not all(map(_is_finite, gradients.values())):
            # A zero cotangent, by a slope that is infinite: autograd would not have gone there.
            gradients = region.by_pytorch(ctx.rest.unchanged(), cotangents)
        if not retain:
            ctx.call = ctx.rest = None
        flows = region.flows(cotangents)
        names = enumerate(zip(region.names, region.wanted, strict=True))
        return (
            *(None, None),
            *(gradients[name] if wanted and i in flows else None for i, (name, wanted) in names),
        )


def _is_finite(gradient: torch.Tensor) -> bool:
    return bool(gradient.sum().isfinite())
