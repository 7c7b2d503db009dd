"""Judges a MAPNet, or any other score, by the true gradient norms of sentences that it has not seen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy import stats

from gradvar.ceilings import gradient_norms
from gradvar.decomposition import ceilings
from gradvar.decomposition.contributions import of_means
from gradvar.decomposition.estimate import Estimate, unresolved
from gradvar.mapnet.calibration import Calibration, calibrate, second_moments
from gradvar.masking.hashing import hash_key
from gradvar.masking.scores import Quantity, Score

if TYPE_CHECKING:
    from gradvar.huggingface.masked_lm import MaskedLM

TARGETS: dict[str, Quantity] = {
    "gradient": "gradient",
    "logit": "logit",
    "last-layer": "last-layer",
    "loss": "loss",
}
"""What a MAPNet can be fitted to, by name: all are measured at targets of uniformly masked sentences."""
_OTHER_STREAM = 24  # of hashes
_ROUNDING = 1e-9  # of the second moment: so little may be rounding errors alone
_MIXED = 0.1  # of uniform, where raw scores are compared: measured in few contexts, they may be far too small


class Judge:
    """Held-out sentences with the true gradient norms of their positions.

    Args:
        objective: The masked LM.
        data: Indices of the sentences.
        seed: Of the contexts.
        progress: Called with the sentences measured.
    """

    def __init__(
        self, objective: MaskedLM, data: list[int], seed: int, progress: Callable[[int], None] | None = None
    ) -> None:
        self._objective = objective
        self.sentences = objective.sentences(data, seed)
        norms = gradient_norms(objective, self.sentences, progress)
        maskable = self.sentences.maskable.cpu().numpy()
        self._counts: list[int] = self.sentences.counts.tolist()
        self._norms = [norms[:, row, own] for row, own in enumerate(maskable)]  # [contexts, T] a sentence
        self._squares = [(x**2).mean(axis=0) for x in self._norms]
        self._maskable = maskable
        counts = np.array(self._counts)
        self._ceiling = ceilings.position(norms, maskable, counts)
        self._uniform = np.array([x.mean() for x in self._squares]) / counts

    def _scores(self, score: Score) -> list[np.ndarray]:
        """``[T]`` log scores a sentence."""
        with torch.no_grad():
            found = score(self.sentences, self._objective.scoring).log().cpu().numpy()
        return [found[row, own] for row, own in enumerate(self._maskable)]

    def _removed(self, scores: list[np.ndarray], exponent: float = 1.0, epsilon: float = 0.0) -> np.ndarray:
        """``[N]`` predicted part of each sentence's second moment that weighting by these log scores removes."""
        left = second_moments(scores, self._squares, self._counts, exponent, epsilon) / np.array(self._counts)
        return self._uniform - left

    def ceiling_share(self, score: Score) -> Estimate:
        """Estimate removed over ceiling, of position weights by the raw scores."""
        return self._share(self._removed(self._scores(score)), self._ceiling)

    def calibrated_ceiling_share(self, score: Score, calibration: Calibration) -> Estimate:
        """Estimate the same for the calibrated proposal, on the half that had no part in its choice."""
        removed = self._removed(self._scores(score), calibration.exponent, calibration.epsilon)
        return self._share(removed[1::2], self._ceiling[1::2])

    def captured_share(self, score: Score) -> Estimate:
        """Estimate removed by the score over removed by the oracle, both by inclusion mixed with a tenth of uniform.

        The oracle scores by all contexts but one and is judged by that one, each in turn.
        """
        return self._share(self._removed(self._scores(score), 1.0, _MIXED), self._oracle())

    def others(self) -> dict[str, Estimate]:
        """Estimate the ceiling share of scores that need no network, mixed likewise, and of the oracle itself.

        They are measured in as many contexts of their own.
        """
        found = {"oracle": self._share(self._oracle(), self._ceiling)}
        for name, exponent in (("logit", 1.0), ("last-layer", 1.0), ("loss", 0.25)):
            logs = [np.log(np.maximum(x, 1e-6 * x.mean())) for x in self._elsewhere(name)]
            title = name if exponent == 1 else f"{name}^{exponent:g}"
            found[title] = self._share(self._removed(logs, exponent, _MIXED), self._ceiling)
        return found

    def rank_correlation(self, score: Score) -> Estimate:
        """Estimate the mean over sentences of Spearman's rank correlation with the measured norms.

        The norms are noisy (a few contexts), which makes the correlation smaller than that with the true ones.
        """
        return self._rank(self._scores(score))

    def target_rank_correlation(self, target: str) -> Estimate:
        """Estimate the same of what a MAPNet is fitted to, measured in as many contexts of their own.

        Where it is about zero the target tells nothing of true norms, and no MAPNet can learn them from it; that of
        ``gradient`` is what the noise of the contexts leaves.
        """
        return self._rank(self._elsewhere(target))

    def _elsewhere(self, target: str) -> list[np.ndarray]:
        """``[T]`` root mean squares of a target a sentence, in other contexts than the norms'."""
        elsewhere = replace(self.sentences, keys=hash_key(_OTHER_STREAM, self.sentences.keys))
        values = self._objective.scoring.at_targets(TARGETS[target], elsewhere).square().mean(dim=0).sqrt()
        return [x[own] for x, own in zip(values.cpu().numpy(), self._maskable, strict=True)]

    def _rank(self, scores: list[np.ndarray]) -> Estimate:
        pairs = zip(scores, self._squares, strict=True)
        values = [stats.spearmanr(s, f).statistic if np.ptp(s) > 0 and np.ptp(f) > 0 else 0.0 for s, f in pairs]
        return of_means(lambda m: m[0], np.array(values)[:, None]).clip(-1.0, 1.0)

    def calibrate(self, score: Score) -> Calibration:
        """Choose exponent and epsilon; see :func:`~gradvar.mapnet.calibration.calibrate`."""
        return calibrate(self._scores(score), self._squares, self._counts)

    def _oracle(self) -> np.ndarray:
        removed = []
        for judging in range(len(self._norms[0])):
            others = [np.delete(x, judging, axis=0) for x in self._norms]
            scores = [np.log(np.sqrt((x**2).mean(axis=0)).clip(1e-30)) for x in others]
            squares = [x[judging] ** 2 for x in self._norms]
            left = second_moments(scores, squares, self._counts, 1.0, _MIXED)
            removed.append((np.array([x.mean() for x in squares]) - left) / np.array(self._counts))
        return np.mean(removed, axis=0)

    def _share(self, removed: np.ndarray, whole: np.ndarray) -> Estimate:
        """Divide means over sentences, where what is divided by is clearly positive."""
        least = of_means(lambda m: float(m[0]), whole[:, None]).low
        if least is None or least <= _ROUNDING * self._uniform.mean():
            return unresolved("what can be removed is not clearly positive; hold out more sentences, in more contexts")
        return of_means(lambda m: m[0] / m[1], np.stack([removed, whole], axis=1))
