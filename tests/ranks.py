"""Several ranks in one process: programs whose batch normalizations meet, and threads to run them.

`synchronized` makes any program one of several ranks; `shared_out` splits a batch into shares.
`Ranks` carries what threads exchange, as process groups do between processes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from bngen.ir.build import GraphBuilder
from bngen.ir.node import Graph, Node
from bngen.passes.rewrite import rewrite
from bngen.runtime.communicator import Far

GROUP = "all"
MANY = 2**62


def synchronized(graph: Graph, group: str = GROUP) -> Graph:
    """The program with every batch normalization in training by the statistics of all ranks."""
    counts = {}

    def batch_norm(b: GraphBuilder, node: Node):
        eps = node.attrs["eps"]
        *results, count = b.emit(
            "sync_batch_norm", *node.inputs, eps=eps, group=group, name=node.out.name
        )
        counts[results[1]] = count
        return tuple(results)

    def bn_update(b: GraphBuilder, node: Node):
        mean, var, *momentum = node.inputs[2:]
        if mean not in counts:
            return None
        count = counts[mean]
        unbiased = b.emit("mul", var, b.emit("div", count, b.emit("sub", count, 1.0)))
        operands = (*node.inputs[:2], mean, unbiased, *momentum)
        return b.emit("bn_update", *operands, momentum=node.attrs["momentum"], count=MANY)

    return rewrite(graph, {"batch_norm": batch_norm, "bn_update": bn_update})


def shared_out(args: dict[str, np.ndarray], names: Sequence[str], shares: Sequence[int]):
    """Arguments of each rank: arrays of these names are split along the batch."""
    borders = np.cumsum(shares)[:-1]
    split = {name: np.split(args[name], borders) for name in names}
    return [{**args, **{n: s[i] for n, s in split.items()}} for i in range(len(shares))]


class Ranks:
    """What the ranks of one process exchange.

    Args:
        size: how many there are.
    """

    def __init__(self, size: int):
        self.size = size
        self.board: dict[tuple[int, int], np.ndarray] = {}
        self.changed = threading.Condition()
        self.carriers = [Carrier(self, rank) for rank in range(size)]

    def run(self, job: Callable[[int], Any]) -> list[Any]:
        """Do a job on each rank, in a thread of its own; what each gives, or its error."""
        results: list[Any] = [None] * self.size

        def work(rank: int) -> None:
            try:
                results[rank] = job(rank)
            except Exception as error:
                results[rank] = error

        threads = [threading.Thread(target=work, args=(rank,)) for rank in range(self.size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        return results


class Carrier(Far):
    """The communicator of one rank."""

    def __init__(self, ranks: Ranks, rank: int):
        self.size, self.rank, self.names = ranks.size, rank, range(ranks.size)
        self.log: list[tuple[str, int]] = []
        self.timeout = 60.0
        self._ranks = ranks

    def sum(self, array: np.ndarray) -> Work:
        return self._begun("sum", array, lambda found: np.add.reduce(found))

    def gather(self, array: np.ndarray) -> Work:
        return self._begun("gather", array, np.stack)

    def _begun(self, kind: str, array: np.ndarray, combine) -> Work:
        number = len(self.log)
        self.log.append((kind, array.size))
        with self._ranks.changed:
            self._ranks.board[number, self.rank] = array.copy()
            self._ranks.changed.notify_all()
        return Work(self._ranks, number, combine, self.timeout)


class Work:
    """What one rank waits for."""

    def __init__(self, ranks: Ranks, number: int, combine, timeout: float):
        self._ranks, self._number = ranks, number
        self._combine, self._timeout = combine, timeout

    def result(self) -> np.ndarray:
        keys = [(self._number, rank) for rank in range(self._ranks.size)]
        board, changed = self._ranks.board, self._ranks.changed
        with changed:
            if not changed.wait_for(lambda: all(k in board for k in keys), self._timeout):
                raise RuntimeError("[here.cc:1] Timed out waiting. Ask the others.")
        return self._combine([board[k] for k in keys])
