"""What the user sees while a command runs: whether this process speaks, a status, and progress in cells."""

import os
import time
from collections.abc import Callable
from typing import Any


def speaks() -> bool:
    """Whether this process talks to the user: of those that `torchrun` starts, only the first does."""
    return int(os.environ.get("RANK", "0")) == 0


def status(console: Any, text: str) -> Any:
    """Show a spinner on a terminal, a line elsewhere."""
    if console.is_terminal:
        return console.status(text)
    from contextlib import nullcontext

    console.print(text)
    return nullcontext()


class Progress:
    """Cells done, cells a second and time left: a bar on a terminal, a line every ten seconds elsewhere.

    Args:
        console: Where.
        unit: What is counted, if not cells.
    """

    def __init__(self, console: Any, unit: str = "cells") -> None:
        self._console, self._unit = console, unit
        self._bar: Any = None
        self._task: Any = None
        self._start = self._said = time.monotonic()

    def __enter__(self) -> Callable[[int, int], None]:
        self._start = self._said = time.monotonic()
        if self._console.is_terminal:
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            self._bar = Progress(
                TextColumn(self._unit),
                BarColumn(),
                TextColumn(f"{{task.completed:.0f}}/{{task.total:.0f}}  {{task.fields[speed]}} {self._unit}/s"),
                TimeRemainingColumn(),
                TextColumn("left"),
                console=self._console,
                transient=True,
            )
            self._bar.start()
        return self._update

    def _update(self, done: int, total: int) -> None:
        now = time.monotonic()
        speed = done / max(now - self._start, 1e-9)
        if self._bar is not None:
            if self._task is None:
                self._task = self._bar.add_task(self._unit, total=total, speed="")
            self._bar.update(self._task, completed=done, speed=f"{speed:.0f}")
        elif now - self._said >= 10 or done == total:
            self._said, unit = now, self._unit
            left = (total - done) / speed
            self._console.print(f"{done}/{total} {unit}, {speed:.0f} {unit}/s, {left:.0f} s left", highlight=False)

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.stop()
