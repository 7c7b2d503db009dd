"""Squared norms of sums of products from inner products of the factors: the sums are never formed."""

from __future__ import annotations

import torch
from torch import Tensor

# Direct products are cheaper from this `positions (rows + columns) / (rows columns)` on; see benchmarks/NOTES.md.
_CROSSOVER = 0.1
_BLOCK = 1 << 18  # elements that turn to float64 at a time


def gram_pays(positions: int, rows: int, columns: int) -> bool:
    """Whether inner products over so many positions cost less than passes over the gradients themselves."""
    return positions * (rows + columns) < _CROSSOVER * rows * columns


def squared_norms(dy: Tensor, x: Tensor, groups: int, without: Tensor | None = None) -> Tensor:
    """Squared norms of ``G = sum_t dy[t] x[t]^T``: ``|G|^2 = sum_{t,u} <dy[t], dy[u]> <x[t], x[u]>``, in float64.

    Known as ghost norms (Goodfellow, 2015; Li, Tramèr, Liang and Hashimoto, 2022). In float32 they would lose
    every digit where positions share a large part of `x` and the sum of `dy` is near zero.

    Args:
        dy: ``[cells, positions, rows]``.
        x: ``[cells, positions, columns]``.
        groups: The sums are over all positions of this many groups of consecutive cells.
        without: Indices of rows to leave out.

    Returns:
        ``[groups]``.
    """
    dy, x = (factor.reshape(groups, -1, factor.shape[-1]) for factor in (dy, x))
    inner = _gram(dy)
    if without is not None:
        inner -= _gram(dy[..., without])
    return inner.mul_(_gram(x)).sum(dim=(1, 2)).clamp_(min=0)


def _gram(factor: Tensor) -> Tensor:
    """Inner products ``[groups, positions, positions]`` over the last dimension, in float64."""
    groups, positions, _width = factor.shape
    found = factor.new_zeros(groups, positions, positions, dtype=torch.float64)
    for part in factor.split(max(1, _BLOCK // max(1, groups * positions)), dim=2):
        part = part.double()
        found.baddbmm_(part, part.transpose(1, 2))
    return found
