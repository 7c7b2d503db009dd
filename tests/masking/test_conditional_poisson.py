"""Conditional Poisson sampling in exact integers: normaliser, inclusion probabilities, and draws at extreme odds."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradvar.masking.conditional_poisson import ConditionalPoisson, log_odds_for
from gradvar.masking.hashing import hash_key
from gradvar.masking.masks import positions_of
from gradvar.masking.pps import capped
from tests.masking.enumeration import batch, row_of

LOG_2 = math.log(2)


def symmetric(odds: list[int], k: int) -> list[int]:
    """`e_0 ... e_k`, exactly."""
    e = [1] + [0] * k
    for o in odds:
        for j in range(k, 0, -1):
            e[j] += o * e[j - 1]
    return e


def exact_inclusion(odds: list[int], k: int) -> list[float]:
    """`o_i e_{k-1}(o without i) / e_k(o)`, the polynomial without `i` by exact division."""
    e, found = symmetric(odds, k), []
    for o in odds:
        without = [1]
        for j in range(1, k):
            without.append(e[j] - o * without[j - 1])
        found.append(float(Fraction(o * without[k - 1], e[k])))
    return found


def powers(exponents: list[int], k: int, more: int = 0) -> ConditionalPoisson:
    """Odds that are powers of two, exact in integers; `more` positions are not maskable."""
    log_odds = torch.tensor([[n * LOG_2 for n in exponents] + [3.0] * more], dtype=torch.float64)
    maskable = torch.tensor([[True] * len(exponents) + [False] * more])
    return ConditionalPoisson(log_odds, maskable, torch.tensor([k]))


def log_e(exponents: list[int], k: int) -> float:
    """`log e_k`; for more than half of the positions by those that are left out, `e_k(o) = e_T(o) e_{T-k}(1/o)`."""
    if 2 * k > len(exponents):
        return sum(exponents) * LOG_2 + log_e([-n for n in exponents], len(exponents) - k)
    least = min(exponents)
    return math.log(symmetric([1 << n - least for n in exponents], k)[k]) + k * least * LOG_2


def exponents_of(total: int, most: int, seed: int = 0) -> list[int]:
    return torch.randint(-most, most + 1, (total,), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.mark.parametrize("most", [0, 2, 30, 1000])  # to 2^1000 = 1e301 and back
@pytest.mark.parametrize(("total", "k"), [(1, 1), (2, 1), (7, 3), (8, 7), (33, 33), (126, 19), (512, 40), (512, 511)])
def test_the_normaliser_is_exact(total, k, most):
    """`log q(S)` of the first and the last k positions; one unit in the last place of a log of odds is 1e-13."""
    exponents = exponents_of(total, most)
    positions = torch.stack([torch.arange(k), torch.arange(total - k, total)])
    found = powers(exponents, k, more=3).log_probability(positions, torch.ones_like(positions, dtype=torch.bool))
    normaliser = log_e(exponents, k)
    for log_q, chosen in zip(found.tolist(), (exponents[:k], exponents[-k:]), strict=True):
        expected = sum(chosen) * LOG_2 - normaliser
        assert math.isclose(log_q, expected, rel_tol=1e-12, abs_tol=total * 2e-13 * (1 + most / 100))


@pytest.mark.parametrize("most", [0, 2, 30, 1000])
@pytest.mark.parametrize(("total", "k"), [(1, 1), (5, 4), (7, 3), (9, 9), (65, 64), (126, 19)])
def test_inclusion_probabilities_are_exact(total, k, most):
    exponents = exponents_of(total, most, seed=1)
    least = min(exponents)
    found = powers(exponents, k, more=2).inclusion()[0]
    expected = exact_inclusion([1 << n - least for n in exponents], k)
    torch.testing.assert_close(found[:total], torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-280)
    assert not found[total:].any()


@pytest.mark.parametrize("k", [1, 19, 300, 511, 512])
@pytest.mark.parametrize("exponent", [1.0, -1.0])
def test_all_stays_finite_and_of_the_right_size_at_extreme_odds(k, exponent):
    """Scores from 1e-300 to 1e300 to the power of alpha = 1; the draws keep what is all but certain."""
    log_odds = exponent * torch.linspace(-300, 300, 512, dtype=torch.float64).unsqueeze(0) * math.log(10)
    table = ConditionalPoisson(log_odds, torch.ones_like(log_odds, dtype=torch.bool), torch.tensor([k]))
    pi = table.inclusion()
    assert pi.isfinite().all()
    assert pi.min() >= 0
    assert pi.max() <= 1 + 1e-12
    assert math.isclose(pi.sum(), k, rel_tol=1e-12)
    chosen = table.sample(hash_key(0, torch.arange(40).unsqueeze(0)))
    assert (chosen.sum(dim=2) == k).all()
    assert chosen[:, :, pi[0] > 1 - 1e-9].all()
    assert not chosen[:, :, pi[0] < 1e-9].any()
    positions, valid = positions_of(torch.nn.functional.pad(chosen[0], (0, 1)), torch.full((40,), k))
    assert table.log_probability(positions, valid).isfinite().all()


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(-200, 200), min_size=1, max_size=40), st.data())
def test_odds_have_no_scale_and_leaving_out_mirrors_taking(exponents, data):
    """Odds times a constant are the same design; those left out are chosen with the inverse odds."""
    total = len(exponents)
    k = data.draw(st.integers(1, total))
    shift = data.draw(st.integers(-500, 500))
    pi = powers(exponents, k).inclusion()[0]
    scaled = powers([n + shift for n in exponents], k).inclusion()[0]
    torch.testing.assert_close(scaled, pi, rtol=1e-9, atol=1e-12)
    if k < total:
        mirrored = powers([-n for n in exponents], total - k).inclusion()[0]
        torch.testing.assert_close(mirrored, 1 - pi, rtol=0, atol=1e-10)
    else:
        torch.testing.assert_close(pi, torch.ones_like(pi))


def test_rows_do_not_see_each_other():
    """Rows of other sizes and counts beside them change nothing but the last digits."""
    sizes, counts = [8, 3, 1, 6, 5], [3, 3, 1, 1, 4]
    log_odds = torch.randn(5, 8, dtype=torch.float64)
    maskable = torch.arange(8) < torch.tensor(sizes).unsqueeze(1)
    together = ConditionalPoisson(log_odds, maskable, torch.tensor(counts))
    keys = hash_key(1, torch.arange(100).view(5, 20))
    for row in range(5):
        alone = ConditionalPoisson(log_odds[[row]], maskable[[row]], torch.tensor([counts[row]]))
        torch.testing.assert_close(together.inclusion()[row], alone.inclusion()[0], rtol=1e-12, atol=0)
        assert torch.equal(together.sample(keys)[row], alone.sample(keys[[row]])[0])


@pytest.mark.parametrize(("certain", "k"), [([2], 1), ([0, 5], 3), ([1, 2, 3], 3)])
def test_infinite_odds_are_certain(certain, k):
    """Such positions are in every subset, and the others follow their own odds among themselves."""
    log_odds = torch.tensor([[0.0, 1.0, -1.0, 0.5, 2.0, 0.3]], dtype=torch.float64)
    log_odds[0, certain] = torch.inf
    others = [i for i in range(6) if i not in certain]
    table = ConditionalPoisson(log_odds, torch.ones(1, 6, dtype=torch.bool), torch.tensor([k]))
    pi = table.inclusion()[0]
    torch.testing.assert_close(pi[certain], torch.ones(len(certain), dtype=torch.float64))
    if k > len(certain):
        rest = ConditionalPoisson(
            log_odds[:, others], torch.ones(1, len(others), dtype=torch.bool), torch.tensor([k - len(certain)])
        )
        torch.testing.assert_close(pi[others], rest.inclusion()[0], rtol=1e-12, atol=0)
    else:
        assert pi[others].max() < 1e-12
    chosen = table.sample(hash_key(0, torch.arange(50).unsqueeze(0)))[0]
    assert chosen[:, certain].all()
    assert (chosen.sum(dim=1) == k).all()
    missing = torch.tensor([(others + certain)[:k]])
    assert table.log_probability(missing, missing >= 0).item() == -math.inf


# Odds for given inclusion probabilities.


def aims(total: int, k: int, sigma: float, rows: int = 20, seed: int = 0):
    """Inclusion probabilities in proportion to lognormal scores, capped at one."""
    sentences = batch(*[("a" * total + "|", k)] * rows)
    scores = torch.randn(rows, total + 1, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return capped((sigma * scores).exp() * sentences.maskable, sentences), sentences.maskable, sentences.counts


def misses(total: int, k: int, sigma: float, steps: int) -> float:
    """Largest relative difference between the probabilities that are aimed at and those that are reached."""
    target, maskable, counts = aims(total, k, sigma)
    odds = log_odds_for(target, maskable, counts, steps)
    assert odds.dtype == torch.float64
    reached = ConditionalPoisson(odds, maskable, counts).inclusion()
    return float(((reached - target).abs()[maskable] / target[maskable]).max())


def test_two_steps_reach_their_aim_within_a_hundredth():
    assert misses(126, 19, 0.5, steps=2) < 0.01


def test_steps_come_closer_and_in_the_end_arrive():
    for total, k, sigma in ((126, 19, 0.5), (126, 19, 1.5), (126, 120, 0.5), (20, 3, 0.5), (8, 3, 0.5)):
        errors = [misses(total, k, sigma, steps) for steps in (0, 1, 2, 60)]
        assert errors == sorted(errors, reverse=True)
        assert errors[-1] < 1e-9


@pytest.mark.parametrize(
    ("total", "k", "sigma"), [(2, 1, 0.5), (3, 2, 0.5), (4, 1, 1.5), (4, 2, 1.5), (5, 1, 1.5), (8, 7, 0.5)]
)
def test_steps_arrive_in_short_sentences(total, k, sigma):
    assert misses(total, k, sigma, steps=60) < 1e-3


def test_equal_aims_are_met_at_once():
    """`k = T` has no freedom, equal probabilities mean equal odds: no step is needed."""
    for total, k in ((4, 4), (5, 2), (1, 1)):
        assert misses(total, k, 0.0, steps=0) < 1e-12
        assert misses(total, k, 0.0, steps=2) < 1e-12


def test_certain_positions_have_infinite_odds_and_others_finite_ones():
    target, maskable, counts = aims(12, 4, 1.5)
    odds = log_odds_for(target, maskable, counts, 2)
    assert (target == 1).any()
    assert torch.equal(odds == torch.inf, target == 1)
    assert odds[maskable & (target < 1)].isfinite().all()


def test_small_designs_against_explicit_products():
    """Random odds, explicit sums over all subsets: what the powers of two above do not cover."""
    sentences = batch(("ab|cdef", 2), ("|abcdefg", 5))
    log_odds = torch.randn(2, 8, dtype=torch.float64)
    table = ConditionalPoisson(log_odds, sentences.maskable, sentences.counts)
    for index in range(2):
        row = row_of(sentences, log_odds, index)
        found = {s: math.exp(sum(row.score(place) for place in s)) for s in row.subsets}
        positions = torch.tensor(list(found)).repeat(2, 1)
        logs = table.log_probability(positions, positions >= 0).view(2, -1)[index]
        expected = torch.tensor(list(found.values()), dtype=torch.float64)
        torch.testing.assert_close(logs.exp(), expected / expected.sum(), rtol=1e-12, atol=0)
