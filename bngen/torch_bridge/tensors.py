"""What a module gives, as PyTorch's tensors.

In: arrays, or dictionaries of them. Out: tensors over the same memory. NumPy knows bfloat16 by
``ml_dtypes`` alone, whose arrays `torch.from_numpy` refuses; here they are tensors like others.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch  # noqa: F401 - who asks for tensors need not have imported it

from bngen.dtypes import DTYPES
from bngen.errors import CallError
from bngen.runtime.tensors import as_tensor


def to_torch(arrays: Any) -> Any:
    """Make tensors of arrays, bfloat16 included: over the same memory where they can lie so.

    PyTorch's lie in no negative steps, can be written to, and have this machine's order of bytes;
    other arrays are copied.

    Of a module that PyTorch is to have a checkpoint of::

        torch.save(bngen.to_torch(mod.state_dict()), "checkpoint.pt")
        network.load_state_dict(bngen.to_torch(mod.state_dict()))

    ``mod.load_state_dict`` takes such tensors as they are, so there is no way back to be called.

    Args:
        arrays: a NumPy array, or what holds them by name: a state, gradients.

    Returns:
        A tensor, or a dictionary of tensors by the same names.

    Raises:
        CallError: for what is no array, or of an element type that bngen does not have.
    """
    if isinstance(arrays, Mapping):
        return {name: to_torch(array) for name, array in arrays.items()}
    array = np.asarray(arrays)
    if array.dtype.name not in DTYPES:
        known = ", ".join(DTYPES)
        what = f"to_torch takes arrays, not {type(arrays).__name__} of {array.dtype}"
        raise CallError(what, hint=f"element types are {known}")
    if not _can_be_shared(array):
        array = array.astype(array.dtype.newbyteorder("="))
    return as_tensor(array)


def _can_be_shared(array: np.ndarray) -> bool:
    steps = (step for step, extent in zip(array.strides, array.shape, strict=True) if extent > 1)
    whole = all(step >= 0 and step % array.itemsize == 0 for step in steps)
    return array.flags.writeable and array.dtype.isnative and whole
