"""Which tokens make one word."""

import numpy as np
import pytest
import torch
from transformers import BertTokenizerFast

from gradvar.huggingface.corpus import Corpus
from gradvar.huggingface.masked_lm import MaskedLM
from gradvar.huggingface.words import continuing, word_numbers
from tests import cases


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        (["[CLS]", "un", "##aff", "##able", "#"], ["##aff", "##able"]),
        (["<s>", "\u0120the", "re", "\u0120", "fore"], ["<s>", "re", "fore"]),
        (["<s>", "\u2581the", "re", "\u2581"], ["<s>", "re"]),
        (["a", "b", "ab"], []),
    ],
    ids=["WordPiece", "byte-level BPE", "SentencePiece", "no marks"],
)
def test_marks_of_vocabularies(tokens, expected):
    """Ids in any order, and with gaps."""
    vocabulary = {token: 2 * (len(tokens) - i) for i, token in enumerate(tokens)}
    found = continuing(vocabulary)
    assert (found.dtype, len(found)) == (np.dtype(bool), 2 * len(tokens) + 1)
    assert {token for token, i in vocabulary.items() if found[i]} == set(expected)
    assert found.sum() == len(expected)


def test_a_byte_level_vocabulary_may_hold_number_signs():
    """RoBERTa's and ModernBERT's do, from headings in Markdown."""
    found = continuing({"\u0120the": 0, "re": 1, "\u0120fore": 2, "##": 3})
    assert found.tolist() == [False, True, False, True]


@pytest.mark.parametrize(
    ("text", "numbers"),
    [  # | is special, . padding; capitals begin a word, small letters go on with one
        ("|AbbCd|", [0, 1, 1, 1, 2, 2, 3]),
        ("|abC|", [0, 1, 1, 2, 3]),  # what goes on with nothing begins
        ("|A|bb|..", [0, 1, 2, 3, 3, 4, 5, 6]),  # a special token ends a word
        ("Abb", [0, 0, 0]),
        ("ABC", [0, 1, 2]),
        ("||", [0, 1]),
    ],
)
def test_numbers_of_words(text, numbers):
    goes_on = torch.tensor([[c.islower() or c in "|." for c in text]])  # whatever is said of special tokens
    maskable = torch.tensor([[c.isalpha() for c in text]])
    found = word_numbers(goes_on, maskable)
    assert found.dtype == torch.int64
    assert found.tolist() == [numbers]


def test_rows_are_numbered_each_by_itself():
    goes_on = torch.tensor([[False, True, True], [False, False, True]])
    found = word_numbers(goes_on, torch.ones(2, 3, dtype=torch.bool))
    assert found.tolist() == [[0, 0, 0], [0, 1, 1]]


def masked_lm(*sentences: list[int], **options) -> MaskedLM:
    tokenizer = BertTokenizerFast(vocab={t: i for i, t in enumerate([*cases.SPECIAL, "un", "##aff", "##able", "the"])})
    rows = tuple(np.array([cases.CLS, *words, cases.SEP], dtype=np.int32) for words in sentences)
    return MaskedLM(cases.model("bert"), tokenizer, Corpus(rows, "words", "0" * 64, 12, 1e-3), **options)


def test_words_of_a_masked_lm_are_those_of_its_tokenizer():
    objective = masked_lm([5, 6, 7, 8, 5], [6, 8])
    assert objective.sentences([0, 1], 0).words.tolist() == [[0, 1, 1, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5, 6]]


def test_whole_words_are_targets_together():
    """Of 200 masks of three positions, each is the long word, or has both or one of the short ones whole."""
    objective = masked_lm([5, 6, 7, 8, 5, 6], mask_rate=0.5, proposal="uniform/whole-word")
    found = {tuple(p) for p in objective.draw([0], (200,), 0)["target_positions"].tolist()}
    # Words 1-3, 4 and 5-6, in any order of arrival; the last one is cut.
    assert found == {(1, 2, 3), (1, 2, 4), (4, 5, 6), (1, 5, 6)}
