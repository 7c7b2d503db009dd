"""Today's practice, for comparison: targets come in units (positions, spans, words) and carry no weights.

Units arrive one after another, each next one with a chance proportional to its mean score among those that are left,
until there are k targets; the last unit is cut. The objective is another one than that of uniform masks; `compare`
measures how far away.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import log
from typing import ClassVar

import torch
from torch import Tensor

from gradvar.masking.designs import (
    ARRIVAL,
    OFFSET,
    SetScores,
    Unbiased,
    exponential,
    mix,
    mixed,
    uniform_masks,
    weighted,
)
from gradvar.masking.hashing import hash_key, unit_interval
from gradvar.masking.masks import Masks, Sentences, first_in_order

_HALVINGS = 60  # of the interval that holds the logarithm of time
_STEP, _EARLIEST, _LATEST = 0.25, -38.0, 4.0  # of the logarithm of time, in units of the mean waiting time


@dataclass(frozen=True)
class Successive(ABC):
    """Units in order of arrival, at exponential times with their scores as rates."""

    epsilon: float = 0.0

    unbiased: ClassVar[Unbiased] = "no model"
    cells = 1
    takes_scores = True

    def draw(self, sentences: Sentences, scores: Tensor, keys: Tensor, of_sets: SetScores | None = None) -> Masks:
        """Draw masks; see :class:`~gradvar.masking.designs.Design`."""
        draws, length = keys.shape[1], scores.shape[1]
        each = sentences.spread(draws)
        units = self._units(each, keys.flatten())
        rates = _unit_means(scores.repeat_interleave(draws, dim=0), units, each.maskable)
        # All positions of a unit arrive when the unit does, by the toss of its number.
        arrival = exponential(ARRIVAL, keys, length).gather(1, units) / rates
        positions, valid = first_in_order(arrival, each.maskable, each.counts)
        if self.epsilon:
            positions = torch.where(mixed(keys, self.epsilon), uniform_masks(sentences, keys)[0], positions)
        ones = torch.ones(len(positions), dtype=torch.float64, device=keys.device)
        return weighted(sentences, positions, valid, ones, keys.flatten())

    def inclusion(self, sentences: Sentences, scores: Tensor) -> Tensor:
        """Compute inclusion probabilities; see :class:`~gradvar.masking.designs.Design`."""
        tilings = self._tilings(sentences)
        found = [_arrives_in_time(units, scores, sentences) for units in tilings]
        return mix(torch.stack(found).mean(dim=0), sentences, self.epsilon)

    def near_inclusion(self, sentences: Sentences, scores: Tensor) -> Tensor:
        """Approximate inclusion probabilities, at once where the exact ones take long.

        All units that arrive before a fixed time, in place of the first ``k`` positions: exact as sentences grow beside
        their units.

        Args:
            sentences: The rows.
            scores: ``[rows, positions]`` positive where maskable.

        Returns:
            ``[rows, positions]`` float64.
        """
        rates = (_unit_means(scores, units, sentences.maskable) for units in self._tilings(sentences))
        found = torch.stack([near_inclusion(sentences, rate) for rate in rates])
        return mix(found.mean(dim=0), sentences, self.epsilon)

    @abstractmethod
    def _units(self, sentences: Sentences, keys: Tensor) -> Tensor:
        """``[rows, positions]`` number of the unit of each position, from 0 and below the number of positions."""

    def _tilings(self, sentences: Sentences) -> list[Tensor]:
        """All the ways in which :meth:`_units` can cut, equally likely."""
        return [self._units(sentences, sentences.keys)]


@dataclass(frozen=True)
class Hard(Successive):
    """Positions drawn one after another in proportion to their scores, without weights."""

    def _units(self, sentences: Sentences, keys: Tensor) -> Tensor:
        return torch.arange(sentences.maskable.shape[1], device=keys.device).expand(len(keys), -1)


@dataclass(frozen=True)
class WholeWord(Successive):
    """Whole words at a time."""

    def _units(self, sentences: Sentences, keys: Tensor) -> Tensor:
        return sentences.words


@dataclass(frozen=True)
class Span(Successive):
    """Runs of positions at a time: the maskable positions are cut into runs from a random start on.

    Args:
        length: Positions of a run; the first and the last one may be shorter.
    """

    length: int = 3

    def _units(self, sentences: Sentences, keys: Tensor) -> Tensor:
        offset = hash_key(OFFSET, keys)
        return self._cut(sentences, (unit_interval(offset) * self.length).long())

    def _tilings(self, sentences: Sentences) -> list[Tensor]:
        like = sentences.counts
        return [self._cut(sentences, torch.full_like(like, offset)) for offset in range(self.length)]

    def _cut(self, sentences: Sentences, offset: Tensor) -> Tensor:
        rank = (sentences.maskable.long().cumsum(dim=1) - 1).clamp(min=0)
        return (rank + offset.unsqueeze(1)) // self.length


def _unit_means(scores: Tensor, units: Tensor, maskable: Tensor) -> Tensor:
    """``[rows, positions]`` mean score of the unit that each position belongs to."""
    sums, sizes = (
        torch.zeros_like(scores).scatter_add(1, units, x * maskable) for x in (scores, torch.ones_like(scores))
    )
    return (sums / sizes.clamp(min=1)).gather(1, units)


def _arrives_in_time(units: Tensor, scores: Tensor, sentences: Sentences) -> Tensor:
    """Probabilities of being among the first k positions.

    ``pi_i = int P(positions of the other units that came before t <= k - r_i) dF_i(t)``, ``r_i`` the place of position
    ``i`` within its unit, from one on. The integral over ``log t`` is a sum over a grid: its integrand is analytic in
    a strip of half-width ``pi/2``, so a step of 1/4 leaves an error of ``exp(-4 pi^2)``.
    """
    rows, length = scores.shape
    maskable, most = sentences.maskable, int(sentences.counts.max())
    rates = _unit_means(scores, units, maskable)
    rates = rates / (scores * maskable).sum(dim=1, keepdim=True) * sentences.totals.unsqueeze(1)
    sizes = torch.zeros_like(units).scatter_add(1, units, maskable.long())
    by_unit = torch.zeros_like(scores).scatter_reduce(1, units, torch.where(maskable, rates, 0.0), "amax")
    slowest = float(torch.where(maskable, rates, torch.inf).min())
    end = _LATEST - min(0.0, log(slowest))
    time = torch.arange(_EARLIEST, end, _STEP, dtype=torch.float64, device=scores.device).exp()
    none = scores.new_zeros(rows, length, len(time), most + 1, dtype=torch.float64)
    none[..., 0] = 1
    before = none  # [rows, the unit left out, time, positions that came]
    for unit in range(length):
        came = -torch.expm1(-by_unit[:, unit].view(-1, 1) * time)  # [rows, time]
        shifted = _shift(before, sizes[:, unit])
        mixed = before * (1 - came).view(rows, 1, -1, 1) + shifted * came.view(rows, 1, -1, 1)
        mixed[:, unit] = before[:, unit]
        before = mixed
    place = torch.zeros_like(units)
    for position in range(length):  # place within the unit
        same = (units[:, :position] == units[:, position : position + 1]) & maskable[:, :position]
        place[:, position] = same.sum(dim=1) + 1
    in_time = before.cumsum(dim=-1).gather(1, units.view(rows, length, 1, 1).expand(-1, -1, len(time), most + 1))
    allowed = (sentences.counts.unsqueeze(1) - place).view(rows, length, 1, 1).expand(-1, -1, len(time), 1)
    chance = in_time.gather(3, allowed.clamp(min=0)).squeeze(3) * (allowed.squeeze(3) >= 0)
    density = rates.unsqueeze(2) * time * torch.exp(-rates.unsqueeze(2) * time)
    return (chance * density).sum(dim=2) * _STEP * maskable


def near_inclusion(sentences: Sentences, rates: Tensor) -> Tensor:
    """Compute ``1 - exp(-c r_i)``, summing to ``k``: the chances of arriving before a fixed time (Rosén, 1972).

    Args:
        sentences: The rows.
        rates: ``[rows, positions]`` of arrival, positive where maskable.

    Returns:
        ``[rows, positions]`` float64; zero where not maskable.
    """
    rates = (rates * sentences.maskable).double()
    low, high = (torch.full_like(rates[:, 0], end) for end in (-40.0, 40.0))
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        few = -torch.expm1(-rates * middle.exp().unsqueeze(1)).sum(dim=1) < sentences.counts
        low, high = torch.where(few, middle, low), torch.where(few, high, middle)
    return -torch.expm1(-rates * high.exp().unsqueeze(1))


def _shift(counts: Tensor, by: Tensor) -> Tensor:
    """Move ``[rows, ..., n]`` by so many places a row to the right; what leaves is lost."""
    place = torch.arange(counts.shape[-1], device=counts.device) - by.view(-1, *(1,) * (counts.ndim - 1))
    moved = counts.gather(-1, place.clamp(min=0).expand_as(counts))
    return moved * (place >= 0)
