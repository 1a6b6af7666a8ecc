"""Nests that sum products of pairs in a register tile, as `bngen.codegen.tiles` needs to know them.

In: a sequence of statements of a kernel, lowered to loops over flat memory. Out: a `Nest` for each
loop nest in it that adds products to sums, or None for one that is not of the form. What a loop is
follows from how it moves the indices of sums, data and weights:

======= ================ ================ =====================================
loop    sums             data             weights
======= ================ ================ =====================================
lane    the next one     stay             the next one
column  move             move             stay
block   move             stay             move
word    stay             the next word    the next words of all lanes
others  stay             move anyhow      move anyhow
======= ================ ================ =====================================
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import tvm
from tvm import tirx
from tvm.ir import Call, TensorLoad
from tvm.sym import Analyzer

from bngen.codegen.pairs import product_in
from bngen.lower import pairs
from bngen.lower.opaque import Expr, dtype_of
from bngen.scheduling.reading import replaced
from bngen.target.tiles import MOST_WORDS, WORD_BYTES


@dataclass(frozen=True)
class Walk:
    """How an element that a nest uses moves with its inner loops.

    Attributes:
        buffer: where it is.
        first: its index where all of them are zero.
        column: elements from one column to the next.
        block: from one block to the next.
        word: from one word to the next.
    """

    buffer: tirx.Buffer
    first: Expr
    column: int = 0
    block: int = 0
    word: int = 0

    def at(self, column: int = 0, block: int = 0, word: int = 0) -> Expr:
        """Address of an element."""
        moved = column * self.column + block * self.block + word * self.word
        return tirx.address_of(tirx.BufferLoad(self.buffer, [self.first + moved]))

    def step(self, elements: int) -> Expr:
        """Bytes between so many elements."""
        return tirx.const(elements * _nbytes(self.buffer), "int64")


@dataclass(frozen=True)
class Nest:
    """A nest that sums products in a register tile.

    Attributes:
        loops: those around, which are only walked through, and what their iterations begin with.
        columns: extent of the columns.
        blocks: of the blocks.
        words: of the words.
        sums: its results.
        data: words of columns.
        weights: words of blocks; lanes lie side by side.
    """

    loops: tuple[tuple[tirx.For, Sequence[tirx.Stmt]], ...]
    columns: int
    blocks: int
    words: int
    sums: Walk
    data: Walk
    weights: Walk

    def tiles(self, rows: int) -> list[tuple[int, int]]:
        """Column and block at which the sums of each register of so many rows begin."""
        starts = [min(c, self.columns - rows) for c in range(0, self.columns, rows)]
        return [*itertools.product(starts, range(self.blocks))]

    @property
    def depths(self) -> list[int]:
        """Words summed over at once, one register after the other."""
        whole, rest = divmod(self.words, MOST_WORDS)
        return [MOST_WORDS] * whole + [rest] * bool(rest)


def nests_in(statements: tirx.SeqStmt) -> Iterator[tuple[int, Nest | None]]:
    """Position of each nest that sums products; None where it is not of the form."""
    for i, statement in enumerate(statements.seq):
        inside = _Inside.of(statement)
        store = inside.last
        if isinstance(store, tirx.BufferStore) and isinstance(store.value, tirx.Add):
            product = product_in(store.value.b)
            if product is not None:
                fits = product.same_as(store.value.b)
                fits = fits and clearing(statements, i, store.buffer) is not None
                yield i, _read(inside, store, product) if fits else None


def clearing(statements: tirx.SeqStmt, end: int, buffer: tirx.Buffer) -> int | None:
    """Position of what fills a buffer with zeros before a nest, prefetches between them."""
    others = (i for i in reversed(range(end)) if not isinstance(statements.seq[i], tirx.Evaluate))
    last = next(others, None)
    return last if last is not None and _clears(statements.seq[last], buffer) else None


def _clears(statement: tirx.Stmt, buffer: tirx.Buffer) -> bool:
    store = _Inside.of(statement).last
    if not isinstance(store, tirx.BufferStore) or not store.buffer.same_as(buffer):
        return False
    return isinstance(store.value, tirx.FloatImm) and store.value.value == 0


# --- loops ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Loop:
    """A loop of a nest.

    Attributes:
        loop: the statement.
        head: what its iterations begin with: prefetches.
    """

    loop: tirx.For
    head: Sequence[tirx.Stmt] = ()

    @property
    def var(self) -> Any:
        return self.loop.loop_var

    @property
    def extent(self) -> int:
        return int(self.loop.extent)


@dataclass
class _Inside:
    """Loops in one another.

    Attributes:
        last: what is done in the innermost.
        loops: from the outside in.
        limit: a loop of which only so many of the first iterations do anything.
    """

    last: tirx.Stmt
    loops: list[_Loop] = field(default_factory=list)
    limit: tuple[_Loop, int] | None = None

    @classmethod
    def of(cls, statement: tirx.Stmt) -> _Inside:
        found = cls(statement)
        while isinstance(found.last, tirx.For):
            loop, head, found.last = found.last, [], found.last.body
            if isinstance(found.last, tirx.SeqStmt):
                *before, last = found.last.seq
                if all(isinstance(s, tirx.Evaluate) for s in before):
                    head, found.last = before, last
            found.loops.append(_Loop(loop, head))
        asked = found.last.condition if isinstance(found.last, tirx.IfThenElse) else None
        if isinstance(asked, tirx.LT) and isinstance(asked.b, tirx.IntImm):
            asks = next((f for f in found.loops if f.var.same_as(asked.a)), None)
            if asks is not None and found.last.else_case is None:
                found.limit, found.last = (asks, int(asked.b)), found.last.then_case
        return found


def _steps(var: Any, indices: Sequence[Expr]) -> tuple[int, ...] | None:
    """Elements by which a loop moves each index; None where it does not move one evenly."""
    analyzer, found = Analyzer(), []
    for index in indices:
        at = [replaced(index, {var: tirx.const(i, dtype_of(var))}) for i in (0, 1)]
        step = analyzer.simplify(at[1] - at[0])
        if not isinstance(step, tirx.IntImm):
            return None
        if not analyzer.can_prove_equal(index, at[0] + var * int(step)):
            return None
        found.append(int(step))
    return tuple(found)


def _role(sums: int, data: int, weights: int) -> str:
    if (sums, data, weights) == (1, 0, 1):
        return "lane"
    if sums:
        return {(True, False): "column", (False, True): "block"}.get(
            (data != 0, weights != 0), "none"
        )
    return "other"


def _read(inside: _Inside, store: tirx.BufferStore, product: Call) -> Nest | None:
    """A nest, or None where it is not of the form."""
    before, data, weights = store.value.a, _first_of(product.args[0]), product.args[1]
    accesses = [before, data, weights]
    if not all(isinstance(a, TensorLoad) and len(a.indices) == 1 for a in accesses):
        return None
    indices = [a.indices[0] for a in accesses]
    same = before.source.same_as(store.buffer)
    if not same or not Analyzer().can_prove_equal(store.indices[0], indices[0]):
        return None
    steps = {f.var: _steps(f.var, indices) for f in inside.loops}
    if None in steps.values() or any(int(f.loop.min) for f in inside.loops):
        return None
    found: dict[str, list[_Loop]] = {"lane": [], "column": [], "block": [], "other": []}
    for f in inside.loops:
        found.setdefault(_role(*steps[f.var]), []).append(f)
    limit = inside.limit
    fits = all(len(found[role]) <= 1 for role in ("column", "block")) and "none" not in found
    fits = fits and [f.extent for f in found["lane"]] == [MOST_WORDS]
    if not fits or not (limit is None or limit[0] in found["column"]):
        return None
    parts = WORD_BYTES // _nbytes(data.source)
    words, around = _words(found["other"], steps, parts)
    inner = [f for f in inside.loops if f not in around]
    if any(f.head for f in inner):
        return None
    zeros = {f.var: tirx.const(0, dtype_of(f.var)) for f in inner}

    def walk(i: int, buffer: tirx.Buffer, word: int = 0) -> Walk:
        moved = {r: steps[found[r][0].var][i] for r in ("column", "block") if found[r]}
        return Walk(buffer, Analyzer().simplify(replaced(indices[i], zeros)), **moved, word=word)

    columns = math.prod(f.extent for f in found["column"])
    return Nest(
        loops=tuple((f.loop, f.head) for f in around),
        columns=columns if limit is None else min(columns, limit[1]),
        blocks=math.prod(f.extent for f in found["block"]),
        words=words,
        sums=walk(0, store.buffer),
        data=walk(1, data.source, parts),
        weights=walk(2, weights.source, MOST_WORDS),
    )


def _words(loops: list[_Loop], steps: Any, parts: int) -> tuple[int, list[_Loop]]:
    """Words that the innermost of some loops walk through, and the others."""
    words, around = 1, [*loops]
    while around and not around[-1].head:
        _, data, weights = steps[around[-1].var]
        if (data, weights) != (words * parts, words * MOST_WORDS):
            break
        words *= around.pop().extent
    return words, around


def _first_of(word: Expr) -> Expr:
    """The element of memory that a word begins with, or is."""
    both = pairs.halves(word)
    if both is None or not all(isinstance(h, TensorLoad) for h in both):
        return word
    low, high = both
    if len(low.indices) != 1 or len(high.indices) != 1 or not low.source.same_as(high.source):
        return word
    return low if Analyzer().can_prove_equal(low.indices[0] + 1, high.indices[0]) else word


def _nbytes(buffer: tirx.Buffer) -> int:
    return tvm.DataType(buffer.ty.dtype).itemsize
