"""The arithmetic of the extrapolation to BERT-base."""

import numpy as np
import pytest
import regimes
import scaling
from scipy import stats

BETA = np.array([-3.0, 0.4, -0.7, 0.2])
CHECKPOINTS = [
    ("tiny", 1.4e6, 32, 0.2), ("tiny", 1.4e6, 32, 0.9), ("tiny", 1.4e6, 32, 1.4), ("mini", 4.8e6, 32, 0.3),
    ("mini", 4.8e6, 32, 1.6), ("small", 2.9e7, 64, 1.7), ("adapted", 1.7e6, 32, 2.9), ("adapted", 1.7e6, 64, 3.2),
    ("adapted", 1.7e6, 128, 3.5), ("published", 2.2e7, 32, 2.4), ("published", 2.2e7, 128, 2.8),
]  # fmt: skip
X = np.array([scaling.predictors(*each[1:]) for each in CHECKPOINTS])


FAMILIES = [each[0] for each in CHECKPOINTS]


def test_an_exact_law_is_found_and_every_family_foretold():
    assert scaling.fit(X, X @ BETA) == pytest.approx(BETA)
    assert scaling.error_of_families(X, X @ BETA, FAMILIES) == (pytest.approx(0, abs=1e-9), 5)


def test_a_family_that_the_others_do_not_foretell_counts_as_one():
    out = np.array([family == "published" for family in FAMILIES])
    foretold = X[out] @ scaling.fit(X[~out], X[~out] @ BETA)
    y = X @ BETA + 3.0 * out
    error, count = scaling.error_of_families(X, y, FAMILIES)
    assert np.allclose(foretold, (X @ BETA)[out])
    assert count == 5
    assert error >= 3.0 / np.sqrt(5)


def test_a_family_without_which_there_is_no_solution_is_not_counted():
    longer = np.array([family == "published" for family in FAMILIES])
    same = np.where(longer[:, None], X, X * [1, 1, 0, 1] + [0, 0, np.log(32), 0])  # all others have 32 tokens
    assert scaling.error_of_families(same, same @ BETA, FAMILIES)[1] == 4


def test_numbers_that_are_not_resolved_or_not_positive_are_left_out():
    row = {"family": "tiny", "parameters": "1e6", "length": "32", "unigram": "7", "loss": "6", "mask": "8", "data": "2"}
    rows = [row | {"ceiling_position": value} for value in ("0.1", "", "-0.01")]
    _, y, families, dropped = scaling.points(rows, "ceiling_position")
    assert (y.tolist(), families, dropped) == ([np.log(0.1)], ["tiny"], 2)
    assert scaling.points(rows[:1], "ratio")[1] == pytest.approx([np.log(4.0)])


def test_unigram_cross_entropy_is_that_of_counts_plus_one(tmp_path):
    from gradvar import DEMO_CHECKPOINT
    from gradvar.huggingface.checkpoint import tokenizer_of

    train, valid = tmp_path / "train.txt", tmp_path / "valid.txt"
    train.write_text("the the garden " * 42)  # 126 tokens: one sequence
    valid.write_text("the garden " * 63)
    stage = regimes.Stage("", DEMO_CHECKPOINT, train, valid, 128)
    size = len(tokenizer_of(DEMO_CHECKPOINT))
    the, garden = (count / (126 + size / 10) for count in (84.1, 42.1))
    assert scaling.unigram(stage, train) == pytest.approx(-(np.log(the) + np.log(garden)) / 2)


@pytest.mark.parametrize(("relative", "pairs"), [(0.5, 34), (1.0, 10), (2.0, 5)])
def test_pairs_needed_are_those_of_the_books(relative, pairs):
    """Cohen's tables and G*Power: two-sided, 5 %, power 80 %."""
    assert scaling.pairs_needed(0.06, -0.06 * relative) == pairs


def test_an_effect_is_seen_as_often_as_is_asked_for():
    """10,000 simulated tests: five standard errors of the power are 0.02, so a false alarm in a million."""
    rng, pairs = np.random.default_rng(0), scaling.pairs_needed(1.0, 1.0)
    seen = stats.ttest_1samp(rng.normal(1.0, 1.0, (10_000, pairs)), 0.0, axis=1).pvalue < 0.05
    assert 0.8 - 0.02 < seen.mean() < 0.83 + 0.02
