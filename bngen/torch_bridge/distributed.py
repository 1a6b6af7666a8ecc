"""Process groups of ``torch.distributed`` as what carries the values that ranks exchange.

In: a process group, or its name. Out: a `Communicator` of bngen's runtime: a `Carrier`, and beside
it shared memory for the ranks of one machine. Each has connections of its own between the same
ranks: what PyTorch sends at the same time (gradients of DistributedDataParallel) may then be in
another order on another rank.
"""

from __future__ import annotations

import math
import secrets
import weakref
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from bngen.errors import BngenError, CallError
from bngen.options import environment
from bngen.runtime.communicator import Communicator, Far, waiting_for
from bngen.runtime.module import Module
from bngen.runtime.shared_memory import Shared, beside
from bngen.torch_bridge.forks import Lock, forget_at_fork

_AGAIN = "bngen.connect(module, process_group) with another one"
_DESTROYED = "the process group of these ranks has been destroyed"
_START = "torch.distributed.init_process_group('gloo')"


class Carrier(Far):
    """The ranks of a process group.

    All of them have to make one at the same point of the program.

    Args:
        group: the process group.

    Attributes:
        size: the number of ranks.
        rank: which of them this process is.
        names: which ranks of all processes they are.

    Raises:
        CallError: when the others do not come within the group's timeout.
    """

    def __init__(self, group: Any):
        self.size, self.rank = group.size(), group.rank()
        self.names = tuple(dist.get_process_group_ranks(group))
        self._group = group
        self._origin = weakref.ref(group)
        self._lost = ""
        if self.size > 1:
            with waiting_for(f"the ranks of process group {group.group_name!r} to connect", self):
                self._group = _connected(group)

    def close(self) -> None:
        """Give the connections up, and what they keep of the store that the ranks met in.

        That may be the server of its address, where the next process group wants to have its own.
        """
        self._lost, self._group = _DESTROYED, None

    def leave(self) -> None:
        """Exchange nothing any more, in a process that was forked: connections are the other's."""
        self._lost = "this process was forked from the one that the ranks know"

    def sum(self, array: np.ndarray) -> _Work:
        """Begin to add up an array of all ranks."""
        return _Work(self._open().allreduce([torch.from_numpy(array)]), array)

    def gather(self, array: np.ndarray) -> _Work:
        """Begin to gather bytes, as many of each rank."""
        found = np.empty((self.size, array.size), np.uint8)
        parts = list(torch.from_numpy(found).unbind())
        return _Work(self._open().allgather([parts], [torch.from_numpy(array)]), found)

    def check(self) -> None:
        """Refuse to go on where the process group is there no more.

        Raises:
            CallError: saying so.
        """
        # Whoever still holds it keeps it alive, but it is none of PyTorch's any more.
        if self._lost or self._origin() not in dist.distributed_c10d._world.pg_map:
            raise CallError(self._lost or _DESTROYED, hint=_AGAIN)

    def _open(self) -> Any:
        self.check()
        return self._group


class _Work:
    """A collective of PyTorch that is under way, and the array that it fills."""

    def __init__(self, work: Any, array: np.ndarray):
        self._work, self._array = work, array

    def result(self) -> np.ndarray:
        """The array, when it is filled."""
        self._work.wait()
        return self._array


def _connected(group: Any) -> Any:
    """New connections of the same ranks, with the same timeout; of MPI's groups, the same.

    They are no process group of PyTorch's. It would name that by the number of groups that each
    rank is in, and ranks which are in different numbers would look for each other in vain.
    """
    if not dist.is_gloo_available():
        return group
    timeout = _timeout_of(group)
    # Ranks that torchrun has started anew find in the store what they have left there before.
    name = torch.tensor([secrets.randbits(62)], device="cpu")
    dist.broadcast(name, dist.get_global_rank(group, 0), group)
    store = dist.distributed_c10d._get_process_group_store(group)
    store = dist.PrefixStore(f"bngen/{name.item()}", store)
    return dist.ProcessGroupGloo(store, group.rank(), group.size(), timeout)


