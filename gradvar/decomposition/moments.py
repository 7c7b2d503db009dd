"""Streaming nested moments of vectors: sums of squares by level, cell norms, a sketch of every datum's mean.

Data stream through; nothing is ever stored per datum but scalars and a short sketch. What has the size of a vector
is one sum over the data. Studies of different data can be joined. Everything downstream is arithmetic on the small
tables of `Moments`.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from functools import reduce
from itertools import pairwise
from math import prod

import numpy as np
import torch
from torch import Tensor

from gradvar.decomposition.sketch import Sketch

_LARGE = 1 << 16  # elements of a block from which a pass over it costs more than a few calls on its norms
_LEAST_LEFT = 0.01  # of squares from which a mean's are subtracted: two digits lost


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
    """

    counts: tuple[int, ...]
    squares: np.ndarray
    between: float
    cell_norm2: np.ndarray
    mean_norm2: float
    sketch_norm2: np.ndarray
    sketch_distance2: np.ndarray
    dimension: int

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
        )


def total(parts: list[Moments]) -> Moments:
    """Add moments of disjoint coordinates."""
    return reduce(Moments.__add__, parts)


@dataclass(frozen=True)
class Tables:
    """What an accumulator holds: enough to join it with another that saw other data.

    Attributes:
        sums: ``[rows, columns]`` sum of the data means.
        between: ``[]`` float64 sum of squares of the data means about their mean.
        squares: ``[data, levels-1]`` float64; see :class:`Moments`.
        cell_norm2: ``[data, cells]`` float64.
        sketches: ``[data, size]`` of the data means.
    """

    sums: Tensor
    between: Tensor
    squares: Tensor
    cell_norm2: Tensor
    sketches: Tensor


