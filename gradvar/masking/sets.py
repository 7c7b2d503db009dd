"""Designs that weigh whole sets: unbiased for every model. Disjoint masks are among them, each of weight one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gradvar.errors import GradvarError
from gradvar.masking import conditional_poisson
from gradvar.masking.designs import (
    CANDIDATE,
    CHOICE,
    FIRST,
    MEMBER,
    STEEPEST,
    SetScores,
    Unbiased,
    exponential,
    mix,
    mixed,
    position_order,
    sum_over,
    uniform_inclusion,
    uniform_masks,
    weighted,
)
from gradvar.masking.hashing import hash_key, unit_interval
from gradvar.masking.masks import Masks, Sentences, first_in_order, positions_of


@dataclass(frozen=True)
class SetDesign(ABC):
    """A design that weighs whole sets by ``w = p(S)/q(S)``; with probability ``epsilon`` it draws a uniform set.

    ``1/w_epsilon = (1 - epsilon)/w + epsilon``, so that no weight is over ``1/epsilon``.

    Args:
        epsilon: Share of uniform draws.
    """

    epsilon: float = 0.0

    unbiased: ClassVar[Unbiased] = "every model"
    cells = 1
    takes_scores = True

    def draw(self, sentences: Sentences, scores: Tensor, keys: Tensor, of_sets: SetScores | None = None) -> Masks:
        """Draw masks; see :class:`Design`."""
        positions, valid = self._draw(sentences, scores, keys)
        if self.epsilon:
            uniform, _ = uniform_masks(sentences, keys)
            positions = torch.where(mixed(keys, self.epsilon), uniform, positions)
        weights = self.log_weight(sentences, scores, positions, valid).exp()
        return weighted(sentences, positions, valid, weights, keys.flatten())

    def log_weight(self, sentences: Sentences, scores: Tensor, positions: Tensor, valid: Tensor) -> Tensor:
        """Compute ``log w(S)``, of drawn sets or of any others.

        Args:
            sentences: Whose sets.
            scores: ``[rows, positions]``.
            positions: ``[sets, targets]``, a multiple of ``rows``; the sets of a row together.
            valid: ``[sets, targets]`` bool.

        Returns:
            ``[sets]`` float64, finite.
        """
        log_weight = self._log_weight(sentences, scores, positions, valid)
        if not self.epsilon:
            return log_weight
        mixed_in = torch.full_like(log_weight, self.epsilon)
        return -torch.logaddexp(torch.log1p(-mixed_in) - log_weight, mixed_in.log())

    def mean_square(self, sentences: Sentences, scores: Tensor, keys: Tensor) -> Tensor:
        """Estimate ``E_q w^2 = E_p w``, whose inverse is the effective sample size of the weights.

        From uniform masks: among draws of ``q`` itself, sets of large weight are too rare to be seen.

        Args:
            sentences: Whose sets.
            scores: ``[rows, positions]``.
            keys: ``[rows, draws]`` of the masks.

        Returns:
            ``[rows]`` float64.
        """
        log_weight = self.log_weight(sentences, scores, *uniform_masks(sentences, keys))
        return log_weight.exp().view(keys.shape).mean(dim=1)

    def largest(self, sentences: Sentences, scores: Tensor) -> Tensor:
        """Compute the largest weight that a set can have: that of the lowest scores, or of the highest.

        For weights that only fall, or only rise, with every score, as those of all designs here do.

        Args:
            sentences: Whose sets.
            scores: ``[rows, positions]``.

        Returns:
            ``[rows]`` float64.
        """
        ends = [(sign * scores).masked_fill(~sentences.maskable, torch.inf).argsort(dim=1) for sign in (1, -1)]
        width = int(sentences.counts.max())
        valid = torch.arange(width, device=scores.device) < sentences.counts.unsqueeze(1)
        logs = [self.log_weight(sentences, scores, end[:, :width], valid) for end in ends]
        return torch.stack(logs).amax(dim=0).exp()

    def inclusion(self, sentences: Sentences, scores: Tensor) -> Tensor:
        """Compute inclusion probabilities; see :class:`Design`."""
        return mix(self._inclusion(sentences, scores), sentences, self.epsilon)

    @abstractmethod
    def _draw(self, sentences: Sentences, scores: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]: ...

    @abstractmethod
    def _log_weight(self, sentences: Sentences, scores: Tensor, positions: Tensor, valid: Tensor) -> Tensor: ...

    @abstractmethod
    def _inclusion(self, sentences: Sentences, scores: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Simple(SetDesign):
    """Simple random sampling: every k-subset is equally likely. The objective that all others are compared with."""

    takes_scores = False

    def _draw(self, sentences: Sentences, scores: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        return uniform_masks(sentences, keys)

    def _log_weight(self, sentences: Sentences, scores: Tensor, positions: Tensor, valid: Tensor) -> Tensor:
        return scores.new_zeros(len(positions), dtype=torch.float64)

    def _inclusion(self, sentences: Sentences, scores: Tensor) -> Tensor:
        return uniform_inclusion(sentences)


@dataclass(frozen=True)
class Midzuno(SetDesign):
    """``q(S) ~ sum_{i in S} s_i``: one position drawn by score, the others uniformly (Midzuno, 1952).

    ``w = mean_all(s) / mean_S(s)``, ``pi_i = s_i/sum s + (1 - s_i/sum s)(k - 1)/(T - 1)``. The mildest of the tilts:
    most of a set is uniform.
    """

    def _draw(self, sentences: Sentences, scores: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        each = sentences.spread(keys.shape[1])
        arrival = exponential(FIRST, keys, scores.shape[1]) / scores.repeat_interleave(keys.shape[1], dim=0)
        first = arrival.masked_fill(~each.maskable, torch.inf).argmin(dim=1, keepdim=True)
        order = position_order(keys, scores.shape[1]).scatter(1, first, -1)
        return first_in_order(order, each.maskable, each.counts)

    def _log_weight(self, sentences: Sentences, scores: Tensor, positions: Tensor, valid: Tensor) -> Tensor:
        everywhere = (scores * sentences.maskable).sum(dim=1) / sentences.totals
        times = len(positions) // len(scores)
        there = sum_over(scores, positions, valid) / valid.sum(dim=1)
        return everywhere.log().repeat_interleave(times) - there.log()

    def _inclusion(self, sentences: Sentences, scores: Tensor) -> Tensor:
        scores = scores * sentences.maskable
        first = scores / scores.sum(dim=1, keepdim=True)
        others = (sentences.counts - 1).double() / (sentences.totals - 1).clamp(min=1)
        return (first + (1 - first) * others.unsqueeze(1)) * sentences.maskable


@dataclass(frozen=True)
class ConditionalPoisson(SetDesign):
    """``q(S) ~ prod_{i in S} s_i^alpha``: a product of odds, of exactly k positions.

    ``w = e_k(o) / (C(T, k) prod_{i in S} o_i)``; see :mod:`gradvar.masking.conditional_poisson`.

    Args:
        alpha: Exponent of the scores; None takes ``1/k``, with which a set's odds are the geometric mean of its scores.
            (At 1 the tilt is k times as strong, and the weights explode.)

    Raises:
        GradvarError: If it is larger than 16.
    """

    alpha: float | None = None

    def __post_init__(self) -> None:
        if self.alpha is not None and not abs(self.alpha) <= STEEPEST:
            raise GradvarError(
                f"conditional-poisson cannot raise scores to the power {self.alpha:g}; give -{STEEPEST:g} to "
                f"{STEEPEST:g}"
            )

    def mean_square(self, sentences: Sentences, scores: Tensor, keys: Tensor) -> Tensor:
        """Compute ``e_k(o) e_k(1/o) / C(T, k)^2``, the weight of any set times its weight under inverse scores.

        With ``epsilon`` no weight is over ``1/epsilon``, and uniform masks tell; see :meth:`SetDesign.mean_square`.
        """
        if self.epsilon:
            return super().mean_square(sentences, scores, keys)
        mask = uniform_masks(sentences, keys[:, :1])
        inverse = torch.where(sentences.maskable, 1 / scores, 0.0)
        logs = [self.log_weight(sentences, each, *mask) for each in (scores, inverse)]
        return (logs[0] + logs[1]).exp()

    def _table(self, sentences: Sentences, scores: Tensor) -> conditional_poisson.ConditionalPoisson:
        alpha = 1 / sentences.counts.double() if self.alpha is None else torch.full_like(scores[:, 0], self.alpha)
        odds = alpha.unsqueeze(1) * scores.log()
        return conditional_poisson.ConditionalPoisson(odds, sentences.maskable, sentences.counts)

    def _draw(self, sentences: Sentences, scores: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        chosen = self._table(sentences, scores).sample(keys).flatten(0, 1)
        return positions_of(chosen, sentences.counts.repeat_interleave(keys.shape[1]))

    def _log_weight(self, sentences: Sentences, scores: Tensor, positions: Tensor, valid: Tensor) -> Tensor:
        k, t = sentences.counts.double(), sentences.totals.double()
        subsets = torch.lgamma(t + 1) - torch.lgamma(k + 1) - torch.lgamma(t - k + 1)
        log_q = self._table(sentences, scores).log_probability(positions, valid)
        return -log_q - subsets.repeat_interleave(len(positions) // len(scores))

    def _inclusion(self, sentences: Sentences, scores: Tensor) -> Tensor:
        return self._table(sentences, scores).inclusion()


@dataclass(frozen=True)
class Pool:
    """Of R uniform masks, each with its corruption, one is kept: ``Pr_r = (1 - epsilon) s_r / sum s + epsilon/R``.

    ``w = 1/(R Pr_r)``, given the candidates; unbiased over them. A candidate's score is the sum of its positions'
    scores, or whatever ``of_sets`` says. The second moment of the weighted gradient is ``E[|g|^2]/R +
    (1 - 1/R) E[|g|^2/s] E[s]`` at ``epsilon = 0``. The weight is random given S, and what S follows on the whole is
    not tractable: there are no inclusion probabilities.

    Args:
        candidates: R.
        epsilon: Share of uniform choices.
    """

    candidates: int = 4
    epsilon: float = 0.0

    unbiased: ClassVar[Unbiased] = "every model"
    cells = 1
    takes_scores = True

    def draw(self, sentences: Sentences, scores: Tensor, keys: Tensor, of_sets: SetScores | None = None) -> Masks:
        """Draw masks; see :class:`Design`. The key of a cell is that of the candidate that was kept."""
        number = torch.arange(self.candidates, device=keys.device)
        candidates = hash_key(CANDIDATE, keys.unsqueeze(-1), number).flatten(1)  # [rows, draws * R]
        positions, valid = uniform_masks(sentences, candidates)
        if of_sets is None:
            found = sum_over(scores, positions, valid)
        else:
            found = of_sets(positions, valid, candidates.flatten()).double()
        shares = found.view(-1, self.candidates)
        shares = torch.where(shares.sum(dim=1, keepdim=True) > 0, shares, 1.0)  # nothing tells candidates of zero apart
        shares = (1 - self.epsilon) * shares / shares.sum(dim=1, keepdim=True) + self.epsilon / self.candidates
        cumulative = shares.cumsum(dim=1)
        toss = unit_interval(hash_key(CHOICE, keys.flatten())) * cumulative[:, -1] * (1 - 2.0**-50)
        kept = (cumulative <= toss.unsqueeze(1)).sum(dim=1)
        weights = 1 / (self.candidates * shares.gather(1, kept.unsqueeze(1)).squeeze(1))
        index = torch.arange(len(kept), device=keys.device) * self.candidates + kept
        return weighted(sentences, positions[index], valid[index], weights, candidates.flatten()[index])

    def inclusion(self, sentences: Sentences, scores: Tensor) -> Tensor:
        """Refuse.

        Raises:
            GradvarError: Always: the pool's inclusion probabilities are not tractable.
        """
        raise GradvarError("the inclusion probabilities of a pool are not tractable; take another design for them")


@dataclass(frozen=True)
class Disjoint:
    """K masks of a sentence without a common position: the first K k positions of a random order, k at a time.

    Each is uniform, so their mean is unbiased; the masks of one draw depend on each other, those of different draws
    do not.

    Args:
        masks: K, at most ``T/k``.
    """

    masks: int = 2

    unbiased: ClassVar[Unbiased] = "every model"
    takes_scores = False

    @property
    def cells(self) -> int:
        """Masks of one draw."""
        return self.masks

    def draw(self, sentences: Sentences, scores: Tensor, keys: Tensor, of_sets: SetScores | None = None) -> Masks:
        """Draw masks; see :class:`Design`, and :func:`check_fits` for the error where they do not fit."""
        check_fits(self.masks, sentences.totals, sentences.counts)
        each, length = sentences.spread(keys.shape[1]), scores.shape[1]
        order = position_order(keys, length).masked_fill(~each.maskable, torch.iinfo(torch.int64).max)
        ranked = order.argsort(dim=1)
        width = int(sentences.counts.max())
        block = torch.arange(self.masks, device=keys.device).view(1, -1, 1) * each.counts.view(-1, 1, 1)
        place = torch.arange(width, device=keys.device)
        valid = (place < each.counts.view(-1, 1, 1)).expand(-1, self.masks, -1)
        chosen = ranked.unsqueeze(1).expand(-1, self.masks, -1).gather(2, (block + place).clamp(max=length - 1))
        positions = chosen.masked_fill(~valid, length).sort(dim=2).values.masked_fill(~valid, 0)
        number = torch.arange(self.masks, device=keys.device)
        members = hash_key(MEMBER, keys.unsqueeze(-1), number).flatten()
        ones = torch.ones(len(members), dtype=torch.float64, device=keys.device)
        return weighted(sentences, positions.flatten(0, 1), valid.flatten(0, 1), ones, members)

    def inclusion(self, sentences: Sentences, scores: Tensor) -> Tensor:
        """Compute inclusion probabilities of one of the masks; see :class:`Design`."""
        return uniform_inclusion(sentences)


def check_fits(masks: int, totals: Tensor, counts: Tensor) -> None:
    """Refuse more disjoint masks than a sentence has room for.

    Args:
        masks: K.
        totals: ``[sentences]`` maskable positions.
        counts: ``[sentences]`` targets of a mask.

    Raises:
        GradvarError: If they do not fit.
    """
    room = totals // counts
    if bool((room < masks).any()):
        worst = int(room.argmin())
        most = int(room[worst])
        remedy = f"take disjoint:{most} at most, or" if most > 1 else "no two do, so take"
        raise GradvarError(
            f"{masks} disjoint masks do not fit into a sentence of {int(totals[worst])} maskable positions with "
            f"{int(counts[worst])} targets each; {remedy} longer sentences"
        )
