"""Intervals against their formulas, under affine maps, on degenerate data, and their coverage."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from gradvar.decomposition.accumulator import moments_of
from gradvar.decomposition.components import Components
from gradvar.decomposition.intervals import effective_df, fieller_interval, hall_interval, jackknife_interval

quick = settings(max_examples=60, deadline=None)


@st.composite
def contributions(draw):
    """Skewed values, 3 to 40 of them."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return draw(st.sampled_from([-1, 1])) * rng.lognormal(sigma=draw(st.floats(0.1, 2)), size=draw(st.integers(3, 40)))


def test_effective_df_of_known_kurtosis():
    values = np.array([-1.0, *[0.0] * 8, 1.0])  # n = 10, kurtosis (2/10)/(2/10)^2 = 5, so 20/(5 - 7/9)
    assert effective_df(values) == pytest.approx(180 / 38, rel=1e-12)


def test_effective_df_of_normal_data_is_that_of_their_variance():
    """Quantiles lack the outermost tails, hence 5 %."""
    values = stats.norm.ppf((np.arange(1000) + 0.5) / 1000)
    assert effective_df(values) == pytest.approx(999, rel=0.05)


@pytest.mark.parametrize(
    ("values", "df"),
    [
        ([-1.0, 1.0] * 5, 9),  # no lighter tails than a normal's are credited
        ([0.0] * 99 + [1.0], 200 / (97 + 3 / 99)),  # the heaviest tail there is, and still over 2
        ([3.0] * 6, 5),
        ([1.0, 2.0], 1),
        ([1.0, 2.0, 4.0], 2),
        ([0.0] * 5 + [1.0], 12 / (4.2 - 0.6)),
        ([4.0], 1),
    ],
)
def test_effective_df_stays_in_its_range(values, df):
    with np.errstate(all="raise"):
        for scale in (1.0, 1e-100, 1e70):
            assert effective_df(scale * np.array(values)) == pytest.approx(df, rel=1e-12)


@quick
@given(contributions())
def test_effective_df_of_any_sample_is_over_2(values):
    assert 2 <= effective_df(values) <= len(values) - 1
    kurtosis = stats.kurtosis(values, fisher=False)
    n = len(values)
    expected = 2 * n / (kurtosis - (n - 3) / (n - 1))
    assert effective_df(values) == pytest.approx(min(expected, n - 1), rel=1e-9)


@quick
@given(st.lists(st.floats(0.01, 10), min_size=2, max_size=15), st.floats(-5, 5))
def test_hall_interval_of_symmetric_data_is_the_t_interval(half, centre):
    values = centre + np.array([*half, *(-x for x in half)])
    reach = stats.t.ppf(0.975, effective_df(values)) * values.std(ddof=1) / np.sqrt(len(values))
    assert hall_interval(values) == pytest.approx((centre - reach, centre + reach), rel=1e-6, abs=1e-6)


@quick
@given(contributions())
def test_hall_interval_inverts_halls_polynomial(values):
    """Its ends solve `x + g x^2/3 + g^2 x^3/27 + g/(6n) = +-t/sqrt(n)` for `x = (mean - end)/sd` (Hall 1992)."""
    n, sd, skewness = len(values), values.std(ddof=1), stats.skew(values)
    x = (values.mean() - np.array(hall_interval(values))) / sd
    polynomial = x + skewness * x**2 / 3 + skewness**2 * x**3 / 27 + skewness / (6 * n)
    reach = stats.t.ppf(0.975, effective_df(values)) / np.sqrt(n)
    np.testing.assert_allclose(polynomial, [reach, -reach], rtol=1e-9)


@quick
@given(contributions())
def test_hall_interval_reaches_further_into_the_longer_tail(values):
    low, high = hall_interval(values)
    mean, skewness = values.mean(), stats.skew(values)
    assert low < mean < high
    assert (high - mean > mean - low) == (skewness > 0)


@quick
@given(contributions(), st.floats(0.01, 100), st.floats(-100, 100))
def test_hall_interval_follows_affine_maps(values, scale, shift):
    low, high = hall_interval(values)
    size = 1e-9 * (scale * np.abs(values).max() + abs(shift))
    assert hall_interval(scale * values + shift) == pytest.approx((scale * low + shift, scale * high + shift), abs=size)
    assert hall_interval(shift - scale * values) == pytest.approx((shift - scale * high, shift - scale * low), abs=size)


@quick
@given(contributions())
def test_jackknife_of_the_mean_is_the_t_interval(values):
    reach = stats.t.ppf(0.975, effective_df(values)) * values.std(ddof=1) / np.sqrt(len(values))
    found = jackknife_interval(lambda kept: float(values[kept].mean()), len(values))
    assert found == pytest.approx((values.mean() - reach, values.mean() + reach), rel=1e-9, abs=1e-9)


def test_jackknife_refuses_replicates_that_are_not_finite():
    values = np.array([1.0, 2.0, 3.0, 4.0])
    assert jackknife_interval(lambda kept: np.nan if not kept[2] else float(values[kept].mean()), 4) is None
    assert jackknife_interval(lambda kept: np.inf, 4) is None


@pytest.mark.parametrize("value", [0.0, 7.25, -1e6, 0.1])
def test_constant_contributions_have_an_interval_of_no_width(value):
    values = np.full(7, value)
    assert hall_interval(values) == pytest.approx((value, value), rel=1e-12)
    assert jackknife_interval(lambda kept: float(values[kept].mean()), 7) == pytest.approx((value, value), rel=1e-12)


