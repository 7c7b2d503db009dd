"""What stands at a masked position: the mask token, a random token, or the token itself."""

from dataclasses import dataclass

import torch
from torch import Tensor

from gradvar.errors import GradvarError
from gradvar.masking.hashing import shift_right, unit_interval


@dataclass(frozen=True)
class Replacement:
    """Probabilities of the three corruptions of a target; BERT's are 0.8, 0.1, 0.1.

    Attributes:
        mask: Probability of the mask token.
        random: Probability of a token drawn uniformly from those that are not special.
        keep: Probability of the original token.

    Examples:
        >>> import gradvar
        >>> gradvar.Replacement()
        Replacement(mask=0.8, random=0.1, keep=0.1)
        >>> gradvar.Replacement(1, 0, 0).keep
        0
    """

    mask: float = 0.8
    random: float = 0.1
    keep: float = 0.1

    def __post_init__(self) -> None:
        parts = (self.mask, self.random, self.keep)
        if not all(0 <= p <= 1 for p in parts) or abs(sum(parts) - 1) > 1e-9:
            raise GradvarError(f"replacement {parts} must be three probabilities that sum to 1 (80,10,10 in percent)")


def corrupt(
    tokens: Tensor, action: Tensor, token: Tensor, replacement: Replacement, mask_id: int, random_ids: Tensor
) -> Tensor:
    """Corrupt target tokens.

    Args:
        tokens: ``[cells, targets]`` int64 original ids.
        action: ``[cells, targets]`` int64 hashes that choose between mask, random and keep.
        token: ``[cells, targets]`` int64 hashes that choose the random token, independent of ``action``.
        replacement: The probabilities.
        mask_id: Id of the mask token.
        random_ids: ``[ordinary tokens]`` int64 ids that a random replacement may take.

    Returns:
        ``[cells, targets]`` int64 ids to stand at the targets.
    """
    u = unit_interval(action)
    # The remainder's bias is vocabulary / 2^63, below 1e-13.
    drawn = random_ids[shift_right(token, 1) % len(random_ids)]
    out = torch.where(u < replacement.mask + replacement.random, drawn, tokens)
    return torch.where(u < replacement.mask, torch.full_like(tokens, mask_id), out)
