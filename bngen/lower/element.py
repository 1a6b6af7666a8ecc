"""What an expression is made for: one element of one pointwise node."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from tvm import tirx

from bngen.dtypes import DTYPES
from bngen.ir.node import Node
from bngen.lower.coords import Coord
from bngen.lower.opaque import Expr

FLOATS = tuple(name for name, row in DTYPES.items() if row.is_float)


@dataclass(frozen=True)
class Element:
    """The node whose element is computed, and where the element lies."""

    node: Node
    coord: Coord

    @property
    def dtype(self) -> str:
        """Element type of the result."""
        return self.node.out.dtype

    def const(self, value: float) -> Expr:
        """A constant of the result's type; what exceeds it is infinite."""
        if self.dtype in FLOATS:
            with np.errstate(over="ignore"):
                value = float(np.dtype(self.dtype).type(value))
        return tirx.const(value, self.dtype)
