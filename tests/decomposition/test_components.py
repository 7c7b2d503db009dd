"""Unbiasedness by enumeration, the algebra of the estimators, and when there is none."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations_with_replacement
from math import factorial, prod

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradvar.decomposition.accumulator import MomentAccumulator, moments_of
from gradvar.decomposition.components import Components
from gradvar.decomposition.estimate import Estimate
from gradvar.decomposition.intervals import hall_interval, jackknife_interval
from gradvar.decomposition.moments import total

quick = settings(max_examples=40, deadline=None)
coefficients = st.tuples(*[st.floats(0.1, 10)] * 2).map(np.array)


def components(vectors: np.ndarray) -> Components:
    levels = ("data", "mask", "dropout")[: vectors.ndim - 1]
    return Components(moments_of(torch.from_numpy(np.ascontiguousarray(vectors, dtype=np.float64))), levels)


def normal(counts: tuple[int, ...], scales: tuple[float, ...], mean: float = 0.0, seed: int = 0) -> np.ndarray:
    """Vectors of 6 coordinates with a normal effect at each level; the variance of level l is 6 scale^2."""
    rng = np.random.default_rng(seed)
    vectors = np.full((*counts, 6), mean)
    for level, scale in enumerate(scales):
        shape = (*counts[: level + 1], *[1] * (len(counts) - level - 1), 6)
        vectors = vectors + scale * rng.normal(size=shape)
    return vectors


def samples(population: np.ndarray, counts: tuple[int, ...]) -> Iterator[tuple[float, np.ndarray]]:
    """Every nested sample with replacement, up to order, with its probability."""
    if not counts:
        yield 1.0, population
        return
    each = [(p / len(population), sample) for member in population for p, sample in samples(member, counts[1:])]
    for chosen in combinations_with_replacement(range(len(each)), counts[0]):
        orders = factorial(counts[0]) / prod(factorial(times) for times in Counter(chosen).values())
        yield orders * prod(each[i][0] for i in chosen), np.stack([each[i][1] for i in chosen])


def exact(population: np.ndarray) -> list[float]:
    """`V_l` of every level, and `|mu|^2`."""
    levels = population.ndim - 1
    means = [population.mean(axis=tuple(range(level, levels))) for level in range(levels + 1)]
    spreads = [((means[i + 1] - means[i][..., None, :]) ** 2).sum(axis=-1).mean() for i in range(levels)]
    return [*spreads, means[0] @ means[0]]


@pytest.mark.parametrize(
    ("shape", "counts"),
    [((3, 3), (2, 2)), ((2, 3), (3, 2)), ((3, 2), (2, 3)), ((2, 2, 2), (2, 2, 2)), ((2, 1, 2), (2, 3, 2))],
)
def test_estimators_are_unbiased(shape, counts):
    """The mean over all samples, by their probabilities, is the exact value, up to rounding."""
    population = np.random.default_rng(1).normal(size=(*shape, 2)) + 0.5
    mean, probability = 0.0, 0.0
    for p, vectors in samples(population, counts):
        found = components(vectors)
        mean += p * np.array([*found.values, found.norm2])
        probability += p
    assert probability == pytest.approx(1, abs=1e-12)
    np.testing.assert_allclose(mean, exact(population), rtol=0, atol=1e-12)


def test_three_levels_meet_the_variances_they_were_drawn_with():
    """Within 4 standard errors over 300 studies: a right estimator fails for one seed in 3,000 (4 values, t_299)."""
    found = []
    for seed in range(300):
        study = components(normal((8, 3, 2), (0.5, 1.0, 2.0), mean=1.0, seed=seed))
        found.append([*study.values, study.norm2])
    expected = 6 * np.array([0.25, 1.0, 4.0, 1.0])
    error = np.std(found, axis=0, ddof=1) / np.sqrt(len(found))
    assert (np.abs(np.mean(found, axis=0) - expected) < 4 * error).all()


@pytest.mark.parametrize("masks", [2, 3, 7])
def test_identical_inner_draws_have_no_inner_variance(masks):
    vectors = np.repeat(normal((10, 1), (1.0, 1.0), mean=1.0), masks, axis=1)
    data, mask = components(vectors).values
    assert abs(mask) < 1e-12 * data
    assert data == pytest.approx(vectors[:, 0].var(axis=0, ddof=1).sum(), rel=1e-12)


@quick
@given(coefficients, coefficients, st.floats(0.1, 10), st.integers(0, 99))
def test_linear_combinations(one, other, factor, seed):
    study = components(normal((12, 3), (1.0, 1.0), mean=1.0, seed=seed))
    first, second, both = study.linear(one), study.linear(other), study.linear(one + other)
    assert first.estimate == pytest.approx(study.values @ one, rel=1e-12)
    assert both.estimate == pytest.approx(first.estimate + second.estimate, rel=1e-12)
    assert first.low < first.estimate < first.high
    scaled, mirrored = study.linear(factor * one), study.linear(-factor * one)
    for end, other_end in (("estimate", "estimate"), ("low", "high"), ("high", "low")):
        assert getattr(scaled, end) == pytest.approx(factor * getattr(first, end), rel=1e-9, abs=1e-9)
        assert getattr(mirrored, other_end) == pytest.approx(-factor * getattr(first, end), rel=1e-9, abs=1e-9)


def pseudo_values(vectors: np.ndarray, statistic) -> np.ndarray:
    """Delete-one-datum pseudo-values `N t - (N-1) t_(-n)`."""
    data = len(vectors)
    deleted = [statistic(np.delete(vectors, n, axis=0)) for n in range(data)]
    return data * statistic(vectors) - (data - 1) * np.array(deleted)


@pytest.mark.parametrize("mean", [0.0, 3.0, 1e4])
def test_intervals_of_components_are_halls_over_what_each_datum_contributes(mean):
    """At the outermost level the pseudo-value, inside it the datum's own mean square."""
    vectors = normal((9, 3, 4), (1.0, 2.0, 3.0), mean=mean)
    inner = vectors.mean(axis=2)
    outer = pseudo_values(vectors, lambda v: v.mean(axis=(1, 2)).var(axis=0, ddof=1).sum())
    middle = inner.var(axis=1, ddof=1).sum(axis=-1)
    innermost = vectors.var(axis=2, ddof=1).sum(axis=-1).mean(axis=1)
    study = components(vectors)
    for level, values in enumerate([outer - middle / 3, middle - innermost / 4, innermost]):
        found = study.component(level)
        assert (found.low, found.high) == pytest.approx(hall_interval(values), rel=1e-6)


