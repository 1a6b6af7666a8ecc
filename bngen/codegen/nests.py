"""THE table of kernel strategies: what each is for, when it applies, and how it is done.

In: a kernel of a plan, its layouts, a machine. Out: a `Choice`: the first strategy of `STRATEGIES`
that applies, what it knows of the kernel, and why those before it did not. It is made before
anything is lowered, from the plan alone: TVM is imported when a kernel is lowered and scheduled,
not to choose. The compiler, the tuner, the bench and the manifest read the same rows.

A new strategy is a row here, a module in `bngen.lower`, and one in `bngen.scheduling` that says
when it applies, which knobs it has, and how they make a schedule.

The road not taken: strategies that are tried one after the other on lowered TIR, as TVM's dlight
does. By then a convolution is direct, and Winograd's points are out of reach.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from bngen.codegen.strategy import Strategy
from bngen.dtypes import FLOAT
from bngen.ir.attributes import shown
from bngen.lower.facts import (
    AnyFacts,
    ColumnFacts,
    ConvFacts,
    CopyFacts,
    Declined,
    Facts,
    GradientFacts,
    Layouts,
    MapFacts,
    MergeFacts,
    PackingFacts,
    PhasedFacts,
    PlainFacts,
    ProductFacts,
    RowFacts,
    ShuffledFacts,
    ShuffledGradientFacts,
    WideFacts,
)
from bngen.lower.geometry import direct_products
from bngen.lower.lowered import Lowered
from bngen.plan.kernel import Kernel
from bngen.scheduling import (
    columns,
    conv,
    copies,
    depthwise,
    fallback,
    maps,
    merges,
    packing,
    phased,
    pixels,
    plain,
    product,
    rows,
    shuffled,
    wgrad,
    winograd,
)
from bngen.scheduling.knobs import Knobs, tile_registers
from bngen.target.machine import Machine

Lowering = Callable[[Kernel, Layouts, Any], Lowered]

# --- what a row is made of --------------------------------------------------------------------


def _convolves(*directions: str) -> Callable[[Kernel], bool]:
    """Whether a kernel is built around a convolution of these directions."""
    return lambda kernel: kernel.anchor is not None and kernel.anchor.row.direction in directions


def _is_window(kernel: Kernel) -> bool:
    return kernel.anchor is not None and kernel.anchor.row.kind == "window"


def _is_pointwise(kernel: Kernel) -> bool:
    return kernel.anchor is None


def _is_product(kernel: Kernel) -> bool:
    return (
        kernel.anchor is not None
        and kernel.anchor.row.kind == "contract"
        and not kernel.anchor.row.direction
    )


def _moves(kernel: Kernel) -> bool:
    """Whether a kernel is built around an op that computes nothing."""
    return kernel.anchor is not None and bool(kernel.anchor.row.moves)


def _reduces(kernel: Kernel) -> bool:
    """Whether a kernel is built around a reduction that is no partial one."""
    node = kernel.anchor
    return node is not None and node.row.kind == "reduce" and not node.row.is_partial


def _folds_axes(kernel: Kernel) -> bool:
    """Whether a kernel is built around a reduction along any axes."""
    node = kernel.anchor
    return node is not None and node.row.kind == "reduce" and "axes" in node.attrs


def _is_partial(kernel: Kernel) -> bool:
    return kernel.anchor is not None and kernel.anchor.row.is_partial


def _lowering(module: str, function: str, *, wide: bool = False) -> Lowering:
    """A function of `bngen.lower`; its module, and TVM with it, is imported when it is called.

    Args:
        module: of `bngen.lower`.
        function: in it.
        wide: whether it takes the facts, too.
    """

    def lower(kernel: Kernel, layouts: Layouts, facts: Facts) -> Lowered:
        found = getattr(importlib.import_module(f"bngen.lower.{module}"), function)
        return found(kernel, layouts, *([facts] if wide else ()))

    return lower


def _direct(kernel: Kernel) -> int:
    """Multiplications of a direct convolution; a kernel around anything else has none to count."""
    is_convolution = _CONVOLUTION(kernel) or _GRADIENT(kernel)
    return direct_products(kernel.anchor) if is_convolution else 0


def _tile(_: Facts, knobs: Knobs) -> int:
    return tile_registers(knobs["columns"], knobs["blocks"])


_CONVOLUTION = _convolves("forward", "input")
_DATA_GRADIENT = _convolves("input")
_GRADIENT = _convolves("weight")

STRATEGIES: tuple[Strategy, ...] = (
    Strategy(
        "phased",
        "data gradients of strided convolutions: no products with the zeros between pixels",
        made_for=_DATA_GRADIENT,
        applies=phased.applies,
        facts=PhasedFacts,
        lower=_lowering("phased", "lower_phased"),
        knobs=phased.phased_knobs,
        space=phased.phased_space,
        schedule=phased.schedule_phased,
        registers=_tile,
        products=_direct,
    ),
    Strategy(
        "winograd",
        "dense 3x3 convolutions and data gradients: 2.25 times fewer multiplications",
        made_for=_CONVOLUTION,
        applies=winograd.applies,
        facts=ConvFacts,
        lower=_lowering("winograd", "lower_winograd"),
        knobs=winograd.winograd_knobs,
        space=winograd.winograd_space,
        schedule=winograd.schedule_winograd,
        registers=_tile,
        prefetched=True,
        products=winograd.products,
    ),
    Strategy(
        "depthwise",
        "convolutions and data gradients of one input channel an output channel: a sweep",
        made_for=_CONVOLUTION,
        applies=depthwise.applies,
        facts=ConvFacts,
        lower=_lowering("conv", "lower_depthwise"),
        knobs=depthwise.depthwise_knobs,
        space=maps.map_space,
        schedule=maps.schedule_map,
        products=_direct,
    ),
    Strategy(
        "shuffled",
        "those whose groups cut channel blocks: each lane sums over channels of its own",
        made_for=_CONVOLUTION,
        applies=shuffled.applies,
        facts=ShuffledFacts,
        lower=_lowering("shuffled", "lower_shuffled"),
        knobs=shuffled.shuffled_knobs,
        space=shuffled.shuffled_space,
        schedule=shuffled.schedule_shuffled,
        registers=lambda facts, knobs: tile_registers(knobs["columns"], 1),
        prefetched=True,
        products=_direct,
    ),
    Strategy(
        "conv",
        "all other convolutions and data gradients whose weights are packed: register tiles",
        made_for=_CONVOLUTION,
        applies=conv.applies,
        facts=ConvFacts,
        lower=_lowering("conv", "lower_conv"),
        knobs=conv.conv_knobs,
        space=conv.conv_space,
        schedule=conv.schedule_conv,
        registers=_tile,
        prefetched=True,
        products=_direct,
    ),
    Strategy(
        "winograd_wgrad",
        "weight gradients of dense 3x3 convolutions: 2.25 times fewer multiplications",
        made_for=_GRADIENT,
        applies=winograd.applies_to_gradient,
        facts=GradientFacts,
        lower=_lowering("winograd", "lower_winograd_wgrad"),
        knobs=winograd.winograd_wgrad_knobs,
        space=wgrad.gradient_space,
        schedule=wgrad.schedule_weight_gradient,
        registers=wgrad.block_registers,
        products=winograd.products,
    ),
    Strategy(
        "depthwise_wgrad",
        "weight gradients of depthwise convolutions: the window's taps are the accumulators",
        made_for=_GRADIENT,
        applies=depthwise.applies_to_gradient,
        facts=GradientFacts,
        lower=_lowering("wgrad", "lower_depthwise_gradient"),
        knobs=depthwise.gradient_knobs,
        space=depthwise.gradient_space,
        schedule=depthwise.schedule_depthwise_gradient,
        products=_direct,
    ),
    Strategy(
        "shuffled_wgrad",
        "weight gradients of groups that cut channel blocks: each lane has sums of its own",
        made_for=_GRADIENT,
        applies=shuffled.applies_to_gradient,
        facts=ShuffledGradientFacts,
        lower=_lowering("shuffled", "lower_shuffled_gradient"),
        knobs=shuffled.gradient_knobs,
        space=shuffled.gradient_space,
        schedule=shuffled.schedule_shuffled_gradient,
        registers=shuffled.gradient_registers,
        products=_direct,
    ),
    Strategy(
        "wgrad",
        "all other weight gradients of whole channel blocks: register blocks over pixels",
        made_for=_GRADIENT,
        applies=wgrad.applies,
        facts=GradientFacts,
        lower=_lowering("wgrad", "lower_weight_gradient"),
        knobs=wgrad.wgrad_knobs,
        space=wgrad.gradient_space,
        schedule=wgrad.schedule_weight_gradient,
        registers=wgrad.block_registers,
        prefetched=True,
        products=_direct,
    ),
    Strategy(
        "product",
        "matrix products: linear layers and their gradients, weights read where they lie",
        made_for=_is_product,
        applies=product.applies,
        facts=ProductFacts,
        lower=_lowering("product", "lower_product", wide=True),
        knobs=product.product_knobs,
        space=product.product_space,
        schedule=product.schedule_product,
        registers=product.product_registers,
        products=_direct,
    ),
    Strategy(
        "packing",
        "weights in the order in which convolutions read them: squares turned over in registers",
        made_for=_moves,
        applies=packing.applies,
        facts=PackingFacts,
        lower=_lowering("packing", "lower_packing"),
        knobs=fallback.no_knobs,
        schedule=packing.schedule_packing,
    ),
    Strategy(
        "copies",
        "maps in another layout or place: squares of pixels and channels turned in registers",
        made_for=_moves,
        applies=copies.applies,
        facts=CopyFacts,
        lower=_lowering("copies", "lower_map_copy"),
        knobs=fallback.no_knobs,
        schedule=copies.schedule_copies,
    ),
    Strategy(
        "window",
        "pools and their gradients: a sweep over a map",
        made_for=_is_window,
        applies=maps.applies_window,
        facts=MapFacts,
        lower=_lowering("window", "lower_window"),
        knobs=maps.map_knobs,
        space=maps.map_space,
        schedule=maps.schedule_map,
    ),
    Strategy(
        "pointwise",
        "pointwise ops over a map, and partial sums of what they compute: a sweep",
        made_for=_is_pointwise,
        applies=maps.applies_pointwise,
        facts=MapFacts,
        lower=_lowering("maps", "lower_pointwise"),
        knobs=maps.map_knobs,
        space=maps.map_space,
        schedule=maps.schedule_map,
    ),
    Strategy(
        "plain",
        "pointwise ops over values in plain order: rows of vectors",
        made_for=_is_pointwise,
        applies=plain.applies,
        facts=PlainFacts,
        lower=_lowering("maps", "lower_pointwise"),
        knobs=fallback.no_knobs,
        schedule=plain.schedule_plain,
    ),
    Strategy(
        "moves",
        "slices, concatenations and other orders of values in plain order: rows of vectors",
        made_for=_moves,
        applies=plain.applies,
        facts=PlainFacts,
        lower=_lowering("copies", "lower_copy"),
        knobs=fallback.no_knobs,
        schedule=plain.schedule_plain,
    ),
    Strategy(
        "merges",
        "partial results put together, and what follows from them: a vector after the other",
        made_for=_reduces,
        applies=merges.applies,
        facts=MergeFacts,
        lower=_lowering("reduce", "lower_reduce"),
        knobs=fallback.no_knobs,
        schedule=merges.schedule_merges,
    ),
    Strategy(
        "rows",
        "reductions along the last axes of plain values: a partial result a lane",
        made_for=_folds_axes,
        applies=rows.applies,
        facts=RowFacts,
        lower=_lowering("rows", "lower_rows", wide=True),
        knobs=fallback.no_knobs,
        schedule=rows.schedule_rows,
    ),
    Strategy(
        "columns",
        "reductions that leave the last axis of plain values: each lane sums a column",
        made_for=_folds_axes,
        applies=columns.applies,
        facts=ColumnFacts,
        lower=_lowering("columns", "lower_columns", wide=True),
        knobs=fallback.no_knobs,
        schedule=columns.schedule_columns,
    ),
    Strategy(
        "pixels",
        "reductions over the channels of a map in blocks: a partial result a pixel and lane",
        made_for=_folds_axes,
        applies=pixels.applies,
        facts=MapFacts,
        lower=_lowering("pixels", "lower_pixels"),
        knobs=fallback.no_knobs,
        schedule=pixels.schedule_pixels,
    ),
    Strategy(
        "partial",
        "partial sums of a map that no other kernel took: a sweep",
        made_for=_is_partial,
        applies=maps.applies_partial,
        facts=MapFacts,
        lower=_lowering("maps", "lower_partial"),
        knobs=maps.map_knobs,
        schedule=maps.schedule_partial,
    ),
)
"""In the order in which they are asked; the first that applies is taken."""

FALLBACK = Strategy(
    "fallback",
    "any kernel: right, and not tuned",
    made_for=lambda kernel: True,
    applies=lambda kernel, layouts: AnyFacts(lanes=1),
    facts=AnyFacts,
    lower=_lowering("fallback", "lower_any"),
    knobs=fallback.no_knobs,
    schedule=fallback.schedule_fallback,
    products=_direct,
)
"""Closes the table."""

BY_KIND: Mapping[str, Strategy] = {row.kind: row for row in (*STRATEGIES, FALLBACK)}


# --- choosing ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Choice:
    """The strategy of a kernel.

    Attributes:
        strategy: the row of the table.
        facts: what it knows of the kernel.
        declined: kind of each strategy that was asked before -> why it declined.
    """

    strategy: Strategy
    facts: Facts
    declined: Mapping[str, str]

    def knobs(self, machine: Machine, asked: Knobs | None = None) -> Knobs:
        """Those asked for where they are legal; else the strategy's own."""
        if asked and self.strategy.misfit(self.facts, asked) is None:
            return asked
        return self.strategy.knobs(self.facts, machine)


