"""Random programs whose sizes fit nothing: for memory rather than for arithmetic.

As `strategies.programs`, with more channel counts that fill no vector, odd batches, larger windows,
maps large enough for Winograd's tiles, slices of channels as maps, matrix products over odd
extents, reductions over any axes, and operands that broadcast from anywhere.
"""

from __future__ import annotations

from hypothesis import note
from hypothesis import strategies as st

from bngen.ir.node import Graph
from bngen.ir.types import Value
from tests.strategies import Network


@st.composite
def odd_programs(draw, max_layers: int = 4) -> Graph:
    """A random program of at most so many layers, blocks and reductions."""
    net = _Odd(draw, smooth=False)
    for _ in range(draw(st.integers(1, max_layers))):
        net.layer()
    ending = draw(st.sampled_from([net.finish, net.finish, net.with_loss, net.with_product]))
    graph = ending()
    note(str(graph))
    return graph


class _Odd(Network):
    channels = (17, 1, 3, 5, 9, 16, 20, 33, 50)
    batches, sides = (1, 2, 3, 5), (5, 1, 2, 3, 7, 9, 13, 16)
    windows = ((3, 3), (1, 1), (1, 3), (3, 2), (5, 5), (2, 2))
    max_elements = 20_000

    def layers(self):
        return (*super().layers(), self.conv, self.narrow, self.reduction, self.shifted)

    def narrow(self, x: Value) -> Value | None:
        """Some of the channels, from anywhere."""
        c = x.shape[1]
        start = self.draw(st.integers(0, c - 1))
        stop = self.draw(st.integers(start + 1, c))
        return self.b.emit("slice", x, start=start, stop=stop) if stop - start < c else None

    def reduction(self, x: Value) -> None:
        """A result that sums, averages or searches any axes."""
        axes = self.pick((0, 2, 3), (1,), (2, 3), (0,), (3,), (1, 2), (0, 1, 2, 3))
        op, keep = self.pick("sum", "mean", "amax"), self.flag()
        self.stats.append(self.b.emit(op, x, axes=axes, keepdims=keep))

    def shifted(self, x: Value) -> Value:
        """An argument, which gets a gradient, added: whole, or broadcast from some of the axes."""
        shape = tuple(d if self.flag() else 1 for d in x.shape)
        y = self.parameter("shift", *shape)
        return self.b.emit("add", x, y) if self.flag() else self.b.emit("mul", y, x)

    def with_product(self) -> Graph:
        """A matrix product over all that an image has, with or without a bias."""
        x, rows = self.maps[-1], self.pick(1, 3, 7, 10, 17)
        n, inside = x.shape[0], x.type.size // x.shape[0]
        flat = self.b.emit("reshape", x, shape=(n, inside))
        y = self.b.emit("matmul", flat, self.parameter("fc.weight", rows, inside), trans_b=True)
        if self.flag():
            y = self.b.emit("bias_add", y, self.parameter("fc.bias", rows))
        return self.graph([y, *self.stats], [])
