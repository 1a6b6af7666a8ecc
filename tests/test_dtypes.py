"""The rows of the element types, against NumPy's own numbers; who else may know a type by name."""

import ast
import itertools
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import bngen
from bngen.arrays import numpy_dtype
from bngen.dtypes import DTYPES, OF_SHORT, meet
from bngen.ir.types import TensorType

PACKAGE = Path(bngen.__file__).parent
ROWS = list(DTYPES.values())


@pytest.mark.parametrize("row", ROWS, ids=list(DTYPES))
def test_a_row_says_what_numpy_says(row):
    kind = numpy_dtype(row.name)
    assert kind.name == row.name, "arrays tell their type by this name"
    assert row.nbytes == kind.itemsize
    assert row.bits == 8 * kind.itemsize
    if row.is_float:
        limits = ml_dtypes.finfo(kind)
        assert (row.least, row.most) == (float(limits.min), float(limits.max))
        assert row.ulp == float(limits.eps)
    elif row.kind == "int":
        limits = np.iinfo(kind)
        assert (row.least, row.most) == (int(limits.min), int(limits.max))
    assert type(kind.type(1).item()) is row.scalar


@pytest.mark.parametrize("row", [r for r in ROWS if r.is_float], ids=lambda r: r.name)
def test_overflow_is_the_least_number_that_rounds_to_infinity(row):
    # What is only stored is rounded from the type that it is computed in.
    wide, kind = np.dtype(row.computed).type, numpy_dtype(row.name).type
    with np.errstate(over="ignore"):
        assert np.isinf(kind(wide(row.overflow)))
    below = np.nextafter(wide(row.overflow), wide(0.0)) if row.stored_only else (
        np.nextafter(np.float64(row.overflow), 0.0)
    )  # fmt: skip
    assert np.isfinite(kind(below))


@pytest.mark.parametrize("row", ROWS, ids=list(DTYPES))
def test_a_row_is_what_dlpack_says(row):
    from bngen.runtime.dispatch import _tensors
    from bngen.runtime.steps import Operand

    tensors, _ = _tensors([Operand(None, 0, (2,), row.name)])
    code = {"b": 6, "i": 0, "u": 1, "f": 2, "V": 4}[numpy_dtype(row.name).kind]
    assert (tensors["code"][0], tensors["bits"][0]) == (code, row.bits)


def test_sums_run_in_a_type_of_the_table_that_holds_the_summands():
    for row in ROWS:
        for wide in (DTYPES[row.accumulator], DTYPES[row.exact]):
            assert wide.kind == row.kind
            assert wide.most >= row.most
            assert wide.ulp <= row.ulp
        assert meet([[row.accumulator, row.exact]]) == row.exact
        assert row.computed == (row.accumulator if row.stored_only else row.name)
        assert not DTYPES[row.computed].stored_only


def test_names_tell_rows_apart():
    assert len(OF_SHORT) == len({row.public for row in ROWS}) == len(DTYPES)
    for row in ROWS:
        assert getattr(bngen, row.public) == row.name
        assert row.public in bngen.__all__
        assert str(TensorType((2,), row.name)) == f"{row.short}[2]"
        assert TensorType((2, 3), row.name).nbytes == 6 * row.nbytes


@pytest.mark.parametrize(("a", "b"), [*itertools.combinations_with_replacement(DTYPES, 2)])
def test_of_two_tensors_the_later_row_wins(a, b):
    assert meet([[a, b]]) == meet([[b, a]]) == b
    # A tensor without axes counts only where its kind is higher.
    higher = DTYPES[b].kind != DTYPES[a].kind
    assert meet([[a], [b]]) == (b if higher else a)
    assert meet([[b], [a]]) == b


# --- nothing else knows -----------------------------------------------------------------------

ROOMS = ("ir", "lang", "models", "passes", "plan", "runtime")
NAMED_ON_PURPOSE = {
    # What PyTorch's methods are called, and what to write instead.
    "lang/mistakes.py": {"float64", "int32", "int64"},
    # The greatest of bools is found in a type that has an order.
    "lang/axes.py": {"uint8"},
    # A method has PyTorch's name.
    "lang/tensor.py": {"bfloat16"},
    # What torch.autocast computes in on a CPU.
    "lang/mixed.py": {"bfloat16"},
    # The tap of a window that was the greatest; and raw bytes.
    "ir/ops/pool.py": {"int32"},
    "runtime/results.py": {"uint8"},
}


@pytest.mark.parametrize("room", ROOMS)
def test_no_file_of_the_room_names_a_type(room):
    """But bool: conditions are of that type, whatever rows there are."""
    names = set(DTYPES) - {"bool"}
    for path in sorted((PACKAGE / room).rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        said = {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant)} & names
        where = str(path.relative_to(PACKAGE))
        assert said <= NAMED_ON_PURPOSE.get(where, set()), f"{where} names {said}"
