"""Sums of products of pairs of bfloat16 in the tiles of a matrix unit.

In: a scheduled kernel whose nests are register tiles, any extents of columns, blocks and lanes::

    for column, block, lane: sums[..] = 0
    for .., word, column, block, lane: sums[..] += product(a[.., column, word], w[.., word, lane])

Out: the same with registers of `bngen.target.tiles` in place of all three inner loops::

    zero(0 ..)
    for ..:
        load(columns); load(words); dot(..) ..
    store(0 ..): sums

and, around what a thread does of it, their configuration. It is found out from the indices which
loop is which. A word is a loop that walks through neighbouring words of memory on both sides: with
those of a pixel's channels, taps that are pixels side by side. Which nests can be is for
`bngen.scheduling.tiles` to know; of one that cannot, a kernel stays as it is.

Columns that are no multiple of a register's rows: the last register's overlap those before it, and
both store the same. The columns of a ragged last register tile are fewer, and a condition says so.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import tvm
import tvm_ffi
from tvm import s_tir, tirx
from tvm.ir import Call, StringImm, TensorLoad
from tvm.ir.transform import Sequential
from tvm.sym import Analyzer

from bngen.codegen.pairs import product_in
from bngen.lower import pairs
from bngen.lower.opaque import Expr, dtype_of
from bngen.scheduling.reading import replaced
from bngen.target import tiles
from bngen.target.tiles import MOST_WORDS, SUMS, WORD_BYTES, Shape, rows_for


def in_tiles(module: tvm.IRModule) -> tvm.IRModule:
    """Kernels whose sums are held in tiles; its blocks are lowered to loops over flat memory."""
    return Sequential([*_to_loops(), _sum_in_tiles])(module)


def _to_loops() -> list[Any]:
    """TVM's passes as far as loops, which then find nothing more to do."""
    blocks = s_tir.transform
    return [
        blocks.CanonicalizeLoop(),
        blocks.LowerInitBlock(),
        blocks.PlanAndUpdateBufferAllocationLocation(),
        blocks.ConvertBlocksToOpaque(),
        blocks.CompactBufferAllocation(),
        blocks.LowerMatchBuffer(),
        blocks.StmtSimplify(),
        blocks.LowerOpaqueBlock(),
        tirx.transform.FlattenBuffer(),
        tirx.transform.NarrowDataType(32),
        blocks.LoopPartition(),
        blocks.StmtSimplify(),
    ]


@tirx.transform.prim_func_pass(opt_level=0, name="bngen.SumInTiles")
def _sum_in_tiles(func: tirx.PrimFunc, _module: Any, _context: Any) -> tirx.PrimFunc:
    found = _Found()
    tvm_ffi.structural_mutate(func, (tirx.SeqStmt, found.collect))
    shape = found.shape()
    if shape is None:
        return func
    emitter = _Emitter(shape)
    handlers = [(tirx.SeqStmt, emitter.replaced), (tirx.For, emitter.shared_out)]
    body = tvm_ffi.structural_mutate(func.body, handlers)
    if emitter.bare:
        body = _configured(body)
    text = StringImm(tiles.functions(shape))
    body = tirx.AttrStmt(tirx.const(0, "int32"), "pragma_import_llvm", text, body)
    return tirx.PrimFunc(func.params, body, func.ret_type, func.attrs, func.span)


# --- nests ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Walk:
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
        return tirx.const(elements * tvm.DataType(self.buffer.ty.dtype).itemsize, "int64")


@dataclass(frozen=True)
class _Nest:
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

    loops: tuple[tuple[tirx.For, list[tirx.Stmt]], ...]
    columns: int
    blocks: int
    words: int
    sums: _Walk
    data: _Walk
    weights: _Walk

    def tiles(self, rows: int) -> list[tuple[int, int]]:
        """Column and block at which the sums of each register of so many rows begin."""
        starts = [min(c, self.columns - rows) for c in range(0, self.columns, rows)]
        return [*itertools.product(starts, range(self.blocks))]

    @property
    def depths(self) -> list[int]:
        """Words summed over at once, one register after the other."""
        whole, rest = divmod(self.words, MOST_WORDS)
        return [MOST_WORDS] * whole + [rest] * bool(rest)


@dataclass
class _Found:
    """The nests of a kernel."""

    nests: list[_Nest | None] = field(default_factory=list)

    def collect(self, statements: tirx.SeqStmt, mutator: Any) -> tirx.Stmt:
        """What is done for each sequence of statements."""
        found = dict(_nests_in(statements))
        self.nests += found.values()
        for i, statement in enumerate(statements.seq):
            if i not in found:
                mutator.mutate(statement)
        return statements

    def shape(self) -> Shape | None:
        """One for all of them; None where there is none, or no nest."""
        if not self.nests or None in self.nests:
            return None
        depths = sorted({depth for nest in self.nests for depth in nest.depths}, reverse=True)
        rows = min(rows_for(nest.columns) for nest in self.nests)
        fits = all(len(nest.tiles(rows)) <= SUMS for nest in self.nests)
        return Shape(rows, tuple(depths)) if fits and len(depths) <= tiles.DEPTHS else None


