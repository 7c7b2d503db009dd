"""The time that a run has taken, and a schedule that follows it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from gradvar.errors import GradvarError

VIRTUAL = 10**6
"""Steps of a schedule that follows a clock."""


class Clock:
    """Seconds of training, of all sessions of a run: evaluation, checkpoints and looks at the variance apart."""

    def __init__(self) -> None:
        self._before, self._since = 0.0, time.monotonic()

    def start(self) -> None:
        """Begin a session."""
        self._since = time.monotonic()

    def go_on_from(self, seconds: float) -> None:
        """Count from what earlier sessions took."""
        self._before = seconds

    @property
    def seconds(self) -> float:
        """What it shows."""
        return self._before + (time.monotonic() - self._since)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stop it for a while."""
        start = time.monotonic()
        try:
            yield
        finally:
            self._since += time.monotonic() - start


def follow(schedule: Any, name: str, progress: Callable[[], float]) -> None:
    """Let a schedule of :data:`VIRTUAL` steps go by the share of a budget that is used, whatever step it is.

    Args:
        schedule: A scheduler of torch's by factors.
        name: What it is called, for messages.
        progress: Gives the share.

    Raises:
        GradvarError: If it goes by something else, such as the held-out loss.
    """
    if not hasattr(schedule, "lr_lambdas"):
        raise GradvarError(f"the schedule '{name}' cannot follow a clock; take cosine")

    def following(shape: Callable[[int], float]) -> Callable[[int], float]:
        return lambda _: shape(round(min(1.0, progress()) * VIRTUAL))

    schedule.lr_lambdas = [following(shape) for shape in schedule.lr_lambdas]
