"""Streaming nested moments of vectors: sums of squares by level, cell norms, group means.

Data stream through in groups; nothing is ever stored per datum but scalars. What has the size of a vector is the
sum of each group. Groups know nothing of one another until the end, so they can be measured anywhere and in any
number, and joined. Everything downstream is arithmetic on the small tables of `Moments`.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property, reduce
from math import prod

import numpy as np
import torch
from torch import Tensor

# Elements of the sums that `finish` turns to float64 at a time: they stay in cache.
_BLOCK = 1 << 16


@dataclass(frozen=True)
class Layout:
    """The shape of a nested study.

    Attributes:
        counts: Draws at each level, outermost first: ``(data, draws of each datum, ...)``.
        group_sizes: Data of each group, in order; they sum to ``counts[0]``.
    """

    counts: tuple[int, ...]
    group_sizes: tuple[int, ...]

    @property
    def draws(self) -> tuple[int, ...]:
        """Draws at the inner levels."""
        return self.counts[1:]

    @cached_property
    def cells(self) -> int:
        """Cells of one datum."""
        return prod(self.draws)

    @cached_property
    def group_starts(self) -> tuple[int, ...]:
        """Index of the first datum of each group."""
        return tuple(np.cumsum((0, *self.group_sizes))[:-1].tolist())


def even_layout(counts: tuple[int, ...], groups: int = 1) -> Layout:
    """Lay out a study with groups of equal size, up to one datum."""
    edges = np.linspace(0, counts[0], groups + 1).round().astype(int)
    return Layout(counts, tuple(np.diff(edges).tolist()))


@dataclass(frozen=True)
class Moments:
    """What a study keeps of a set of coordinates (a parameter, a layer, the whole gradient).

    Moments of disjoint sets of coordinates add up to those of their union: ``a + b``.

    Attributes:
        layout: The study's shape; ``N`` data in ``R`` groups, ``L`` levels.
        squares: ``[N, L]``. Column ``l >= 1``: this datum's sum of squares of its level-``l`` means about
            their parents' means. Column 0: the increment ``n/(n+1) |mean_n - m|^2`` by which this datum
            joined the ``n`` before it in its group, whose mean is ``m``; 0 for a group's first.
        cell_norm2: ``[N, cells]`` squared norms.
        mean_norm2: Squared norm of the grand mean.
        group_cross: ``[R]`` inner products of (group mean - grand mean) with the grand mean.
        group_gram: ``[R, R]`` inner products of the (group mean - grand mean).
        dimension: Number of coordinates.
    """

    layout: Layout
    squares: np.ndarray
    cell_norm2: np.ndarray
    mean_norm2: float
    group_cross: np.ndarray
    group_gram: np.ndarray
    dimension: int

    @property
    def between(self) -> float:
        """Sum of squares of the data means about the grand mean: within the groups and between them."""
        return float(self.squares[:, 0].sum() + np.diag(self.group_gram) @ np.array(self.layout.group_sizes))

    def __add__(self, other: Moments) -> Moments:
        """Join disjoint coordinates of the same study."""
        if self.layout != other.layout:
            raise ValueError(f"moments of different studies: {self.layout} and {other.layout}")
        return Moments(
            self.layout,
            self.squares + other.squares,
            self.cell_norm2 + other.cell_norm2,
            self.mean_norm2 + other.mean_norm2,
            self.group_cross + other.group_cross,
            self.group_gram + other.group_gram,
            self.dimension + other.dimension,
        )


def total(parts: list[Moments]) -> Moments:
    """Add moments of disjoint coordinates."""
    return reduce(Moments.__add__, parts)


class MomentAccumulator:
    """Accumulates the moments of one matrix-shaped parameter from blocks of its per-cell values.

    What has the parameter's size is its sum over the data of each group, ``sums[r]``.

    Args:
        rows: Rows of the parameter as a matrix.
        columns: Columns.
        layout: The study's shape.
        dtype: Type of the sums.
        device: Where everything lives.
    """

    def __init__(
        self, rows: int, columns: int, layout: Layout, dtype: torch.dtype, device: torch.device | str = "cpu"
    ) -> None:
        self.layout = layout
        data = layout.counts[0]
        self.sums = torch.zeros(len(layout.group_sizes), rows, columns, dtype=dtype, device=device)
        self.squares = torch.zeros(data, len(layout.counts), dtype=torch.float64, device=device)
        self.cell_norm2 = torch.zeros(data, layout.cells, dtype=torch.float64, device=device)

    @classmethod
    def from_tables(cls, layout: Layout, sums: Tensor, squares: Tensor, cell_norm2: Tensor) -> MomentAccumulator:
        """Make an accumulator of tables that another one has filled.

        Args:
            layout: Of all data in the tables.
            sums: ``[groups, rows, columns]``.
            squares: ``[data, levels]``.
            cell_norm2: ``[data, cells]``.

        Returns:
            The accumulator.
        """
        made = cls.__new__(cls)
        made.layout, made.sums, made.squares, made.cell_norm2 = layout, sums, squares, cell_norm2
        return made

    def open(self, first: int, count: int) -> Join:
        """Begin to add consecutive data of one group; every row must be added before it is closed.

        Args:
            first: Index of the first datum; all before it in its group have been added.
            count: How many.

        Returns:
            What takes the values; :meth:`Join.close` ends it.
        """
        return Join(self, bisect_right(self.layout.group_starts, first) - 1, first, count)

    def add(self, values: Tensor, first: int) -> None:
        """Add consecutive data of one group with all their rows.

        Args:
            values: ``[data, *draws, rows, columns]``; overwritten.
            first: Index of the first datum.
        """
        join = self.open(first, len(values))
        join.add(values, 0, slice(0, values.shape[-2]))
        join.close()

    def join(self, other: MomentAccumulator) -> MomentAccumulator:
        """Put the groups of another study of the same population behind those of this one.

        Args:
            other: Of the same parameter, with the same inner draws.

        Returns:
            A new accumulator; its inputs are unchanged.

        Raises:
            ValueError: If the two differ in more than their data.
        """
        a, b = self.layout, other.layout
        if a.draws != b.draws or self.sums.shape[1:] != other.sums.shape[1:]:
            raise ValueError(f"studies that cannot be joined: {a} and {b}")
        return MomentAccumulator.from_tables(
            Layout((a.counts[0] + b.counts[0], *a.draws), a.group_sizes + b.group_sizes),
            torch.cat([self.sums, other.sums]),
            torch.cat([self.squares, other.squares]),
            torch.cat([self.cell_norm2, other.cell_norm2]),
        )

    def with_fewer_groups(self) -> MomentAccumulator:
        """Make one group of every two, which halves the memory; an odd last one stays by itself."""
        sizes = self.layout.group_sizes
        pairs = [slice(first, min(first + 2, len(sizes))) for first in range(0, len(sizes), 2)]
        squares = self.squares.clone()
        for pair in pairs:
            if pair.stop - pair.start == 2:
                a, b = sizes[pair]
                gap = _squares((self.sums[pair.start] / a - self.sums[pair.start + 1] / b).flatten())
                squares[self.layout.group_starts[pair.start + 1], 0] = a * b / (a + b) * gap
        return MomentAccumulator.from_tables(
            Layout(self.layout.counts, tuple(sum(sizes[pair]) for pair in pairs)),
            torch.stack([self.sums[pair].sum(dim=0) for pair in pairs]),
            squares,
            self.cell_norm2,
        )

    def finish(self) -> Moments:
        """Return the tables, once every datum has been added."""
        device, groups = self.sums.device, len(self.layout.group_sizes)
        sizes = torch.tensor(self.layout.group_sizes, dtype=torch.float64, device=device)
        each = torch.eye(groups, dtype=torch.float64, device=device)
        grand = torch.ones_like(each[:1]) / sizes.sum()
        # What makes the centred group means, and the grand mean, out of the groups' sums.
        centring = torch.cat([each / sizes.unsqueeze(1) - grand, grand])
        gram = torch.zeros(groups + 1, groups + 1, dtype=torch.float64, device=device)
        sums = self.sums.flatten(1)
        for block in sums.split(max(1, _BLOCK // groups), dim=1):
            means = centring @ block.double()
            gram.addmm_(means, means.T)
        tables = gram.cpu().numpy()
        return Moments(
            self.layout,
            self.squares.cpu().numpy().copy(),
            self.cell_norm2.cpu().numpy().copy(),
            float(tables[-1, -1]),
            tables[-1, :-1].copy(),
            tables[:-1, :-1].copy(),
            sums.shape[1],
        )


class Join:
    """Some data on their way into an accumulator, in blocks of data and rows.

    Blocks of different rows may be added from different threads. Sums of squares are kept for each row until
    the end: `vector_norm` is the fastest pass over memory that torch has, but adds in sequence, so it sees one
    row at a time; the squares of the rows are added in float64.
    """

    def __init__(self, accumulator: MomentAccumulator, group: int, first: int, count: int) -> None:
        self._accumulator, self._first, self._count = accumulator, first, count
        self._before = first - accumulator.layout.group_starts[group]
        self._sums = accumulator.sums[group]
        rows = self._sums.shape[0]
        draws = accumulator.layout.draws
        # One table of row norms, so that one call adds them up: cells, deviations by level, gap to those before.
        shapes = [draws, *(draws[:level] for level in range(1, len(draws) + 1)), ()]
        self._sizes = [prod(shape) for shape in shapes]
        self._norms = self._sums.new_empty(count, sum(self._sizes), rows)
        parts = self._norms.split(self._sizes, dim=1)
        self._cells, *self._deviations, self._gaps = (
            part.view(count, *shape, rows) for part, shape in zip(parts, shapes, strict=True)
        )
        self._elsewhere: dict[int, Tensor] = {}

    def add(self, values: Tensor, offset: int, rows: slice) -> None:
        """Add a block; the rows of a datum come after those of the datum before it.

        Args:
            values: ``[data, *draws, rows, columns]``; overwritten.
            offset: Index of its first datum among those being joined.
            rows: Which rows.
        """
        data = slice(offset, offset + len(values))
        means = self._inner(values, [buffer[data, ..., rows] for buffer in (self._cells, *self._deviations)])
        sums = self._sums[rows]
        for datum, mean in enumerate(means, start=offset):
            if seen := self._before + datum:
                _norm(torch.sub(mean, sums, alpha=1 / seen), self._gaps[datum, rows])
            sums += mean

    def add_sparse(self, values: Tensor, offset: int, rows: Tensor) -> None:
        """Add one datum that is zero but in some rows.

        Args:
            values: ``[1, *draws, rows, columns]``; overwritten.
            offset: Index of the datum among those being joined.
            rows: ``[rows]`` indices, distinct.
        """
        self._norms[offset] = 0
        before = self.before(rows)
        if seen := self._before + offset:
            self._elsewhere[offset] = (_squares(self._sums.flatten()) - _squares(before.flatten())) / seen**2
        self.replace(values, offset, rows, before)

    def before(self, rows: Tensor) -> Tensor:
        """Copy the sums of some rows, for :meth:`replace`."""
        return self._sums[rows]

    def replace(self, values: Tensor, offset: int, rows: Tensor, before: Tensor) -> None:
        """Put other values in place of those that some rows of a datum were given.

        Args:
            values: ``[1, *draws, rows, columns]``; overwritten.
            offset: Index of the datum, the last one added.
            rows: ``[rows]`` indices, distinct.
            before: The sums of these rows :meth:`before` the datum was added.
        """
        fresh = [buffer.new_empty(1, *buffer.shape[1:-1], len(rows)) for buffer in (self._cells, *self._deviations)]
        mean = self._inner(values, fresh)[0]
        for buffer, norms in zip((self._cells, *self._deviations), fresh, strict=True):
            buffer[offset][..., rows] = norms[0]
        if seen := self._before + offset:
            self._gaps[offset, rows] = torch.linalg.vector_norm(torch.sub(mean, before, alpha=1 / seen), dim=-1)
        self._sums[rows] = before + mean

    def _inner(self, values: Tensor, norms: list[Tensor]) -> Tensor:
        """Write the norms of the cells and of the inner levels' deviations; return the means ``[data, ...]``."""
        _norm(values, norms[0])
        for level in range(len(norms) - 1, 0, -1):
            mean = values.mean(dim=level)
            _norm(values.sub_(mean.unsqueeze(level)), norms[level])
            values = mean
        return values

    def close(self) -> None:
        """Add up the rows."""
        accumulator = self._accumulator
        data = slice(self._first, self._first + self._count)
        cells, *deviations, gaps = _squares(self._norms).split(self._sizes, dim=1)
        accumulator.cell_norm2[data] = cells
        for level, squares in enumerate(deviations, start=1):
            accumulator.squares[data, level] = squares.sum(dim=1)
        for offset in range(self._count):
            if seen := self._before + offset:
                gap = gaps[offset, 0] + self._elsewhere.get(offset, 0.0)
                accumulator.squares[self._first + offset, 0] = seen / (seen + 1) * gap


def _norm(values: Tensor, out: Tensor) -> None:
    torch.linalg.vector_norm(values, dim=-1, out=out)


def _squares(norms: Tensor) -> Tensor:
    """Sum of squares over the last dimension, in float64."""
    return norms.double().square().sum(dim=-1)


def moments_of(vectors: Tensor, groups: int = 1) -> Moments:
    """Compute the moments of explicit vectors.

    Args:
        vectors: ``[data, *draws, coordinates]``.
        groups: Groups of consecutive data.

    Returns:
        Their moments.
    """
    counts = tuple(vectors.shape[:-1])
    layout = even_layout(counts, groups)
    accumulator = MomentAccumulator(1, vectors.shape[-1], layout, vectors.dtype, vectors.device)
    for start, size in zip(layout.group_starts, layout.group_sizes, strict=True):
        accumulator.add(vectors[start : start + size].unsqueeze(-2).clone(), start)
    return accumulator.finish()
