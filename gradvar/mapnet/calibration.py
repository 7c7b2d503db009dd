"""How far a MAPNet's scores are trusted: to what power they are raised, and how much of uniform is mixed in.

Arithmetic on held-out sentences whose target norms were measured, without a further gradient. What is predicted are
masks of :class:`gradvar.masking.pps.PPS`; their cross terms are not (see :func:`second_moments`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from gradvar.decomposition.intervals import jackknife_interval
from gradvar.errors import GradvarError
from gradvar.masking.masks import Sentences
from gradvar.masking.pps import PPS
from gradvar.masking.scores import positive

EXPONENTS = (0.0, 0.125, 0.25, 0.375, 0.5, 0.75, 1.0)
EPSILONS = (0.0, 0.05, 0.1, 0.2, 0.5)
_FEWEST = 4  # sentences, two a half: an interval needs a spread


@dataclass(frozen=True)
class Candidate:
    """A way to use the scores, and what it did to the sentences that it was not chosen on.

    Attributes:
        exponent: Power of the scores.
        epsilon: Part of uniform inclusion.
        ratio: Second moment over that of uniform masks.
        low: Lower end of its 95 % interval.
        high: Upper end.
    """

    exponent: float
    epsilon: float
    ratio: float
    low: float
    high: float


@dataclass(frozen=True)
class Calibration(Candidate):
    """What was settled on: the best candidate, or uniform masks, whose ratio is one by definition.

    Attributes:
        fell_back: Uniform masks were settled on: no candidate promised a gain, or the best did not confirm it.
        tried: The best candidate.
        sentences: How many the interval is from.
    """

    fell_back: bool
    tried: Candidate
    sentences: int

    def sentence(self) -> str:
        """Say it in words."""
        t = self.tried
        if t.exponent == 0:
            return "The scores are not used: no power of them has a second moment reliably below that of uniform masks."
        found = (
            f"{t.ratio:.3g} (95 % interval {t.low:.3g} to {t.high:.3g}) times that of uniform masks on "
            f"{self.sentences} sentences that had no part in the choice"
        )
        mixed = f" mixed with {t.epsilon:.0%} of uniform" if t.epsilon else ""
        if self.fell_back:
            return (
                f"The scores are not used: their best power, {t.exponent:g}{mixed}, has a second moment {found}, and "
                "the interval reaches 1."
            )
        return f"The scores to the power {t.exponent:g}{mixed} have a second moment {found}."


def calibrate(
    log_scores: Sequence[np.ndarray],
    squared_norms: Sequence[np.ndarray],
    counts: Sequence[int],
    exponents: Sequence[float] = EXPONENTS,
    epsilons: Sequence[float] = EPSILONS,
) -> Calibration:
    """Choose the exponent and the epsilon on one half of the sentences, and judge the choice on the other.

    ``ratio = sum_x m_x(a, epsilon) / sum_x m_x(0)`` with the ``m`` of :func:`second_moments`: a ratio of means over
    sentences, with a delete-one-sentence jackknife interval. On the sentences of even index the candidate whose upper
    end is smallest is chosen; uniform masks, whose ratio is one without an interval, are among the candidates. The
    smallest of many noisy ends is too good to be true (the winner's curse), so that half is never reported: ratio and
    interval are those of the odd half, where there was nothing to choose. The interval is honest for that one
    candidate; that another one would have been better still is not excluded. If its upper end is not below one, masks
    stay uniform.

    Args:
        log_scores: A ``[T]`` array a sentence: log scores of its maskable positions. Sentences are independent, in an
            order that means nothing, and had no part in the fit.
        squared_norms: ``[T]`` arrays: squared gradient norms of these positions as targets, noisy (a few contexts), but
            with expectation ``f_i^2``.
        counts: Targets of a mask, ``k``, in each sentence.
        exponents: Candidates.
        epsilons: Candidates.

    Returns:
        The choice.

    Raises:
        GradvarError: If there are fewer than four sentences, if in one half fewer than two have a norm over zero, or if
            shapes or numbers are not what they should be.
    """
    if len(log_scores) < _FEWEST:
        raise GradvarError(f"a calibration needs {_FEWEST} sentences or more, not {len(log_scores)}; measure more")
    held_out = _padded(log_scores, squared_norms, counts)
    uniform = _moments(*held_out, 0.0, 0.0)
    choosing, judging = np.arange(len(uniform)) % 2 == 0, np.arange(len(uniform)) % 2 == 1
    if min(np.count_nonzero(uniform[half]) for half in (choosing, judging)) < 2:
        raise GradvarError("nearly all norms are zero, so that no scores can be judged by them; measure more sentences")

    def candidate(exponent: float, epsilon: float, half: np.ndarray) -> Candidate:
        moments = _moments(*held_out, exponent, epsilon)
        return Candidate(exponent, epsilon, *_ratio(moments[half], uniform[half]))

    grid = ((a, e) for a in exponents if a != 0 for e in epsilons)
    best = min((candidate(*pair, choosing) for pair in ((0.0, 0.0), *grid)), key=lambda found: found.high)
    tried = candidate(best.exponent, best.epsilon, judging)
    fell_back = tried.exponent == 0 or not tried.high < 1
    used = Candidate(0.0, 0.0, 1.0, 1.0, 1.0) if fell_back else tried
    return Calibration(**vars(used), fell_back=fell_back, tried=tried, sentences=int(judging.sum()))


def second_moments(
    log_scores: Sequence[np.ndarray],
    squared_norms: Sequence[np.ndarray],
    counts: Sequence[int],
    exponent: float,
    epsilon: float,
) -> np.ndarray:
    """Predict second moments, ``m = mean_i f_i^2 / u_i`` with ``u_i = T pi_i / k``, of mean one over a sentence.

    ``pi`` are the inclusion probabilities that ``PPS(epsilon=epsilon)`` aims at, given the scores as a proposal would
    raise them to a power: ``u = (1 - epsilon) c s^a + epsilon``, the first part cut at ``T/k``. Unbiased where
    ``squared_norms`` are. ``m/k`` is what single positions contribute to the second moment of the Horvitz-Thompson
    gradient ``(1/T) sum_{i in S} g_i/pi_i`` if targets do not interact. Its cross terms ``g_i g_j`` are left out; where
    no design changes them, what is saved of ``m/k`` is saved of ``V_mask``, of which it is a larger share.

    Args:
        log_scores: See :func:`calibrate`, for the errors as well.
        squared_norms: See :func:`calibrate`.
        counts: See :func:`calibrate`.
        exponent: Power of the scores, ``a``.
        epsilon: Part of uniform inclusion.

    Returns:
        ``[sentences]`` float64.
    """
    return _moments(*_padded(log_scores, squared_norms, counts), exponent, epsilon)


def _moments(sentences: Sentences, scores: Tensor, norms2: Tensor, exponent: float, epsilon: float) -> np.ndarray:
    # The very steps of gradvar.masking.scores.Power within a Proposal, floors included.
    powered = positive(positive(scores, sentences, "mapnet") ** exponent, sentences, "mapnet")
    inclusion = PPS(epsilon=epsilon).target(sentences, powered)
    terms = torch.where(sentences.maskable, norms2 / inclusion, 0.0).sum(dim=1)
    return (terms * sentences.counts / sentences.totals**2).numpy()


def _ratio(moments: np.ndarray, uniform: np.ndarray) -> tuple[float, float, float]:
    """Ratio of means with its interval; an infinite one where a jackknife replicate is not finite."""

    def statistic(kept: np.ndarray) -> float:
        return float(moments[kept].sum() / uniform[kept].sum())

    with np.errstate(invalid="ignore"):
        interval = jackknife_interval(statistic, len(moments))
        return statistic(np.ones(len(moments), dtype=bool)), *(interval or (-np.inf, np.inf))


def _padded(
    log_scores: Sequence[np.ndarray], squared_norms: Sequence[np.ndarray], counts: Sequence[int]
) -> tuple[Sentences, Tensor, Tensor]:
    """Make ``(sentences, scores, squared norms)`` of the arrays, of which all positions are maskable."""
    if not len(log_scores) == len(squared_norms) == len(counts):
        raise GradvarError(
            f"{len(log_scores)} sentences with log scores, {len(squared_norms)} with norms and {len(counts)} counts do "
            "not go together; give one of each a sentence"
        )
    scores, norms2 = (
        [torch.as_tensor(x, dtype=torch.float64) for x in arrays] for arrays in (log_scores, squared_norms)
    )
    for number, (s, n, count) in enumerate(zip(scores, norms2, counts, strict=True)):
        if s.ndim != 1 or s.shape != n.shape:
            raise GradvarError(
                f"sentence {number} has log scores of shape {list(s.shape)} and norms of shape {list(n.shape)}; give "
                "one of each for every maskable position"
            )
        if not 1 <= count <= len(s):
            raise GradvarError(f"sentence {number} has {len(s)} positions, so its masks cannot have {count} targets")
        if not (s.isfinite().all() and n.isfinite().all() and (n >= 0).all()):
            raise GradvarError(
                f"sentence {number} has a log score that is not finite, or a squared norm that is no number from 0 up; "
                "leave it out"
            )
    maskable = pad_sequence([torch.ones(len(s), dtype=torch.bool) for s in scores], batch_first=True)
    nothing = torch.zeros_like(maskable, dtype=torch.int64)
    sentences = Sentences(nothing, maskable, torch.as_tensor(counts, dtype=torch.int64), nothing, nothing[:, 0])
    relative = pad_sequence([(s - s.max()).exp() for s in scores], batch_first=True)
    return sentences, relative, pad_sequence(norms2, batch_first=True)
