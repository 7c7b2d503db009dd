"""The arithmetic of the extrapolation to BERT-base."""

import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "experiments"))
import regimes  # noqa: E402
import scaling  # noqa: E402

sys.path.pop(0)

BETA = np.array([-3.0, 0.4, -0.7, 0.2])
CHECKPOINTS = [
    ("tiny", 1.4e6, 32, 0.2), ("tiny", 1.4e6, 32, 0.9), ("tiny", 1.4e6, 32, 1.4), ("mini", 4.8e6, 32, 0.3),
    ("mini", 4.8e6, 32, 1.6), ("small", 2.9e7, 64, 1.7), ("adapted", 1.7e6, 32, 2.9), ("adapted", 1.7e6, 64, 3.2),
    ("adapted", 1.7e6, 128, 3.5), ("published", 2.2e7, 32, 2.4), ("published", 2.2e7, 128, 2.8),
]  # fmt: skip
X = np.array([scaling.predictors(*each[1:]) for each in CHECKPOINTS])


def test_an_exact_law_is_found_and_extrapolated():
    found = scaling.fit(X, X @ BETA)
    assert found.beta == pytest.approx(BETA)
    base = scaling.predictors(scaling.BASE, 512, 5.0)
    assert found.predict(base) == pytest.approx((base @ BETA,) * 3)


def test_prediction_intervals_hold_a_new_point_as_often_as_they_say():
    # 2,000 of them at 95 %; the bounds are 4 standard errors away, a false alarm of 6e-5.
    rng, base, hits = np.random.default_rng(0), scaling.predictors(scaling.BASE, 512, 5.0), 0
    for _ in range(2000):
        _, low, high = scaling.fit(X, X @ BETA + rng.normal(0, 0.3, len(X))).predict(base)
        hits += low <= base @ BETA + rng.normal(0, 0.3) <= high
    assert abs(hits / 2000 - 0.95) < 4 * np.sqrt(0.95 * 0.05 / 2000)


def test_a_family_that_the_others_do_not_foretell_is_told():
    families = [each[0] for each in CHECKPOINTS]
    y = X @ BETA + np.random.default_rng(1).normal(0, 0.01, len(X))
    good, total = scaling.checked(X, y, families)
    y[[family == "published" for family in families]] += 3.0
    assert total == len(X)
    assert good >= 9
    assert scaling.checked(X, y, families)[0] < good


def test_numbers_that_are_not_resolved_or_not_positive_are_left_out():
    row = {"family": "tiny", "parameters": "1e6", "length": "32", "unigram": "7", "loss": "6", "mask": "8", "data": "2"}
    rows = [row | {"ceiling_position": value} for value in ("0.1", "", "-0.01")]
    _, y, families = scaling.points(rows, "ceiling_position")
    assert (y.tolist(), families) == ([np.log(0.1)], ["tiny"])
    assert scaling.points(rows[:1], "ratio")[1] == pytest.approx([np.log(4.0)])


def test_unigram_cross_entropy_is_that_of_counts_plus_one(tmp_path):
    from gradvar import DEMO_CHECKPOINT
    from gradvar.huggingface.checkpoint import tokenizer_of

    train, valid = tmp_path / "train.txt", tmp_path / "valid.txt"
    train.write_text("the the garden " * 42)  # 126 tokens: one sequence
    valid.write_text("the garden " * 63)
    stage = regimes.Stage("", DEMO_CHECKPOINT, train, valid, 128)
    size = len(tokenizer_of(DEMO_CHECKPOINT))
    the, garden = (count / (126 + size) for count in (85, 43))
    assert scaling.unigram(stage, train) == pytest.approx(-(np.log(the) + np.log(garden)) / 2)
