"""Masks that share a sentence out among its visits: disjoint from one visit to the next."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gradvar.masking.designs import SetScores, Unbiased, position_order, uniform_inclusion, uniform_masks, weighted
from gradvar.masking.hashing import hash_key
from gradvar.masking.masks import Masks, Sentences

_CYCLE, _VISIT = 30, 31  # streams of hashes


@dataclass(frozen=True)
class EpochStratified:
    """The masks of a sentence at successive visits are disjoint until all its positions were targets.

    A cycle of ``ceil(T/k)`` visits goes through a random order of the positions, ``k`` at a time; where ``k`` does not
    divide ``T``, the last mask is filled up from the beginning of the order. Every mask is uniform, so the expected
    gradient of a visit is that of uniform masks; what is saved is variance *between* the visits of a sentence, of which
    a study of single visits sees nothing.
    """

    unbiased: ClassVar[Unbiased] = "every model"
    cells = 1
    takes_scores = False

    def draw(self, sentences: Sentences, scores: Tensor, keys: Tensor, of_sets: SetScores | None = None) -> Masks:
        """Draw masks of visits that know nothing of each other: uniform ones; see :class:`Design`."""
        positions, valid = uniform_masks(sentences, keys)
        ones = torch.ones(len(positions), dtype=torch.float64, device=keys.device)
        return weighted(sentences, positions, valid, ones, keys.flatten())

    def visit(self, sentences: Sentences, keys: Tensor, number: Tensor) -> Masks:
        """Draw the masks of given visits.

        Args:
            sentences: Whose masks.
            keys: ``[rows]`` int64 hashes of the sentences, the same at all visits.
            number: ``[rows, draws]`` int64 numbers of the visits, from 0.

        Returns:
            The masks of ``rows * draws`` cells, in this order.
        """
        draws, length = number.shape[1], sentences.ids.shape[1]
        each = sentences.spread(draws)
        totals, counts = each.totals, each.counts
        cycle = -(-totals // counts)
        visits = number.flatten()
        own = keys.repeat_interleave(draws)
        order = position_order(hash_key(_CYCLE, own, visits // cycle).unsqueeze(1), length)
        ranked = order.masked_fill(~each.maskable, torch.iinfo(torch.int64).max).argsort(dim=1)
        place = torch.arange(int(counts.max()), device=keys.device)
        valid = place < counts.unsqueeze(1)
        slots = ((visits % cycle * counts).unsqueeze(1) + place) % totals.unsqueeze(1)
        positions = ranked.gather(1, slots).masked_fill(~valid, length).sort(dim=1).values.masked_fill(~valid, 0)
        ones = torch.ones(len(positions), dtype=torch.float64, device=keys.device)
        return weighted(sentences, positions, valid, ones, hash_key(_VISIT, own, visits))

    def inclusion(self, sentences: Sentences, scores: Tensor) -> Tensor:
        """Compute inclusion probabilities of one visit's mask; see :class:`Design`."""
        return uniform_inclusion(sentences)
