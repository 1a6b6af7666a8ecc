"""Compiled programs against PyTorch and float64: forward, updates, and all gradients."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from bngen.compiler import build
from bngen.ir.interp import run
from bngen.ir.node import Graph
from bngen.runtime.communicator import Alone
from bngen.runtime.formats import memory_shape, to_logical_order, to_memory_order
from bngen.runtime.module import Module
from tests.oracle import assert_close, torch_run, torch_runs

Arrays = Mapping[str, np.ndarray]


def compiled(graph: Graph, level: str = "icf", target: str = "llvm -mcpu=native", **options):
    """A module with its gradient; that some input may not matter is no news in a random program."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "no output depends on")
        module = build(graph, fusion=level, target=target, **{"grad": True, **options})
    return module.connect(dict.fromkeys(module.groups, Alone()))


def as_declared(array: np.ndarray, memory_format: str) -> np.ndarray:
    """A copy that lies as a module wants it."""
    ordered = np.empty(memory_shape(array.shape, memory_format), array.dtype)
    copied = to_logical_order(ordered, memory_format)
    copied[...] = array
    return copied


def lies_as_declared(array: np.ndarray, memory_format: str) -> bool:
    """Whether a result is dense in its memory format."""
    return to_memory_order(array, memory_format).flags.c_contiguous


def forward(module: Module, args: Arrays) -> tuple[tuple[np.ndarray, ...], dict[str, np.ndarray]]:
    """Outputs in order, and what every updated input then holds."""
    module.load_state_dict({s.name: args[s.name] for s in module.signature.state})
    given = {
        s.name: as_declared(np.asarray(args[s.name]), s.memory_format)
        for s in module.signature.arguments
    }
    result = module(*given.values())
    if isinstance(result, dict):
        result = tuple(result.values())
    outputs = result if isinstance(result, tuple) else (result,)
    for array, spec in zip(outputs, module.signature.outputs, strict=True):
        assert lies_as_declared(np.asarray(array), spec.memory_format), spec
    return outputs, {**given, **module.state_dict()}


def check_forward(module: Module, graph: Graph, args: Arrays) -> None:
    """Outputs and updates obey the tolerance rule; nothing else has changed."""
    outputs, held = forward(module, args)
    exact, theirs = run(graph, args, "float64"), torch_runs(graph, args)
    for i, (ours, v) in enumerate(zip(outputs, graph.outputs, strict=True)):
        assert ours.dtype == v.dtype
        assert_close(ours, [t.outputs[i] for t in theirs], exact.outputs[i], f"output {i}")
    for name, array in held.items():
        if name in exact.updates:
            assert_close(array, [t.updates[name] for t in theirs], exact.updates[name], name)
        else:
            np.testing.assert_array_equal(array, args[name], err_msg=f"{name} was written to")


def cotangents_for(graph: Graph, seed: int = 0) -> list[np.ndarray]:
    """A gradient for each floating-point output."""
    rng = np.random.default_rng(seed)
    floats = [v for v in graph.outputs if v.type.is_float]
    return [np.asarray(rng.standard_normal(v.shape), np.float32) for v in floats]


def as_results(module: Module, cotangents: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Cotangents that lie as the results they belong to."""
    specs = module.signature.cotangents
    return [as_declared(c, s.memory_format) for c, s in zip(cotangents, specs, strict=True)]


def check_gradients(
    module: Module, graph: Graph, args: Arrays, cotangents: Sequence[np.ndarray] | None = None
) -> None:
    """Gradients obey the tolerance rule, and lie as their inputs do."""
    cotangents = cotangents_for(graph) if cotangents is None else cotangents
    forward(module, args)
    gradients = module.backward(*as_results(module, cotangents))
    formats = {s.name: s.memory_format for s in module.signature.gradients}
    theirs = torch_runs(graph, args, list(gradients), cotangents)
    exact = torch_run(graph, args, torch.float64, list(gradients), cotangents).grads
    for name, ours in gradients.items():
        assert lies_as_declared(ours, formats[name]), name
        assert_close(ours, [t.grads[name] for t in theirs], exact[name], f"gradient of {name}")


def check(graph: Graph, args: Arrays, level: str = "icf", **options) -> Module:
    """Compile, and check everything."""
    module = compiled(graph, level, **options)
    check_forward(module, graph, args)
    check_gradients(module, graph, args)
    return module
