"""Ratios of a measured variance to a predicted one, with the errors of both."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

Interval = tuple[float, float, float]
"""A value, and the lower and the upper end of its 95 % interval."""


def coefficients(batch: int, masks: int, population: int) -> np.ndarray:
    """Return what the components are multiplied with: ``[2]``.

    Args:
        batch: ``B``.
        masks: ``K``.
        population: Sentences of the text. A draw with replacement has ``1 - 1/population`` of the variance that a
            study estimates, which draws without.

    Returns:
        ``(1 - 1/population)/B`` and ``1/(B K)``.
    """
    return np.array([(1 - 1 / population) / batch, 1 / (batch * masks)])


def of_two(measured: Interval, predicted: Interval) -> Interval:
    """Divide two independent estimates, with an interval on the logarithmic scale.

    The ends of the two intervals are as far from their values as sampling takes them, so the distances of the ratio's
    ends are the roots of sums of squares, of the measured value's on the one side and the predicted one's on the other
    (Zou and Donner 2008, the method of variance estimates recovery). Skewed intervals stay skewed.

    Args:
        measured: The numerator, positive.
        predicted: The denominator, positive.

    Returns:
        The ratio; its ends are 0 or infinite where an end of an interval is not positive.
    """
    with np.errstate(divide="ignore"):
        (over, over_low, over_high), (under, under_low, under_high) = np.log(np.maximum([measured, predicted], 0.0))
    low = np.hypot(over - over_low, under_high - under)
    high = np.hypot(over_high - over, under - under_low)
    return float(np.exp(over - under)), float(np.exp(over - under - low)), float(np.exp(over - under + high))


def pooled(
    measured: Sequence[float],
    errors: Sequence[float],
    coefficients: np.ndarray,
    components: np.ndarray,
    covariance: np.ndarray,
    level: float = 0.95,
) -> Interval:
    """Average several ratios that share a prediction.

    ``r = mean_c m_c/p_c`` with ``p_c = sum_l a_cl V_l``. The errors of the ``m_c`` are independent; that of the ``V_l``
    moves all ``p_c`` at once, by ``mean_c a_cl/p_c`` to first order.

    Args:
        measured: ``[C]`` measured variances ``m``.
        errors: ``[C]`` their standard errors.
        coefficients: ``[C, L]`` the ``a``.
        components: ``[L]`` the estimated ``V``.
        covariance: ``[L, L]`` of their errors.
        level: Of the interval, which is normal on the logarithmic scale.

    Returns:
        The mean ratio.
    """
    predicted = coefficients @ components
    ratio = float(np.mean(np.asarray(measured) / predicted))
    own = float(np.sum((np.asarray(errors) / predicted) ** 2)) / len(predicted) ** 2 / ratio**2
    moves = (coefficients / predicted[:, None]).mean(axis=0)
    half = NormalDist().inv_cdf((1 + level) / 2) * float(np.sqrt(own + moves @ covariance @ moves))
    return ratio, ratio * float(np.exp(-half)), ratio * float(np.exp(half))
