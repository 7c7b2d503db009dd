"""Which sequences a step sees: a pure function of (seed, step), whatever the ranks, workers and micro-batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np

from gradvar.errors import GradvarError

PIECE = 2**40
"""Between the numbers of two pieces of one sequence: more than there are sequences."""


class Place(NamedTuple):
    """A sequence in a run.

    Attributes:
        step: Optimizer step that it is in, from 0.
        epoch: How often all sequences came before.
        row: Its number in the data set.
        start: Where the piece of it begins that is shown, in tokens of its text.
        stop: Where that piece ends; None shows the whole sequence.
    """

    step: int
    epoch: int
    row: int
    start: int = 0
    stop: int | None = None

    @property
    def number(self) -> int:
        """What tells it from all other pieces of the data set, for the masks: the row where it is whole."""
        return self.row + PIECE * self.start


@dataclass(frozen=True)
class Order:
    """Epochs one after another, each in an order of its own; whole batches, so that an epoch's tail is carried over.

    Args:
        rows: Sequences of the data set.
        batch: Sequences of a step, of all ranks and micro-batches together.
        seed: Seed of the orders.
        number: Of the phase that it is for; each has orders of its own.

    Raises:
        GradvarError: If there are fewer sequences than a step takes.
    """

    rows: int
    batch: int
    seed: int
    number: int = 0
    _last: dict[int, np.ndarray] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.rows < self.batch:
            raise GradvarError(
                f"the training data hold {self.rows} sequences, fewer than the {self.batch} of one step; give more "
                "text, a smaller batch, or shorter sequences"
            )

    def at(self, step: int) -> list[Place]:
        """List the sequences of a step.

        Args:
            step: From 0.

        Returns:
            ``batch`` places.
        """
        numbers = range(step * self.batch, (step + 1) * self.batch)
        pairs = (divmod(number, self.rows) for number in numbers)
        return [Place(step, epoch, int(self._epoch(epoch)[index])) for epoch, index in pairs]

    def _epoch(self, epoch: int) -> np.ndarray:
        if epoch not in self._last:
            self._last.pop(epoch - 2, None)  # a step touches two epochs at most
            self._last[epoch] = self._permuted(epoch)
        return self._last[epoch]

    def _permuted(self, epoch: int) -> np.ndarray:
        key = [self.seed, epoch, *([self.number] if self.number else [])]
        return np.random.default_rng(key).permutation(self.rows)

    def steps_for(self, tokens: int, lengths: np.ndarray) -> int:
        """Count the steps that see at least so many tokens.

        Args:
            tokens: The budget.
            lengths: ``[rows]`` tokens of each sequence, times how often a step shows it to the model.

        Returns:
            Steps, one at least.
        """
        epochs, rest = divmod(tokens, int(lengths.sum()))
        numbers = epochs * self.rows
        if rest:
            seen = np.cumsum(lengths[self._permuted(epochs)])
            numbers += int(np.searchsorted(seen, rest)) + 1
        return max(1, -(-numbers // self.batch))


class Steps(Protocol):
    """Which sequences each step of a run sees."""

    @property
    def batch(self) -> int:
        """Sequences of a step, where they are whole."""

    def at(self, step: int) -> list[Place]:
        """List the sequences of a step, a multiple of :attr:`batch`."""


def check_shared(batch: int, accumulation: int, world: int) -> None:
    """Refuse steps that cannot be shared out.

    Args:
        batch: Sequences of a step.
        accumulation: Micro-batches of a step on each process.
        world: Number of processes.

    Raises:
        GradvarError: If they cannot.
    """
    if batch % (accumulation * world):
        raise GradvarError(
            f"{batch} sequences a step cannot be shared among {world} processes with {accumulation} micro-batches "
            "each; give a multiple"
        )


class RankBatches:
    """What one rank loads, micro-batch by micro-batch, from whatever step the run is at; it has no end.

    A batch sampler for :class:`torch.utils.data.DataLoader`.

    Args:
        order: The order of the run.
        accumulation: Micro-batches of a step.
        rank: Number of this process.
        world: Number of processes.
        start: Says at which step to begin, when iteration begins.
    """

    def __init__(self, order: Steps, accumulation: int, rank: int, world: int, start: Callable[[], int]) -> None:
        check_shared(order.batch, accumulation, world)
        self._order, self._accumulation, self._rank, self._world = order, accumulation, rank, world
        self._start = start

    def __iter__(self) -> Iterator[list[Place]]:
        step = self._start()
        while True:
            places = self._order.at(step)
            size = len(places) // (self._accumulation * self._world)
            for micro in range(self._accumulation):
                first = (micro * self._world + self._rank) * size
                yield places[first : first + size]
            step += 1
