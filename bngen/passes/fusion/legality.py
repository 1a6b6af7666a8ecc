"""*May* two ops share a kernel? Ordered rules, each with the reason it refuses for.

In: the decisions so far and two nodes. Out: the reason of the first rule that refuses, or None.
Rules know nothing of cost (see `profit`) and change nothing. Whoever breaks one gets a wrong result
or a level that does more than its name says; whoever adds one adds a row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bngen.ir.node import Node
from bngen.ir.types import Value
from bngen.passes.fusion.dataflow import (
    is_collective,
    is_partial_reduction,
    is_pointwise,
    is_small,
    is_vector,
)
from bngen.passes.fusion.precedence import Downstream
from bngen.passes.fusion.state import Cut


@dataclass(frozen=True)
class ValueRule:
    """When a pointwise value has to lie in memory, whoever reads it.

    Attributes:
        reason: in words, for the user; "it" is the value.
        refuses: (decisions, the value's node).
    """

    reason: str
    refuses: Callable[[Cut, Node], bool]


@dataclass(frozen=True)
class PairRule:
    """When two nodes, the second of which reads the first, may not meet in a slot.

    Attributes:
        reason: in words, for the user; of a load slot "it" is the value, of a store slot the
            reader.
        refuses: (decisions, the value's node or the kernel's anchor, the reader).
    """

    reason: str
    refuses: Callable[[Cut, Node, Node], bool]


# --- load slots -------------------------------------------------------------------------------


def _loads_pointwise(reader: Node) -> bool:
    """Whether a reader has load slots below icf."""
    return reader.row.kind in ("contract", "pointwise") or is_partial_reduction(reader)


def _is_sum(cut: Cut, node: Node, reader: Node) -> bool:
    residual = cut.flow.is_residual
    return residual(node) or (is_pointwise(reader) and residual(reader))


def _is_read_elsewhere_too(cut: Cut, node: Node) -> bool:
    """Whether of several readers one gathers: a kernel of both would compute all of it twice.

    Of what gathers itself from memory it would only compute where that is.
    """
    readers, flow = cut.flow.readers(node.out), cut.flow
    if len(readers) < 2 or not any(r.row.gathers for r in readers) or not node.operands:
        return False
    source = node.operands[0]
    at_hand = source in cut.stored or flow.producer.get(source) in flow.views
    return not (node.row.gathers and at_hand)


STORED_ALWAYS: tuple[ValueRule, ...] = (
    ValueRule(
        "an op with several results stores them",
        lambda cut, node: len(node.outputs) > 1,
    ),
    ValueRule(
        "it is a result of the program",
        lambda cut, node: node.out in cut.flow.results,
    ),
    ValueRule(
        "a concatenation, slice or reshape of it needs it in memory",
        lambda cut, node: any(r in cut.flow.views for r in cut.flow.readers(node.out)),
    ),
    ValueRule(
        "it is sent to other processes",
        lambda cut, node: any(map(is_collective, cut.flow.readers(node.out))),
    ),
    ValueRule(
        "it is read at several places at once",
        lambda cut, node: _is_read_elsewhere_too(cut, node),
    ),
)
"""What lies in memory at every level, whatever it costs."""

STORED_OTHERWISE: tuple[ValueRule, ...] = (
    ValueRule(
        "it is a vector, which costs no sweep",
        lambda cut, node: is_small(node.out),
    ),
    ValueRule(
        "pointwise ops join loads from rcf on",
        lambda cut, node: not cut.flow.level.load,
    ),
)
"""What else does, masks, constants and identities excepted."""

LOAD_RULES: tuple[PairRule, ...] = (
    PairRule(
        "pools, copies and whole reductions load stored values below icf",
        lambda cut, node, reader: not cut.flow.level.across and not _loads_pointwise(reader),
    ),
    PairRule(
        "batch statistics join loads from bnff on",
        lambda cut, node, reader: not cut.flow.level.channel and bool(node.row.channel),
    ),
    PairRule(
        "sums of feature maps join loads from icf on",
        lambda cut, node, reader: not cut.flow.level.across and _is_sum(cut, node, reader),
    ),
)


def is_stored(cut: Cut, node: Node, *, free: bool) -> str | None:
    """Why the results of a pointwise node lie in memory whoever reads them.

    Args:
        cut: the decisions so far.
        node: the node.
        free: whether it is one that never deserves memory for its own sake.
    """
    rules = STORED_ALWAYS if free else STORED_ALWAYS + STORED_OTHERWISE
    return next((rule.reason for rule in rules if rule.refuses(cut, node)), None)


def may_load(cut: Cut, node: Node, reader: Node) -> str | None:
    """Why ``reader`` may not compute the value of ``node``, pointwise, in its load slots."""
    return next((rule.reason for rule in LOAD_RULES if rule.refuses(cut, node, reader)), None)


# --- store slots ------------------------------------------------------------------------------


def may_hold(anchor: Node) -> bool:
    """Whether there is a store slot in kernels around an op of this kind, at some level."""
    row = anchor.row
    vector = is_vector(anchor.out) and row.store_slot
    return vector or row.kind in ("contract", "window", "pointwise")


def has_no_slot(cut: Cut, anchor: Node) -> str | None:
    """Why the kernel around an anchor that `may_hold` something has no store slot."""
    if is_vector(anchor.out):
        return None
    return next((rule.reason for rule in SLOT_RULES if rule.refuses(cut, anchor)), None)


def may_store(cut: Cut, anchor: Node, node: Node) -> str | None:
    """Why the store slot of ``anchor``'s kernel does not take a reader of what it computes.

    Whether that would make a kernel wait for itself is asked by `may_wait`.
    """
    rules = (rule.reason for rule in STORE_RULES if rule.refuses(cut, anchor, node))
    return next(rules, None)


def may_wait(
    cut: Cut, node: Node, inside: set[Value], later: Callable[[], Downstream]
) -> str | None:
    """Why a kernel that computes the values ``inside`` cannot wait for all that ``node`` needs.

    Args:
        cut: the decisions so far.
        node: a reader of one of the values.
        inside: values that the kernel computes.
        later: what has to wait for the kernel.
    """
    flow = cut.flow
    outside = [v for v in node.operands if v not in inside and v in flow.producer]
    waits = any(flow.order[flow.producer[v]] in later() for v in outside)
    return WAITS if waits else None


def _looped_over(node: Node) -> tuple[Value, ...]:
    """The values whose elements a node's loop goes over."""
    return node.operands[:1] if is_partial_reduction(node) else node.outputs


WAITS = "it also needs what is known only when the kernel has ended"

SLOT_RULES: tuple[ValueRule, ...] = (
    ValueRule(
        "a weight's gradient is complete only when its kernel ends",
        lambda cut, anchor: not anchor.row.store_slot,
    ),
    ValueRule(
        "sub-layers join stores of pools and pointwise ops from icf on",
        lambda cut, anchor: not cut.flow.level.across and anchor.row.kind != "contract",
    ),
    ValueRule(
        "sub-layers join stores of convolutions from bnff on",
        lambda cut, anchor: not cut.flow.level.channel,
    ),
)

STORE_RULES: tuple[PairRule, ...] = (
    PairRule(
        "it is computed in the store slot of another kernel",
        lambda cut, anchor, node: node in cut.owner,
    ),
    PairRule(
        "it reads elements from other places",
        lambda cut, anchor, node: node.row.gathers,
    ),
    PairRule(
        "it belongs to the backward call",
        lambda cut, anchor, node: node in cut.flow.backward and anchor not in cut.flow.backward,
    ),
    PairRule(
        "it has another shape",
        lambda cut, anchor, node: any(v.shape != anchor.out.shape for v in _looped_over(node)),
    ),
    PairRule(
        "it lies in another layout",
        lambda cut, anchor, node: any(
            cut.flow.layouts[v] != cut.flow.layouts[anchor.out] for v in _looped_over(node)
        ),
    ),
    PairRule(
        "sums of feature maps join stores from icf on",
        lambda cut, anchor, node: (
            not cut.flow.level.across
            and not is_partial_reduction(node)
            and cut.flow.is_residual(node)
        ),
    ),
)
