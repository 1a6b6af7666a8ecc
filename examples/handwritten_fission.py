"""Batch normalization split by hand into its two sub-layers.

`bn_stats` joins the convolution before it, `bn_normalize` and the ReLU the convolution after it.
The compiler splits `batch_norm` in the same way, so both programs compute the same and become
equally many kernels; without fusion there are more.
"""

import numpy as np

import bngen as bg

X, W, C, V = (
    bg.Tensor[4, 32, 28, 28],
    bg.Tensor[64, 32, 1, 1],
    bg.Tensor[64],
    bg.Tensor[16, 64, 3, 3],
)


@bg.program
def coarse(x: X, w: W, gamma: C, beta: C, v: V):
    y = bg.conv2d(x, w)
    y = bg.batch_norm(y, None, None, gamma, beta, training=True)
    return bg.conv2d(bg.relu(y), v, padding=1)


@bg.program
def by_hand(x: X, w: W, gamma: C, beta: C, v: V):
    y = bg.conv2d(x, w)
    mean, var = bg.bn_stats(y)
    y = bg.bn_normalize(y, mean, var, gamma, beta)
    return bg.conv2d(bg.relu(y), v, padding=1)


def main():
    rng = np.random.default_rng(0)
    types = coarse.arguments.values()
    arrays = [rng.standard_normal(t.shape, dtype=np.float32) for t in types]
    results = []
    for program, fusion in ((coarse, "none"), (coarse, "icf"), (by_hand, "icf")):
        mod = bg.build(program, fusion=fusion)
        results.append(mod(*arrays))
        kernels = mod.manifest()["kernels"]
        print(f"{program.name}, fusion={fusion}: {len(kernels)} kernels")
        for kernel in kernels:
            print(f"    {', '.join(kernel['sublayers'])}")
    unfused, fused, split = results
    scale = np.abs(unfused).max()
    assert np.abs(fused - unfused).max() < 1e-5 * scale
    assert np.array_equal(split, fused)
    print("the same result from all three")


if __name__ == "__main__":
    main()
