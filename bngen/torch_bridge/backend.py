"""``torch.compile(model, backend="bngen")``: captured graphs, cut, built and called.

In: a graph that Dynamo has captured, before AOTAutograd takes batch normalization apart. Out: a
function that computes the same.

A graph's first set of shapes is compiled at once. Another set (a ragged last batch, validation at
another size) runs in eager PyTorch; when it comes back it is built in the background, and taken
over once that is done: no step waits for a compiler.
"""

from __future__ import annotations

import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from bngen.errors import BngenError
from bngen.options import debug_level, environment
from bngen.torch_bridge.builds import BUILDS
from bngen.torch_bridge.explain import explained
from bngen.torch_bridge.region import Asked, Region
from bngen.torch_bridge.regions import Regions, cut

Function = Callable[..., Any]


def backend(captured: fx.GraphModule, example_inputs: Sequence[Any]) -> Function:
    """Dynamo's backend ``bngen``; see ``torch.compile``."""
    with _lock:
        known = captured.code in _codes
        _codes.add(captured.code)
    symbolic = any(isinstance(x, torch.SymInt) for x in example_inputs)
    return Captured(captured, first_at_once=not (known or symbolic))


_codes: set[str] = set()
"""Code of the graphs that have come: one that comes again has other shapes."""
_lock = threading.Lock()


def compile(model: torch.nn.Module) -> torch.nn.Module:
    """Compile a PyTorch model in place, as ``model.compile(backend="bngen")`` does.

    Args:
        model: any ``torch.nn.Module``; what bngen does not know in it runs in PyTorch.

    Returns:
        The model itself: its parameters, its state_dict keys and its class stay.

    Raises:
        BngenError: for what is no module.
    """
    if not isinstance(model, torch.nn.Module):
        raise BngenError(
            f"compile takes a torch.nn.Module, not a {type(model).__name__}",
            hint="a program of bngen's own language is built by bngen.build",
        )
    model.compile(backend=backend)
    return model


class Captured:
    """A captured graph, with a version for each set of shapes that it is called with.

    Args:
        captured: the graph.
        first_at_once: whether the first set is compiled at once.
    """

    def __init__(self, captured: fx.GraphModule, first_at_once: bool):
        self._captured, self._at_once = captured, first_at_once
        self._versions: dict[Any, Function] = {}
        self._seen: set[Any] = set()
        self._waiting: dict[Any, Regions] = {}
        self._lock = threading.RLock()

    def __call__(self, *inputs: Any) -> Any:
        """Compute the graph."""
        key = _key(inputs)
        version = self._versions.get(key)
        if version is None:
            with self._lock:
                version = self._decided(key, inputs)
        return version(*inputs)

    def _decided(self, key: Any, inputs: Sequence[Any]) -> Function:
        if key in self._versions:
            return self._versions[key]
        try:
            if self._at_once:
                self._at_once = False
                self._versions[key] = finished(_cut(self._captured, inputs))
                return self._versions[key]
            if key not in self._seen:
                self._seen.add(key)
                return self._captured
            regions = self._waiting.setdefault(key, None) or _cut(self._captured, inputs)
            self._waiting[key] = regions
            if not all([_is_ready(Asked.of(taken)) for taken in regions.taken]):
                return self._captured
            self._versions[key] = finished(regions)
            del self._waiting[key]
            return self._versions[key]
        except BngenError as error:
            if not environment("fallback"):
                raise
            warnings.warn(f"bngen: {error}; this part of the model runs in PyTorch", stacklevel=4)
            self._versions[key] = self._captured
            return self._captured


def _cut(captured: fx.GraphModule, inputs: Sequence[Any]) -> Regions:
    regions = cut(captured, inputs)
    if debug_level():
        print(explained([regions]), file=sys.stderr, flush=True)
    return regions


def _is_ready(asked: Asked) -> bool:
    """Whether a region is built; if not, it is going to be."""
    if BUILDS.ready(asked) is not None:
        return True
    BUILDS.later(asked)
    return False


def finished(regions: Regions) -> fx.GraphModule:
    """A cut graph whose regions are built and loaded."""
    for taken in regions.taken:
        asked = Asked.of(taken)
        region = Region(BUILDS.now(asked), taken.graph, asked.wanted)
        setattr(regions.module, taken.name, region)
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
