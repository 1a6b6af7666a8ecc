"""Scheduled kernels become machine code through TVM's LLVM backend."""
