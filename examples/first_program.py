"""A first program: convolution, batch normalization, ReLU, convolution, as one fused pipeline.

Shows a program's text, the kernels it becomes, a call with NumPy arrays, and running statistics
that are updated in place.
"""

import numpy as np

import bngen as bg


@bg.program
def cpl(x: bg.Tensor[8, 64, 56, 56], w1: bg.Tensor[128, 64, 1, 1],
        mean: bg.Tensor[128], var: bg.Tensor[128], gamma: bg.Tensor[128], beta: bg.Tensor[128],
        w2: bg.Tensor[32, 128, 3, 3]):  # fmt: skip
    y = bg.conv2d(x, w1)
    y = bg.relu(bg.batch_norm(y, mean, var, gamma, beta, training=True))
    return bg.conv2d(y, w2, padding=1)


def main():
    print(cpl.graph)
    mod = bg.build(cpl, target="llvm -mcpu=native")
    for kernel in mod.manifest()["kernels"]:
        print(f"{kernel['name']}: {', '.join(kernel['sublayers'])}")

    rng = np.random.default_rng(0)
    arrays = [
        rng.standard_normal(type_.shape, dtype=np.float32) for type_ in cpl.arguments.values()
    ]
    x, w1, mean, var, gamma, beta, w2 = arrays
    mean[:], var[:] = 0, 1
    out = mod(x, w1, mean, var, gamma, beta, w2)
    print(f"out {out.dtype}{list(out.shape)}")
    print(f"running mean, updated in place: {mean[:4]} ...")


if __name__ == "__main__":
    main()
