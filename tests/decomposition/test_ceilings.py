"""The three ceilings against exact decompositions of functions of sets, by enumeration and simulation."""

from itertools import combinations, product
from math import comb, perm

import numpy as np
import pytest

from gradvar.decomposition import ceilings

SIZES = [(3, 1), (4, 2), (5, 1), (5, 2), (5, 3), (5, 4)]  # T, k


def sets(total: int, k: int) -> list[tuple[int, ...]]:
    return list(combinations(range(total), k))


def interacting(total: int, k: int, seed: int = 0) -> np.ndarray:
    """`[sets, 3]` vectors with all orders of interaction."""
    return np.random.default_rng(seed).normal(size=(comb(total, k), 3)) + 0.5


def hoeffding(vectors: np.ndarray, total: int, k: int) -> list[float]:
    """`V_1 .. V_k`: the variance of the projections onto functions of at most j positions, in differences.

    By least squares on the indicators `j-subset within S`, which knows no formula of the design.
    """
    parts, before = [], 0.0
    for order in range(1, k + 1):
        smaller = sets(total, order)
        design = np.array([[set(small) <= set(s) for small in smaller] for s in sets(total, k)], dtype=float)
        fitted = design @ np.linalg.lstsq(design, vectors, rcond=None)[0]
        explained = ((fitted - vectors.mean(axis=0)) ** 2).sum(axis=1).mean()
        parts.append(explained - before)
        before = explained
    return parts


def overlaps(total: int, k: int) -> np.ndarray:
    every = sets(total, k)
    return np.array([[len(set(a) & set(b)) for b in every] for a in every], dtype=float)


def over_tuples(vectors: np.ndarray, total: int, k: int, masks: int) -> np.ndarray:
    """`main_effects` of every tuple of independent masks, equally likely."""
    tuples = np.array(list(product(range(len(vectors)), repeat=masks)))
    common, inner = overlaps(total, k), vectors @ vectors.T
    pairs = tuples[:, :, None], tuples[:, None, :]
    ones = np.ones(len(tuples), dtype=int)
    return ceilings.main_effects(inner[pairs], common[pairs], total * ones, k * ones)


@pytest.mark.parametrize(("total", "k"), SIZES)
def test_main_effects_are_unbiased_for_interacting_targets(total, k):
    vectors = interacting(total, k)
    found = over_tuples(vectors, total, k, 3)
    assert found.mean() == pytest.approx(hoeffding(vectors, total, k)[0], rel=1e-10)


def test_main_effects_are_unbiased_from_four_masks():
    vectors = interacting(4, 2, seed=1)
    assert over_tuples(vectors, 4, 2, 4).mean() == pytest.approx(hoeffding(vectors, 4, 2)[0], rel=1e-10)


def test_main_effects_do_not_know_where_zero_is():
    """Adding the same to all gradients leaves them as they are, up to the rounding of 1e4 squared."""
    vectors = interacting(5, 2)
    first, second = over_tuples(vectors, 5, 2, 3), over_tuples(vectors + 1e4, 5, 2, 3)
    np.testing.assert_allclose(first, second, atol=1e-5)


def test_a_pure_interaction_has_no_main_effects():
    vectors = interacting(5, 2)
    design = np.array([[i in s for i in range(5)] for s in sets(5, 2)], dtype=float)
    rest = vectors - design @ np.linalg.lstsq(design, vectors, rcond=None)[0]
    assert hoeffding(rest, 5, 2)[1] > 1
    assert abs(over_tuples(rest, 5, 2, 3).mean()) < 1e-12


def test_each_sentence_goes_by_its_own_length_and_targets():
    sizes = [(5, 2), (4, 2), (5, 1), (3, 3)]
    rng = np.random.default_rng(0)
    inner, common, alone = np.zeros((4, 3, 3)), np.zeros((4, 3, 3)), []
    for row, (total, k) in enumerate(sizes):
        vectors, drawn = interacting(total, k, row), rng.integers(comb(total, k), size=3)
        inner[row] = vectors[drawn] @ vectors[drawn].T
        common[row] = overlaps(total, k)[np.ix_(drawn, drawn)]
        one = slice(row, row + 1)
        alone.append(ceilings.main_effects(inner[one], common[one], np.array([total]), np.array([k]))[0])
    totals, counts = np.array(sizes).T
    assert ceilings.main_effects(inner, common, totals, counts).tolist() == alone
    assert alone[3] == 0  # there is one mask alone


def disjoint_pairs(total: int, k: int) -> list[tuple[int, int]]:
    every = sets(total, k)
    return [(a, b) for a, b in product(range(len(every)), repeat=2) if not set(every[a]) & set(every[b])]


