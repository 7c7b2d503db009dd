"""Squared norms from inner products, alone and in the engine, where they take the place of the cells' gradients."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gradvar.decomposition import accumulator as streaming
from gradvar.decomposition.accumulator import MomentAccumulator
from gradvar.persample import gram, onepass
from gradvar.persample.gram import gram_pays, squared_norms
from gradvar.persample.onepass import OnePass
from gradvar.persample.parameters import select
from tests import cases
from tests.persample import oracle
from tests.persample.test_rules import Tied, both


@settings(max_examples=60, deadline=None)
@given(
    groups=st.integers(1, 3),
    cells=st.integers(1, 3),
    positions=st.integers(1, 4),
    rows=st.integers(1, 9),
    columns=st.integers(1, 5),
    block=st.sampled_from([1, 7, 1 << 18]),
    data=st.data(),
)
def test_squared_norms_of_sums_of_products(groups, cells, positions, rows, columns, block, data):
    without = data.draw(st.none() | st.sets(st.integers(0, rows - 1)).map(sorted))
    generator = torch.Generator().manual_seed(rows + 10 * columns)
    dy, x = (
        torch.randn(groups * cells, positions, n, dtype=torch.float64, generator=generator) for n in (rows, columns)
    )
    sums = torch.einsum("gto,gti->goi", *(f.reshape(groups, cells * positions, -1) for f in (dy, x)))
    if without is not None:
        without = torch.tensor(without, dtype=torch.long)
        sums[:, without] = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gram, "_BLOCK", block)
        found = squared_norms(dy, x, groups, without)
    torch.testing.assert_close(found, sums.square().sum(dim=(1, 2)), rtol=1e-10, atol=1e-10)


def test_norms_below_the_rounding_are_not_negative():
    """Tokens that cancel but for the last bits: about half of the sums of inner products end below zero."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, 1, 3, dtype=torch.float64, generator=generator).expand(50, 3, 3)
    dy = torch.randn(50, 3, 4, dtype=torch.float64, generator=generator)
    dy[:, 2] = -(dy[:, 0] + dy[:, 1])
    found = squared_norms(dy, x, 50)
    assert (found >= 0).all()
    assert (found == 0).sum() > 5  # or this would be no test


def test_shared_directions_cost_no_digits():
    """What tokens share is a thousand times their size and sums to nothing; float32 keeps not one digit there."""
    generator = torch.Generator().manual_seed(0)
    x, dy = torch.randn(8, 19, 20, generator=generator), torch.randn(8, 19, 300, generator=generator)
    x += 1000 * torch.randn(20, generator=generator)
    dy -= dy.mean(dim=1, keepdim=True)
    exact = (dy.double().transpose(1, 2) @ x.double()).square().sum(dim=(1, 2))
    torch.testing.assert_close(squared_norms(dy, x, 8), exact, rtol=1e-7, atol=0)
    in_float32 = ((dy @ dy.transpose(1, 2)) * (x @ x.transpose(1, 2))).sum(dim=(1, 2)).double()
    assert ((in_float32 / exact - 1).abs() > 1e-3).any()


def test_it_pays_for_few_positions_of_large_tables():
    assert gram_pays(19, 30_522, 256)
    assert not gram_pays(77, 30_522, 256)
    assert not gram_pays(128, 1024, 256)
    assert not gram_pays(10, 100, 200)
    assert gram_pays(9, 200, 200)


@pytest.fixture
def forced(monkeypatch):
    """Every Linear weight goes by inner products, in blocks of a few rows; float64 has digits to spare."""
    monkeypatch.setattr(streaming, "_LEAST_LEFT", 1e-6)
    monkeypatch.setattr(onepass, "gram_pays", lambda positions, rows, columns: positions > 0)
    monkeypatch.setattr(onepass, "_BLOCK_CPU", 40)
    monkeypatch.setattr(onepass, "_MEAN", 60)
    took = []
    add_squares = MomentAccumulator.add_squares

    def add(accumulator, squares, datum):
        took.append((len(accumulator.tables.sums), add_squares(accumulator, squares, datum)))
        return took[-1][1]

    monkeypatch.setattr(MomentAccumulator, "add_squares", add)
    return took


@pytest.mark.parametrize("counts", [(4, 3), (3, 2, 2), (2, 2, 1, 3)])
@pytest.mark.parametrize("tied", [True, False])
def test_a_masked_lm_by_inner_products(forced, tied, counts):
    objective = cases.objective("bert", padded=True, inner_pads=True, tied=tied)
    cells = counts[1:]
    batch = objective.draw(range(counts[0]), (torch.tensor(cells).prod().item(),), seed=3)
    targets = select(objective.model)
    errors = oracle.errors(OnePass(objective.model, targets), objective, batch, targets, counts)
    assert {name: error for name, error in errors.items() if error > oracle.EXACT} == {}
    assert len(forced) >= 13 * counts[0]
    assert [took for rows, took in forced if rows == 60] == [True] * 2 * counts[0]  # the decoder: all data, and each


