"""How well an arm's steps are aimed: alignment efficiency and batch gain from gradients of groups of cells.

Groups are independent, so products of different groups are free of noise on average. With ``G_r`` the mean gradient of
uniform masks over the n cells of group r, ``H_r`` that of the arm on the same sentences, and ``r != s``::

    |mu|^2 = mean G_r.G_s    <mu_q, mu> = mean H_r.G_s    |mu_q|^2 = mean H_r.H_s    V_q = n (mean |H_r|^2 - |mu_q|^2)

each unbiased. From these the alignment efficiency at a batch of B cells,
``A_q(B) = <mu_q, mu>^2/(|mu|^2 (|mu_q|^2 + V_q/B))``: the share of the ideal one-step decrease of the uniform objective
at the best step length. The *batch gain* is the factor by which the batch of uniform masks must grow to match it:
``B'/B`` with ``A_uniform(B') = A_q(B)``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

from gradvar.decomposition.estimate import Estimate


@dataclass(frozen=True)
class Grams:
    """Inner products of group means.

    Attributes:
        uniform: ``[R, R]`` ``G_r.G_s``.
        cross: ``[R, R]`` ``H_r.G_s``.
        own: ``[R, R]`` ``H_r.H_s``.
        cells: n, cells of a group.
        unbiased: Whether the arm's expectation is that of uniform masks by design, so that ``mu_q`` is ``mu``.
    """

    uniform: np.ndarray
    cross: np.ndarray
    own: np.ndarray
    cells: int
    unbiased: bool

    def without(self, group: int) -> Grams:
        """Leave a group out."""
        kept = np.delete(np.arange(len(self.uniform)), group)
        parts = (gram[np.ix_(kept, kept)] for gram in (self.uniform, self.cross, self.own))
        return Grams(*parts, self.cells, self.unbiased)


def batch_gain(grams: Grams, batch: int) -> Estimate:
    """Estimate the batch gain of an arm.

    Where the arm is unbiased by design it is ``V/V_q``, which takes no estimate of the signal.

    Args:
        grams: Of the arm.
        batch: B, cells of a step.

    Returns:
        The gain, with a jackknife interval over groups for its logarithm (95 %); not resolved where a part is not
        positive, with all groups or with one of them left out.
    """
    whole = _log_gain(grams, batch)
    count = len(grams.uniform)
    parts = np.array([_log_gain(grams.without(group), batch) for group in range(count)])
    if not np.isfinite([whole, *parts]).all():
        return Estimate(None, reason="the signal is not clear of the noise; take more sentences")
    pseudo = count * whole - (count - 1) * parts
    reach = stats.t.ppf(0.975, count - 1) * pseudo.std(ddof=1) / np.sqrt(count)
    return Estimate(float(np.exp(whole)), float(np.exp(whole - reach)), float(np.exp(whole + reach)))


def _log_gain(grams: Grams, batch: int) -> float:
    signal, noise = _moments(grams.uniform, grams.cells)
    own, own_noise = _moments(grams.own, grams.cells)
    if grams.unbiased:
        return float(np.log(noise / own_noise)) if min(noise, own_noise) > 0 else np.nan
    together = _apart(grams.cross)
    if min(signal, noise, own, own_noise, together) <= 0:
        return np.nan
    # A is 1/(1 + noise/(signal B')) for uniform masks, so B' = noise/signal A/(1 - A).
    efficiency = together**2 / (signal * (own + own_noise / batch))
    return float(np.log(noise / signal * efficiency / (1 - efficiency) / batch)) if efficiency < 1 else np.nan


def _moments(gram: np.ndarray, cells: int) -> tuple[float, float]:
    """Squared norm of the expectation, and variance of one cell."""
    signal = _apart(gram)
    return signal, float(cells * (np.diag(gram).mean() - signal))


def _apart(gram: np.ndarray) -> float:
    """Mean of the products of different groups."""
    count = len(gram)
    return float((gram.sum() - np.trace(gram)) / (count * (count - 1)))
