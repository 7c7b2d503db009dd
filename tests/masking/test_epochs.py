"""Masks of successive visits: a sentence shared out, every single mask uniform."""

from collections import Counter
from itertools import combinations, permutations, product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from gradvar.masking import epochs
from gradvar.masking.epochs import EpochStratified
from gradvar.masking.hashing import hash_key
from gradvar.masking.masks import Masks, Sentences
from gradvar.masking.sets import Simple
from tests.masking.enumeration import RARE, ROWS, SENTENCES, batch, drawn

DESIGN = EpochStratified()
DRAWS = 10_000


def sentence(total: int, count: int) -> Sentences:
    return batch((f"|{'a' * total}|", count))


def visits(sentences: Sentences, numbers: list[int], seed: int = 0) -> list[list[tuple[int, ...]]]:
    """The masks of each row at the same visits."""
    keys = hash_key(seed, torch.arange(len(sentences.counts)))
    number = torch.tensor(numbers).expand(len(keys), -1)
    sets = drawn(DESIGN.visit(sentences, keys, number))
    return [sets[row * len(numbers) : (row + 1) * len(numbers)] for row in range(len(keys))]


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 3), st.integers(0, 2**60))
@settings(max_examples=200, deadline=None)
def test_a_cycle_is_disjoint_until_every_position_was_a_target(total, count, cycle, seed):
    """Where k does not divide T, the last mask is filled up from the beginning of the order, the first mask."""
    count = min(count, total)
    length = -(-total // count)
    (masks,) = visits(sentence(total, count), [cycle * length + v for v in range(length)], seed)
    assert {len(set(mask)) for mask in masks} == {count}
    assert set().union(*masks) == set(range(1, total + 1))
    assert len(set().union(*masks[:-1])) == count * (length - 1)
    again = set(masks[-1]) & set().union(*masks[:-1])
    assert len(again) == length * count - total
    assert length == 1 or again <= set(masks[0])


@pytest.fixture
def every_order(monkeypatch):
    """Row `r` goes through its positions in the order of the r-th permutation."""

    def order(keys: torch.Tensor, length: int) -> torch.Tensor:
        rows = list(permutations(range(length - 2)))
        assert len(keys) == len(rows)
        return torch.tensor([[0, *row, 0] for row in rows])

    monkeypatch.setattr(epochs, "position_order", order)


@pytest.mark.parametrize(("total", "count"), [(4, 2), (5, 2), (5, 3), (5, 4), (3, 1), (4, 4)])
@pytest.mark.usefixtures("every_order")
def test_every_visit_is_uniform_exactly(total, count):
    """Over all orders of the positions every subset comes equally often, at every visit of a cycle."""
    keys = torch.arange(len(list(permutations(range(total)))))
    every = sentence(total, count).spread(len(keys))
    for visit in range(-(-total // count)):
        found = Counter(drawn(DESIGN.visit(every, keys, torch.full((len(keys), 1), visit))))
        subsets = list(combinations(range(1, total + 1), count))
        assert found == dict.fromkeys(subsets, len(keys) // len(subsets))


@pytest.mark.parametrize("visit", [0, 1, 2, 3, 1000])
def test_every_visit_is_uniform_as_drawn(visit):
    """Chi-square over 10,000 keys of each sentence: right draws fail for one seed in a million each (25 tests)."""
    for row in (r for r in ROWS if 0 < int(SENTENCES.counts[r]) < int(SENTENCES.totals[r])):
        one = SENTENCES.rows([row]).spread(DRAWS)
        keys = hash_key(11, torch.arange(DRAWS))
        found = Counter(drawn(DESIGN.visit(one, keys, torch.full((DRAWS, 1), visit))))
        places = SENTENCES.maskable[row].nonzero().flatten().tolist()
        subsets = list(combinations(places, int(SENTENCES.counts[row])))
        assert set(found) <= set(subsets)
        assert stats.chisquare([found[s] for s in subsets]).pvalue > RARE


@pytest.mark.parametrize(("other", "alike"), [(1, "disjoint"), (3, "all")])
def test_visits_of_a_cycle_are_disjoint_pairs_alike_and_cycles_independent(other, alike):
    """T = 5, k = 2: the 30 disjoint pairs of visits 0 and 1, the 100 pairs of visits 0 and 3; one seed in a million."""
    keys = hash_key(12, torch.arange(DRAWS))
    number = torch.tensor([0, other]).expand(DRAWS, 2)
    sets = drawn(DESIGN.visit(sentence(5, 2).spread(DRAWS), keys, number))
    found = Counter(zip(sets[::2], sets[1::2], strict=True))
    pairs = [p for p in product(combinations(range(1, 6), 2), repeat=2) if alike == "all" or not {*p[0]} & {*p[1]}]
    assert set(found) <= set(pairs)
    assert stats.chisquare([found[p] for p in pairs]).pvalue > RARE


def rows_of(masks: Masks, rows: list[int], draws: int) -> list[tuple]:
    """Targets with their weights, and the key, of each cell of some rows."""
    cells = [row * draws + draw for row in rows for draw in range(draws)]
    weights = [masks.weights[c][masks.valid[c]].tolist() for c in cells]
    sets = drawn(masks)
    return list(zip([sets[c] for c in cells], weights, masks.keys[cells].tolist(), strict=True))


@pytest.mark.parametrize("rows", [[0], [5, 1], [3, 0, 6, 2], [6, 5, 4, 3, 2, 1, 0]])
def test_padding_other_rows_and_their_order_change_nothing(rows):
    keys, number = hash_key(3, torch.tensor(ROWS)), 5 * torch.arange(len(ROWS)).unsqueeze(1) + torch.arange(3)
    whole = DESIGN.visit(SENTENCES, keys, number)
    some = SENTENCES.rows(rows)
    width = int(some.attended.sum(dim=1).max())
    trimmed = Sentences(*(x[:, :width] if x.ndim > 1 else x for x in some.parts))
    part = DESIGN.visit(trimmed, keys[rows], number[rows])
    assert rows_of(part, list(range(len(rows))), 3) == rows_of(whole, rows, 3)


def test_several_draws_are_their_visits_one_after_another():
    keys, number = hash_key(4, torch.tensor(ROWS)), torch.tensor([[7, 2, 0, 7]]).expand(len(ROWS), -1)
    together = DESIGN.visit(SENTENCES, keys, number)
    for draw in range(4):
        alone = DESIGN.visit(SENTENCES, keys, number[:, draw : draw + 1])
        cells = [row * 4 + draw for row in ROWS]
        assert rows_of(alone, list(ROWS), 1) == rows_of(together, cells, 1)


def test_weights_are_those_of_uniform_masks_and_visits_are_corrupted_anew():
    """All keys of cells, of all rows and visits, differ: 140 hashes of 64 bits coincide once in 10^15 seeds."""
    keys, number = hash_key(5, torch.tensor(ROWS)), torch.arange(20).expand(len(ROWS), -1)
    masks = DESIGN.visit(SENTENCES, keys, number)
    counts = SENTENCES.counts.repeat_interleave(20).unsqueeze(1)
    assert torch.equal(masks.weights, masks.valid / counts.double())
    assert torch.equal(masks.valid.sum(dim=1, keepdim=True), counts)
    assert len(set(masks.keys.tolist())) == len(ROWS) * 20


def test_without_visits_it_is_uniform():
    """As a study of single cells draws it, mask for mask; and so are its chances."""
    keys = hash_key(6, torch.tensor(ROWS).unsqueeze(1), torch.arange(5))
    scores = SENTENCES.maskable.double()
    ours, theirs = (d.draw(SENTENCES, scores, keys) for d in (DESIGN, Simple()))
    assert rows_of(ours, list(ROWS), 5) == rows_of(theirs, list(ROWS), 5)
    torch.testing.assert_close(
        DESIGN.inclusion(SENTENCES, scores),
        SENTENCES.maskable * (SENTENCES.counts.double() / SENTENCES.totals).unsqueeze(1),
    )
