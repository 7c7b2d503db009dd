"""An interval for a median from a few values, with the confidence that it really has."""

from __future__ import annotations

from dataclasses import dataclass
from math import comb

import numpy as np

from gradvar.decomposition.intervals import LEVEL


@dataclass(frozen=True)
class Median:
    """A median with an interval between two of the values.

    Attributes:
        estimate: Of the sample.
        low: Lower end, one of the values; None where there is one value.
        high: Upper end.
        confidence: Chance that such an interval holds the population's median, whatever the distribution, if it is
            continuous; None where there is no interval.
        values: How many.
    """

    estimate: float
    low: float | None
    high: float | None
    confidence: float | None
    values: int


def median_of(values: np.ndarray) -> Median:
    """Estimate the median of the distribution that some values are drawn from.

    The interval from the r-th smallest to the r-th largest of n values holds it with chance
    ``1 - 2 sum_{i<r} C(n, i) / 2^n``: the count of values below the median is binomial. The largest r whose chance
    is 95 % is taken; below six values there is none, and the interval is from the smallest to the largest, with a
    confidence of ``1 - 2^(1-n)`` (94 % of five, 75 % of three).

    Args:
        values: ``[n]`` independent values, ``n >= 1``.

    Returns:
        The median.

    Source:
        David and Nagaraja, Order Statistics (2003), section 7.1.

    Examples:
        >>> median_of(np.array([61.2, 59.9, 63.5]))
        Median(estimate=61.2, low=59.9, high=63.5, confidence=0.75, values=3)
        >>> median_of(np.arange(12.0)).confidence
        0.96142578125
    """
    ordered, n = np.sort(values), len(values)
    if n == 1:
        return Median(float(ordered[0]), None, None, None, 1)
    rank, outside = 1, 2 / 2**n
    while rank < n // 2 and outside + 2 * comb(n, rank) / 2**n <= 1 - LEVEL:
        outside += 2 * comb(n, rank) / 2**n
        rank += 1
    return Median(float(np.median(ordered)), float(ordered[rank - 1]), float(ordered[n - rank]), 1 - outside, n)
