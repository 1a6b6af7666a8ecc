"""Plans run in simulated memory give what the program means: no value is lost, none is late."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bngen.ir.build import GraphBuilder
from bngen.ir.node import Graph
from bngen.ir.types import TensorType
from bngen.models import make
from bngen.passes.fusion.levels import LEVELS
from bngen.passes.pipeline import plan_program
from bngen.plan.formats import C_ORDER
from tests.passes.meaning import joint_program, reference, same_results
from tests.passes.memory_simulation import run_in_memory
from tests.strategies import formats_of, programs, random_args

LANES = (4, 8, 16)


def check(graph, level, lanes, seed, late=(), formats=C_ORDER):
    planned = plan_program(graph, level, lanes, cotangents=late, formats=formats)
    args = random_args(graph, seed)
    same_results(run_in_memory(planned, args), reference(graph, args))


def check_joint(graph, level, lanes, seed=0):
    joint, late = joint_program(graph)
    check(joint, level, lanes, seed, late)


@pytest.mark.parametrize("level", LEVELS)
@given(graph=programs(), lanes=st.sampled_from(LANES), seed=st.integers(0, 2**31), data=st.data())
def test_forward_programs(level, graph, lanes, seed, data):
    check(graph, level, lanes, seed, formats=data.draw(formats_of(graph)))


@pytest.mark.parametrize("level", LEVELS)
@given(graph=programs(), lanes=st.sampled_from(LANES), seed=st.integers(0, 2**31), data=st.data())
def test_joint_programs(level, graph, lanes, seed, data):
    joint, late = joint_program(graph)
    check(joint, level, lanes, seed, late, data.draw(formats_of(joint)))


class Blocks:
    """A feature map and what is stacked on it; each layer BN, ReLU, convolution."""

    def __init__(self, channels: int):
        self.b = GraphBuilder()
        self.x = self.b.input("x", TensorType((2, channels, 5, 4)))

    def layer(self, x, out, side=3):
        weight, bias = (
            self.b.input(f"bn.{name}", TensorType((x.shape[1],)), "parameter")
            for name in ("weight", "bias")
        )
        y, _, _ = self.b.emit("batch_norm", x, weight, bias)
        w = self.b.input("conv.weight", TensorType((out, x.shape[1], side, side)), "parameter")
        return self.b.emit("conv2d", self.b.emit("relu", y), w, padding=(side // 2,) * 4)


def dense_block(channels: int, growth: int, layers: int) -> Graph:
    """The input, and each layer, is read by all layers after it and by the result."""
    net = Blocks(channels)
    features = [net.x]
    for _ in range(layers):
        joined = net.b.emit("cat", *features) if len(features) > 1 else net.x
        features.append(net.layer(net.layer(joined, 4, side=1), growth))
    return net.b.finish([net.b.emit("cat", *features)])


def residual_chain(channels: int, blocks: int) -> Graph:
    """Each sum is read by a branch and by the next sum."""
    net = Blocks(channels)
    x = net.x
    for _ in range(blocks):
        x = net.b.emit("add", x, net.layer(net.layer(x, 4, side=1), channels))
    return net.b.finish([x])


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("channels, growth", [(8, 4), (6, 3)])
def test_a_map_with_eight_consumers(level, channels, growth):
    check_joint(dense_block(channels, growth, layers=8), level, lanes=4)


@pytest.mark.parametrize("level", LEVELS)
def test_residual_sums(level):
    check_joint(residual_chain(6, blocks=3), level, lanes=4)


@pytest.mark.parametrize("level", ["none", "icf"])
@pytest.mark.parametrize("name", ["tiny_densenet", "tiny_resnet", "tiny_mobilenet", "tiny_vgg"])
def test_tiny_networks(name, level):
    check_joint(make(name, batch=2, image=32, num_classes=5, dropout=0).graph, level, lanes=8)


def test_a_group_may_not_end_within_a_block():
    """Segments of 2 and 6 channels lie in three blocks of 4, which two groups cannot share."""
    b = GraphBuilder()
    parts = [b.emit("silu", b.input("x", TensorType((1, c, 3, 3)))) for c in (2, 6)]
    w = b.input("w", TensorType((8, 4, 1, 1)), "parameter")
    check(b.finish([b.emit("conv2d", b.emit("cat", *parts), w, groups=2)]), "icf", 4, 0)


@pytest.mark.parametrize("level", LEVELS)
def test_a_result_of_the_anchor_overwrites_nothing_that_its_store_slot_reads(level):
    b = GraphBuilder()
    x, factor = b.input("x", TensorType((1, 17, 1, 1))), b.input("factor", TensorType((1, 1, 1, 1)))
    w = b.input("w", TensorType((1, 17, 3, 3)), "parameter")
    y = b.emit("conv2d", x, w, padding=(1, 1, 1, 1))
    check_joint(b.finish([b.emit("mul", factor, y)]), level, lanes=4)
