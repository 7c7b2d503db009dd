"""Pieces of sequences, for the part of a run that is shown shorter ones."""

from __future__ import annotations

from array import array
from collections.abc import Collection, Iterable, Iterator
from typing import NamedTuple

import numpy as np

from gradvar.errors import GradvarError


class Frame(NamedTuple):
    """The special tokens that a tokenizer puts around a text.

    Attributes:
        prefix: Before.
        suffix: Behind.
    """

    prefix: tuple[int, ...] = ()
    suffix: tuple[int, ...] = ()

    def of(self, ids: np.ndarray) -> Frame:
        """Return the frame that a sequence has: this one, or none."""
        a, b = len(self.prefix), len(self.suffix)
        fits = len(ids) >= a + b and tuple(ids[:a]) == self.prefix and tuple(ids[len(ids) - b :]) == self.suffix
        return self if fits else Frame()

    def body(self, ids: np.ndarray) -> np.ndarray:
        """Return ``[tokens]`` what stands in it."""
        return ids[len(self.prefix) : len(ids) - len(self.suffix)]

    def around(self, body: np.ndarray) -> np.ndarray:
        """Put it around ``[tokens]`` a text."""
        return np.concatenate([np.array(part, dtype=body.dtype) for part in (self.prefix, body, self.suffix)])


def cut(ids: np.ndarray, frame: Frame, length: int, special: Collection[int]) -> Iterator[tuple[int, int, int, int]]:
    """Cut a sequence into pieces of one length, as a text is cut into sequences.

    Args:
        ids: ``[tokens]`` the sequence.
        frame: Special tokens that each piece gets around it, where the sequence has them.
        length: Tokens of a piece with its frame.
        special: Special tokens; a piece of nothing else is left out.

    Yields:
        ``(start, stop, tokens, maskable)`` of each piece: where it is in the sequence's body, its tokens with its
        frame, and those that can be masked. A tail shorter than half a piece is left out, unless it is all there is.

    Raises:
        GradvarError: If the frame leaves no room.
    """
    own = frame.of(ids)
    body, around = own.body(ids), len(own.prefix) + len(own.suffix)
    room = length - around
    if room < 1:
        raise GradvarError(f"training.max_length {length} leaves no room beside {around} special tokens; raise it")
    least = min(len(body), max(1, -(-length // 2) - around))
    ordinary = ~np.isin(body, np.array(sorted(special)))
    for start in range(0, len(body), room):
        stop = min(start + room, len(body))
        maskable = int(ordinary[start:stop].sum())
        if stop - start >= least and maskable:
            yield start, stop, stop - start + around, maskable


def piece(ids: np.ndarray, frame: Frame, start: int, stop: int) -> np.ndarray:
    """Return ``[tokens]`` a piece of a sequence, with its frame; see :func:`cut`."""
    own = frame.of(ids)
    return own.around(own.body(ids)[start:stop])


class Units(NamedTuple):
    """Pieces of all sequences, by number.

    Attributes:
        rows: ``[units]`` int64 the sequence of each.
        starts: ``[units]`` int64 where it starts in the sequence's body.
        stops: ``[units]`` int64 where it stops.
        lengths: ``[units]`` int64 its tokens, with its frame.
        totals: ``[units]`` int64 those of them that can be masked.
    """

    rows: np.ndarray
    starts: np.ndarray
    stops: np.ndarray
    lengths: np.ndarray
    totals: np.ndarray


def units_of(sequences: Iterable[np.ndarray], frame: Frame, length: int, special: Collection[int]) -> Units:
    """Cut all sequences; see :func:`cut`.

    Args:
        sequences: ``[tokens]`` each.
        frame: Special tokens around them.
        length: Tokens of a piece.
        special: Special tokens.

    Returns:
        The pieces, in order.

    Raises:
        GradvarError: If the frame leaves no room.
    """  # noqa: DOC502
    found = array("q")  # billions of tokens have millions of pieces
    for row, ids in enumerate(sequences):
        for unit in cut(ids, frame, length, special):
            found.extend((row, *unit))
    return Units(*np.array(found, dtype=np.int64).reshape(-1, 5).T)
