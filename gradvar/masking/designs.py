"""What a sampling design is, and what all of them are made of. Scores live in scores.py.

Two kinds differ in what is weighted. A *set design* (sets.py) draws the whole set with a known probability ``q(S)``
and weighs all of it by ``p(S)/q(S)``, ``p`` the uniform distribution over k-subsets: unbiased for every model. A
*position design* (pps.py) knows the inclusion probabilities ``pi_i`` and weighs every target by ``1/(T pi_i)``:
unbiased only where the loss at one target does not depend on which others are masked. Designs without weights
(units.py) follow another objective.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol

import torch
from torch import Tensor

from gradvar.masking.hashing import hash_key, shift_right, unit_interval
from gradvar.masking.masks import Masks, Sentences
from gradvar.masking.uniform import uniform_subset

# Streams of hashes, one a purpose; 1 to 5 are corruption, cells and dropout.
POSITION = 0
TOSS, MIXTURE, FIRST, CANDIDATE, CHOICE, START, MEMBER, ARRIVAL, OFFSET = range(10, 19)

STEEPEST = 16.0
"""Largest exponent of scores and of their odds; far below that, weights are of no use."""
Unbiased = Literal["every model", "models whose targets do not interact", "no model"]
"""For which models the expectation of the weighted gradient is that of the uniform objective."""

SetScores = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``(positions [sets, targets], valid, keys [sets]) -> [sets]``, the sets of a row together."""


class Design(Protocol):
    """Draws the targets of sentences, given scores."""

    @property
    def unbiased(self) -> Unbiased:
        """For which models the weighted gradient is unbiased for the uniform objective."""

    @property
    def cells(self) -> int:
        """Masks of one draw; they may depend on each other."""

    @property
    def takes_scores(self) -> bool:
        """Whether it can make use of any score but the uniform one."""

    def draw(self, sentences: Sentences, scores: Tensor, keys: Tensor, of_sets: SetScores | None = None) -> Masks:
        """Draw masks.

        Args:
            sentences: Whose masks.
            scores: ``[rows, positions]`` float64, positive where maskable.
            keys: ``[rows, draws]`` int64 hashes; a draw is a function of its key alone.
            of_sets: Scores of whole candidates, in place of the sum over their positions.

        Returns:
            The masks of ``rows * draws * cells`` cells, in this order.
        """
        ...

    def inclusion(self, sentences: Sentences, scores: Tensor) -> Tensor:
        """Compute ``[rows, positions]`` float64 probabilities that a position is a target."""
        ...


def position_keys(keys: Tensor, length: int) -> Tensor:
    """Hash ``[rows, draws]`` keys to ``[rows * draws, positions]``: all designs share them."""
    return hash_key(POSITION, keys.reshape(-1, 1), torch.arange(length, device=keys.device))


def position_order(keys: Tensor, length: int) -> Tensor:
    """A random order of positions, ``[rows * draws, positions]`` from ``[rows, draws]`` keys: that of uniform masks."""
    return shift_right(position_keys(keys, length), 1)


def uniform_masks(sentences: Sentences, keys: Tensor) -> tuple[Tensor, Tensor]:
    """Draw uniform masks, ``(positions, valid)``, with ``[rows, draws]`` keys."""
    maskable, counts = (x.repeat_interleave(keys.shape[1], dim=0) for x in (sentences.maskable, sentences.counts))
    return uniform_subset(position_keys(keys, maskable.shape[1]), maskable, counts)


def uniform_inclusion(sentences: Sentences) -> Tensor:
    """``[rows, positions]`` ``k/T`` at the maskable positions."""
    return sentences.maskable * (sentences.counts.double() / sentences.totals).unsqueeze(1)


def exponential(stream: int, keys: Tensor, length: int) -> Tensor:
    """``[rows * draws, positions]`` standard exponential arrival times."""
    return -torch.log1p(-unit_interval(hash_key(stream, keys.reshape(-1, 1), torch.arange(length, device=keys.device))))


def mixed(keys: Tensor, epsilon: float) -> Tensor:
    """``[rows * draws, 1]`` which draws of a mixture are uniform ones."""
    return (unit_interval(hash_key(MIXTURE, keys.flatten())) < epsilon).unsqueeze(1)


def mix(inclusion: Tensor, sentences: Sentences, epsilon: float) -> Tensor:
    """Inclusion probabilities of a mixture with uniform masks."""
    return (1 - epsilon) * inclusion + epsilon * uniform_inclusion(sentences)


def sum_over(scores: Tensor, positions: Tensor, valid: Tensor) -> Tensor:
    """``[sets]`` sums of the scores of sets; the sets of a row together."""
    each = scores.repeat_interleave(len(positions) // len(scores), dim=0)
    return (each.gather(1, positions) * valid).sum(dim=1)


def weighted(sentences: Sentences, positions: Tensor, valid: Tensor, weights: Tensor, keys: Tensor) -> Masks:
    """Masks of ``[cells]`` weights ``w``: each target counts ``w/k``."""
    counts = sentences.counts.repeat_interleave(len(positions) // len(sentences.counts))
    return Masks(positions, valid, valid * (weights / counts).unsqueeze(1), keys)