@quick
@given(st.integers(0, 2**32 - 1), st.floats(0.2, 3), st.integers(8, 60))
def test_fieller_interval_is_where_halls_holds_zero(seed, spread, n):
    """A hair outside the ends `V - r S` is told from zero, a hair inside it is not."""
    rng = np.random.default_rng(seed)
    above, below = rng.lognormal(sigma=spread, size=n), 1 + 0.3 * rng.normal(size=n)
    low, high = fieller_interval(above, below)
    assert 0 <= low <= above.mean() / below.mean()
    assert hall_interval(above - 1.001 * low * below)[0] <= 0
    assert low == 0 or hall_interval(above - 0.999 * low * below)[0] > 0
    if high is None:
        assert hall_interval(below)[0] <= 0 or hall_interval(above - 1e9 * below)[1] >= 0
    else:
        assert high >= above.mean() / below.mean()
        assert hall_interval(above - 0.999 * high * below)[1] >= 0
        assert hall_interval(above - 1.001 * high * below)[1] < 0


def test_fieller_interval_of_a_denominator_near_zero_is_one_sided():
    above = 5 + np.random.default_rng(0).normal(size=40)
    noise = np.random.default_rng(1).normal(size=40)
    noise -= noise.mean()
    for centre in (0.02, 0.0, -0.02):
        low, high = fieller_interval(above, noise + centre)
        assert high is None
        assert 5 < low < 5 / 0.02
    assert fieller_interval(above, noise - 3) == (0.0, None)
    assert fieller_interval(above, np.zeros(40)) == (0.0, None)


def test_fieller_interval_of_a_numerator_near_zero_begins_at_zero():
    noise = np.random.default_rng(1).normal(size=40)
    low, high = fieller_interval(noise - noise.mean(), np.full(40, 2.0) + 0.1 * noise)
    assert low == 0
    assert 0 < high < 0.5


@pytest.mark.parametrize("numerator", [0.0, -1e-17])
def test_fieller_interval_without_a_numerator_is_zero(numerator):
    """A level whose draws are all alike has contributions of zero, or of rounding."""
    noise = np.random.default_rng(1).normal(size=40)
    assert fieller_interval(np.full(40, numerator), 5 + noise) == (0.0, 0.0)
    assert fieller_interval(np.full(40, numerator), 0.01 + noise) == (0.0, None)


@pytest.mark.parametrize("scale", [1e-15, 1.0, 1e9])
def test_fieller_interval_of_proportional_contributions_is_a_point(scale):
    """The ends are off by 1e-9 of the numerator's lower end over the denominator's upper one at most."""
    for below in (np.full(9, 0.7), np.random.default_rng(0).uniform(1, 2, size=9)):
        assert fieller_interval(0.3 * scale * below, below) == pytest.approx((0.3 * scale,) * 2, rel=1e-8, abs=0)


@quick
@given(st.integers(0, 2**32 - 1), *[st.sampled_from([1e-12, 1e-3, 7.0, 1e12])] * 2)
def test_fieller_interval_follows_both_scales(seed, above, below):
    rng = np.random.default_rng(seed)
    numerators, denominators = 5 + rng.normal(size=12), 1 + rng.normal(size=12)
    plain, scaled = (
        fieller_interval(numerators, denominators),
        fieller_interval(above * numerators, below * denominators),
    )
    for one, other in zip(plain, scaled, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            assert other == pytest.approx(above / below * one, rel=1e-7, abs=0)


def test_fieller_interval_of_contributions_that_move_together():
    """`V - r S` has no noise at all at `r = 7`, where it is still positive: both ends lie beyond."""
    noise = np.random.default_rng(1).normal(size=40)
    low, high = fieller_interval(10 + 7 * noise, 1 + noise)
    assert 7 < low < 10 < high
    assert hall_interval((10 - low) + (7 - low) * noise)[0] == pytest.approx(0, abs=1e-6)
    assert hall_interval((10 - high) + (7 - high) * noise)[1] == pytest.approx(0, abs=1e-6)


def test_intervals_cover():
    """Of 400 Gaussian studies of 24 data with 4 draws, 90 to 99 % of the nominal 95 % intervals hold the truth.

    A coverage anywhere from 94 to 96 % leaves these bounds with probability 1e-3 at most (binomial), so a
    right implementation fails for at most one seed in 250.
    """
    rng = np.random.default_rng(0)
    coordinates, v_data, v_mask, norm2 = 10, 1.0, 3.0, 2.0
    truth = [v_data, v_mask, v_mask / (v_data + v_mask), norm2, (v_data + v_mask) / norm2]
    held = np.zeros((400, 5), dtype=bool)
    for study in held:
        outer = np.sqrt(v_data / coordinates) * rng.normal(size=(24, 1, coordinates))
        inner = np.sqrt(v_mask / coordinates) * rng.normal(size=(24, 4, coordinates))
        vectors = torch.from_numpy(np.sqrt(norm2 / coordinates) + outer + inner)
        found = Components(moments_of(vectors), ("data", "mask"))
        estimates = [found.component(0), found.component(1), found.share(1), found.gradient_norm2()]
        estimates.append(found.noise_scale(np.ones(2)))
        study[:] = [e.resolved and e.low <= t <= e.high for e, t in zip(estimates, truth, strict=True)]
    coverage = held.mean(axis=0)
    assert (coverage >= 0.90).all()
    assert (coverage <= 0.99).all()
