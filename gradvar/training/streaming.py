"""Training data that come one after another: shuffled block by block, replayed to go on, never held as a whole."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import count, islice
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor
from torch.utils.data import IterableDataset

from gradvar.errors import GradvarError
from gradvar.huggingface.vocabulary import Vocabulary
from gradvar.training.order import Place, check_shared
from gradvar.training.pieces import cut, piece
from gradvar.training.schedule import Schedule
from gradvar.training.sequences import LOOKED_AT, Limits, check_dataset, collate, ids_of

BLOCK = 10_000
"""Sequences that are shuffled together, where nothing else is said."""


@dataclass(frozen=True)
class Share:
    """How a stream is gone through, and which part of it one rank takes.

    Args:
        batch: Sequences of a step, where they are whole, of all ranks and micro-batches together.
        seed: Of the order.
        accumulation: Micro-batches of a step.
        rank: Number of this process.
        world: Number of processes.
        lengths: Tokens of a sequence as it is shown by the share of the budget; None shows whole ones.
        steps: The budget, or
        tokens: The budget, where it is one in tokens.
        shown: How often a step shows a sequence to the model.

    Raises:
        GradvarError: If a step cannot be shared out.
    """

    batch: int
    seed: int
    accumulation: int = 1
    rank: int = 0
    world: int = 1
    lengths: Schedule | None = None
    steps: int = 1
    tokens: int | None = None
    shown: int = 1

    def __post_init__(self) -> None:
        check_shared(self.batch, self.accumulation, self.world)

    def length_at(self, step: int, tokens: int) -> int | None:
        """Tell how long pieces are in a step before which so many tokens were gone through; None for whole ones."""
        if self.lengths is None:
            return None
        used = step / self.steps if self.tokens is None else tokens * self.shown / self.tokens
        return int(self.lengths.at(used))

    def own(self, step: list[_Unit]) -> Iterator[list[_Unit]]:
        """Go through the micro-batches of this rank.

        Yields:
            Its part of a step.
        """
        size = len(step) // (self.accumulation * self.world)
        for micro in range(self.accumulation):
            first = (micro * self.world + self.rank) * size
            yield step[first : first + size]


class _Unit(NamedTuple):
    """A sequence of a block, or the piece of it that is shown: see :class:`Place`."""

    epoch: int
    row: int
    ids: np.ndarray
    tokens: int
    start: int = 0
    stop: int | None = None


class Stream(IterableDataset):  # type: ignore[type-arg]
    """Micro-batches of a run whose data have no numbers: whatever the ranks and micro-batches, a step sees the same.

    The data are read from their beginning for every epoch and by every rank, of which each keeps its part; sequences
    are shuffled in blocks, by (seed, epoch, block). Which ones a step sees is a function of (seed, step) and of the
    data, so a run goes on by reading again what it has seen. One block and one step are held in memory. Where
    sequences are shown in pieces it is the pieces of a block that are shuffled; where their length changes, what is
    left of a block is left out. A step sees as many more of them as fit the longest of the first 256 sequences.

    Args:
        dataset: Gives items with ``input_ids`` one after another, the same ones each time that it is gone through.
        name: What the user calls it.
        limits: Of the model.
        block: Sequences that are shuffled together.

    Raises:
        GradvarError: If it holds no sequence, or its first ones are none.
    """

    def __init__(self, dataset: Iterable[Any], name: str, limits: Limits, block: int = BLOCK) -> None:
        check_dataset(dataset, name)
        self._dataset, self._name, self._limits, self._block = dataset, name, limits, block
        self._share: Share | None = None
        self._start: Callable[[], int] = int
        self.longest = max((len(ids) for _, ids in islice(self._epoch(), LOOKED_AT)), default=0)
        if not self.longest:
            raise GradvarError(f"{name} holds no sequence")

    def planned(self, share: Share, start: Callable[[], int]) -> Stream:
        """Say how it is gone through.

        Args:
            share: How, and by whom.
            start: Says at which step to begin, when iteration begins.

        Returns:
            The stream itself.

        Raises:
            GradvarError: If the special tokens leave no room in a piece.
        """  # noqa: DOC502
        frame, special = self._limits.frame, self._limits.special
        for length in share.lengths.values if share.lengths else ():
            list(cut(frame.around(np.empty(0, dtype=np.int64)), frame, int(length), special))
        self._share, self._start = share, start
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Go to a loading process, which begins where the run is now."""
        return self.__dict__ | {"_start": partial(int, self._start())}

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """Go through the micro-batches of this rank, from the step that the run is at; without end.

        Yields:
            See :func:`~gradvar.training.sequences.collate`.
        """
        assert self._share is not None
        start = self._start()
        for step, units in enumerate(self._steps(self._share)):
            if step < start:
                continue
            for some in self._share.own(units):
                yield collate([self._placed(unit, step) for unit in some])

    def _placed(self, unit: _Unit, step: int) -> tuple[Place, np.ndarray]:
        ids = unit.ids if unit.stop is None else piece(unit.ids, self._limits.frame, unit.start, unit.stop)
        return Place(step, unit.epoch, unit.row, unit.start, unit.stop), ids

    def _steps(self, share: Share) -> Iterator[list[_Unit]]:
        """Go through the steps of all ranks.

        Yields:
            What a step sees.
        """
        blocks, rest, tokens, length, fruitful = self._blocks(), deque[_Unit](), 0, None, 0
        for step in count():
            before, length = length, share.length_at(step, tokens)
            if length != before:
                rest.clear()
            size = share.batch * (max(1, self.longest // length) if length else 1)
            while len(rest) < size:
                epoch, some = self._shuffled(share.seed, length, *next(blocks))
                fruitful = epoch if some else fruitful
                if epoch > fruitful + 1:
                    raise GradvarError(f"{self._name} holds only special tokens, of which none can be masked")
                rest.extend(some)
                del some  # before the next block is read
            units = [rest.popleft() for _ in range(size)]
            tokens += sum(unit.tokens for unit in units)
            yield units

    def _shuffled(
        self, seed: int, length: int | None, epoch: int, number: int, block: list[tuple[int, np.ndarray]]
    ) -> tuple[int, list[_Unit]]:
        units = [unit for row, ids in block for unit in self._units(epoch, row, ids, length)]
        return epoch, [units[i] for i in np.random.default_rng([seed, epoch, number]).permutation(len(units))]

    def _units(self, epoch: int, row: int, ids: np.ndarray, length: int | None) -> Iterator[_Unit]:
        """Cut a sequence into what is shown of it.

        Yields:
            The whole, or pieces.
        """
        if length is None:
            yield _Unit(epoch, row, ids, len(ids))
            return
        for start, stop, tokens, _ in cut(ids, self._limits.frame, length, self._limits.special):
            yield _Unit(epoch, row, ids, tokens, start, stop)

    def _blocks(self) -> Iterator[tuple[int, int, list[tuple[int, np.ndarray]]]]:
        """Go through epochs, without end.

        Yields:
            Number of the epoch and, in it, of the block, and the block's sequences, each with its number.
        """
        for epoch in count():
            sequences = self._epoch()
            for number in count():
                block = list(islice(sequences, self._block))
                if not block and not number:
                    raise GradvarError(f"{self._name} held no sequence when it was gone through again")
                if not block:
                    break
                yield epoch, number, block
                del block  # before the next one is read

    def _epoch(self) -> Iterator[tuple[int, np.ndarray]]:
        """Go through the data once, in their order.

        Yields:
            Number of the sequence, and its ids.
        """
        for row, item in enumerate(self._dataset):
            yield row, ids_of(item, row, self._name, self._limits)

    # ---- what the trainer asks of sequences, and of the order of a run

    def totals(self, vocabulary: Vocabulary) -> Tensor:
        """Refuse: it takes a pass over the data."""
        raise GradvarError(
            f"{self._name} is a stream, of which nobody knows how many targets its sequences have: masking.weighting "
            "'token' and disjoint masks take data that are not streamed"
        )

    def token_counts(self, vocabulary: Vocabulary) -> Tensor:
        """Refuse: it takes a pass over the data."""
        raise GradvarError(
            f"{self._name} is a stream, of which nobody knows how often a token occurs: the score 'frequency' takes "
            "data that are not streamed"
        )

    def epochs(self, step: int) -> None:
        """Nobody knows how much there is."""
