"""What a study keeps of the gradients: sums of squares by level, cell norms, squares of a sketch of every datum's mean.

Everything downstream is arithmetic on these small tables.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import reduce

import numpy as np


@dataclass(frozen=True)
class Moments:
    """What a study keeps of a set of coordinates (a parameter, a layer, the whole gradient).

    Moments of disjoint sets of coordinates add up to those of their union: ``a + b``.

    Attributes:
        counts: Draws at each level, outermost first: ``(data, draws of each datum, ...)``; ``N`` data, ``L`` levels.
        squares: ``[N, L-1]``. Column ``l-1``: this datum's sum of squares of its level-``l`` means about their
            parents' means.
        between: Sum of squares of the data means about the grand mean.
        cell_norm2: ``[N, cells]`` squared norms.
        mean_norm2: Squared norm of the grand mean.
        sketch_norm2: ``[N]`` squared norms of the sketches of the data means (:class:`Sketch`).
        sketch_distance2: ``[N]`` squared distances of these sketches from their mean.
        dimension: Number of coordinates.
        inner: ``[N, cells, cells]`` inner products of a datum's cells; ``[N, 0, 0]`` where they were not asked for.
    """

    counts: tuple[int, ...]
    squares: np.ndarray
    between: float
    cell_norm2: np.ndarray
    mean_norm2: float
    sketch_norm2: np.ndarray
    sketch_distance2: np.ndarray
    dimension: int
    inner: np.ndarray

    def __add__(self, other: Moments) -> Moments:
        """Join disjoint coordinates of the same study."""
        if self.counts != other.counts:
            raise ValueError(f"moments of different studies: {self.counts} and {other.counts}")
        return Moments(
            self.counts,
            self.squares + other.squares,
            self.between + other.between,
            self.cell_norm2 + other.cell_norm2,
            self.mean_norm2 + other.mean_norm2,
            self.sketch_norm2 + other.sketch_norm2,
            self.sketch_distance2 + other.sketch_distance2,
            self.dimension + other.dimension,
            self.inner + other.inner,
        )

    def grouped(self) -> Moments:
        """Make one draw of each group of cells: from ``(N, G, K)`` draws to ``(N, G)`` means of K cells.

        Returns:
            The moments of the means; the inner products of the cells must be known.
        """
        data, groups, each = self.counts
        inner = self.inner.reshape(data, groups, each, groups, each).mean(axis=(2, 4))
        norms = np.diagonal(inner, axis1=1, axis2=2).copy()
        return replace(self, counts=(data, groups), squares=self.squares[:, :1], cell_norm2=norms, inner=inner)

    @property
    def paired(self) -> bool:
        """Whether the inner products of a datum's cells are known."""
        return self.inner.size > 0


def total(parts: list[Moments]) -> Moments:
    """Add moments of disjoint coordinates."""
    return reduce(Moments.__add__, parts)
