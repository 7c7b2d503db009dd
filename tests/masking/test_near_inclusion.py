"""Rosén's approximation of the inclusion probabilities of successive draws."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradvar.masking.designs import mix
from gradvar.masking.masks import Sentences
from gradvar.masking.units import Hard, Span, WholeWord, near_inclusion
from tests.masking.enumeration import SENTENCES, batch, scores_of


def sentences_of(*rows: tuple[int, int]) -> Sentences:
    """Rows of `(T, k)`."""
    return batch(*((f"|{'a' * total}|", count) for total, count in rows))


def scores_for(sentences: Sentences, sigma: float, seed: int = 0) -> torch.Tensor:
    """Lognormal ones, of mean one in every row."""
    raw = torch.from_numpy(np.random.default_rng(seed).lognormal(0, sigma, sentences.ids.shape)) * sentences.maskable
    return raw / raw.sum(dim=1, keepdim=True) * sentences.totals.unsqueeze(1)


@given(st.integers(1, 40), st.integers(1, 40), st.floats(0, 4), st.integers(0, 2**30))
@settings(max_examples=200, deadline=None)
def test_it_sums_to_k_and_grows_with_the_score(total, count, sigma, seed):
    """The time is halved in 60 times, to the last bits of it; so the sum is k but for rounding."""
    one = sentences_of((total, min(count, total)))
    scores = scores_for(one, sigma, seed)
    pi = near_inclusion(one, scores)
    assert float(pi.sum()) == pytest.approx(min(count, total), rel=1e-12)
    inside = pi[0, 1:-1][scores[0, 1:-1].argsort()]
    assert (inside.diff() >= 0).all()
    assert ((inside > 0) & (inside <= 1)).all()


def test_equal_scores_have_equal_chances():
    expected = SENTENCES.maskable * (SENTENCES.counts.double() / SENTENCES.totals).unsqueeze(1)
    found = near_inclusion(SENTENCES, scores_of("equal"))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


def test_all_positions_are_certain_where_all_are_targets():
    """Down to the lowest score that there is, a millionth of the mean; to the last bit that tells their sum from k."""
    one = sentences_of((6, 6))
    scores = scores_for(one, 1.0)
    scores[0, 3] = 1e-6
    torch.testing.assert_close(near_inclusion(one, scores), one.maskable.double(), rtol=0, atol=1e-14)


def test_it_is_rosens_formula():
    """`1 - exp(-c s)` with one `c` a row, which the logarithms give back; the scale of scores is of no account."""
    scores = scores_of("mild")
    pi = near_inclusion(SENTENCES, scores)
    rates = -torch.log1p(-pi) / scores
    for row in (0, 1, 4, 5, 6):
        mine = rates[row, SENTENCES.maskable[row]]
        torch.testing.assert_close(mine, mine[:1].expand_as(mine), rtol=1e-9, atol=0)
    torch.testing.assert_close(near_inclusion(SENTENCES, 37 * scores), pi, rtol=1e-12, atol=0)
    assert (pi[~SENTENCES.maskable] == 0).all()
    elsewhere = scores.masked_fill(~SENTENCES.maskable, 5.0)
    assert torch.equal(near_inclusion(SENTENCES, elsewhere), pi)


def test_padding_and_other_rows_change_nothing():
    scores = scores_of("skewed")
    whole = near_inclusion(SENTENCES, scores)
    for row in range(len(scores)):
        width = int(SENTENCES.attended[row].sum())
        alone = SENTENCES.rows([row])
        alone = Sentences(*(x[:, :width] if x.ndim > 1 else x for x in alone.parts))
        assert torch.equal(near_inclusion(alone, scores[row : row + 1, :width]), whole[row : row + 1, :width])


def both(total: int, count: int, sigma: float, copies: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Near and exact chances of the positions of a sentence whose scores come several times over."""
    scores = scores_for(sentences_of((total, count)), sigma)[:, 1:-1].repeat(1, copies)
    scores = torch.nn.functional.pad(scores, (1, 1))
    long = sentences_of((total * copies, count * copies))
    return near_inclusion(long, scores)[0, 1:-1], Hard().inclusion(long, scores)[0, 1:-1]


@pytest.mark.parametrize("sigma", [0.3, 0.7, 1.2])
def test_short_sentences_are_far_nearer_than_uniform_chances(sigma):
    """Of every T up to 12 and every k the largest error is less than half that of `k/T`.

    In figures, for lognormal scores of spread 0.3, 0.7 and 1.2: 0.018, 0.039 and 0.062 at most, of which 0.004, 0.012
    and 0.022 at T = 12, k = 2.
    """
    for total in range(2, 13):
        for count in range(1, total):
            near, exact = both(total, count, sigma)
            assert (near - exact).abs().max() < (exact - count / total).abs().max() / 2


@pytest.mark.parametrize("sigma", [0.3, 0.7, 1.2])
def test_it_is_exact_as_sentences_grow(sigma):
    """The same scores twice as often have the same near chances; the exact ones come twice as near (1.5 at least)."""
    errors, first = [], both(7, 2, sigma)[0]
    for copies in (1, 2, 4, 8, 16):
        near, exact = both(7, 2, sigma, copies)
        torch.testing.assert_close(near, first.repeat(copies), rtol=1e-12, atol=0)
        errors.append(float((near - exact).abs().max()))
    assert all(a / b > 1.5 for a, b in pairwise(errors))


@pytest.mark.parametrize("design", [WholeWord(), Span(length=3), Hard(), WholeWord(epsilon=0.3)], ids=str)
def test_units_arrive_together(design):
    """Against exact chances, words and spans of 24 positions: nearer than as if positions came by themselves."""
    one = batch((f"|{'abb' * 8}|", 7))
    scores = scores_for(one, 0.9)
    exact = design.inclusion(one, scores)[0, 1:-1]
    found = design.near_inclusion(one, scores)[0, 1:-1]
    alone = mix(near_inclusion(one, scores), one, design.epsilon)[0, 1:-1]
    assert float((found - exact).abs().max()) < 0.12
    if not isinstance(design, Hard):
        assert float((found - exact).abs().max()) < 0.5 * float((alone - exact).abs().max())
