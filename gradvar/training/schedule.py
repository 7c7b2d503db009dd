"""Numbers that change as a run goes on, by the share of its budget that is used."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any, Literal, get_args

import numpy as np
from pydantic import PlainSerializer, TypeAdapter, ValidationError, WrapValidator

from gradvar.errors import GradvarError

Kind = Literal["linear", "steps"]
_NO_NUMBERS = "the shares of a schedule are numbers, like {0: 0.3, 0.5: 0.15}"


@dataclass(frozen=True)
class Schedule:
    """A number by the share of the budget that is used.

    Attributes:
        kind: ``linear`` between points, ``steps`` from each point to the next.
        shares: Of the budget, rising from 0.
        values: At the shares; after the last share it stays as it is.

    Raises:
        ValueError: If there is no such kind, the shares do not rise from 0, to 1 at most, or a value is not finite.

    Examples:
        >>> falling = Schedule("linear", (0, 1), (0.3, 0.15))
        >>> round(falling.at(0.5), 3)
        0.225
        >>> print(falling)
        {linear: {0: 0.3, 1: 0.15}}
        >>> Schedule("steps", (0, 0.9), (16, 128)).at(0.95)
        128
    """

    kind: Kind
    shares: tuple[float, ...]
    values: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.shares or len(self.shares) != len(self.values):
            raise ValueError("a schedule takes a value for each share of the budget, like {0: 0.3, 1: 0.15}")
        if self.kind not in get_args(Kind):
            raise ValueError(f"there is no schedule '{self.kind}'; take linear, or steps")
        shares: tuple[Any, ...] = self.shares
        if not all(isinstance(share, Real) and not isinstance(share, bool) for share in shares):
            raise ValueError(_NO_NUMBERS)
        if self.shares[0] != 0 or not all(a < b for a, b in zip(self.shares, self.shares[1:], strict=False)):
            raise ValueError("the shares of a schedule rise from 0, like {0: 0.3, 0.5: 0.15}")
        if not self.shares[-1] <= 1:
            raise ValueError(f"{self.shares[-1]:g} is no share of the budget; give 0 to 1")
        for value in self.values:
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"the values of a schedule are finite, not {value}")

    @classmethod
    def of(cls, value: float | Schedule) -> Schedule:
        """Take a plain number for one that stays."""
        return value if isinstance(value, Schedule) else cls("steps", (0.0,), (float(value),))

    @property
    def constant(self) -> bool:
        """Whether it stays."""
        return len(set(self.values)) == 1

    def at(self, share: float) -> float:
        """Return its value when a share of the budget is used.

        Args:
            share: 0 to 1; beyond, the last value.

        Returns:
            The value.
        """
        if self.kind == "linear":
            return float(np.interp(share, self.shares, self.values))
        return self.values[int(np.searchsorted(self.shares, share, side="right")) - 1]

    def __str__(self) -> str:
        """Write it as a recipe does."""
        points = ", ".join(f"{share:g}: {value:g}" for share, value in zip(self.shares, self.values, strict=True))
        return f"{{{self.kind}: {{{points}}}}}"


def check_lengths(lengths: float | Schedule | None, seconds: float | None) -> None:
    """Refuse a schedule of lengths that a run cannot follow.

    Args:
        lengths: Tokens of a sequence.
        seconds: Budget of the run, where it is one in seconds.

    Raises:
        GradvarError: If it changes at every step, or with time.
    """
    if isinstance(lengths, Schedule):
        if lengths.kind != "steps":
            raise GradvarError("max_length goes by steps, like {steps: {0: 16, 0.9: 128}}")
        if seconds is not None and not lengths.constant:
            raise GradvarError("a schedule of max_length takes a budget in steps or tokens, not in seconds")


def scheduled(kind: Any) -> Any:
    """Make what pydantic reads a number, or a schedule of such numbers, with.

    Args:
        kind: Type of the numbers, with its bounds.

    Returns:
        A validator for ``Annotated``; it takes a number, a :class:`Schedule`, or a mapping as recipes write it:
        ``{linear: {share: value}}`` or ``{steps: {share: value}}``.
    """
    adapter: Any = TypeAdapter(kind)

    def number(value: Any) -> Any:
        try:
            return adapter.validate_python(value)
        except ValidationError as error:
            said = error.errors(include_url=False)[0]["msg"].removeprefix("Value error, ")
            raise ValueError(f"{said[0].lower()}{said[1:]}, not {value!r}") from None

    def read(given: Any, _: Any) -> Any:
        if isinstance(given, Mapping):
            given = parse_schedule(given)
        if not isinstance(given, Schedule):
            return number(given)
        return replace(given, values=tuple(map(number, given.values)))

    return WrapValidator(read)


def is_written(value: Any) -> bool:
    """Whether a value of a recipe, as JSON has it, is a schedule."""
    return isinstance(value, Mapping) and len(value) == 1 and next(iter(value)) in get_args(Kind)


def parse_schedule(given: Mapping[Any, Any]) -> Schedule:
    """Read a schedule as recipes write it.

    Args:
        given: ``{linear: {share: value}}`` or ``{steps: {share: value}}``.

    Returns:
        The schedule; its values are as they were given.

    Raises:
        ValueError: If it is none.
    """
    if not is_written(given) or not isinstance(given[kind := next(iter(given))], Mapping):
        raise ValueError("write a schedule as {linear: {0: 0.3, 1: 0.15}} or {steps: {0: 0.3, 0.5: 0.15}}")
    try:
        if any(isinstance(share, bool) for share in given[kind]):
            raise TypeError
        points = sorted((float(share), value) for share, value in given[kind].items())
    except (TypeError, ValueError, OverflowError):
        raise ValueError(_NO_NUMBERS) from None
    return Schedule(kind, tuple(share for share, _ in points), tuple(value for _, value in points))


def _plain(value: Any) -> Any:
    """Write a schedule as a recipe does."""
    if not isinstance(value, Schedule):
        return value
    return {value.kind: dict(zip(value.shares, value.values, strict=True))}


Written = PlainSerializer(_plain)