class MomentAccumulator:
    """Accumulates the moments of one matrix-shaped parameter from blocks of its per-cell values.

    Args:
        rows: Rows of the parameter as a matrix.
        columns: Columns.
        counts: Draws at each level, outermost first.
        dtype: Type of the sums.
        device: Where everything lives.
        seed: Of the sketch; every parameter of a study needs its own.
    """

    def __init__(
        self,
        rows: int,
        columns: int,
        counts: tuple[int, ...],
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        seed: int = 0,
    ) -> None:
        data, *draws = counts
        self.draws = tuple(draws)
        self.sketch = Sketch(rows, columns, seed, dtype, device)

        def zeros(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        self.tables = Tables(
            sums=zeros(rows, columns, dtype=dtype),
            between=zeros(),
            squares=zeros(data, len(draws)),
            cell_norm2=zeros(data, prod(draws)),
            sketches=zeros(data, self.sketch.size, dtype=dtype),
        )

    @property
    def data(self) -> int:
        """How many data it has room for."""
        return len(self.tables.squares)

    def open(self, first: int, count: int) -> Join:
        """Begin to add consecutive data; every row must be added before it is closed.

        Args:
            first: Index of the first datum; all before it have been added.
            count: How many.

        Returns:
            What takes the values; :meth:`Join.close` ends it.
        """
        return Join(self, first, count)

    def add(self, values: Tensor, first: int) -> None:
        """Add consecutive data with all their rows.

        Args:
            values: ``[data, *draws, rows, columns]``; overwritten.
            first: Index of the first datum.
        """
        if self.sketch.whole:
            add_small([(self, values)], first)
            return
        join = self.open(first, len(values))
        join.add(values, 0, slice(0, values.shape[-2]))
        join.close()

    def join(self, other: Tables) -> None:
        """Put the data of another study of the same population behind those of this one.

        ``between`` grows by the other's and ``n m/(n+m) |mean - other mean|^2`` (Chan, Golub and LeVeque, 1983).

        Args:
            other: Of the same parameter, with the same inner draws and the same signs of the sketch.

        Raises:
            ValueError: If the two differ in more than their data.
        """
        mine, n, m = self.tables, self.data, len(other.squares)
        pairs = [(getattr(mine, name), getattr(other, name)) for name in ("squares", "cell_norm2", "sketches")]
        if mine.sums.shape != other.sums.shape or any(a.shape[1:] != b.shape[1:] for a, b in pairs):
            raise ValueError("studies that differ in more than their data cannot be joined")
        gap = _squares(torch.linalg.vector_norm(mine.sums / n - other.sums / m, dim=1))
        self.tables = Tables(
            mine.sums + other.sums,
            mine.between + other.between + n * m / (n + m) * gap,
            *(torch.cat(pair) for pair in pairs),
        )

    def finish(self) -> Moments:
        """Return the tables, once every datum has been added."""
        tables = self.tables
        sketches = tables.sketches.double()
        sums = tables.sums.double() if self.sketch.whole else tables.sums
        mean = torch.linalg.vector_norm(sums, dim=1) / self.data
        return Moments(
            (self.data, *self.draws),
            tables.squares.cpu().numpy().copy(),
            float(tables.between),
            tables.cell_norm2.cpu().numpy().copy(),
            float(_squares(mean)),
            sketches.square().sum(dim=1).cpu().numpy(),
            (sketches - sketches.mean(dim=0)).square().sum(dim=1).cpu().numpy(),
            tables.sums.numel(),
        )


def add_small(parts: list[tuple[MomentAccumulator, Tensor]], first: int) -> None:
    """Add the same data to accumulators whose sketches are whole, those of one shape together.

    They are so small that the number of calls is what counts.

    Args:
        parts: Distinct accumulators and their values ``[data, *draws, rows, columns]``.
        first: Index of the first datum.
    """
    by_shape: dict[torch.Size, list[tuple[MomentAccumulator, Tensor]]] = defaultdict(list)
    for accumulator, values in parts:
        flat = values.flatten(-2)
        by_shape[flat.shape].append((accumulator, flat))
    for group in by_shape.values():
        accumulators = [accumulator for accumulator, _ in group]
        values = torch.stack([flat for _, flat in group]).double()  # [accumulators, data, *draws, size]
        cells = (values * values).sum(dim=-1).flatten(2)
        squares: list[Tensor] = []
        for level in range(values.ndim - 2, 1, -1):
            mean = values.mean(dim=level)
            deviations = (values - mean.unsqueeze(level)).flatten(2)
            squares.insert(0, (deviations * deviations).sum(dim=2))
            values = mean
        sums = torch.stack([accumulator.tables.sums.flatten() for accumulator in accumulators]).double()
        between = sums.new_zeros(len(group))
        for seen, mean in enumerate(values.unbind(1), start=first):
            if seen:
                gap = mean - sums / seen
                between.add_((gap * gap).sum(dim=1), alpha=seen / (seen + 1))
            sums += mean
        inner, data = torch.stack(squares, dim=2), slice(first, first + values.shape[1])
        for index, accumulator in enumerate(accumulators):
            tables = accumulator.tables
            tables.cell_norm2[data] = cells[index]
            tables.squares[data] = inner[index]
            tables.sketches[data] = values[index]
            tables.between.add_(between[index])
            tables.sums.copy_(sums[index].view_as(tables.sums))


class Join:
    """Some data on their way into an accumulator, in blocks of data and rows.

    Sums of squares are kept for each row until the end: `vector_norm` is the fastest pass over memory that torch
    has, but adds in sequence, so it sees one row at a time; the squares of the rows are added in float64.
    """

    def __init__(self, accumulator: MomentAccumulator, first: int, count: int) -> None:
        self._tables, self._sketch = accumulator.tables, accumulator.sketch
        self._first, self._count = first, count
        self._sums = self._tables.sums
        rows, draws = len(self._sums), accumulator.draws
        # One table of row norms, so that one call adds them up: cells, deviations by parent, gap to those before.
        shapes = [draws, *(draws[:level] for level in range(len(draws))), ()]
        self._sizes = [prod(shape) for shape in shapes]
        self._norms = self._sums.new_empty(count, sum(self._sizes), rows)
        parts = self._norms.split(self._sizes, dim=1)
        self._cells, *self._deviations, self._gaps = (
            part.view(count, *shape, rows) for part, shape in zip(parts, shapes, strict=True)
        )
        self._projected = self._sums.new_zeros(count, *self._sketch.shape)
        # Squares of rows that are in no row's norm.
        self._elsewhere = torch.zeros(count, sum(self._sizes), dtype=torch.float64, device=self._sums.device)

    def add(self, values: Tensor, offset: int, rows: slice) -> None:
        """Add a block; the rows of a datum come after those of the datum before it.

        Args:
            values: ``[data, *draws, rows, columns]``; overwritten.
            offset: Index of its first datum among those being joined.
            rows: Which rows.
        """
        self.add_means(self.add_norms(values, offset, rows), offset, rows)

    def add_norms(self, values: Tensor, offset: int, rows: slice) -> Tensor:
        """Add the part of :meth:`add` that needs the cells; return the means ``[data, rows, columns]``."""
        data = slice(offset, offset + len(values))
        return self._inner(values, [buffer[data, ..., rows] for buffer in (self._cells, *self._deviations)])

    def add_means(self, means: Tensor, offset: int, rows: slice) -> None:
        """Add the part of :meth:`add` that needs the means ``[data, rows, columns]`` alone."""
        self._projected[offset : offset + len(means)] += self._sketch.project(means, rows)
        sums = self._sums[rows]
        for datum, mean in enumerate(means, start=offset):
            if seen := self._first + datum:
                _norm(torch.sub(mean, sums, alpha=1 / seen), self._gaps[datum, rows])
            sums += mean

    def add_squares(self, squares: list[Tensor], offset: int) -> bool:
        """Add the part of :meth:`add_norms` for rows that never were formed, before :meth:`replace` adds others.

        Args:
            squares: Float64 squared norms over these rows of a datum's means at every level, outermost first: ``[]``
                of its mean, ``[first draws]``, ..., ``[*draws]`` of its cells.
            offset: Index of the datum.

        Returns:
            False, and nothing was added, if too little is left of them beside the means to tell the difference.
        """
        found = (_left(inner, of_mean, inner.ndim - 1) for of_mean, inner in pairwise(squares))
        left = [part for part in found if part is not None]
        if len(left) < len(squares) - 1:
            return False
        self._norms[offset, :-1] = 0
        self._elsewhere[offset, :-1] = torch.cat([part.flatten() for part in (squares[-1], *left)])
        return True

    def add_sparse(self, values: Tensor, offset: int, rows: Tensor) -> None:
        """Add one datum that is zero but in some rows.

        Args:
            values: ``[1, *draws, rows, columns]``; overwritten.
            offset: Index of the datum among those being joined.
            rows: ``[rows]`` indices, distinct.
        """
        self._norms[offset] = 0
        before = self.before(rows)
        if seen := self._first + offset:
            self._elsewhere[offset, -1] = (_squares(self._sums.flatten()) - _squares(before.flatten())) / seen**2
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
        if seen := self._first + offset:
            self._gaps[offset, rows] = torch.linalg.vector_norm(torch.sub(mean, before, alpha=1 / seen), dim=-1)
        after = before + mean
        self._projected[offset] += self._sketch.project(after - self._sums[rows], rows)
        self._sums[rows] = after

    def _inner(self, values: Tensor, norms: list[Tensor]) -> Tensor:
        """Write the norms of the cells and of the inner levels' deviations; return the means ``[data, ...]``."""
        _norm(values, norms[0])
        before = norms[0]
        for level in range(len(norms) - 1, 0, -1):
            mean = values.mean(dim=level)
            whole = torch.linalg.vector_norm(mean, dim=-1)
            _deviations(values, mean, before, whole, level, norms[level])
            values, before = mean, whole
        return values

    def close(self) -> None:
        """Add up the rows."""
        tables = self._tables
        data = slice(self._first, self._first + self._count)
        cells, *deviations, gaps = (_squares(self._norms) + self._elsewhere).split(self._sizes, dim=1)
        tables.cell_norm2[data] = cells
        tables.squares[data] = torch.stack([squares.sum(dim=1) for squares in deviations], dim=1)
        tables.sketches[data] = self._sketch.fold(self._projected)
        for offset in range(self._count):
            if seen := self._first + offset:
                tables.between.add_(gaps[offset, 0], alpha=seen / (seen + 1))


def _deviations(values: Tensor, mean: Tensor, norms: Tensor, mean_norms: Tensor, level: int, out: Tensor) -> None:
    """Write the norms of the deviations from the mean over one dimension, by row.

    For large blocks the norms suffice, if enough is left, which saves two passes over memory.

    Args:
        values: ``[..., rows, columns]``; may be overwritten.
        mean: Their mean over dimension ``level``.
        norms: ``[..., rows]`` of the values.
        mean_norms: ``[..., rows]`` of the mean.
        level: The dimension.
        out: ``[..., rows]`` without that dimension.
    """
    if values.numel() >= _LARGE and values.dtype.itemsize >= 4:
        norms, mean_norms = norms.double(), mean_norms.double()
        left = _left(norms * norms, mean_norms * mean_norms, level)
        if left is not None:
            out.copy_(left.sqrt_())
            return
    deviations = torch.linalg.vector_norm(values.sub_(mean.unsqueeze(level)), dim=-1)
    _norm(deviations.movedim(level, -1), out)


def _left(squares: Tensor, of_mean: Tensor, level: int) -> Tensor | None:
    """What the mean over dimension `level` leaves of squared norms: ``sum |v|^2 - n |mean|^2``.

    At least a hundredth must be left of the block's, so that the rounding of norms and mean grows by two digits at
    most; None if not.
    """
    whole = squares.sum(dim=level)
    if squares.shape[level] == 1:
        return torch.zeros_like(whole)
    left = torch.sub(whole, of_mean, alpha=squares.shape[level])
    return left.clamp_(min=0) if bool(left.sum() >= _LEAST_LEFT * whole.sum()) else None


def _norm(values: Tensor, out: Tensor) -> None:
    torch.linalg.vector_norm(values, dim=-1, out=out)


def _squares(norms: Tensor) -> Tensor:
    """Sum of squares over the last dimension, in float64."""
    return norms.double().square().sum(dim=-1)


def moments_of(vectors: Tensor) -> Moments:
    """Compute the moments of explicit vectors.

    Args:
        vectors: ``[data, *draws, coordinates]``.

    Returns:
        Their moments.
    """
    accumulator = MomentAccumulator(1, vectors.shape[-1], tuple(vectors.shape[:-1]), vectors.dtype, vectors.device)
    accumulator.add(vectors.unsqueeze(-2).clone(), 0)
    return accumulator.finish()
