"""Sums of products of pairs of bfloat16 as the instruction for them, where a target has it.

In: a function after TVM's last pass, its opaque operations not revealed. Out: calls of functions in
LLVM IR, which the function brings along (`bngen.target.pairs`)::

    sums + product(Broadcast(a), b)              DOT(sums, Broadcast(a), b)
    pair(rounded(x), rounded(y))         ->      PACK(x, y)
    half(rounded(x))                             NARROW(x)
    rounded(x)                                   the 16 bits of NARROW(x), as floats
    Broadcast(word(m[i], m[i + 1]))              Broadcast(the 32 bits at m[i])

For other targets, and vectors of other lanes, they stay what they mean (`bngen.lower.pairs`).

The last of the five is for LLVM, which would make one load of the two itself, but then no longer
knows that nothing else points there: sums that lie in memory are stored in every step.
"""

from __future__ import annotations

from typing import Any

import tvm_ffi
from tvm import tirx
from tvm.ir import Call, StringImm, TensorLoad
from tvm.sym import Analyzer
from tvm.target.codegen import target_has_features

from bngen.dtypes import PAIRED
from bngen.lower import pairs
from bngen.lower.opaque import Expr, Opaque, dtype_of, is_branch
from bngen.lower.stored import CONVERSIONS
from bngen.target.pairs import DOT, FEATURE, NARROW, PACK, WIDTHS, functions

ROUNDED = CONVERSIONS[PAIRED].rounded


@tirx.transform.prim_func_pass(opt_level=0, name="bngen.SumPairs")
def _sum_pairs(func: tirx.PrimFunc, _module: Any, _context: Any) -> tirx.PrimFunc:
    found = _Found(bool(target_has_features(FEATURE, func.attrs["target"])))
    func = tvm_ffi.structural_mutate(func, [(tirx.Add, found.summed), (Call, found.made)])
    return _with_text(func, functions(*found.lanes)) if found.lanes else func


def sum_pairs() -> Any:
    """The pass."""
    return _sum_pairs


class _Found:
    """What is replaced, and the lanes of the vectors in it."""

    def __init__(self, has_them: bool):
        self.has_them, self.lanes = has_them, set[int]()

    def can(self, value: Expr) -> bool:
        """Whether there is an instruction for a vector; all in a function have as many lanes."""
        lanes = _lanes(value)
        if not self.has_them or lanes not in WIDTHS or self.lanes - {lanes}:
            return False
        self.lanes.add(lanes)
        return True

    def summed(self, add: tirx.Add, mutator: tvm_ffi.StructuralMutator) -> Expr:
        add = mutator.default_mutate(add)
        sums, term = (add.a, add.b) if product_in(add.b) is not None else (add.b, add.a)
        product = product_in(term)
        if product is None:
            return add
        done = self.added(sums, product)
        if product.same_as(term):
            return done
        return Call(term.op, [term.args[0], done, sums], ret_ty=dtype_of(term))

    def added(self, sums: Expr, product: Call) -> Expr:
        """Sums with their products."""
        broadcast, words = product.args
        broadcast = _loaded_at_once(broadcast)
        if not self.can(product):
            return pairs.added(sums, broadcast, words)
        signed = f"int32x{_lanes(product)}"
        operands = [tirx.reinterpret(signed, w) for w in (broadcast, words)]
        return tirx.call_pure_extern(dtype_of(product), DOT, sums, *operands)

    def made(self, call: Call, mutator: tvm_ffi.StructuralMutator) -> Expr:
        named = next(
            (n for op, n in ((pairs.pair, PACK), (pairs.half, NARROW)) if _is(call, op)), ""
        )
        if named and self.can(call):
            numbers = [mutator.mutate(_unrounded(a)) for a in call.args]
            size = "int32" if named == PACK else "int16"
            made = tirx.call_pure_extern(f"{size}x{_lanes(call)}", named, *numbers)
            return tirx.reinterpret(dtype_of(call), made)
        call = mutator.default_mutate(call)
        return self.rounded(call) if _is(call, ROUNDED) and self.can(call) else call

    def rounded(self, call: Call) -> Expr:
        """Numbers rounded by what narrows them; of those that are then stored, LLVM takes that."""
        lanes = _lanes(call)
        half = tirx.call_pure_extern(f"int16x{lanes}", NARROW, *call.args)
        word = tirx.Cast(f"uint32x{lanes}", tirx.reinterpret(f"uint16x{lanes}", half))
        return pairs.low(word)


def _lanes(value: Expr) -> int:
    return int(dtype_of(value).partition("x")[2] or 1)


def _is(value: Expr, op: Opaque) -> bool:
    return isinstance(value, Call) and value.op.same_as(op.op)


def product_in(term: Expr) -> Call | None:
    """The product that a term of a sum is, perhaps under a condition, else being zero."""
    if isinstance(term, Call) and is_branch(term) and _is_zero(term.args[2]):
        term = term.args[1]
    return term if _is(term, pairs.product) else None


def _is_zero(value: Expr) -> bool:
    value = value.value if isinstance(value, tirx.Broadcast) else value
    return isinstance(value, tirx.FloatImm) and value.value == 0


def _unrounded(number: Expr) -> Expr:
    """What is the number once it is rounded."""
    if _is(number, ROUNDED):
        return number.args[0]
    if isinstance(number, tirx.Let):
        return tirx.Let(number.var, number.value, _unrounded(number.body))
    if isinstance(number, tirx.Select):
        sides = number.true_value, number.false_value
        return tirx.Select(number.condition, *map(_unrounded, sides))
    if isinstance(number, Call) and is_branch(number):
        condition, *sides = number.args
        return Call(number.op, [condition, *map(_unrounded, sides)], ret_ty=dtype_of(number))
    return number


def _loaded_at_once(word: Expr) -> Expr:
    """A word for all lanes, of two neighbours in memory, as one load."""
    both = pairs.halves(word.value) if isinstance(word, tirx.Broadcast) else None
    if both is None or not all(isinstance(h, TensorLoad) for h in both):
        return word
    low, high = both
    *rows, first = low.indices
    *same, second = high.indices
    if not low.source.same_as(high.source) or len(rows) != len(same):
        return word
    analyzer = Analyzer()
    together = [(first + 1, second), *zip(rows, same, strict=True)]
    if not all(analyzer.can_prove_equal(a, b) for a, b in together):
        return word
    pair = tirx.BufferLoad(low.source, [*rows, tirx.Ramp(first, tirx.const(1, "int32"), 2)])
    return tirx.Broadcast(tirx.reinterpret("uint32", pair), word.lanes)


def _with_text(func: tirx.PrimFunc, text: str) -> tirx.PrimFunc:
    """A function that brings LLVM IR along."""
    body = tirx.AttrStmt(tirx.const(0, "int32"), "pragma_import_llvm", StringImm(text), func.body)
    return tirx.PrimFunc(func.params, body, func.ret_type, func.attrs, func.span)
