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

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import tvm
import tvm_ffi
from tvm import s_tir, tirx
from tvm.ir import StringImm
from tvm.ir.transform import Sequential

from bngen.codegen.tile_nests import Nest, clearing, nests_in
from bngen.lower.opaque import Expr
from bngen.target import tiles
from bngen.target.tiles import MOST_WORDS, SUMS, Shape, rows_for


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


@dataclass
class _Found:
    """The nests of a kernel."""

    nests: list[Nest | None] = field(default_factory=list)

    def collect(self, statements: tirx.SeqStmt, mutator: Any) -> tirx.Stmt:
        """What is done for each sequence of statements."""
        found = dict(nests_in(statements))
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
        found = dict(nests_in(statements))
        if not found:
            return mutator.default_mutate(statements)
        self.bare += len(found)
        cleared = {clearing(statements, i, nest.sums.buffer) for i, nest in found.items()}
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

    def summed(self, nest: Nest) -> Iterator[tirx.Stmt]:
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

    def products(self, nest: Nest) -> Iterator[tirx.Stmt]:
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
