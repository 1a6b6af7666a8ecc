"""Store slots: one pass over a tile, and no loop left standing that LLVM could hoist out of."""

import pytest
from tvm import tirx

import bngen as bg
from bngen.scheduling.reading import nests
from tests.scheduling.test_prefetch import plan_of, scheduled, traced

# One tile a row and several; direct, at Winograd's points, strided; groups; odd maps.
SHAPES = [(7, 32, 1), (14, 32, 1), (14, 32, 3), (7, 32, 3), (28, 32, 3, 2), (14, 32, 3, 1, 16)]


def slots(plan):
    """The scheduled kernels whose store slot has several blocks on the tile."""
    for kernel in plan.kernels:
        low, func = scheduled(kernel, plan)
        tiles = [name for name in low.tiles if name != low.main]
        if tiles and low.sums and kernel.anchor:
            yield low, func, tiles


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_vector_passes_the_whole_slot_before_the_next(shape):
    seen = 0
    for low, func, (first, *rest) in slots(plan_of(*shape)):
        blocks = nests(func.body)
        *outer, lanes = blocks[first].loops
        assert lanes.kind == tirx.ForKind.VECTORIZED
        for name in [*rest, *low.sums]:
            nest = blocks.get(f"{name}_update") or blocks[name]
            assert nest.shared_with(blocks[first]) >= len(outer), (low.name, name)
            seen += 1
    assert seen


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_loop_of_one_iteration_bears_no_mark(shape):
    """TVM keeps a marked loop, and LLVM hoists out of it what the slot reads, above the sums."""
    plan = plan_of(*shape)
    for kernel in plan.kernels:
        low, func = scheduled(kernel, plan)
        for nest in nests(func.body).values():
            marked = [x for x in nest.loops if x.annotations]
            assert all(int(x.extent) > 1 for x in marked), (low.name, marked)


@pytest.mark.parametrize("window", [1, 3])
@pytest.mark.parametrize("width", [7, 12])
def test_sums_of_the_convolution_itself_have_a_pass_of_their_own(width, window):
    """Without an activation a gradient's sums read no mask, but what the store slot reads."""
    kinds = [
        bg.Tensor[2, 32, width, width],
        bg.Tensor[32, 32, 1, 1],
        bg.Tensor[32, 32, window, window],
        *[bg.Tensor[32]] * 4,
    ]

    def step(x, w1, w2, mean, var, gamma, beta):
        y = bg.batch_norm(bg.conv2d(x, w1), mean, var, gamma, beta, training=True)
        return bg.conv2d(y, w2, padding=window // 2)

    seen = 0
    for low, func, (first, *_) in slots(traced(step, kinds, ["x", "w1", "w2", "gamma", "beta"])):
        blocks = nests(func.body)
        around = len(blocks[first].loops) - 1
        shared = [blocks[f"{name}_update"].shared_with(blocks[first]) for name in low.sums]
        seen += any(depth < around for depth in shared)
    assert seen
