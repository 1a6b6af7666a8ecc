"""Side-by-side measurement: training steps and kernels, bngen's beside PyTorch's."""
