"""Named elements as code generation can take them: one after the other, and not too many.

In: names and stores after TVM's last pass. Out: the same for its code generator, which asks an
analyzer what is known of every name. The analyzer takes no name that is defined in the value of
another one (it meets that twice, simplified in between):

::

    let b = (let a = .. in a + a) in b * b    ->    let a = .. in let b = a + a in b * b

And for each name it puts in the values of all names that occur in it, and of those in them: a name
that is used twice doubles the work, thirty names in a row need a billion steps. A load it does not
look behind:

::

    A[i] = let a = .. in let b = a * a in ..    ->    a = ..; t[0] = a * a; .. ; A[i] = .. t[0] ..

LLVM keeps ``t`` in a register. Short chains stay as they are.
"""

from __future__ import annotations

from typing import Any

import tvm_ffi
from tvm import tirx
from tvm.ir import Call, Expr, Var

from bngen.lower.opaque import dtype_of, has_names, is_branch, unnested

LONGEST = 1000
"""Nodes of a stored value, names spelled out, up to which it is left alone."""

_STEP = 30
"""Nodes of a name, the ones before it spelled out, from which on it lies on the stack."""

ON_STACK = "disable_lower_builtin"
"""TVM's mark on an allocation that code generation, not the runtime, shall make."""


def flatten(let: tirx.Let, mutator: tvm_ffi.StructuralMutator) -> Expr:
    """A chain of names as a mutator leaves it, none defined in the value of another.

    Only what is defined in a branch stays there. A loop, since chains are longer than stacks deep.
    """
    names: list[tuple[Var, Expr]] = []
    while isinstance(let, tirx.Let):
        inner, value = unnested(mutator.mutate(let.value))
        names += [*inner, (let.var, value)]
        let = let.body
    result = mutator.mutate(let)
    for var, value in reversed(names):
        result = tirx.Let(var, value, result)
    return result


def shorten_chains(statement: tirx.BufferStore | tirx.Bind) -> tirx.Stmt:
    """What stores or names a value, in several steps if the chain of names in that is long."""
    sizes: dict[Var, int] = {}
    if not has_names(statement.value) or _size(statement.value, sizes) <= LONGEST:
        return statement
    steps = _Steps()
    value = steps.flat(statement.value)
    if isinstance(statement, tirx.Bind):
        last: tirx.Stmt = tirx.Bind(statement.var, value)
    else:
        last = tirx.BufferStore(statement.buffer, value, statement.indices)
    return _sequence([*steps.done, last])


class _Steps:
    """Statements in the order they are done, and what names stand for by then."""

    def __init__(self) -> None:
        self.done: list[tirx.Stmt] = []
        self.sizes: dict[Var, int] = {}
        self.known: dict[Var, Expr] = {}

    def flat(self, value: Expr) -> Expr:
        """What is left of a value once its names are statements."""
        while isinstance(value, tirx.Let):
            self.name(value.var, self.plain(value.value))
            value = value.body
        return self.plain(value)

    def name(self, var: Var, value: Expr) -> None:
        size = _size(value, self.sizes)
        if size < _STEP or dtype_of(value).startswith("bool"):
            # A new name: copies of a loop's body share theirs, and statements may not.
            self.known[var] = new = tirx.Var(var.name, dtype_of(value))
            self.sizes[new] = size
            self.done.append(tirx.Bind(new, value))
        else:
            self.known[var] = self.stored(value)

    def plain(self, value: Expr) -> Expr:
        """A value without names of its own: those inside it become steps, too."""

        def branch(call: Call, mutator: tvm_ffi.StructuralMutator) -> Expr:
            if not (is_branch(call) and any(map(has_names, call.args[1:]))):
                return mutator.default_mutate(call)
            return self.guarded(*call.args)

        def known(var: Var, _: tvm_ffi.StructuralMutator) -> Expr:
            return self.known.get(var, var)

        def names(let: tirx.Let, _: tvm_ffi.StructuralMutator) -> Expr:
            return self.flat(let)

        return tvm_ffi.structural_mutate(value, [(Call, branch), (tirx.Let, names), (Var, known)])

    def guarded(self, condition: Expr, then: Expr, other: Expr) -> Expr:
        """A value of one of two branches, only one of which may be gone through."""
        result = _temporary(dtype_of(then))
        self.done.append(_allocation(result))
        condition = self.plain(condition)
        branches = []
        for value in (then, other):
            outer, self.done = self.done, []
            value = self.flat(value)
            branches.append(_sequence([*self.done, _store(result, value)]))
            self.done = outer
        self.done.append(tirx.IfThenElse(condition, *branches))
        return _load(result)

    def stored(self, value: Expr) -> Expr:
        """The value from the stack."""
        result = _temporary(dtype_of(value))
        self.done += [_allocation(result), _store(result, value)]
        return _load(result)


def _sequence(statements: list[tirx.Stmt]) -> tirx.Stmt:
    return statements[0] if len(statements) == 1 else tirx.SeqStmt(statements)


def _temporary(dtype: str) -> Any:
    kind, _, lanes = dtype.partition("x")
    return tirx.decl_buffer((int(lanes or 1),), kind, name="t", scope="local")


def _allocation(buffer: Any) -> tirx.Stmt:
    return tirx.AllocBuffer(buffer, {ON_STACK: tirx.const(1, "bool")})


def _index(buffer: Any) -> list[Expr]:
    lanes = int(buffer.shape[0])
    zero = tirx.const(0, "int32")
    return [zero if lanes == 1 else tirx.Ramp(zero, tirx.const(1, "int32"), lanes)]


def _store(buffer: Any, value: Expr) -> tirx.Stmt:
    return tirx.BufferStore(buffer, value, _index(buffer))


def _load(buffer: Any) -> Expr:
    return tirx.BufferLoad(buffer, _index(buffer))


def _size(value: Expr, sizes: dict[Var, int]) -> int:
    """Nodes of a value with its names spelled out; the sizes of those bound in it are noted."""
    total = 0
    while isinstance(value, tirx.Let):
        sizes[value.var] = _size(value.value, sizes)
        value = value.body

    def inner(let: tirx.Let) -> tvm_ffi.WalkResult:
        nonlocal total
        total += _size(let, sizes)
        return tvm_ffi.WalkResult.SKIP

    def node(expr: Expr) -> None:
        nonlocal total
        total += sizes.get(expr, 1) if isinstance(expr, Var) else 1

    tvm_ffi.structural_walk(value, [(tirx.Let, inner), (Expr, node)], order="pre")
    return total
