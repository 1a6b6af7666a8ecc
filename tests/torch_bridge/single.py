"""One call of PyTorch through the backend's translation, evaluated by the interpreter, or compiled.

In: a call: a function or a method's name, and its arguments. Out: why bngen does not take it, or
its results and gradients.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx

from bngen.compiler import build
from bngen.ir.interp import run
from bngen.ir.node import Graph
from bngen.passes.autodiff import differentiate
from bngen.runtime.module import Module
from bngen.torch_bridge.element_types import array_of, tensor_of
from bngen.torch_bridge.evaluation import UnknownUntilRunError, evaluate
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
        module: the program compiled; without one it is interpreted.
    """

    refused: str
    graph: Graph | None
    tensors: tuple[torch.Tensor, ...]
    module: Module | None = None

    def compiled(self) -> Single:
        """The same, compiled."""
        wrt = [f"a{i}" for i in self.wanted]
        return replace(self, module=build(self.graph, grad=bool(wrt), wrt=wrt or None))

    @property
    def wanted(self) -> list[int]:
        """By number, the tensors whose gradient is asked for."""
        return [i for i, t in enumerate(self.tensors) if t.requires_grad]

    def results(self) -> list[torch.Tensor]:
        """What the call gives."""
        if self.module is not None:
            return list(map(tensor_of, self.module.forward(**self._arrays())))
        return list(map(tensor_of, run(self.graph, self._arrays()).outputs))

    def gradients(self, cotangents: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Of the tensors that are `wanted`, for one cotangent a floating-point result."""
        if self.module is not None:
            found = self.module.backward(*map(array_of, cotangents))
            return [tensor_of(found[f"a{i}"]) for i in self.wanted]
        whole = differentiate(
            self.graph, [f"a{i}" for i in self.wanted], independent=lambda names: None
        )
        seeds = {f"grad_{i}": array_of(c) for i, c in zip(self._floats(), cotangents, strict=True)}
        found = run(whole, self._arrays() | seeds).outputs[len(self.graph.outputs) :]
        return list(map(tensor_of, found))

    def _floats(self) -> list[int]:
        return [i for i, v in enumerate(self.graph.outputs) if v.type.is_float]

    def _arrays(self) -> dict[str, Any]:
        given = {f"a{i}": array_of(t.detach()) for i, t in enumerate(self.tensors)}
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
    result = function(*args, **kwargs).node
    graph.output(result)
    module = fx.GraphModule(torch.nn.Module(), graph)
    try:
        evaluate(module, tensors)
    except UnknownUntilRunError as error:
        return Single(str(error), None, tuple(tensors))
    graph, (result,) = module.graph, module.graph.output_node().args
    if isinstance(value := result.meta["val"], tuple | list):
        with graph.inserting_before(graph.output_node()):
            parts = [graph.call_function(operator.getitem, (result, i)) for i in range(len(value))]
        graph.output_node().args = (tuple(parts),)
        for part, of in zip(parts, value, strict=True):
            part.meta = {**result.meta, "val": of, "memory": None}
    shared = functionalize(graph)
    draw_masks(graph, shared)
    given = [n for n in graph.nodes if n.op == "placeholder"]
    for node in given:  # as if other calls had made them: views of them are taken, too
        node.meta["memory"] = None
    why = reasons(graph, shared)
    if why:
        return Single(next(iter(why.values())), None, tuple(tensors))
    calls = [n for n in graph.nodes if n.op in CALLS]
    results = graph.output_node().all_input_nodes
    return Single("", trace_region(calls, given, results, "single"), tuple(tensors))
