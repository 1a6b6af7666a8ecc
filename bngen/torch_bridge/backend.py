"""``torch.compile(model, backend="bngen")``: captured graphs, cut, compiled and called.

In: a graph that Dynamo has captured, before AOTAutograd takes batch normalization apart. Out: a
function that computes the same. Each set of shapes that a graph is called with has a `Version` of
its own: the first is compiled at once; another runs in eager PyTorch until it has come back
`PATIENCE` times, since a ragged last batch is not worth a compilation.
"""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from bngen.errors import BngenError
from bngen.options import environment
from bngen.torch_bridge.region import Region
from bngen.torch_bridge.regions import cut

_LOG = logging.getLogger(__name__)
PATIENCE = 3
"""Calls with a new set of shapes before it is compiled."""


def backend(captured: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
    """Dynamo's backend; see ``torch.compile``."""
    return Captured(captured)


def compile(model: torch.nn.Module) -> torch.nn.Module:  # noqa: A001 - as torch.compile
    """Compile a model in place: ``model.compile(backend=...)``, so that state_dict keys stay."""
    model.compile(backend=backend)
    return model


class Captured:
    """A captured graph, with a compiled version for each set of shapes that it is called with."""

    def __init__(self, captured: fx.GraphModule):
        self._captured = captured
        self._versions: dict[Any, Callable[..., Any]] = {}
        self._seen: dict[Any, int] = {}
        self._lock = threading.Lock()

    def __call__(self, *inputs: Any) -> Any:
        """Compute the graph."""
        key = _key(inputs)
        version = self._versions.get(key)
        if version is None:
            version = self._decide(key, inputs)
        return version(*inputs)

    def _decide(self, key: Any, inputs: Sequence[Any]) -> Callable[..., Any]:
        with self._lock:
            if key in self._versions:
                return self._versions[key]
            self._seen[key] = self._seen.get(key, 0) + 1
            if self._versions and self._seen[key] <= PATIENCE:
                return self._captured
            self._versions[key] = version = self._compiled(inputs)
            return version

    def _compiled(self, inputs: Sequence[Any]) -> Callable[..., Any]:
        try:
            return compiled(self._captured, inputs)
        except BngenError as error:
            if not environment("fallback"):
                raise
            warnings.warn(f"bngen: {error}; the model runs in PyTorch", stacklevel=2)
            return self._captured


def compiled(captured: fx.GraphModule, inputs: Sequence[Any]) -> fx.GraphModule:
    """A captured graph whose regions bngen computes."""
    regions = cut(captured, inputs)
    for taken in regions.taken:
        grads = [torch.is_grad_enabled() and n.meta["requires_grad"] for n in taken.inputs]
        setattr(regions.module, taken.name, Region(taken, grads))
    return regions.module


def _key(inputs: Sequence[Any]) -> tuple[Any, ...]:
    """What a version depends on: types and sizes, memory formats, which gradients are wanted."""
    described = tuple(
        (tuple(x.shape), x.dtype, x.stride(), x.requires_grad, x.device)
        if isinstance(x, torch.Tensor)
        else x
        for x in inputs
    )
    return torch.is_grad_enabled(), described
