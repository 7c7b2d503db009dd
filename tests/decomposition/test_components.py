"""Unbiasedness by enumeration, the algebra of the estimators, and when there is none."""

from collections import Counter
from collections.abc import Iterator
from itertools import combinations_with_replacement
from math import factorial, prod

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradvar.decomposition.components import Components
from gradvar.decomposition.estimate import Estimate
from gradvar.decomposition.intervals import hall_interval
from gradvar.decomposition.moments import Layout, MomentAccumulator, moments_of

quick = settings(max_examples=40, deadline=None)
coefficients = st.tuples(*[st.floats(0.1, 10)] * 2).map(np.array)


def components(vectors: np.ndarray, groups: int = 1) -> Components:
    levels = ("data", "mask", "dropout")[: vectors.ndim - 1]
    return Components(moments_of(torch.from_numpy(np.ascontiguousarray(vectors, dtype=np.float64)), groups), levels)


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


def contributions(vectors: np.ndarray, groups: int) -> np.ndarray:
    """What each datum contributes to `MS_0`, from the data means themselves, by the documented formula."""
    study = components(vectors, groups)
    means = vectors.mean(axis=tuple(range(1, vectors.ndim - 1)))
    mean_square, signal = means.var(axis=0, ddof=1).sum(), max(study.norm2, 0)
    found = []
    for group in np.split(means, np.array(study.moments.layout.group_starts[1:])):
        for n, mean in enumerate(group):
            before = group[:n] if n else group[1:2]
            k = len(before)
            w = signal / (signal + mean_square / k) if k else 0
            p = before.mean(axis=0) if k else 0 * mean
            expected = mean_square * (1 + (w**2 / k if k else 0)) + (1 - w) ** 2 * signal
            found.append(((mean - w * p) ** 2).sum() - expected)
    return np.array(found) - np.mean(found) + mean_square


@pytest.mark.parametrize("groups", [1, 3, 4, 9])
@pytest.mark.parametrize("mean", [0.0, 3.0])
def test_intervals_of_components_come_from_the_contributions_of_the_data(groups, mean):
    """Hall's interval of what each datum contributes."""
    vectors = normal((9, 3, 4), (1.0, 2.0, 3.0), mean=mean)
    inner = vectors.mean(axis=2)
    squares = np.array(
        [
            contributions(vectors, groups),
            inner.var(axis=1, ddof=1).sum(axis=-1),
            vectors.var(axis=2, ddof=1).sum(axis=-1).mean(axis=1),
        ]
    )
    study = components(vectors, groups)
    for level, values in enumerate([squares[0] - squares[1] / 3, squares[1] - squares[2] / 4, squares[2]]):
        found = study.component(level)
        assert (found.low, found.high) == pytest.approx(hall_interval(values), rel=1e-9)


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
    plain, scaled = components(vectors, 4), components(factor * vectors, 4)
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


def test_groups_of_unequal_size_leave_the_estimate_alone():
    vectors = normal((11, 3), (1.0, 1.0), mean=1.0)
    estimates = [components(vectors, groups).gradient_norm2().estimate for groups in (1, 3, 4, 11)]
    assert estimates == pytest.approx([estimates[0]] * 4, rel=1e-12)


def test_the_grouped_estimate_of_the_signal_is_the_plain_jackknife_of_group_means():
    """With one datum a group, the interval follows from the data means alone."""
    vectors = normal((9, 3), (1.0, 1.0), mean=2.0)
    found = components(vectors, 9).gradient_norm2()
    means = vectors.mean(axis=1)

    def statistic(m: np.ndarray) -> float:
        gram = m @ m.T
        return (gram.sum() - np.trace(gram)) / (len(m) * (len(m) - 1))

    replicates = np.array([statistic(np.delete(means, i, axis=0)) for i in range(9)])
    half = 2.306004135 * np.sqrt(8 / 9 * ((replicates - replicates.mean()) ** 2).sum())  # t_.975 with 8 df
    expected = [statistic(means), statistic(means) - half, statistic(means) + half]
    assert [found.estimate, found.low, found.high] == pytest.approx(expected, rel=1e-8)


