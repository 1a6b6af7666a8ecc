"""The rules' own knobs: legal for any extents on any machine, and never more than its registers."""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bngen.scheduling.knobs import (
    conv_knobs,
    divisors,
    phased_knobs,
    wgrad_knobs,
    winograd_knobs,
    winograd_wgrad_knobs,
)
from bngen.scheduling.legality import legal


@dataclass(frozen=True)
class Cpu:
    lanes: int
    vector_registers: int
    l1: int = 32 << 10
    l2: int = 512 << 10
    threads: int = 2


MACHINES = {"avx2": Cpu(8, 16), "avx512": Cpu(16, 32, l2=1 << 20), "neon": Cpu(4, 32)}
RULES = {
    "conv": conv_knobs,
    "phased": phased_knobs,
    "winograd": winograd_knobs,
    "wgrad": wgrad_knobs,
    "winograd_wgrad": winograd_wgrad_knobs,
}
DENSE = {"groups": 1, "dilation_h": 1, "dilation_w": 1}


@st.composite
def extents(draw, kind, lanes):
    """A convolution of any size, as a rule of this kind meets it."""
    side, blocks = st.integers(1, 30), st.sampled_from([1, 2, 3, 4, 6, 8, 12, 32])
    spread = 2 if kind == "phased" else 1
    window = {"winograd": 3, "winograd_wgrad": 4}.get(kind) or draw(st.sampled_from([1, 3, 7]))
    h, w = spread * draw(side), spread * draw(side)
    groups = [r for r in divisors(h) if r % (2 if kind == "winograd" else spread) == 0] or [h]
    facts = {
        **DENSE, "n": draw(st.integers(1, 16)), "h": h, "w": w, "lanes": lanes,
        "out_blocks": draw(blocks), "in_blocks": draw(blocks), "r": window, "s": window,
        "in_lanes": draw(st.sampled_from([1, lanes])) if kind == "conv" else lanes,
        "padded_w": w + window - 1, "stride_h": 1, "stride_w": 1,
        "group_rows": draw(st.sampled_from(groups)),
    }  # fmt: skip
    return facts | ({"spread_h": 2, "spread_w": 2} if kind == "phased" else {})


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("kind", RULES)
@given(st.data())
def test_own_knobs_are_legal_and_fit_the_registers(kind, machine, data):
    cpu = MACHINES[machine]
    facts = data.draw(extents(kind, cpu.lanes))
    knobs = RULES[kind](facts, cpu)
    assert legal(kind, facts, knobs) is None
    side = knobs["columns"] if "columns" in knobs else knobs["in_lanes"]
    assert knobs["blocks"] * (side + 1) + 1 <= cpu.vector_registers


@pytest.mark.parametrize("width", [7, 14, 28, 56, 112])
def test_tiles_of_one_block_where_broadcasts_are_folded(width):
    facts = {
        **DENSE, "n": 8, "h": width, "w": width, "out_blocks": 8, "in_blocks": 8,
        "padded_w": width, "r": 1, "s": 1,
    }  # fmt: skip
    blocks = {
        m: conv_knobs({**facts, "in_lanes": c.lanes}, c)["blocks"] for m, c in MACHINES.items()
    }
    assert blocks["avx512"] == 1
    assert blocks["avx2"] > 1
    assert blocks["neon"] > 1
