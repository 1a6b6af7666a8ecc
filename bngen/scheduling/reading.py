"""Reading a scheduled kernel: its loop nests, what they touch, expressions with variables replaced.

In: a scheduled PrimFunc. Out: `Nest` and `Access`, which are views of it. Changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import tvm_ffi
from tvm import DataType, s_tir, tirx
from tvm.ir import TensorLoad, Var

from bngen.lower.opaque import Expr
from bngen.scheduling.knobs import LINE

MAP_RANK = 5
"""Rank of a feature map in memory: block, image, row, column, lane."""

COLUMN = 3
"""Which of those is the column."""


@dataclass(frozen=True)
class Access:
    """A parameter that holds a feature map, and where a nest touches it, in loop variables."""

    buffer: Var
    indices: tuple[Expr, ...]
    writes: bool

    @property
    def shape(self) -> list[int]:
        """Extents of the map."""
        return [int(e) for e in self.buffer.ty.shape]

    @property
    def columns_of_a_line(self) -> int:
        """How many neighbouring columns of a channel block lie in a cache line."""
        return max(1, LINE // (self.shape[-1] * DataType(self.buffer.ty.dtype).itemsize))


@dataclass(frozen=True)
class Nest:
    """A block with the loops around it, outermost first."""

    loops: tuple[tirx.For, ...]
    realize: s_tir.SBlockRealize

    @property
    def bindings(self) -> dict[Var, Expr]:
        """The block's variables in terms of the loops'."""
        axes = self.realize.block.iter_vars
        return {it.var: v for it, v in zip(axes, self.realize.iter_values, strict=True)}

    @property
    def store(self) -> tirx.BufferStore:
        """What the block writes; kernels made from TE write one buffer a block."""
        found: list[tirx.BufferStore] = []
        tvm_ffi.structural_walk(self.realize.block.body, (tirx.BufferStore, found.append))
        return found[0]

    @property
    def is_guarded(self) -> bool:
        """Whether some iterations are left out, at a ragged end."""
        return not tvm_ffi.structural_equal(self.realize.predicate, tirx.const(1, "bool"))

    def shared_with(self, other: Nest) -> int:
        """How many outer loops two nests have in common."""
        pairs = zip(self.loops, other.loops, strict=False)
        shortest = min(len(self.loops), len(other.loops))
        return next((i for i, (a, b) in enumerate(pairs) if not a.same_as(b)), shortest)

    def accesses(self, parameters: Sequence[Var], rank: int = MAP_RANK) -> list[Access]:
        """The feature maps among a function's parameters that the block reads or writes.

        Args:
            parameters: of the function.
            rank: of what is looked for, in memory: that of maps unless something else is.
        """
        found: list[Access] = []

        def note(buffer: Var, indices: Sequence[Expr], writes: bool) -> None:
            if len(indices) == rank and any(buffer.same_as(p) for p in parameters):
                bound = tuple(replaced(i, self.bindings) for i in indices)
                found.append(Access(buffer, bound, writes))

        body = self.realize.block.body
        tvm_ffi.structural_walk(body, (TensorLoad, lambda x: note(x.source, x.indices, False)))
        tvm_ffi.structural_walk(body, (tirx.BufferStore, lambda x: note(x.buffer, x.indices, True)))
        return found


def nests(body: tirx.Stmt) -> dict[str, Nest]:
    """Every block of a scheduled function by name."""
    found: dict[str, Nest] = {}

    def visit(statement: tirx.Stmt, loops: tuple[tirx.For, ...]) -> None:
        if isinstance(statement, tirx.For):
            visit(statement.body, (*loops, statement))
        elif isinstance(statement, tirx.SeqStmt):
            for part in statement.seq:
                visit(part, loops)
        elif isinstance(statement, s_tir.SBlockRealize):
            found[statement.block.name_hint] = Nest(loops, statement)
            visit(statement.block.body, loops)

    visit(body, ())
    return found


def mentions(expression: Expr, var: Var) -> bool:
    """Whether a variable occurs in an expression."""
    found: list[Var] = []

    def note(v: Var) -> None:
        if v.same_as(var):
            found.append(v)

    tvm_ffi.structural_walk(expression, (Var, note))
    return bool(found)


def replaced(expression: Expr, values: Mapping[Var, Expr]) -> Expr:
    """An expression with variables replaced."""

    def value(var: Var) -> Expr:
        return next((new for old, new in values.items() if var.same_as(old)), var)

    if isinstance(expression, Var):
        return value(expression)
    return tvm_ffi.structural_map(expression, (Var, value))
