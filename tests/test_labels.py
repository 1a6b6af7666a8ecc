"""What a call returns follows from what its outputs are called, and from nothing else."""

from __future__ import annotations

import pytest

from bngen.labels import VALUE, gradient_label, handed_out

X, Y = gradient_label("x"), gradient_label("grad:y")


@pytest.mark.parametrize(
    ("results", "labels", "in_tuple", "returned"),
    [
        ([], (), False, {}),
        ([], (), True, ()),
        ([1], (), False, 1),
        ([1], (), True, (1,)),
        ([1, 2], (), False, (1, 2)),
        ([1], ("a",), True, {"a": 1}),
        ([1, 2], ("a", "b"), False, {"a": 1, "b": 2}),
        ([1], (VALUE,), True, {VALUE: 1}),
        ([1], (VALUE,), False, (1, {})),
        ([1, 2, 3], (VALUE, X, Y), False, (1, {"x": 2, "grad:y": 3})),
        ([1, 2], (VALUE, X), True, {VALUE: 1, X: 2}),
        ([1, 2], (VALUE, "x"), False, {VALUE: 1, "x": 2}),
        ([1, 2], ("loss", X), False, {"loss": 1, X: 2}),
    ],
)
def test_the_form_of_results(results, labels, in_tuple, returned):
    assert handed_out(results, labels, in_tuple) == returned
