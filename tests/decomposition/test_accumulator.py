"""The streaming tables against the textbook's sums, and against themselves under every way of feeding them."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradvar.decomposition import accumulator as streaming
from gradvar.decomposition.accumulator import MomentAccumulator, moments_of
from gradvar.decomposition.moments import Moments, total

# Values are of order one and a table sums at most some thousand squares of them in float64: 1e-13 at worst.
SAME = {"rtol": 1e-12, "atol": 1e-12}
TABLES = ("squares", "between", "cell_norm2", "mean_norm2", "sketch_norm2", "sketch_distance2")
seeds = st.integers(0, 2**32 - 1)
quick = settings(max_examples=40, deadline=None)


@st.composite
def studies(draw, least: int = 1):
    """Normal vectors `[data, *draws, rows, columns]` of 2 to 4 levels."""
    data = draw(st.integers(least, 6))
    draws = draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
    matrix = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    return torch.from_numpy(np.random.default_rng(draw(seeds)).normal(size=(data, *draws, *matrix)))


def accumulator_for(vectors: torch.Tensor) -> MomentAccumulator:
    return MomentAccumulator(*vectors.shape[-2:], tuple(vectors.shape[:-2]), vectors.dtype)


def accumulated(vectors: torch.Tensor) -> MomentAccumulator:
    accumulator = accumulator_for(vectors)
    accumulator.add(vectors.clone(), 0)
    return accumulator


def textbook(matrices: torch.Tensor) -> Moments:
    """The tables from the vectors as a whole, by their definitions; so small a matrix is its own sketch."""
    vectors = matrices.double().flatten(-2).numpy()
    data, levels = len(vectors), vectors.ndim - 1
    means = [vectors.mean(axis=tuple(range(level + 1, levels))) for level in range(levels)]
    squares = np.zeros((data, levels - 1))
    for level in range(1, levels):
        deviations = means[level] - means[level - 1][..., None, :]
        squares[:, level - 1] = (deviations**2).reshape(data, -1).sum(axis=1)
    grand = means[0].mean(axis=0)
    distances = ((means[0] - grand) ** 2).sum(axis=1)
    norms = (vectors**2).sum(axis=-1).reshape(data, -1)
    return Moments(
        tuple(vectors.shape[:-1]),
        squares,
        distances.sum(),
        norms,
        grand @ grand,
        (means[0] ** 2).sum(axis=1),
        distances,
        len(grand),
        np.zeros((data, 0, 0)),
    )


def assert_same(found: Moments, expected: Moments, **tolerance: float) -> None:
    assert (found.counts, found.dimension) == (expected.counts, expected.dimension)
    for table in TABLES:
        np.testing.assert_allclose(
            getattr(found, table), getattr(expected, table), **(tolerance or SAME), err_msg=table
        )


@quick
@given(studies())
def test_tables_follow_their_definitions(vectors):
    assert_same(accumulated(vectors).finish(), textbook(vectors))
    assert_same(moments_of(vectors.flatten(-2)), textbook(vectors))


@pytest.mark.parametrize("large", [1, 1 << 16])
@quick
@given(vectors=studies(), choose=st.data())
def test_any_split_into_data_and_rows_gives_the_same_tables(large, vectors, choose):
    """Whether or not a block counts as large, of which squares of norms are subtracted."""

    def pieces(start: int, stop: int) -> list[tuple[int, int]]:
        cuts = choose.draw(st.sets(st.integers(start, stop)))
        return list(pairwise(sorted(cuts | {start, stop})))

    accumulator = accumulator_for(vectors)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streaming, "_LARGE", large)
        for first, last in pieces(0, len(vectors)):
            for top, bottom in choose.draw(st.permutations(pieces(0, vectors.shape[-2]))):
                for start, stop in pieces(first, last):
                    block = vectors[start:stop, ..., top:bottom, :].clone()
                    accumulator.add_rows(block, start, slice(top, bottom))
    assert_same(accumulator.finish(), textbook(vectors))


def large(data: int, rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    """Vectors whose matrix is larger than a sketch, some rows of each zero."""
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(data, 2, rows, columns, generator=generator, dtype=torch.float64)
    return vectors * (torch.rand(data, 1, rows, 1, generator=generator) < 0.5)


@pytest.mark.parametrize("least", [1, 1 << 16])
@pytest.mark.parametrize(("rows", "columns"), [(4, 3), (90, 50), (3, 1500), (3000, 2)])
def test_blocks_sparse_and_replaced_rows_give_the_same_tables_as_whole_data(rows, columns, least, monkeypatch):
    """Sketches included: they are sums over the rows, whatever the order; and whether blocks count as large."""
    monkeypatch.setattr(streaming, "_LARGE", least)
    vectors = large(5, rows, columns)
    whole = accumulated(vectors).finish()
    blocks, sparse, replaced = (accumulator_for(vectors) for _ in range(3))
    for datum, values in enumerate(vectors):
        for part in (slice(2, rows), slice(0, 2)):
            blocks.add_rows(values[None, :, part].clone(), datum, part)
        nonzero = values[0].any(dim=1).nonzero().flatten().flip(0)
        sparse.add_sparse(values[None, :, nonzero].clone(), datum, nonzero)
        some = nonzero[::2]
        before = replaced.before(some)
        others = values.clone()
        others[:, some] /= 2  # left out of the squares; were they not, there would be enough left to subtract
        for part in (slice(0, 2), slice(2, rows)):
            inside = some[(some >= part.start) & (some < part.stop)] - part.start
            replaced.add_rows(others[None, :, part].clone(), datum, part, inside)
        replaced.replace(values[None, :, some].clone(), datum, some, before)
    for accumulator in (blocks, sparse, replaced):
        assert_same(accumulator.finish(), whole, rtol=1e-11, atol=1e-11)


@quick
@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3)), max_size=5), seeds)
def test_small_vectors_of_many_parameters_are_added_together(shapes, seed):
    rng = np.random.default_rng(seed)
    studies = [torch.from_numpy(rng.normal(size=(5, 2, 3, *shape))) for shape in shapes]
    accumulators = [accumulator_for(vectors) for vectors in studies]
    for first, last in ((0, 2), (2, 5)):
        parts = [(a, v[first:last]) for a, v in zip(accumulators, studies, strict=True)]
        streaming.add_small(parts, first)
    for accumulator, vectors in zip(accumulators, studies, strict=True):
        assert_same(accumulator.finish(), textbook(vectors))


@quick
@given(studies())
def test_squares_of_rows_that_were_never_formed(vectors):
    """The sum of a datum's cells, and the squared norms of every level's sums."""
    accumulator = accumulator_for(vectors)
    for datum, values in enumerate(vectors):
        sums = [values]
        while sums[0].ndim > 2:
            sums.insert(0, sums[0].sum(dim=sums[0].ndim - 3))
        squares = [level.square().sum(dim=(-2, -1)) for level in sums]
        accumulator.add_totals(sums[0].unsqueeze(0), datum, slice(0, vectors.shape[-2]))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(streaming, "_LEAST_LEFT", -1)
            assert accumulator.add_squares(squares, datum)
    assert_same(accumulator.finish(), textbook(vectors))


@pytest.mark.parametrize("enough", [True, False])
def test_squares_are_added_only_where_a_hundredth_is_left(enough):
    accumulator = MomentAccumulator(1, 1, (2, 3), torch.float64)
    cells = torch.full((3,), 100.0, dtype=torch.float64)
    of_total = torch.tensor(9 * (98.9 if enough else 99.1), dtype=torch.float64)
    assert accumulator.add_squares([of_total, cells], 0) == enough
    assert accumulator.tables.squares[0].tolist() == pytest.approx([3.3 if enough else 0])
    assert accumulator.tables.cell_norm2[0].tolist() == [100.0 * enough] * 3


def test_nothing_is_added_if_too_little_is_left_at_one_of_several_levels():
    accumulator = MomentAccumulator(1, 1, (2, 2, 3), torch.float64)
    of_cells, of_groups = torch.ones(2, 3, dtype=torch.float64), torch.full((2,), 8.99, dtype=torch.float64)
    assert not accumulator.add_squares([torch.tensor(18.0).double(), of_groups, of_cells], 0)
    assert not accumulator.tables.squares.any()
    assert not accumulator.tables.cell_norm2.any()


def test_a_single_draw_leaves_nothing_and_costs_no_pass():
    """One draw of a level is its own mean: zero, not the rounding of a difference."""
    accumulator = MomentAccumulator(1, 1, (2, 1), torch.float64)
    assert accumulator.add_squares([torch.tensor(0.3).double(), torch.tensor([0.1 + 0.2]).double()], 0)
    assert accumulator.tables.squares[0].tolist() == [0.0]


@quick
@given(studies(), seeds)
def test_sparse_data_equal_dense_data_with_zeros(vectors, seed):
    nonzero = torch.from_numpy(np.random.default_rng(seed).random((len(vectors), vectors.shape[-2])) < 0.5)
    vectors = vectors * nonzero.view(len(vectors), *[1] * (vectors.ndim - 3), -1, 1)
    accumulator = accumulator_for(vectors)
    for datum in range(len(vectors)):
        rows = nonzero[datum].nonzero().flatten().flip(0)
        accumulator.add_sparse(vectors[datum : datum + 1, ..., rows, :].clone(), datum, rows)
    assert_same(accumulator.finish(), textbook(vectors))


@quick
@given(studies(least=2), st.data())
def test_joined_studies_equal_one_study_of_all_data(vectors, choose):
    cuts = sorted(choose.draw(st.sets(st.integers(1, len(vectors) - 1), min_size=1, max_size=2)))
    first, *others = (accumulated(p) for p in np.split(vectors, cuts))
    before = [other.finish() for other in others]
    for other in others:
        first.join(other.tables)
    assert_same(first.finish(), textbook(vectors))
    for other, unchanged in zip(others, before, strict=True):
        assert_same(other.finish(), unchanged)


def test_joined_sketches_are_those_of_one_study():
    vectors = large(6, 40, 60)
    first, second = accumulated(vectors[:2]), accumulated(vectors[2:])
    first.join(second.tables)
    assert_same(first.finish(), accumulated(vectors).finish())


@pytest.mark.parametrize("shape", [(4, 3, 2, 5), (4, 2, 2, 6), (4, 2, 3, 5), (4, 2, 2, 2, 5)])
def test_studies_that_differ_in_more_than_data_do_not_join(shape):
    one, other = (accumulated(torch.randn(*s, dtype=torch.float64)) for s in ((4, 2, 2, 5), shape))
    with pytest.raises(ValueError, match=r"^studies that differ in more than their data cannot be joined$"):
        one.join(other.tables)


@quick
@given(studies())
def test_moments_add_over_disjoint_coordinates(vectors):
    columns = [column.unsqueeze(-1) for column in vectors.flatten(-2).unbind(-1)]
    assert_same(total([moments_of(c) for c in columns]), textbook(vectors))


@quick
@given(studies(), seeds)
def test_the_order_of_data_and_draws_leaves_the_sums_unchanged(vectors, seed):
    shuffled = vectors
    for level in range(vectors.ndim - 2):
        order = torch.from_numpy(np.random.default_rng(seed).permutation(vectors.shape[level]))
        shuffled = shuffled.index_select(level, order)
    found, expected = accumulated(shuffled).finish(), textbook(vectors)
    np.testing.assert_allclose(found.squares.sum(axis=0), expected.squares.sum(axis=0), **SAME)
    np.testing.assert_allclose(found.between, expected.between, **SAME)
    np.testing.assert_allclose(found.mean_norm2, expected.mean_norm2, **SAME)


@pytest.mark.parametrize(("rows", "columns"), [(1, 50), (80, 50)])
def test_float32_keeps_a_spread_far_below_the_mean(rows, columns):
    """Small matrices, and blocks so large that squares of norms would be subtracted if that left enough.

    Mean 1e4, spread 1: `sum |g|^2 - n |mean|^2` would be off by 1e8 * 6e-8 = 6 a value.

    Centring first leaves 4 roundings of the mean, 4 * 1e4 * 6e-8 = 2.4e-3 of a deviation of order one, and
    twice that of its square: 1e-2 is twice the worst case.
    """
    generator = torch.Generator().manual_seed(0)
    vectors = (1e4 + torch.randn(16, 3, 4, rows, columns, generator=generator)).float()
    found, expected = accumulated(vectors).finish(), textbook(vectors)
    np.testing.assert_allclose(found.squares.sum(axis=0), expected.squares.sum(axis=0), rtol=1e-2)
    np.testing.assert_allclose(found.between, expected.between, rtol=1e-2)
    if rows == 1:  # of the others only a sketch is kept
        np.testing.assert_allclose(found.sketch_distance2, expected.sketch_distance2, rtol=1e-2)


@pytest.mark.parametrize("spread", [0.1, 0.12, 0.5, 10.0])
def test_float32_keeps_five_digits_where_squares_are_subtracted(spread):
    """Norms of 50 columns carry 1e-7 each, and a hundredth of the squares is left: 2e-5; twice that over 3 levels.

    Spreads of 0.1 and 0.12 of the mean leave 0.7 % and 1.1 %, on either side of that bound.
    """
    vectors = 1 + spread * torch.randn(4, 3, 4, 80, 50, generator=torch.Generator().manual_seed(0))
    found, expected = accumulated(vectors).finish(), textbook(vectors)
    np.testing.assert_allclose(found.squares, expected.squares, rtol=4e-5)
    np.testing.assert_allclose(found.cell_norm2, expected.cell_norm2, rtol=1e-6)


def test_sums_and_sketches_have_the_type_asked_for_and_squares_are_float64():
    tables = MomentAccumulator(40, 50, (4, 3), torch.float32).tables
    assert (tables.sums.dtype, tables.sketches.dtype) == (torch.float32, torch.float32)
    assert {t.dtype for t in (tables.between, tables.squares, tables.cell_norm2)} == {torch.float64}


def test_everything_lives_on_the_device_asked_for():
    """Torch's `meta` device stands for an accelerator."""
    accumulator = MomentAccumulator(40, 50, (4, 3), torch.float32, "meta")
    tables, sketch = accumulator.tables, accumulator.sketch
    parts = (
        tables.sums,
        tables.between,
        tables.squares,
        tables.cell_norm2,
        tables.sketches,
        sketch._rows,
        sketch._signs,
    )
    assert {part.device.type for part in parts} == {"meta"}


def test_values_handed_to_moments_of_are_left_alone():
    vectors = torch.randn(4, 3, 5, dtype=torch.float64)
    copy = vectors.clone()
    moments_of(vectors)
    assert torch.equal(vectors, copy)


def test_moments_of_different_studies_do_not_add():
    one, other = (moments_of(torch.randn(4, masks, 5, dtype=torch.float64)) for masks in (2, 3))
    with pytest.raises(ValueError, match="different studies"):
        one + other
    assert (one + replace(one, dimension=7)).dimension == 12
