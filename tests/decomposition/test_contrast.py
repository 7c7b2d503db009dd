"""The squared distance of two studies' mean gradients, against explicit vectors."""

from itertools import product

import numpy as np
import pytest
import torch

from gradvar.decomposition.accumulator import MomentAccumulator, Tables
from gradvar.decomposition.contrast import pseudo_values, squared_difference


def tables_of(vectors: np.ndarray, shapes: list[tuple[int, int]], seed: int = 0) -> list[Tables]:
    """Tables of `[data, draws, coordinates]` vectors, cut into parameters of these shapes."""
    cuts = np.cumsum([rows * columns for rows, columns in shapes])[:-1]
    tables = []
    for shape, part in zip(shapes, np.split(vectors, cuts, axis=-1), strict=True):
        matrices = torch.from_numpy(np.ascontiguousarray(part)).view(*vectors.shape[:2], *shape)
        accumulator = MomentAccumulator(*shape, vectors.shape[:2], torch.float64, seed=seed)
        accumulator.add(matrices.clone(), 0)
        tables.append(accumulator.tables)
    return tables


def explicit(one: np.ndarray, other: np.ndarray) -> float:
    """`|d_.|^2 - MS_d/N`."""
    gaps = one.mean(axis=1) - other.mean(axis=1)
    return (gaps.mean(axis=0) ** 2).sum() - gaps.var(axis=0, ddof=1).sum() / len(gaps)


def pairs(data: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Two studies that share what is random about a datum, with other numbers of draws."""
    rng = np.random.default_rng(seed)
    shared = 3 * rng.normal(size=(data, 1, 10))
    return shared + rng.normal(size=(data, 2, 10)) + 0.3, shared + rng.normal(size=(data, 3, 10))


SHAPES = [(2, 3), (1, 4)]


def test_it_is_unbiased_although_studies_share_their_noise():
    """Over all 5^3 samples of three data out of five, equally likely; the shared part is far larger."""
    one, other = pairs(5)
    exact = ((one.mean(axis=1) - other.mean(axis=1)).mean(axis=0) ** 2).sum()
    samples = [list(sample) for sample in product(range(5), repeat=3)]
    found = [
        squared_difference(tables_of(one[sample], SHAPES), tables_of(other[sample], SHAPES)).mean()
        for sample in samples
    ]
    assert np.mean(found) == pytest.approx(exact, rel=1e-10)
    assert min(found) < 0 < max(found)


@pytest.mark.parametrize("data", [3, 7])
def test_pseudo_values_are_those_of_deleting_a_datum(data):
    one, other = pairs(data)
    found = squared_difference(tables_of(one, SHAPES), tables_of(other, SHAPES))
    assert found.mean() == pytest.approx(explicit(one, other), rel=1e-10)
    if data > 3:
        deleted = [explicit(np.delete(one, n, axis=0), np.delete(other, n, axis=0)) for n in range(data)]
        expected = data * explicit(one, other) - (data - 1) * np.array(deleted)
        np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_the_order_of_two_studies_makes_no_difference_and_one_is_at_no_distance_from_itself():
    one, other = (tables_of(vectors, SHAPES) for vectors in pairs(6))
    np.testing.assert_allclose(squared_difference(one, other), squared_difference(other, one), rtol=1e-12)
    assert not squared_difference(one, one).any()


def test_sketches_are_unbiased_over_their_signs():
    """A parameter of 4,500 numbers: within 4 standard errors over 200 seeds, false for one in 10,000."""
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(2, 5, 2, 4500)) + np.array([0.1, 0.0]).reshape(2, 1, 1, 1)
    found = [squared_difference(*(tables_of(v, [(90, 50)], seed) for v in (one, other))).mean() for seed in range(200)]
    error = np.std(found, ddof=1) / np.sqrt(len(found))
    assert error > 0
    assert abs(np.mean(found) - explicit(one, other)) < 4 * error


def test_pseudo_values_of_a_mean():
    """Of `|mu|^2` itself: squared norms, and distances from the mean."""
    vectors = np.random.default_rng(0).normal(size=(6, 4)) + 1

    def value(v: np.ndarray) -> float:
        return (v.mean(axis=0) ** 2).sum() - v.var(axis=0, ddof=1).sum() / len(v)

    distances = ((vectors - vectors.mean(axis=0)) ** 2).sum(axis=1)
    found = pseudo_values((vectors**2).sum(axis=1), distances, value(vectors))
    expected = [6 * value(vectors) - 5 * value(np.delete(vectors, n, axis=0)) for n in range(6)]
    np.testing.assert_allclose(found, expected, rtol=1e-10)
