"""Slices at channels that fill no vector are views: what is sliced is laid out in their parts."""

import bngen as bg
from bngen.ir.node import Graph
from bngen.passes.layout.cuts import channel_cuts
from bngen.passes.prepare import join_gradient, prepare

LANES = 16


def sublayers(graph: Graph) -> list[tuple[str, ...]]:
    """What the kernels of a program and its gradient hold."""
    return [k.sublayers for k in prepare(join_gradient(graph), LANES).planned.plan.kernels]


def two_branches(split: int):
    """A unit of ShuffleNet: some channels pass, the others are convolved, and both joined."""

    def net(x, w, v, u):
        y = bg.relu(bg.batch_norm(bg.conv2d(x, w), None, None, training=True))
        branch = bg.relu(bg.conv2d(y[:, split:], v))
        return bg.conv2d(bg.cat([y[:, :split], branch], 1), u)

    rest = 116 - split
    types = [(2, 116, 7, 7), (116, 116, 1, 1), (rest, rest, 1, 1), (8, 116, 1, 1)]
    return bg.trace(net, *(bg.Tensor[t] for t in types)).graph


def test_halves_are_views():
    found = sublayers(two_branches(58))
    assert not any("slice" in k for k in found)
    assert not any({"add", "copy"} <= set(k) and "conv2d" not in k for k in found)


def test_a_cut_that_pads_too_many_channels_is_not_made():
    def net(x, w):
        y = bg.conv2d(x, w)
        return bg.relu(y[:, :3]), bg.relu(y[:, 3:6]), bg.relu(y[:, 6:])

    graph = bg.trace(net, bg.Tensor[2, 16, 7, 7], bg.Tensor[20, 16, 1, 1]).graph
    assert any("slice" in k for k in sublayers(graph))


def test_cuts_are_found_through_what_goes_channel_by_channel():
    def net(x, w, v):
        a = bg.conv2d(x, w)
        b = bg.max_pool2d(bg.relu(bg.cat([a, x], 1)), 2)
        c = bg.conv2d(b, v, groups=30)
        return c[:, 4:25], c[:, 25:]

    graph = bg.trace(
        net, bg.Tensor[1, 10, 4, 4], bg.Tensor[20, 10, 1, 1], bg.Tensor[30, 1, 1, 1]
    ).graph
    made = {n.out: (n.op, n.out.shape[1]) for n in graph.nodes}
    found = {made.get(v, v.name): at for v, at in channel_cuts(graph).items()}
    through = dict.fromkeys(
        (("cat", 30), ("relu", 30), ("max_pool2d", 30), ("conv2d", 30)), (4, 25)
    )
    assert found == {**through, ("conv2d", 20): (4,), "x": (5,)}


def test_a_map_whose_slices_overlap_is_not_cut():
    def net(x, w):
        y = bg.conv2d(x, w)
        return y[:, :16], y[:, 16:], y[:, 5:23]

    graph = bg.trace(net, bg.Tensor[1, 8, 4, 4], bg.Tensor[48, 8, 1, 1]).graph
    assert not channel_cuts(graph)
