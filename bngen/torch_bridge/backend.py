"""``torch.compile(model, backend="bngen")``: captured graphs, cut, built and called.

In: a graph that Dynamo has captured, before AOTAutograd takes batch normalization apart. Out: a
function that computes the same.

A model's first set of shapes is compiled at once. Another set (a ragged last batch, validation at
another size) runs in eager PyTorch; when it comes back it is built in the background, and taken
over once that is done: no step waits for a compiler.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import fx
from torch.nn.parallel import DistributedDataParallel
from torch.utils.weak import WeakIdKeyDictionary

from bngen.errors import BngenError, warn
from bngen.ir.node import Graph
from bngen.options import debug_level, environment
from bngen.torch_bridge.asked import Asked
from bngen.torch_bridge.builds import BUILDS
from bngen.torch_bridge.checkpoints import as_in_eager
from bngen.torch_bridge.distributed import carrier_named, group_of
from bngen.torch_bridge.evaluation import reads_number, sharing
from bngen.torch_bridge.explain import explained
from bngen.torch_bridge.forks import Lock
from bngen.torch_bridge.partition import MAPS
from bngen.torch_bridge.places import AROUND, CALLS
from bngen.torch_bridge.region import Region, asked_of
from bngen.torch_bridge.regions import Regions, cut
from bngen.torch_bridge.sync_batch_norm import sync_batch_norm, without_images
from bngen.torch_bridge.sync_layers import SyncBatchNorm, synchronize

Function = Callable[..., Any]


def backend(captured: fx.GraphModule, example_inputs: Sequence[Any], **unknown: Any) -> Function:
    """Dynamo's backend ``bngen``; see ``torch.compile``.

    Raises:
        BngenError: for ``mode`` and ``options``, of which it has none.
    """
    if unknown:
        given = ", ".join(f"{name}={value!r}" for name, value in unknown.items())
        hint = 'torch.compile(model, backend="bngen")'
        raise BngenError(f"torch.compile was given {given}, and bngen has no such thing", hint=hint)
    return Captured(captured, example_inputs)


def _whole(call: Function) -> Function:
    """A compiled model's call, in which Dynamo takes the model as one."""

    def called(*args: Any, **kwargs: Any) -> Any:
        with _as_one():
            return call(*args, **kwargs)

    return called


_MOST_GRAPHS = 64
"""Of one model: gradients on and off, autocast, formats, numbers of axes."""


@contextlib.contextmanager
def _as_one() -> Iterator[None]:
    """Let Dynamo capture a model in a DistributedDataParallel as one, in whatever way it is called.

    It would cut it at the borders of the buckets, so that their gradients are there early. A
    region's are so without a cut; see `stages`. And after few graphs of a model it would leave it
    to PyTorch: then a rank that has evaluated in many ways would no longer meet the others.
    """
    config = torch._dynamo.config
    before = config.optimize_ddp, config.recompile_limit
    config.optimize_ddp, config.recompile_limit = False, max(_MOST_GRAPHS, before[1])
    try:
        yield
    finally:
        config.optimize_ddp, config.recompile_limit = before


class _Models:
    """What has been captured so far: a model that comes again has other shapes."""

    def __init__(self) -> None:
        self._of_weight: Any = WeakIdKeyDictionary()
        self._without_weights: set[Any] = set()
        self._lock = Lock()

    def is_new(self, captured: fx.GraphModule, inputs: Sequence[Any]) -> bool:
        """Whether these calls come for the first time with these weights.

        They are those of a call. What a backend is given are others' where Dynamo has cut a model
        at the borders of a DistributedDataParallel's buckets: made up, and new each time.
        """
        weights = [x for x in inputs if isinstance(x, torch.nn.Parameter)]
        calls = _calls(captured), torch.is_grad_enabled()
        with self._lock:
            known = self._without_weights
            if weights:
                known = self._of_weight.setdefault(weights[0], set())
            new = calls not in known
            known.add(calls)
            return new


_MODELS = _Models()


def _calls(captured: fx.GraphModule) -> Any:
    """What a graph has in common with the same model's at another batch size."""
    return tuple(
        (str(n.target), repr(fx.node.map_arg((n.args, n.kwargs), lambda _: None)))
        for n in captured.graph.nodes
        if n.op in CALLS and n.target in MAPS
    )


def compile(model: torch.nn.Module, *, sync_bn: Any = None) -> torch.nn.Module:
    """Compile a PyTorch model in place, as ``model.compile(backend="bngen")`` does.

    Args:
        model: any ``torch.nn.Module``; what bngen does not know in it runs in PyTorch.
        sync_bn: a process group of ``torch.distributed``, or True for all ranks: batch
            normalizations become ``torch.nn.SyncBatchNorm``, which normalizes by the statistics of
            all its ranks' batches together. Models that have such layers need no saying so.

    Returns:
        The model itself: its parameters, its state_dict keys and its class stay.

    Raises:
        BngenError: for what is no module or no process group.
    """
    if not isinstance(model, torch.nn.Module):
        raise BngenError(
            f"compile takes a torch.nn.Module, not a {type(model).__name__}",
            hint="a program of bngen's own language is built by bngen.build",
        )
    if isinstance(model, DistributedDataParallel):
        # Dynamo does not see through its forward.
        compile(model.module, sync_bn=sync_bn)
        return model
    if sync_bn is not None and sync_bn is not False:
        group = group_of(sync_bn)
        # As in PyTorch's layers: of a process group there would be no copy.
        synchronize(model, None if group is torch.distributed.group.WORLD else group)
        if not any(isinstance(m, SyncBatchNorm) for m in model.modules()):
            hint = "torch.nn.BatchNorm2d, not torch.nn.functional.batch_norm"
            raise BngenError("sync_bn: the model has no layer of batch normalization", hint=hint)
    else:
        synchronize(model, local=False)
    model.compile(backend=backend)
    if (getattr(model.forward, "__module__", "") or "").startswith("torch.nn.modules."):
        # Dynamo passes over PyTorch's own forwards and would capture each layer for itself.
        model._compiled_call_impl = torch.compile(_own_frame(model._call_impl), backend=backend)
    model._compiled_call_impl = _whole(model._compiled_call_impl)
    return model