@pytest.mark.parametrize("mean", [0.0, 3.0, 1e4])
def test_the_interval_of_the_signal_is_halls_over_its_pseudo_values(mean):
    vectors = normal((9, 3, 4), (1.0, 2.0, 3.0), mean=mean)
    values = pseudo_values(vectors, lambda v: components(v).norm2)
    found = components(vectors).gradient_norm2()
    assert (found.low, found.high) == pytest.approx(hall_interval(values), rel=1e-6)


def test_a_compressed_sketch_gives_intervals_like_the_exact_ones():
    """Of 20,000 coordinates 1,024 numbers are kept; the exact intervals come from 20 parameters of 1,000 each.

    The sketch's error adds `4 |d|^2 |g|^2/1024` to the variance of a datum's distance `|d|^2`, 3 % of its standard
    deviation here: ends move by a few per cent of the width.
    """
    rng = np.random.default_rng(0)
    scale = rng.lognormal(sigma=0.4, size=(40, 1, 1))
    vectors = torch.from_numpy(0.02 + scale * (rng.normal(size=(40, 1, 20_000)) + rng.normal(size=(40, 3, 20_000))))
    whole = Components(moments_of(vectors), ("data", "mask"))
    exact = Components(total([moments_of(part.contiguous()) for part in vectors.split(1000, dim=-1)]), ("data", "mask"))
    assert whole.moments.sketch_norm2 != pytest.approx(exact.moments.sketch_norm2, rel=1e-3)
    for level in range(2):
        one, other = whole.component(level), exact.component(level)
        assert one.estimate == pytest.approx(other.estimate, rel=1e-9)
        assert one.low == pytest.approx(other.low, abs=0.05 * (other.high - other.low))
        assert one.high == pytest.approx(other.high, abs=0.05 * (other.high - other.low))