def _nests_in(statements: tirx.SeqStmt) -> Iterator[tuple[int, _Nest | None]]:
    """Position of each nest that sums products; None where it is not of the form."""
    for i, statement in enumerate(statements.seq):
        loops, heads, limits, store = _inside(statement)
        if not isinstance(store, tirx.BufferStore) or not isinstance(store.value, tirx.Add):
            continue
        product = product_in(store.value.b)
        if product is not None:
            nest = _read(loops, heads, limits, store, product)
            yield i, nest if _clearing(statements, i, store.buffer) is not None else None


Limits = dict[Any, int]
"""Variable of a loop -> how many of its iterations do anything."""
Heads = dict[int, list[tirx.Stmt]]
"""Identity of a loop -> what each iteration begins with: prefetches."""


def _inside(statement: tirx.Stmt) -> tuple[list[tirx.For], Heads, Limits, tirx.Stmt]:
    """Loops in one another, and what is done in the innermost."""
    loops: list[tirx.For] = []
    heads: Heads = {}
    while isinstance(statement, tirx.For):
        loops.append(statement)
        statement = statement.body
        if isinstance(statement, tirx.SeqStmt):
            *head, last = statement.seq
            if all(isinstance(s, tirx.Evaluate) for s in head):
                heads[id(loops[-1])], statement = head, last
    limits: Limits = {}
    while isinstance(statement, tirx.IfThenElse) and statement.else_case is None:
        asked, most = statement.condition, None
        if isinstance(asked, tirx.LT) and isinstance(asked.b, tirx.IntImm):
            most = next((f.loop_var for f in loops if f.loop_var.same_as(asked.a)), None)
        if most is None:
            break
        limits[most], statement = int(asked.b), statement.then_case
    return loops, heads, limits, statement


def _clearing(statements: tirx.SeqStmt, end: int, buffer: tirx.Buffer) -> int | None:
    """Position of what fills a buffer with zeros before a nest, prefetches between them."""
    others = (i for i in reversed(range(end)) if not isinstance(statements.seq[i], tirx.Evaluate))
    last = next(others, None)
    return last if last is not None and _clears(statements.seq[last], buffer) else None


def _clears(statement: tirx.Stmt, buffer: tirx.Buffer) -> bool:
    *_, store = _inside(statement)
    if not isinstance(store, tirx.BufferStore) or not store.buffer.same_as(buffer):
        return False
    return isinstance(store.value, tirx.FloatImm) and store.value.value == 0


def _read(
    loops: list[tirx.For], heads: Heads, limits: Limits, store: tirx.BufferStore, product: Call
) -> _Nest | None:
    """A nest, or None where it is not of the form."""
    low, weights = _low(product.args[0]), product.args[1]
    places = [low, weights, store.value.a]
    if not all(isinstance(p, TensorLoad) and len(p.indices) == 1 for p in places):
        return None
    if not store.value.a.source.same_as(store.buffer):
        return None
    parts = WORD_BYTES // tvm.DataType(low.source.ty.dtype).itemsize
    steps = {id(f): _Steps.of(f.loop_var, [store, low, weights]) for f in loops}
    if None in steps.values():
        return None
    lane, column, block, rest = [], [], [], []
    for f in loops:
        s, d, w = steps[id(f)].by
        kinds = {(1, 0, 1): lane, (1, 1, 0): column, (1, 0, 1, "far"): block}
        moved = (int(s != 0), int(d != 0), int(w != 0))
        kind = (*moved, "far") if moved == (1, 0, 1) and (s, w) != (1, 1) else moved
        kinds.get(kind, rest).append(f)
    if [len(lane), _extents(lane)] != [1, MOST_WORDS] or len(column) > 1 or len(block) > 1:
        return None
    if any(steps[id(f)].by[0] for f in rest):
        return None
    words = 1
    for f in reversed(rest[:]):
        _, d, w = steps[id(f)].by
        if (d, w) == (words * parts, words * MOST_WORDS) and id(f) not in heads:
            words *= _extents([f])
            rest.remove(f)
    inner = [f for f in loops if f not in rest]
    if any(id(f) in heads for f in inner) or not limits.keys() <= {f.loop_var for f in column}:
        return None
    at = {f.loop_var: tirx.const(0, dtype_of(f.loop_var)) for f in inner}

    def walk(load: Any, i: int, **word: int) -> _Walk:
        buffer = load.buffer if isinstance(load, tirx.BufferStore) else load.source
        first = replaced(load.indices[0], at)
        by = {n: steps[id(f[0])].by[i] for n, f in (("column", column), ("block", block)) if f}
        return _Walk(buffer, first, **by, **word)

    return _Nest(
        loops=tuple((f, heads.get(id(f), [])) for f in rest),
        columns=min([_extents(column), *limits.values()]),
        blocks=_extents(block),
        words=words,
        sums=walk(store, 0),
        data=walk(low, 1, word=parts),
        weights=walk(weights, 2, word=MOST_WORDS),
    )


