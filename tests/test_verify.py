"""`check_engine` on models that are not a language model: a small CNN with an objective of its own."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gradvar import check_engine, decompose
from gradvar.errors import GradvarError
from gradvar.masking.hashing import hash_key
from gradvar.persample.onepass import OnePass
from gradvar.persample.parameters import select
from gradvar.persample.reference import Reference
from tests import cases
from tests.persample import oracle

COUNTS = 8, 3


class Network(nn.Module):
    """Images `[cells, 2, 6, 5]` to three classes; batch norm is in evaluation mode, as everything is."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 6, (3, 2), stride=2, groups=2, bias=False)
        self.groups = nn.GroupNorm(3, 6)
        self.along = nn.Conv1d(6, 4, 2, padding="same", padding_mode="circular")
        self.last = nn.LayerNorm(4)
        self.classify = nn.Linear(4, 3)

    def forward(self, images):
        x = F.relu(self.norm(self.first(images)), inplace=True)
        x = self.groups(self.second(x)).flatten(2)
        return self.classify(self.last(torch.tanh(self.along(x)).mean(2)))


class Noisy:
    """Classification of images, each seen several times with noise of its own."""

    def __init__(self, levels=("data", "noise")):
        torch.manual_seed(3)
        self.levels = levels
        self.model = Network().double().eval()
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter += 0.3 * torch.randn_like(parameter)
            self.model.norm.running_var.uniform_(0.5, 2)
        self.images = torch.randn(COUNTS[0], 2, 6, 5, dtype=torch.float64)

    def __len__(self):
        return len(self.images)

    def draw(self, data, draws, seed):
        cells = math.prod(draws)
        datum, draw = torch.tensor(list(data)).repeat_interleave(cells), torch.arange(cells).repeat(len(data))
        pixel = torch.arange(60).view(2, 6, 5)
        noise = hash_key(seed, datum.view(-1, 1, 1, 1), draw.view(-1, 1, 1, 1), pixel) % 1000
        return {"images": self.images[datum] + noise.double() / 1000, "classes": datum % 3}

    def losses(self, batch):
        return F.cross_entropy(self.model(batch["images"]), batch["classes"], reduction="none")


@pytest.mark.parametrize("make", [OnePass, Reference])
def test_a_cnn_is_exact(make):
    objective = Noisy()
    targets = select(objective.model)
    batch = objective.draw(range(COUNTS[0]), COUNTS[1:], 0)
    errors = oracle.errors(make(objective.model, targets), objective, batch, targets, COUNTS)
    assert set(errors) == {name for name, _ in objective.model.named_parameters()}
    assert {name: error for name, error in errors.items() if error > oracle.EXACT} == {}


@pytest.mark.parametrize("engine", ["onepass", "reference"])
@pytest.mark.parametrize("levels", [("data", "noise"), ("data", "crop", "noise")])
def test_users_can_see_that_it_is(engine, levels):
    checked = check_engine(Noisy(levels), data=4, draws=3, engine=engine)
    assert checked.engine == engine
    assert len(checked.errors) == 13
    assert checked.error == max(checked.errors.values()) <= oracle.EXACT
    assert checked.passed
    assert str(checked).startswith(f"engine {engine} agrees with autograd on 13 parameters; the worst is '")


@pytest.mark.parametrize("engine", ["onepass", "reference"])
def test_its_components_are_those_of_the_loop(engine):
    """The formulas of the nested design, written out, for the whole and for every layer."""
    objective = Noisy()
    result = decompose(objective, sentences=COUNTS[0], masks=COUNTS[1], seed=4, engine=engine)
    batch = objective.draw(result.data.tolist(), COUNTS[1:], 4)
    parameters = dict(objective.model.named_parameters())
    found = oracle.explicit(objective.losses, batch, select(objective.model))
    by_name = dict(zip(parameters, (g.flatten(1) for g in found), strict=True))

    def components(gradients):
        nested = gradients.view(*COUNTS, -1)
        means = nested.mean(dim=1)
        noise = float(nested.var(dim=1).sum(1).mean())
        return [float(means.var(dim=0).sum()) - noise / COUNTS[1], noise]

    exact = {"rel": 1e-9, "abs": 1e-12}
    whole = components(torch.cat(list(by_name.values()), dim=1))
    assert [result.components[level].estimate for level in objective.levels] == pytest.approx(whole, **exact)
    assert {layer.name for layer in result.layers} == {name for name, _ in objective.model.named_children()}
    for layer in result.layers:
        own = torch.cat([g for name, g in by_name.items() if name.rpartition(".")[0] == layer.name], dim=1)
        estimates = [layer.components[level].estimate for level in objective.levels]
        assert estimates == pytest.approx(components(own), **exact), layer.name


def test_rounding_in_float32_is_no_disagreement():
    """A key bias has no gradient but rounding, which is anything relative to nothing."""
    objective = cases.objective("bert", padded=True)
    objective.model.float()
    checked = check_engine(objective, data=3, draws=3)
    assert any("key.bias" in name for name in checked.errors)
    assert checked.tolerance == 1e-3
    assert checked.error < 1e-4  # 24 bits, and sums of some thousand products


def test_a_gradient_that_is_not_finite_is_a_disagreement(monkeypatch):
    accumulate = OnePass.accumulate

    def broken(self, losses, batch, accumulators, first):
        values = accumulate(self, losses, batch, accumulators, first)
        accumulators[id(self.model.classify.bias)].tables.cell_norm2[0, 1] = float("nan")
        return values

    monkeypatch.setattr(OnePass, "accumulate", broken)
    checked = check_engine(Noisy())
    assert (checked.worst, checked.error, checked.passed) == ("classify.bias", math.inf, False)
    assert "DISAGREES" in str(checked)


@pytest.mark.parametrize(
    ("options", "words"),
    [({"data": 9}, "asked for 9 data, but the population holds 8"), ({"engine": "best"}, "--engine 'best' is unknown")],
)
def test_bad_requests_are_refused(options, words):
    with pytest.raises(GradvarError, match=words):
        check_engine(Noisy(), **options)


def test_a_loss_that_reaches_nothing_is_refused():
    objective = Noisy()
    losses = objective.losses
    objective.losses = lambda batch: losses(batch).detach()
    with pytest.raises(GradvarError, match="reaches no trainable parameter"):
        check_engine(objective)


def test_parameters_are_chosen_by_pattern():
    assert set(check_engine(Noisy(), parameters="second|along").errors) == {
        "second.weight",
        "along.weight",
        "along.bias",
    }