@pytest.mark.parametrize("mean", [0.0, 0.3, 2.0])
def test_sketched_distances_are_corrected_by_the_known_error_of_the_norms(mean):
    """`|S(g_n - g)|^2 + (1-t)(|g_n|^2 - |S g_n|^2)`, `t = 2|g|^2/(MS_0 + 2|g|^2)`: nearer to the exact distances."""
    rng = np.random.default_rng(0)
    scale = rng.lognormal(sigma=0.4, size=(40, 1, 1))
    vectors = 1e-3 * (mean + scale * (rng.normal(size=(40, 1, 5000)) + rng.normal(size=(40, 3, 5000))))
    study = components(vectors)
    means = vectors.mean(axis=1)
    grand = means.mean(axis=0)
    exact, between = ((means - grand) ** 2).sum(axis=1), means.var(axis=0, ddof=1).sum()
    t = 2 * grand @ grand / (between + 2 * grand @ grand)
    sketched = study.moments.sketch_distance2
    corrected = sketched + (1 - t) * ((means**2).sum(axis=1) - study.moments.sketch_norm2)
    corrected += exact.mean() - corrected.mean()
    assert np.std(corrected - exact) < np.std(sketched - exact)
    # The pseudo-values of MS_0 that these distances give, less the part of the masks.
    outer = 40 / 38 * (corrected - exact.mean()) + between
    within = vectors.var(axis=1, ddof=1).sum(axis=-1)
    found = study.component(0)
    assert (found.low, found.high) == pytest.approx(hall_interval(outer - within / 3), rel=1e-9)


@quick
@given(coefficients, coefficients, st.floats(0.1, 10), st.integers(0, 99))
def test_ratios(above, below, factor, seed):
    study = components(normal((12, 3), (2.0, 1.0), mean=1.0, seed=seed))
    ratio, scaled = study.ratio(above, below), study.ratio(factor * above, below)
    assert ratio.estimate == pytest.approx(study.linear(above).estimate / study.linear(below).estimate, rel=1e-12)
    assert ratio.low <= ratio.estimate <= ratio.high
    for end in ("estimate", "low", "high"):
        assert getattr(scaled, end) == pytest.approx(factor * getattr(ratio, end), rel=1e-9, abs=1e-9)
        assert getattr(study.ratio(above, above), end) == pytest.approx(1, rel=1e-9)


@quick
@given(st.floats(1e-3, 1e3), st.integers(0, 99))
def test_scaling_the_gradient(factor, seed):
    """Variances scale with the square, ratios not at all; the rounding of the scaled vectors is 1e-16 each."""
    vectors = normal((12, 4), (1.5, 1.0), mean=4.0, seed=seed)
    plain, scaled = components(vectors), components(factor * vectors)
    one = np.ones(2)
    for end in ("estimate", "low", "high"):
        for a, b, power in (
            (plain.component(0), scaled.component(0), 2),
            (plain.gradient_norm2(), scaled.gradient_norm2(), 2),
            (plain.share(1), scaled.share(1), 0),
            (plain.noise_scale(one), scaled.noise_scale(one), 0),
            (plain.importance_headroom(), scaled.importance_headroom(), 0),
        ):
            assert getattr(b, end) == pytest.approx(factor**power * getattr(a, end), rel=1e-9, abs=1e-9 * factor**power)


@pytest.mark.parametrize("scales", [(1.0, 1.0), (2.0, 1.0, 3.0)])
def test_shares_sum_to_one(scales):
    study = components(normal((20, 3, 4)[: len(scales)], scales))
    shares = [study.share(level) for level in range(len(scales))]
    assert sum(s.estimate for s in shares) == pytest.approx(1, rel=1e-12)
    assert all(0 <= s.low <= s.estimate <= s.high <= 1 for s in shares)


def test_joined_studies_give_the_estimates_and_intervals_of_one_study():
    vectors = torch.from_numpy(normal((10, 3), (1.0, 1.0), mean=4.0)).unsqueeze(-2)
    first, second = (MomentAccumulator(1, 6, (n, 3), torch.float64) for n in (4, 6))
    first.add(vectors[:4].clone(), 0)
    second.add(vectors[4:].clone(), 0)
    first.join(second.tables)
    joined = Components(first.finish(), ("data", "mask"))
    whole = components(vectors.squeeze(-2).numpy())
    for one, other in (
        (joined.component(0), whole.component(0)),
        (joined.gradient_norm2(), whole.gradient_norm2()),
        (joined.noise_scale(np.ones(2)), whole.noise_scale(np.ones(2))),
    ):
        for end in ("estimate", "low", "high"):
            assert getattr(one, end) == pytest.approx(getattr(other, end), rel=1e-9)


