"""Arrays of a module as tensors: of every element type, over the same memory, and back."""

from __future__ import annotations

import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
import torch

import bngen as bg
from bngen.arrays import numpy_dtype
from bngen.dtypes import DTYPES


@pytest.mark.parametrize("name", DTYPES)
def test_an_array_of_any_type_shares_its_memory(name):
    array = np.array([[0, 1], [1, 0]]).astype(numpy_dtype(name))
    tensor = bg.to_torch(array)
    assert tensor.dtype is getattr(torch, DTYPES[name].torch)
    assert tensor.tolist() == array.tolist()
    array[0, 0] = 1
    assert tensor[0, 0] == 1


def test_a_state_in_bfloat16_goes_to_pytorch_and_back(tmp_path):
    @bg.program
    def half(x: bg.Tensor[2, 3, bg.bfloat16]):
        return bg.linear(x, bg.parameter("weight", (4, 3), bg.bfloat16))

    mod = bg.build(half).init(seed=0)
    state = mod.state_dict()
    assert state["weight"].dtype == ml_dtypes.bfloat16
    with pytest.raises(TypeError):
        torch.from_numpy(state["weight"])  # which is why there is another way
    torch.save(bg.to_torch(state), tmp_path / "state.pt")
    read = torch.load(tmp_path / "state.pt")
    assert read["weight"].dtype is torch.bfloat16
    other = bg.build(half).load_state_dict(read)
    np.testing.assert_array_equal(other.state_dict()["weight"], state["weight"])


def test_results_are_tensors_too():
    scalar, frozen = np.float32(2.5), np.ones(3, np.float32)
    frozen.flags.writeable = False
    assert bg.to_torch({"loss": scalar, "ones": frozen})["loss"].item() == 2.5
    assert bg.to_torch(frozen).sum() == 3


ODD = {
    "backwards": lambda a: a[:, ::-1],
    "of the other order of bytes": lambda a: a.astype(">f4"),
    "a field of records": lambda a: np.rec.fromarrays([a[0], a[0].astype("i1")])["f0"],
    "one element, repeated": lambda a: np.broadcast_to(a[0, 0], (2, 3)),
    "empty": lambda a: a[:0, ::-1],
}


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_tensors_cannot_lie_like_is_copied(odd, dtype):
    given = ODD[odd](np.arange(6).reshape(2, 3).astype(numpy_dtype(dtype)))
    assert bg.to_torch(given).tolist() == given.tolist()


def test_who_asks_for_tensors_need_not_have_imported_pytorch():
    script = "import numpy, bngen; print(bngen.to_torch(numpy.ones(2)).sum().item())"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "2.0\n", done.stderr


@pytest.mark.parametrize("wrong", ["text", None, np.ones(2, np.complex64)])
def test_what_is_no_array_is_refused(wrong):
    with pytest.raises(bg.CallError, match="to_torch takes arrays"):
        bg.to_torch(wrong)
