"""The uniform design: every k-subset of the maskable positions is equally likely."""

import torch
from torch import Tensor

from gradvar.masking.hashing import shift_right

_NEVER = torch.iinfo(torch.int64).max


def target_count(maskable: Tensor, rate: float) -> Tensor:
    """Count the targets of a sentence with ``T`` maskable positions: ``max(1, floor(rate T + 1/2))``.

    Args:
        maskable: ``[...]`` int64, ``T >= 1``.
        rate: Mask rate in (0, 1).

    Returns:
        ``[...]`` int64, between 1 and ``T``.
    """
    return (maskable.double() * rate + 0.5).floor().long().clamp(min=1)


def uniform_subset(keys: Tensor, maskable: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Draw uniform subsets of the maskable positions: those with the smallest keys.

    Args:
        keys: ``[cells, positions]`` int64, independent and uniform (see :func:`hash_key`).
        maskable: ``[cells, positions]`` bool.
        counts: ``[cells]`` int64 size of each subset, at most the number of maskable positions.

    Returns:
        ``(positions, valid)``, each ``[cells, max(counts)]``: positions ascending; where ``valid``
        is False (cells with fewer targets than the largest) the position is 0 and means nothing.
    """
    width = int(counts.max())
    length = keys.shape[1]
    chosen = shift_right(keys, 1).masked_fill(~maskable, _NEVER).topk(width, dim=1, largest=False).indices
    valid = torch.arange(width, device=keys.device) < counts.unsqueeze(1)
    positions = chosen.masked_fill(~valid, length).sort(dim=1).values
    return positions.masked_fill(~valid, 0), valid
