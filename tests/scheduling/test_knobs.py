"""The rules' own knobs: legal for any extents on any machine, and never more than its registers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bngen.codegen.nests import BY_KIND
from bngen.lower.facts import ConvFacts
from bngen.runtime.host import Caches
from bngen.scheduling.conv import conv_knobs
from bngen.scheduling.knobs import divisors
from bngen.target.machine import machine_of


def cpu(arch, features="", l2=512 << 10):
    return machine_of(arch, frozenset(features.split()), Caches(32 << 10, l2, 4 << 20), threads=2)


MACHINES = {
    "avx2": cpu("x86_64", "avx"),
    "avx512": cpu("x86_64", "avx avx512f", l2=1 << 20),
    "neon": cpu("aarch64"),
}
KINDS = ("conv", "phased", "winograd", "wgrad", "winograd_wgrad")
DENSE = {"groups": 1, "dilation_h": 1, "dilation_w": 1, "stride_h": 1, "stride_w": 1}


@st.composite
def facts_of(draw, kind, lanes):
    """A convolution of any size, as a strategy of this kind meets it."""
    side, blocks = st.integers(1, 30), st.sampled_from([1, 2, 3, 4, 6, 8, 12, 32])
    spread = 2 if kind == "phased" else 1
    window = {"winograd": 3, "winograd_wgrad": 4}.get(kind) or draw(st.sampled_from([1, 3, 7]))
    h, w = spread * draw(side), spread * draw(side)
    groups = [r for r in divisors(h) if r % (2 if kind == "winograd" else spread) == 0] or [h]
    drawn = {
        **DENSE, "n": draw(st.integers(1, 16)), "h": h, "w": w, "lanes": lanes,
        "out_blocks": draw(blocks), "in_blocks": draw(blocks), "r": window, "s": window,
        "in_lanes": draw(st.sampled_from([1, lanes])) if kind == "conv" else lanes,
        "padded_w": w + window - 1, "spread_h": 2, "spread_w": 2,
        "group_rows": draw(st.sampled_from(groups)),
    }  # fmt: skip
    facts = BY_KIND[kind].facts
    return facts(**{n: v for n, v in drawn.items() if n in facts.__dataclass_fields__})


@pytest.mark.parametrize("name", MACHINES)
@pytest.mark.parametrize("kind", KINDS)
@given(st.data())
def test_own_knobs_are_legal_and_fit_the_registers(kind, name, data):
    strategy, machine = BY_KIND[kind], MACHINES[name]
    facts = data.draw(facts_of(kind, machine.lanes("float32")))
    knobs = strategy.knobs(facts, machine)
    assert strategy.misfit(facts, knobs) is None
    side = knobs["columns"] if "columns" in knobs else knobs["in_lanes"]
    registers = strategy.registers(facts, knobs)
    assert registers == knobs["blocks"] * (side + 1) + 1 <= machine.traits.vector_registers


@pytest.mark.parametrize("width", [7, 14, 28, 56, 112])
def test_tiles_of_one_block_where_broadcasts_are_folded(width):
    def blocks(name):
        lanes = MACHINES[name].lanes("float32")
        facts = ConvFacts(
            **DENSE, n=8, h=width, w=width, out_blocks=8, in_blocks=8, lanes=lanes, in_lanes=lanes,
            padded_w=width, r=1, s=1,
        )  # fmt: skip
        return conv_knobs(facts, MACHINES[name])["blocks"]

    assert blocks("avx512") == 1
    assert blocks("avx2") > 1
    assert blocks("neon") > 1
