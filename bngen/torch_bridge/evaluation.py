"""What is known of a captured graph's values before it runs: types, memory, gradients, changes.

In: a captured graph and the inputs of a call. Out: the same graph, whose nodes carry

- ``meta["val"]``: a fake tensor, or what PyTorch's own `FakeTensorProp` notes of other values;
- ``meta["requires_grad"]``: whether autograd would follow it (of a tuple, any part);
- ``meta["unfollowed"]``: whether it is called where autograd follows nothing (``no_grad``);
- ``meta["autocast"]``: the type that ``torch.autocast`` is on with, where it is called; or None;
- ``meta["writes"]``: the operands that the call changes in place, as PyTorch counts changes, or
  cuts off from their gradients in place;
- ``meta["memory"]``: a number that values in the same memory have in common, None of no tensor;
- ``meta["object"]``: a number that the results have in common that are one and the same object.

What follows from sizes alone becomes a constant; what takes the size of another tensor takes the
size.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx
from torch._subclasses import FakeTensorMode
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    UnsupportedFakeTensorException,
    UnsupportedOperatorException,
)
from torch.fx.passes.fake_tensor_prop import FakeTensorProp

from bngen.torch_bridge.places import ATTRIBUTE, CALLS, FUNCTION, METHOD, called
from bngen.torch_bridge.sync_batch_norm import sync_batch_norm

_ONLY_AT_RUN_TIME = (
    DataDependentOutputException,
    DynamicOutputShapeException,
    UnsupportedFakeTensorException,
    UnsupportedOperatorException,
)


class UnknownUntilRunError(Exception):
    """A graph with a call of whose result nothing is known before it runs; the message says so."""


def evaluate(module: fx.GraphModule, inputs: Sequence[Any]) -> None:
    """Annotate a graph.

    Args:
        module: the graph; nodes that only compute sizes are removed.
        inputs: of a call.

    Raises:
        UnknownUntilRunError: when it cannot be done for this graph.
    """
    for node in module.graph.nodes:
        if node.op == FUNCTION and _switches_levels(node.target):
            raise UnknownUntilRunError(f"{called(node)} is of torch.func, which PyTorch runs")
    grad = torch.is_grad_enabled()
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    # Tensors of inference mode count no changes; the caller's hooks are not for what is fake.
    hooks = torch.autograd.graph.saved_tensors_hooks(_itself, _itself)
    # What the graph switches on is switched off however this is left.
    with (
        torch.inference_mode(False), torch.set_grad_enabled(grad), _same_autocast(), hooks,
        unlogged(),
    ):  # fmt: skip
        given = _without_inference(inputs)
        fakes = [_fake(mode, x) if isinstance(x, torch.Tensor) else x for x in given]
        _Evaluation(module, mode, _numbers(module.graph, inputs)).propagate_dont_convert_inputs(
            *fakes
        )
    for node in list(module.graph.nodes):
        value = node.meta.get("val")
        if isinstance(value, torch.Size | int | float | bool):
            _make_constant(node, value)
        elif node.op == METHOD and node.target in _SIZED_AS:
            node.target, node.args = _SIZED_AS[node.target], (node.args[0], tuple(value.shape))
            node.kwargs = {}


def _switches_levels(function: Any) -> bool:
    """Whether a call is of a transform of ``torch.func``.

    One of them begins it and another ends it, for all calls between them and of the process.
    """
    return str(getattr(function, "__module__", "")).startswith(_LEVELS)


_LEVELS = (
    "torch._C._functorch",
    "torch._functorch.eager_transforms",
    "torch._functorch.predispatch",
)
_SIZED_AS = {"reshape_as": "reshape", "view_as": "view", "expand_as": "expand"}


def reads_number(node: fx.Node) -> bool:
    """Whether a call takes the number out of a tensor, as Dynamo hands numbers that may change."""
    return node.op == METHOD and node.target == "item" and node.args[0].op not in CALLS


def _numbers(graph: fx.Graph, inputs: Sequence[Any]) -> dict[fx.Node, Any]:
    """What those calls give for these inputs."""
    given = dict(zip((n for n in graph.nodes if n.op not in CALLS), inputs, strict=False))
    return {n: given[n.args[0]].item() for n in graph.nodes if reads_number(n)}


@contextlib.contextmanager
def unlogged() -> Iterator[None]:
    """Of a call that is only tried PyTorch would log why it fails."""
    before, _FAKES.disabled = _FAKES.disabled, True
    try:
        yield
    finally:
        _FAKES.disabled = before


_FAKES = logging.getLogger("torch._subclasses.fake_tensor")


def _same_autocast() -> torch.autocast:
    enabled = torch.is_autocast_enabled("cpu")
    return torch.autocast("cpu", torch.get_autocast_dtype("cpu"), enabled)


def _itself(saved: torch.Tensor) -> torch.Tensor:
    return saved


def _without_inference(inputs: Sequence[Any]) -> list[Any]:
    """The inputs, those of inference mode replaced by others that share memory where they do."""
    memory: dict[int, torch.UntypedStorage] = {}

    def replaced(value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or not value.is_inference():
            return value
        own = value.untyped_storage()
        if own._cdata not in memory:
            memory[own._cdata] = torch.UntypedStorage(own.nbytes(), device=own.device)
        place = value.storage_offset(), value.shape, value.stride()
        new = torch.empty(0, dtype=value.dtype, device=value.device)
        return new.set_(memory[own._cdata], *place)

    return list(map(replaced, inputs))


def _fake(mode: FakeTensorMode, value: torch.Tensor) -> torch.Tensor:
    try:
        return mode.from_tensor(value, static_shapes=True)
    except Exception as error:
        said = f"{type(error).__name__}: {' '.join(str(error).split()):.200}"
        raise UnknownUntilRunError(f"a tensor has no type to evaluate it on: {said}") from error


class _Evaluation(FakeTensorProp):
    """PyTorch's own, which also notes what is said above."""

    def __init__(
        self, module: fx.GraphModule, mode: FakeTensorMode, numbers: Mapping[fx.Node, Any]
    ):
        super().__init__(module, mode)
        self._numbers = numbers
        self._objects: list[Any] = []  # alive, so that no two have one number

    def run_node(self, n: fx.Node) -> Any:
        if n in self._numbers:
            n.meta["val"] = self._numbers[n]
            return self._numbers[n]
        n.meta["unfollowed"] = not torch.is_grad_enabled()
        autocast = torch.is_autocast_enabled("cpu")
        n.meta["autocast"] = torch.get_autocast_dtype("cpu") if autocast else None
        before = {i: _state(self.env[i]) for i in n.all_input_nodes}
        try:
            result = super().run_node(n)
        except _ONLY_AT_RUN_TIME as error:
            raise UnknownUntilRunError(
                f"what {called(n)} gives is known only when it has run"
            ) from error
        except Exception as error:
            # As it stands, or as what the model is given stands: PyTorch says it in its own words.
            said = " ".join(str(error).split())
            what = f"{called(n)} cannot be evaluated on types: {type(error).__name__}: {said:.200}"
            raise UnknownUntilRunError(what) from error
        if n.op == ATTRIBUTE and isinstance(result, torch.Tensor):
            # A call in place would change the tensor itself: what is not fake may be computed.
            result = _fake(self._mode, result)
        if n.target in _BATCH_NORMS:
            result = _laid_out_as_computed(result, self.env[n.args[0]] if n.args else None)
        tensors = list(tensors_of(result))
        n.meta["requires_grad"] = any(t.requires_grad for t in tensors)
        n.meta["writes"] = tuple(i for i, was in before.items() if _state(self.env[i]) != was)
        self._objects.append(result)
        n.meta["object"] = id(result)
        n.meta["memory"] = _memory(result) if isinstance(result, torch.Tensor) else None
        return result


