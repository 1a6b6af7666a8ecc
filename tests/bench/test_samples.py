"""The bench's arithmetic on numbers that can be checked by hand."""

import pytest

from bngen.bench.samples import geometric_mean, phases, ratios, roofline, summary


def test_median_and_quartiles():
    s = summary([5, 1, 4, 2, 3])
    assert (s["low"], s["median"], s["high"], s["min"]) == (2, 3, 4, 1)
    assert s["samples"] == [5, 1, 4, 2, 3]


def test_quartiles_between_samples():
    s = summary([1, 2, 3, 4])
    assert (s["low"], s["median"], s["high"]) == (1.75, 2.5, 3.25)


def test_one_sample_has_no_spread():
    s = summary([2.0])
    assert (s["low"], s["median"], s["high"], s["min"]) == (2, 2, 2, 2)


def test_ratios_are_pair_by_pair():
    # The machine was ten times slower in the second round: each pair still says two.
    assert ratios([1, 10, 1], [2, 20, 2])["median"] == 2
    assert ratios([1, 10, 1], [2, 20, 2])["samples"] == [2, 2, 2]
    # The ratio of the medians would be 1.
    assert ratios([1, 2, 4], [2, 4, 1])["median"] == 2


def test_ratios_need_pairs():
    with pytest.raises(ValueError):
        ratios([1, 2], [1])


def test_phases_go_turn_by_turn():
    p = phases([
        {"forward": 1, "backward": 3, "step": 4, "discarded": 3},
        {"forward": 2, "backward": 1, "step": 3, "discarded": 3},
    ])  # fmt: skip
    assert p == {"forward": [1, 2], "backward": [3, 1], "step": [4, 3]}


def test_geometric_mean():
    assert geometric_mean([0.5, 2, 4, 0.25]) == pytest.approx(1)
    assert geometric_mean([2, 8]) == pytest.approx(4)


@pytest.mark.parametrize(
    ("flops", "nbytes", "seconds"),
    [(2e12, 1e9, 20.0), (1e9, 5e10, 5.0), (1e11, 1e10, 1.0)],
)
def test_roofline_is_the_dearer_of_arithmetic_and_traffic(flops, nbytes, seconds):
    assert roofline(flops, nbytes, gflops=100, gbytes=10) == pytest.approx(seconds)
