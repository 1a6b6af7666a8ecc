"""When a turn is over: on times that are written down."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bngen.bench.turns import CALLS, STEPS, Rule, take, take_steps, unsettled

QUICK = Rule(span=0.0)


def over(times, rule=QUICK):
    """The turn of a contender whose steps take these times, the last of them for ever."""
    steps = itertools.chain(times, itertools.repeat(times[-1]))
    return take(lambda: next(steps), rule)


def test_what_waiting_has_cost_is_discarded():
    turn = over([5.0, 3.0, 2.0, 1.5, 1.2, 1.0])
    assert turn.counted == (1.0, 1.0, 1.0) and turn.stationary
    assert turn.discarded >= 5


def test_a_steady_contender_takes_two_windows():
    turn = over([1.0])
    assert (len(turn.counted), turn.discarded, turn.stationary) == (3, 3, True)


def test_one_outlier_ends_nothing_and_spoils_nothing():
    assert over([9.0, 1.0, 1.0, 1.0, 9.0, 1.0]).counted == (1.0, 9.0, 1.0)


def test_two_windows_may_differ_by_the_tolerance():
    assert over([1.0, 1.0, 1.0, 1.019, 1.019, 1.019]).discarded == 3
    assert over([1.0, 1.0, 1.0, 1.03, 1.03, 1.03]).discarded > 3
    assert over([1.03, 1.03, 1.03, 1.0, 1.0, 1.0]).discarded > 3


def test_noise_ends_at_the_cap_and_says_so():
    steps = itertools.count(1)
    turn = take(lambda: 1.1 ** next(steps), Rule(span=0.0, seconds=1e9))
    assert (len(turn.counted), turn.discarded, turn.stationary) == (3, 9, False)


def test_long_steps_end_after_their_seconds_but_not_before_two_windows():
    steps = itertools.count(1)
    turn = take(lambda: 20.0 * 1.1 ** next(steps), Rule(span=0.0, seconds=30.0))
    assert (len(turn.counted), turn.discarded, turn.stationary) == (3, 3, False)


def test_a_window_of_short_steps_lasts_its_span():
    turn = over([0.01], Rule(span=0.5))
    assert (len(turn.counted), turn.discarded) == (50, 65)


def test_no_time_at_all_ends():
    assert over([0.0]).stationary


@given(
    st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=60),
    st.sampled_from([STEPS, CALLS, Rule(window=1, span=0.0, windows=2)]),
)
def test_every_turn_ends_and_counts_whole_windows(times, rule):
    turn = over(times, rule)
    length = len(turn.counted)
    assert length >= rule.window and turn.discarded >= length
    assert length + turn.discarded < rule.windows * length + max(1, length // rule.window)


def test_all_contenders_are_measured_by_one_rule():
    forward = (0.9, 0.8, 0.7, 0.1, 0.101, 0.102, 0.102, 0.102)
    steps = iter([{"forward": f, "backward": 0.2} for f in forward])
    assert take_steps(lambda: next(steps), QUICK) == {
        "forward": 0.102, "backward": 0.2, "step": pytest.approx(0.302), "steps": 3,
        "discarded": 5, "stationary": True,
    }  # fmt: skip


def test_turns_that_were_not_stationary_are_counted():
    rows = [
        {"turns": {"stationary": [True, False]}},
        {"turns": {"stationary": [False, False]}},
        {"status": "unavailable"},
    ]
    assert unsettled({"contenders": rows}) == (3, 4)
