"""Traffic: how often a plan sweeps feature maps through memory. Analysis only.

In: a `KernelPlan`. Out: for each kernel what it reads and writes. Nothing here decides anything.

- A *feature map* is a value ``[N,C,H,W]`` of more than one pixel that is no convolution's weight,
  nor a weight's gradient, nor computed from those.
- A *sweep* is one pass of one kernel over one feature map in memory. A kernel that reads a map in
  several slots, or through overlapping windows, sweeps it once: the rest comes from cache. What a
  load slot recomputes is no sweep; the maps it recomputes from are.
- A concatenation that lies in one piece is one map, and so is a slice of it. What sweeps of maps
  of different sizes cost is told by the *bytes*: those of every feature map in the layout it has,
  a slice counting as what it covers.

Sweeps are what Jung et al. (SysML 2019) count: "memory sweeps" of a layer over its feature maps.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from bngen.ir.node import Graph, Node
from bngen.ir.types import Value
from bngen.plan.calls import BACKWARD
from bngen.plan.kernel import Kernel, KernelPlan


@dataclass(frozen=True)
class Traffic:
    """Sweeps over feature maps and the bytes they move; ``+`` adds up."""

    sweeps_read: int = 0
    sweeps_written: int = 0
    bytes_read: int = 0
    bytes_written: int = 0

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(
            self.sweeps_read + other.sweeps_read,
            self.sweeps_written + other.sweeps_written,
            self.bytes_read + other.bytes_read,
            self.bytes_written + other.bytes_written,
        )

    @property
    def sweeps(self) -> int:
        """Sweeps read and written."""
        return self.sweeps_read + self.sweeps_written

    @property
    def nbytes(self) -> int:
        """Bytes read and written."""
        return self.bytes_read + self.bytes_written


@dataclass(frozen=True)
class KernelTraffic:
    """One row of the table that `kernel_traffic` gives.

    Attributes:
        kernel: the kernel.
        backward: whether it belongs to the call of that name.
        read: feature maps it reads from memory.
        written: feature maps it writes to memory.
        traffic: the sweeps over them.
    """

    kernel: Kernel
    backward: bool
    read: tuple[Value, ...]
    written: tuple[Value, ...]
    traffic: Traffic


def kernel_traffic(plan: KernelPlan) -> tuple[KernelTraffic, ...]:
    """What each kernel reads and writes, in execution order."""
    maps = feature_maps(plan.graph)
    backward = [call.name == BACKWARD for call in plan.calls for _ in range(call.start, call.stop)]
    rows = []
    for kernel, second in zip(plan.kernels, backward, strict=True):
        read = tuple(v for v in dict.fromkeys(kernel.inputs) if v in maps)
        written = tuple(v for v in kernel.outputs if v in maps)
        traffic = Traffic(
            len(read), len(written), sum(map(plan.nbytes, read)), sum(map(plan.nbytes, written))
        )
        rows.append(KernelTraffic(kernel, second, read, written, traffic))
    return tuple(rows)


def total(rows: Iterable[KernelTraffic]) -> Traffic:
    """The sum over a table's rows."""
    return sum((row.traffic for row in rows), Traffic())


def feature_maps(graph: Graph) -> frozenset[Value]:
    """The feature maps of a graph; see the module's text."""
    weights = _weights(graph)
    return frozenset(v for v in graph.values() if has_pixels(v) and v not in weights)


def has_pixels(v: Value) -> bool:
    """Whether a value has the axes of a feature map and more than one pixel."""
    return len(v.shape) == 4 and v.shape[2] * v.shape[3] > 1


def _weights(graph: Graph) -> set[Value]:
    """Weights of convolutions, their gradients, and what is computed from them element by element.

    A weight may be computed before it is used, and its gradient afterwards, so both directions are
    followed, until nothing new turns up.
    """
    found: set[Value] = set()
    for node in graph.nodes:
        found.update(v for v, role in zip(node.inputs, node.row.operands, strict=False)
                     if v is not None and role == "weight" and len(v.shape) == 4)  # fmt: skip
        if node.row.direction == "weight":
            found.update(node.outputs)
    grown = True
    while grown:
        before = len(found)
        for node in (*graph.nodes, *reversed(graph.nodes)):
            found |= _alike(node, found)
        grown = len(found) > before
    return found


def _alike(node: Node, found: set[Value]) -> set[Value]:
    """The values of an elementwise node, if one of them is among ``found``."""
    if node.row.kind not in ("pointwise", "copy"):
        return set()
    values = {v for v in (*node.operands, *node.outputs) if len(v.shape) == 4}
    return set() if values.isdisjoint(found) else values
