"""Scores that need no model, by hand; the objective is a stub."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from gradvar.errors import GradvarError
from gradvar.masking.hashing import hash_key
from gradvar.masking.proposal import parse_proposal
from gradvar.masking.scores import (
    FLOOR,
    SCORES,
    AtTargets,
    Frequency,
    Permuted,
    Power,
    TokenTable,
    Uniform,
    is_measured,
    positive,
    set_scores,
)
from tests.masking.enumeration import RARE, batch

SENTENCES = batch(("|ab|cd.", 2), ("aab", 1), ("|b|", 1))
TOKENS = {name: ord(name) for name in "|abcd*'\"" if name != "*"} | {"[MASK]": 0, "ä#1": 1}


@dataclass
class Stub:
    """An objective with counts of a corpus, measurements, and norms of sets."""

    counts: torch.Tensor | None = None
    measured: Mapping[str, torch.Tensor] | None = None

    def token_counts(self):
        return self.counts

    def vocabulary(self):
        return TOKENS

    def at_targets(self, quantity, sentences):
        return self.measured[quantity]

    def norms_of_sets(self, sentences):
        return lambda positions, valid, keys: (positions * valid).sum(dim=1).double() + keys


def masked(rows):
    """A score's values where maskable."""
    return [row[keep].tolist() for row, keep in zip(rows, SENTENCES.maskable, strict=True)]


def test_uniform_scores_are_one():
    found = Uniform()(SENTENCES, Stub())
    assert found.dtype == torch.float64
    assert masked(found) == [[1.0] * 4, [1.0] * 3, [1.0]]


def test_frequency_is_a_unigram_models_loss():
    """`-log` of the relative frequency; a token that the corpus lacks counts as seen once."""
    counts = torch.zeros(128, dtype=torch.float64)
    counts[[ord("a"), ord("b"), ord("c"), ord("|")]] = torch.tensor([6.0, 2.0, 1.0, 11.0], dtype=torch.float64)
    found = Frequency()(SENTENCES, Stub(counts))
    loss = {"a": -math.log(6 / 20), "b": -math.log(2 / 20), "c": math.log(20), "d": math.log(20)}
    for row, text in zip(masked(found), ("abcd", "aab", "b"), strict=True):
        np.testing.assert_allclose(row, [loss[token] for token in text], rtol=1e-12)
    assert (positive(found, SENTENCES, "frequency") >= 0).all()


def test_scores_at_targets_are_root_mean_squares_over_contexts():
    """Not means: the root mean square is what optimal inclusion probabilities are proportional to."""
    q = torch.rand(3, *SENTENCES.ids.shape, dtype=torch.float64)
    for quantity in ("loss", "logit", "last-layer", "gradient"):
        found = AtTargets(quantity)(SENTENCES, Stub(measured={quantity: q}))
        expected = np.sqrt(np.mean(q.numpy() ** 2, axis=0))
        np.testing.assert_allclose(found, expected, rtol=1e-12)


SETS = (torch.tensor([[1, 2], [4, 5]]), torch.tensor([[True, True], [True, False]]), torch.tensor([100, 200]))


def test_only_the_oracle_scores_whole_sets():
    """And its powers do; a placebo must not, for it would see the truth."""
    assert set_scores(AtTargets("gradient"), SENTENCES, Stub())(*SETS).tolist() == [103, 204]
    squared = set_scores(Power(AtTargets("gradient"), 2), SENTENCES, Stub())
    assert squared(*SETS).tolist() == [103**2, 204**2]
    assert Power(AtTargets("gradient"), 2).of_sets(SENTENCES, Stub())(*SETS).tolist() == [103**2, 204**2]
    others = (AtTargets("loss"), Uniform(), Frequency(), Power(Uniform(), 2), Permuted(AtTargets("gradient")))
    assert [set_scores(other, SENTENCES, Stub()) for other in others] == [None] * 5


@pytest.mark.parametrize(
    ("score", "name"),
    [
        (Uniform(), "uniform"),
        (AtTargets("gradient"), "oracle"),
        (AtTargets("logit"), "logit"),
        (Frequency(), "frequency"),
        (TokenTable("some/where.tsv"), "file=some/where.tsv"),
        (Permuted(AtTargets("loss")), "loss-permuted"),
        (Power(AtTargets("loss"), 0.5), "loss^0.5"),
        (Power(Frequency(), -2.0), "frequency^-2"),
    ],
)
def test_names(score, name):
    assert str(score) == name


