"""The most that three remedies can remove of the mask variance, by what each sentence contributes.

Importance sampling of whole masks, weighting of single positions, and disjoint masks. A ceiling is a ratio of means
over sentences: of these contributions, and of the sentences' mask variances.
"""

from __future__ import annotations

import numpy as np

NOT_ASKED = "--headroom measures it"
"""Why a ceiling is not known that takes more than the cells of a study."""


def importance(cell_norm2: np.ndarray) -> np.ndarray:
    """What the best importance sampling of whole masks removes: ``Var(|g|)`` within a sentence.

    Weighting draws from ``q`` by ``p/q`` leaves at best the second moment ``(E|g|)^2``, at ``q ~ p |g|``.

    Args:
        cell_norm2: ``[N, M]`` squared gradient norms of uniform masks.

    Returns:
        ``[N]``, unbiased.
    """
    return np.sqrt(cell_norm2).var(axis=1, ddof=1)


def position(norms: np.ndarray, maskable: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """What the best weighting of single positions removes: ``[mean_i f_i^2 - (mean_i f_i)^2] / k``.

    ``f_i^2`` is the mean square over contexts of the norm at position ``i``. Its square root in few contexts is too
    small on average, so the second term is corrected by a delete-one jackknife over the contexts.

    Args:
        norms: ``[contexts, N, positions]``, two contexts at least.
        maskable: ``[N, positions]`` bool.
        counts: ``[N]`` targets of a mask, ``k``.

    Returns:
        ``[N]``; it can come out negative. 0 where ``k = T``; elsewhere, too, probabilities are at most one, which
        ``f_i`` may ask to pass: what can be reached is less then.
    """
    contexts, totals = len(norms), maskable.sum(axis=1)
    squares = np.where(maskable, norms, 0.0) ** 2

    def squared_mean(some: np.ndarray) -> np.ndarray:
        return (np.sqrt(some.mean(axis=0)).sum(axis=1) / totals) ** 2

    deleted = [squared_mean(np.delete(squares, context, axis=0)) for context in range(contexts)]
    corrected = contexts * squared_mean(squares) - (contexts - 1) * np.mean(deleted, axis=0)
    removed = (squares.mean(axis=0).sum(axis=1) / totals - corrected) / counts
    return np.where(totals > counts, removed, 0.0)


def main_effects(inner: np.ndarray, overlaps: np.ndarray, totals: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """What disjoint masks can remove: ``V_main``, the part of the mask variance that adds up over positions.

    With ``m`` positions in common, ``E_1 = (m T/k - k)/(T - k)`` has mean zero and covariance ``-V_main/(T - 1)`` with
    half the squared distance of two gradients. The sample covariance over a sentence's ``P`` pairs (``P - 1`` below)
    is unbiased, as pairs that share one mask are uncorrelated.

    Args:
        inner: ``[N, M, M]`` inner products of the gradients of independent uniform masks, three at least.
        overlaps: ``[N, M, M]`` positions that they have in common.
        totals: ``[N]`` maskable positions, ``T``.
        counts: ``[N]`` targets of a mask, ``k``.

    Returns:
        ``[N]``; 0 where ``k = T``.
    """
    first, second = np.triu_indices(inner.shape[1], k=1)
    norms = np.diagonal(inner, axis1=1, axis2=2)
    halves = (norms[:, first] + norms[:, second]) / 2 - inner[:, first, second]
    free = np.maximum(totals - counts, 1)
    common = overlaps[:, first, second] * (totals / counts)[:, None] - counts[:, None]
    effects = common / free[:, None]
    pairs = len(first)
    covariance = ((halves - halves.mean(axis=1, keepdims=True)) * effects).sum(axis=1) / (pairs - 1)
    return np.where(totals > counts, -(totals - 1) * covariance, 0.0)
