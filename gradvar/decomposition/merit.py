"""How good a way of choosing masks is: variance, bias and cost in one figure, beside uniform masks on the same data.

Everything is a function of means over sentences. ``V_data`` and ``V_mask`` are those of one draw, which may be of
several cells (K disjoint masks, whose gradients are averaged).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, nan, sqrt

import numpy as np

from gradvar.decomposition.contributions import of_means, positive_of_means
from gradvar.decomposition.estimate import Estimate, unresolved


@dataclass(frozen=True)
class Draws:
    """What each sentence contributes to the moments of one draw's gradient ``g``; the means are unbiased.

    Attributes:
        mask: ``[N]`` to ``V_mask``, the variance of a draw within a sentence.
        data: ``[N]`` to ``V_data``, the variance of a sentence's expected gradient.
        signal: ``[N]`` to ``|mu|^2``, the squared norm of the expected gradient.
        bias: ``[N]`` to ``|mu - mu_uniform|^2``; None if the expectation is that of uniform masks by design.
        cells: Cells of a draw.
        covariance: ``[N]`` to the covariance of two of a draw's cells, where it has several.
    """

    mask: np.ndarray
    data: np.ndarray
    signal: np.ndarray
    bias: np.ndarray | None
    cells: int = 1
    covariance: np.ndarray | None = None

    @property
    def columns(self) -> np.ndarray:
        """``[N, 4]`` mask, data, signal and bias."""
        bias = np.zeros_like(self.mask) if self.bias is None else self.bias
        return np.stack([self.mask, self.data, self.signal, bias], axis=1)


class Merit:
    """Compares draws with uniform ones of the same sentences.

    Args:
        uniform: One uniform mask a draw.
        other: The draws that are compared.
        cost: Their cost over that of a uniform draw, forward and backward passes included.
        cost_error: Standard error of the logarithm of that ratio.
    """

    def __init__(self, uniform: Draws, other: Draws, cost: float = 1.0, cost_error: float = 0.0) -> None:
        self._both = np.concatenate([uniform.columns, other.columns], axis=1)
        self._other, self._cost, self._error = other, cost, cost_error

    def variance_ratio(self) -> Estimate:
        """``K V_mask / V_mask,uniform``: against K independent cells."""
        return self._ratio(lambda m: self._other.cells * m[4] / m[0])

    def bias2_ratio(self) -> Estimate:
        """``K |E b|^2 / V_mask,uniform``, against K independent cells; its estimate can come out negative."""
        if self._other.bias is None:
            return Estimate(0.0, 0.0, 0.0)
        return self._ratio(lambda m: self._other.cells * m[7] / m[0])

    def mse_ratio(self, batch: float = 1.0) -> Estimate:
        """``(V_mask/B + |E b|^2) / (V_mask,uniform/B)``, each draw's variance K times as in :meth:`variance_ratio`.

        Args:
            batch: ``B``, draws of different sentences whose gradients are averaged.

        Returns:
            The ratio.
        """
        return self._ratio(lambda m: self._other.cells * (m[4] + batch * m[7]) / m[0])

    def efficiency(self, batch: float = 1.0) -> Estimate:
        """``MSE_uniform cost_uniform / (MSE cost)`` with ``MSE = (V_data + V_mask)/B + |E b|^2``.

        Args:
            batch: ``B``.

        Returns:
            The ratio; over one is better than uniform.
        """

        def value(m: np.ndarray) -> float:
            mse = m[4] + m[5] + batch * m[7]
            return (m[0] + m[1]) / mse / self._cost if mse > 0 else nan

        return positive_of_means(value, self._both, self._variances(), self._error)

    def cosine(self) -> Estimate:
        """Cosine of the angle between the expected gradient and that of uniform masks."""
        if self._other.bias is None:
            return Estimate(1.0, 1.0, 1.0)
        parts = {"|mu|^2": self._mean(2), "the squared norm of this proposal's expected gradient": self._mean(6)}
        found = positive_of_means(
            lambda m: _cross(m) / sqrt(m[2] * m[6]) if m[2] * m[6] > 0 else nan, self._both, parts
        )
        return found.clip(-1.0, 1.0)

    def batch_gain(self, batch: float | None = None) -> Estimate:
        """The factor by which a uniform batch must grow to be as well aligned, at equal cost.

        ``A(B) = <mu_q, mu>^2 / (|mu|^2 (|mu_q|^2 + V_q/B))`` is the share of the ideal one-step decrease of the uniform
        objective at the best step length, on an isotropic quadratic; uniform masks have ``1/(1 + V/(|mu|^2 B))``.

        Args:
            batch: ``B``; None takes the limit of small ones, ``(<mu_q, mu>^2/V_q) / (|mu|^4/V)``.

        Returns:
            The gain over the cost ratio. Where the expectation is that of uniform masks by design it is ``V/V_q`` at
            every ``B``.
        """
        if self._other.bias is None:
            return self.efficiency()

        def small(m: np.ndarray) -> float:
            cross = max(_cross(m), 0.0)
            return cross**2 / (m[4] + m[5]) / (m[2] ** 2 / (m[0] + m[1])) / self._cost

        def at_batch(m: np.ndarray) -> float:
            assert batch is not None
            cross = max(_cross(m), 0.0)
            aligned = cross**2 / (m[2] * (m[6] + (m[4] + m[5]) / batch))
            if not 0 < aligned < 1:
                return nan
            return (m[0] + m[1]) / m[2] / (1 / aligned - 1) / batch / self._cost

        parts = self._variances() | {
            "|mu|^2": self._mean(2),
            "the inner product of the two expected gradients": float(_cross(self._both.mean(axis=0))),
        }
        return positive_of_means(small if batch is None else at_batch, self._both, parts, self._error)

    def _variances(self) -> dict[str, float]:
        return {
            "the variance of a uniform draw": self._mean(0) + self._mean(1),
            "the variance of this proposal's draw": self._mean(4) + self._mean(5),
        }

    def _mean(self, column: int) -> float:
        return float(self._both[:, column].mean())

    def _ratio(self, function: object) -> Estimate:
        assert callable(function)
        return of_means(function, self._both)


def _cross(means: np.ndarray) -> float:
    """``<mu_q, mu>`` from ``|mu_q|^2``, ``|mu|^2`` and ``|mu_q - mu|^2``."""
    return float(means[6] + means[2] - means[7]) / 2


@dataclass(frozen=True)
class Disjoint:
    """Whether disjoint masks pay.

    Attributes:
        covariance: ``Cov`` of the gradients of two disjoint masks of a sentence.
        balance: ``V_data + Cov``; where it is negative, a second mask of a sentence beats one of another sentence.
        masks: ``K*``, the number of masks of a sentence with the least variance at equal cost; None if not known.
    """

    covariance: Estimate
    balance: Estimate
    masks: int | None


def disjoint_advice(
    data: np.ndarray, mask: np.ndarray, covariance: np.ndarray | None, cost_sentence: float, cost_cell: float, most: int
) -> Disjoint:
    """Find ``K* = sqrt((V_mask - Cov) c_s / ((V_data + Cov) c_m))``, or the largest feasible.

    Args:
        data: ``[N]`` contributions to ``V_data``.
        mask: ``[N]`` to ``V_mask`` of one mask.
        covariance: ``[N]`` to ``Cov``; None if it was not measured.
        cost_sentence: ``c_s`` of a new sentence.
        cost_cell: ``c_m`` of another mask.
        most: Masks that fit into every sentence.

    Returns:
        The advice.
    """
    if covariance is None:
        nothing = unresolved("no disjoint masks were drawn; add uniform/disjoint:2 to the proposals")
        return Disjoint(nothing, nothing, None)
    both = np.stack([data, mask, covariance], axis=1)
    v_data, v_mask, cov = both.mean(axis=0)
    ideal = inf if v_data + cov <= 0 else sqrt(max(v_mask - cov, 0.0) * cost_sentence / ((v_data + cov) * cost_cell))

    def cost(masks: int) -> float:
        variance = v_data + (v_mask + (masks - 1) * cov) / masks
        return float(variance * (cost_sentence + masks * cost_cell))

    lower = int(min(max(ideal, 1), most))
    best = min((lower, min(lower + 1, most)), key=cost)
    return Disjoint(of_means(lambda m: m[2], both), of_means(lambda m: m[0] + m[2], both), best if most >= 1 else None)
