"""Inclusion probabilities in proportion to size: the cap, the mixture, and what bounds the weights."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradvar.masking.hashing import hash_key
from gradvar.masking.pps import PPS, capped
from tests.masking.enumeration import (
    ROWS,
    SENTENCES,
    aimed_at,
    batch,
    capped_by_bisection,
    code,
    codes,
    row_of,
    scores_of,
    systematic,
)

METHODS = ("conditional-poisson", "systematic")


@settings(deadline=None, max_examples=150)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.sampled_from([0.0, 0.5, 2.0, 6.0]), st.data())
def test_capped_is_min_of_one_and_a_multiple_of_the_score(seed, total, sigma, data):
    """At most one, one where capped, proportional below, and of sum k; ties and k = T included."""
    k = data.draw(st.integers(1, total))
    sentences = batch(("|" + "a" * total + "||", k), ("a|", 1))
    scores = torch.from_numpy(np.random.default_rng(seed).lognormal(0, sigma, sentences.ids.shape))
    pi = capped(scores, sentences)  # what stands where nothing is maskable does not matter
    assert not pi[~sentences.maskable].any()
    assert math.isclose(pi[1, 0], 1)
    pi, scores = pi[0, 1:-2], scores[0, 1:-2]
    assert pi.max() <= 1
    assert pi.min() > 0
    assert math.isclose(pi.sum(), k, rel_tol=1e-12)
    ratio = pi / scores
    below = pi < 1 - 1e-12
    if below.any():
        constant = ratio[below].mean()
        torch.testing.assert_close(ratio[below], constant.expand(int(below.sum())), rtol=1e-12, atol=0)
        assert (scores[~below] * constant >= 1 - 1e-12).all()
        torch.testing.assert_close(
            pi, torch.tensor(capped_by_bisection(scores.tolist(), k), dtype=torch.float64), rtol=1e-9, atol=0
        )
    else:
        assert k == total


@pytest.mark.parametrize(
    ("scores", "k", "expected"),
    [
        ([1, 1, 1, 1], 2, [0.5, 0.5, 0.5, 0.5]),
        ([4, 1, 1, 2], 2, [1, 0.25, 0.25, 0.5]),  # the first is exactly one without a cap
        ([9, 1, 1, 2], 2, [1, 0.25, 0.25, 0.5]),
        ([9, 1, 5, 2], 3, [1, 1 / 3, 1, 2 / 3]),  # the second is cut after the first is
        ([9, 1, 5, 2], 4, [1, 1, 1, 1]),
        ([1e-6, 1, 1e6], 1, [1e-6 / 1000001.000001, 1 / 1000001.000001, 1e6 / 1000001.000001]),
    ],
)
def test_capped_by_hand(scores, k, expected):
    sentences = batch(("a" * len(scores) + "|", k))
    found = capped(torch.tensor([[*scores, 7.0]], dtype=torch.float64), sentences)
    torch.testing.assert_close(found[0, :-1], torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=0)


@pytest.mark.parametrize("epsilon", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("kind", ["equal", "mild", "skewed"])
def test_the_target_is_mixed_after_the_cap(kind, epsilon):
    """And systematic sampling has it exactly."""
    scores = scores_of(kind)
    for method in METHODS:
        target = PPS(method, epsilon).target(SENTENCES, scores)
        for index in ROWS:
            row = row_of(SENTENCES, scores, index)
            expected = torch.zeros(target.shape[1], dtype=torch.float64)
            expected[row.places] = torch.tensor(aimed_at(row, epsilon), dtype=torch.float64)
            torch.testing.assert_close(target[index], expected, rtol=1e-10, atol=0)
    assert torch.equal(PPS("systematic", epsilon).inclusion(SENTENCES, scores), target)


@pytest.mark.parametrize("method", METHODS)
def test_weights_are_those_of_horvitz_and_thompson(method):
    """`1/(T pi_i)`: against enumerated probabilities, conditional Poisson's are in test_designs.py."""
    scores = scores_of("mild")
    design = PPS(method)
    masks = design.draw(SENTENCES, scores, hash_key(0, torch.arange(7 * 50).view(7, 50)))
    for index in ROWS:
        row = row_of(SENTENCES, scores, index)
        pi = aimed_at(row, 0.0) if method == "systematic" else design.inclusion(SENTENCES, scores)[index, row.places]
        weight = {place: 1 / (len(row.places) * float(p)) for place, p in zip(row.places, pi, strict=True)}
        for cell in range(50 * index, 50 * index + 50):
            places = masks.positions[cell, : row.k].tolist()
            np.testing.assert_allclose(masks.weights[cell, : row.k], [weight[i] for i in places], rtol=1e-10)
            assert not masks.weights[cell, row.k :].any()


@pytest.mark.parametrize("kind", ["equal", "skewed"])
@pytest.mark.parametrize("method", METHODS)
def test_the_mean_weight_is_one(method, kind):
    """`E sum_i w_i = sum_i pi_i/(T pi_i) = 1` over all targets: a mask's weights sum to one on average, not always."""
    design, scores = PPS(method, 0.2), scores_of(kind)
    draws = 4000
    masks = design.draw(SENTENCES, scores, hash_key(3, torch.arange(7 * draws).view(7, draws)))
    sums = masks.weights.sum(dim=1).view(7, draws)
    error = sums.std(dim=1) / draws**0.5
    assert ((sums.mean(dim=1) - 1).abs() <= 5 * error + 1e-9).all()  # 28 means: right seeds fail in 2e-5


@pytest.mark.parametrize("epsilon", [0.1, 0.5])
def test_epsilon_bounds_the_weights_of_systematic_sampling(epsilon):
    """`pi >= epsilon k/T`, so no weight is over `1/(epsilon k)`."""
    scores = scores_of("skewed")
    weights = 1 / (SENTENCES.totals.unsqueeze(1) * PPS("systematic", epsilon).inclusion(SENTENCES, scores))
    bound = 1 / (epsilon * SENTENCES.counts.double()).unsqueeze(1)
    assert (weights * SENTENCES.maskable).nan_to_num(0).le(bound * (1 + 1e-12)).all()


@pytest.mark.parametrize(
    ("total", "k"),
    [(126, 19), (20, 3), (2, 1), (3, 1), (3, 2), (8, 7)],
)
def test_epsilon_bounds_the_weights_of_conditional_poisson(total, k):
    """At most about `1/(epsilon k)`: a quarter more is allowed; scores as unequal as a model's."""
    sentences = batch(*[("a" * total + "|", k)] * 20)
    scores = torch.from_numpy(np.random.default_rng(0).lognormal(0, 1.2, sentences.ids.shape)) * sentences.maskable
    inclusion = PPS(epsilon=0.1).inclusion(sentences, scores)
    assert (1 / (total * inclusion[sentences.maskable])).max() < 1.25 / (0.1 * k)


def test_systematic_sampling_takes_what_is_certain():
    """Positions of probability one are in every mask, and the order of the others is random."""
    sentences = batch(("|abcdef|", 3))
    scores = torch.tensor([[0, 50.0, 1, 1, 1, 1, 90.0, 0]], dtype=torch.float64)
    keys = hash_key(2, torch.arange(4000).view(1, -1))
    masks = PPS("systematic").draw(sentences, scores, keys)
    found = codes(masks)
    assert ((found & code((1, 6))) == code((1, 6))).all()
    row = row_of(sentences, scores, 0)
    expected = systematic(row, aimed_at(row, 0.0))
    assert {int(x) for x in found} == {code(s) for s, q in expected.items() if q > 1e-9}
