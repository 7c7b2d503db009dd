"""The time at which a curve of losses first reaches a target, known to lie in an interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, inf, isfinite, isinf, log
from typing import Any


@dataclass(frozen=True)
class Time:
    """A time, in steps, tokens or seconds, of which it is known that it lies in ``[low, high]``.

    Attributes:
        low: Lower end, 0 or more; that of a run that never got there is its last look at the loss, and its time is
            longer than that.
        high: Upper end; infinite for a run that never got there.
    """

    low: float
    high: float

    @property
    def observed(self) -> bool:
        """Whether it is known."""
        return self.low == self.high

    @property
    def censored(self) -> bool:
        """Whether the run ended before."""
        return isinf(self.high)

    @property
    def early(self) -> bool:
        """Whether it was over by the first look, at some time that nobody saw."""
        return self.low < self.high < inf or self.high == 0

    def to_json(self) -> dict[str, Any]:
        """Return the ends; the upper one is None where the run ended before."""
        return {"low": self.low, "high": None if self.censored else self.high}

    def __str__(self) -> str:
        """Write a number with thousands, and which side of it the time is on."""
        if self.observed:
            return number(self.low)
        if self.censored:
            return f"> {number(self.low)}" if self.low > 0 else "not resolved"
        return f"≤ {number(self.high)}"


def number(x: float) -> str:
    """Write three significant digits, or a whole number with thousands."""
    return f"{x:,.0f}" if x >= 100 or x == 0 else f"{x:.3g}"


def time_to(target: float, times: Sequence[float], losses: Sequence[float]) -> Time:
    """Find when a loss was first at a target or below.

    Between the last look above the target, ``(t, l)``, and the first that is not, ``(t', l')``, the loss is taken to
    fall on a straight line: ``t + (t' - t)(l - target)/(l - l')``. A curve that is below from the start was there at
    some time up to its first look; one that never gets there, at some time after its last. A loss that is not finite is
    above every target, and there is no line from it: the time is that of the next look.

    Args:
        target: The loss.
        times: ``[n]`` when it was looked at, rising, not negative; at least one.
        losses: ``[n]`` what it was.

    Returns:
        The time.
    """
    for number_, (time, loss) in enumerate(zip(times, losses, strict=True)):
        if not loss <= target:  # a loss that is no number has not reached anything
            continue
        if number_ == 0:
            return Time(0.0, float(time))
        before, above = times[number_ - 1], losses[number_ - 1]
        if not isfinite(above):
            return Time(float(time), float(time))
        found = float(before + (time - before) * (above - target) / (above - loss))
        return Time(found, found)
    return Time(float(times[-1]), inf)


def geometric_mean(times: Sequence[Time]) -> Time:
    """Average times: the geometric mean of their lower ends, and of their upper ones."""

    def mean(values: list[float]) -> float:
        if min(values) <= 0:
            return 0.0
        return inf if isinf(max(values)) else exp(sum(map(log, values)) / len(values))

    return Time(mean([time.low for time in times]), mean([time.high for time in times]))
