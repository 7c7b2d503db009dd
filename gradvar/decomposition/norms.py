"""What an accumulator keeps where nothing is asked for but the squared norm of every cell."""

from __future__ import annotations

import torch
from torch import Tensor

from gradvar.decomposition.accumulator import MomentAccumulator, squares_of


class NormAccumulator(MomentAccumulator):
    """Accumulates squared norms of cells alone, in ``tables.cell_norm2``; all other tables mean nothing.

    Args:
        rows: Rows of the parameter as a matrix.
        columns: Columns.
        cells: How many cells, as the draws of one datum.
        dtype: Type of the values.
        device: Where they are.
    """

    wants_totals = False

    def __init__(self, rows: int, columns: int, cells: int, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__(rows, columns, (1, cells), dtype, device)

    def add_cells(self, values: Tensor, first: int, without: Tensor | None = None) -> Tensor:
        """Add some rows of all cells; what is returned is of no use."""
        self.tables.cell_norm2[first : first + len(values)].add_(squares_of(values, without).flatten(1))
        return values

    def add_totals(self, totals: Tensor, first: int, rows: slice, without: Tensor | None = None) -> None:
        """Pass over what only means need."""

    def add_squares(self, squares: list[Tensor], datum: int) -> bool:
        """Add rows that never were formed; see :meth:`MomentAccumulator.add_squares`."""
        self.tables.cell_norm2[datum].add_(squares[-1].flatten())
        return True

    def add_sparse(self, values: Tensor, datum: int, rows: Tensor) -> None:
        """Add a datum that is zero but in some rows."""
        self.add_cells(values, datum)

    def before(self, rows: Tensor) -> Tensor:
        """Return nothing: there are no sums."""
        return self.tables.sums[:0]

    def replace(self, values: Tensor, datum: int, rows: Tensor, before: Tensor) -> None:
        """Add rows whose squares were left out."""
        self.add_cells(values, datum)