def mirrored() -> np.ndarray:
    """Inner draws `v, -v`: every datum's mean is 0, so the outer component comes out as -V_mask/2."""
    v = normal((8, 1), (1.0, 0.0))
    return np.concatenate([v, -v], axis=1)


ZERO = "the gradient is identically zero"
SAME = "all cells have the same gradient, up to rounding; there is no variance to share"
ZEROS = np.zeros((8, 2, 6))
ONES = np.ones((3, 2, 6))  # running means of three are exact; of more they may round
NOISE = normal((16, 2), (1.0, 1.0))
ALIKE = np.repeat(normal((8, 1), (1.0, 0.0)), 3, axis=1)  # data that differ, each with identical draws
SIGNAL = normal((16, 4), (1.0, 0.5), mean=5.0)


def test_a_negative_component_is_kept_but_nothing_is_made_of_it():
    study = components(mirrored())
    data = study.component(0)
    assert data.estimate == pytest.approx(-study.values[1] / 2, rel=1e-12)
    assert data.low < data.estimate < data.high
    for ratio in (study.share(0), study.share(1), study.noise_scale(np.ones(2))):
        assert not ratio.resolved
        assert ratio.reason == (
            "the data variance is estimated as negative: it is small beside the noise of the levels inside it; "
            "take more draws of data or mask"
        )


@pytest.mark.parametrize("excess", [0.0, -1e-14, 1e-14])
def test_a_component_of_zero_up_to_rounding_is_not_negative(excess):
    study = components(NOISE)
    between = 15 * study.values[1] / 2 * (1 + excess)
    none = Components(replace(study.moments, between=between), study.levels)
    assert abs(none.values[0]) < 1e-13 * study.values[1]
    assert [none.share(level).estimate for level in (0, 1)] == pytest.approx([0, 1], abs=1e-13)


def test_the_level_that_came_out_negative_is_named():
    v = normal((8, 1, 1), (1.0, 0.0, 0.0))
    inner = np.concatenate([v, -v], axis=2).repeat(3, axis=1)  # every mask's mean is 0, up to the data's own
    study = components(inner + normal((8, 1, 1), (3.0,), seed=1))
    assert study.values[1] < 0 < study.values[0]
    assert "the mask variance is estimated as negative" in study.share(0).reason
    assert "take more draws of data or mask or dropout" in study.share(0).reason


@pytest.mark.parametrize(
    ("vectors", "estimate", "reason"),
    [
        (ZEROS, lambda s: s.share(0), ZERO),
        (ZEROS, lambda s: s.noise_scale(np.ones(2)), ZERO),
        (ZEROS, lambda s: s.importance_headroom(), ZERO),
        (ONES, lambda s: s.share(0), SAME),
        (ONES, lambda s: s.importance_headroom(), "the mask variance is zero, up to rounding"),
        (ALIKE, lambda s: s.importance_headroom(), "the mask variance is zero, up to rounding"),
        (SIGNAL[:3], lambda s: s.noise_scale(np.ones(2)), "an interval needs at least 4 draws of data"),
        (
            NOISE,
            lambda s: s.noise_scale(np.ones(2)),
            "|mu|^2 is not clearly positive at this study size; take more sentences",
        ),
        (
            normal((8, 2, 2), (1.0,) * 3),
            lambda s: s.importance_headroom(),
            "headroom is defined for two levels; with more, the inner draws share norms",
        ),
    ],
)
def test_what_cannot_be_resolved_says_why(vectors, estimate, reason):
    found: Estimate = estimate(components(vectors))
    assert not found.resolved
    assert found.reason == reason


