"""An activation of one's own, made of arithmetic, is fused like a built-in one.

What may join a convolution's loops is a property of an operation (elementwise), not a list of
names: the Hard Swish below is computed where the second convolution loads, and its gradient where
the gradient of that convolution is stored. The gradient follows from the arithmetic, too.
"""

import numpy as np

import bngen as bg


def hard_swish(x):
    return x * bg.minimum(bg.maximum(x + 3.0, 0.0), 6.0) / 6.0


def network(activation):
    def net(x, w, gamma, beta, v):
        y = bg.batch_norm(bg.conv2d(x, w), None, None, gamma, beta, training=True)
        return bg.conv2d(activation(y), v, padding=1)

    c = bg.Tensor[64]
    types = bg.Tensor[4, 32, 28, 28], bg.Tensor[64, 32, 1, 1], c, c, bg.Tensor[16, 64, 3, 3]
    return bg.trace(net, *types)


def main():
    own, builtin = (bg.build(network(f), grad=True) for f in (hard_swish, bg.relu))
    kernels = {len(mod.manifest()["kernels"]) for mod in (own, builtin)}
    print(f"{kernels.pop()} kernels, forward and backward, with Hard Swish as with ReLU")
    assert not kernels, "the two networks differ in their number of kernels"
    for kernel in own.manifest()["kernels"]:
        print(f"    {', '.join(kernel['sublayers'])}")

    rng = np.random.default_rng(0)
    types = network(hard_swish).arguments.values()
    arrays = [rng.standard_normal(t.shape, dtype=np.float32) for t in types]
    y = own(*arrays)
    gradients = own.backward(np.ones_like(y))
    print("gradients:", {name: list(g.shape) for name, g in gradients.items()})


if __name__ == "__main__":
    main()