def test_the_list_of_scores_goes_by_their_names():
    assert {name: str(score) for name, score in SCORES.items()} == {name: name for name in SCORES}
    assert list(SCORES) == ["uniform", "oracle", "logit", "last-layer", "loss", "frequency"]


# Tables by token.


def table(tmp_path, text):
    path = tmp_path / "scores.tsv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return TokenTable(str(path))


def test_a_table_scores_its_tokens(tmp_path):
    """Others have the star's; the last of several lines counts, empty lines do not, quotation marks are tokens."""
    score = table(tmp_path, "a\t2\n\n'\t7\n\"\t7\n[MASK]\t1\nä#1\t3\nb\t9\n*\t0.5\nb\t1e-3\n")
    assert masked(score(SENTENCES, Stub())) == [[2, 1e-3, 0.5, 0.5], [2, 2, 1e-3], [1e-3]]
    assert score(SENTENCES, Stub()).dtype == torch.float64


def test_a_table_without_a_star_needs_the_maskable_tokens_alone(tmp_path):
    score = table(tmp_path, "a\t2\nb\t0\r\nc\t1\nd\t4\n")
    assert masked(score(SENTENCES, Stub())) == [[2, 0, 1, 4], [2, 2, 0], [0]]


def message(score):
    with pytest.raises(GradvarError) as error:
        score(SENTENCES, Stub())
    return str(error.value).replace(score.path, "PATH")


def test_a_token_without_a_score_is_named(tmp_path):
    score = table(tmp_path, "a\t2\nb\t1\nd\t1\n")
    assert message(score) == "PATH has no score for the token 'c'; add it, or a line '*<TAB>score'"


@pytest.mark.parametrize("text", ["a\t2\nb 1\n", "a\t2\nb\t1\t1\n", "a\t2\nb\tmany\n", "a\t2\nb\n", "a\t2\nb\t\n"])
def test_a_malformed_line_is_named(tmp_path, text):
    assert message(table(tmp_path, text)) == "PATH, line 2: not 'token<TAB>score'; one token and one number a line"


def test_a_file_that_is_not_there_is_named(tmp_path):
    missing = TokenTable(str(tmp_path / "none.tsv"))
    assert message(missing) == "the score file 'PATH' cannot be read (No such file or directory)"
    folder = TokenTable(str(tmp_path))
    assert message(folder) == "the score file 'PATH' cannot be read (Is a directory)"


@pytest.mark.parametrize("value", ["-1", "nan", "inf", "1e999"])
def test_a_value_that_is_no_score_is_named(tmp_path, value):
    score = table(tmp_path, f"a\t2\nb\t{value}\n")
    assert message(score) == f"PATH, line 2: the score {value} is not a number from 0 up"


def test_a_token_that_the_checkpoint_lacks_is_named(tmp_path):
    assert message(table(tmp_path, "a\t2\nzebra\t1\n")) == "PATH, line 2: 'zebra' is no token of the checkpoint"


@pytest.mark.parametrize("text", [b"w\xff\t1\n", b"a" * 200_000 + b"\t1\n"])
def test_a_file_that_is_no_text_is_refused(tmp_path, text):
    assert "PATH" in message(table(tmp_path, text))


# The placebo.


def test_a_permutation_keeps_the_values_of_each_sentence():
    """Those of maskable positions among themselves, by the sentence's key alone."""
    values = torch.arange(21, dtype=torch.float64).view(3, 7)
    score = Permuted(AtTargets("loss"))
    for seed in range(20):
        some = replace(SENTENCES, keys=hash_key(seed, torch.arange(3)))
        found = score(some, Stub(measured={"loss": values.unsqueeze(0)}))
        for row, kept in zip(masked(found), masked(values), strict=True):
            assert sorted(row) == kept
        back = some.rows([2, 1, 0])
        assert torch.equal(score(back, Stub(measured={"loss": values[[2, 1, 0]].unsqueeze(0)})).flip(0), found)
        wide = batch(("|ab|cd.", 2), ("aab", 1), ("|b|", 1), ("." * 9 + "a", 1)).rows([0, 1, 2])
        wide = replace(wide, keys=some.keys)
        padded = torch.nn.functional.pad(values, (0, 3))
        assert torch.equal(score(wide, Stub(measured={"loss": padded.unsqueeze(0)}))[:, :7], found)


