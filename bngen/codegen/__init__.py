"""Kernels of a plan become machine code: the strategies, and TVM's LLVM backend."""