def _own_frame(call: Function) -> Function:
    """The same function, called in a frame that Dynamo captures and keeps versions of."""

    def model(*args: Any, **kwargs: Any) -> Any:
        return call(*args, **kwargs)

    model.__code__ = model.__code__.replace()  # Dynamo counts versions by code object
    return model


class Captured:
    """A captured graph, with a version for each set of shapes that it is called with.

    Args:
        captured: the graph.
        example_inputs: as a call's.
    """

    def __init__(self, captured: fx.GraphModule, example_inputs: Sequence[Any]):
        as_in_eager(captured)
        self._captured, self._is_called = captured, False
        # Ranks that meet in a layer do the same there, whatever their shares of a batch are.
        self._meets = any(n.target is sync_batch_norm for n in captured.graph.nodes)
        nodes = [n for n in captured.graph.nodes if n.op not in CALLS]
        self._numbers = [i for i, n in enumerate(nodes) if any(map(reads_number, n.users))]
        # Dynamo asks itself whether parameters and vectors are what they were.
        self._telling = [
            i
            for i, x in enumerate(example_inputs)
            if not isinstance(x, torch.nn.Parameter) and getattr(x, "ndim", 0) != 1
        ]
        self._versions: dict[Any, Function] = {}
        self._seen: set[Any] = set()
        self._waiting: dict[Any, _Waiting] = {}
        self._lock = Lock()

    def __call__(self, *inputs: Any) -> Any:
        """Compute the graph."""
        key = _key([inputs[i] for i in self._telling], [inputs[i] for i in self._numbers])
        version = self._versions.get(key)
        if version is None:
            with self._lock:
                version = self._decided(key, inputs)
        return version(*inputs)

    def _decided(self, key: Any, inputs: Sequence[Any]) -> Function:
        if key in self._versions:
            return self._versions[key]
        at_once = self._meets or not self._is_called and _MODELS.is_new(self._captured, inputs)
        self._is_called = True
        try:
            if at_once:
                self._versions[key] = finished(_cut(self._captured, inputs))
                return self._versions[key]
            return self._later(key, inputs)
        except BngenError as error:
            if not environment("fallback"):
                raise
            warn(f"bngen: {error}; this part of the model runs in PyTorch")
            self._versions[key] = self._captured
            return self._captured

    def _later(self, key: Any, inputs: Sequence[Any]) -> Function:
        """PyTorch's own, until what was asked for in the background is there."""
        if key not in self._seen:
            self._seen.add(key)
            return self._captured
        if key not in self._waiting:
            self._waiting[key] = _Waiting(_cut(self._captured, inputs))
        if not self._waiting[key].is_over():
            return self._captured
        self._versions[key] = finished(self._waiting[key].regions)
        del self._waiting[key]  # not before: it holds what was built
        return self._versions[key]


class _Waiting:
    """A cut graph whose regions are being built in the background."""

    def __init__(self, regions: Regions):
        self.regions = regions
        self._asked = dict.fromkeys(map(asked_of, regions.taken))
        self._built: dict[Asked, Any] = {}

    def is_over(self) -> bool:
        """Whether all is there; what is not is asked for."""
        for asked in self._asked.keys() - self._built.keys():
            module = BUILDS.ready(asked)
            if module is None:
                BUILDS.later(asked)
            else:
                self._built[asked] = module
        return len(self._built) == len(self._asked)


def _cut(captured: fx.GraphModule, inputs: Sequence[Any]) -> Regions:
    regions = cut(captured, inputs)
    if debug_level():
        print(explained([regions]), file=sys.stderr, flush=True)
    return regions


def finished(regions: Regions) -> Function:
    """A cut graph whose regions are built and loaded.

    Raises:
        BngenError: when a region cannot be built; it names the region's first line in the model.
    """
    for taken in regions.taken:
        asked = asked_of(taken)
        try:
            # Before anything is built, which takes its time on each rank.
            carriers = {name: carrier_named(name) for name in groups_of(taken.graph)}
            built = BUILDS.now(asked, taken.graph)
            if built.groups:
                built.connect(carriers)
            region = Region(built, taken, asked.wanted)
        except BngenError:
            raise
        except Exception as error:
            what = f"{taken.calls} calls, this the first, cannot be built: {_named(error)}"
            raise BngenError(what, loc=taken.loc, hint=AROUND) from error
        setattr(regions.module, taken.name, region)
    return without_images(regions.module)


def groups_of(graph: Graph) -> tuple[str, ...]:
    """The groups of ranks that a program exchanges values in."""
    return tuple(dict.fromkeys(n.attrs["group"] for n in graph.nodes if n.row.across))


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _key(inputs: Sequence[Any], numbers: Sequence[torch.Tensor]) -> tuple[Any, ...]:
    """What a version depends on: types, sizes, formats and sharing of memory; modes; numbers."""
    described = tuple(
        (x.shape, x.dtype, x.stride(), x.requires_grad, x.device)
        if isinstance(x, torch.Tensor)
        else x
        for x in inputs
    )
    autocast = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu")
    items = tuple(n.item() for n in numbers)
    return torch.is_grad_enabled(), autocast, described, sharing(inputs), items