@pytest.mark.parametrize(
    ("vectors", "estimate", "reason"),
    [
        (SIGNAL[:3], lambda s: s.gradient_norm2(), "an interval needs at least 4 draws of data"),
        (SIGNAL[:3], lambda s: s.component(0), "an interval needs at least 4 draws of data"),
        (SIGNAL[:2], lambda s: s.share(0), "an interval needs more draws of data"),
        (SIGNAL[:2], lambda s: s.importance_headroom(), "an interval needs more draws of data"),
    ],
)
def test_a_small_study_gives_a_value_without_interval(vectors, estimate, reason):
    found: Estimate = estimate(components(vectors))
    assert found.resolved
    assert (found.low, found.high) == (None, None)
    assert found.reason == reason


def test_the_smallest_studies_with_intervals():
    """Four data for Hall's, three for the jackknife's."""
    four, three = components(20 + SIGNAL[:4]), components(SIGNAL[:3])
    for found in (four.component(0), four.gradient_norm2(), four.noise_scale(np.ones(2))):
        assert found.low < found.estimate < found.high
    for found in (three.share(0), three.importance_headroom()):
        assert found.low < found.estimate < found.high


@pytest.mark.parametrize("scale", [1e-9, 1e9])
def test_what_counts_as_rounding_goes_by_the_size_of_the_gradient(scale):
    assert components(scale * SIGNAL).share(0).resolved
    assert components(scale * SIGNAL).importance_headroom().resolved
    assert components(scale * SIGNAL).concentration(1)[1] > 0
    assert components(scale * np.full((8, 3, 6), 0.1)).share(0).reason == SAME


def jackknifed(vectors: np.ndarray, statistic) -> tuple[float, float]:
    """The whole study's value and its jackknife interval, from whole studies without one datum each."""
    return jackknife_interval(lambda kept: statistic(vectors[kept]), len(vectors))


def norm_variance(vectors: np.ndarray) -> float:
    return np.linalg.norm(vectors, axis=-1).var(axis=1, ddof=1).mean()


@pytest.mark.parametrize("counts", [(3, 4), (5, 3), (6, 2, 3)])
def test_intervals_of_shares_are_the_jackknifes_cut_to_0_and_1(counts):
    levels, cuts = len(counts), set()
    for seed in range(20):
        vectors = normal(counts, (2.0, 1.0, 1.0)[:levels], mean=1.0, seed=seed)
        study = components(vectors)
        if (study.values < 0).any():
            continue
        for level in range(levels):
            low, high = jackknifed(
                vectors, lambda v, level=level: components(v).values[level] / components(v).values.sum()
            )
            found = study.share(level)
            assert (found.low, found.high) == pytest.approx((max(low, 0), min(high, 1)), rel=1e-9, abs=1e-12)
            cuts |= {low < 0, 2 * (high > 1)}
    assert cuts == {0, 1, 2}  # both ends were cut somewhere


def test_intervals_of_the_headroom_are_the_jackknifes_cut_to_0_and_1():
    cuts = set()
    for seed in range(10):
        rng = np.random.default_rng(seed)
        lengths = normal((5, 1), (1.0,), seed=seed) * rng.uniform(1, 2, size=(5, 4, 1)) + 0.15 * rng.normal(
            size=(5, 4, 6)
        )
        for vectors in (lengths, normal((5, 4), (3.0, 0.5), seed=seed)):
            low, high = jackknifed(vectors, lambda v: norm_variance(v) / v.var(axis=1, ddof=1).sum(axis=-1).mean())
            found = components(vectors).importance_headroom()
            assert (found.low, found.high) == pytest.approx((max(low, 0), min(high, 1)), rel=1e-9, abs=1e-12)
            cuts |= {low < 0, 2 * (high > 1)}
    assert cuts == {0, 1, 2}


def test_the_innermost_component_alone_is_cut_at_zero():
    """Two of four data have no variance inside: Hall's interval of (0, 1, 1, 0) reaches below zero."""
    vectors = np.zeros((4, 2, 2, 1))
    vectors[1:3, :, 0], vectors[1:3, :, 1] = 1.0, -1.0
    study = components(vectors + np.arange(4.0).reshape(4, 1, 1, 1))
    innermost = np.array([0.0, 2.0, 2.0, 0.0])
    low, high = hall_interval(innermost)
    assert low < 0
    found = study.component(2)
    assert (found.estimate, found.low) == (1.0, 0.0)
    assert found.high == pytest.approx(high, rel=1e-12)
    found = study.component(1)
    assert found.estimate == -0.5
    assert (found.low, found.high) == pytest.approx(hall_interval(-innermost / 2), rel=1e-12)