def test_joined_studies_give_the_estimates_of_one_study():
    vectors = torch.from_numpy(normal((10, 3), (1.0, 1.0), mean=1.0)).unsqueeze(-2)
    parts = []
    for half, sizes in ((vectors[:4], (2, 2)), (vectors[4:], (3, 3))):
        accumulator = MomentAccumulator(1, 6, Layout((len(half), 3), sizes), torch.float64)
        for start, size in zip(accumulator.layout.group_starts, sizes, strict=True):
            accumulator.add(half[start : start + size].clone(), start)
        parts.append(accumulator)
    joined = Components(parts[0].join(parts[1]).finish(), ("data", "mask"))
    whole = components(vectors.squeeze(-2).numpy())
    assert joined.values == pytest.approx(whole.values, rel=1e-12)
    assert joined.norm2 == pytest.approx(whole.norm2, rel=1e-12)
    assert joined.gradient_norm2().estimate == pytest.approx(whole.norm2, rel=1e-12)


def mirrored() -> np.ndarray:
    """Inner draws `v, -v`: every datum's mean is 0, so the outer component comes out as -V_mask/2."""
    v = normal((8, 1), (1.0, 0.0))
    return np.concatenate([v, -v], axis=1)


ZEROS = np.zeros((8, 2, 6))
ONES = np.ones((3, 2, 6))  # running means of three are exact; of more they may round
NOISE = normal((16, 2), (1.0, 1.0))
SIGNAL = normal((16, 4), (1.0, 0.5), mean=5.0)


def test_a_negative_component_is_kept_but_nothing_is_made_of_it():
    study = components(mirrored(), 4)
    data = study.component(0)
    assert data.estimate == pytest.approx(-study.values[1] / 2, rel=1e-12)
    assert data.low < data.estimate < data.high
    for ratio in (study.share(0), study.share(1), study.noise_scale(np.ones(2))):
        assert not ratio.resolved
        assert "data variance is estimated as negative" in ratio.reason


@pytest.mark.parametrize(
    ("vectors", "groups", "estimate", "reason"),
    [
        (ZEROS, 4, lambda s: s.share(0), "identically zero"),
        (ZEROS, 4, lambda s: s.noise_scale(np.ones(2)), "identically zero"),
        (ZEROS, 4, lambda s: s.importance_headroom(), "identically zero"),
        (ONES, 3, lambda s: s.share(0), "the same gradient"),
        (ONES, 3, lambda s: s.importance_headroom(), "mask variance is zero"),
        (SIGNAL, 2, lambda s: s.noise_scale(np.ones(2)), "at least 3 groups, not 2"),
        (NOISE, 8, lambda s: s.noise_scale(np.ones(2)), "take more sentences"),
        (normal((8, 2, 2), (1.0,) * 3), 4, lambda s: s.importance_headroom(), "two levels"),
    ],
)
def test_what_cannot_be_resolved_says_why(vectors, groups, estimate, reason):
    found: Estimate = estimate(components(vectors, groups))
    assert not found.resolved
    assert reason in found.reason


@pytest.mark.parametrize(
    ("vectors", "groups", "estimate", "reason"),
    [
        (SIGNAL, 2, lambda s: s.gradient_norm2(), "at least 3 groups, not 2"),
        (SIGNAL[:3], 1, lambda s: s.component(0), "at least 4 draws of data"),
        (SIGNAL[:2], 1, lambda s: s.share(0), "more draws of data"),
        (SIGNAL[:2], 1, lambda s: s.importance_headroom(), "more draws of data"),
    ],
)
def test_a_small_study_gives_a_value_without_interval(vectors, groups, estimate, reason):
    found: Estimate = estimate(components(vectors, groups))
    assert found.resolved
    assert (found.low, found.high) == (None, None)
    assert reason in found.reason


def test_zero_gradients_have_zero_components():
    study = components(ZEROS, 4)
    assert [study.component(0), study.component(1), study.gradient_norm2()] == [Estimate(0.0, 0.0, 0.0)] * 3


def test_noise_scale_of_a_clear_signal():
    study = components(SIGNAL, 8)
    for c in (np.array([1.0, 0.0]), np.array([0.0, 1.0]), np.ones(2)):
        found = study.noise_scale(c)
        assert found.estimate == pytest.approx(study.values @ c / study.norm2, rel=1e-12)
        assert 0 < found.low < found.estimate < found.high


def test_noise_scale_without_a_clear_signal_is_a_lower_bound():
    study = components(NOISE, 8)
    assert study.gradient_norm2().low <= 0 < study.gradient_norm2().high
    found = study.noise_scale(np.ones(2))
    assert found.low == pytest.approx(study.linear(np.ones(2)).low / study.gradient_norm2().high, rel=1e-12)
    assert (found.estimate, found.high) == (None, None)


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
    same = Components(moments_of(vectors, 4), ("data", "mask"))
    assert "same gradient" in same.share(0).reason
    assert "same gradient" in same.noise_scale(np.ones(2)).reason
    assert "zero, up to rounding" in same.importance_headroom().reason
