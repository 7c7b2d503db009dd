"""The figures of merit against their formulas, from moments that are known."""

from dataclasses import replace
from math import sqrt

import numpy as np
import pytest

from gradvar.decomposition.contributions import of_means
from gradvar.decomposition.merit import Disjoint, Draws, Merit, disjoint_advice

N = 12
BATCHES = [1e-6, 1.0, 32.0, 1e4]


def draws(mask, data, signal, bias=None, seed=0, **options) -> Draws:
    """Contributions with these means, spread by a fifth of them."""
    rng = np.random.default_rng(seed)

    def spread(mean: float) -> np.ndarray:
        noise = rng.normal(size=N)
        return mean * (1 + 0.2 * (noise - noise.mean()))

    return Draws(spread(mask), spread(data), spread(signal), None if bias is None else spread(bias), **options)


# Explicit expected gradients: |mu|^2 = 5, |mu_q|^2 = 8, |mu_q - mu|^2 = 1, <mu_q, mu> = 6.
MU, MU_Q = np.array([1.0, 2.0]), np.array([2.0, 2.0])
UNIFORM = draws(4.0, 1.0, MU @ MU)
OTHER = draws(3.0, 0.5, MU_Q @ MU_Q, (MU_Q - MU) @ (MU_Q - MU), seed=1)
UNBIASED = draws(2.0, 1.0, MU @ MU, seed=2)
COST = 1.5


def alignment(mean: np.ndarray, variance: float, batch: float) -> float:
    """Best decrease of `|x|^2/2` along the expected step, over that of the ideal one: by search over step lengths."""
    second = mean @ mean + variance / batch
    best = mean @ MU / second  # the decrease `step <mean, mu> - step^2 second/2` is quadratic in the step
    steps = best * np.linspace(0.5, 1.5, 100_001)
    return float((steps * (mean @ MU) - steps**2 * second / 2).max() / (MU @ MU / 2))


def test_the_parts_of_the_error():
    merit = Merit(UNIFORM, OTHER, COST)
    assert merit.variance_ratio().estimate == pytest.approx(3 / 4)
    assert merit.bias2_ratio().estimate == pytest.approx(1 / 4)
    assert merit.mse_ratio().estimate == pytest.approx((3 + 1) / 4)
    assert merit.mse_ratio(10).estimate == pytest.approx((3 / 10 + 1) / (4 / 10))
    assert merit.efficiency().estimate == pytest.approx((4 + 1) / (3 + 0.5 + 1) / COST)
    assert merit.efficiency(10).estimate == pytest.approx(0.5 / (0.35 + 1) / COST)


def test_draws_of_several_cells_are_beside_as_many_independent_ones():
    """Of two cells at another rate: variance and squared bias twice, and the error is still their sum."""
    merit = Merit(UNIFORM, replace(OTHER, cells=2), COST)
    parts = merit.variance_ratio().estimate, merit.bias2_ratio().estimate
    assert parts == pytest.approx((2 * 3 / 4, 2 * 1 / 4))
    assert merit.mse_ratio().estimate == pytest.approx(sum(parts))


def test_the_cosine():
    expected = MU @ MU_Q / sqrt((MU @ MU) * (MU_Q @ MU_Q))
    found = Merit(UNIFORM, OTHER, COST).cosine()
    assert found.estimate == pytest.approx(expected)
    assert found.high <= 1
    beyond = Merit(UNIFORM, replace(OTHER, bias=OTHER.bias - 0.9)).cosine()
    assert (beyond.estimate, beyond.high) == (1.0, 1.0)  # cut to what a cosine can be


@pytest.mark.parametrize("batch", BATCHES[1:])
def test_the_batch_gain_is_the_factor_that_makes_uniform_batches_as_well_aligned(batch):
    gain = Merit(UNIFORM, OTHER, COST).batch_gain(batch).estimate * COST
    assert alignment(MU, 5.0, gain * batch) == pytest.approx(alignment(MU_Q, 3.5, batch), rel=1e-6)


