"""Confidence intervals for means of skewed, heavy-tailed contributions, their ratios, and smooth functions of means."""

from collections.abc import Callable

import numpy as np
from scipy import optimize, stats

LEVEL = 0.95


def effective_df(values: np.ndarray) -> float:
    """Degrees of freedom of a sample variance, adjusted for kurtosis.

    ``nu = 2 n / (kappa - (n-3)/(n-1))``, at most ``n - 1``, with ``kappa`` the sample kurtosis (3 for a normal, where
    ``nu = n - 1``). It is over 2 for every sample of three and more, as ``kappa <= n - 2 + 1/(n-1)``.

    Args:
        values: ``[n]`` independent contributions.

    Returns:
        The degrees of freedom.
    """
    n = len(values)
    deviations2 = (values - values.mean()) ** 2
    spread = deviations2.mean()
    if spread == 0:
        return float(max(n - 1, 1))
    kurtosis = np.mean((deviations2 / spread) ** 2)  # 1 at least, so the denominator is positive
    return float(min(2 * n / (kurtosis - (n - 3) / (n - 1)), n - 1))


def hall_interval(values: np.ndarray) -> tuple[float, float]:
    """Interval for the expectation of independent contributions, corrected for their skewness.

    Hall's monotone cubic transformation of the t statistic (Hall 1992, JRSS B 54) with the kurtosis-adjusted
    degrees of freedom of :func:`effective_df`: with mean ``m``, standard deviation ``s`` and skewness ``g``,
    ``m - s h(y)`` for ``y = +-t_{.975,nu}/sqrt(n)`` and ``h(y) = (3/g)(cbrt(1 + g(y - g/(6n))) - 1)``.

    Args:
        values: ``[n]`` contributions, ``n >= 2``.

    Returns:
        ``(low, high)`` about the mean of ``values``.
    """
    n = len(values)
    mean, sd = values.mean(), values.std(ddof=1)
    if sd <= 1e-12 * abs(mean):
        return float(mean), float(mean)
    skewness = float(np.mean((values - mean) ** 3) / np.mean((values - mean) ** 2) ** 1.5)
    reach = stats.t.ppf((1 + LEVEL) / 2, effective_df(values)) / np.sqrt(n)

    def h(y: float) -> float:
        shifted = y - skewness / (6 * n)
        return shifted if abs(skewness) < 1e-8 else 3 / skewness * (np.cbrt(1 + skewness * shifted) - 1)

    return float(mean - sd * h(reach)), float(mean - sd * h(-reach))


def fieller_interval(numerators: np.ndarray, denominators: np.ndarray) -> tuple[float, float | None]:
    """Interval for a ratio of expectations, not negative: every ``r`` that the contributions do not rule out.

    Fieller's construction (1954) with Hall's interval in place of Student's: ``r`` belongs to it where
    :func:`hall_interval` of ``numerators - r denominators`` holds zero.

    Args:
        numerators: ``[n]`` contributions to the numerator, with a mean that is not negative.
        denominators: ``[n]`` contributions to the denominator of the same units.

    Returns:
        ``(low, high)``; ``high`` is None where no ratio is too large: the denominator may be zero.
    """
    bottom, top = hall_interval(denominators)
    if top <= 0:
        return 0.0, None

    def end(side: int, ratio: float) -> float:
        return hall_interval(numerators - ratio * denominators)[side]

    def crossing(side: int) -> float:
        """Where this end of the interval, if positive at a ratio of zero, becomes zero.

        It does: divided by the ratio, it tends to ``-top`` or ``-bottom``.
        """
        first = end(side, 0.0) / top
        if first <= 0:
            return 0.0
        beyond = first
        while end(side, beyond) > 0:
            beyond *= 2
        return float(optimize.brentq(lambda ratio: end(side, ratio), 0.0, beyond, xtol=1e-9 * first))

    return crossing(0), crossing(1) if bottom > 0 else None


def jackknife_interval(statistic: Callable[[np.ndarray], float], count: int) -> tuple[float, float] | None:
    """Interval from the delete-one jackknife, about the full-sample value.

    Student's, with the degrees of freedom of :func:`effective_df` of the pseudo-values.

    Args:
        statistic: Maps a ``[count]`` bool mask of the units kept to the statistic.
        count: Number of independent units.

    Returns:
        ``(low, high)``, or None where a replicate is not finite.
    """
    everything = np.ones(count, dtype=bool)
    full = statistic(everything)
    replicates = np.empty(count)
    for unit in range(count):
        kept = everything.copy()
        kept[unit] = False
        replicates[unit] = statistic(kept)
    if not np.isfinite(full) or not np.isfinite(replicates).all():
        return None
    pseudo = count * full - (count - 1) * replicates
    reach = stats.t.ppf((1 + LEVEL) / 2, effective_df(pseudo))
    half = reach * pseudo.std(ddof=1) / np.sqrt(count)
    return float(full - half), float(full + half)
