"""What a row of the table of kernel strategies says; the table itself is `bngen.codegen.nests`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bngen.dtypes import PAIRED
from bngen.lower.facts import Declined, Facts, Layouts, wide_sums
from bngen.lower.lowered import Lowered
from bngen.plan.kernel import Kernel
from bngen.scheduling.knobs import Knobs
from bngen.scheduling.legality import Space, choices_in, misfit
from bngen.target.machine import Machine

if TYPE_CHECKING:
    from tvm import s_tir


def multiplies_pairs(kernel: Kernel, machine: Machine) -> bool:
    """Whether a kernel is built around products of bfloat16, pairs of which a machine multiplies.

    Convolutions and data gradients then read weights that lie in pairs, see `PackedWeight`.
    """
    operands = kernel.anchor.inputs if kernel.anchor else ()
    narrow = bool(operands) and all(v is not None and v.dtype == PAIRED for v in operands)
    return narrow and machine.traits.pairs_pay


@dataclass(frozen=True)
class Strategy:
    """How one kind of kernel is computed.

    Attributes:
        kind: its name in manifests and records.
        what: what it is for, in a line.
        made_for: whether it is asked about a kernel at all, by the kernel's anchor.
        applies: what it knows of a kernel (of type ``facts``), or why it declines.
        facts: the type of that.
        lower: the unscheduled kernel; the facts tell of a machine's vectors, where layouts do not.
        knobs: the analytic choice.
        space: all legal choices; empty where there is nothing to tune.
        schedule: knobs to a schedule.
        registers: vector registers that the accumulators of some knobs need, and what they read.
        prefetched: whether its multiply-adds ask early for what its slots read.
        products: multiplications of its kernels' sums of products, transforms not counted.
        declines_on: why it does not apply on a machine to a kernel of such facts, or None.
        in_tiles: whether its sums are in the tiles of a matrix unit, see `bngen.codegen.tiles`.
        of_pairs: the facts where `multiplies_pairs`, of one whose layouts do not say so; None of
            those that multiply floats alone, or read weights that lie in pairs.
    """

    kind: str
    what: str
    made_for: Callable[[Kernel], bool]
    applies: Callable[[Kernel, Layouts], Any]
    facts: type[Facts]
    lower: Callable[[Kernel, Layouts, Any], Lowered]
    knobs: Callable[[Any, Machine], Knobs]
    schedule: Callable[[Lowered, Any, Knobs], s_tir.Schedule]
    space: Callable[[Any], Space] = lambda facts: {}
    registers: Callable[[Any, Knobs], int] = lambda facts, knobs: 0
    prefetched: bool = False
    products: Callable[[Kernel], int] = lambda kernel: 0
    declines_on: Callable[[Kernel, Any, Machine], Declined | None] = lambda *_: None
    in_tiles: bool = False
    of_pairs: Callable[[Any, Kernel], Facts] | None = None

    def asked(self, kernel: Kernel, layouts: Layouts, machine: Machine) -> Facts | Declined:
        """What the strategy knows of a kernel that it was made for, or why it declines."""
        found = wide_sums(kernel) or self.applies(kernel, layouts)
        if isinstance(found, Declined):
            return found
        return self.declines_on(kernel, found, machine) or found

    def own_knobs(self, facts: Any, machine: Machine) -> Knobs:
        """The analytic choice, on the machine as a kernel sees it whose products are of pairs."""
        return self.knobs(facts, machine.of_pairs() if facts.pairs else machine)

    def misfit(self, facts: Any, knobs: Mapping[str, int]) -> Declined | None:
        """Why knobs cannot schedule a kernel of these facts, or None where they can."""
        return misfit(self.kind, self.space(facts), knobs)

    def candidates(self, facts: Any) -> Iterator[Knobs]:
        """Every legal choice of knobs."""
        return choices_in(self.space(facts))