def test_permutations_are_uniform():
    """Chi-square over the 24 orders of four values; a right hash fails for one seed in a million."""
    rows = 12_000
    some = batch(("|ab|cd.", 2)).spread(rows)
    some = replace(some, keys=hash_key(3, torch.arange(rows)))
    values = torch.tensor([0.0, 0, 1, 0, 2, 3, 0], dtype=torch.float64).expand(1, rows, -1)
    found = Permuted(AtTargets("loss"))(some, Stub(measured={"loss": values}))[:, [1, 2, 4, 5]]
    orders = (found * torch.tensor([64, 16, 4, 1])).sum(dim=1).long()
    counts = orders.bincount()
    assert (counts > 0).sum() == 24
    assert stats.chisquare(counts[counts > 0]).pvalue > RARE


# Powers, and what is made of any score.


def test_a_power_is_taken_of_what_is_positive():
    """Of multiples of the mean, with the floor: a zero has a millionth, and its inverse a million."""
    values = torch.tensor([[9.0, 1, 3, 9, 0, 4, 9], [2, 2, 2, 9, 9, 9, 9], [9, 5, 9, 9, 9, 9, 9]], dtype=torch.float64)
    task = Stub(measured={"loss": values.unsqueeze(0)})
    found = masked(Power(AtTargets("loss"), 2)(SENTENCES, task))
    np.testing.assert_allclose(found[0], [0.25, 2.25, 1e-12, 4], rtol=1e-12)
    np.testing.assert_allclose(found[1] + found[2], [1, 1, 1, 1])
    inverse = positive(Power(AtTargets("loss"), -1)(SENTENCES, task), SENTENCES, "loss^-1")
    expected = np.array([2, 2 / 3, 1e6, 1 / 2])
    np.testing.assert_allclose(masked(inverse)[0], expected / expected.mean(), rtol=1e-12)
    assert masked(Power(AtTargets("loss"), 0)(SENTENCES, task)) == [[1.0] * 4, [1.0] * 3, [1.0]]


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.sampled_from([0.0, 1e-300, 1e-9, 0.3, 1.0, 7.0, 1.7e308]), min_size=21, max_size=21),
    st.floats(-300, 300),
)
def test_positive_scores_have_mean_one_and_a_floor(values, exponent):
    """And no scale, be the sum beyond the largest number: the unit does not matter; all zeros are all ones."""
    scores = torch.tensor(values, dtype=torch.float64).view(3, 7)
    found = positive(scores, SENTENCES, "loss")
    assert found.dtype == torch.float64
    assert not found[~SENTENCES.maskable].any()
    for row, raw in zip(masked(found), masked(scores), strict=True):
        expected = np.array(raw) / (max(raw) or 1.0) if max(raw) else np.ones(len(raw))
        expected = np.maximum(expected / expected.mean(), FLOOR)
        np.testing.assert_allclose(row, expected, rtol=1e-12)
    if 0 not in values and max(values) < 1e308 and min(values) > 1e-300:
        scaled = positive(scores * 10**exponent, SENTENCES, "loss")
        torch.testing.assert_close(scaled, found, rtol=1e-9, atol=0)


def test_the_floor_is_a_millionth_of_the_mean():
    assert FLOOR == 1e-6
    scores = torch.tensor([[0, 4, 0, 0, 4, 1e-9, 0]], dtype=torch.float64)
    found = positive(scores, SENTENCES.rows([0]), "loss")
    np.testing.assert_allclose(found[0], [0, 2, 1e-6, 0, 2, 1e-6, 0], rtol=1e-9)


@pytest.mark.parametrize(("value", "shown"), [(-0.25, "-0.25"), (math.nan, "nan"), (math.inf, "inf")])
def test_scores_that_are_none_are_refused_where_maskable(value, shown):
    scores = torch.ones(3, 7, dtype=torch.float64)
    scores[~SENTENCES.maskable] = value
    assert positive(scores, SENTENCES, "mine").sum() == 8
    scores[1, 2] = value
    with pytest.raises(GradvarError) as error:
        positive(scores, SENTENCES, "mine")
    assert str(error.value) == (
        f"the score 'mine' gives {shown} to position 2 of a sentence; scores must be finite and not negative"
    )


def test_single_precision_scores_become_double():
    assert positive(torch.ones(3, 7), SENTENCES, "mine").dtype == torch.float64


@pytest.mark.parametrize(
    ("text", "measured"),
    [
        ("oracle/pps", True),
        ("logit^0.5/pps", True),
        ("loss/midzuno", True),
        ("uniform/simple", False),
        ("frequency/pps", False),
    ],
)
def test_which_scores_are_measured_by_passes_of_their_own(text, measured):
    score = parse_proposal(text).score
    assert is_measured(score) is measured
    assert is_measured(Permuted(score)) is measured
