"""The sketch: linear, exact on average over its signs (by enumeration), exact where nothing need be compressed."""

from itertools import product

import numpy as np
import pytest
import torch

from gradvar.decomposition import sketch as module
from gradvar.decomposition.sketch import Sketch, sketch_size


def sketched(sketch: Sketch, matrix: torch.Tensor) -> torch.Tensor:
    return sketch.fold(sketch.project(matrix, slice(0, matrix.shape[-2])))


@pytest.mark.parametrize(("rows", "columns"), [(3, 2), (2, 3), (4, 1), (1, 4)])
def test_inner_products_are_exact_on_average_over_all_signs(rows, columns, monkeypatch):
    """Every one of the 2^(signs) outcomes, each as likely as any other; two numbers are kept of the matrix."""
    monkeypatch.setattr(module, "_SIZE", 2)
    sketch = Sketch(rows, columns, 0, torch.float64, "cpu")
    count = sketch.shape[0]
    u, v = torch.randn(2, rows, columns, dtype=torch.float64)
    found = []
    for signs in product((-1.0, 1.0), repeat=count * rows + rows + columns):
        values = torch.tensor(signs, dtype=torch.float64)
        sketch._rows = values[: count * rows].view(count, rows) / count**0.5
        sketch._signs = values[count * rows :]
        found.append(float(sketched(sketch, u) @ sketched(sketch, v)))
    assert np.mean(found) == pytest.approx(float((u * v).sum()), rel=1e-12, abs=1e-12)
    assert np.std(found) > 0.1  # and no single outcome is exact


@pytest.mark.parametrize(("rows", "columns"), [(90, 50), (3, 1500), (3000, 2), (1, 5000)])
def test_errors_are_those_of_random_signs(rows, columns):
    """`<S u, S v>` has a standard deviation of about `|u||v|/sqrt(1024)`, 3 %, at most half again as much.

    Over 300 seeds a sample standard deviation is within a sixth of its value but for one in 10,000; the mean is
    within 4 standard errors but for one in 16,000.
    """
    torch.manual_seed(0)
    u, v = torch.randn(2, rows, columns, dtype=torch.float64)
    v += u
    size = float(u.norm() * v.norm())
    errors = []
    for seed in range(300):
        sketch = Sketch(rows, columns, seed, torch.float64, "cpu")
        errors.append((float(sketched(sketch, u) @ sketched(sketch, v)) - float((u * v).sum())) / size)
    assert np.std(errors) < 1.5 * 7 / 6 / np.sqrt(sketch.size)
    assert abs(np.mean(errors)) < 4 * np.std(errors) / np.sqrt(len(errors))


def test_matrices_of_rank_one_are_no_worse():
    """The gradient of one token: signs of rows and columns alone would leave |u||v|/sqrt(8) and more."""
    torch.manual_seed(0)
    a, b, c = (torch.randn(128, dtype=torch.float64) for _ in range(3))
    u, v = torch.outer(a, c), torch.outer(b, c)
    size = float(u.norm() * v.norm())
    errors = []
    for seed in range(300):
        sketch = Sketch(128, 128, seed, torch.float64, "cpu")
        errors.append((float(sketched(sketch, u) @ sketched(sketch, v)) - float((u * v).sum())) / size)
    assert np.std(errors) < 1.5 * 7 / 6 / np.sqrt(1024)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("rows", "columns"), [(1, 1024), (32, 32), (1024, 1), (3, 5)])
def test_small_matrices_are_kept_whole(rows, columns, dtype):
    u = torch.randn(rows, columns, dtype=dtype)
    kept = sketched(Sketch(rows, columns, 5, dtype, "cpu"), u)
    assert kept.dtype == dtype
    assert torch.equal(kept, u.flatten())


@pytest.mark.parametrize(("rows", "columns"), [(3, 5), (40, 50)])
def test_signs_live_on_the_device_asked_for(rows, columns):
    """Torch's `meta` device stands for an accelerator."""
    sketch = Sketch(rows, columns, 0, torch.float32, "meta")
    assert sketched(sketch, torch.ones(rows, columns, device="meta")).device.type == "meta"
    assert {sketch._rows.device.type, sketch._signs.device.type} == {"meta"}


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (7, 9), (1, 1025), (2000, 3), (30522, 768), (300, 1024)])
def test_sizes_are_known_beforehand_and_bounded(rows, columns):
    sketch = Sketch(rows, columns, 0, torch.float32, "cpu")
    assert sketch.size == sketch_size(rows, columns) == len(sketched(sketch, torch.ones(rows, columns)))
    assert sketch.size <= 1024


def test_rows_can_come_in_parts_and_by_index():
    sketch = Sketch(60, 40, 0, torch.float64, "cpu")
    u = torch.randn(2, 60, 40, dtype=torch.float64)
    rows = torch.randperm(60)
    whole = sketch.project(u, slice(0, 60))
    assert torch.allclose(sketch.project(u[:, rows], rows), whole, rtol=1e-12)
    parts = sketch.project(u[:, :25], slice(0, 25)) + sketch.project(u[:, 25:], slice(25, 60))
    assert torch.allclose(parts, whole, rtol=1e-12)


def test_seeds_choose_the_signs():
    u = torch.randn(60, 40, dtype=torch.float64)
    one, same, other = (sketched(Sketch(60, 40, seed, torch.float64, "cpu"), u) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.allclose(one, other)
