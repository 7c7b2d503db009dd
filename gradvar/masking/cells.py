"""The cells of a study as integers: the datum that each is of, and a key for each level of its randomness."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from gradvar.masking.hashing import hash_key, shift_right, unit_interval

_UNIFORM, _NORMAL = 3, 4  # streams of hashes, one a purpose


@dataclass(frozen=True)
class Cells:
    """The cells that some data have, with draws that are a pure function of (seed, datum, inner indices).

    A datum's cells come together, the innermost level fastest: what ``Objective.draw`` must return. Cells that
    share a draw of level ``l`` share its key, ``hash(seed, datum, index at level 1, ..., index at level l)``, and
    so everything that is drawn by it. Level 0 is the datum itself: one draw for all its cells.

    Args:
        data: Indices of the data in the population.
        draws: Number of draws at each inner level.
        seed: Seed of every choice.

    Examples:
        >>> cells = Cells([7, 5], (2,), seed=0)
        >>> cells.datum
        tensor([7, 7, 5, 5])
        >>> cells.normal(1, 3).shape
        torch.Size([4, 3])
    """

    data: Sequence[int]
    draws: tuple[int, ...]
    seed: int

    @cached_property
    def _grid(self) -> list[Tensor]:
        """``[cells]`` indices at each level, outermost first."""
        axes = [torch.as_tensor(list(self.data)), *(torch.arange(count) for count in self.draws)]
        return [index.flatten() for index in torch.meshgrid(*axes, indexing="ij")]

    @property
    def datum(self) -> Tensor:
        """``[cells]`` int64 index of each cell's datum."""
        return self._grid[0]

    @cached_property
    def keys(self) -> Tensor:
        """``[cells, levels]`` int64 hashes."""
        levels = len(self.draws) + 1
        return torch.stack([hash_key(self.seed, *self._grid[: level + 1]) for level in range(levels)], dim=1)

    def uniform(self, level: int, *shape: int) -> Tensor:
        """Draw numbers uniform on [0, 1].

        Args:
            level: The level whose draw decides them, 1 or more; 0 for the same in all cells of a datum.
            *shape: Their shape in one cell; none for a single number.

        Returns:
            ``[cells, *shape]`` in torch's default type.
        """
        return unit_interval(self._hashes(_UNIFORM, level, shape)).to(torch.get_default_dtype())

    def normal(self, level: int, *shape: int) -> Tensor:
        """Draw standard normal numbers; see :meth:`uniform`."""
        # Odd multiples of 2^-53, by the normal quantile: neither 0 nor 1 occurs.
        inside = (shift_right(self._hashes(_NORMAL, level, shape), 12).double() + 0.5) * 2.0**-52
        return torch.special.ndtri(inside).to(torch.get_default_dtype())

    def _hashes(self, purpose: int, level: int, shape: tuple[int, ...]) -> Tensor:
        element = torch.arange(torch.Size(shape).numel())
        return hash_key(purpose, self.keys[:, level : level + 1], element).view(-1, *shape)
