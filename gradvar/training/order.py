"""Which sequences a step sees: a pure function of (seed, step), whatever the ranks, workers and micro-batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from gradvar.errors import GradvarError


class Place(NamedTuple):
    """A sequence in a run.

    Attributes:
        step: Optimizer step that it is in, from 0.
        epoch: How often all sequences came before.
        row: Its number in the data set.
    """

    step: int
    epoch: int
    row: int


@dataclass(frozen=True)
class Order:
    """Epochs one after another, each in an order of its own; whole batches, so that an epoch's tail is carried over.

    Args:
        rows: Sequences of the data set.
        batch: Sequences of a step, of all ranks and micro-batches together.
        seed: Seed of the orders.

    Raises:
        GradvarError: If there are fewer sequences than a step takes.
    """

    rows: int
    batch: int
    seed: int
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
            self._last[epoch] = np.random.default_rng([self.seed, epoch]).permutation(self.rows)
        return self._last[epoch]

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
            seen = np.cumsum(lengths[np.random.default_rng([self.seed, epochs]).permutation(self.rows)])
            numbers += int(np.searchsorted(seen, rest)) + 1
        return max(1, -(-numbers // self.batch))


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

    def __init__(self, order: Order, accumulation: int, rank: int, world: int, start: Callable[[], int]) -> None:
        parts = accumulation * world
        if order.batch % parts:
            raise GradvarError(
                f"{order.batch} sequences a step cannot be shared among {world} processes with {accumulation} "
                "micro-batches each; give a multiple"
            )
        self._order, self._accumulation, self._rank, self._world = order, accumulation, rank, world
        self._start, self._size = start, order.batch // parts

    def __iter__(self) -> Iterator[list[Place]]:
        step = self._start()
        while True:
            places = self._order.at(step)
            for micro in range(self._accumulation):
                first = (micro * self._world + self._rank) * self._size
                yield places[first : first + self._size]
            step += 1
