"""The rules' own knobs: legal for any extents on any machine, and never more than its registers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bngen.codegen.nests import BY_KIND
from bngen.lower.facts import ConvFacts
from bngen.runtime.host import Caches
from bngen.scheduling.conv import conv_knobs
from bngen.scheduling.knobs import divisors
from bngen.target.cpus import traits_of
from bngen.target.machine import machine_of


def cpu(arch, features="", l2=512 << 10, name=""):
    return machine_of(
        traits_of(arch, name, frozenset(features.split())), Caches(32 << 10, l2, 4 << 20), threads=2
    )


MACHINES = {
    "avx2": cpu("x86_64", "avx"),
    "avx512": cpu("x86_64", "avx avx512f", l2=1 << 20),
    "znver4": cpu("x86_64", "avx avx512f", l2=1 << 20, name="znver4"),
    "neon": cpu("aarch64"),
    "sse": cpu("x86_64"),
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
def test_tiles_of_one_block_where_broadcasts_are_free(width):
    def blocks(name):
        lanes = MACHINES[name].lanes("float32")
        facts = ConvFacts(
            **DENSE, n=8, h=width, w=width, out_blocks=8, in_blocks=8, lanes=lanes, in_lanes=lanes,
            padded_w=width, r=1, s=1,
        )  # fmt: skip
        return conv_knobs(facts, MACHINES[name])["blocks"]

    assert blocks("znver4") == 1
    assert blocks("avx512") > 1
    assert blocks("neon") > 1
    # Of 16 registers, two blocks leave few columns: a ragged last tile may cost more than it gains.
    assert width < 28 or blocks("avx2") > 1


WIDE = {"n": 8, "r": 1, "s": 1, **DENSE}
TAPS = {"r": 3, "s": 3, "group_rows": 2}


@pytest.mark.parametrize(
    ("name", "kind", "extents", "knobs"),
    [
        ("sse", "winograd",
         {**WIDE, **TAPS, "h": 112, "w": 112, "in_blocks": 16, "out_blocks": 32, "padded_w": 114},
         {"columns": 4, "blocks": 2, "rows": 2}),
        ("sse", "winograd",
         {**WIDE, **TAPS, "h": 56, "w": 56, "in_blocks": 8, "out_blocks": 32, "padded_w": 58},
         {"columns": 4, "blocks": 2, "rows": 4}),
        ("sse", "conv",
         {**WIDE, "h": 28, "w": 28, "in_blocks": 16, "out_blocks": 4, "padded_w": 28},
         {"columns": 4, "blocks": 2, "rows": 7}),
        ("avx2", "conv",
         {**WIDE, "group_rows": 2, "h": 56, "w": 56, "in_blocks": 2, "out_blocks": 5,
          "padded_w": 56},
         {"columns": 14, "blocks": 1, "rows": 14}),
        ("avx512", "conv",
         {**WIDE, "h": 14, "w": 14, "in_blocks": 32, "out_blocks": 64, "padded_w": 14},
         {"columns": 14, "blocks": 2, "rows": 2}),
        ("avx512", "winograd",
         {**WIDE, **TAPS, "h": 14, "w": 14, "in_blocks": 16, "out_blocks": 16, "padded_w": 16},
         {"columns": 7, "blocks": 2, "rows": 14}),
        ("avx512", "wgrad",
         {**WIDE, "h": 28, "w": 28, "in_blocks": 32, "out_blocks": 16, "padded_w": 28},
         {"chunks": 1, "out_blocks": 16, "in_blocks": 16, "rows": 2, "blocks": 2, "in_lanes": 8}),
        ("znver4", "conv",
         {**WIDE, "group_rows": 4, "h": 28, "w": 28, "in_blocks": 12, "out_blocks": 24,
          "padded_w": 28},
         {"columns": 7, "blocks": 1, "rows": 4}),
        ("znver4", "wgrad",
         {**WIDE, "h": 7, "w": 7, "in_blocks": 132, "out_blocks": 12, "padded_w": 7},
         {"chunks": 1, "out_blocks": 12, "in_blocks": 22, "rows": 7, "blocks": 1, "in_lanes": 16}),
    ],
)  # fmt: skip
def test_choices_for_layers_that_the_constants_were_fitted_to(name, kind, extents, knobs):
    """Layers of the built-in networks for which a slightly other constant chooses otherwise."""
    strategy, machine = BY_KIND[kind], MACHINES[name]
    lanes = machine.lanes("float32")
    known = {**extents, "lanes": lanes, "in_lanes": lanes}
    names = strategy.facts.__dataclass_fields__
    facts = strategy.facts(**{n: v for n, v in known.items() if n in names})
    assert strategy.knobs(facts, machine) == knobs
