from math import inf, nan, sqrt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradvar.racing.times import Time, geometric_mean, time_to

TIMES = [100, 200, 300, 400]


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([6, 5, 4, 3], Time(250, 250)),  # half-way from 5 to 4
        ([6, 5, 4.5, 3], Time(300, 300)),  # at a look
        ([6, 4, 5, 3], Time(175, 175)),  # the first crossing of several
        ([6, 5, 5, 4.75], Time(400, inf)),  # never
        ([4, 3, 2, 1], Time(0, 100)),  # before the first look
        ([4.5, 9, 9, 9], Time(0, 100)),
    ],
)
def test_the_first_crossing_is_interpolated_or_bounded(losses, expected):
    assert time_to(4.5, TIMES, losses) == expected


@given(st.lists(st.floats(0.5, 20), min_size=1, max_size=8), st.floats(0.5, 20), st.floats(0, 3))
def test_a_lower_target_is_reached_no_sooner(losses, target, less):
    times = [10.0 * (number + 1) for number in range(len(losses))]
    easy, hard = time_to(target, times, losses), time_to(target - less, times, losses)
    assert hard.low >= easy.low * (1 - 1e-12)
    assert hard.high >= easy.high * (1 - 1e-12)
    assert 0 <= easy.low <= easy.high


def test_times_are_averaged_geometrically_and_bounds_stay_bounds():
    assert geometric_mean([Time(2, 2), Time(8, 8)]).low == pytest.approx(4)
    assert geometric_mean([Time(2, 2), Time(8, inf)]) == Time(pytest.approx(4), inf)
    assert geometric_mean([Time(0, 2), Time(8, 8)]) == Time(0, pytest.approx(sqrt(16)))


def test_a_time_says_on_which_side_it_is():
    said = [str(Time(*ends)) for ends in ((1234.5, 1234.5), (400, inf), (0, 100), (0, inf), (0.51234, 0.51234))]
    assert said == ["1,234", "> 400", "≤ 100", "not resolved", "0.512"]


def test_a_time_knows_that_it_was_over_at_the_first_look():
    kinds = (Time(0, 100), Time(0, 0), Time(100, 100), Time(100, inf), Time(0, inf))
    assert [time.early for time in kinds] == [True, True, False, False, False]


def test_a_loss_that_is_no_number_has_not_reached_the_target():
    assert time_to(1.0, [10, 20, 30], [2.0, nan, 0.5]) == Time(30, 30)
    assert time_to(1.0, [10, 20, 30], [2.0, inf, 0.5]) == Time(30, 30)
    assert time_to(1.0, [10, 20], [nan, nan]) == Time(20, inf)
