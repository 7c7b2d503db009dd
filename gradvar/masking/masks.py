"""What goes into a mask, and what comes out: sentences as a proposal sees them, and drawn masks with their weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sentences:
    """Sentences as a proposal sees them: everything but their masks.

    Attributes:
        ids: ``[rows, positions]`` int64 original tokens; negative where padded.
        maskable: ``[rows, positions]`` bool: no special token, no padding. A row has ``T`` of them.
        counts: ``[rows]`` int64 targets of a mask, ``k``, between 1 and ``T``.
        words: ``[rows, positions]`` int64 number of the word that a position belongs to, ascending.
        keys: ``[rows]`` int64 hashes of (seed, sentence), for scores that are random themselves.
    """

    ids: Tensor
    maskable: Tensor
    counts: Tensor
    words: Tensor
    keys: Tensor

    @property
    def totals(self) -> Tensor:
        """``[rows]`` int64 number of maskable positions, ``T``."""
        return self.maskable.sum(dim=1)

    @property
    def attended(self) -> Tensor:
        """``[rows, positions]`` bool: a token, special or not, and no padding."""
        return self.ids >= 0

    def spread(self, times: int) -> Sentences:
        """Repeat every row, its copies together."""
        return Sentences(*(part.repeat_interleave(times, dim=0) for part in self.parts))

    def rows(self, index: Sequence[int]) -> Sentences:
        """Take some rows."""
        return Sentences(*(part[list(index)] for part in self.parts))

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """All of it, in the order of the fields."""
        return self.ids, self.maskable, self.counts, self.words, self.keys


@dataclass(frozen=True)
class Masks:
    """Drawn masks, a row a cell, and how each target's loss counts: the cell's loss is ``sum_i weights_i l_i``.

    Attributes:
        positions: ``[cells, targets]`` int64, ascending; 0 where not valid.
        valid: ``[cells, targets]`` bool; False in the surplus slots of cells with fewer targets than the largest.
        weights: ``[cells, targets]`` float64, zero where not valid; ``1/k`` for a uniform mask.
        keys: ``[cells]`` int64 hashes for all that is drawn later, such as the corruption.
    """

    positions: Tensor
    valid: Tensor
    weights: Tensor
    keys: Tensor


def first_in_order(order: Tensor, maskable: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Choose the maskable positions that come first in some order.

    Args:
        order: ``[cells, positions]`` numbers to sort by; the left one of equals comes first.
        maskable: ``[cells, positions]`` bool.
        counts: ``[cells]`` int64 how many to choose, at most the number of maskable positions.

    Returns:
        ``(positions, valid)``, each ``[cells, max(counts)]``: positions ascending; where ``valid``
        is False (cells with fewer targets than the largest) the position is 0 and means nothing.
    """
    width = int(counts.max())
    never = torch.iinfo(order.dtype).max if order.dtype == torch.int64 else torch.inf
    chosen = order.masked_fill(~maskable, never).sort(dim=1, stable=True).indices[:, :width]
    surplus = torch.arange(width, device=order.device) >= counts.unsqueeze(1)
    return _ascending(chosen.masked_fill(surplus, order.shape[1]), counts)


def positions_of(chosen: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """List the positions of masks that are given as ``[cells, positions]`` bool; see :func:`first_in_order`."""
    length = chosen.shape[1]
    places = torch.arange(length, device=chosen.device)
    return _ascending(torch.where(chosen, places, length), counts)


def _ascending(chosen: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Sort each row's ``counts`` positions to the front; whatever else is there is larger than all positions."""
    width = int(counts.max())
    valid = torch.arange(width, device=chosen.device) < counts.unsqueeze(1)
    return chosen.sort(dim=1).values[:, :width].masked_fill(~valid, 0), valid


def chosen_of(positions: Tensor, valid: Tensor, length: int) -> Tensor:
    """Turn lists of positions into ``[cells, length]`` bool, the inverse of :func:`positions_of`."""
    slots = torch.where(valid, positions, length)
    empty = torch.zeros(len(positions), length + 1, dtype=torch.bool, device=positions.device)
    return empty.scatter(1, slots, True)[:, :length]
