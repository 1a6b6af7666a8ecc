"""What an expression is made for: one element of one pointwise node."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from tvm import tirx

from bngen.arrays import numpy_dtype
from bngen.dtypes import DTYPES
from bngen.ir.node import Node
from bngen.lower.coords import Coord
from bngen.lower.opaque import Expr
from bngen.lower.stored import computed

FLOATS = tuple(name for name, row in DTYPES.items() if row.is_float)


@dataclass(frozen=True)
class Element:
    """The node whose element is computed, and where the element lies."""

    node: Node
    coord: Coord

    @property
    def dtype(self) -> str:
        """The type that elements of the result are computed in."""
        return computed(self.node.out)

    def const(self, value: float) -> Expr:
        """A constant of the result's type; what exceeds it is infinite."""
        if self.dtype in FLOATS:
            with np.errstate(over="ignore"):
                for dtype in (self.dtype, self.node.out.dtype):
                    value = float(numpy_dtype(dtype).type(value))
        return tirx.const(value, self.dtype)
