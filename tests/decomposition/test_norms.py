"""Squared norms of cells alone, under every way of feeding them."""

import pytest
import torch

from gradvar.decomposition.accumulator import MomentAccumulator
from gradvar.decomposition.norms import NormAccumulator

SHAPES = [(4, 3), (90, 50), (3, 1500)]


def cells(rows: int, columns: int, count: int = 5) -> torch.Tensor:
    """`[1, cells, rows, columns]`, some rows zero in all cells."""
    values = torch.randn(1, count, rows, columns, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    values[:, :, 1] = 0
    return values


def accumulator_for(values: torch.Tensor) -> NormAccumulator:
    rows, columns = values.shape[-2:]
    return NormAccumulator(rows, columns, values.shape[1], values.dtype, torch.device("cpu"))


def assert_norms(accumulator: NormAccumulator, values: torch.Tensor) -> None:
    expected = values.square().sum(dim=(-2, -1))
    torch.testing.assert_close(accumulator.tables.cell_norm2, expected, rtol=1e-12, atol=0)
    assert accumulator.tables.cell_norm2.dtype == torch.float64


@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_whole_cells(rows, columns):
    values = cells(rows, columns)
    accumulator = accumulator_for(values)
    accumulator.add(values.clone(), 0)
    assert_norms(accumulator, values)


@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_blocks_of_rows_some_of_them_replaced(rows, columns):
    values = cells(rows, columns)
    accumulator = accumulator_for(values)
    some = torch.tensor([rows - 1, 0])
    before, others = accumulator.before(some), values.clone()
    others[:, :, some] *= 2
    for part in (slice(0, 2), slice(2, rows)):
        inside = some[(some >= part.start) & (some < part.stop)] - part.start
        accumulator.add_rows(others[:, :, part].clone(), 0, part, inside)
    accumulator.replace(values[:, :, some].clone(), 0, some, before)
    assert_norms(accumulator, values)


@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_sparse_cells_and_squares_of_rows_that_were_never_formed(rows, columns):
    values = cells(rows, columns)
    sparse, squares = accumulator_for(values), accumulator_for(values)
    nonzero = torch.arange(rows)[torch.arange(rows) != 1].flip(0)
    sparse.add_sparse(values[:, :, nonzero].clone(), 0, nonzero)
    assert squares.add_squares([torch.tensor(1e30).double(), values[0].square().sum(dim=(-2, -1))], 0)
    assert_norms(sparse, values)
    assert_norms(squares, values)


def test_nothing_is_asked_for_but_norms():
    assert not NormAccumulator.wants_totals
    assert MomentAccumulator.wants_totals


def test_float32_norms_are_summed_in_float64():
    """A million ones and a small remainder: float32 sums of squares would lose it."""
    values = torch.ones(1, 1, 1000, 1000)
    values[..., 0, 0] = 0.5
    accumulator = NormAccumulator(1000, 1000, 1, torch.float32, torch.device("cpu"))
    accumulator.add_rows(values, 0, slice(0, 1000))
    assert float(accumulator.tables.cell_norm2) == pytest.approx(1e6 - 0.75, abs=0.05)
