"""PyTorch's ``SyncBatchNorm`` on CPUs, where PyTorch refuses it, and DistributedDataParallel, too.

In: a model. Out: its batch normalizations as a `SyncBatchNorm` of bngen's own (`synchronize`),
which calls `sync_batch_norm`.
"""

from __future__ import annotations

import copy
import functools
import types
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.lazy import LazyModuleMixin

from bngen.errors import BngenError
from bngen.torch_bridge.sync_batch_norm import sync_batch_norm


@torch._dynamo.assume_constant_result
def _group_name(group: Any, world: Any) -> str:
    """What PyTorch calls a process group, all ranks for None; "" where there is one alone.

    Raises:
        BngenError: for a process group that has been destroyed.
    """
    if world is None:
        return ""
    group = group or world
    if dist.get_world_size(group) < 2:
        return ""
    if group not in dist.distributed_c10d._world.pg_map:
        what = f"process group {group.group_name!r} of a synchronized layer has been destroyed"
        raise BngenError(what, hint="bngen.compile(model, sync_bn=process_group) anew")
    return group.group_name


def _forward(self: SyncBatchNorm, input: Tensor) -> Tensor:
    """As ``torch.nn.SyncBatchNorm.forward``."""
    # Read here, where Dynamo sees it: with other ranks, or none, it captures the model anew.
    world = dist.distributed_c10d._world._default_pg if dist.is_available() else None
    group = _group_name(self.process_group, world) if self.training else ""
    if not group:
        return _BatchNorm.forward(self, input)
    self._check_input_dim(input)
    self._check_non_zero_input_channels(input)
    momentum = 0.0 if self.momentum is None else self.momentum
    if self.track_running_stats:
        self.num_batches_tracked.add_(1)
        if self.momentum is None:
            # A number would be another one in each step, and a program of its own.
            momentum = 1.0 / self.num_batches_tracked
    kept = (self.running_mean, self.running_var) if self.track_running_stats else (None, None)
    given = input, *kept, self.weight, self.bias, True, momentum, self.eps
    if torch.compiler.is_compiling():  # then it is named by its place; see `name_layers`
        return sync_batch_norm(*given, group=group)
    return sync_batch_norm(*given, group=group, layer=self.layer_name)


class SyncBatchNorm(_BatchNorm):
    """Batch normalization by the statistics of all ranks of a process group, on CPUs.

    Parameters, buffers and their names are those of PyTorch's layers. `synchronize` makes one of
    such a layer.

    Attributes:
        process_group: who takes part; all ranks for None.
        layer_name: in its model, for messages.
    """

    process_group: Any = None
    layer_name: str = ""
    forward = _forward
    _check_input_dim = nn.SyncBatchNorm._check_input_dim
    _check_non_zero_input_channels = nn.SyncBatchNorm._check_non_zero_input_channels

    def __deepcopy__(self, memo: dict[int, Any]) -> SyncBatchNorm:
        """A copy, in the same process group: of that there is no copy."""
        made = memo[id(self)] = type(self).__new__(type(self))
        memo[id(self.process_group)] = self.process_group
        made.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        return made


_PLAIN = (_BatchNorm, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
"""Layers that are nothing else."""


def synchronize(model: nn.Module, process_group: Any = None, *, local: bool = True) -> nn.Module:
    """Let a model's batch normalizations use the statistics of all ranks, on CPUs.

    The layers stay the objects that they are, with all that they hold; their class changes. The
    model can then be compiled by bngen or not at all, and be in a DistributedDataParallel.

    Args:
        model: the model.
        process_group: who takes part, in the place of whom an earlier call has named; of PyTorch's
            ``SyncBatchNorm`` layers, who it has.
        local: whether other layers than those change.

    Returns:
        The model itself.

    Raises:
        BngenError: for a layer that is a batch normalization and has a formula of its own, or has
            yet to see how many channels there are.
    """
    for name, module in model.named_modules():
        kind = type(module)
        if isinstance(module, nn.SyncBatchNorm):
            module.__class__ = _of_ours(kind)
        elif local and isinstance(module, _BatchNorm):
            if isinstance(module, LazyModuleMixin):
                raise BngenError(
                    f"sync_bn: {name or 'the model'} is a {kind.__name__} that has seen no input",
                    hint="call the model once before",
                )
            if not isinstance(module, SyncBatchNorm) and not _normalizes_by_super(kind):
                raise BngenError(
                    f"sync_bn: {name or 'the model'} is a {kind.__name__}, whose forward does not "
                    "leave normalizing to that of torch.nn.BatchNorm2d",
                    hint="call super().forward(x) there, or convert the model before, as "
                    "timm.layers.convert_sync_batchnorm does",
                )
            module.__class__ = _of_ours(kind)
            module.process_group = process_group
        if isinstance(module, SyncBatchNorm):
            module.layer_name = name
    return model


# --- classes made of PyTorch's ------------------------------------------------------------------


def _normalizes_by_super(kind: type) -> bool:
    """Whether a class made of PyTorch's layers has no formula of its own."""
    own = (vars(each).get("forward") for each in kind.__mro__[: kind.__mro__.index(_BatchNorm)])
    codes = [getattr(forward, "__code__", None) for forward in own if forward is not None]
    return all(code is not None and "__class__" in code.co_freevars for code in codes)


@functools.cache
def _of_ours(kind: type) -> type:
    """A class made of PyTorch's layers, made of bngen's instead.

    What it does besides, such as an activation, it does; its ``super().forward`` is bngen's.
    DistributedDataParallel would refuse one that has ``torch.nn.SyncBatchNorm`` among its bases.
    """
    if kind in _PLAIN:
        return SyncBatchNorm
    if issubclass(kind, SyncBatchNorm) or not issubclass(kind, _BatchNorm):
        return kind
    itself = types.CellType()
    own = {n: v for n, v in vars(kind).items() if n not in ("__dict__", "__weakref__")}
    held = {n: _within(v, itself) for n, v in own.items()}
    held["__reduce_ex__"] = lambda self, _: (_without_state, (kind,), self.__getstate__())
    made = type(kind)(kind.__name__, tuple(map(_of_ours, kind.__bases__)), held)
    itself.cell_contents = made
    return made


def _within(value: Any, itself: types.CellType) -> Any:
    """What a class holds, for another class: the ``super()`` of functions is that one's."""
    names = value.__code__.co_freevars if isinstance(value, types.FunctionType) else ()
    if "__class__" not in names:
        return value
    cells = tuple(
        itself if name == "__class__" else cell
        for name, cell in zip(names, value.__closure__, strict=True)
    )
    given = value.__code__, value.__globals__, value.__name__, value.__defaults__, cells
    made = types.FunctionType(*given)
    made.__kwdefaults__, made.__doc__ = value.__kwdefaults__, value.__doc__
    return made


def _without_state(kind: type) -> SyncBatchNorm:
    """A layer to be loaded, of the class that is ours in the place of one of PyTorch's."""
    made = _of_ours(kind)
    return made.__new__(made)
