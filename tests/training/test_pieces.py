"""Pieces of a sequence are what the text would have been cut into at once."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradvar.errors import GradvarError
from gradvar.huggingface.corpus import tokenised
from gradvar.training.pieces import Frame, cut, piece, units_of
from tests import cases

FRAME = Frame((cases.CLS,), (cases.SEP,))
SPECIAL = range(5)


def framed(body):
    return np.array([cases.CLS, *body, cases.SEP], dtype=np.int32)


@given(st.lists(st.integers(1, 20), min_size=1, max_size=60), st.integers(3, 40))
def test_a_document_in_pieces_is_the_document_cut_at_once(body, length):
    """`tokenised` cuts a document; its one long sequence is cut here. Token 1 is the unknown one."""
    words = " ".join("§" if token == 1 else f"w{token}" for token in body)
    expected = list(tokenised([[words]], cases.tokenizer(), length, pack=True))
    ids = framed(cases.tokenizer()(words, add_special_tokens=False)["input_ids"])
    bounds = [(start, stop) for start, stop, _, _ in cut(ids, FRAME, length, SPECIAL)]
    found = [piece(ids, FRAME, *part) for part in bounds]
    if len(body) + 2 < -(-length // 2):  # which `tokenised` drops; here it is all there is
        assert len(expected) == 0
        found = []
    assert [x.tolist() for x in found] == [x.tolist() for x in expected]


@given(st.lists(st.integers(0, 20), min_size=1, max_size=60), st.integers(3, 40))
def test_what_a_piece_says_of_itself(body, length):
    ids = framed(body)
    end = 0
    for start, stop, tokens, maskable in cut(ids, FRAME, length, SPECIAL):
        shown = piece(ids, FRAME, start, stop)
        assert start >= end
        assert tokens == len(shown) <= length
        assert maskable == (shown >= 5).sum() > 0
        assert shown.dtype == ids.dtype
        assert (shown[0], shown[-1]) == (cases.CLS, cases.SEP)
        end = stop


def test_a_sequence_without_the_frame_is_cut_without_it():
    ids = np.arange(5, 17)
    assert [piece(ids, FRAME, a, b).tolist() for a, b, _, _ in cut(ids, FRAME, 5, SPECIAL)] == [
        [5, 6, 7, 8, 9],
        [10, 11, 12, 13, 14],
    ]
    assert FRAME.of(np.array([cases.CLS])) == Frame()


def test_units_of_all_sequences():
    units = units_of([framed([5, 6, 7, 8]), framed([1, 1]), framed([9])], FRAME, 4, SPECIAL)
    assert units.rows.tolist() == [0, 0, 2]
    assert units.starts.tolist() == [0, 2, 0]
    assert units.stops.tolist() == [2, 4, 1]
    assert units.lengths.tolist() == [4, 4, 3]
    assert units.totals.tolist() == [2, 2, 1]


def test_no_room():
    with pytest.raises(GradvarError, match=r"training\.max_length 2 leaves no room beside 2 special tokens"):
        list(cut(framed([5]), FRAME, 2, SPECIAL))
