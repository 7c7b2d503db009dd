"""Ratios over pairs: all resamples against brute force, coverage by simulation, and every kind of censoring by hand."""

from itertools import product
from math import exp, inf, log, sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from gradvar.racing.paired import UNANIMOUS, bootstrap_ends, paired_ratio, resamples
from gradvar.racing.times import Time

LATE, EARLY = Time(400, inf), Time(0, 100)


def at(time):
    return Time(time, time)


def pairs_of(logs):
    return [(at(100 * exp(x)), at(100)) for x in logs]


# ---- the bootstrap


@pytest.mark.parametrize("n", [2, 3, 5])
def test_the_resamples_are_those_of_brute_force(n):
    """Of all n^n ordered resamples, each multiset has its share."""
    counts, chances = resamples(n)
    found = {tuple(row): chance for row, chance in zip(counts.tolist(), chances, strict=True)}
    expected: dict = {}
    for chosen in product(range(n), repeat=n):
        key = tuple(chosen.count(each) for each in range(n))
        expected[key] = expected.get(key, 0) + 1 / n**n
    assert found == pytest.approx(expected)


def test_the_ends_are_percentiles_of_all_resampled_means():
    values = np.array([-0.3, -0.1, 0.0, 0.2, 0.9])
    means = np.sort([np.mean(chosen) for chosen in product(values, repeat=5)])
    tail = stats.norm.cdf(-sqrt(5 / 4) * stats.t.ppf(0.975, 4))
    number = int(np.ceil(tail * len(means))) - 1  # the smallest at or below which there is as much as the tail
    assert number == 2
    expected = (means[number], means[-1 - number])
    assert bootstrap_ends(values, values) == pytest.approx(expected)
    assert values.min() < expected[0]


def test_few_pairs_give_their_range_and_a_confidence_that_says_so():
    for n, confidence in ((2, 0.5), (3, 0.75), (4, 0.875)):
        logs = [0.1 * each - 0.15 for each in range(n)]
        ratio = paired_ratio(pairs_of(logs))
        assert ratio.interval == pytest.approx((exp(min(logs)), exp(max(logs))))
        assert ratio.confidence == confidence
    assert paired_ratio(pairs_of([0.1 * each for each in range(5)])).confidence == 0.95


def test_many_pairs_are_resampled_at_random_with_the_same_result_each_time():
    logs = np.random.default_rng(0).normal(size=12)
    low, high = bootstrap_ends(logs, logs)
    reach = stats.t.ppf(0.975, 11) * logs.std(ddof=1) / sqrt(12)
    assert (low, high) == bootstrap_ends(logs, logs)
    assert (low, high) == pytest.approx((logs.mean() - reach, logs.mean() + reach), abs=0.15 * reach)


@pytest.mark.parametrize(("n", "covered"), [(3, 0.75), (5, 0.93), (8, 0.945)])
def test_how_often_the_interval_holds_the_ratio(n, covered):
    """1,000 sets of normal pairs, a fixed seed; one seed in 1,000 would be off by more than the 3.3 standard errors
    that are allowed (0.045, 0.027 and 0.024)."""
    rng = np.random.default_rng(n)
    held = 0
    for _ in range(1000):
        logs = rng.normal(size=n)
        low, high = bootstrap_ends(logs, logs)
        held += low <= 0 <= high
    assert held / 1000 == pytest.approx(covered, abs=3.3 * sqrt(covered * (1 - covered) / 1000))


# ---- what a ratio is


@given(st.lists(st.tuples(st.floats(1, 1e6), st.floats(1, 1e6)), min_size=2, max_size=6), st.floats(0.01, 100))
def test_a_ratio_turns_over_and_scales(times, factor):
    ratio = paired_ratio((at(a), at(b)) for a, b in times)
    turned = paired_ratio((at(b), at(a)) for a, b in times)
    scaled = paired_ratio((at(factor * a), at(b)) for a, b in times)
    assert turned.low == pytest.approx(1 / ratio.low)
    assert turned.interval == pytest.approx((1 / ratio.interval[1], 1 / ratio.interval[0]))
    assert scaled.interval == pytest.approx((factor * ratio.interval[0], factor * ratio.interval[1]))
    assert ratio.interval[0] * (1 - 1e-9) <= ratio.low <= ratio.interval[1] * (1 + 1e-9)


@given(st.lists(st.floats(1, 1000), min_size=2, max_size=5), st.integers(0, 4), st.floats(1, 100))
def test_censoring_only_takes_knowledge_away(times, which, longer):
    """Whatever a censored time turns out to be, the intervals with it known lie within those with it censored."""
    which %= len(times)
    known = [(at(time * (longer if number == which else 1)), at(10)) for number, time in enumerate(times)]
    censored = [(Time(time, inf) if number == which else at(time), at(10)) for number, time in enumerate(times)]
    wide, narrow = paired_ratio(censored), paired_ratio(known)
    assert wide.interval[0] <= narrow.interval[0] * (1 + 1e-9)
    assert wide.interval[1] == inf
    assert wide.low <= narrow.low * (1 + 1e-9)


@pytest.mark.parametrize(
    ("pairs", "shown"),
    [
        ([(at(200), at(100))], "2"),
        ([(at(200), at(100)), (at(800), at(100))], "4 [2, 8]"),
        ([(LATE, at(100))], "> 4"),
        ([(at(100), LATE)], "< 0.25"),
        ([(LATE, LATE)], "not resolved"),
        ([(EARLY, at(200))], "< 0.5"),
        ([(at(200), EARLY)], "> 2"),
        ([(EARLY, EARLY)], "not resolved"),
        ([(LATE, at(100)), (at(100), at(100))], "> 2 [1, ∞]"),
        ([(at(100), LATE), (at(100), at(100))], "< 0.5 [0, 1]"),
        ([(LATE, at(100)), (at(100), LATE)], "not resolved"),
        ([(at(0), at(0))], "not resolved"),
        ([(at(0), at(10))], "not resolved"),
    ],
)
def test_every_kind_of_censoring(pairs, shown):
    assert str(paired_ratio(pairs)) == shown


