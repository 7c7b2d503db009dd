"""Ratios of times over paired seeds, with bootstrap intervals; times that are only bounded stay bounds throughout."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from itertools import combinations_with_replacement
from math import exp, factorial, inf, isfinite, isinf, log, sqrt
from typing import Any

import numpy as np
from scipy import stats

from gradvar.racing.times import Time

LEVEL = 0.95
FEWEST = 5
"""Pairs from which on a bootstrap interval is narrower than the range of the pairs, and holds what it promises."""
UNANIMOUS = 6
"""Pairs that must all fall on one side of 1 where times are only bounded. If neither arm is sooner, each pair falls on
either side with 1/2, so n pairs all fall on one with ``2 * 2^-n = 2^(1-n)``: 3.1 % of six, but 6.3 % of five."""
_ENUMERATED = 8  # pairs up to which all resamples are gone through: 6,435 of 8
_RESAMPLES = 20_000
_SEED = 0


@dataclass(frozen=True)
class Ratio:
    """The geometric mean of ratios over pairs, known to lie in ``[low, high]``, with its interval.

    Ends are 0 or infinite where nothing bounds them.

    Attributes:
        pairs: How many.
        below: In how many of them the ratio is below 1 for certain: the second run had not got there when the first
            did.
        above: In how many of them it is above 1 for certain.
        low: Lower end of the mean; that of the upper one where all times are known.
        high: Upper end of the mean.
        interval: Ends of the bootstrap interval; None of fewer than two pairs.
        confidence: With which it holds the ratio: 0.95, but of fewer than :data:`FEWEST` pairs, where it is their
            range, ``1 - 2^(1-n)``; None where there is no interval.
        student: Student's interval (95 %) for the mean logarithm, where all times are known.
    """

    pairs: int
    below: int
    above: int
    low: float
    high: float
    interval: tuple[float, float] | None
    confidence: float | None
    student: tuple[float, float] | None

    @property
    def resolved(self) -> bool:
        """Whether there is a bound at all."""
        return self.low > 0 or isfinite(self.high)

    @property
    def clear(self) -> int:
        """-1 where the ratio is clearly below 1, 1 where it is clearly above, otherwise 0.

        Where all times are known, the bootstrap interval and Student's, which holds 95 % with few pairs, must both say
        so. A bound does not tell how far from 1 a pair is, so where there are any, only the sides count: all pairs,
        :data:`UNANIMOUS` or more, must fall on one (a sign test). A pair whose side is not known, such as one of two
        runs that never got there, agrees with none.

        Of two arms that are alike, a sign test by itself is clear in 3.1 % at most. Which of the two ways is taken
        hangs on the times themselves, so both count: together they are clear in fewer than 5 % in simulation.
        """
        if self.interval is None or self.student is None:
            sides = (self.above == self.pairs) - (self.below == self.pairs)
            return sides if self.pairs >= UNANIMOUS else 0
        ends = (self.interval, self.student)
        return all(low > 1 for low, _ in ends) - all(high < 1 for _, high in ends)

    def to_json(self) -> dict[str, Any]:
        """Return everything; ends that are not there are None."""
        shown = None if self.interval is None else {"low": _end(self.interval[0]), "high": _end(self.interval[1])}
        student = None if self.student is None else {"low": self.student[0], "high": self.student[1]}
        return {
            "estimate": self.low if self.low == self.high and isfinite(self.low) else None,
            "low": _end(self.low),
            "high": _end(self.high),
            "interval": shown,
            "confidence": self.confidence,
            "student": student,
            "pairs": self.pairs,
            "pairs_below_1": self.below,
            "pairs_above_1": self.above,
            "clear": self.clear,
        }

    def __str__(self) -> str:
        """Write three significant digits, and the interval."""
        if not self.resolved:
            return "not resolved"
        ends = "" if self.interval is None else f" [{_short(self.interval[0])}, {_short(self.interval[1])}]"
        if self.low == self.high:
            return f"{_short(self.low)}{ends}"
        return f"{f'> {_short(self.low)}' if isinf(self.high) else f'< {_short(self.high)}'}{ends}"


def _end(x: float) -> float | None:
    return x if 0 < x < inf else None


def _short(x: float) -> str:
    return "∞" if isinf(x) else f"{x:.0f}" if 100 <= x < 1e6 else f"{x:.3g}"


def paired_ratio(pairs: Iterable[tuple[Time, Time]]) -> Ratio:
    """Average the ratios of paired times, first to second.

    A pair's ratio lies in ``[a_low/b_high, a_high/b_low]``, which is one number where both times are known. The
    estimate is the geometric mean, of the lower ends and of the upper ones. The interval is the bootstrap's over
    pairs; its lower end comes from the pairs' lower ends and its upper end from their upper ones, so that it holds
    whatever the censored times turn out to be.

    A run that never got there takes longer than its last look, so its pair is on the far side of 1 for certain if the
    other run was there by then, be it at that very look: the bound is 1, and the ratio above it.

    Args:
        pairs: One at least.

    Returns:
        The ratio.
    """
    pairs = list(pairs)
    bounds = [_log_ratio(*pair) for pair in pairs]
    low, high = (np.array(ends) for ends in zip(*bounds, strict=True))
    n, known = len(bounds), bool(np.all(low == high))
    interval = student = confidence = None
    if n > 1:
        below, above = bootstrap_ends(low, high)
        interval = _exp(below), _exp(above)
        confidence = LEVEL if n >= FEWEST else 1 - 2.0 ** (1 - n)
        if known:
            reach = float(stats.t.ppf((1 + LEVEL) / 2, n - 1) * low.std(ddof=1) / sqrt(n))
            student = _exp(float(low.mean()) - reach), _exp(float(low.mean()) + reach)
    least, most = _exp(float(low.mean())), _exp(float(high.mean()))
    sides = [_side(*ends, *pair) for ends, pair in zip(bounds, pairs, strict=True)]
    return Ratio(n, sides.count(-1), sides.count(1), least, most, interval, confidence, student)


def _log_ratio(a: Time, b: Time) -> tuple[float, float]:
    """Bound the logarithm of a ratio of times."""
    if a.high == 0 or b.high == 0:  # there before any training: a ratio of nothing
        return -inf, inf
    low = -inf if a.low == 0 else log(a.low) - log(b.high)
    high = inf if b.low == 0 else log(a.high) - log(b.low)
    return low, high


def _side(low: float, high: float, a: Time, b: Time) -> int:
    """Say on which side of 1 a ratio is for certain, given the bounds of its logarithm; 0 where that is not known."""
    return (low > 0 or (low == 0 and a.censored)) - (high < 0 or (high == 0 and b.censored))


def _exp(x: float) -> float:
    return 0.0 if x == -inf else exp(x) if x < 700 else inf


def bootstrap_ends(low: np.ndarray, high: np.ndarray) -> tuple[float, float]:
    """Expanded percentile interval for a mean over pairs, of which each is known to lie between two ends.

    Percentile intervals are too narrow for few pairs, as the bootstrap's variance is ``(n-1)/n`` of the sample's and
    its tails are the normal's. Hesterberg's (2015, "What Teachers Should Know About the Bootstrap", The American
    Statistician 69) takes the percentiles ``Phi(-sqrt(n/(n-1)) t_{.975,n-1})`` and one minus that, so that
    for a normal bootstrap distribution it is Student's interval. Up to 8 pairs all resamples count, with their
    multinomial probabilities; beyond, 20,000 of a fixed seed.

    Args:
        low: ``[n]`` lower ends, which may be ``-inf``; two at least.
        high: ``[n]`` upper ends, which may be ``inf``.

    Returns:
        Lower end, from the lower ends, and upper end, from the upper ones. Never wider than the range: of fewer than
        five pairs it is the range, whose confidence for the median is ``1 - 2^(1-n)``: 50, 75 and 88 % of 2, 3 and 4
        pairs (measured for the mean of normal ones: 51, 75, 89 %; of 5 to 8 pairs 93 to 95 %).
    """
    n = len(low)
    counts, chances = resamples(n)
    tail = float(stats.norm.cdf(-sqrt(n / (n - 1)) * stats.t.ppf((1 + LEVEL) / 2, n - 1)))
    return _quantile(_means(counts, low), chances, tail), -_quantile(-_means(counts, high), chances, tail)


@cache
def resamples(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return resamples of n pairs: how often each holds each pair, ``[resamples, n]``, and their probabilities."""
    if n > _ENUMERATED:
        drawn = np.random.default_rng(_SEED).multinomial(n, np.full(n, 1 / n), size=_RESAMPLES)
        return drawn, np.full(_RESAMPLES, 1 / _RESAMPLES)
    multisets = combinations_with_replacement(range(n), n)
    counts = np.array([np.bincount(chosen, minlength=n) for chosen in multisets])
    ways = [factorial(n) // _product(factorial(int(count)) for count in row) for row in counts]
    return counts, np.array(ways) / n**n


def _product(numbers: Iterable[int]) -> int:
    found = 1
    for each in numbers:
        found *= each
    return found


def _means(counts: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Average resamples, ``[resamples]``, of values that are infinite on one side at most."""
    infinite = np.isinf(values)
    means = counts @ np.where(infinite, 0.0, values) / len(values)
    if infinite.any():
        means[counts[:, infinite].any(axis=1)] = values[infinite][0]
    return means


def _quantile(values: np.ndarray, chances: np.ndarray, tail: float) -> float:
    """The smallest value at or below which the probability is at least ``tail``."""
    order = np.argsort(values)
    return float(values[order][np.searchsorted(np.cumsum(chances[order]), tail)])
