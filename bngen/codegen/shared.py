"""Kernels that differ in numbers alone share a function, and call it with the numbers.

In: lowered kernels, as LLVM is about to have them. Out: fewer functions, one for all that are equal
but for integers. LLVM takes some seven tenths of the time of compiling, and the layers of a dense
block differ in nothing but a number of channels.

::

    k1: for i in range(8): y[i * 512] = ...        k(n): for i in range(8 + 4 * n): y[i * 512] = ...
    k2: for i in range(12): y[i * 512] = ...       k1 = k(0), k2 = k(1)

The operations are the same, in the same order: all that was to be simplified, unrolled or cut into
vectors has been. (LLVM may contract a product and a sum in one form that it moves apart in another;
then the last bit differs.) A number that machine code is better for knowing stays in it, and
kernels that differ in one share nothing (`fixed`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import tvm_ffi
from tvm import tirx
from tvm.ir import Expr, StringImm, Var

from bngen.codegen.alignment import redeclared, substituted
from bngen.codegen.fixed import fixed

MOST = 12
"""Numbers that a function takes at most: each is an argument of every call."""
GREATEST = 1 << 30
"""A number that is computed of a parameter: 32 bits hold it, and what it differs by."""

_PREFIX = "__tvm_ffi_"
"""TVM's, of functions of its calling convention."""
_ARGUMENTS = 1
"""The parameter of such a function that points to the arguments."""
_VALUE = 15
"""``kTVMFFIAnyUnionValue`` of TVM's builtin.h: what an argument holds."""


@dataclass(frozen=True)
class Shared:
    """A function, and who calls it with which numbers.

    Attributes:
        function: takes its numbers after the arguments of a kernel.
        members: positions of the kernels.
        numbers: those of each.
    """

    function: tirx.PrimFunc
    members: tuple[int, ...]
    numbers: tuple[tuple[int, ...], ...]


class _Member(NamedTuple):
    """A kernel: its position among all, the kernel, its arguments, and the integers in it."""

    position: int
    function: tirx.PrimFunc
    arguments: int
    numbers: list[int]


def share(functions: Sequence[tirx.PrimFunc], arguments: Sequence[int]) -> list[Shared]:
    """As few functions as do for some kernels.

    Args:
        functions: kernels, lowered, of one name.
        arguments: how many each takes.
    """
    if len(functions) == 1:
        return [Shared(functions[0], (0,), ((),))]
    alike: dict[int, list[tuple[tirx.PrimFunc, list[_Member]]]] = {}
    for i, (function, count) in enumerate(zip(functions, arguments, strict=True)):
        function = _without_shapes(function)
        numbers, form = _without_numbers(function)
        of_hash = alike.setdefault(tvm_ffi.structural_hash(form, map_free_vars=True), [])
        members = next((m for other, m in of_hash if _are_equal(form, other)), None)
        if members is None:
            of_hash.append((form, members := []))
        members.append(_Member(i, function, count, numbers))
    return [
        shared
        for of_hash in alike.values()
        for _, members in of_hash
        for group in _groups(members)
        for shared in _shared(group)
    ]


def renamed(function: tirx.PrimFunc, symbol: str) -> tirx.PrimFunc:
    """A lowered kernel, and the part of it that profilers see, by another name."""

    def scope(node: tirx.AttrStmt, mutator: tvm_ffi.StructuralMutator) -> tirx.Stmt:
        if node.attr_key != "compute_scope":
            return mutator.default_mutate(node)
        name = StringImm(f"{symbol}_compute_")
        return tirx.AttrStmt(node.node, node.attr_key, name, node.body, node.span)

    found = tvm_ffi.structural_mutate(function, (tirx.AttrStmt, scope))
    return found.with_attr("global_symbol", _PREFIX + symbol)


# --- what is alike ----------------------------------------------------------------------------

_places: list[Var] = []
"""What stands in a form for each number: the same in all forms."""


def _without_numbers(function: tirx.PrimFunc) -> tuple[list[int], tirx.PrimFunc]:
    """The integers in a function, in the order of a mutator, and the function without them."""
    numbers: list[int] = []

    def replaced(number: tirx.IntImm, _mutator: tvm_ffi.StructuralMutator) -> Expr:
        i = len(numbers)
        numbers.append(number.value)
        if i == len(_places):
            _places.append(Var(f"n{i}", "int32"))
        return _places[i]

    form = tvm_ffi.structural_mutate(function, (tirx.IntImm, replaced))
    return numbers, form


def _without_shapes(function: tirx.PrimFunc) -> tirx.PrimFunc:
    """The function whose arguments' shapes are forgotten: all addresses have been computed."""
    shapeless: dict[Var, Var] = {}

    def declared(declaration: tirx.DeclBuffer) -> None:
        shapeless[declaration.buffer] = redeclared(declaration.buffer, shape=(1,))

    tvm_ffi.structural_walk(function, (tirx.DeclBuffer, declared))
    return substituted(function, shapeless)


