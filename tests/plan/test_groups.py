"""Groups of channels: what their maps look like, and what is said of the lanes holds of each."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bngen.plan.groups import Groups, holds_whole, layouts_of_groups
from bngen.plan.layout import blocked

lanes = st.sampled_from([4, 8, 16])
per_group = st.integers(1, 40)


def read(of: Groups, block: int) -> list[int]:
    """Where each lane of an output block finds its first channel, as lanes from the first one."""
    channels = range(block * of.outer.lanes, (block + 1) * of.outer.lanes)
    return [k // of.out_per * of.in_per for k in channels]


@given(lanes, per_group, per_group, st.integers(2, 12))
def test_blocks_are_as_alike_as_is_said(width, inputs, outputs, groups):
    maps = (blocked(width, [per * groups]) for per in (inputs, outputs))
    of = Groups(*maps, inputs, outputs)
    last = read(of, of.outer.blocks - 1)[-1] + inputs - 1
    assert of.reads_beyond == (last >= of.inner.blocks * width)
    if not of.period:
        return
    first = read(of, 0)
    for block in range(of.outer.blocks):
        here, ahead = read(of, block), read(of, block % of.period)
        shift = {a - b for a, b in zip(here, ahead, strict=True)}
        # An output block whose lanes all read one channel may find that anywhere.
        assert len(shift) == 1 and (len(set(here)) == 1 or not shift.pop() % width)
        if of.alike:
            assert len({a - b for a, b in zip(here, first, strict=True)}) == 1


@given(lanes, per_group, per_group, st.integers(2, 12))
def test_both_directions_agree_on_the_layouts(width, inputs, outputs, groups):
    found = layouts_of_groups(width, inputs * groups, outputs * groups, groups)
    assert found[::-1] == layouts_of_groups(width, outputs * groups, inputs * groups, groups)
    assert [layout.channels for layout in found] == [inputs * groups, outputs * groups]
    whole = [holds_whole(layout, groups) for layout in found]
    if all(whole):
        assert all(layout.blocks * width <= 2 * layout.channels for layout in found)
    else:
        assert all(len(layout.segments) == 1 for layout in found)


@pytest.mark.parametrize(
    ("width", "per", "segments"),
    [(16, 8, 1), (16, 24, 14), (8, 24, 1), (16, 6, 1), (16, 12, 14), (16, 232, 14), (16, 32, 1)],
)
def test_which_groups_are_padded(width, per, segments):
    x, y = layouts_of_groups(width, 14 * per, 14 * per, 14)
    assert x == y and len(x.segments) == segments