@pytest.mark.parametrize(("total", "k"), [(4, 1), (4, 2), (5, 2), (6, 2), (6, 3), (7, 3)])
def test_the_covariance_of_disjoint_masks_is_the_finite_population_formula(total, k):
    """`sum_j (-1)^j [k]_j/[T-k]_j V_j`, and what `main_effects` finds is its first term but for a factor."""
    vectors = interacting(total, k)
    centred = vectors - vectors.mean(axis=0)
    covariance = np.mean([centred[a] @ centred[b] for a, b in disjoint_pairs(total, k)])
    parts = hoeffding(vectors, total, k)
    expected = sum((-1) ** j * perm(k, j) / perm(total - k, j) * v for j, v in enumerate(parts, start=1))
    assert sum(parts) == pytest.approx((centred**2).sum(axis=1).mean(), rel=1e-10)
    assert covariance == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize(("total", "k", "masks"), [(6, 2, 2), (6, 2, 3), (7, 2, 3), (4, 1, 4), (8, 3, 2)])
def test_disjoint_additive_masks_keep_what_the_finite_population_correction_says(total, k, masks):
    """`(1 - K k/T)/(1 - k/T)` of the variance of the mean of K independent ones."""
    effects = np.random.default_rng(0).normal(size=(total, 3))
    # The union of K disjoint masks is a uniform set of K k positions, and its mean that of theirs.
    means, one = (np.array([effects[list(s)].mean(axis=0) for s in sets(total, size)]) for size in (masks * k, k))
    kept = means.var(axis=0).sum() / (one.var(axis=0).sum() / masks)
    assert kept == pytest.approx((1 - masks * k / total) / (1 - k / total), abs=1e-12)
    parts = hoeffding(one, total, k)
    covariance = -k / (total - k) * parts[0]
    assert kept == pytest.approx((parts[0] + (masks - 1) * covariance) / parts[0], abs=1e-12)


def test_importance_is_what_the_best_distribution_over_sets_removes():
    """`E|g|^2 - (E|g|)^2`: the least second moment by `q ~ |g|`; over all samples of 3 sets, exactly."""
    norms2 = (interacting(4, 2) ** 2).sum(axis=1)
    norms = np.sqrt(norms2)
    q = norms / norms.sum()
    optimal = (q * (1 / (len(q) * q)) ** 2 * norms2).sum()
    samples = norms2[np.array(list(product(range(len(q)), repeat=3)))]
    assert ceilings.importance(samples).mean() == pytest.approx(norms2.mean() - optimal, rel=1e-10)
    assert norms2.mean() - optimal == pytest.approx(norms.var(), rel=1e-10)


def position_ceiling(f: np.ndarray, k: int) -> float:
    return ((f**2).mean() - f.mean() ** 2) / k


@pytest.mark.parametrize("contexts", [2, 5])
def test_position_weights_are_exact_where_norms_do_not_vary_over_contexts(contexts):
    """Each sentence by its maskable positions and its targets, whatever stands elsewhere."""
    rng = np.random.default_rng(0)
    maskable = np.array([[False, True, True, True, False], [True, True, False, False, False]])
    f = rng.lognormal(size=(2, 5))
    norms = np.repeat(f[None], contexts, axis=0)
    found = ceilings.position(norms, maskable, np.array([2, 1]))
    expected = [position_ceiling(f[0, maskable[0]], 2), position_ceiling(f[1, maskable[1]], 1)]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_there_is_nothing_to_weigh_where_all_positions_are_targets():
    norms = np.random.default_rng(0).lognormal(size=(3, 2, 4))
    found = ceilings.position(norms, np.ones((2, 4), dtype=bool), np.array([4, 3]))
    assert found[0] == 0 != found[1]


@pytest.mark.parametrize("contexts", [2, 4])
def test_the_jackknife_takes_most_of_the_bias_of_few_contexts(contexts):
    """Lognormal norms, 20,000 sentences of 6 positions: the bias falls to less than half, by 4 standard errors."""
    rng = np.random.default_rng(0)
    size, k = rng.lognormal(size=6), 2
    squares = np.square(size * rng.lognormal(sigma=0.5, size=(contexts, 20_000, 6)))
    exact = position_ceiling(size * np.exp(0.5**2), k)  # E exp(2 * 0.5 z) = exp(2 * 0.5^2)
    found = ceilings.position(np.sqrt(squares), np.ones((20_000, 6), dtype=bool), np.full(20_000, k))
    f = np.sqrt(squares.mean(axis=0))
    plain = ((f**2).mean(axis=1) - f.mean(axis=1) ** 2) / k
    bias, left = plain.mean() - exact, found.mean() - exact
    error = found.std() / np.sqrt(len(found))
    assert bias > 8 * error
    assert abs(left) < bias / 2 - 4 * error
