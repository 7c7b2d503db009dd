"""The official metrics of GLUE, by scikit-learn and scipy, and their noise over the held-out examples."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
from scipy import stats
from sklearn import metrics as sk

_RESAMPLES = 200


def _correlation(of: Callable[..., object]) -> Callable[[np.ndarray, np.ndarray], float]:
    """Let a correlation be 0, as that of Matthews is, where one side is constant."""

    def found(labels: np.ndarray, predictions: np.ndarray) -> float:
        if np.ptp(labels) == 0 or np.ptp(predictions) == 0:
            return 0.0
        result: object = of(labels, predictions)
        return float(result.statistic)  # type: ignore[attr-defined]

    return found


METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": lambda labels, predictions: float(sk.accuracy_score(labels, predictions)),
    "f1": lambda labels, predictions: float(sk.f1_score(labels, predictions, zero_division=0.0)),
    "matthews": lambda labels, predictions: float(sk.matthews_corrcoef(labels, predictions)),
    "pearson": _correlation(stats.pearsonr),
    "spearman": _correlation(stats.spearmanr),
}
"""Functions of ``[examples]`` labels and ``[examples]`` predictions."""


def score_of(names: tuple[str, ...], labels: np.ndarray, predictions: np.ndarray) -> dict[str, float]:
    """Compute metrics.

    Args:
        names: Of the metrics.
        labels: ``[examples]`` numbers of the true labels, or true scores.
        predictions: ``[examples]`` predicted ones.

    Returns:
        Each metric by its name, in percent.
    """
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # where all are of one label
        return {name: 100 * METRICS[name](labels, predictions) for name in names}


def sampling_error(names: tuple[str, ...], labels: np.ndarray, predictions: np.ndarray, seed: int) -> float:
    """Standard error of the mean of the metrics over the choice of held-out examples, by the bootstrap.

    Args:
        names: Of the metrics.
        labels: ``[examples]`` true labels.
        predictions: ``[examples]`` predicted ones.
        seed: Of the resampling.

    Returns:
        Standard deviation over 200 resamples, in percent points.
    """
    draw = np.random.default_rng(seed)
    found = []
    for _ in range(_RESAMPLES):
        rows = draw.integers(len(labels), size=len(labels))
        found.append(np.mean(list(score_of(names, labels[rows], predictions[rows]).values())))
    return float(np.std(found, ddof=1))
