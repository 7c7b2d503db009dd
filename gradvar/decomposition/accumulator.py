"""Streaming nested moments of vectors: sums of squares by level, cell norms, a sketch of every datum's mean.

Data stream through; nothing is ever stored per datum but scalars and a short sketch. What has the size of a vector
is one sum over the data. Studies of different data can be joined.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise
from math import prod

import torch
from torch import Tensor

from gradvar.decomposition.moments import Moments
from gradvar.decomposition.sketch import Sketch

_LARGE = 1 << 16  # elements of a block from which a pass over it costs more than a few calls on its norms
_LEAST_LEFT = 0.01  # of squares from which a mean's are subtracted: two digits lost


@dataclass(frozen=True)
class Tables:
    """What an accumulator holds: enough to join it with another that saw other data.

    Attributes:
        sums: ``[rows, columns]`` sum of the data means.
        between: ``[]`` float64 sum of squares of the data means about their mean.
        squares: ``[data, levels-1]`` float64; see :class:`Moments`.
        cell_norm2: ``[data, cells]`` float64.
        sketches: ``[data, size]`` of the data means.
        inner: ``[data, cells, cells]`` float64 inner products of a datum's cells; ``[data, 0, 0]`` if not asked for.
    """

    sums: Tensor
    between: Tensor
    squares: Tensor
    cell_norm2: Tensor
    sketches: Tensor
    inner: Tensor


class MomentAccumulator:
    """Accumulates the moments of one matrix-shaped parameter from blocks of its per-cell values.

    Every row of every datum is to be added once.

    Args:
        rows: Rows of the parameter as a matrix.
        columns: Columns.
        counts: Draws at each level, outermost first.
        dtype: Type of the sums.
        device: Where everything lives.
        seed: Of the sketch; every parameter of a study needs its own.
        pairs: Keep the inner products of a datum's cells, too.

    Attributes:
        wants_totals: Whether the sums over a datum's cells are of any use to it.
    """

    wants_totals = True

    def __init__(
        self,
        rows: int,
        columns: int,
        counts: tuple[int, ...],
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        seed: int = 0,
        pairs: bool = False,
    ) -> None:
        data, *draws = counts
        self.draws, self._cells = tuple(draws), prod(draws)
        self.sketch = Sketch(rows, columns, seed, dtype, device)

        def zeros(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        paired = self._cells if pairs else 0
        self.tables = Tables(
            sums=zeros(rows, columns, dtype=dtype),
            between=zeros(),
            squares=zeros(data, len(draws)),
            cell_norm2=zeros(data, self._cells),
            sketches=zeros(data, self.sketch.size, dtype=dtype),
            inner=zeros(data, paired, paired),
        )

    @property
    def data(self) -> int:
        """How many data it has room for."""
        return len(self.tables.squares)

    @property
    def pairs(self) -> bool:
        """Whether it keeps the inner products of a datum's cells."""
        return bool(self.tables.inner.numel())

    def add(self, values: Tensor, first: int) -> None:
        """Add consecutive data with all their rows.

        Args:
            values: ``[data, *draws, rows, columns]``; overwritten.
            first: Index of the first datum; all before it have been added.
        """
        if self.sketch.whole:
            add_small([(self, values)], first)
        else:
            self.add_rows(values, first, slice(0, values.shape[-2]))

    def add_rows(self, values: Tensor, first: int, rows: slice, without: Tensor | None = None) -> None:
        """Add some rows of consecutive data.

        Args:
            values: ``[data, *draws, rows, columns]``; overwritten.
            first: Index of the first datum; these rows of all before it have been added.
            rows: Which rows.
            without: Indices among these rows of those that :meth:`replace` will put in place.
        """
        self.add_totals(self.add_cells(values, first, without), first, rows, without)

    def add_cells(self, values: Tensor, first: int, without: Tensor | None = None) -> Tensor:
        """Add the part of :meth:`add_rows` that needs the cells; return their sums ``[data, rows, columns]``."""
        squares = squares_of(values, without)
        data = slice(first, first + len(values))
        self.tables.cell_norm2[data].add_(squares.flatten(1))
        if self.pairs:
            self.tables.inner[data].add_(_inner(values))
            if without is not None:
                self.tables.inner[data].sub_(_inner(values[..., without, :]))
        for level in range(len(self.draws), 0, -1):
            total = values.sum(dim=level)  # no mean: dividing is another pass
            of_total = squares_of(total, without)
            within = _left(squares, of_total, level) if values.numel() >= _LARGE else None
            if within is None:
                deviations = values.sub_(total.unsqueeze(level), alpha=1 / values.shape[level])
                within = squares_of(deviations, without).sum(dim=level)
            self._add_within(within.reshape(len(values), -1).sum(dim=1), data, level)
            values, squares = total, of_total
        return values

    def add_totals(self, totals: Tensor, first: int, rows: slice, without: Tensor | None = None) -> None:
        """Add the part of :meth:`add_rows` that needs the sums ``[data, rows, columns]`` over the cells alone."""
        projected = self.sketch.fold(self.sketch.project(totals, rows))
        self.tables.sketches[first : first + len(totals)].add_(projected, alpha=1 / self._cells)
        sums = self.tables.sums[rows]
        for datum, total in enumerate(totals, start=first):
            self._add_gap(total, sums, datum, without)
            sums.add_(total, alpha=1 / self._cells)

    def add_squares(self, squares: list[Tensor], datum: int) -> bool:
        """Add the part of :meth:`add_cells` for rows that never were formed.

        Args:
            squares: Float64 squared norms over these rows of a datum's sums at every level, outermost first: ``[]``
                over all its cells, ``[first draws]``, ..., ``[*draws]`` of its cells.
            datum: Its index.

        Returns:
            False, and nothing was added, if too little is left of them beside the means to tell the difference.
        """
        found = (_left(inner, of_total, inner.ndim - 1) for of_total, inner in pairwise(squares))
        left = [part for part in found if part is not None]
        if len(left) < len(self.draws):
            return False
        self.tables.cell_norm2[datum].add_(squares[-1].flatten())
        for level, within in enumerate(left, start=1):
            self._add_within(within.sum(), datum, level)
        return True

    def add_sparse(self, values: Tensor, datum: int, rows: Tensor) -> None:
        """Add one datum that is zero but in some rows.

        Args:
            values: ``[1, *draws, rows, columns]``; overwritten.
            datum: Its index; all before it have been added.
            rows: ``[rows]`` indices, distinct.
        """
        if datum:
            self.tables.between.add_(squares_of(self.tables.sums, rows), alpha=1 / (datum * (datum + 1)))
        self.replace(values, datum, rows, self.before(rows))

    def before(self, rows: Tensor) -> Tensor:
        """Copy the sums of some rows, for :meth:`replace`."""
        return self.tables.sums[rows]

    def replace(self, values: Tensor, datum: int, rows: Tensor, before: Tensor) -> None:
        """Put values in place of those that some rows of a datum were added with, their squares left out by `without`.

        Args:
            values: ``[1, *draws, rows, columns]``; overwritten.
            datum: Its index, the last one added.
            rows: ``[rows]`` indices, distinct.
            before: The sums of these rows :meth:`before` the datum was added.
        """
        total = self.add_cells(values, datum)[0]
        self._add_gap(total, before, datum)
        after = torch.add(before, total, alpha=1 / self._cells)
        change = after - self.tables.sums[rows]
        self.tables.sketches[datum].add_(self.sketch.fold(self.sketch.project(change, rows)))
        self.tables.sums[rows] = after

    def _add_within(self, squares: Tensor, data: int | slice, level: int) -> None:
        """Add squares of a level's sums about their parents' mean, as those of means."""
        self.tables.squares[data, level - 1].add_(squares, alpha=1 / prod(self.draws[level:]) ** 2)

    def _add_gap(self, total: Tensor, before: Tensor, datum: int, without: Tensor | None = None) -> None:
        """Add what some rows of a datum add to the squares between data, given the sums before it."""
        if datum:
            gap = squares_of(torch.sub(total, before, alpha=self._cells / datum), without)
            self.tables.between.add_(gap, alpha=datum / (datum + 1) / self._cells**2)

    def join(self, other: Tables) -> None:
        """Put the data of another study of the same population behind those of this one.

        ``between`` grows by the other's and ``n m/(n+m) |mean - other mean|^2`` (Chan, Golub and LeVeque, 1983).

        Args:
            other: Of the same parameter, with the same inner draws and the same signs of the sketch.

        Raises:
            ValueError: If the two differ in more than their data.
        """
        mine, n, m = self.tables, self.data, len(other.squares)
        pairs = [(getattr(mine, name), getattr(other, name)) for name in ("squares", "cell_norm2", "sketches", "inner")]
        if mine.sums.shape != other.sums.shape or any(a.shape[1:] != b.shape[1:] for a, b in pairs):
            raise ValueError("studies that differ in more than their data cannot be joined")
        gap = squares_of(mine.sums / n - other.sums / m)
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
        return Moments(
            (self.data, *self.draws),
            tables.squares.cpu().numpy().copy(),
            float(tables.between),
            tables.cell_norm2.cpu().numpy().copy(),
            float(squares_of(sums)) / self.data**2,
            sketches.square().sum(dim=1).cpu().numpy(),
            (sketches - sketches.mean(dim=0)).square().sum(dim=1).cpu().numpy(),
            tables.sums.numel(),
            tables.inner.cpu().numpy().copy(),
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
        flat = values.flatten(2, -2)
        cells = (flat * flat).sum(dim=-1)
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
            if accumulator.pairs:
                tables.inner[data] = flat[index] @ flat[index].mT
            tables.squares[data] = inner[index]
            tables.sketches[data] = values[index]
            tables.between.add_(between[index])
            tables.sums.copy_(sums[index].view_as(tables.sums))


def squares_of(values: Tensor, without: Tensor | None = None) -> Tensor:
    """Squared norms of matrices ``[..., rows, columns]``, but for some rows, in float64.

    `vector_norm` is the fastest pass over memory that torch has, but adds in sequence: it sees one row at a time.
    """
    norms = torch.linalg.vector_norm(values, dim=-1)
    if without is not None:
        norms[..., without] = 0
    return norms.double().square().sum(dim=-1)


def _inner(values: Tensor) -> Tensor:
    """Inner products ``[data, cells, cells]`` of matrices ``[data, *draws, rows, columns]``."""
    flat = values.flatten(-2).flatten(1, -2)
    return (flat @ flat.mT).double()


def _left(squares: Tensor, of_total: Tensor, level: int) -> Tensor | None:
    """What the mean over dimension `level` leaves of squared norms: ``sum |v|^2 - |sum v|^2 / n``.

    At least a hundredth must be left of the block's, so that the rounding of norms and sums grows by two digits at
    most; None if not.
    """
    whole = squares.sum(dim=level)
    if squares.shape[level] == 1:
        return torch.zeros_like(whole)
    left = torch.sub(whole, of_total, alpha=1 / squares.shape[level])
    return left.clamp_(min=0) if bool(left.sum() >= _LEAST_LEFT * whole.sum()) else None


def moments_of(vectors: Tensor, pairs: bool = False) -> Moments:
    """Compute the moments of explicit vectors.

    Args:
        vectors: ``[data, *draws, coordinates]``.
        pairs: Keep the inner products of a datum's cells, too.

    Returns:
        Their moments.
    """
    accumulator = MomentAccumulator(
        1, vectors.shape[-1], tuple(vectors.shape[:-1]), vectors.dtype, vectors.device, pairs=pairs
    )
    accumulator.add(vectors.unsqueeze(-2).clone(), 0)
    return accumulator.finish()