def test_the_limit_of_small_batches():
    merit = Merit(UNIFORM, OTHER, COST)
    assert merit.batch_gain().estimate == pytest.approx(6**2 / 3.5 / (5**2 / 5) / COST)
    assert merit.batch_gain(1e-6).estimate == pytest.approx(merit.batch_gain().estimate, rel=1e-5)


def test_no_batch_is_as_well_aligned_where_the_bias_is_of_another_direction():
    """At large batches a uniform one of the same size is far better: gain below 1, falling with the batch."""
    gains = [Merit(UNIFORM, OTHER).batch_gain(batch).estimate for batch in BATCHES]
    assert gains == sorted(gains, reverse=True)
    assert gains[0] > 1 > gains[-1]


@pytest.mark.parametrize("batch", [None, *BATCHES])
def test_the_gain_of_unbiased_draws_is_the_ratio_of_variances_at_every_batch(batch):
    merit = Merit(UNIFORM, UNBIASED, COST)
    assert merit.batch_gain(batch).estimate == pytest.approx(5 / 3 / COST)
    assert merit.batch_gain(batch) == merit.efficiency()
    assert merit.efficiency(1.0 if batch is None else batch).estimate == pytest.approx(5 / 3 / COST)
    assert [merit.bias2_ratio().estimate, merit.cosine().estimate] == [0.0, 1.0]


@pytest.mark.parametrize("factor", [0.1, 1.0, 7.0])
def test_a_mere_change_of_scale_is_no_gain(factor):
    """`g -> c g`: the bias is `(c - 1) mu`, the error changes, the alignment does not."""
    other = Draws(
        factor**2 * UNIFORM.mask,
        factor**2 * UNIFORM.data,
        factor**2 * UNIFORM.signal,
        (factor - 1) ** 2 * UNIFORM.signal,
    )
    merit = Merit(UNIFORM, other)
    for batch in (None, 1.0, 100.0):
        assert merit.batch_gain(batch).estimate == pytest.approx(1, rel=1e-9)
    assert merit.cosine().estimate == pytest.approx(1, rel=1e-12)


def test_comparing_uniform_masks_with_themselves():
    merit = Merit(UNIFORM, UNIFORM)
    for estimate in (merit.variance_ratio(), merit.mse_ratio(8), merit.efficiency(8), merit.batch_gain(8)):
        assert [estimate.estimate, estimate.low, estimate.high] == pytest.approx([1, 1, 1], rel=1e-12)


def test_draws_of_several_cells_are_compared_with_as_many_independent_ones():
    """K disjoint masks: variance K times; a draw costs what it costs, and its data's variance is not divided."""
    other = draws(1.0, 1.0, MU @ MU, cells=3)
    merit = Merit(UNIFORM, other, 2.0)
    assert merit.variance_ratio().estimate == pytest.approx(3 * 1 / 4)
    assert merit.mse_ratio(7).estimate == pytest.approx(3 * 1 / 4)
    assert merit.efficiency().estimate == pytest.approx((4 + 1) / (1 + 1) / 2)
    assert merit.batch_gain(7).estimate == pytest.approx((4 + 1) / (1 + 1) / 2)


def test_intervals_delete_a_sentence_from_both():
    """Shared noise cancels: the same factor in numerator and denominator leaves no width."""
    assert Merit(UNIFORM, replace(UNIFORM, mask=3 * UNIFORM.mask)).variance_ratio().low == pytest.approx(3)
    both = np.stack([UNIFORM.mask, OTHER.mask, OTHER.bias], axis=1)
    found = Merit(UNIFORM, OTHER).mse_ratio(2)
    assert found == of_means(lambda m: float(m[1] + 2 * m[2]) / m[0], both)


@pytest.mark.parametrize("figure", ["efficiency", "batch_gain"])
def test_an_uncertain_cost_widens_the_interval(figure):
    sure, unsure = (getattr(Merit(UNIFORM, OTHER, COST, error), figure)() for error in (0.0, 0.5))
    assert sure.estimate == unsure.estimate
    assert unsure.high / unsure.low > np.exp(2 * 1.96 * 0.5) > sure.high / sure.low


