"""The language that users write: typed functions, traced on symbolic tensors into graphs.

Op functions carry the names, argument order and meaning of ``torch`` and ``torch.nn.functional``
and become ops of `bngen.ir.ops`. NumPy only.
"""

from bngen.lang.program import Program

__all__ = ["Program"]