def test_zero_gradients_have_zero_components():
    study = components(ZEROS)
    assert [study.component(0), study.component(1), study.gradient_norm2()] == [Estimate(0.0, 0.0, 0.0)] * 3


def test_noise_scale_of_a_clear_signal():
    study = components(SIGNAL)
    for c in (np.array([1.0, 0.0]), np.array([0.0, 1.0]), np.ones(2)):
        found = study.noise_scale(c)
        assert found.estimate == pytest.approx(study.values @ c / study.norm2, rel=1e-12)
        assert 0 < found.low < found.estimate < found.high


def test_noise_scale_of_a_level_whose_draws_are_alike_is_zero():
    study = components(np.repeat(10 + normal((8, 1), (1.0,)), 2, axis=1))
    assert study.noise_scale(np.array([0.0, 1.0])) == Estimate(0.0, 0.0, 0.0)
    assert study.noise_scale(np.array([1.0, 0.0])).low > 0


def test_noise_scale_without_a_clear_signal_is_a_lower_bound():
    """Fieller's: the smallest ratio `r` for which `V - r |mu|^2` may be zero."""
    study = components(NOISE)
    assert study.gradient_norm2().low <= 0 < study.gradient_norm2().high
    found = study.noise_scale(np.ones(2))
    assert 0 < found.low < study.linear(np.ones(2)).high / study.gradient_norm2().high
    assert (found.estimate, found.high) == (None, None)


def test_five_per_cent_of_the_data_that_carry_a_component_are_told():
    vectors = normal((60, 4), (1.0, 1.0), mean=1.0)
    vectors[:3] += 12 * (vectors[:3] - vectors.mean(axis=(0, 1)))
    study = components(vectors)
    means = vectors.mean(axis=1)
    within = vectors.var(axis=1, ddof=1).sum(axis=-1)
    outer = pseudo_values(vectors, lambda v: v.mean(axis=1).var(axis=0, ddof=1).sum()) - within / 4
    for level, values in enumerate([outer, within]):
        few, part = study.concentration(level)
        assert few == 3
        values = np.sort(values)
        assert part == pytest.approx((values[-3:].sum() + np.minimum(values[:3], 0).sum()) / values.sum(), rel=1e-6)
        assert part > 0.5
    assert components(means[3:, None] + normal((57, 4), (0, 1))).concentration(0)[1] < 0.3


def test_noise_is_no_concentration():
    """The data variance is small beside its noise: its largest contributions exceed it, and so do the smallest."""
    study = components(normal((60, 3), (0.3, 1.0), seed=5))
    assert 0 < study.values[0] < 0.2 * study.values[1]
    assert study.concentration(0)[1] < 0.5
    assert components(ZEROS).concentration(1) == (1, 0.0)
    assert components(mirrored()).concentration(0) == (1, 0.0)


def test_importance_headroom_is_the_variance_of_the_norm_over_the_inner_variance():
    norms = np.linalg.norm(SIGNAL, axis=-1)
    within = SIGNAL.var(axis=1, ddof=1).sum(axis=-1)
    found = components(SIGNAL).importance_headroom()
    assert found.estimate == pytest.approx(norms.var(axis=1, ddof=1).mean() / within.mean(), rel=1e-9)
    assert 0 < found.low < found.estimate < found.high < 1


def test_importance_headroom_is_all_where_only_the_length_varies():
    direction = normal((12, 1), (1.0, 0.0))
    lengths = np.random.default_rng(0).uniform(1, 2, size=(12, 4, 1))
    assert components(lengths * direction).importance_headroom().estimate == pytest.approx(1, rel=1e-9)


@pytest.mark.parametrize(
    "vectors", [torch.ones(8, 2, 6).double(), torch.full((8, 3, 6), 0.1).double(), torch.full((8, 3, 6), 0.1)]
)
def test_rounding_is_no_variance(vectors):
    """Equal vectors have sums that round; no share, scale or headroom is made of that."""
    same = Components(moments_of(vectors), ("data", "mask"))
    assert "same gradient" in same.share(0).reason
    assert "same gradient" in same.noise_scale(np.ones(2)).reason
    assert "zero, up to rounding" in same.importance_headroom().reason
