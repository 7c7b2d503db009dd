"""Keyed dropout: which elements it drops, what of that depends on what, and whose variance it makes."""

from itertools import product
from math import sqrt

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import gradvar
from gradvar.errors import GradvarError
from gradvar.masking.cells import Cells
from gradvar.measure import measure


def keys_of(cells, seed=0):
    return Cells(range(cells), (1,), seed).keys[:, 1]


def drop_in(model, x):
    with gradvar.keyed_dropout(model, keys_of(len(x))):
        return model(x)


def drop(x, keys, p=0.3, **options):
    module = nn.Dropout(p, **options).eval()
    with gradvar.keyed_dropout(module, keys):
        return module(x)


@pytest.mark.parametrize("p", [0.1, 0.3, 0.75])
def test_elements_are_dropped_with_their_probability_and_the_rest_is_scaled(p):
    """The share of zeros, overall and by cell, row and column, within 5 standard errors.

    205 shares: a right dropout fails for one seed in 8,000 at each of the rates, in the normal approximation.
    """
    found = drop(torch.ones(64, 40, 100, dtype=torch.float64), keys_of(64), p)
    assert set(found.unique().tolist()) == {0.0, 1 / (1 - p)}
    zeros = (found == 0).double()
    assert abs(zeros.mean() - p) < 5 * sqrt(p * (1 - p) / zeros.numel())
    for dims in ((1, 2), (0, 2), (0, 1)):
        share = zeros.mean(dim=dims)
        assert (share - p).abs().max() < 5 * sqrt(p * (1 - p) * len(share) / zeros.numel())


def test_calls_cells_and_neighbours_are_independent():
    """Correlations of 16,000 pairs within 5 standard errors; 4 of them: right masks fail for 2 seeds in a million."""
    model, x = nn.Dropout(0.5), torch.ones(16, 10, 100)
    with gradvar.keyed_dropout(model, keys_of(16)):
        first, second = model(x), model(x)
    for other in (second, first.roll(1, 0), first.roll(1, 1), first.roll(1, 2)):
        pairs = torch.stack([first.flatten(), other.flatten()])
        assert abs(float(torch.corrcoef(pairs)[0, 1])) < 5 / sqrt(x.numel())


@pytest.mark.parametrize(("p", "expected"), [(0.0, 1.0), (1.0, 0.0)])
def test_the_extreme_rates(p, expected):
    x = torch.ones(3, 4, requires_grad=True)
    found = drop(x, keys_of(3), p)
    assert found.unique().tolist() == [expected]
    assert torch.autograd.grad(found.sum(), x)[0].unique().tolist() == [expected]


def test_a_cells_masks_do_not_depend_on_the_batch_or_its_width():
    x, keys = torch.ones(6, 3, 20, 20), keys_of(6)
    whole = drop(x, keys)
    for cell in range(6):
        assert torch.equal(drop(x[cell : cell + 1], keys[cell : cell + 1]), whole[cell : cell + 1])
    assert torch.equal(drop(x.flip(0), keys.flip(0)), whole.flip(0))
    assert torch.equal(drop(x[:, :, :7, :9], keys), whole[:, :, :7, :9])


def test_hashing_in_blocks_changes_nothing(monkeypatch):
    whole = drop(torch.ones(6, 50), keys_of(6))
    monkeypatch.setattr("gradvar.dropout._BLOCK", 110)
    assert torch.equal(drop(torch.ones(6, 50), keys_of(6)), whole)


def test_in_place_means_in_place():
    x, y = torch.ones(4, 10), torch.ones(4, 10)
    assert drop(x, keys_of(4), inplace=True) is x
    assert torch.equal(x, drop(y, keys_of(4)))
    assert y.all()


class Attention(nn.Module):
    def __init__(self, p, **options):
        super().__init__()
        self.p, self.options = p, options

    def forward(self, *qkv):
        return F.scaled_dot_product_attention(*qkv, dropout_p=self.p * self.training, **self.options)


