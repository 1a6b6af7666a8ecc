"""One call of PyTorch through the backend's translation, evaluated by the interpreter.

In: a call: a function or a method's name, and its arguments. Out: why bngen does not take it, or
its results and gradients, nothing compiled.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from bngen.ir.interp import run
from bngen.ir.node import Graph
from bngen.passes.autodiff import differentiate
from bngen.torch_bridge.evaluation import evaluate
from bngen.torch_bridge.functional import functionalize
from bngen.torch_bridge.masks import draw_masks
from bngen.torch_bridge.places import CALLS
from bngen.torch_bridge.support import reasons
from bngen.torch_bridge.translate import trace_region


@dataclass(frozen=True)
class Single:
    """A call as bngen has it.

    Attributes:
        refused: why it is left to PyTorch; "" where it is taken.
        graph: the program; arguments ``a0``, ``a1``, ... are the call's tensors in order.
        tensors: the call's tensors.
    """

    refused: str
    graph: Graph | None
    tensors: tuple[torch.Tensor, ...]

    @property
    def wanted(self) -> list[int]:
        """By number, the tensors whose gradient is asked for."""
        return [i for i, t in enumerate(self.tensors) if t.requires_grad]

    def results(self) -> list[torch.Tensor]:
        """What the call gives."""
        return [torch.from_numpy(a.copy()) for a in run(self.graph, self._arrays()).outputs]

    def gradients(self, cotangents: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Of the tensors that are `wanted`, for one cotangent a floating-point result."""
        whole = differentiate(
            self.graph, [f"a{i}" for i in self.wanted], independent=lambda names: None
        )
        seeds = {f"grad_{i}": c.numpy() for i, c in zip(self._floats(), cotangents, strict=True)}
        found = run(whole, self._arrays() | seeds).outputs[len(self.graph.outputs) :]
        return [torch.from_numpy(a.copy()) for a in found]

    def _floats(self) -> list[int]:
        return [i for i, v in enumerate(self.graph.outputs) if v.type.is_float]

    def _arrays(self) -> dict[str, Any]:
        given = {f"a{i}": t.detach().numpy() for i, t in enumerate(self.tensors)}
        return {v.name: given[v.name] for v in self.graph.inputs}


def single(function: Callable[..., Any] | str, *args: Any, **kwargs: Any) -> Single:
    """What a function of PyTorch calls, or a method by its name, translated."""
    tensors, nodes = [], []
    graph = fx.Graph()

    def placed(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        tensors.append(value)
        nodes.append(fx.Proxy(graph.placeholder(f"x{len(nodes)}"), tracer))
        return nodes[-1]

    tracer = fx.proxy.GraphAppendingTracer(graph)
    args, kwargs = fx.node.map_aggregate((args, kwargs), placed)
    if isinstance(function, str):
        function = operator.methodcaller(function, *args[1:], **kwargs)
        args, kwargs = args[:1], {}
    graph.output(function(*args, **kwargs).node)
    module = fx.GraphModule(torch.nn.Module(), graph)
    evaluate(module, tensors)
    graph = module.graph
    shared = functionalize(graph)
    draw_masks(graph, shared)
    why = reasons(graph, shared)
    if why:
        return Single(next(iter(why.values())), None, tuple(tensors))
    calls = [n for n in graph.nodes if n.op in CALLS]
    given = [n for n in graph.nodes if n.op == "placeholder"]
    return Single("", trace_region(calls, given, calls[-1:], "single"), tuple(tensors))
