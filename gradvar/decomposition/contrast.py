"""How far the mean gradients of two studies of the same data are apart: exact sums, and sketches for the noise."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gradvar.decomposition.accumulator import Tables, squares_of


def squared_difference(one: Sequence[Tables], other: Sequence[Tables]) -> np.ndarray:
    """Estimate ``|E d|^2`` for the differences ``d_n`` between the mean gradients of each datum in two studies.

    ``|d_.|^2 - MS_d/N`` with ``MS_d = sum_n |d_n - d_.|^2 / (N - 1)``, unbiased whatever the two studies share within
    a datum. ``|d_.|^2`` is exact; ``MS_d`` is that of the data's sketches, which is unbiased over their signs.

    Args:
        one: Tables of each parameter.
        other: Those of the other study: the same data in the same order, the same signs of the sketches.

    Returns:
        ``[N]`` delete-one pseudo-values, whose mean is the estimate; it can come out negative. ``N`` is 3 at least.
    """
    data = len(one[0].sketches)
    mean_norm2, norm2, distance2 = 0.0, np.zeros(data), np.zeros(data)
    for mine, theirs in zip(one, other, strict=True):
        mean_norm2 += float(squares_of(mine.sums - theirs.sums)) / data**2
        sketches = mine.sketches.double() - theirs.sketches.double()
        norm2 += sketches.square().sum(dim=1).cpu().numpy()
        distance2 += (sketches - sketches.mean(dim=0)).square().sum(dim=1).cpu().numpy()
    return pseudo_values(norm2, distance2, mean_norm2 - float(distance2.sum()) / (data - 1) / data)


def pseudo_values(norm2: np.ndarray, distance2: np.ndarray, value: float) -> np.ndarray:
    """Turn an estimate of ``|mu|^2`` into delete-one pseudo-values.

    ``|mu|^2 = sum_{n != m} <g_n, g_m> / N(N-1)``; the terms of datum ``n`` are ``N <g_n, g> - |g_n|^2``, with
    ``2<g_n, g> = |g_n|^2 + |g|^2 - |g_n - g|^2``.

    Args:
        norm2: ``[N]`` squared norms of the data's vectors ``g_n``.
        distance2: ``[N]`` their squared distances from the mean ``g``.
        value: The estimate.

    Returns:
        ``[N]``, with the estimate as mean.
    """
    data = len(norm2)
    terms = data / 2 * (norm2 - distance2) - norm2
    return 2 * (terms - terms.mean()) / (data - 2) + value
