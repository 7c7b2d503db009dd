"""Tokenised sequences of any data set, as the trainer loads them."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from gradvar.errors import GradvarError
from gradvar.huggingface.checkpoint import longest_sequence
from gradvar.huggingface.corpus import special_frame
from gradvar.huggingface.vocabulary import Vocabulary
from gradvar.training.order import Place
from gradvar.training.pieces import Frame, Units, piece, units_of

_AT_ONCE = 1000  # sequences
LOOKED_AT = 256  # sequences that tell how long sequences are


class Limits(NamedTuple):
    """What a model and its tokenizer take.

    Attributes:
        tokens: Size of the vocabulary.
        positions: Tokens of the longest sequence.
        frame: Special tokens around a sequence.
        special: All special tokens.
    """

    tokens: int
    positions: int
    frame: Frame = Frame()
    special: frozenset[int] = frozenset()

    @classmethod
    def of(cls, model: nn.Module, tokenizer: Any) -> Limits:
        """Take them from a masked LM and its tokenizer."""
        frame = Frame(*map(tuple, special_frame(tokenizer)))
        return cls(len(tokenizer), longest_sequence(model, tokenizer), frame, frozenset(tokenizer.all_special_ids))


def check_dataset(dataset: Any, name: str) -> None:
    """Refuse what is no data set.

    Args:
        dataset: What was given.
        name: What the user calls it.

    Raises:
        GradvarError: If it is text, a dict, or cannot be gone through again.
    """
    if isinstance(dataset, str):
        raise GradvarError(f"{name} is text ('{dataset[:20]}'); give tokenised sequences")
    if isinstance(dataset, Mapping):
        raise GradvarError(f"{name} is a dict ({', '.join(map(str, dataset))}); give one data set")
    if not hasattr(dataset, "__iter__") and not is_numbered(dataset):
        raise GradvarError(f"{name} is a {type(dataset).__name__}; give a data set of tokenised sequences")
    if hasattr(dataset, "__next__"):
        raise GradvarError(
            f"{name} is a {type(dataset).__name__}, which can be gone through only once; give a data set that can be "
            "gone through again"
        )


def is_numbered(dataset: Any) -> bool:
    """Whether a data set has a length, and items by number; otherwise it is a stream."""
    return hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")


def ids_of(item: Any, row: int, name: str, limits: Limits) -> np.ndarray:
    """Take the tokens of a sequence from an item of a data set.

    Args:
        item: It, with ``input_ids``; ``attention_mask`` says what is padding.
        row: Its number.
        name: What the user calls the data set.
        limits: Of the model.

    Returns:
        ``[length]`` int64 ids.

    Raises:
        GradvarError: If it is none, or the model does not take it.
    """
    if not isinstance(item, Mapping) or "input_ids" not in item:
        held = f"has {', '.join(map(str, item))}" if isinstance(item, Mapping) else f"is a {type(item).__name__}"
        raise GradvarError(f"sequence {row} of {name} {held}; tokenise it: it needs input_ids")
    ids = _array(item["input_ids"])
    attended = _array(item["attention_mask"]) if "attention_mask" in item else np.ones_like(ids)
    if ids.ndim != 1 or attended.shape != ids.shape or not attended.any():
        raise GradvarError(f"input_ids of sequence {row} of {name} are no list of tokens, or are all masked")
    ids = ids[attended.astype(bool)]
    if ids.min() < 0 or ids.max() >= limits.tokens:
        wrong = ids.max() if ids.min() >= 0 else ids.min()
        raise GradvarError(
            f"sequence {row} of {name} holds token {wrong}, which is none of the tokenizer's {limits.tokens}; tokenise "
            "it by processing_class"
        )
    if len(ids) > limits.positions:
        raise GradvarError(
            f"sequence {row} of {name} has {len(ids)} tokens, beyond the {limits.positions} positions of the model; "
            "cut it"
        )
    return ids


class Sequences(Dataset):  # type: ignore[type-arg]
    """Sequences as arrays of ids, by number or by place.

    Args:
        dataset: Items by number, each with ``input_ids``; ``attention_mask`` says what is padding.
        name: What the user calls it.
        limits: Of the model.

    Raises:
        GradvarError: If it is none, here or when a sequence is loaded.
    """

    def __init__(self, dataset: Any, name: str, limits: Limits) -> None:
        self._name, self._limits = name, limits
        check_dataset(dataset, name)
        if len(dataset) == 0:
            raise GradvarError(f"{name} holds no sequence")
        transformed = getattr(dataset, "format", {}).get("type") == "custom"  # by a function of the user's
        self._dataset = dataset.with_format("numpy") if hasattr(dataset, "with_format") and not transformed else dataset
        self._columns = None if transformed else getattr(dataset, "column_names", None)
        self[0]

    def __len__(self) -> int:
        """Count them."""
        return len(self._dataset)

    def __getitem__(self, row: int) -> np.ndarray:
        """Return ``[length]`` int64 ids."""
        return ids_of(self._dataset[int(row)], row, self._name, self._limits)

    def __getitems__(self, places: Sequence[Place]) -> list[tuple[Place, np.ndarray]]:
        """Return those of a micro-batch, or the pieces of them that are shown, each with its place."""
        return [(place, self._shown(place)) for place in places]

    def _shown(self, place: Place) -> np.ndarray:
        ids = self[place.row]
        return ids if place.stop is None else piece(ids, self._limits.frame, place.start, place.stop)

    def __iter__(self) -> Iterator[np.ndarray]:
        """Go through all of them once: many at a time, where the data set is Arrow's.

        Yields:
            ``[length]`` int64 ids.
        """
        if self._columns != ["input_ids"]:
            yield from (self[row] for row in range(len(self)))
            return
        for start in range(0, len(self), _AT_ONCE):
            for row, ids in enumerate(self._dataset[start : start + _AT_ONCE]["input_ids"], start):
                yield ids_of({"input_ids": ids}, row, self._name, self._limits)

    @property
    def longest(self) -> int:
        """Tokens of the longest of the first sequences, which tell what the others are like."""
        return max(len(self[i]) for i in range(min(len(self), LOOKED_AT)))

    def totals(self, vocabulary: Vocabulary) -> Tensor:
        """``[rows]`` maskable positions of each; takes a pass over the data."""
        return torch.tensor([vocabulary.maskable_in(ids) for ids in self])

    def token_counts(self, vocabulary: Vocabulary) -> Tensor:
        """``[vocabulary]`` how often each ordinary token occurs; takes a pass over the data."""
        return vocabulary.counts_in(list(self))

    def lengths(self) -> np.ndarray:
        """``[rows]`` tokens of each; takes a pass over the data."""
        return np.array([len(ids) for ids in self])

    def cut(self, length: int) -> Units:
        """Cut all of them; takes a pass over the data. See :func:`~gradvar.training.pieces.cut`."""
        return units_of(self, self._limits.frame, length, self._limits.special)


def collate(sequences: list[tuple[Place, np.ndarray]]) -> dict[str, Tensor]:
    """Pad sequences to one length.

    Args:
        sequences: With their places.

    Returns:
        ``ids`` ``[rows, positions]``, -1 where padded, and ``row`` (:attr:`Place.number`), ``epoch`` and ``step``
        ``[rows]``: what
        :class:`~gradvar.JointModel` takes.
    """
    places = [place for place, _ in sequences]
    ids = nn.utils.rnn.pad_sequence([torch.from_numpy(x) for _, x in sequences], batch_first=True, padding_value=-1)
    return {
        "ids": ids,
        "row": torch.tensor([place.number for place in places]),
        "epoch": torch.tensor([place.epoch for place in places]),
        "step": torch.tensor([place.step for place in places]),
    }


def loader(data: Any, workers: int, **options: Any) -> DataLoader:  # type: ignore[type-arg]
    """Load micro-batches, in order and without end.

    Args:
        data: Sequences, with a ``batch_sampler`` and :func:`collate` among the options, or a stream of micro-batches.
        workers: Processes that load.
        **options: As :class:`torch.utils.data.DataLoader` takes them.

    Returns:
        The loader.
    """
    return DataLoader(
        data,
        num_workers=workers,
        worker_init_fn=_Deaf() if workers else None,
        generator=torch.Generator(),  # so that workers take nothing from the random numbers of dropout
        **options,
    )


class _Deaf:
    """Lets a signal to the whole process group end the run by the main process, which saves first.

    When the main process ends it sends SIGTERM, too, and waits: then a worker goes.
    """

    def __init__(self) -> None:
        self._ending = multiprocessing.Event()
        atexit.register(self._ending.set)  # before multiprocessing's own, which was registered earlier

    def __call__(self, _: int) -> None:
        """Be deaf, in a worker."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, self._heard)

    def _heard(self, *_: Any) -> None:
        if self._ending.is_set():
            os._exit(0)


def _array(values: Any) -> np.ndarray:
    """``[...]`` int64; empty where these are no numbers."""
    try:
        return np.asarray(values, dtype=np.int64)
    except (ValueError, TypeError):
        return np.empty(0, dtype=np.int64)