@pytest.mark.parametrize("equal", ["nearly", "exactly"])
def test_cells_that_hardly_differ_are_formed_after_all(forced, equal):
    """The difference of two nearly equal squares has few digits left: 1e-9 of the inputs, 1e-18 of the squares."""
    torch.manual_seed(0)
    model = Tied(5).double()
    data, draws = 3, 2
    ids = torch.randint(0, 7, (data, 1, 4)).expand(data, draws, 4).flatten(0, 1)
    noise = torch.randn(data * draws, dtype=torch.float64) if equal == "nearly" else torch.zeros(data * draws)
    batch = {"ids": ids, "scale": 1 + 1e-9 * noise}

    def losses(b):
        return model(b["ids"]).square().sum((1, 2)) * b["scale"]

    for _, found, g in both(model, losses, batch, data, draws):
        by_datum = g.view(data, draws, -1)
        exact = (by_datum - by_datum.mean(1, keepdim=True)).square().sum((1, 2))
        torch.testing.assert_close(found.squares[:, 0], exact, rtol=1e-5, atol=1e-30)
        torch.testing.assert_close(found.cell_norm2.flatten(), g.square().sum((1, 2)), rtol=1e-9, atol=0)
        torch.testing.assert_close(
            found.sums.view_as(g[0]), by_datum.mean(1).sum(0).view_as(g[0]), rtol=1e-9, atol=1e-12
        )
    assert forced
    assert not any(took for _, took in forced)


@pytest.mark.parametrize(("counts", "together"), [((2, 3), 5), ((2, 3, 4), 5 + 20), ((2, 3, 4, 2), 5 + 10 + 40)])
def test_all_levels_count_in_the_choice(monkeypatch, counts, together):
    """Cells have 5 positions of their own, a mean of 4 cells 20, one of 4 times 2 cells 40."""
    asked = []
    monkeypatch.setattr(onepass, "gram_pays", lambda *sizes: asked.append(sizes))
    monkeypatch.setattr(onepass, "_BLOCK_CPU", 1)
    model = nn.Linear(3, 7).double()
    targets = select(model)
    cells = torch.tensor(counts).prod().item()
    accumulators = {id(t.parameter): MomentAccumulator(*t.shape, counts, torch.float64) for t in targets}
    batch = {"x": torch.randn(cells, 5, 3, dtype=torch.float64)}
    OnePass(model, targets).accumulate(lambda b: model(b["x"]).sin().sum((1, 2)), batch, accumulators, 0)
    assert asked == [(together, 7, 3)]


def test_float32_through_the_engine(monkeypatch):
    """Cells share most of their gradient: 1.3 % of the squares is left, and two of float32's seven digits are lost."""
    monkeypatch.setattr(onepass, "gram_pays", lambda *sizes: True)
    monkeypatch.setattr(onepass, "_BLOCK_CPU", 1 << 10)
    took = []
    add_squares = MomentAccumulator.add_squares
    monkeypatch.setattr(MomentAccumulator, "add_squares", lambda *args: took.append(add_squares(*args)) or took[-1])
    model = nn.Linear(30, 60)
    generator = torch.Generator().manual_seed(0)
    x = 1 + 0.19 * torch.randn(3 * 4, 2, 30, generator=generator)
    found = {}
    for dtype in (torch.float32, torch.float64):
        model.to(dtype)
        targets = select(model, "weight")
        accumulator = MomentAccumulator(60, 30, (3, 4), dtype)
        batch = {"x": x.to(dtype)}
        OnePass(model, targets).accumulate(
            lambda b: model(b["x"]).sum((1, 2)), batch, {id(targets[0].parameter): accumulator}, 0
        )
        found[dtype] = accumulator.finish()
    assert took == [True] * 6
    squares = found[torch.float64].squares
    assert 0.01 < squares.sum() / found[torch.float64].cell_norm2.sum() < 0.02
    assert found[torch.float32].squares == pytest.approx(squares, rel=4e-5)
    assert found[torch.float32].cell_norm2 == pytest.approx(found[torch.float64].cell_norm2, rel=1e-6)


def test_several_calls_of_a_module_go_the_direct_way(forced):
    torch.manual_seed(0)
    model = nn.Linear(4, 4).double()
    targets = select(model)
    accumulators = {id(t.parameter): MomentAccumulator(*t.shape, (2, 2), torch.float64) for t in targets}
    batch = {"x": torch.randn(4, 3, 4, dtype=torch.float64)}
    OnePass(model, targets).accumulate(lambda b: model(model(b["x"])).sum((1, 2)), batch, accumulators, 0)
    assert not forced
