"""Inner products of a datum's cells under every way of feeding them, and moments of groups of cells."""

import numpy as np
import pytest
import torch

from gradvar.decomposition.accumulator import MomentAccumulator, add_small, moments_of
from gradvar.decomposition.components import Components
from gradvar.decomposition.moments import Moments, total

TABLES = ("squares", "between", "cell_norm2", "mean_norm2", "sketch_norm2", "sketch_distance2", "inner")
SHAPES = [(4, 3), (90, 50), (3, 1500)]


def study(rows: int, columns: int, data: int = 5, draws: tuple[int, ...] = (2, 3)) -> torch.Tensor:
    """`[data, *draws, rows, columns]`, half of the rows of a datum zero."""
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(data, *draws, rows, columns, generator=generator, dtype=torch.float64)
    kept = torch.rand(data, *[1] * len(draws), rows, 1, generator=generator) < 0.5
    return vectors * kept + 0.0


def accumulator_for(vectors: torch.Tensor, pairs: bool = True) -> MomentAccumulator:
    return MomentAccumulator(*vectors.shape[-2:], tuple(vectors.shape[:-2]), vectors.dtype, pairs=pairs)


def explicit(vectors: torch.Tensor) -> torch.Tensor:
    flat = vectors.flatten(-2).flatten(1, -2)
    return torch.einsum("nad,nbd->nab", flat, flat)


def assert_inner(accumulator: MomentAccumulator, vectors: torch.Tensor) -> None:
    """And the diagonal is that of the norms, whichever way those were summed."""
    inner = accumulator.tables.inner
    torch.testing.assert_close(inner, explicit(vectors), rtol=1e-11, atol=1e-10)
    torch.testing.assert_close(
        inner.diagonal(dim1=1, dim2=2).contiguous(), accumulator.tables.cell_norm2, rtol=1e-11, atol=1e-11
    )


@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_whole_data_and_blocks_of_rows(rows, columns):
    vectors = study(rows, columns)
    whole, blocks = accumulator_for(vectors), accumulator_for(vectors)
    whole.add(vectors[:2].clone(), 0)
    whole.add(vectors[2:].clone(), 2)
    for part in (slice(2, rows), slice(0, 2)):
        for datum in range(len(vectors)):
            blocks.add_rows(vectors[datum : datum + 1, ..., part, :].clone(), datum, part)
    assert_inner(whole, vectors)
    assert_inner(blocks, vectors)


@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_sparse_and_replaced_rows(rows, columns):
    vectors = study(rows, columns)
    sparse, replaced = accumulator_for(vectors), accumulator_for(vectors)
    for datum, values in enumerate(vectors):
        nonzero = values.flatten(0, 1)[0].any(dim=1).nonzero().flatten().flip(0)
        sparse.add_sparse(values[None, ..., nonzero, :].clone(), datum, nonzero)
        some = nonzero[::2]
        before, others = replaced.before(some), values.clone()
        others[..., some, :] /= 2
        for part in (slice(0, 2), slice(2, rows)):
            inside = some[(some >= part.start) & (some < part.stop)] - part.start
            replaced.add_rows(others[None, ..., part, :].clone(), datum, part, inside)
        replaced.replace(values[None, ..., some, :].clone(), datum, some, before)
    assert_inner(sparse, vectors)
    assert_inner(replaced, vectors)


def test_small_parameters_are_added_together_whether_or_not_they_keep_pairs():
    one, other = study(4, 3), 2 * study(4, 3)
    first, second = accumulator_for(one), accumulator_for(other, pairs=False)
    for part in (slice(0, 2), slice(2, 5)):
        add_small([(first, one[part]), (second, other[part])], part.start)
    assert_inner(first, one)
    assert second.tables.inner.shape == (5, 0, 0)
    assert second.pairs is False


def test_joined_studies_keep_all_pairs_and_refuse_others_without():
    vectors = study(90, 50)
    first, second = accumulator_for(vectors[:2]), accumulator_for(vectors[2:])
    first.add(vectors[:2].clone(), 0)
    second.add(vectors[2:].clone(), 0)
    first.join(second.tables)
    assert_inner(first, vectors)
    with pytest.raises(ValueError, match="differ in more than their data"):
        first.join(accumulator_for(vectors, pairs=False).tables)


def test_pairs_change_nothing_else_and_are_kept_on_request_alone():
    vectors = study(90, 50).flatten(-2)
    with_pairs, without = moments_of(vectors, pairs=True), moments_of(vectors)
    assert (with_pairs.paired, without.paired) == (True, False)
    for table in TABLES[:-1]:
        np.testing.assert_array_equal(getattr(with_pairs, table), getattr(without, table))


def test_pairs_of_disjoint_coordinates_add_up():
    vectors = study(4, 3).flatten(-2)
    parts = total([moments_of(part.contiguous(), pairs=True) for part in vectors.split([5, 7], dim=-1)])
    np.testing.assert_allclose(parts.inner, moments_of(vectors, pairs=True).inner, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("draws", [(2, 3), (4, 2), (3, 1)])
def test_groups_of_cells_have_the_moments_of_their_means(draws):
    vectors = study(4, 3, draws=draws).flatten(-2)
    found: Moments = moments_of(vectors, pairs=True).grouped()
    expected = moments_of(vectors.mean(dim=2), pairs=True)
    assert (found.counts, found.dimension) == (expected.counts, expected.dimension)
    for table in TABLES:
        np.testing.assert_allclose(getattr(found, table), getattr(expected, table), rtol=1e-11, atol=1e-12)


def test_components_of_groups_are_those_of_their_means():
    vectors = study(4, 3, data=8).flatten(-2) + 0.3
    grouped = Components(moments_of(vectors, pairs=True).grouped(), ("data", "mask"))
    means = Components(moments_of(vectors.mean(dim=2)), ("data", "mask"))
    np.testing.assert_allclose(grouped.values, means.values, rtol=1e-10)
    found, expected = grouped.importance_headroom(), means.importance_headroom()
    assert [found.estimate, found.low, found.high] == pytest.approx([expected.estimate, expected.low, expected.high])
