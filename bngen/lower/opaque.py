"""Arithmetic on elements that TVM's simplifier cannot see through, so that it is done as written.

TVM takes floats for real numbers, and machine integers for whole ones: ``x * 0`` becomes 0 and
``x != x`` false though x may be NaN, ``(x + c) - c`` becomes x though adding c rounds, and
``x + 1 > x`` is true though it may wrap. It also drops the test around a load where an enclosing
`tirx.Select` asks the same, though a `Select` evaluates both its sides. So the operations here are
calls of ops that TVM knows nothing of but that they are pure and go lane by lane: they can be
moved, shared and vectorized. After TVM's last pass `bngen.codegen.pipeline` puts their meaning in
their place; LLVM is told nothing that would let it take floats for reals.

A product stands behind a fence, since code generation may else contract it and a sum into one
multiply-add, which rounds once instead of twice. Where a formula is bngen's own (normalization),
that is welcome: `scaled` has no fence.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import tvm_ffi
from tvm import tirx
from tvm.ir import Call, Op, _ffi_api

from bngen.dtypes import DTYPES

Expr = Any

_PREFIX = "bngen."


@dataclass(frozen=True)
class Opaque:
    """One op.

    Attributes:
        op: TVM's entry for it.
        meaning: the operation itself, on revealed operands of one type and number of lanes.
        result: element type of the result; that of the operands by default.
    """

    op: Op
    meaning: Callable[..., Expr]
    result: str | None = None

    def __call__(self, *operands: Expr) -> Expr:
        """The call that stands for the operation until it is `revealed`."""
        return Call(
            self.op, list(map(scalar, operands)), ret_ty=self.result or dtype_of(operands[0])
        )


def dtype_of(expr: Expr) -> str:
    """Element type of an expression."""
    return str(scalar(expr).ty)


def exactly(expr: Expr) -> Expr:
    """A number in the type that statistics and long folds of its own are summed in."""
    return tirx.Cast(DTYPES[dtype_of(expr)].exact, expr)


def scalar(expr: Expr) -> Expr:
    """An expression as it is, a loop's axis as its variable."""
    return expr.var if isinstance(expr, tirx.IterVar) else expr


def is_float(expr: Expr) -> bool:
    """Whether an expression's elements are floating-point numbers."""
    return dtype_of(expr).startswith("float")


def is_atom(value: Expr) -> bool:
    """Whether an expression costs nothing to repeat."""
    return isinstance(value, (tirx.Var, tirx.IntImm, tirx.FloatImm))


def bind(value: Expr, body: Callable[[Expr], Expr]) -> Expr:
    """``body(value)`` with the value computed once.

    The name's value is `held`: TVM's analyzer puts the value of a name that is bound to a pure
    expression wherever it reads the name, and so spells out what was to be computed once.
    """
    if is_atom(value):
        return body(value)
    var = tirx.Var("v", dtype_of(value))
    return tirx.Let(var, held(value), body(var))


def unnested(value: Expr) -> tuple[list[tuple[Any, Expr]], Expr]:
    """A value without names of its own, and those that were defined in it, in order.

    TVM makes no vectors of a name that is defined in the value of another. What is defined in a
    branch stays there, since it may be gone through only where the branch is.
    """
    names: list[tuple[Any, Expr]] = []
    if not has_names(value):
        return names, value

    def leave(call: Call, mutator: tvm_ffi.StructuralMutator) -> Expr:
        return call if is_branch(call) else mutator.default_mutate(call)

    def lift(let: tirx.Let, mutator: tvm_ffi.StructuralMutator) -> Expr:
        while isinstance(let, tirx.Let):
            names.append((let.var, mutator.mutate(let.value)))
            let = let.body
        return mutator.mutate(let)

    value = tvm_ffi.structural_mutate(value, [(Call, leave), (tirx.Let, lift)])
    return names, value


def has_names(value: Expr) -> bool:
    """Whether an expression defines names."""
    found: list[tirx.Let] = []
    tvm_ffi.structural_walk(value, (tirx.Let, found.append))
    return bool(found)


def is_branch(call: Call) -> bool:
    """Whether a call evaluates only one of its operands."""
    return call.op.same_as(_BRANCH)


_BRANCH = tirx.if_then_else(tirx.Var("c", "bool"), *(tirx.const(v, "int32") for v in (0, 1))).op


# --- meanings ---------------------------------------------------------------------------------


_TWICE = {"int32": "int64", "uint32": "uint64", "int64": "int128", "uint64": "uint128"}