BIAS = torch.randn(4, 2, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
BLIND = BIAS > -0.5
BLIND[1, 0, 2] = False  # a query that sees no key
ATTENTIONS = {
    "plain": {},
    "scaled": {"scale": 0.3},
    "causal": {"is_causal": True},
    "biased": {"attn_mask": BIAS},
    "masked": {"attn_mask": BLIND},
    "masked for all heads": {"attn_mask": BLIND[:, :1]},
    "masked by minus infinity": {"attn_mask": torch.zeros_like(BIAS).masked_fill(~BLIND, -torch.inf)},
    "grouped": {"enable_gqa": True},
}


@pytest.mark.parametrize("options", ATTENTIONS.values(), ids=ATTENTIONS.keys())
def test_attention_is_that_of_the_kernels(options):
    """With a rate so small that nothing is dropped, outputs and gradients are torch's own."""
    heads = 4 if "enable_gqa" in options else 2
    q = torch.randn(4, heads, 5, 8, dtype=torch.float64, requires_grad=True)
    k, v = (torch.randn(4, 2, 6, 8, dtype=torch.float64, requires_grad=True) for _ in range(2))
    module = Attention(1e-15, **options).eval()
    weights = torch.randn_like(q)

    def run():
        out = module(q, k, v)
        return out, *torch.autograd.grad((out * weights).sum(), (q, k, v))

    expected = run()
    with gradvar.keyed_dropout(module, keys_of(4)) as dropout:
        found = run()
    assert dropout.calls == 1
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_attention_drops_the_weights_that_dropout_would():
    q, k = (torch.randn(4, 2, 5, 8, dtype=torch.float64) for _ in range(2))
    v = torch.eye(5, dtype=torch.float64).expand(4, 2, 5, 5)  # the output is the dropped weights
    module = Attention(0.4).eval()
    with gradvar.keyed_dropout(module, keys_of(4)):
        found = module(q, k, v)
    weights = (q @ k.mT / sqrt(8)).softmax(-1)
    torch.testing.assert_close(found, drop(weights, keys_of(4), 0.4), rtol=1e-12, atol=0)


def test_the_mean_over_draws_is_the_model_without_dropout():
    """2,000 draws; each of 60 outputs within 5 standard errors: a right dropout fails for 4 seeds in 100,000."""
    keys = Cells(range(2000), (1,), 0).keys[:, 1]
    x = torch.randn(60, dtype=torch.float64)
    found = drop(x.expand(2000, 60), keys, 0.3)
    assert ((found.mean(0) - x).abs() < 5 * found.std(0) / sqrt(2000)).all()


def test_every_module_is_left_as_it_was_and_batch_norm_does_not_train():
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout(0.5), nn.Dropout(0.5)).eval()
    model[3].train()
    right, wrong = torch.randn(4, 3), torch.randn(4, 5)
    before = [module.training for module in model.modules()]
    with gradvar.keyed_dropout(model, keys_of(4)) as dropout:
        assert [module.training for module in model.modules()] == [True, True, False, True, True]
        model(right)
    assert dropout.calls == 2
    assert model[1].num_batches_tracked == 0
    with pytest.raises(RuntimeError), gradvar.keyed_dropout(model, keys_of(4)):
        model(wrong)
    assert [module.training for module in model.modules()] == before


class Shared(nn.Module):
    """Drops elements of a table that all cells share."""

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.ones(7, 3))
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        return x @ self.drop(self.table).T


class Functional(nn.Module):
    def forward(self, x):
        return F.dropout(x.T, 0.5, self.training)


REFUSED = [
    (nn.Sequential(Shared()), r"'0.drop' drops elements of shape \(7, 3\), which has not the 4 cells in front"),
    (nn.Sequential(Functional()), r"'0' drops elements of shape \(3, 4\)"),
    (nn.Sequential(nn.AlphaDropout(0.5)), "'0' draws its dropout in alpha_dropout, where no key can reach it"),
    (nn.Dropout1d(0.5), "'Dropout1d' draws its dropout in dropout1d"),
    (nn.TransformerEncoderLayer(3, 1, 3, batch_first=True), "'self_attn' draws its .* multi_head_attention_forward"),
]

REFUSED_IDS = ["shared table", "transposed", "AlphaDropout", "Dropout1d", "TransformerEncoderLayer"]


@pytest.mark.parametrize(("model", "words"), REFUSED, ids=REFUSED_IDS)
def test_what_has_no_key_of_its_own_is_refused_by_name(model, words):
    x = torch.randn(4, 5, 3) if isinstance(model, nn.TransformerEncoderLayer) else torch.randn(4, 3)
    with pytest.raises(GradvarError, match=words):
        drop_in(model, x)
    assert all(module.training for module in model.modules())


