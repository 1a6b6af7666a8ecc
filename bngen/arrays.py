"""What NumPy calls the element types: some of them it has only once ``ml_dtypes`` is imported.

In: a row of `bngen.dtypes`, by name. Out: NumPy's type. Whoever gives names of types to NumPy
imports this module, so that it knows all of them.
"""

from __future__ import annotations

import ml_dtypes  # noqa: F401 - tells NumPy of its types
import numpy as np

from bngen.dtypes import DTYPES


def numpy_dtype(name: str) -> np.dtype:
    """NumPy's type of elements."""
    return np.dtype(DTYPES[name].numpy)


def letter_of(dtype: np.dtype) -> str:
    """NumPy's letter for the kind of a type; ``f`` of all floats, which it does not say of some."""
    row = DTYPES.get(dtype.name)
    return "f" if row is not None and row.is_float else dtype.kind
