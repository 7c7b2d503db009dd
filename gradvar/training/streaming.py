"""Training data that come one after another: shuffled block by block, replayed to go on, never held as a whole."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import count, islice
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import IterableDataset

from gradvar.errors import GradvarError
from gradvar.huggingface.vocabulary import Vocabulary
from gradvar.training.order import Place, check_shared
from gradvar.training.sequences import LOOKED_AT, Limits, check_dataset, collate, ids_of

BLOCK = 10_000
"""Sequences that are shuffled together, where nothing else is said."""


class Stream(IterableDataset):  # type: ignore[type-arg]
    """Micro-batches of a run whose data have no numbers: whatever the ranks and micro-batches, a step sees the same.

    The data are read from their beginning for every epoch and by every rank, of which each keeps its part; sequences
    are shuffled in blocks, by (seed, epoch, block). Which ones a step sees is a function of (seed, step) and of the
    data, so a run goes on by reading again what it has seen. One block and one step are held in memory.

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
        self._plan: tuple[int, int, int, int, int] | None = None
        self._start: Callable[[], int] = int
        self.longest = max((len(ids) for _, ids in islice(self._epoch(), LOOKED_AT)), default=0)
        if not self.longest:
            raise GradvarError(f"{name} holds no sequence")

    def planned(
        self, batch: int, seed: int, accumulation: int, rank: int, world: int, start: Callable[[], int]
    ) -> Stream:
        """Say how it is gone through.

        Args:
            batch: Sequences of a step, of all ranks and micro-batches together.
            seed: Of the order.
            accumulation: Micro-batches of a step.
            rank: Number of this process.
            world: Number of processes.
            start: Says at which step to begin, when iteration begins.

        Returns:
            The stream itself.

        Raises:
            GradvarError: If a step cannot be shared out.
        """  # noqa: DOC502
        check_shared(batch, accumulation, world)
        self._plan, self._start = (batch, seed, accumulation, rank, world), start
        return self

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """Go through the micro-batches of this rank, from the step that the run is at; without end.

        Yields:
            See :func:`~gradvar.training.sequences.collate`.
        """
        assert self._plan is not None
        batch, seed, accumulation, rank, world = self._plan
        start, size, places = self._start(), batch // (accumulation * world), self._places(seed)
        for step in count():
            shown = list(islice(places, batch))
            if step < start:
                continue
            for micro in range(accumulation):
                first = (micro * world + rank) * size
                some = shown[first : first + size]
                yield collate([(Place(step, epoch, row), ids) for epoch, row, ids in some])

    def _places(self, seed: int) -> Iterator[tuple[int, int, np.ndarray]]:
        """Go through epochs, shuffled.

        Yields:
            Number of the epoch, of the sequence, and its ids.
        """
        for epoch in count():
            sequences = self._epoch()
            for number in count():
                block = list(islice(sequences, self._block))
                if not block and not number:
                    raise GradvarError(f"{self._name} held no sequence when it was gone through again")
                if not block:
                    break
                for i in np.random.default_rng([seed, epoch, number]).permutation(len(block)):
                    row, ids = block[i]
                    yield epoch, row, ids

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

    @property
    def batch(self) -> int:
        """Sequences of a step."""
        assert self._plan is not None
        return self._plan[0]

    def epochs(self, step: int) -> None:
        """Nobody knows how much there is."""

    def phase(self, step: int) -> tuple[int, int]:
        """Return the number of the only phase, and the step at which it begins."""
        return 0, 0
