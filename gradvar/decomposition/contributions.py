"""Estimates that are functions of means over data: of one contribution each, with intervals from deleting one datum."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import stats

from gradvar.decomposition.estimate import Estimate, unresolved
from gradvar.decomposition.intervals import LEVEL, effective_df, jackknife_interval

Function = Callable[[np.ndarray], float]
FEW = "an interval needs more draws of data"
_WIDEST = float(np.log(1e3))  # of an interval on the logarithmic scale, either way: beyond it nothing is known


def of_means(function: Function, contributions: np.ndarray) -> Estimate:
    """Estimate a function of expectations by the function of means.

    Args:
        function: Maps ``[p]`` means to a number; it must be finite for the means of all data.
        contributions: ``[N, p]`` of the data, independent and identically distributed.

    Returns:
        The estimate, with a delete-one jackknife interval about it.
    """
    value = float(function(contributions.mean(axis=0)))
    interval = None
    if len(contributions) > 2:
        interval = jackknife_interval(
            lambda kept: float(function(contributions[kept].mean(axis=0))), len(contributions)
        )
    return Estimate(value, reason=FEW) if interval is None else Estimate(value, *interval)


def positive_of_means(
    function: Function, contributions: np.ndarray, parts: dict[str, float], log_error: float = 0.0
) -> Estimate:
    """Estimate a positive function of expectations, with an interval on the logarithmic scale.

    Args:
        function: Maps ``[p]`` means to a positive number, not finite or not positive where that cannot be.
        contributions: ``[N, p]`` of the data.
        parts: Everything that must be positive for the function to mean anything, by name.
        log_error: Standard error of the logarithm from elsewhere, such as timing; independent of the data.

    Returns:
        The estimate; "not resolved" where a part is not positive, or the interval reaches over a factor of 1000.
    """
    for name, value in parts.items():
        if not value > 0:
            return unresolved(f"{name} is not estimated as positive at this study size; take more sentences")
    count = len(contributions)

    def log_of(kept: np.ndarray) -> float:
        value = function(contributions[kept].mean(axis=0))
        return float(np.log(value)) if value > 0 and np.isfinite(value) else np.nan

    full = log_of(np.ones(count, dtype=bool))
    if not np.isfinite(full):
        return unresolved("the estimate is not positive at this study size; take more sentences")
    value = float(np.exp(full))
    if count < 3:
        return Estimate(value, reason=FEW)
    replicates = np.array([log_of(np.arange(count) != unit) for unit in range(count)])
    if not np.isfinite(replicates).all():
        return unresolved("it hangs on single sentences; take more")
    pseudo = count * full - (count - 1) * replicates
    error = float(np.hypot(pseudo.std(ddof=1) / np.sqrt(count), log_error))
    half = float(stats.t.ppf((1 + LEVEL) / 2, effective_df(pseudo))) * error
    if not half <= _WIDEST:
        return unresolved("its interval reaches over three orders of magnitude either way; take more sentences")
    return Estimate(value, float(np.exp(full - half)), float(np.exp(full + half)))
