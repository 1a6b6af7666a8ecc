"""What is done to sequences and volumes is done to the maps that they are shapes of.

In and out: graphs of equal meaning. A kernel ends at a reshape, which needs its operand in memory:
only what stands before it can join the store slot of the op that computes the elements.

======================================= ========================================================
before                                  after
======================================= ========================================================
relu(reshape(y))                        reshape(relu(y))
mul(reshape(y), reshape(z))             reshape(mul(y, z)), y and z of one shape
where(reshape(m), dy, 0)                reshape(where(m, reshape(dy), 0))
reshape(reshape(y))                     reshape(y), or y where that is its shape
======================================= ========================================================
"""

from __future__ import annotations

from bngen.ir.build import GraphBuilder
from bngen.ir.node import Graph, Node
from bngen.ir.ops import OPS
from bngen.ir.ops.row import OpDef
from bngen.ir.types import Value
from bngen.passes.rewrite import Rule, rewrite

MAP_RANK, ROWS = 4, (1, 2)
"""Ranks of maps, and of what a matrix product reads."""


def lower_reshapes(graph: Graph) -> Graph:
    """Rewrite by the module's table."""
    rules: dict[str, Rule] = {name: _before for name, row in OPS.items() if _goes_by_element(row)}
    return rewrite(graph, {**rules, "reshape": _at_once})


def _goes_by_element(row: OpDef) -> bool:
    """Whether elements of results depend on those of operands at the same place, and no more."""
    special = row.gathers or row.channel or row.random or row.literal or row.new_axis is not None
    shaped = {"shape", "axis"} & row.defaults.keys()
    return row.kind == "pointwise" and bool(row.operands) and not special and not shaped


def _before(b: GraphBuilder, node: Node) -> tuple[Value, ...] | None:
    """The op, before the reshape whose result it reads, and then that reshape."""
    shape = node.out.shape
    if len(node.outputs) > 1 or any(v.shape not in ((), shape) for v in node.operands):
        return None
    if len(shape) in (*ROWS, MAP_RANK):
        return None  # Who reads a map or rows of a product computes as it loads them.
    reshapes = [_reshape_of(b, v) for v in node.operands if v.shape == shape]
    computed = (r.inputs[0] for r in reshapes if r is not None and _is_computed_map(b, r))
    source = next(computed, None)
    if source is None:
        return None

    def moved(v: Value | None) -> Value | None:
        if v is None or not v.shape:
            return v
        reshape = _reshape_of(b, v)
        if reshape is not None and reshape.inputs[0].shape == source.shape:
            return reshape.inputs[0]
        return b.emit("reshape", v, shape=source.shape)

    result = b.emit(node.op, *map(moved, node.inputs), loc=node.loc, **node.attrs)
    return (b.emit("reshape", result, shape=shape, loc=node.loc),)


def _at_once(b: GraphBuilder, node: Node) -> tuple[Value, ...] | None:
    """A reshape of what another one was made of: none at all, if that had its shape.

    A convolution of sequences gives one back, and their normalization makes it a map again.
    """
    before = _reshape_of(b, node.inputs[0])
    if before is None:
        return None
    source = before.inputs[0]
    if source.shape == node.out.shape:
        return (source,)
    return (b.emit("reshape", source, shape=node.out.shape, loc=node.loc),)


def _reshape_of(b: GraphBuilder, v: Value) -> Node | None:
    made = b.producer(v)
    return made if made is not None and made.row.moves == "reshapes" else None


def _is_computed_map(b: GraphBuilder, reshape: Node) -> bool:
    """Whether a reshape's operand is a feature map that an op with a store slot computes.

    Not one of a pixel an image, which a matrix product reads next. Neither rows of a product: a
    long store slot takes more time among the registers of its tile than a sweep does.
    """
    (v,) = reshape.inputs
    made = b.producer(v)
    if made is None or len(v.shape) != MAP_RANK or v.shape[2:] == (1, 1):
        return False
    return not (made.row.moves or made.row.is_free or made.row.gathers)
