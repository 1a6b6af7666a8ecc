"""The ordered list of rules, closed by the fallback.

A rule that does not apply answers `Declined` with its reason, never a bare None.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tvm import IRModule, s_tir

from bngen.lower.body import Lowered
from bngen.scheduling.conv import schedule_conv, schedule_phased
from bngen.scheduling.fallback import schedule_fallback
from bngen.scheduling.knobs import (
    Declined,
    Knobs,
    Machine,
    conv_knobs,
    map_knobs,
    phased_knobs,
    wgrad_knobs,
    winograd_knobs,
    winograd_wgrad_knobs,
)
from bngen.scheduling.maps import schedule_map, schedule_partial
from bngen.scheduling.wgrad import schedule_depthwise_gradient, schedule_weight_gradient
from bngen.scheduling.winograd import schedule_winograd


@dataclass(frozen=True)
class Rule:
    """How one kind of kernel is scheduled.

    Attributes:
        kind: `Lowered.kind` it is made for.
        knobs: analytic choice from the kernel's extents and the machine.
        apply: knobs to a schedule.
    """

    kind: str
    knobs: Callable[[dict[str, int], Machine], Knobs]
    apply: Callable[[Lowered, Knobs], s_tir.Schedule]


RULES: dict[str, Rule] = {
    rule.kind: rule
    for rule in (
        Rule("conv", conv_knobs, schedule_conv),
        Rule("phased", phased_knobs, schedule_phased),
        Rule("winograd", winograd_knobs, schedule_winograd),
        Rule("winograd_wgrad", winograd_wgrad_knobs, schedule_weight_gradient),
        Rule("depthwise", map_knobs, schedule_map),
        Rule("wgrad", wgrad_knobs, schedule_weight_gradient),
        Rule("depthwise_wgrad", map_knobs, schedule_depthwise_gradient),
        Rule("window", map_knobs, schedule_map),
        Rule("pointwise", map_knobs, schedule_map),
        Rule("partial", map_knobs, schedule_partial),
    )
}


@dataclass(frozen=True)
class Scheduled:
    """A scheduled kernel, the rule's kind (``fallback`` included) and the knobs that were used."""

    module: IRModule
    rule: str
    knobs: Knobs
    declined: tuple[Declined, ...] = ()


def schedule(low: Lowered, machine: Machine, knobs: Knobs | None = None) -> Scheduled:
    """Schedule a kernel with given knobs, or with the analytic ones.

    Args:
        low: the unscheduled kernel.
        machine: lanes, registers and caches that analytic knobs follow.
        knobs: a record's knobs; a record may change speed, never results.
    """
    rule = RULES.get(low.kind)
    if rule is None:
        declined = Declined(f"no rule for {low.kind} kernels")
    elif not low.extents.get("lanes"):
        declined = Declined("the kernel does not run over channel blocks")
    else:
        chosen = knobs or rule.knobs(low.extents, machine)
        return Scheduled(rule.apply(low, chosen).mod, rule.kind, chosen)
    return Scheduled(schedule_fallback(low, machine.lanes).mod, "fallback", {}, (declined,))