NEGATIVE = -np.ones(N)
SMALL = "is not estimated as positive at this study size; take more sentences"


@pytest.mark.parametrize(
    ("uniform", "other", "figures", "part"),
    [
        ({"data": 9 * NEGATIVE}, {}, ("efficiency", "batch_gain"), "the variance of a uniform draw"),
        ({}, {"data": 9 * NEGATIVE}, ("efficiency", "batch_gain"), "the variance of this proposal's draw"),
        ({"signal": NEGATIVE}, {}, ("batch_gain", "cosine"), "|mu|^2"),
        ({}, {"signal": NEGATIVE}, ("cosine",), "the squared norm of this proposal's expected gradient"),
        ({}, {"bias": -99 * NEGATIVE}, ("batch_gain",), "the inner product of the two expected gradients"),
    ],
)
def test_what_is_not_positive_is_not_resolved_and_named(uniform, other, figures, part):
    merit = Merit(replace(UNIFORM, **uniform), replace(OTHER, **other))
    for figure in figures:
        found = getattr(merit, figure)()
        assert not found.resolved
        assert found.reason == f"{part} {SMALL}"


def test_an_alignment_beyond_what_can_be_is_not_resolved():
    """Noise may give `A >= 1`: no uniform batch is as good."""
    other = Draws(1e-3 * UNIFORM.mask, 1e-3 * UNIFORM.data, 0.9 * UNIFORM.signal, np.zeros(N))
    found = Merit(UNIFORM, other).batch_gain(100.0)
    assert found.reason == "the estimate is not positive at this study size; take more sentences"


def advice(data: float, mask: float, cov: float, sentence: float, cell: float, most: int) -> Disjoint:
    ones = np.ones(5)
    return disjoint_advice(data * ones, mask * ones, cov * ones, sentence, cell, most)


@pytest.mark.parametrize(
    ("data", "mask", "cov", "sentence", "cell", "most", "expected"),
    [
        (3.0, 10.0, -2.0, 27.0, 3.0, 99, 10),  # sqrt(12 * 27 / (1 * 3)) = 10.4
        (3.0, 10.0, -2.0, 27.0, 3.0, 6, 6),
        (1.0, 10.0, -2.0, 0.0, 1.0, 6, 6),  # a second mask beats another sentence at any cost
        (5.0, 1.0, -0.1, 1.0, 1.0, 6, 1),
        (5.0, 1.0, 3.0, 1.0, 1.0, 6, 1),
        (3.0, 10.0, -2.0, 27.0, 3.0, 1, 1),
    ],
)
def test_the_best_number_of_disjoint_masks(data, mask, cov, sentence, cell, most, expected):
    found = advice(data, mask, cov, sentence, cell, most)
    assert found.masks == expected
    assert found.covariance.estimate == pytest.approx(cov)
    assert found.balance.estimate == pytest.approx(data + cov)


@pytest.mark.parametrize("seed", range(20))
def test_no_other_number_is_better_at_equal_cost(seed):
    rng = np.random.default_rng(seed)
    data, mask, sentence, cell = rng.lognormal(sigma=1.5, size=4)
    most = int(rng.integers(1, 9))
    cov = -mask * rng.uniform(0, 1 / max(most - 1, 1))  # no variance is negative

    def cost(masks: int) -> float:
        return (data + (mask + (masks - 1) * cov) / masks) * (sentence + masks * cell)

    found = advice(data, mask, cov, sentence, cell, most).masks
    assert cost(found) == pytest.approx(min(cost(masks) for masks in range(1, most + 1)))


def test_without_disjoint_masks_there_is_no_advice():
    found = disjoint_advice(np.ones(4), np.ones(4), None, 1.0, 1.0, 3)
    assert found.masks is None
    reason = "no disjoint masks were drawn; add uniform/disjoint:2 to the proposals"
    assert {found.covariance.reason, found.balance.reason} == {reason}