def _extents(loops: list[tirx.For]) -> int:
    return math.prod(int(f.extent) for f in loops)


def _low(word: Expr) -> Expr:
    """The element of memory that a word begins with."""
    both = pairs.halves(word)
    if both is None:
        return word
    low, high = both
    neighbours = Analyzer().can_prove_equal(low.indices[0] + 1, high.indices[0])
    return low if neighbours and low.source.same_as(high.source) else word


@dataclass(frozen=True)
class _Steps:
    """Elements by which a loop moves the indices of a nest."""

    by: tuple[int, ...]

    @staticmethod
    def of(var: Any, accesses: list[Any]) -> _Steps | None:
        """None where one does not move evenly."""
        analyzer, found = Analyzer(), []
        for access in accesses:
            index = access.indices[0]
            at = [replaced(index, {var: tirx.const(i, dtype_of(var))}) for i in (0, 1)]
            step = analyzer.simplify(at[1] - at[0])
            if not isinstance(step, tirx.IntImm):
                return None
            if not analyzer.can_prove_equal(index, at[0] + var * int(step)):
                return None
            found.append(int(step))
        return _Steps(tuple(found))


# --- what becomes of them ---------------------------------------------------------------------


def _call(name: str, *arguments: Expr) -> tirx.Stmt:
    return tirx.Evaluate(tirx.call_extern("void", name, *arguments))


@dataclass
class _Emitter:
    """Statements with registers of a shape.

    Attributes:
        shape: of the registers.
        bare: nests around which nothing configures them yet.
    """

    shape: Shape
    bare: int = 0

    def replaced(self, statements: tirx.SeqStmt, mutator: Any) -> tirx.Stmt:
        """A sequence whose nests are in tiles."""
        found = dict(_nests_in(statements))
        if not found:
            return mutator.default_mutate(statements)
        self.bare += len(found)
        cleared = {_clearing(statements, i, nest.sums.buffer) for i, nest in found.items()}
        kept: list[tirx.Stmt] = []
        for i, statement in enumerate(statements.seq):
            if i in found:
                kept += self.summed(found[i])
            elif i not in cleared:
                kept.append(mutator.mutate(statement))
        return tirx.SeqStmt(kept)

    def shared_out(self, loop: tirx.For, mutator: Any) -> tirx.Stmt:
        """A loop; one that is shared out to threads configures their registers."""
        before = self.bare
        loop = mutator.default_mutate(loop)
        if loop.kind != tirx.ForKind.PARALLEL or self.bare == before:
            return loop
        self.bare = before
        body, marks = _configured(loop.body), loop.annotations
        return tirx.For(loop.loop_var, loop.min, loop.extent, loop.kind, body, annotations=marks)

    def summed(self, nest: _Nest) -> Iterator[tirx.Stmt]:
        """A nest, and its results in memory."""
        places = nest.tiles(self.shape.rows)
        numbers = range(len(places))
        yield from (_call(tiles.zero(t)) for t in numbers)
        body: tirx.Stmt = tirx.SeqStmt([*self.products(nest)])
        for f, head in reversed(nest.loops):
            body = tirx.SeqStmt([*head, body]) if head else body
            body = tirx.For(f.loop_var, f.min, f.extent, tirx.ForKind.SERIAL, body)
        yield body
        sums = nest.sums
        for t in numbers:
            place = sums.at(*places[t])
            yield _call(tiles.store(t), place, sums.step(sums.column or MOST_WORDS))

    def products(self, nest: _Nest) -> Iterator[tirx.Stmt]:
        """Those of one step: of neighbouring registers of sums, one operand is there already."""
        data, weights, first = nest.data, nest.weights, 0
        places = nest.tiles(self.shape.rows)
        for depth in nest.depths:
            a, b = self.shape.registers(depth)
            held: list[int | None] = [None, None]
            for t in _back_and_forth(len(places), nest.blocks):
                column, block = places[t]
                if held[0] != column:
                    yield _call(tiles.load(a), data.at(column, 0, first), data.step(data.column))
                if held[1] != block:
                    place = weights.at(0, block, first)
                    yield _call(tiles.load(b), place, weights.step(MOST_WORDS))
                held = [column, block]
                yield _call(tiles.dot(t, a, b))
            first += depth


def _back_and_forth(count: int, blocks: int) -> list[int]:
    """Registers of sums, so that from one to the next column or block stays."""
    found: list[int] = []
    for i, first in enumerate(range(0, count, blocks)):
        numbers = range(first, first + blocks)
        found += numbers if i % 2 == 0 else reversed(numbers)
    return found


def _configured(body: tirx.Stmt) -> tirx.Stmt:
    return tirx.SeqStmt([_call(tiles.CONFIGURE), body, _call(tiles.RELEASE)])
