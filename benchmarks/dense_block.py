"""Three composite layers of a DenseNet, to measure traffic on: maps that no small cache holds."""

import bngen as bg


def make(batch=2, image=56):
    """The block as a program that ends in a number, so that it has a gradient."""

    @bg.program
    def block(x: bg.Tensor[batch, 64, image, image]):
        for i in range(3):
            with bg.scope(f"layer{i}"):
                y = bg.relu(bg.layers.batch_norm(x, "norm1"))
                y = bg.layers.conv2d(y, "conv1", 128, 1, bias=False)
                y = bg.relu(bg.layers.batch_norm(y, "norm2"))
                y = bg.layers.conv2d(y, "conv2", 32, 3, padding=1, bias=False)
                x = bg.cat([x, y], 1)
        return bg.mean(bg.relu(bg.layers.batch_norm(x, "last")))

    return block