def choose(kernel: Kernel, layouts: Layouts, machine: Machine) -> Choice:
    """The first strategy that applies to a kernel of a plan."""
    declined: dict[str, str] = {}
    for row in STRATEGIES:
        if row.made_for(kernel):
            found = row.asked(kernel, layouts)
            if not isinstance(found, Declined):
                return Choice(row, _on(found, kernel, machine), declined)
            declined[row.kind] = found.reason
    return Choice(FALLBACK, AnyFacts(lanes=machine.lanes(FLOAT)), declined)


def _on(facts: Facts, kernel: Kernel, machine: Machine) -> Facts:
    """The facts on a machine."""
    wide = isinstance(facts, WideFacts)
    return facts.on(machine.lanes(kernel.outputs[0].dtype)) if wide else facts


def read(kind: str, extents: Mapping[str, int]) -> Facts | Declined:
    """The facts that a record of a kind holds by name."""
    row = BY_KIND.get(kind)
    return row.facts.read(extents) if row else Declined(f"there is no strategy {shown(kind)}")


def legal(kind: str, extents: Mapping[str, int], knobs: Mapping[str, int]) -> Declined | None:
    """Why a record's knobs cannot schedule a kernel of its extents, or None where they can."""
    facts = read(kind, extents)
    return facts if isinstance(facts, Declined) else BY_KIND[kind].misfit(facts, knobs)