def test_pairs_are_counted_by_what_is_certain():
    ratio = paired_ratio([(LATE, at(100)), (at(100), LATE), (at(50), at(100)), (EARLY, at(50)), (LATE, LATE)])
    assert (ratio.pairs, ratio.above, ratio.below) == (5, 1, 2)


@pytest.mark.parametrize(
    ("pair", "side"),
    [
        ((LATE, at(400)), 1),  # the other one was there at the very look at which this one was not
        ((at(400), LATE), -1),
        ((LATE, EARLY), 1),
        ((Time(100, inf), EARLY), 1),
        ((EARLY, Time(100, inf)), -1),
        ((LATE, at(401)), 0),
        ((LATE, Time(300, inf)), 0),
        ((at(400), at(400)), 0),
        ((EARLY, at(100)), 0),  # it may have been there just then, too
        ((at(0), LATE), 0),
    ],
)
def test_a_pair_is_counted_on_a_side_only_if_that_is_certain(pair, side):
    ratio = paired_ratio([pair])
    assert (ratio.below, ratio.above) == (side == -1, side == 1)


# ---- when a difference is clear


def test_three_pairs_are_clear_only_if_students_interval_says_so():
    far, near = paired_ratio(pairs_of([-0.5, -0.52, -0.54])), paired_ratio(pairs_of([-0.1, -0.5, -0.9]))
    assert (far.clear, near.clear) == (-1, 0)
    assert near.interval[1] < 1 < near.student[1]
    reach = stats.t.ppf(0.975, 2) * 0.4 / sqrt(3)
    assert near.student == pytest.approx((exp(-0.5 - reach), exp(-0.5 + reach)))
    assert paired_ratio(pairs_of([0.5, 0.52, 0.54])).clear == 1


def test_a_single_pair_is_never_clear():
    ratio = paired_ratio(pairs_of([-3.0]))
    assert (ratio.clear, ratio.interval, ratio.confidence, ratio.student) == (0, None, None, None)


@pytest.mark.parametrize("ends", [range(100, 106), [400] * 6])
@pytest.mark.parametrize(("n", "clear"), [(5, 0), (6, 1)])
def test_censored_pairs_are_clear_from_six_that_agree(n, clear, ends):
    pairs = [(LATE, at(end)) for end in ends[:n]]
    ratio, turned = paired_ratio(pairs), paired_ratio((b, a) for a, b in pairs)
    assert (ratio.student, ratio.above, ratio.clear) == (None, n, clear)
    assert (turned.below, turned.clear) == (n, -clear)


@pytest.mark.parametrize("other", [(at(99), at(100)), (LATE, LATE)])
def test_bounds_are_not_clear_if_one_pair_does_not_agree(other):
    """Nine of ten are far above 1, so that the interval is, too; but how far the tenth is from it nobody knows."""
    ratio = paired_ratio([(LATE, at(10))] * 9 + [other])
    assert (ratio.above, ratio.clear) == (9, 0)


def test_unanimous_is_the_smallest_number_whose_chance_is_five_percent_at_most():
    """By going through all the sides on which that many pairs can fall."""
    for n in range(1, 8):
        alike = sum(len(set(sides)) == 1 for sides in product((-1, 1), repeat=n)) / 2**n
        assert alike == 2.0 ** (1 - n)
        assert (alike <= 0.05) == (n >= UNANIMOUS)


@pytest.mark.parametrize("n", [4, 6])
@pytest.mark.parametrize("end", [None, 135.0])
def test_a_false_alarm_is_rare_where_times_are_censored(n, end):
    """Two arms that are alike, cut off at one time, or where the slowest run of the baseline ends, as by default.

    All sets count, with bounds or without, as the data decide which it is: 5 % at most. 1,000 sets, a fixed seed; if
    it were 5 % sharp, fewer than one seed in 1,000 would give more alarms than the 73 that are allowed.
    """
    assert stats.binom.sf(73, 1000, 0.05) < 0.001 < stats.binom.sf(72, 1000, 0.05)
    times = 100 * np.exp(0.2 * np.random.default_rng(0).normal(size=(1000, n, 2)))
    alarms = bounded = 0
    for each in times:
        limit = each[:, 1].max() if end is None else end
        ratio = paired_ratio(
            (at(a) if a <= limit else Time(limit, inf), at(b) if b <= limit else Time(limit, inf)) for a, b in each
        )
        alarms += ratio.clear != 0
        bounded += ratio.student is None
    assert 300 < bounded < 700
    assert alarms <= 73


def test_a_false_alarm_is_rare_whatever_the_number_of_pairs():
    """Two arms that are alike: clear in 5 % at most. 1,000 sets each, a fixed seed; 0.07 is 3 standard errors off."""
    rng = np.random.default_rng(0)
    for n in (2, 3, 4, 6):
        alarms = sum(paired_ratio(pairs_of(rng.normal(size=n))).clear != 0 for _ in range(1000))
        assert alarms / 1000 <= 0.07, n


def test_json_has_no_infinity():
    found = paired_ratio([(LATE, at(100)), (at(100), at(100))]).to_json()
    assert found["interval"] == {"low": pytest.approx(1), "high": None}
    assert (found["estimate"], found["low"], found["high"]) == (None, pytest.approx(2), None)
    known = paired_ratio(pairs_of([log(2)])).to_json()
    assert (known["estimate"], known["interval"], known["pairs"]) == (pytest.approx(2), None, 1)
