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

from gradvar.decomposition.estimate import Estimate, unresolved
from gradvar.decomposition.intervals import hall_interval, jackknife_interval
from gradvar.decomposition.moments import Moments

ZERO = "the gradient is identically zero"
SAME = "all cells have the same gradient, up to rounding; there is no variance to share"
# Squared float32 rounding is 4e-15 of a squared norm; a variance below this part of it is nothing.
_ROUNDING = 1e-13


@dataclass(frozen=True)
class Components:
    """Estimators for one set of coordinates: a layer, or the whole gradient.

    Attributes:
        moments: The tables that everything is computed from; ``N`` data, ``L`` levels, ``R`` groups.
        levels: Names of the levels, outermost first.
        zero: The gradient is known to be zero but for rounding, so that its ratios mean nothing.
    """

    moments: Moments
    levels: tuple[str, ...]
    zero: bool = False

    @property
    def counts(self) -> tuple[int, ...]:
        """Draws at each level, outermost first."""
        return self.moments.layout.counts

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
        return Estimate(value, *hall_interval(_nested(self._contributions, self.counts) @ coefficients))

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

        contributions = _nested(self._contributions, self.counts)
        above, below = contributions @ numerator, contributions @ denominator
        return self._jackknife(lambda kept: float(above[kept].sum() / below[kept].sum()))

    def share(self, level: int) -> Estimate:
        """Estimate a level's share of the variance of one cell."""
        count = len(self.counts)
        return self.ratio(np.eye(count)[level], np.ones(count)).clip(0, 1)

    def gradient_norm2(self) -> Estimate:
        """Estimate ``|mu|^2``, with a delete-one-group jackknife interval."""
        groups = len(self.moments.layout.group_sizes)
        if groups < 3:
            return Estimate(self.norm2, reason=f"an interval needs at least 3 groups, not {groups}")
        interval = jackknife_interval(lambda kept: self._grouped(kept)[1], groups, df=groups - 1)
        assert interval is not None
        shift = self.norm2 - self._grouped(np.ones(groups, dtype=bool))[1]
        return Estimate(self.norm2, interval[0] + shift, interval[1] + shift)

    def noise_scale(self, coefficients: np.ndarray) -> Estimate:
        """Estimate ``sum_l c_l V_l / |mu|^2``: the batch at which this noise equals the signal.

        Args:
            coefficients: ``[L]``, not negative.

        Returns:
            The ratio with a delete-one-group jackknife interval on its logarithm. Where ``|mu|^2`` is not
            clearly positive only a lower bound is given.
        """
        problem = self._negative()
        if problem:
            return problem
        norm2 = self.gradient_norm2()
        if norm2.low is None:
            return unresolved(norm2.reason or "")

        def statistic(kept: np.ndarray) -> float:
            values, squared = self._grouped(kept)
            spread = float(values @ coefficients)
            return float(np.log(spread / squared)) if spread > 0 and squared > 0 else np.nan

        groups = len(self.moments.layout.group_sizes)
        interval = jackknife_interval(statistic, groups, df=groups - 1) if norm2.low > 0 else None
        if interval is None:
            low = self.linear(coefficients).low
            bound = low / norm2.high if low is not None and low > 0 and norm2.high and norm2.high > 0 else None
            return unresolved("|mu|^2 is not clearly positive at this study size; take more sentences", bound)
        return Estimate(float(self.values @ coefficients) / self.norm2, *np.exp(interval).tolist())

    def importance_headroom(self) -> Estimate:
        """Estimate ``E_x[Var(|g|)] / V_inner``: the most that importance sampling can remove.

        Weighting whole inner draws by ``p/q`` leaves at best the second moment ``(E|g|)^2``, at
        ``q ~ p |g|``; the difference from ``E|g|^2`` is the variance of the norm.
        """
        if len(self.counts) != 2:
            return unresolved("headroom is defined for two levels; with more, the inner draws share norms")
        if self.vanishes or self.values[-1] <= self._nothing:
            return unresolved(ZERO if self.vanishes else f"the {self.levels[-1]} variance is zero, up to rounding")
        spread = np.sqrt(self.moments.cell_norm2).var(axis=1, ddof=1)
        within = self.moments.squares[:, 1] / (self.counts[1] - 1)
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
        """``[L]`` degrees of freedom of one datum at each level; ``N - 1`` data have one at the outermost."""
        n = self.counts
        return np.array([1.0, *(prod(n[1:level]) * (n[level] - 1) for level in range(1, len(n)))])

    @cached_property
    def _mean_squares(self) -> np.ndarray:
        """``[L]`` mean square of each level's means about their parents' means."""
        data = self.counts[0]
        sums = self.moments.squares.sum(axis=0)
        return np.array([self.moments.between / (data - 1), *(sums[1:] / (data * self._degrees[1:]))])

    @cached_property
    def _contributions(self) -> np.ndarray:
        """``[N, L]`` what each datum contributes to the mean squares; the columns' means are the mean squares.

        At the outermost level that is ``|g_n - mu|^2`` but for a constant. As ``mu`` is not known, the mean ``p``
        of the ``k`` data before it in its group stands for it (for a group's first, the second), shrunk by
        ``w = s/(s + MS_0/k)`` with ``s = |mu|^2``, since a mean of few data is mostly noise. The squared distance
        ``|g_n - w p|^2`` has the expectation ``MS_0 (1 + w^2/k) + (1 - w)^2 s``, which is taken off.
        """
        m, counts = self.moments, self.counts
        found = m.squares / self._degrees
        below = [prod(counts[level + 1 :]) for level in range(len(counts))]
        norm2 = (m.cell_norm2.sum(axis=1) - m.squares[:, 1:] @ np.array(below[1:])) / below[0]
        mean_square, signal = self._mean_squares[0], max(self.norm2, 0.0)
        for start, size in zip(m.layout.group_starts, m.layout.group_sizes, strict=True):
            sum2 = norm2[start]  # squared norm of the sum of the data so far
            for k, n in enumerate(range(start + 1, start + size), start=1):
                prefix2 = sum2 / k**2
                inner = (norm2[n] + prefix2 - m.squares[n, 0] * (k + 1) / k) / 2
                weight = signal / (signal + mean_square / k) if signal > 0 else 0.0
                expected = mean_square * (1 + weight**2 / k) + (1 - weight) ** 2 * signal
                found[n, 0] = norm2[n] - 2 * weight * inner + weight**2 * prefix2 - expected
                if k == 1:
                    found[start, 0] = norm2[start] - 2 * weight * inner + weight**2 * norm2[n] - expected
                sum2 += norm2[n] + 2 * k * inner
            if size == 1:
                found[start, 0] = norm2[start] - mean_square - signal
        found[:, 0] += mean_square - found[:, 0].mean()
        return found

    def _grouped(self, kept: np.ndarray) -> tuple[np.ndarray, float]:
        """Components, and ``|mu|^2`` as a U-statistic of group means, from the groups that are kept."""
        m = self.moments
        sizes = np.where(kept, np.array(m.layout.group_sizes, dtype=float), 0.0)
        data = sizes.sum()
        weights = sizes / data
        shift = weights @ m.group_gram @ weights
        between = sizes @ np.diag(m.group_gram) - data * shift
        mean_norm2 = m.mean_norm2 + 2 * weights @ m.group_cross + shift
        sums = m.squares[np.repeat(kept, m.layout.group_sizes)].sum(axis=0)
        sums[0] += between
        mean_squares = sums / np.array([data - 1, *(data * self._degrees[1:])])
        return _nested(mean_squares, self.counts), float(mean_norm2 - between / (kept.sum() - 1) / data)


def _nested(mean_squares: np.ndarray, counts: tuple[int, ...]) -> np.ndarray:
    """``V_l = MS_l - MS_{l+1}/n_{l+1}`` along the last axis."""
    inner = np.zeros_like(mean_squares)
    inner[..., :-1] = mean_squares[..., 1:] / np.array(counts[1:], dtype=float)
    return mean_squares - inner
