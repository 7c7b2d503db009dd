"""The uniform design's arithmetic: every k-subset of the maskable positions is equally likely."""

from torch import Tensor

from gradvar.masking.hashing import shift_right
from gradvar.masking.masks import first_in_order


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
        ``(positions, valid)``; see :func:`~gradvar.masking.masks.first_in_order`.
    """
    return first_in_order(shift_right(keys, 1), maskable, counts)