def _laid_out_as_computed(result: Any, given: torch.Tensor | None) -> Any:
    """A batch normalization's result as it lies: types alone keep any order of the operand's."""
    if given is None or not isinstance(result, torch.Tensor):
        return result
    return result.contiguous(memory_format=torch._prims_common.suggest_memory_format(given))


def tensors_of(value: Any) -> Iterator[torch.Tensor]:
    """The tensors in a value, tuples and lists looked through."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for part in value:
            yield from tensors_of(part)


def _state(value: Any) -> tuple[tuple[int, bool], ...]:
    # PyTorch counts no change where detach_ makes one.
    return tuple((t._version, t.requires_grad) for t in tensors_of(value))


def sharing(values: Sequence[Any]) -> tuple[int, ...]:
    """For each value the number of the first that lies in the same memory."""
    memories = [_memory(x) if isinstance(x, torch.Tensor) else None for x in values]
    return tuple(i if m is None else memories.index(m) for i, m in enumerate(memories))


def _memory(value: torch.Tensor) -> int | None:
    try:
        return value.untyped_storage()._cdata
    except (NotImplementedError, RuntimeError):  # no storage, as sparse tensors have none
        return None


def _make_constant(node: fx.Node, value: Any) -> None:
    for user in list(node.users):
        user.args = _substituted(user.args, node, value)
        user.kwargs = _substituted(user.kwargs, node, value)
    if node.op in CALLS:
        node.graph.erase_node(node)


def _substituted(arguments: Any, node: fx.Node, value: Any) -> Any:
    return fx.node.map_arg(arguments, lambda n: value if n is node else n)


_LAYER = ("input", "running_mean", "running_var", "weight", "bias", "training")
_BUILT_IN = ("input", "weight", "bias", "running_mean", "running_var", "training")
_BATCH_NORMS: dict[Any, tuple[str, ...]] = {
    F.batch_norm: _LAYER, sync_batch_norm: _LAYER,
    torch.batch_norm: _BUILT_IN, torch.native_batch_norm: _BUILT_IN,
}  # fmt: skip
"""Batch normalizations, and the order of their arguments."""


def statistics(node: fx.Node) -> list[fx.Node]:
    """The running statistics that a batch normalization updates, which PyTorch does not count."""
    names = _BATCH_NORMS.get(node.target, ())
    given = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    if not names or not given.get("training"):
        return []
    found = (given.get("running_mean"), given.get("running_var"))
    return [s for s in found if isinstance(s, fx.Node)]


_MODES = ("grad_enabled", "autocast", "inference_mode")


def switches_mode(node: fx.Node) -> bool:
    """Whether a call changes how the calls after it are to be understood."""
    return node.op == FUNCTION and any(m in called(node) for m in _MODES)


def is_certain(node: fx.Node, known: Callable[[fx.Node], bool]) -> bool:
    """Whether a call does nothing but give its result, as far as bngen knows it."""
    return not node.meta.get("writes") and not switches_mode(node) and known(node)