def test_other_dropouts_of_rate_zero_are_none():
    model = nn.Sequential(nn.AlphaDropout(0.0), nn.TransformerEncoderLayer(3, 1, 3, 0.0, batch_first=True))
    x = torch.randn(4, 5, 3)
    with gradvar.keyed_dropout(model, keys_of(4)) as dropout:
        model(x)
    assert dropout.calls == 0


def test_gradient_checkpointing_is_refused():
    model = nn.Dropout(0.5)
    model.gradient_checkpointing = True
    words = "gradient checkpointing runs dropout a second time"
    with pytest.raises(GradvarError, match=words), gradvar.keyed_dropout(model, keys_of(2)):
        pass


class LayerDrop(nn.Module):
    """Skips a layer at random, but so seldom that losses seem the same from call to call."""

    def __init__(self):
        super().__init__()
        self.inner, self.drop = nn.Linear(3, 3), nn.Dropout(0.5)

    def forward(self, x):
        skip = self.training and torch.rand(()) < 1e-6
        return self.drop(x if skip else self.inner(x))


def test_other_randomness_is_refused():
    with pytest.raises(GradvarError, match="random numbers beside the model's dropout, such as LayerDrop's"):
        drop_in(LayerDrop(), torch.ones(4, 3))


class Hidden:
    """One hidden layer of six units with dropout, over a few data: so small that every pattern can be listed."""

    levels = ("data", "dropout")
    rate, population = 0.3, 12

    def __init__(self):
        torch.manual_seed(5)
        self.model = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Dropout(self.rate), nn.Linear(6, 1)).double()
        self.x = torch.randn(self.population, 3, dtype=torch.float64)

    def __len__(self):
        return self.population

    def draw(self, data, draws, seed):
        cells = gradvar.Cells(data, draws, seed)
        return {"x": self.x[cells.datum], "key": cells.keys[:, 1]}

    def losses(self, batch):
        with gradvar.keyed_dropout(self.model, batch["key"]):
            return (self.model(batch["x"]).squeeze(1) - 1).square()

    def exact(self):
        """Probability of each of the 64 patterns, and `[data, patterns, coordinates]` gradients by plain autograd."""
        patterns = torch.tensor(list(product((0.0, 1.0), repeat=6)), dtype=torch.float64)
        probability = (self.rate * (1 - patterns) + (1 - self.rate) * patterns).prod(1)
        first, tanh, _, last = self.model
        rows = []
        for x, kept in product(self.x, patterns):
            loss = (last(tanh(first(x)) * kept / (1 - self.rate)) - 1).square().sum()
            rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(self.model.parameters()))]))
        return probability.numpy(), torch.stack(rows).view(len(self.x), 64, -1).numpy()


def test_studies_meet_the_enumerated_components():
    """Within 4 standard errors over 100 studies: right estimators fail for one seed in 2,700 (3 values, t_99).

    The population is finite, so the data's component is its sample variance; see `test_enumeration`.
    """
    objective = Hidden()
    probability, gradients = objective.exact()
    means = np.einsum("p,xpc->xc", probability, gradients)
    mu = means.mean(axis=0)
    sigma2 = ((means - mu) ** 2).sum(axis=1).mean() * objective.population / (objective.population - 1)
    within = np.einsum("p,xpc->x", probability, (gradients - means[:, None]) ** 2).mean()
    expected = [sigma2, within, mu @ mu - sigma2 / objective.population]
    found = []
    for seed in range(100):
        study = gradvar.decompose(objective, sentences=8, masks=5, seed=seed)
        found.append([*(study.components[level].estimate for level in objective.levels), study.gradient_norm2.estimate])
    error = np.std(found, axis=0, ddof=1) / np.sqrt(len(found))
    assert (np.abs(np.mean(found, axis=0) - expected) < 4 * error).all()


def test_every_drawn_cell_is_an_enumerated_one():
    objective = Hidden()
    norms = (objective.exact()[1] ** 2).sum(axis=2)
    for engine in ("onepass", "reference"):
        measured = measure(objective, (6, 5), 1, engine=engine)
        drawn = sum(m.cell_norm2 for m in measured.moments.values())
        for datum, cells in zip(measured.data, drawn, strict=True):
            assert np.abs(cells[:, None] / norms[datum] - 1).min(axis=1) == pytest.approx(0, abs=1e-9)
