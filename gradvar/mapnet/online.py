"""What a MAPNet in training is told by the masks that are drawn anyway: how far to trust its scores, and their scale.

Every step gives unbiased estimates, on sentences that the network was not yet fitted to in that state, of the second
moment under each candidate of calibration.py. They are kept as exponentially weighted sums; a candidate is used as soon
as its ratio to uniform masks is below one with some certainty, and no longer than that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradvar.mapnet.calibration import EPSILONS, EXPONENTS
from gradvar.masking.designs import Design, mix
from gradvar.masking.masks import Masks, Sentences
from gradvar.masking.pps import PPS, capped
from gradvar.masking.scores import positive
from gradvar.masking.sets import SetDesign

MEMORY = 64
"""Looks after which an old one counts ``1/e``."""
_CERTAINTY = 2.5  # standard errors below one: the best of many candidates is partly luck
_FEWEST = 16  # looks before anything is believed


def candidates() -> list[tuple[float, float]]:
    """List the exponents and epsilons that are tried, beside uniform masks."""
    return [(a, e) for a in EXPONENTS if a for e in EPSILONS]


def can_calibrate(design: Design) -> bool:
    """Whether the second moment under other exponents can be told from masks of this design."""
    return isinstance(design, PPS | SetDesign)


def second_moments(design: Design, sentences: Sentences, scores: Tensor, masks: Masks, squares: Tensor) -> Tensor:
    """Estimate second moments under uniform masks and under all candidates, from the masks of any unbiased draw.

    For :class:`~gradvar.masking.pps.PPS`, ``sum_{i in S} a_i t_i^2 (k/T)/pi_i`` with the masks' own weights ``a_i``: it
    is unbiased for ``(k/T) mean_i f_i^2/pi_i``, whatever the design that drew, if targets do not interact. For designs
    of whole sets, ``w(S) w'(S) |e|^2`` with the drawn set's weight and the candidate's: unbiased for ``E_p[w' |e|^2]``.

    Args:
        design: Whose candidates; its own epsilon does not count.
        sentences: ``[rows]`` of them.
        scores: ``[rows, positions]``, to the power one.
        masks: ``[cells]`` of them, a multiple of ``rows``; those of a row together.
        squares: ``[cells, targets]`` squared norms at the targets, or ``[cells]`` of whole cells for designs of sets.

    Returns:
        ``[1 + candidates]`` float64 sums over cells, uniform masks first.
    """
    times = len(masks.keys) // len(scores)
    own = masks.weights.sum(dim=1)
    found = [(masks.weights * squares).sum() if squares.ndim == 2 else (own * squares).sum()]
    rate = (sentences.counts.double() / sentences.totals).repeat_interleave(times).unsqueeze(1)
    for exponent in (a for a in EXPONENTS if a):
        powered = positive(scores**exponent, sentences, "mapnet")
        if isinstance(design, PPS):
            aimed = capped(powered, sentences)
            for epsilon in EPSILONS:
                pi = mix(aimed, sentences, epsilon).repeat_interleave(times, dim=0).gather(1, masks.positions)
                found.append((masks.weights * squares * rate / pi.masked_fill(~masks.valid, 1.0)).sum())
        else:
            assert isinstance(design, SetDesign)
            plain = replace(design, epsilon=0.0)
            inverse = (-plain.log_weight(sentences, powered, masks.positions, masks.valid)).exp()
            found += [(own * squares / ((1 - e) * inverse + e)).sum() for e in EPSILONS]
    return torch.stack([x.double() for x in found])


class OnlineCalibration:
    """Chooses exponent and epsilon as training goes on; uniform masks until, and unless, something is surely better.

    With discounted sums ``S_c`` of the looks ``x_c`` and ``S_0`` of uniform masks', a candidate's ratio is ``r = S_c /
    S_0`` with the standard error ``sqrt(sum d^2 (x_c - r x_0)^2)/S_0``, ``d`` the discounts. The candidate with the
    lowest upper end, of 2.5 standard errors, is used if that is below one.
    """

    def __init__(self) -> None:
        self._tried = candidates()
        self._looks = 0
        self._sums = np.zeros(1 + len(self._tried))
        self._squares = np.zeros((len(self._tried), 3))  # sums of x_c^2, x_c x_0 and x_0^2

    def look(self, moments: np.ndarray) -> None:
        """Take the estimates of one step, as :func:`second_moments` gives them."""
        keep = 1 - 1 / MEMORY
        uniform, others = moments[0], moments[1:]
        self._looks += 1
        self._sums = keep * self._sums + moments
        products = np.stack([others**2, others * uniform, np.full_like(others, uniform**2)], axis=1)
        self._squares = keep**2 * self._squares + products

    @property
    def chosen(self) -> tuple[float, float]:
        """Exponent and epsilon in use; an exponent of zero stands for uniform masks."""
        ratio, error = self.ratios()
        upper = ratio + _CERTAINTY * error
        if self._looks < _FEWEST or not upper.min() < 1:
            return 0.0, 0.0
        return self._tried[int(upper.argmin())]

    def ratios(self) -> tuple[np.ndarray, np.ndarray]:
        """Second moments of the candidates over uniform masks', with their standard errors; not a number at first."""
        with np.errstate(invalid="ignore", divide="ignore"):
            ratio = self._sums[1:] / self._sums[0]
            spread = self._squares[:, 0] - 2 * ratio * self._squares[:, 1] + ratio**2 * self._squares[:, 2]
            return ratio, np.sqrt(spread.clip(0)) / self._sums[0]

    def state(self) -> dict[str, Any]:
        """Return all that it knows, as plain JSON; floats come back bit for bit."""
        return {"looks": self._looks, "sums": self._sums.tolist(), "squares": self._squares.tolist()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Know what :meth:`state` said."""
        self._looks = int(state["looks"])
        self._sums, self._squares = np.array(state["sums"]), np.array(state["squares"])
