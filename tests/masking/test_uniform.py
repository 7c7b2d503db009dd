"""The number of targets, and subsets that are uniform."""

from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from gradvar.masking.hashing import hash_key
from gradvar.masking.uniform import target_count, uniform_subset


@pytest.mark.parametrize(
    ("maskable", "rate", "count"),
    [
        (1, 0.15, 1),
        (1, 0.99, 1),
        (3, 0.15, 1),
        (10, 0.15, 2),  # 1.5 is rounded up
        (30, 0.15, 5),  # 4.5 too, unlike half to even
        (20, 0.15, 3),
        (126, 0.15, 19),
        (126, 0.3, 38),
        (7, 0.999, 7),
    ],
)
def test_target_count(maskable, rate, count):
    assert target_count(torch.tensor([maskable]), rate).tolist() == [count]


@settings(deadline=None)
@given(st.integers(1, 600), st.floats(0, 1, exclude_min=True, exclude_max=True))
def test_target_count_is_possible(maskable, rate):
    assert 1 <= target_count(torch.tensor(maskable), rate).item() <= maskable


def keys_of(seed: int, cells: int, length: int) -> torch.Tensor:
    return hash_key(seed, torch.arange(cells).unsqueeze(1), torch.arange(length))


@settings(deadline=None)
@given(st.lists(st.lists(st.booleans(), min_size=9, max_size=9).filter(any), min_size=1, max_size=6), st.data())
def test_subsets_are_distinct_maskable_positions(rows, choose):
    maskable = torch.tensor(rows)
    counts = torch.tensor([choose.draw(st.integers(1, sum(row))) for row in rows])
    positions, valid = uniform_subset(keys_of(choose.draw(st.integers(0, 99)), *maskable.shape), maskable, counts)
    assert positions.shape == valid.shape == (len(rows), counts.max())
    assert valid.sum(dim=1).tolist() == counts.tolist()
    for row, at, keep in zip(rows, positions, valid, strict=True):
        chosen = at[keep].tolist()
        assert chosen == sorted(set(chosen))
        assert all(row[position] for position in chosen)
        assert not at[~keep].any()


def test_subsets_are_uniform():
    """Chi-square over the C(5, 2) subsets of 20,000 cells; right draws fail for one seed in a million."""
    maskable = torch.tensor([False, True, True, False, True, True, True, False])
    cells = 20_000
    positions, _ = uniform_subset(keys_of(0, cells, len(maskable)), maskable.expand(cells, -1), torch.full((cells,), 2))
    found = positions.tolist()
    subsets = list(combinations([1, 2, 4, 5, 6], 2))
    counts = [found.count(list(subset)) for subset in subsets]
    assert sum(counts) == cells
    assert stats.chisquare(counts).pvalue > 1e-6


def test_a_cell_does_not_depend_on_the_others():
    """Neither on the padding after it, nor on cells with more targets beside it."""
    maskable = torch.ones(2, 6, dtype=torch.bool)
    keys = keys_of(0, 2, 6)
    alone, _ = uniform_subset(keys[:1], maskable[:1], torch.tensor([2]))
    wider = torch.cat([maskable, torch.zeros(2, 3, dtype=torch.bool)], dim=1)
    beside, _ = uniform_subset(keys_of(0, 2, 9), wider, torch.tensor([2, 5]))
    assert beside[0, :2].tolist() == alone[0].tolist()
