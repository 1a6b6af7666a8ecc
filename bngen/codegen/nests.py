"""THE table of kernel strategies: what each is for, when it applies, and how it is done.

In: a kernel of a plan, its layouts, a machine. Out: a `Choice`: the first strategy of `STRATEGIES`
that applies, what it knows of the kernel, and why those before it did not. It is made before
anything is lowered, from the plan alone: TVM is imported when a kernel is lowered and scheduled,
not to choose. The compiler, the tuner, the bench and the manifest read the same rows.

A new strategy is a row here (in `bngen.codegen.sweeps` if it has no products), a module in
`bngen.lower`, and one in `bngen.scheduling` that says when it applies, which knobs it has, and how
they make a schedule.

The road not taken: strategies that are tried one after the other on lowered TIR, as TVM's dlight
does. By then a convolution is direct, and Winograd's points are out of reach.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from bngen.codegen.kinds import convolves, is_product, lowering
from bngen.codegen.strategy import Strategy, multiplies_pairs
from bngen.codegen.sweeps import SWEEPS
from bngen.dtypes import FLOAT, PAIRED
from bngen.ir.attributes import shown
from bngen.lower.facts import (
    AnyFacts,
    ConvFacts,
    Declined,
    Facts,
    GradientFacts,
    Layouts,
    PhasedFacts,
    ProductFacts,
    ShuffledFacts,
    ShuffledGradientFacts,
    WideFacts,
)
from bngen.lower.geometry import direct_products
from bngen.plan.kernel import Kernel
from bngen.scheduling import (
    conv,
    depthwise,
    fallback,
    maps,
    phased,
    product,
    shuffled,
    tiles,
    wgrad,
    winograd,
)
from bngen.scheduling.knobs import Knobs, tile_registers
from bngen.target.machine import Machine

# --- the rows ---------------------------------------------------------------------------------


def _direct(kernel: Kernel) -> int:
    """Multiplications of a direct convolution; a kernel around anything else has none to count."""
    is_convolution = _CONVOLUTION(kernel) or _GRADIENT(kernel)
    return direct_products(kernel.anchor) if is_convolution else 0


def _tile(_: Facts, knobs: Knobs) -> int:
    return tile_registers(knobs["columns"], knobs["blocks"])


def _of_images(facts: GradientFacts, _: Kernel) -> GradientFacts:
    return facts.of_image_pairs()


def _of_bfloat16(made_for: Callable[[Kernel], bool]) -> Callable[[Kernel], bool]:
    return lambda kernel: made_for(kernel) and all(v.dtype == PAIRED for v in kernel.anchor.inputs)


_CONVOLUTION = convolves("forward", "input")
_DATA_GRADIENT = convolves("input")
_GRADIENT = convolves("weight")

STRATEGIES: tuple[Strategy, ...] = (
    Strategy(
        "phased_tiles",
        "the same as phased, of bfloat16: sums in the tiles of a matrix unit",
        made_for=_of_bfloat16(_DATA_GRADIENT),
        applies=tiles.applies_to_phases,
        facts=PhasedFacts,
        lower=lowering("phased", "lower_phased"),
        knobs=tiles.phased_knobs,
        space=tiles.phased_space,
        schedule=phased.schedule_phased,
        products=_direct,
        declines_on=tiles.declines_on,
        in_tiles=True,
    ),
    Strategy(
        "tiles",
        "the same as conv, of bfloat16: sums in the tiles of a matrix unit",
        made_for=_of_bfloat16(_CONVOLUTION),
        applies=tiles.applies,
        facts=ConvFacts,
        lower=lowering("conv", "lower_conv"),
        knobs=tiles.conv_knobs,
        space=tiles.conv_space,
        schedule=conv.schedule_conv,
        products=_direct,
        prefetched=True,
        declines_on=tiles.declines_on,
        in_tiles=True,
    ),
    Strategy(
        "phased",
        "data gradients of strided convolutions: no products with the zeros between pixels",
        made_for=_DATA_GRADIENT,
        applies=phased.applies,
        facts=PhasedFacts,
        lower=lowering("phased", "lower_phased"),
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
        lower=lowering("winograd", "lower_winograd"),
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
        lower=lowering("conv", "lower_depthwise"),
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
        lower=lowering("shuffled", "lower_shuffled"),
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
        lower=lowering("conv", "lower_conv"),
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
        lower=lowering("winograd", "lower_winograd_wgrad", wide=True),
        knobs=winograd.winograd_wgrad_knobs,
        space=wgrad.gradient_space,
        schedule=wgrad.schedule_weight_gradient,
        registers=wgrad.block_registers,
        products=winograd.products,
        of_pairs=_of_images,
    ),
    Strategy(
        "depthwise_wgrad",
        "weight gradients of depthwise convolutions: the window's taps are the accumulators",
        made_for=_GRADIENT,
        applies=depthwise.applies_to_gradient,
        facts=GradientFacts,
        lower=lowering("wgrad", "lower_depthwise_gradient"),
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
        lower=lowering("shuffled", "lower_shuffled_gradient"),
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
        lower=lowering("wgrad", "lower_weight_gradient", wide=True),
        knobs=wgrad.wgrad_knobs,
        space=wgrad.gradient_space,
        schedule=wgrad.schedule_weight_gradient,
        registers=wgrad.block_registers,
        prefetched=True,
        products=_direct,
        of_pairs=_of_images,
    ),
    Strategy(
        "product",
        "matrix products: linear layers and their gradients, weights read where they lie",
        made_for=is_product,
        applies=product.applies,
        facts=ProductFacts,
        lower=lowering("product", "lower_product", wide=True),
        knobs=product.product_knobs,
        space=product.product_space,
        schedule=product.schedule_product,
        registers=product.product_registers,
        products=_direct,
        of_pairs=product.of_pairs,
    ),
    *SWEEPS,
)
"""In the order in which they are asked; the first that applies is taken."""

FALLBACK = Strategy(
    "fallback",
    "any kernel: right, and not tuned",
    made_for=lambda kernel: True,
    applies=lambda kernel, layouts: AnyFacts(lanes=1),
    facts=AnyFacts,
    lower=lowering("fallback", "lower_any"),
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
        return self.strategy.own_knobs(self.facts, machine)


def choose(kernel: Kernel, layouts: Layouts, machine: Machine) -> Choice:
    """The first strategy that applies to a kernel of a plan."""
    declined: dict[str, str] = {}
    for row in STRATEGIES:
        if row.made_for(kernel):
            found = row.asked(kernel, layouts, machine)
            if not isinstance(found, Declined):
                return Choice(row, _on(found, row, kernel, machine), declined)
            declined[row.kind] = found.reason
    return Choice(FALLBACK, AnyFacts(lanes=machine.lanes(FLOAT)), declined)


def _on(facts: Facts, row: Strategy, kernel: Kernel, machine: Machine) -> Facts:
    """The facts on a machine."""
    if isinstance(facts, WideFacts):
        facts = facts.on(machine.lanes(kernel.outputs[0].dtype))
    paired = row.of_pairs is not None and multiplies_pairs(kernel, machine)
    return row.of_pairs(facts, kernel) if paired else facts


def read(kind: str, extents: Mapping[str, int]) -> Facts | Declined:
    """The facts that a record of a kind holds by name."""
    row = BY_KIND.get(kind)
    return row.facts.read(extents) if row else Declined(f"there is no strategy {shown(kind)}")


def legal(kind: str, extents: Mapping[str, int], knobs: Mapping[str, int]) -> Declined | None:
    """Why a record's knobs cannot schedule a kernel of its extents, or None where they can."""
    facts = read(kind, extents)
    return facts if isinstance(facts, Declined) else BY_KIND[kind].misfit(facts, knobs)
