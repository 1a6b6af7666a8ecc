"""A network of every kind of layer that trains, small enough to be built for each test."""

from __future__ import annotations

import bngen as bg


def small():
    """conv - BN - ReLU - mean - linear - loss, of images ``[2, 3, 6, 6]`` and two labels."""

    def net(x, labels):
        y = bg.layers.conv2d(x, "conv", 5, 3, padding=1)
        y = bg.relu(bg.layers.batch_norm(y, "norm"))
        return bg.cross_entropy(bg.layers.linear(y.mean((2, 3)), "fc", 4), labels)

    return bg.trace(net, bg.Tensor[2, 3, 6, 6], bg.Tensor[2, bg.int64])
