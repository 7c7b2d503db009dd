"""Conditional Poisson sampling: independent coin tosses, given that k of them succeed (Hájek, 1964).

``q(S) = prod_{i in S} o_i / e_k(o)`` with odds ``o_i`` and ``e_k`` the elementary symmetric polynomial. With success
probabilities ``p_i = c o_i / (1 + c o_i)``, for any ``c``, that is ``P(S)/P(N = k)``, ``N`` the number of successes:
``e_k(o) = P(N = k) prod_i (1 + c o_i) / c^k``. At the ``c`` for which ``E N = k``, ``P(N = k)`` is of the order of
``1/sqrt(k)`` whatever the odds, so that probabilities in float64 neither overflow nor cancel; all sums are of positive
terms. The distributions of ``N`` over a tree of positions (divide and conquer, ``O(T k)`` work in ``log T`` steps)
give the normaliser on the way up; the way down draws, or gives all inclusion probabilities.
"""

from __future__ import annotations

from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from gradvar.masking.designs import TOSS
from gradvar.masking.hashing import hash_key, unit_interval
from gradvar.masking.masks import chosen_of

_CURVATURES, _LEAST = 12, 0.05  # steps to Hájek's c, and the least part of a step
_HALVINGS = 40  # of the interval that holds log c: E N = k to nine digits, where any c would do


class ConditionalPoisson:
    """Subsets of fixed size, ``q(S)`` proportional to the product of the odds of its members.

    Args:
        log_odds: ``[rows, positions]`` float64; ``inf`` for positions that every subset has.
        maskable: ``[rows, positions]`` bool; no subset has any other position.
        counts: ``[rows]`` int64 size of the subsets, ``k``.
    """

    def __init__(self, log_odds: Tensor, maskable: Tensor, counts: Tensor) -> None:
        self.counts = counts
        theta = _centred(log_odds.masked_fill(~maskable, -torch.inf), maskable, counts)
        self._inside, self._outside = F.logsigmoid(theta), F.logsigmoid(-theta)
        leaves = torch.stack([(-theta).sigmoid(), theta.sigmoid()], dim=-1)
        size = 1 << (theta.shape[1] - 1).bit_length()
        surplus = leaves.new_tensor([1.0, 0.0]).expand(len(leaves), size - leaves.shape[1], 2)
        self._tree = [torch.cat([leaves, surplus], dim=1)]
        most = int(counts.max())
        while self._tree[-1].shape[1] > 1:
            below = self._tree[-1]
            self._tree.append(_convolve(below[:, 0::2], below[:, 1::2], most + 1))

    @cached_property
    def _hit(self) -> Tensor:
        """``[rows]`` probability that the independent tosses give ``k``."""
        return self._tree[-1][:, 0].gather(1, self.counts.unsqueeze(1)).squeeze(1)

    def log_probability(self, positions: Tensor, valid: Tensor) -> Tensor:
        """Compute ``log q(S)`` of sets; rows must be as many as the sets, or a divisor of them.

        Args:
            positions: ``[sets, targets]``; the sets of a row come together.
            valid: ``[sets, targets]`` bool.

        Returns:
            ``[sets]`` float64.
        """
        times = len(positions) // len(self.counts)
        chosen = chosen_of(positions, valid, self._inside.shape[1])
        inside, outside = (x.repeat_interleave(times, dim=0) for x in (self._inside, self._outside))
        return torch.where(chosen, inside, outside).sum(dim=1) - self._hit.log().repeat_interleave(times)

    def inclusion(self) -> Tensor:
        """Compute ``[rows, positions]`` inclusion probabilities ``pi_i = o_i e_{k-1}(o without i) / e_k(o)``."""
        rows, length = len(self.counts), self._inside.shape[1]
        root = self._tree[-1]
        # rest[m]: probability that the positions elsewhere give k - m.
        rest = root.new_zeros(rows, 1, root.shape[-1]).scatter(2, self.counts.view(-1, 1, 1), 1.0)
        for below in reversed(self._tree[:-1]):
            left, right = below[:, 0::2], below[:, 1::2]
            rest = torch.stack([_correlate(rest, right), _correlate(rest, left)], dim=2).flatten(1, 2)
        return (self._tree[0][..., 1] * rest[..., 1])[:, :length] / self._hit.unsqueeze(1)

    def sample(self, keys: Tensor) -> Tensor:
        """Draw subsets.

        Args:
            keys: ``[rows, draws]`` int64 hashes.

        Returns:
            ``[rows, draws, positions]`` bool.
        """
        count = self.counts.view(-1, 1, 1).expand(-1, keys.shape[1], 1)
        for level, below in reversed(list(enumerate(self._tree[:-1]))):  # from the leaves, so that padding is no level
            left, right = (x.unsqueeze(1).expand(-1, keys.shape[1], -1, -1) for x in (below[:, 0::2], below[:, 1::2]))
            to_left = torch.arange(left.shape[-1], device=keys.device)
            to_right = count.unsqueeze(-1) - to_left
            fits = (to_right >= 0) & (to_right < right.shape[-1])
            chances = left * right.gather(-1, to_right.clamp(0, right.shape[-1] - 1)) * fits
            node = torch.arange(left.shape[2], device=keys.device) + (level << 32)
            toss = unit_interval(hash_key(TOSS, keys.unsqueeze(-1), node)).unsqueeze(-1)
            cumulative = chances.cumsum(dim=-1)
            lefts = (cumulative <= toss * cumulative[..., -1:] * (1 - 2.0**-50)).sum(dim=-1)
            count = torch.stack([lefts, count - lefts], dim=-1).flatten(-2)
        return count[..., : self._inside.shape[1]] > 0


