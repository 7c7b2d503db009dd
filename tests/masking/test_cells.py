"""Cells: the order, the nesting and the distribution of what an objective draws."""

import doctest
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import gradvar.masking.cells
from gradvar.masking.cells import Cells
from gradvar.masking.hashing import hash_key

RARE = 1e-6  # a p-value below it fails: right draws do so for one seed in a million


def test_a_datums_cells_come_together_and_the_innermost_level_is_fastest():
    cells = Cells([7, 5], (2, 3), seed=11)
    assert cells.datum.tolist() == [7] * 6 + [5] * 6
    expected = [
        [hash_key(11, *map(torch.tensor, index[: level + 1])).item() for level in range(3)]
        for index in ((datum, first, second) for datum in (7, 5) for first in range(2) for second in range(3))
    ]
    assert cells.keys.tolist() == expected


@settings(deadline=None, max_examples=40)
@given(
    data=st.lists(st.integers(0, 10**6), min_size=1, max_size=5, unique=True),
    draws=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    more=st.integers(0, 2),
    seed=st.integers(0, 2**63),
)
def test_a_draw_is_a_function_of_seed_datum_and_indices_alone(data, draws, more, seed):
    """Not of the other data, their order, or how many draws there are beside it."""
    together = Cells(data, tuple(draws), seed)
    wider = Cells(data[::-1], tuple(n + more for n in draws), seed)
    levels = len(draws)
    for level in range(levels + 1):
        few = together.normal(level, 2).view(len(data), *draws, 2)
        many = wider.normal(level, 2).view(len(data), *(n + more for n in draws), 2).flip(0)
        assert torch.equal(few, many[(slice(None), *(slice(n) for n in draws))])
        distinct = len(together.keys[:, level].unique())
        assert distinct == len(data) * math.prod(draws[:level])


@pytest.mark.parametrize("kind", ["uniform", "normal"])
@pytest.mark.parametrize("level", [1, 2])
def test_draws_have_their_distribution(kind, level):
    """Kolmogorov-Smirnov over the distinct draws; four p-values, so right draws fail for 4 seeds in a million."""
    cells = Cells(range(50), (20, 2), seed=4)
    drawn = getattr(cells, kind)(level, 5)
    assert drawn.shape == (2000, 5)
    assert drawn.dtype == torch.get_default_dtype()
    distinct = drawn.view(50, 20, 2, 5)[:, :, 0] if level == 1 else drawn
    assert stats.kstest(distinct.double().flatten().numpy(), "norm" if kind == "normal" else "uniform").pvalue > RARE


def test_kinds_levels_seeds_and_elements_are_independent():
    """One column against five others, 4,000 pairs each, within 5 standard errors: 3 right seeds in 1e6 fail."""
    cells, other = Cells(range(100), (8, 5), seed=1), Cells(range(100), (8, 5), seed=2)
    inner = cells.normal(2, 2)
    columns = [inner[:, 0], inner[:, 1], cells.normal(1), cells.uniform(2), other.normal(2), cells.normal(0)]
    correlations = np.corrcoef(torch.stack([column.double() for column in columns]).numpy())
    assert (np.abs(correlations[0, 1:]) < 5 / math.sqrt(4000)).all()


def test_the_example_is_true():
    assert doctest.testmod(gradvar.masking.cells) == (0, 3)


def test_a_single_number_has_no_shape_of_its_own():
    assert Cells([0, 1], (3,), 0).uniform(1).shape == (6,)
