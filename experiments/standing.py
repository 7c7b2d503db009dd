"""Where an arm stands beside uniform masks: ratios of times and differences of losses over pairs, with their tests."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import arms
import numpy as np
from scipy import stats

from gradvar.racing.paired import Ratio, paired_ratio
from gradvar.racing.times import Time, time_to

LEVEL = 0.05
ALIKE = 1e-4
"""Spread below which values over pairs (logarithms of ratios, nats) are all alike: that of the rounding of a sum."""

Curve = tuple[np.ndarray, np.ndarray]
"""Steps and losses of one run."""


@dataclass(frozen=True)
class Standing:
    """Where an arm stands beside uniform masks.

    Attributes:
        regime: Its regime.
        arm: Its name.
        pairs: Seeds that both have.
        steps: Ratio of steps to the target, below 1 where the arm is sooner.
        cost: Ratio of the costs of a step.
        seconds: Ratio of seconds to the target, for the median of the cost.
        ends: Interval of that ratio, from the lowest to the highest cost.
        p_sooner: p-value for the seconds, before Holm's correction.
        loss: Mean difference of the losses at the end, and its interval; below 0 where the arm is better.
        p_better: p-value for the losses.
    """

    regime: str
    arm: str
    pairs: int
    steps: Ratio
    cost: tuple[float, float, float]
    seconds: Ratio
    ends: tuple[float, float]
    p_sooner: float
    loss: tuple[float, float, float]
    p_better: float

    @property
    def said(self) -> str:
        """The ratio of seconds in words, with its interval."""
        if not self.seconds.resolved:
            return "not resolved"
        low, high = ("∞" if np.isinf(end) else f"{end:.3g}" for end in self.ends)
        return f"{self.bound} {self.middle:.3g} [{low}, {high}]".lstrip()

    @property
    def bound(self) -> str:
        """``<`` or ``>`` where some runs never get there, so that only a bound is known; empty where all do."""
        known = self.seconds.low == self.seconds.high
        return "" if known else ">" if np.isinf(self.seconds.high) else "<"

    @property
    def middle(self) -> float:
        """The ratio of seconds, or the bound that there is."""
        return min(self.seconds.high, self.seconds.low or np.inf)


def standing(
    regime: str, arm: str, own: Mapping[int, Curve], uniform: Mapping[int, Curve], target: float,
    cost_ratio: tuple[float, float, float],
) -> Standing | None:  # fmt: skip
    """Compare an arm with uniform masks.

    Args:
        regime: Name of the regime.
        arm: Name of the arm.
        own: Its runs by seed.
        uniform: Those of uniform masks.
        target: Loss to reach.
        cost_ratio: Median, lowest and highest ratio of the costs of a step.

    Returns:
        Where it stands; None of fewer than two pairs.
    """
    seeds = [seed for seed in own if seed in uniform]
    if len(seeds) < 2:
        return None
    times = [(time_to(target, *map(list, own[seed])), time_to(target, *map(list, uniform[seed]))) for seed in seeds]
    costs = {ratio: [(Time(one.low * ratio, one.high * ratio), two) for one, two in times] for ratio in cost_ratio}
    at_cost = {ratio: paired_ratio(pairs) for ratio, pairs in costs.items()}
    intervals = [(ratio.interval or (ratio.low, ratio.high)) for ratio in at_cost.values()]
    with np.errstate(invalid="ignore"):  # two runs that both diverged
        differences = np.array([own[seed][1][-1] - uniform[seed][1][-1] for seed in seeds])
    return Standing(
        regime=regime,
        arm=arm,
        pairs=len(seeds),
        steps=paired_ratio(times),
        cost=cost_ratio,
        seconds=at_cost[cost_ratio[0]],
        ends=(min(low for low, _ in intervals), max(high for _, high in intervals)),
        p_sooner=max(p_of_times(pairs) for pairs in costs.values()) if _one_side(at_cost.values()) else 1.0,
        loss=mean_interval(differences),
        p_better=p_of(differences),
    )


def _one_side(ratios: Iterable[Ratio]) -> bool:
    """Whether an arm is sooner, or later, at the cost of every round."""
    ratios = list(ratios)
    return all(ratio.high < 1 for ratio in ratios) or all(ratio.low > 1 for ratio in ratios)


def mean_interval(differences: np.ndarray, level: float = 0.95) -> tuple[float, float, float]:
    """Return the mean with Student's interval; of what is not finite, infinite ends."""
    mean = float(differences.mean())
    if not np.isfinite(differences).all():
        return mean, -np.inf, np.inf
    reach = float(stats.t.ppf((1 + level) / 2, len(differences) - 1) * stats.sem(differences))
    return mean, mean - reach, mean + reach