def _timeout_of(group: Any) -> timedelta:
    return group._get_backend(torch.device("cpu")).options._timeout


def _carrier_of(group: Any) -> Carrier | Shared:
    carrier = Carrier(group)
    weakref.finalize(group, carrier.close).atexit = False
    if carrier.size == 1:
        return carrier
    with waiting_for(f"the ranks of process group {group.group_name!r} to share memory", carrier):
        timeout = _timeout_of(group).total_seconds() if dist.is_gloo_available() else math.inf
        return beside(carrier, timeout, wanted=environment("shared_memory"))


class _Carriers:
    """One for each process group, made when it is first needed."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[weakref.ref[Any], Carrier | Shared]] = {}
        self._making: dict[str, Lock] = {}
        self._others: list[Any] = []
        self._lock = Lock()
        forget_at_fork(self)

    def of(self, group: Any) -> Communicator:
        """That of a process group."""
        with self._lock:
            making = self._making.setdefault(group.group_name, Lock())
        # Ranks may come to several groups in another order, in threads: none waits for the others.
        with making:
            known = self._known.get(group.group_name)
            # Names are used again once a group is destroyed.
            if known is None or known[0]() is not group:
                known = self._known[group.group_name] = weakref.ref(group), _carrier_of(group)
            return known[1]

    def after_fork(self) -> None:
        """In a forked process: connections are the other one's.

        To close them would wait for their threads, which are not in this process; what shares
        memory with other ranks would write there in the other's place.
        """
        for _, carrier in self._known.values():
            carrier.leave()
        self._others.append(self._known)
        self._known, self._making = {}, {}


_CARRIERS = _Carriers()


def carrier_named(name: str) -> Communicator:
    """That of the process group that PyTorch knows by a name.

    Raises:
        CallError: where there is none, or where its ranks do not meet.
    """
    try:
        group = dist.distributed_c10d._resolve_process_group(name)
    except (LookupError, RuntimeError, ValueError) as error:
        what = f"there is no process group {name!r}: {' '.join(str(error).split()):.200}"
        raise CallError(what, hint=_START) from error
    return _CARRIERS.of(group)


def group_of(given: Any) -> Any:
    """A process group: the one that is given, or all ranks for None and True.

    Raises:
        BngenError: for what is none, and before ``torch.distributed`` is started.
    """
    if not dist.is_available() or not dist.is_initialized():
        raise BngenError("torch.distributed is not initialized", hint=_START)
    if given is None or given is True:
        return dist.group.WORLD
    if not isinstance(given, dist.ProcessGroup):
        what = f"{given!r:.60} is no process group"
        if given == dist.GroupMember.NON_GROUP_MEMBER:
            what = "this rank is not in the process group"
        raise BngenError(what, hint="torch.distributed.new_group(ranks), on a rank that is in it")
    return given


def connect(module: Module, process_group: Any = None) -> Module:
    """Let a module exchange values with other processes, in ``all_reduce`` and ``batch_norm``.

    Every rank calls it, and then makes the same calls of the module in the same order.

    Args:
        module: of a program that does so, from `bngen.build` or `bngen.load`.
        process_group: of ``torch.distributed``, all ranks by default; or a dict of such by the
            names of groups that the program has.

    Returns:
        The module itself.

    Raises:
        BngenError: for what is no module or no process group, and before ``torch.distributed`` is
            initialized.
    """
    if not isinstance(module, Module):
        what = f"connect takes a module of bngen, not a {type(module).__name__}"
        raise BngenError(what, hint="bngen.compile(model, sync_bn=process_group) for PyTorch's")
    if isinstance(process_group, Mapping):
        groups = {name: group_of(group) for name, group in process_group.items()}
    else:
        groups = dict.fromkeys(module.groups, group_of(process_group))
    return module.connect({name: _CARRIERS.of(group) for name, group in groups.items()})
