"""Fusion levels: which of the paper's restructurings are on.

Nouns only. What a switch allows is written where it is asked, in `legality`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class FusionLevel:
    """Which of the paper's restructurings are on; each level holds the ones before it.

    Attributes:
        name: as in ``fusion=``.
        load: pointwise ops join the loads of the convolution that follows (RCF).
        one_sweep: mean and variance in one reduction (MVF).
        channel: sub-layers with batch statistics join loads and stores (BNFF).
        across: the same across concatenations, residual sums and pools (ICF).
    """

    name: str
    load: bool = False
    one_sweep: bool = False
    channel: bool = False
    across: bool = False


LEVELS: dict[str, FusionLevel] = {
    level.name: level
    for level in (
        FusionLevel("none"),
        FusionLevel("rcf", True),
        FusionLevel("mvf", True, True),
        FusionLevel("bnff", True, True, True),
        FusionLevel("icf", True, True, True, True),
    )
}
"""Names for ``fusion=``; cumulative in this order."""
