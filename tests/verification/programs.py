"""A program with both kinds of batch normalization, and inputs for it."""

import bngen as bg
from bngen.verification.inputs import make_inputs


@bg.program
def two_norms(
    x: bg.Tensor[2, 3, 4, 4],
    w: bg.Tensor[5, 3, 1, 1],
    mean: bg.Tensor[5],
    var: bg.Tensor[5],
    gamma: bg.Tensor[5],
    beta: bg.Tensor[5],
):
    y = bg.batch_norm(bg.conv2d(x, w), mean, var, gamma, beta, training=True)
    m, v = bg.bn_stats(y)
    return bg.bn_normalize(y, m, v), m


def inputs_of(case, graph=two_norms.graph, seed=0):
    return make_inputs(graph, case, {}, seed)
