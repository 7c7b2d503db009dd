"""From an objective to a result: any nesting, any engine, the same numbers."""

import json

import numpy as np
import pytest
import torch
from torch import nn

import gradvar
from gradvar.decomposition.accumulator import moments_of
from gradvar.decomposition.components import Components
from gradvar.errors import GradvarError
from gradvar.measure import measure
from tests import cases


class ThreeLevels:
    """Data, a view of it, and noise on the view; a linear model, whose gradients are easy to write down."""

    levels = ("data", "view", "noise")

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = nn.Linear(3, 1, bias=False).double()

    def __len__(self) -> int:
        return 30

    def draw(self, data, draws, seed):
        rows = []
        for datum in data:
            shape = (1, *draws, 3)
            base = torch.randn((1, 1, 1, 3), generator=torch.Generator().manual_seed(datum))
            view = torch.randn((1, draws[0], 1, 3), generator=torch.Generator().manual_seed(1000 + datum + seed))
            noise = torch.randn(shape, generator=torch.Generator().manual_seed(2000 + datum + seed))
            rows.append((base + 0.5 * view + 0.1 * noise).flatten(0, 2))
        return {"x": torch.cat(rows).double()}

    def losses(self, batch):
        return self.model(batch["x"]).squeeze(1)


@pytest.mark.parametrize("engine", ["onepass", "reference"])
def test_three_levels_through_the_public_function(engine):
    objective = ThreeLevels()
    result = gradvar.decompose(objective, sentences=10, masks=(4, 3), seed=7, engine=engine)
    order = np.random.default_rng(7).permutation(30)[:10].tolist()
    explicit = objective.draw(order, (4, 3), 7)["x"].view(10, 4, 3, 3)  # the gradient of w.x is x
    expected = Components(moments_of(explicit), objective.levels)
    assert [result.components[level].estimate for level in objective.levels] == pytest.approx(expected.values)
    assert result.gradient_norm2.estimate == pytest.approx(expected.norm2)
    assert result.components["noise"].estimate < result.components["view"].estimate
    assert "two levels" in result.headroom["importance"].reason
    assert "two levels" in result.advice.variance_ratio_to_one_mask.reason
    json.dumps(result.to_json(), allow_nan=False)
    assert "10 data draws × 4 views × 3 noises" in repr(result)


@pytest.mark.parametrize("kind", ["bert", "modernbert"])
def test_engines_agree(kind):
    objective = cases.objective(kind, padded=True)
    fast = gradvar.decompose(objective, sentences=6, masks=3, seed=2)
    slow = gradvar.decompose(objective, sentences=6, masks=3, seed=2, engine="reference")
    for level in ("data", "mask"):
        assert fast.components[level].estimate == pytest.approx(slow.components[level].estimate, rel=1e-9)
        assert fast.components[level].low == pytest.approx(slow.components[level].low, rel=1e-9)
    assert fast.gradient_norm2.estimate == pytest.approx(slow.gradient_norm2.estimate, rel=1e-9)


def test_sentences_are_drawn_without_replacement_and_nested_in_the_seed():
    objective = cases.objective()
    few = measure(objective, (4, 2), seed=5).data
    many = measure(objective, (12, 2), seed=5).data
    assert few.tolist() == many[:4].tolist()
    assert sorted(many.tolist()) == list(range(12))
    assert measure(objective, (4, 2), seed=6).data.tolist() != few.tolist()


def test_identical_masks_have_no_mask_variance():
    """All positions masked and always replaced by the mask token: one mask is like another."""
    objective = cases.objective(mask_rate=0.99, replacement=gradvar.Replacement(1, 0, 0))
    result = gradvar.decompose(objective, sentences=6, masks=3)
    assert abs(result.components["mask"].estimate) < 1e-20 * result.components["data"].estimate
    assert result.shares["data"].estimate == pytest.approx(1)