def log_odds_for(inclusion: Tensor, maskable: Tensor, counts: Tensor, steps: int) -> Tensor:
    """Find odds whose conditional Poisson design has (nearly) the given inclusion probabilities.

    ``logit p_i <- logit p_i + (1 - c_i/sum c)(logit target_i - logit pi_i)`` from ``p = target``: Newton steps with
    Hájek's approximation of the covariance of the indicators, ``diag(c) - c c^T/sum c`` with ``c_i - c_i^2/sum c =
    pi_i (1 - pi_i)``, which is exact at ``k = 1`` and ``k = T - 1``.

    Args:
        inclusion: ``[rows, positions]`` targets in (0, 1], summing to ``counts`` in every row.
        maskable: ``[rows, positions]`` bool.
        counts: ``[rows]`` int64.
        steps: How many steps.

    Returns:
        ``[rows, positions]`` float64; ``inf`` where the target is 1.
    """
    target = inclusion.logit()
    spread = (inclusion * (1 - inclusion)).masked_fill(~maskable, 0.0)
    factor = torch.ones_like(spread)
    for _ in range(_CURVATURES):
        curvature = spread / factor
        factor = (1 - curvature / curvature.sum(dim=1, keepdim=True).clamp(min=1e-300)).clamp(min=_LEAST)
    odds = target
    for _ in range(steps):
        reached = ConditionalPoisson(odds, maskable, counts).inclusion().logit()
        odds = torch.where(maskable & target.isfinite() & reached.isfinite(), odds + factor * (target - reached), odds)
    return odds


def _centred(theta: Tensor, maskable: Tensor, counts: Tensor) -> Tensor:
    """Add to the log odds of a row what makes the expected number of successes ``k``, as nearly as can be."""
    free = maskable & theta.isfinite()
    low = -theta.masked_fill(~free, -torch.inf).amax(dim=1).clamp(-1e300, 1e300) - 40
    high = -theta.masked_fill(~free, torch.inf).amin(dim=1).clamp(-1e300, 1e300) + 40
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        few = (theta + middle.unsqueeze(1)).sigmoid().sum(dim=1) < counts
        low, high = torch.where(few, middle, low), torch.where(few, high, middle)
    return theta + low.unsqueeze(1)


def _convolve(a: Tensor, b: Tensor, most: int) -> Tensor:
    """Distribution of the sum of two counts, ``[..., n]`` and ``[..., m]``, up to ``most`` outcomes."""
    width = min(a.shape[-1] + b.shape[-1] - 1, most)
    out = a.new_zeros(*a.shape[:-1], width)
    for i in range(min(a.shape[-1], width)):
        part = min(b.shape[-1], width - i)
        out[..., i : i + part].addcmul_(a[..., i : i + 1], b[..., :part])
    return out


def _correlate(rest: Tensor, other: Tensor) -> Tensor:
    """``out[m] = sum_j rest[m + j] other[j]``, for as many ``m`` as a sibling of ``other`` has outcomes."""
    width = other.shape[-1]
    out = torch.zeros_like(other)
    for j in range(width):
        part = min(width, rest.shape[-1] - j)
        if part > 0:
            out[..., :part].addcmul_(rest[..., j : j + part], other[..., j : j + 1])
    return out
