"""A number with its interval, or the reason why there is none."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import Any


@dataclass(frozen=True)
class Estimate:
    """A point estimate with a 95 % confidence interval.

    Attributes:
        estimate: The value; None where it is not resolved.
        low: Lower end; None where there is none.
        high: Upper end; None where there is none.
        reason: Why something is None.

    Examples:
        >>> import gradvar
        >>> share = gradvar.Estimate(0.838, 0.79, 0.885)
        >>> print(share)
        0.838 [0.79, 0.885]
        >>> print(gradvar.Estimate(None, low=3.53, reason="take more sentences"))
        not resolved (at least 3.53)
    """

    estimate: float | None
    low: float | None = None
    high: float | None = None
    reason: str | None = None

    def __post_init__(self) -> None:
        for value in (self.estimate, self.low, self.high):
            if value is not None and not isfinite(value):
                raise ValueError(f"an estimate must be finite or None, not {value}")
        if self.reason is None and None in (self.estimate, self.low, self.high):
            raise ValueError("a missing value needs its reason")

    @property
    def resolved(self) -> bool:
        """Whether there is a point estimate."""
        return self.estimate is not None

    def clip(self, low: float, high: float) -> Estimate:
        """Cut the interval, and the estimate, to a range that the true value cannot leave."""

        def cut(x: float | None) -> float | None:
            return None if x is None else min(max(x, low), high)

        return Estimate(cut(self.estimate), cut(self.low), cut(self.high), self.reason)

    def to_json(self) -> dict[str, Any]:
        """Return ``{"estimate", "low", "high"}``, with ``"reason"`` where a value is missing."""
        if self.estimate is None and self.low is None and self.high is None:
            return {"estimate": None, "reason": self.reason}
        fields: dict[str, Any] = {"estimate": self.estimate, "low": self.low, "high": self.high}
        return fields if self.reason is None else fields | {"reason": self.reason}

    def __str__(self) -> str:
        """Format with three significant digits."""
        if self.estimate is None:
            bound = f" (at least {self.low:.3g})" if self.low is not None else ""
            return f"not resolved{bound}"
        if self.low is None or self.high is None:
            return f"{self.estimate:.3g} (no interval)"
        return f"{self.estimate:.3g} [{self.low:.3g}, {self.high:.3g}]"


def unresolved(reason: str, low: float | None = None) -> Estimate:
    """Make an estimate that is not resolved, perhaps with a lower bound."""
    return Estimate(None, low, None, reason)