def test_parameters_can_be_selected():
    objective = cases.objective()
    whole = gradvar.decompose(objective, sentences=6, masks=3)
    part = gradvar.decompose(objective, sentences=6, masks=3, parameters=r"encoder\.layer\.1")
    names = {layer.name for layer in part.layers}
    assert names
    assert all("encoder.layer.1" in name for name in names)
    by_name = {layer.name: layer for layer in whole.layers}
    for layer in part.layers:
        assert layer.components["mask"].estimate == pytest.approx(
            by_name[layer.name].components["mask"].estimate, rel=1e-9
        )


def test_key_biases_are_zero_and_their_ratios_nothing():
    """Adding a constant to all keys changes no attention; what remains is rounding, and no share of it is told."""
    result = gradvar.decompose(cases.objective(), sentences=6, masks=3, parameters=r"key\.bias")
    assert "zero, up to rounding, for 2 parameters" in result.notices[0]
    assert result.shares["mask"].reason == "the gradient is identically zero"
    assert all(layer.shares["mask"].estimate is None for layer in result.layers)


def test_given_costs_decide_the_advice():
    objective = cases.objective()
    cheap = gradvar.decompose(objective, sentences=12, masks=4, cost_sentence=0.0, cost_mask=1.0).advice
    dear = gradvar.decompose(objective, sentences=12, masks=4, cost_sentence=100.0, cost_mask=1.0).advice
    assert cheap.masks_per_sentence == 1
    assert cheap.variance_ratio_to_one_mask.estimate == pytest.approx(1)
    assert dear.masks_per_sentence > 1
    assert dear.variance_ratio_to_one_mask.estimate < 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"masks": 1}, "--masks 1"),
        ({"masks": (2, 2)}, "3 numbers of draws"),
        ({"sentences": 13}, "the data hold 12"),
        ({"sentences": 1}, "--sentences 1"),
        ({"precision": 0.0}, "--precision 0.0 is not between 0 and 1"),
        ({"precision": 1.5}, "--precision 1.5"),
        ({"precision": 0.1, "max_sentences": 11}, "--max-sentences 11 is less than --sentences 12"),
        (
            {"precision": 0.1, "max_sentences": 13},
            "asked for 13 sentences, but the data hold 12; lower --max-sentences",
        ),
        ({"max_sentences": 12}, "--max-sentences bounds a study that grows"),
        ({"sentences": 3, "precision": 0.1}, "--sentences 3: a study with --precision begins with at least 4"),
        ({"engine": "fast"}, "--engine 'fast'"),
        ({"cost_mask": 0.0}, "--cost-mask"),
        ({"cost_sentence": float("nan")}, "--cost-sentence"),
        ({"parameters": "no such"}, "matches no trainable parameter"),
    ],
)
def test_bad_options(options, words):
    with pytest.raises(GradvarError, match=words):
        gradvar.decompose(cases.objective(), **{"sentences": 12, "masks": 2} | options)


def test_non_finite_weights_are_named():
    objective = cases.objective()
    with torch.no_grad():
        objective.model.bert.encoder.layer[1].output.dense.bias[0] = float("nan")
    with pytest.raises(
        GradvarError,
        match=r"loss of sentence \d+ is not finite, and neither are the weights 'bert.encoder.layer.1.output",
    ):
        gradvar.decompose(objective, sentences=4, masks=2)


def test_non_finite_gradients_are_named(monkeypatch):
    """A loss can be finite and its gradient not: the square root at 0."""

    class Root(ThreeLevels):
        levels = ("data", "noise")

        def draw(self, data, draws, seed):
            return {"x": torch.tensor([[float(d % 3), 1.0, 1.0] for d in data]).double().repeat_interleave(draws[0], 0)}

        def losses(self, batch):
            return (self.model(torch.ones_like(batch["x"])).squeeze(1) * batch["x"][:, 0]).abs().sqrt()

    with pytest.raises(GradvarError, match="gradient of 'weight' of data draw"):
        gradvar.decompose(Root(), sentences=6, masks=2)
