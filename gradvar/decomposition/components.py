"""Variance components of a nested design, and the ratios that follow from them, each with an interval.

With ``MS_l`` the mean square of the level-``l`` means about their parents' means, the unbiased estimators are
``V_L = MS_L``, ``V_l = MS_l - MS_{l+1}/n_{l+1}`` and ``|mu|^2 = |mean|^2 - MS_0/N`` (Searle, Casella and
McCulloch, Variance Components, 1992, chapter 3, with squared norms in place of squares).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from math import prod

import numpy as np

from gradvar.decomposition import ceilings
from gradvar.decomposition.contrast import pseudo_values
from gradvar.decomposition.estimate import Estimate, unresolved
from gradvar.decomposition.intervals import fieller_interval, hall_interval, jackknife_interval
from gradvar.decomposition.moments import Moments

ZERO = "the gradient is identically zero"
SAME = "all cells have the same gradient, up to rounding; there is no variance to share"
# Squared float32 rounding is 4e-15 of a squared norm; a variance below this part of it is nothing.
_ROUNDING = 1e-13


@dataclass(frozen=True)
class Components:
    """Estimators for one set of coordinates: a layer, or the whole gradient.

    Attributes:
        moments: The tables that everything is computed from; ``N`` data, ``L`` levels.
        levels: Names of the levels, outermost first.
        zero: The gradient is known to be zero but for rounding, so that its ratios mean nothing.
    """

    moments: Moments
    levels: tuple[str, ...]
    zero: bool = False

    @property
    def counts(self) -> tuple[int, ...]:
        """Draws at each level, outermost first."""
        return self.moments.counts

    @cached_property
    def values(self) -> np.ndarray:
        """``[L]`` estimated components, unbiased; all but the innermost can come out negative."""
        return _nested(self._mean_squares, self.counts)

    @cached_property
    def norm2(self) -> float:
        """Unbiased estimate of ``|mu|^2``; it can come out negative."""
        data = self.counts[0]
        return float(self.moments.mean_norm2 - self.moments.between / (data - 1) / data)

    @property
    def vanishes(self) -> bool:
        """Whether every cell's gradient is zero."""
        return self.zero or not self.moments.cell_norm2.any()

    @property
    def contributions(self) -> np.ndarray:
        """``[N, L]`` what each datum contributes to the components, their means."""
        return _nested(self._contributions, self.counts)

    @cached_property
    def signal_contributions(self) -> np.ndarray:
        """``[N]`` delete-one pseudo-values of ``|mu|^2``, whose mean it is; for 3 data and more."""
        return pseudo_values(self._norm2, self._distance2, self.norm2)

    @property
    def _nothing(self) -> float:
        """What a variance must exceed to be more than rounding."""
        return _ROUNDING * float(self.moments.cell_norm2.mean())

    def linear(self, coefficients: np.ndarray) -> Estimate:
        """Estimate ``sum_l c_l V_l`` with Hall's interval over the contributions of the data.

        Args:
            coefficients: ``[L]``.

        Returns:
            The estimate, raw.
        """
        value = float(self.values @ coefficients)
        if self.counts[0] < 4:
            return Estimate(value, reason=f"an interval needs at least 4 draws of {self.levels[0]}")
        return Estimate(value, *hall_interval(self.contributions @ coefficients))

    def component(self, level: int) -> Estimate:
        """Estimate the variance component of a level; the innermost cannot be negative, the others' estimates can."""
        estimate = self.linear(np.eye(len(self.counts))[level])
        return estimate.clip(0, np.inf) if level == len(self.counts) - 1 else estimate

    def ratio(self, numerator: np.ndarray, denominator: np.ndarray) -> Estimate:
        """Estimate ``sum_l a_l V_l / sum_l b_l V_l``, with a delete-one-datum jackknife interval.

        Args:
            numerator: ``[L]`` coefficients ``a``.
            denominator: ``[L]`` coefficients ``b``, not negative.

        Returns:
            The ratio, or "not resolved" where a component is estimated as negative.
        """
        problem = self._negative()
        if problem:
            return problem

        contributions = self.contributions
        above, below = contributions @ numerator, contributions @ denominator
        return self._jackknife(lambda kept: float(above[kept].sum() / below[kept].sum()))

    def share(self, level: int) -> Estimate:
        """Estimate a level's share of the variance of one cell."""
        count = len(self.counts)
        return self.ratio(np.eye(count)[level], np.ones(count)).clip(0, 1)

    def gradient_norm2(self) -> Estimate:
        """Estimate ``|mu|^2`` with Hall's interval over its delete-one-datum pseudo-values."""
        if self.counts[0] < 4:
            return Estimate(self.norm2, reason=f"an interval needs at least 4 draws of {self.levels[0]}")
        return Estimate(self.norm2, *hall_interval(self.signal_contributions))

    def noise_scale(self, coefficients: np.ndarray) -> Estimate:
        """Estimate ``sum_l c_l V_l / |mu|^2``: the batch at which this noise equals the signal.

        Args:
            coefficients: ``[L]``, not negative.

        Returns:
            The ratio with Fieller's interval: all ``r`` for which ``sum_l c_l V_l - r |mu|^2`` may be zero. Where
            ``|mu|^2`` is not clearly positive that is unbounded, and only its lower end is given.
        """
        problem = self._negative()
        if problem:
            return problem
        if self.counts[0] < 4:
            return unresolved(f"an interval needs at least 4 draws of {self.levels[0]}")
        spread = self.contributions @ coefficients
        low, high = fieller_interval(spread, self.signal_contributions)
        if high is None:
            return unresolved("|mu|^2 is not clearly positive at this study size; take more sentences", low)
        return Estimate(float(self.values @ coefficients) / self.norm2, low, high)

    def concentration(self, level: int) -> tuple[int, float]:
        """Find how much of a component the 5 % of the data with the largest contributions carry.

        Contributions hold the noise of the levels inside; what the 5 % smallest ones are below zero is taken off,
        so that noise alone does not make a few look large.

        Args:
            level: Which component.

        Returns:
            How many data that is (at least one), and their part of the component; 0 where it is not positive.
        """
        few = max(1, self.counts[0] // 20)
        if self.vanishes or self.values[level] <= self._nothing:
            return few, 0.0
        contributions = np.sort(self.contributions[:, level])
        largest = contributions[-few:].sum() + np.minimum(contributions[:few], 0).sum()
        return few, float(largest / contributions.sum())

    def importance_headroom(self) -> Estimate:
        """Estimate ``E_x[Var(|g|)] / V_inner``: the most that importance sampling can remove.

        Weighting whole inner draws by ``p/q`` leaves at best the second moment ``(E|g|)^2``, at
        ``q ~ p |g|``; the difference from ``E|g|^2`` is the variance of the norm.
        """
        if len(self.counts) != 2:
            return unresolved("headroom is defined for two levels; with more, the inner draws share norms")
        if self.vanishes or self.values[-1] <= self._nothing:
            return unresolved(ZERO if self.vanishes else f"the {self.levels[-1]} variance is zero, up to rounding")
        spread = ceilings.importance(self.moments.cell_norm2)
        within = self.moments.squares[:, -1] / (self.counts[1] - 1)
        return self._jackknife(lambda kept: float(spread[kept].sum() / within[kept].sum())).clip(0, 1)

    def _jackknife(self, statistic: Callable[[np.ndarray], float]) -> Estimate:
        value = statistic(np.ones(self.counts[0], dtype=bool))
        interval = jackknife_interval(statistic, self.counts[0]) if self.counts[0] > 2 else None
        if interval is None:
            return Estimate(value, reason=f"an interval needs more draws of {self.levels[0]}")
        return Estimate(value, *interval)

    def _negative(self) -> Estimate | None:
        """Explain why no ratio can be formed, where that is so."""
        if self.vanishes:
            return unresolved(ZERO)
        if np.abs(self.values).max() <= self._nothing:
            return unresolved(SAME)
        level = int(np.argmin(self.values))
        if self.values[level] >= -self._nothing:
            return None
        return unresolved(
            f"the {self.levels[level]} variance is estimated as negative: it is small beside the noise of the levels "
            f"inside it; take more draws of {' or '.join(self.levels)}"
        )

    @cached_property
    def _degrees(self) -> np.ndarray:
        """``[L-1]`` degrees of freedom that one datum has at each inner level."""
        n = self.counts
        return np.array([float(prod(n[1:level]) * (n[level] - 1)) for level in range(1, len(n))])

    @cached_property
    def _mean_squares(self) -> np.ndarray:
        """``[L]`` mean square of each level's means about their parents' means."""
        outer = self.moments.between / (self.counts[0] - 1)
        return np.array([outer, *self.moments.squares.mean(axis=0) / self._degrees])

    @cached_property
    def _norm2(self) -> np.ndarray:
        """``[N]`` squared norms of the data means, by the analysis of variance within each datum."""
        below = np.array([prod(self.counts[level + 1 :]) for level in range(len(self.counts))])
        return (self.moments.cell_norm2.sum(axis=1) - self.moments.squares @ below[1:]) / below[0]

    @cached_property
    def _distance2(self) -> np.ndarray:
        """``[N]`` squared distances ``|g_n - g|^2`` of the data means from the grand mean, by their sketches.

        ``|S g_n - S g|^2`` is unbiased but for the common factor of a finite sample. The error of ``|S g_n|^2`` is
        known and correlated with its own; adding ``1-t`` times that, ``t = 2|g|^2 / (MS_0 + 2|g|^2)``, leaves least
        variance (to first order, for random signs). What all data have in common cancels where
        they are used.
        """
        m = self.moments
        spread, signal = self._mean_squares[0], 2 * m.mean_norm2
        weight = spread / (spread + signal) if spread + signal > 0 else 0.0
        return m.sketch_distance2 + weight * (self._norm2 - m.sketch_norm2)

    @cached_property
    def _contributions(self) -> np.ndarray:
        """``[N, L]`` what each datum contributes to the mean squares; the columns' means are the mean squares.

        At the inner levels that is the datum's own mean square; at the outermost, the delete-one pseudo-value of
        ``MS_0``, a linear function of the datum's distance from the grand mean.
        """
        data = self.counts[0]
        outer = data / max(data - 2, 1) * (self._distance2 - self._distance2.mean()) + self._mean_squares[0]
        return np.column_stack([outer, self.moments.squares / self._degrees])


def _nested(mean_squares: np.ndarray, counts: tuple[int, ...]) -> np.ndarray:
    """``V_l = MS_l - MS_{l+1}/n_{l+1}`` along the last axis."""
    inner = np.zeros_like(mean_squares)
    inner[..., :-1] = mean_squares[..., 1:] / np.array(counts[1:], dtype=float)
    return mean_squares - inner
