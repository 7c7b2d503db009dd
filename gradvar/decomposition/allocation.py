"""How to spend a batch: the variance of a batch gradient, and the cheapest number of inner draws."""

from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np

from gradvar.decomposition.components import Components
from gradvar.decomposition.estimate import Estimate, unresolved

MOST_MASKS = 1024


@dataclass(frozen=True)
class Advice:
    """How many inner draws each datum should have, at equal cost.

    Attributes:
        masks_per_sentence: ``K`` that minimises ``(V_data + V_mask/K)(c_s + K c_m)``; None if not resolved.
        variance_ratio_to_one_mask: Variance at that K over the variance at K = 1, for the same cost.
        cost_sentence: ``c_s``: cost of one more sentence, its masks apart, in seconds (or the unit given).
        cost_mask: ``c_m``: cost of one more mask, forward and backward, in the same unit.
    """

    masks_per_sentence: int | None
    variance_ratio_to_one_mask: Estimate
    cost_sentence: float
    cost_mask: float

    def to_json(self) -> dict[str, Any]:
        """Return the fields for JSON."""
        return {
            "masks_per_sentence": self.masks_per_sentence,
            "variance_ratio_to_one_mask": self.variance_ratio_to_one_mask.to_json(),
            "cost_sentence": self.cost_sentence,
            "cost_mask": self.cost_mask,
        }


def batch_variance(components: Components, batch: float, draws: tuple[int, ...]) -> Estimate:
    """Estimate the variance of a batch gradient: ``sum_l V_l / (B n_1 ... n_l)``.

    Args:
        components: Components of one cell.
        batch: Data a batch, ``B``.
        draws: Draws at each inner level, such as ``(K,)``.

    Returns:
        The variance, or "not resolved" where the outer component is estimated as negative.
    """
    if components.values[0] < 0:
        return unresolved(f"the {components.levels[0]} variance is estimated as negative")
    return components.linear(1 / (batch * np.cumprod((1, *draws))))


def advise(components: Components, cost_sentence: float, cost_mask: float, together: int = 1) -> Advice:
    """Find the number of masks of each sentence that minimises the variance at equal cost.

    ``V_data/B + V_mask/(B K)`` at cost ``B (c_s + K c_m)`` is smallest at
    ``K = sqrt(V_mask c_s / (V_data c_m))``; of the integers beside it the better one is taken.

    Args:
        components: Components with two levels.
        cost_sentence: ``c_s >= 0``.
        cost_mask: ``c_m > 0`` of a draw.
        together: Masks of a draw; advice is given where it is one.

    Returns:
        The advice.
    """
    if together > 1:
        return Advice(None, unresolved("advice is given for independent masks"), cost_sentence, cost_mask)
    if len(components.counts) != 2:
        return Advice(None, unresolved("advice is given for two levels"), cost_sentence, cost_mask)
    data, mask = components.values

    def coefficients(masks: int) -> np.ndarray:
        return (cost_sentence + masks * cost_mask) * np.array([1.0, 1 / masks])

    def cost(masks: int) -> float:
        return float(coefficients(masks) @ components.values)

    ideal = sqrt(mask * cost_sentence / (data * cost_mask)) if data > 0 else MOST_MASKS
    lower = int(min(max(1, ideal), MOST_MASKS - 1))
    best = min((lower, lower + 1), key=cost)
    ratio = components.ratio(coefficients(best), coefficients(1))
    return Advice(best if ratio.resolved else None, ratio, cost_sentence, cost_mask)
