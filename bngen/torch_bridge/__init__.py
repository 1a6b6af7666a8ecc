"""The only room that imports PyTorch.

PyTorch's models become programs of bngen (`backend`: captured graphs are evaluated, made
functional, partitioned, translated, built and called), and bngen's programs are evaluated by
PyTorch's own operators (`reference`).
"""
