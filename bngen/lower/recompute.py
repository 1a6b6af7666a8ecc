"""One element of a value that lies in no memory, computed from what does.

In: a value, a coordinate, the nodes of a kernel. Out: an expression. Each element on the way is
computed once and has a name, however often it is used: spelled out at every use, a chain of
pointwise ops would grow exponentially.

::

    y = relu(x + 1) * x    ->    let a = x[i] + 1 in let b = relu(a) in b * x[i]

No name is bound within the value of another one: passes of TVM look at such a value twice, and at
what is bound in it four times, and so on.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping

from tvm import tirx

from bngen.ir.node import Node
from bngen.ir.types import Value
from bngen.lower import opaque
from bngen.lower.coords import Coord, Lane, broadcast_coord
from bngen.lower.gather import SOURCES
from bngen.lower.opaque import Expr, dtype_of, is_atom
from bngen.lower.pointwise import EXPRESSIONS, Element
from bngen.lower.roundings import only_rounds

Stored = Callable[[Value, Coord], Expr | None]
"""The element of a value at a coordinate, or None for a value that is to be recomputed."""


def element_of(
    v: Value,
    coord: Coord,
    producer: Mapping[Value, Node],
    stored: Stored,
    rounds: Callable[[Node], bool] = lambda node: True,
) -> Expr:
    """The element of ``v`` at a coordinate.

    Args:
        v: a value of the kernel.
        coord: logical coordinate (channels may be a `Lane`).
        producer: the kernel's node that computes each value which is not stored.
        stored: reads what is stored.
        rounds: whether a node that makes of numbers what is only stored does so, though its result
            is not.
    """
    direct = stored(v, coord)
    if direct is not None:
        return direct
    known: dict[Hashable, Expr] = {}
    sources: dict[Hashable, list[tuple[Value, Coord] | None]] = {}
    bound: list[tuple[tirx.Var, Expr]] = []

    def named(element: Expr, node: Node) -> Expr:
        is_bool = dtype_of(element) == "bool"
        if is_atom(element) or (is_bool and all(o.dtype != "bool" for o in node.operands)):
            return element  # Comparing again is cheaper than keeping a mask.
        value = tirx.Select(element, *map(_number, (1, 0))) if is_bool else element
        inner, value = opaque.unnested(value)
        var = tirx.Var("v", dtype_of(value))
        bound.extend([*inner, (var, opaque.held(value))])
        return opaque.not_equal(var, _number(0)) if is_bool else var

    work = [(v, coord)]
    while work:
        wanted, at = work[-1]
        if _key(wanted, at) in known:
            work.pop()
            continue
        element = stored(wanted, at)
        if element is not None:
            known[_key(wanted, at)] = element
            continue
        node = producer[wanted]
        if _key(wanted, at) not in sources:  # A coordinate that is made anew is another one.
            sources[_key(wanted, at)] = _operands(node, at)
        operands = sources[_key(wanted, at)]
        missing = [o for o in operands if o and _key(*o) not in known]
        if missing:
            work += missing
            continue
        row = _unrounded if only_rounds(node) and not rounds(node) else EXPRESSIONS[node.op]
        elements = row(Element(node, at), *(o and known[_key(*o)] for o in operands))
        elements = elements if isinstance(elements, tuple) else (elements,)
        known |= {_key(o, at): named(e, node) for o, e in zip(node.outputs, elements, strict=True)}
    return _in_scope(bound, known[_key(v, coord)])


def _unrounded(_: Element, number: Expr) -> Expr:
    return number


def _number(value: int) -> Expr:
    """A truth value that has a name: TVM's analyzer cannot look at vectors of bool."""
    return tirx.const(value, "int32")


def _in_scope(bound: list[tuple[tirx.Var, Expr]], result: Expr) -> Expr:
    """``result`` with every name defined."""
    if bound and result.same_as(bound[-1][0]):
        result = bound.pop()[1].args[0]  # What was held need not be any longer.
    for var, value in reversed(bound):
        result = tirx.Let(var, value, result)
    return result


def _operands(node: Node, coord: Coord) -> list[tuple[Value, Coord] | None]:
    """What a pointwise node reads to compute its element at a coordinate."""
    row, out = node.row, node.out.shape
    if row.gathers:
        return [(node.inputs[0], SOURCES[node.op](node, coord))]
    operands: list[tuple[Value, Coord] | None] = []
    for role, v in zip(row.roles, node.inputs, strict=True):
        if v is None:
            operands.append(None)
        elif role in row.channel:
            operands.append((v, (coord[1],)))
        elif row.new_axis is not None:
            operands.append((v, (*coord[: row.new_axis], *coord[row.new_axis + 1 :])))
        else:
            operands.append((v, broadcast_coord(coord, v.shape, out)))
    return operands


def _key(v: Value, coord: Coord) -> Hashable:
    """Equal for the same element: coordinates are handed on as they are, or made once."""
    return v, tuple(map(_axis_key, coord))


def _axis_key(axis: object) -> Hashable:
    if isinstance(axis, Lane):
        return id(axis.block), id(axis.lane), axis.layout
    return axis if isinstance(axis, int) else id(axis)
