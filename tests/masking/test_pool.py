"""The pool: R candidates, one kept. A candidate is a subset here; its corruption would be nothing new."""

import math
from dataclasses import replace
from functools import cache
from itertools import pairwise, product

import numpy as np
import pytest
import torch
from scipy import stats

from gradvar.errors import GradvarError
from gradvar.masking.designs import sum_over
from gradvar.masking.hashing import hash_key
from gradvar.masking.masks import Masks
from gradvar.masking.sets import Pool
from tests.masking.enumeration import (
    RARE,
    SENTENCES,
    Set,
    batch,
    code,
    codes,
    gradients,
    mean_gradient,
    moment,
    row_of,
    scores_of,
    uniform,
)


def pool(row, s: dict[Set, float], candidates: int, epsilon: float):
    """All outcomes: `(candidates, kept, chance, weight)`."""
    p = uniform(row)
    for found in product(p, repeat=candidates):
        total = sum(s[x] for x in found)
        for kept, x in enumerate(found):
            share = (1 - epsilon) * s[x] / total + epsilon / candidates
            yield found, kept, math.prod(p[y] for y in found) * share, 1 / (candidates * share)


FOUR = batch(("|ab|cd|", 2), ("abc", 1))


POOLS = [(1, 0.0), (2, 0.0), (2, 0.3), (3, 0.0), (3, 0.3)]


@cache
def pool_draws(candidates: int, epsilon: float):
    """`{(row, candidates, kept): weights}` of draws; `of_sets` is shown the candidates, and scores them as usual."""
    scores, draws = scores_of("mild", FOUR), 30_000
    shown = []

    def of_sets(positions, valid, keys):
        shown.append((codes(Masks(positions, valid, valid, keys)).view(-1, candidates), keys.view(-1, candidates)))
        return sum_over(scores, positions, valid)

    keys = hash_key(5, torch.arange(2 * draws).view(2, draws))
    masks = Pool(candidates, epsilon).draw(FOUR, scores, keys, of_sets)
    plain = Pool(candidates, epsilon).draw(FOUR, scores, keys)
    for ours, theirs in zip(vars(masks).values(), vars(plain).values(), strict=True):
        assert torch.equal(ours, theirs)  # the sum of the positions' scores is what it takes by itself
    [(sets, names)] = shown
    assert len(names.unique()) == names.numel()
    kept = names == masks.keys.unsqueeze(1)
    assert (kept.sum(dim=1) == 1).all()
    assert torch.equal(sets[kept], codes(masks))
    assert torch.equal(masks.weights, masks.weights[:, :1] * masks.valid)
    weights = masks.weights[:, 0] * masks.valid.sum(dim=1)
    row = torch.arange(2).repeat_interleave(draws)
    outcomes, which = torch.cat([row[:, None], sets, kept.long().argmax(dim=1)[:, None]], dim=1).unique(
        dim=0, return_inverse=True
    )
    names_of = {code(s): s for i in range(2) for s in row_of(FOUR, scores, i).subsets}
    order, sizes = which.argsort(), which.bincount().tolist()
    return {
        (row, tuple(names_of[x] for x in found), kept): each
        for (row, *found, kept), each in zip(outcomes.tolist(), weights[order].split(sizes), strict=True)
    }


def set_scores(row):
    return {s: sum(row.score(place) for place in s) for s in row.subsets}


@pytest.mark.parametrize(("candidates", "epsilon"), POOLS)
def test_the_pool_keeps_as_it_says_and_weighs_what_it_keeps(candidates, epsilon):
    """Weights of all outcomes, at most `1/epsilon`; chi-square, ten p-values, so right draws fail for a seed in 1e5.

    The rarest outcome is expected 28 times, and missed for one seed in 1e9.
    """
    scores = scores_of("mild", FOUR)
    for index in range(2):
        row = row_of(FOUR, scores, index)
        found = {x[1:]: weights for x, weights in pool_draws(candidates, epsilon).items() if x[0] == index}
        expected = {(x, kept): (c, w) for x, kept, c, w in pool(row, set_scores(row), candidates, epsilon)}
        assert set(found) == set(expected)
        for outcome, weights in found.items():
            np.testing.assert_allclose(weights, expected[outcome][1], rtol=1e-12)
            assert not epsilon or weights.max() <= (1 + 1e-12) / epsilon
        counts = np.array([len(weights) for weights in found.values()])
        probabilities = np.array([expected[outcome][0] for outcome in found])
        assert stats.chisquare(counts, probabilities * counts.sum()).pvalue > RARE


@pytest.mark.parametrize(("candidates", "epsilon"), [(2, 0.0), (2, 0.3), (3, 0.0)])
def test_the_pool_is_unbiased_and_has_its_closed_second_moment(candidates, epsilon):
    """Over all R-tuples, with the weights that the design gave: `E|g|^2/R + (1 - 1/R) E[|g|^2/s] E[s]` at epsilon 0."""
    scores = scores_of("mild", FOUR)
    for index in range(2):
        row = row_of(FOUR, scores, index)
        s, p = set_scores(row), uniform(row)
        g = gradients(p, seed=index)
        mean, second = np.zeros(3), 0.0
        for found, kept, chance, _ in pool(row, s, candidates, epsilon):
            weighted = float(pool_draws(candidates, epsilon)[index, found, kept][0]) * g[found[kept]].mean(axis=0)
            mean += chance * weighted
            second += chance * weighted @ weighted
        np.testing.assert_allclose(mean, mean_gradient(g, p), rtol=0, atol=1e-10)
        share = 1 / candidates
        limit = moment(g, {x: p[x] / s[x] for x in p}) * sum(p[x] * s[x] for x in p)
        closed = moment(g, p) * share + (1 - share) * limit
        assert math.isclose(second, closed, rel_tol=1e-10) == (epsilon == 0)


def test_more_candidates_make_a_bad_score_worse_and_the_true_norm_optimal():
    """`s = 1/|g|`: the variance rises with R; `s = |g|`: it is the optimum's and `Var|g|/R`."""
    row = row_of(FOUR, scores_of("mild", FOUR), 0)
    p = uniform(row)
    g = gradients(p, seed=4)
    norm = {s: float(np.linalg.norm(g[s].mean(axis=0))) for s in p}
    mean = sum(p[s] * norm[s] for s in p)
    spread = sum(p[s] * (norm[s] - mean) ** 2 for s in p)

    def second(s, candidates):
        return sum(chance * (w * norm[x[kept]]) ** 2 for x, kept, chance, w in pool(row, s, candidates, 0.0))

    bad = [second({s: 1 / norm[s] for s in p}, candidates) for candidates in (1, 2, 3, 4)]
    assert all(more > fewer * 1.01 for fewer, more in pairwise(bad))
    for candidates in (1, 2, 3, 4):
        assert math.isclose(second(norm, candidates), mean**2 + spread / candidates, rel_tol=1e-10)


def test_the_pool_has_no_inclusion_probabilities():
    with pytest.raises(GradvarError, match="not tractable"):
        Pool().inclusion(SENTENCES, scores_of("skewed"))


def test_a_pool_that_is_all_uniform_weighs_nothing():
    masks = replace(Pool(3), epsilon=1.0).draw(
        SENTENCES, scores_of("skewed"), hash_key(1, torch.arange(70).view(7, 10))
    )
    assert torch.equal(masks.weights, masks.valid / SENTENCES.counts.double().repeat_interleave(10).unsqueeze(1))
