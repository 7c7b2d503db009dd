"""Tokenised sequences of any data set, as the trainer loads them."""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from gradvar.huggingface.vocabulary import Vocabulary
from gradvar.training.order import Place, RankBatches

_LOOKED_AT = 256  # sequences that tell how long sequences are


class Sequences(Dataset):  # type: ignore[type-arg]
    """Sequences as arrays of ids, by number or by place.

    Args:
        dataset: Items by number, each with ``input_ids``; ``attention_mask`` says what is padding.
    """

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset.with_format("numpy") if hasattr(dataset, "with_format") else dataset

    def __len__(self) -> int:
        """Count them."""
        return len(self._dataset)

    def __getitem__(self, row: int) -> np.ndarray:
        """Return ``[length]`` int64 ids."""
        item: Mapping[str, Any] = self._dataset[int(row)]
        ids = np.asarray(item["input_ids"], dtype=np.int64)
        return ids[np.asarray(item["attention_mask"], dtype=bool)] if "attention_mask" in item else ids

    def __getitems__(self, places: Sequence[Place]) -> list[tuple[Place, np.ndarray]]:
        """Return those of a micro-batch, each with its place."""
        return [(place, self[place.row]) for place in places]

    @property
    def longest(self) -> int:
        """Tokens of the longest of the first sequences, which tell what the others are like."""
        return max(len(self[i]) for i in range(min(len(self), _LOOKED_AT)))

    def totals(self, vocabulary: Vocabulary) -> Tensor:
        """``[rows]`` maskable positions of each; takes a pass over the data."""
        return torch.tensor([vocabulary.maskable_in(self[i]) for i in range(len(self))])

    def token_counts(self, vocabulary: Vocabulary) -> Tensor:
        """``[vocabulary]`` how often each ordinary token occurs; takes a pass over the data."""
        return vocabulary.counts_in([self[i] for i in range(len(self))])


def collate(sequences: list[tuple[Place, np.ndarray]]) -> dict[str, Tensor]:
    """Pad sequences to one length.

    Args:
        sequences: With their places.

    Returns:
        ``ids`` ``[rows, positions]``, -1 where padded, and ``row``, ``epoch`` and ``step`` ``[rows]``: what
        :class:`~gradvar.JointModel` takes.
    """
    places = [place for place, _ in sequences]
    ids = nn.utils.rnn.pad_sequence([torch.from_numpy(x) for _, x in sequences], batch_first=True, padding_value=-1)
    return {
        "ids": ids,
        "row": torch.tensor([place.row for place in places]),
        "epoch": torch.tensor([place.epoch for place in places]),
        "step": torch.tensor([place.step for place in places]),
    }


def loader(sequences: Sequences, batches: RankBatches, workers: int, **options: Any) -> DataLoader:  # type: ignore[type-arg]
    """Load the micro-batches of a rank, in order and without end.

    Args:
        sequences: The data.
        batches: Which of them.
        workers: Processes that load.
        **options: As :class:`torch.utils.data.DataLoader` takes them.

    Returns:
        The loader.
    """
    return DataLoader(
        sequences,
        batch_sampler=batches,
        collate_fn=collate,
        num_workers=workers,
        worker_init_fn=_deaf,
        generator=torch.Generator(),  # so that workers take nothing from the random numbers of dropout
        **options,
    )


def _deaf(_: int) -> None:
    """Let a signal to the whole process group end the run by the main process, which saves first."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
