"""Sums of products of pairs of bfloat16 as the instruction for them, where a target has it.

In: a function after TVM's last pass, its opaque operations not revealed. Out: calls of functions in
LLVM IR, which the function brings along (`bngen.target.pairs`)::

    sums + pair_product(Broadcast(a), b)         DOT(sums, Broadcast(a), b)
    word(narrowed(x), narrowed(y))       ->      PACK(x, y)
    Broadcast(word(m[i], m[i + 1]))              Broadcast(the 32 bits at m[i])

For other targets, and vectors of other lanes, they stay what they mean: shifts, multiply-adds.

The last of the three is for LLVM, which would make one load of the two itself, but then no longer
knows that nothing else points there: sums that lie in memory are stored in every step.
"""

from __future__ import annotations

from typing import Any

import tvm_ffi
from tvm import tirx
from tvm.ir import Call, StringImm, TensorLoad
from tvm.sym import Analyzer
from tvm.target.codegen import target_has_features

from bngen.lower.opaque import Expr, added_pairs, dtype_of, narrowed, pair_product
from bngen.lower.pairs import halves
from bngen.target.pairs import DOT, FEATURE, PACK, WIDTHS, functions


@tirx.transform.prim_func_pass(opt_level=0, name="bngen.SumPairs")
def _sum_pairs(func: tirx.PrimFunc, _module: Any, _context: Any) -> tirx.PrimFunc:
    found = _Found(bool(target_has_features(FEATURE, func.attrs["target"])))
    func = tvm_ffi.structural_mutate(
        func, [(tirx.Add, found.summed), (tirx.BitwiseOr, found.packed)]
    )
    return _with_text(func, functions(*found.lanes)) if found.lanes else func


def sum_pairs() -> Any:
    """The pass."""
    return _sum_pairs


class _Found:
    """What is replaced, and the lanes of the vectors in it."""

    def __init__(self, has_them: bool):
        self.has_them, self.lanes = has_them, set[int]()

    def can(self, value: Expr) -> bool:
        """Whether there is an instruction for a vector, and for those found before."""
        lanes = _lanes(value)
        if not self.has_them or lanes not in WIDTHS or self.lanes - {lanes}:
            return False
        self.lanes.add(lanes)
        return True

    def summed(self, add: tirx.Add, mutator: tvm_ffi.StructuralMutator) -> Expr:
        add = mutator.default_mutate(add)
        sums, product = (add.a, add.b) if _is(add.b, pair_product) else (add.b, add.a)
        if not _is(product, pair_product):
            return add
        broadcast, words = product.args
        broadcast = _loaded_at_once(broadcast)
        if not self.can(product):
            return added_pairs(sums, broadcast, words)
        signed = f"int32x{_lanes(product)}"
        operands = [tirx.reinterpret(signed, w) for w in (broadcast, words)]
        return tirx.call_pure_extern(dtype_of(product), DOT, sums, *operands)

    def packed(self, either: tirx.BitwiseOr, mutator: tvm_ffi.StructuralMutator) -> Expr:
        either = mutator.default_mutate(either)
        both = halves(either)
        if both is None or not all(_is(h, narrowed) for h in both):
            return either
        if not self.can(either):
            return either
        low, high = (h.args[0] for h in both)
        words = tirx.call_pure_extern(f"int32x{_lanes(either)}", PACK, low, high)
        return tirx.reinterpret(dtype_of(either), words)


def _lanes(value: Expr) -> int:
    return int(dtype_of(value).partition("x")[2] or 1)


def _is(value: Expr, op: Any) -> bool:
    return isinstance(value, Call) and value.op.same_as(op.op)


def _loaded_at_once(word: Expr) -> Expr:
    """A word for all lanes, of two neighbours in memory, as one load."""
    both = halves(word.value) if isinstance(word, tirx.Broadcast) else None
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
