"""Sentences, and the two ways to write down a mask."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradvar.masking.masks import Masks, chosen_of, first_in_order, positions_of
from tests.masking.enumeration import batch

THREE = batch(("|ab|c.", 2), ("aab", 1), ("|a|", 1))


def test_a_batch_knows_its_totals_and_its_padding():
    assert THREE.totals.tolist() == [3, 3, 1]
    assert THREE.attended.tolist() == [[True] * 5 + [False], [True] * 3 + [False] * 3, [True] * 3 + [False] * 3]
    assert THREE.words.tolist() == [[0, 1, 2, 3, 4, 5], [0, 0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5]]


@pytest.mark.parametrize("part", ["ids", "maskable", "counts", "words", "keys"])
def test_rows_are_repeated_together_or_taken(part):
    """Every part alike; no two rows of this batch share any of them but the counts."""
    whole = getattr(THREE, part).tolist()
    assert getattr(THREE.spread(2), part).tolist() == [x for x in whole for _ in range(2)]
    assert getattr(THREE.rows([2, 0, 2]), part).tolist() == [whole[2], whole[0], whole[2]]


@pytest.mark.parametrize("kind", [torch.int64, torch.float64])
def test_the_first_in_order_are_chosen_and_listed_in_place(kind):
    """The left one of equals first; what is not maskable never, however early."""
    order = torch.tensor([[5, 3, 3, 1, 3], [-9, 2, 0, -1, 7]], dtype=kind)
    maskable = torch.tensor([[True, True, True, False, True], [True] * 5])
    positions, valid = first_in_order(order, maskable, torch.tensor([2, 3]))
    assert positions.tolist() == [[1, 2, 0], [0, 2, 3]]
    assert valid.tolist() == [[True, True, False], [True, True, True]]


@pytest.mark.parametrize("kind", [torch.int64, torch.float64])
def test_all_positions_can_come_first(kind):
    order = torch.tensor([[3, 1, 2], [3, 2, 1]], dtype=kind)
    positions, valid = first_in_order(order, torch.ones(2, 3, dtype=torch.bool), torch.tensor([3, 1]))
    assert positions.tolist() == [[0, 1, 2], [2, 0, 0]]
    assert valid.tolist() == [[True] * 3, [True, False, False]]


MASKS = st.integers(1, 9).flatmap(
    lambda length: st.lists(
        st.lists(st.booleans(), min_size=length, max_size=length).filter(any), min_size=1, max_size=5
    )
)


@settings(deadline=None)
@given(MASKS)
def test_lists_and_flags_are_inverse(rows):
    """With a position behind that is in no mask; without it, see below."""
    chosen = torch.tensor([[*row, False] for row in rows])
    positions, valid = positions_of(chosen, chosen.sum(dim=1))
    assert positions.shape == valid.shape == (len(rows), chosen.sum(dim=1).max())
    assert [p[v].tolist() for p, v in zip(positions, valid, strict=True)] == [
        row.nonzero().flatten().tolist() for row in chosen
    ]
    assert not positions[~valid].any()
    assert torch.equal(chosen_of(positions, valid, chosen.shape[1]), chosen)
    assert torch.equal(chosen_of(positions, valid, chosen.shape[1] + 2)[:, : chosen.shape[1]], chosen)


def test_one_mask_may_have_all_positions():
    """Then there are as many slots as positions; the other row's one target is the last position."""
    chosen = torch.tensor([[False, False, True], [True, True, True]])
    positions, valid = positions_of(chosen, torch.tensor([1, 3]))
    assert positions.tolist() == [[2, 0, 0], [0, 1, 2]]
    assert valid.tolist() == [[True, False, False], [True, True, True]]


def test_empty_slots_choose_nothing():
    """Their position is 0, which is a place like any other."""
    positions, valid = torch.tensor([[2, 0], [0, 1]]), torch.tensor([[True, False], [True, True]])
    assert chosen_of(positions, valid, 3).tolist() == [[False, False, True], [True, True, False]]


def test_masks_cannot_be_changed():
    masks = Masks(*[torch.zeros(1, 1)] * 4)
    with pytest.raises(AttributeError):
        masks.weights = torch.ones(1, 1)
