"""The metrics are those of their formulas, over all tables of counts of a few examples."""

from itertools import combinations_with_replacement, product

import numpy as np
import pytest

from gradvar.finetuning.metrics import METRICS, sampling_error, score_of


def by_counts(labels, predictions):
    """Accuracy, F1 and Matthews' correlation from the table of counts."""
    tp, tn, fp, fn = (
        sum(a == x and b == y for a, b in zip(labels, predictions, strict=True))
        for x, y in ((1, 1), (0, 0), (0, 1), (1, 0))
    )
    below = ((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)) ** 0.5
    return {
        "accuracy": (tp + tn) / len(labels),
        "f1": 2 * tp / (2 * tp + fp + fn) if tp + fp + fn else 0.0,
        "matthews": (tp * tn - fp * fn) / below if below else 0.0,
    }


def test_counts_by_enumeration():
    for examples in combinations_with_replacement(product((0, 1), repeat=2), 4):
        labels, predictions = zip(*examples, strict=True)
        expected = by_counts(labels, predictions)
        for name, value in expected.items():
            found = score_of((name,), np.array(labels), np.array(predictions))[name]
            assert found == pytest.approx(100 * value, abs=1e-10), name


def test_correlations():
    rng = np.random.default_rng(0)
    labels, predictions = rng.integers(0, 6, 40).astype(float), rng.normal(size=40)
    pearson = np.corrcoef(labels, predictions)[0, 1]
    ranks = [np.array([(x < v).sum() + ((x == v).sum() + 1) / 2 for v in x]) for x in (labels, predictions)]
    assert METRICS["pearson"](labels, predictions) == pytest.approx(pearson)
    assert METRICS["spearman"](labels, predictions) == pytest.approx(np.corrcoef(*ranks)[0, 1])
    assert METRICS["pearson"](labels, np.ones(40)) == METRICS["spearman"](np.ones(40), predictions) == 0.0


def test_the_sampling_error_of_an_accuracy():
    """sqrt(p (1 - p)/n), to the 5 % that 200 resamples know a standard deviation by (4 standard errors: 20 %)."""
    hits = np.arange(400) < 300
    error = sampling_error(("accuracy",), np.ones(400), hits.astype(int), seed=0)
    assert error == pytest.approx(100 * (0.75 * 0.25 / 400) ** 0.5, rel=0.2)


def test_the_sampling_error_of_the_mean_of_two_metrics():
    """Both are of the same examples, so their errors do not cancel; bound as above, against multinomial counts."""
    shares = np.array([0.5, 0.2, 0.2, 0.1])  # true and false positives, false and true negatives
    counts = np.random.default_rng(0).multinomial(200, shares, 20_000).T / 200
    tp, fp, fn, tn = counts
    expected = 100 * np.std((tp + tn + 2 * tp / (2 * tp + fp + fn)) / 2)
    labels, predictions = (np.repeat(x, (100, 40, 40, 20)) for x in ([1, 0, 1, 0], [1, 1, 0, 0]))
    assert sampling_error(("f1", "accuracy"), labels, predictions, seed=0) == pytest.approx(expected, rel=0.2)


def test_percent():
    assert score_of(("f1", "accuracy"), np.array([1, 0]), np.array([1, 0])) == {"f1": 100.0, "accuracy": 100.0}