def _are_equal(form: tirx.PrimFunc, other: tirx.PrimFunc) -> bool:
    return tvm_ffi.structural_equal(form, other, map_free_vars=True)


def _groups(members: list[_Member]) -> Iterator[list[_Member]]:
    """Kernels of one form, those together that differ in no number that stays in the code."""
    if len(members) == 1:
        yield members
        return
    stay = fixed(members[0].function, members[0].numbers)
    columns = zip(*(member.numbers for member in members), strict=True)
    stay += [i for i, column in enumerate(columns) if max(map(abs, column)) > GREATEST]
    groups: dict[tuple[int, ...], list[_Member]] = {}
    for member in members:
        groups.setdefault(tuple(member.numbers[i] for i in stay), []).append(member)
    yield from groups.values()


def _shared(group: list[_Member]) -> Iterator[Shared]:
    """One function for a group of kernels, or as many as it takes for none to need too much."""
    terms = _terms(group)
    parameters = list(dict.fromkeys(term.parameter for term in terms.values()))
    if len(parameters) > MOST:
        half = len(group) // 2
        yield from _shared(group[:half])
        yield from _shared(group[half:])
        return
    numbers = tuple(zip(*parameters, strict=True)) or ((),) * len(group)
    function = group[0].function
    if parameters:
        function = _with_parameters(function, group[0].arguments, terms, parameters)
    yield Shared(function, tuple(member.position for member in group), numbers)


# --- numbers that are parameters --------------------------------------------------------------


class _Term(NamedTuple):
    """A number of each member: ``base + factor * parameter``."""

    base: int
    factor: int
    parameter: tuple[int, ...]


def _terms(group: Sequence[_Member]) -> dict[int, _Term]:
    """The numbers in which members differ, by their position."""
    columns = zip(*(member.numbers for member in group), strict=True)
    return {i: _term(column) for i, column in enumerate(columns) if len(set(column)) > 1}


def _term(column: Sequence[int]) -> _Term:
    """By a parameter that is nought somewhere, never below, and has no common factor.

    Numbers that rise and those that fall from member to member have the same one.
    """
    least, most = min(column), max(column)
    factor = math.gcd(*(number - least for number in column))
    rising = tuple((number - least) // factor for number in column)
    falling = tuple((most - number) // factor for number in column)
    return _Term(most, -factor, falling) if falling < rising else _Term(least, factor, rising)


def _with_parameters(
    function: tirx.PrimFunc,
    arguments: int,
    terms: Mapping[int, _Term],
    parameters: Sequence[tuple[int, ...]],
) -> tirx.PrimFunc:
    """The function that reads its numbers after its arguments.

    It is told how large they may be, and so are the bodies of its parallel loops, which to LLVM are
    functions of their own: a division by a literal is cheaper of what is known not to be negative.
    """
    variables: dict[tuple[tuple[int, ...], str], Var] = {}
    position = itertools.count()

    def replaced(number: tirx.IntImm, _mutator: tvm_ffi.StructuralMutator) -> Expr:
        term = terms.get(next(position))
        if term is None:
            return number
        dtype = number.ty.dtype
        signed = "int32" if dtype == "int32" else "int64"
        key = term.parameter, signed
        if key not in variables:
            variables[key] = Var(f"n{len(variables)}", signed)
        base, factor = tirx.const(term.base, signed), tirx.const(term.factor, signed)
        return (base + factor * variables[key]).astype(dtype)

    def told(loop: tirx.For, mutator: tvm_ffi.StructuralMutator) -> tirx.Stmt:
        loop = mutator.default_mutate(loop)
        if loop.kind != tirx.ForKind.PARALLEL:
            return loop
        return tirx.For(
            loop.loop_var,
            loop.min,
            loop.extent,
            loop.kind,
            tirx.SeqStmt([*bounds(), loop.body]),
            loop.thread_binding,
            loop.annotations,
            loop.step,
            loop.span,
        )

    def bounds() -> Iterator[tirx.Stmt]:
        for (parameter, _), variable in variables.items():
            within = tirx.And(variable >= 0, variable <= max(parameter))
            yield tirx.Evaluate(tirx.assume(within))

    def given() -> Iterator[tirx.Stmt]:
        for (parameter, dtype), variable in variables.items():
            i = arguments + parameters.index(parameter)
            value = tirx.tvm_struct_get(function.params[_ARGUMENTS], i, _VALUE, "int64")
            yield tirx.Bind(variable, value.astype(dtype))

    changed = tvm_ffi.structural_mutate(function, [(tirx.IntImm, replaced), (tirx.For, told)])
    body = tirx.SeqStmt([*given(), *bounds(), changed.body])
    return tirx.PrimFunc(changed.params, body, changed.ret_type, changed.attrs, changed.span)