def p_of_times(pairs: Sequence[tuple[Time, Time]]) -> float:
    """Return the two-sided p-value for the hypothesis that both times are alike on average.

    Twice the smaller of two one-sided p-values of Student's test of the logarithms of the ratios: that their mean is
    above 0, from the lower bounds of the ratios, and that it is below, from the upper bounds. Where all times are known
    that is the two-sided test. The mean of the bounds is below (above) that of the ratios, so it errs on the safe side.

    Args:
        pairs: Times of the arm and of uniform masks.

    Returns:
        The p-value; 1 where nothing is known.
    """
    with np.errstate(divide="ignore"):
        lows, highs = (
            np.log([getattr(one, mine) for one, _ in pairs]) - np.log([getattr(two, theirs) for _, two in pairs])
            for mine, theirs in (("low", "high"), ("high", "low"))
        )
    return min(1.0, 2 * min(_one_sided(lows), _one_sided(-highs)))


def _one_sided(values: np.ndarray) -> float:
    """Return the p-value of Student's test that a mean is above 0; of values that are all alike, of the sign test."""
    if not np.isfinite(values).all():
        return 1.0
    if np.ptp(values) > ALIKE:
        return float(stats.ttest_1samp(values, 0.0, alternative="greater").pvalue)
    return 0.5 ** len(values) if values.min() > ALIKE else 1.0


def p_of(differences: np.ndarray) -> float:
    """Return the two-sided p-value for a mean of zero: Student's, or the sign test of differences not all finite."""
    if not np.isfinite(differences).all():
        told = differences[~np.isnan(differences) & (differences != 0)]
        return float(stats.binomtest(int((told > 0).sum()), len(told)).pvalue) if len(told) else 1.0
    return min(1.0, 2 * min(_one_sided(differences), _one_sided(-differences)))


def holm(p_values: Sequence[float], count: int = 0) -> list[float]:
    """Correct p-values for their number, by Holm's method (1979): the family-wise error is at most the level.

    The i-th smallest of n is multiplied by ``n - i + 1``, made no smaller than those before it, and cut at 1.

    Args:
        p_values: Of all hypotheses, or of some.
        count: Of all hypotheses, where these are some; the others are taken for the least likely to be rejected.

    Returns:
        The corrected ones, in the same order.
    """
    order = np.argsort(p_values)
    scaled = np.array(p_values)[order] * (max(count, len(p_values)) - np.arange(len(p_values)))
    corrected = np.minimum(np.maximum.accumulate(scaled), 1.0)
    found = np.empty(len(p_values))
    found[order] = corrected
    return found.tolist()


def corrected(each: Sequence[Standing]) -> tuple[list[float], list[float]]:
    """Return the p-values of the seconds and of the losses of a regime's arms, by Holm's method over all its arms."""
    if not each:
        return [], []
    count = len(arms.ARMS[each[0].regime]) - 1
    return holm([one.p_sooner for one in each], count), holm([one.p_better for one in each], count)


def resolution(each: Sequence[Standing]) -> float:
    """Return by what factor control and placebo come to the target sooner or later, in steps; 1 where neither ran."""
    return max((_factor(one.steps) for one in each if one.arm in (arms.CONTROL, arms.PLACEBO)), default=1.0)


def _factor(ratio: Ratio) -> float:
    return max(ratio.low, 1 / ratio.high) if ratio.high > 0 else np.inf


def verdicts(each: Sequence[Standing]) -> dict[str, list[Standing]]:
    """Sort the arms of a regime into those that are clearly sooner, clearly later, and the rest.

    Control and placebo belong to the rest, and so does what differs by a smaller factor than these.
    """
    found: dict[str, list[Standing]] = {"sooner": [], "later": [], "not told apart": []}
    for one, p in zip(each, corrected(each)[0], strict=True):
        clear = p < LEVEL and _factor(one.seconds) > resolution(each)
        clear = clear and one.arm not in (arms.CONTROL, arms.PLACEBO)
        found[("sooner" if one.seconds.high < 1 else "later") if clear else "not told apart"].append(one)
    return found
