"""The streaming tables against the textbook's sums, and against themselves under every way of feeding them."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradvar.decomposition.moments import Layout, MomentAccumulator, Moments, even_layout, moments_of, total

# Values are of order one and a table sums at most some thousand squares of them in float64: 1e-13 at worst.
SAME = {"rtol": 1e-12, "atol": 1e-12}
seeds = st.integers(0, 2**32 - 1)
quick = settings(max_examples=40, deadline=None)


@st.composite
def studies(draw, least: int = 1):
    """Normal vectors `[data, *draws, rows, columns]` of 2 to 4 levels, and the number of groups."""
    data = draw(st.integers(least, 6))
    draws = draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
    matrix = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    vectors = np.random.default_rng(draw(seeds)).normal(size=(data, *draws, *matrix))
    return torch.from_numpy(vectors), draw(st.integers(1, min(4, data)))


def accumulator_for(vectors: torch.Tensor, layout: Layout) -> MomentAccumulator:
    return MomentAccumulator(*vectors.shape[-2:], layout, vectors.dtype)


def accumulated(vectors: torch.Tensor, layout: Layout) -> MomentAccumulator:
    """One `add` a group."""
    accumulator = accumulator_for(vectors, layout)
    for start, size in zip(layout.group_starts, layout.group_sizes, strict=True):
        accumulator.add(vectors[start : start + size].clone(), start)
    return accumulator


def textbook(matrices: torch.Tensor, layout: Layout) -> Moments:
    """The tables from the vectors as a whole, by their definitions."""
    vectors = matrices.double().flatten(-2).numpy()
    data, levels = len(vectors), vectors.ndim - 1
    means = [vectors.mean(axis=tuple(range(level + 1, levels))) for level in range(levels)]
    squares = np.zeros((data, levels))
    for level in range(1, levels):
        deviations = means[level] - means[level - 1][..., None, :]
        squares[:, level] = (deviations**2).reshape(data, -1).sum(axis=1)
    starts, sizes = layout.group_starts, layout.group_sizes
    for start, size in zip(starts, sizes, strict=True):
        for n in range(1, size):
            gap = means[0][start + n] - means[0][start : start + n].mean(axis=0)
            squares[start + n, 0] = n / (n + 1) * (gap**2).sum()
    grand = means[0].mean(axis=0)
    groups = np.array([means[0][a : a + n].mean(axis=0) - grand for a, n in zip(starts, sizes, strict=True)])
    norms = (vectors**2).sum(axis=-1).reshape(data, -1)
    return Moments(layout, squares, norms, grand @ grand, groups @ grand, groups @ groups.T, len(grand))


def assert_same(found: Moments, expected: Moments, **tolerance: float) -> None:
    assert (found.layout, found.dimension) == (expected.layout, expected.dimension)
    for table in ("squares", "cell_norm2", "mean_norm2", "group_cross", "group_gram"):
        np.testing.assert_allclose(
            getattr(found, table), getattr(expected, table), **(tolerance or SAME), err_msg=table
        )


@quick
@given(studies())
def test_tables_follow_their_definitions(study):
    vectors, groups = study
    assert_same(
        moments_of(vectors.flatten(-2), groups), textbook(vectors, even_layout(tuple(vectors.shape[:-2]), groups))
    )


@quick
@given(studies())
def test_increments_and_groups_make_up_the_outer_sum_of_squares(study):
    vectors, groups = study
    means = vectors.flatten(-2).flatten(1, -2).mean(dim=1)
    outer = (means - means.mean(dim=0)).square().sum()
    np.testing.assert_allclose(moments_of(vectors.flatten(-2), groups).between, outer, **SAME)


@quick
@given(studies(), st.data())
def test_any_split_into_data_and_rows_gives_the_same_tables(study, choose):
    vectors, groups = study
    layout = even_layout(tuple(vectors.shape[:-2]), groups)

    def pieces(start: int, stop: int) -> list[tuple[int, int]]:
        cuts = choose.draw(st.sets(st.integers(start, stop)))
        return list(pairwise(sorted(cuts | {start, stop})))

    accumulator = accumulator_for(vectors, layout)
    for group, size in zip(layout.group_starts, layout.group_sizes, strict=True):
        for first, last in pieces(group, group + size):
            join = accumulator.open(first, last - first)
            for top, bottom in choose.draw(st.permutations(pieces(0, vectors.shape[-2]))):
                for start, stop in pieces(first, last):
                    block = vectors[start:stop, ..., top:bottom, :].clone()
                    join.add(block, start - first, slice(top, bottom))
            join.close()
    assert_same(accumulator.finish(), accumulated(vectors, layout).finish())


@quick
@given(studies(), seeds)
def test_sparse_data_equal_dense_data_with_zeros(study, seed):
    vectors, groups = study
    layout = even_layout(tuple(vectors.shape[:-2]), groups)
    nonzero = torch.from_numpy(np.random.default_rng(seed).random((len(vectors), vectors.shape[-2])) < 0.5)
    vectors = vectors * nonzero.view(len(vectors), *[1] * len(layout.draws), -1, 1)
    accumulator = accumulator_for(vectors, layout)
    for start, size in zip(layout.group_starts, layout.group_sizes, strict=True):
        join = accumulator.open(start, size)
        for offset in range(size):
            rows = nonzero[start + offset].nonzero().flatten().flip(0)
            join.add_sparse(vectors[start + offset : start + offset + 1, ..., rows, :].clone(), offset, rows)
        join.close()
    assert_same(accumulator.finish(), accumulated(vectors, layout).finish())


@quick
@given(studies(least=2), st.data())
def test_joined_studies_equal_one_study_of_all_data(study, choose):
    vectors, _ = study
    cut = choose.draw(st.integers(1, len(vectors) - 1))
    parts = vectors[:cut], vectors[cut:]
    layouts = [
        even_layout(tuple(p.shape[:-2]), choose.draw(st.integers(1, min(3, len(p))), label="groups")) for p in parts
    ]
    left, right = (accumulated(p, layout) for p, layout in zip(parts, layouts, strict=True))
    before = left.finish(), right.finish()
    sizes = layouts[0].group_sizes + layouts[1].group_sizes
    expected = accumulated(vectors, Layout(tuple(vectors.shape[:-2]), sizes)).finish()
    assert_same(left.join(right).finish(), expected)
    assert_same(left.finish(), before[0])
    assert_same(right.finish(), before[1])


@quick
@given(studies())
def test_moments_add_over_disjoint_coordinates(study):
    vectors, groups = study
    columns = [column.unsqueeze(-1) for column in vectors.flatten(-2).unbind(-1)]
    assert_same(total([moments_of(c, groups) for c in columns]), moments_of(vectors.flatten(-2), groups))


@quick
@given(studies(), seeds)
def test_the_order_of_data_and_draws_leaves_the_sums_unchanged(study, seed):
    vectors, groups = study
    shuffled = vectors
    for level in range(vectors.ndim - 2):
        order = torch.from_numpy(np.random.default_rng(seed).permutation(vectors.shape[level]))
        shuffled = shuffled.index_select(level, order)
    found, expected = moments_of(shuffled.flatten(-2), groups), moments_of(vectors.flatten(-2), groups)
    np.testing.assert_allclose(found.squares.sum(axis=0)[1:], expected.squares.sum(axis=0)[1:], **SAME)
    np.testing.assert_allclose(found.between, expected.between, **SAME)
    np.testing.assert_allclose(found.mean_norm2, expected.mean_norm2, **SAME)


def test_float32_keeps_a_spread_far_below_the_mean():
    """Mean 1e4, spread 1: `sum |g|^2 - n |mean|^2` would be off by 1e8 * 6e-8 = 6 a value.

    Centring first leaves 4 roundings of the mean, 4 * 1e4 * 6e-8 = 2.4e-3 of a deviation of order one, and
    twice that of its square: 1e-2 is twice the worst case.
    """
    generator = torch.Generator().manual_seed(0)
    vectors = (1e4 + torch.randn(16, 3, 4, 1, 50, generator=generator)).float()
    found = moments_of(vectors.flatten(-2), 4).squares.sum(axis=0)
    expected = textbook(vectors, even_layout((16, 3, 4), 4)).squares.sum(axis=0)
    np.testing.assert_allclose(found, expected, rtol=1e-2)


def test_values_handed_to_moments_of_are_left_alone():
    vectors = torch.randn(4, 3, 5, dtype=torch.float64)
    copy = vectors.clone()
    moments_of(vectors, 2)
    assert torch.equal(vectors, copy)


def test_layouts():
    layout = even_layout((10, 3, 2), groups=4)
    assert layout.group_sizes == (2, 3, 3, 2)
    assert layout.group_starts == (0, 2, 5, 8)
    assert (layout.draws, layout.cells) == ((3, 2), 6)


def test_moments_of_different_studies_do_not_add():
    one, other = (moments_of(torch.randn(4, masks, 5, dtype=torch.float64)) for masks in (2, 3))
    with pytest.raises(ValueError, match="different studies"):
        one + other


@pytest.mark.parametrize("shape", [(4, 3, 2, 5), (4, 2, 2, 6), (4, 2, 3, 5), (4, 2, 2, 2, 5)])
def test_studies_that_differ_in_more_than_data_do_not_join(shape):
    one, other = (accumulated(torch.randn(*s, dtype=torch.float64), even_layout(s[:-2])) for s in ((4, 2, 2, 5), shape))
    with pytest.raises(ValueError, match="cannot be joined"):
        one.join(other)
