"""Inclusion probabilities proportional to size, with Horvitz-Thompson weights: position by position."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from gradvar.masking import conditional_poisson
from gradvar.masking.designs import START, SetScores, Unbiased, mix, position_order
from gradvar.masking.hashing import hash_key, unit_interval
from gradvar.masking.masks import Masks, Sentences, positions_of


@dataclass(frozen=True)
class PPS:
    """Inclusion probabilities proportional to the scores, and Horvitz-Thompson weights ``1/(T pi_i)`` of the positions.

    The target is ``pi_i = (1 - epsilon) min(1, c s_i) + epsilon k/T`` with ``sum pi = k``. ``conditional-poisson``
    draws with odds that come close to it (two steps of :func:`~gradvar.masking.conditional_poisson.log_odds_for`), and
    weighs by the exact inclusion probabilities of those odds; ``systematic`` goes through the positions in random order
    with a fixed stride, and has the target exactly (Madow, 1949; Hartley and Rao, 1962).

    Args:
        method: ``conditional-poisson`` or ``systematic``.
        epsilon: Part of the uniform inclusion probability; weights are at most about ``1/(epsilon k)``.
    """

    method: Literal["conditional-poisson", "systematic"] = "conditional-poisson"
    epsilon: float = 0.0

    unbiased: ClassVar[Unbiased] = "models whose targets do not interact"
    cells = 1
    takes_scores = True

    def target(self, sentences: Sentences, scores: Tensor) -> Tensor:
        """Compute the ``[rows, positions]`` inclusion probabilities that are aimed at."""
        return mix(capped(scores, sentences), sentences, self.epsilon)

    def draw(self, sentences: Sentences, scores: Tensor, keys: Tensor, of_sets: SetScores | None = None) -> Masks:
        """Draw masks; see :class:`Design`."""
        draws = keys.shape[1]
        if self.method == "systematic":
            inclusion = self.target(sentences, scores)
            chosen = _systematic(inclusion, sentences, keys)
        else:
            table = self._table(sentences, scores)
            inclusion, chosen = table.inclusion(), table.sample(keys).flatten(0, 1)
        positions, valid = positions_of(chosen, sentences.counts.repeat_interleave(draws))
        pi = inclusion.repeat_interleave(draws, dim=0).gather(1, positions)
        totals = sentences.totals.repeat_interleave(draws).unsqueeze(1)
        weights = (1 / (totals * pi)).masked_fill(~valid, 0.0)
        return Masks(positions, valid, weights, keys.flatten())

    def inclusion(self, sentences: Sentences, scores: Tensor) -> Tensor:
        """Compute inclusion probabilities; see :class:`Design`."""
        if self.method == "systematic":
            return self.target(sentences, scores)
        return self._table(sentences, scores).inclusion()

    def _table(self, sentences: Sentences, scores: Tensor) -> conditional_poisson.ConditionalPoisson:
        maskable, counts = sentences.maskable, sentences.counts
        odds = conditional_poisson.log_odds_for(self.target(sentences, scores), maskable, counts, steps=2)
        return conditional_poisson.ConditionalPoisson(odds, maskable, counts)


def capped(scores: Tensor, sentences: Sentences) -> Tensor:
    """Inclusion probabilities ``min(1, c s_i)`` that sum to ``k``.

    Args:
        scores: ``[rows, positions]`` positive where maskable.
        sentences: The rows.

    Returns:
        ``[rows, positions]`` float64, zero where not maskable.
    """
    scores = scores.masked_fill(~sentences.maskable, 0.0)
    ranked, order = scores.sort(dim=1, descending=True, stable=True)
    below = ranked.flip(1).cumsum(dim=1).flip(1)  # of this rank and all lower ones
    left = sentences.counts.unsqueeze(1) - torch.arange(scores.shape[1], device=scores.device)
    factor = left / below.clamp(min=torch.finfo(torch.float64).tiny)
    # The first rank that need not be cut; all before it are.
    certain = (factor * ranked > 1).long().cumprod(dim=1)
    first = certain.sum(dim=1, keepdim=True)
    constant = factor.gather(1, first.clamp(max=scores.shape[1] - 1))
    shares = torch.where(certain.bool(), torch.ones_like(ranked), (constant * ranked).clamp(max=1.0))
    return torch.zeros_like(scores).scatter(1, order, shares) * sentences.maskable


def _systematic(inclusion: Tensor, sentences: Sentences, keys: Tensor) -> Tensor:
    """Choose where the running sum of the inclusion probabilities, in random order, passes u, u + 1, ..."""
    draws, length = keys.shape[1], inclusion.shape[1]
    order = position_order(keys, length).argsort(dim=1)
    ranked = inclusion.repeat_interleave(draws, dim=0).gather(1, order)
    running = ranked.cumsum(dim=1)
    counts = sentences.counts.repeat_interleave(draws).double().unsqueeze(1)
    running = running * (counts / running[:, -1:])
    running[:, -1:] = counts
    start = unit_interval(hash_key(START, keys.flatten())).unsqueeze(1)
    passed = torch.cat([torch.zeros_like(start), (running - start).ceil()], dim=1).diff(dim=1) > 0
    return torch.zeros_like(passed).scatter(1, order, passed)