def _wrapping(node: Callable[[Expr, Expr], Expr]) -> Callable[[Expr, Expr], Expr]:
    """Integers modulo their range; floats are as they are.

    To LLVM, as TVM asks it, an overflow of 32 or 64 bits cannot happen, and what follows from it is
    arbitrary. In twice the width there is none; LLVM narrows the operation back.
    """

    def meaning(a: Expr, b: Expr) -> Expr:
        kind, x, lanes = dtype_of(a).partition("x")
        if kind not in _TWICE:
            return node(a, b)
        wide = _TWICE[kind] + x + lanes
        return tirx.Cast(dtype_of(a), node(tirx.Cast(wide, a), tirx.Cast(wide, b)))

    return meaning


def _product(a: Expr, b: Expr) -> Expr:
    value = _wrapping(tirx.Mul)(a, b)
    if not is_float(a):
        return value
    return tirx.call_llvm_pure_intrin(dtype_of(a), "llvm.arithmetic.fence", value)


def _negated(a: Expr) -> Expr:
    # Not 0 - a, which is +0 for a = +0.
    return tirx.Mul(a, like(a, -1)) if is_float(a) else _wrapping(tirx.Sub)(like(a, 0), a)


def _no_worse(compare: Callable[[Expr, Expr], Expr]) -> Callable[[Expr, Expr], Expr]:
    """The operand that compares as no worse; NaN if one of them is."""

    def meaning(a: Expr, b: Expr) -> Expr:
        # No name is made here: it would be one name for all copies of a loop's body.
        other = tirx.Select(tirx.EQ(a, a), b, a) if is_float(a) else b
        return tirx.Select(compare(a, b), a, other)

    return meaning


def like(a: Expr, value: int) -> Expr:
    """A number in the type of a scalar or a vector."""
    kind, _, lanes = dtype_of(a).partition("x")
    constant = tirx.const(value, kind)
    return tirx.Broadcast(constant, int(lanes)) if lanes else constant


# --- the ops ----------------------------------------------------------------------------------

_BY_NAME: dict[str, Opaque] = {}


def opaque(
    name: str,
    meaning: Callable[..., Expr],
    result: str | None = None,
    effect: Any = tirx.CallEffectKind.Pure,
) -> Opaque:
    """Register an op of that name, which stands for its meaning until it is `revealed`."""
    _ffi_api.RegisterOp(_PREFIX + name, f"{name}, done as written")
    op = Op.get(_PREFIX + name)
    op.set_attr("TVectorizable", True)
    op.set_attr("TCallEffectKind", effect.value)
    op.set_attr("TScriptPrinterName", f"bngen_{name}")
    row = Opaque(op, meaning, result)
    _BY_NAME[op.name] = row
    return row


add = opaque("add", _wrapping(tirx.Add))
sub = opaque("sub", _wrapping(tirx.Sub))
mul = opaque("mul", _product)
scaled = opaque("scaled", _wrapping(tirx.Mul))
div = opaque("div", tirx.Div)
mod = opaque("mod", tirx.Mod)
neg = opaque("neg", _negated)
maximum = opaque("maximum", _no_worse(tirx.GE))
minimum = opaque("minimum", _no_worse(tirx.LE))
greater = opaque("greater", tirx.GT, "bool")
greater_equal = opaque("greater_equal", tirx.GE, "bool")
less = opaque("less", tirx.LT, "bool")
less_equal = opaque("less_equal", tirx.LE, "bool")
equal = opaque("equal", tirx.EQ, "bool")
# TVM's NE asks LLVM for "ordered and not equal", which is false for NaN.
not_equal = opaque("not_equal", lambda a, b: tirx.Not(tirx.EQ(a, b)), "bool")

holds = opaque("holds", lambda condition: condition, "bool")
"""The condition of a test that guards a load."""

chooses = opaque("chooses", lambda condition: condition, "bool")
"""The same condition, where it chooses between two values. Two ops, lest a test inside one of the
values, which both are computed, be dropped because its outcome is known there."""

held = opaque("held", lambda value: value, effect=tirx.CallEffectKind.ReadState)
"""A value as it is, which TVM does not take for one that may be computed again elsewhere."""


def revealed(call: Call) -> Expr:
    """What an opaque call, its operands revealed, stands for; any other call is itself."""
    row = _BY_NAME.get(call.op.name) if isinstance(call.op, Op) else None
    return call if row is None else row.meaning(*call.args)
