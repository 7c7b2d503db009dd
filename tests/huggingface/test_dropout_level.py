"""Dropout as the third level of a masked LM: every engine and every batch sees the same masks, and so does autograd."""

import json
from itertools import product

import numpy as np
import pytest
import torch
from transformers import AutoModelForMaskedLM, FlaubertConfig

import gradvar
from gradvar.decomposition.accumulator import moments_of
from gradvar.decomposition.components import Components
from gradvar.errors import GradvarError
from gradvar.huggingface.masked_lm import MaskedLM
from gradvar.masking.cells import Cells
from gradvar.persample.parameters import select
from gradvar.persample.reference import Reference
from tests import cases

DRAWS = (3, 2)


def objective(kind="bert", padded=True, **options):
    return cases.objective(kind, padded, dropout=True, **({"rate": 0.2} | options))


def part(batch, cells):
    return {name: x[cells] for name, x in batch.items()}


@pytest.mark.parametrize(
    ("engine", "kind", "padded"),
    cases.mostly_full(
        product(["onepass", "reference"], cases.ONE_PASS, [False, True]), lambda engine, kind, padded: padded
    ),
)
def test_engines_are_exact(engine, kind, padded):
    """Cell norms, mean gradients and sums of squares against a backward pass a cell."""
    check = gradvar.check_engine(objective(kind, padded), data=4, draws=2, engine=engine)
    assert check.engine == engine
    assert check.error < 1e-9, check


@pytest.mark.parametrize("kind", cases.ONE_PASS)
def test_vmap_and_the_loop_drop_the_same(kind):
    study = objective(kind)
    batch = part(study.draw([0, 1], DRAWS, 5), slice(0, 6))
    targets = select(study.model)
    by_vmap = Reference(study.model, targets, study.for_vmap)
    gradients, losses = by_vmap._gradients(study.losses, batch)
    assert by_vmap.by_vmap
    slow, expected = Reference(study.model, targets, loop=True)._gradients(study.losses, batch)
    torch.testing.assert_close(losses, expected, rtol=1e-10, atol=0)
    whole = torch.stack([g.norm() for g in slow.values()]).norm()
    for name, gradient in slow.items():
        assert float((gradients[name] - gradient).norm()) < 1e-9 * max(float(gradient.norm()), 1e-3 * float(whole)), (
            name
        )


@pytest.mark.parametrize("engine", ["onepass", "reference"])
@pytest.mark.parametrize("kind", ["bert", "modernbert"])
def test_components_are_those_of_an_autograd_loop(kind, engine):
    """Every cell is drawn with its sentence alone, so without padding, and differentiated alone."""
    study, seed = objective(kind), 4
    order = np.random.default_rng(seed).permutation(len(study))[:6].tolist()
    parameters = list(study.model.parameters())
    rows = []
    for sentence in order:
        batch = study.draw([sentence], DRAWS, seed)
        for cell in range(6):
            loss = study.losses(part(batch, slice(cell, cell + 1))).sum()
            found = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
            rows.append(torch.cat([g.flatten() for g in found]))
    expected = Components(moments_of(torch.stack(rows).view(6, *DRAWS, -1)), study.levels)
    found = gradvar.decompose(study, sentences=6, masks=DRAWS, seed=seed, engine=engine)
    assert found.study["engine"] == engine
    for level, value in zip(("data", "mask", "dropout"), expected.values, strict=True):
        assert found.components[level].estimate == pytest.approx(value, rel=1e-9)
    assert found.components["dropout"].estimate > 0


@pytest.mark.parametrize("kind", cases.ONE_PASS)
def test_the_loss_of_a_cell_depends_on_no_other_and_on_no_padding(kind):
    study, data = objective(kind), [0, 5, 3, 1]
    assert len({len(study.corpus.sequences[sentence]) for sentence in data}) > 1
    with torch.no_grad():
        batch = study.draw(data, DRAWS, 7)
        together = study.losses(batch)
        backwards = study.losses(part(batch, torch.arange(23, -1, -1))).flip(0)
        by_sentence = torch.cat([study.losses(study.draw([sentence], DRAWS, 7)) for sentence in data])
        by_cell = torch.cat([study.losses(part(batch, slice(cell, cell + 1))) for cell in range(24)])
    for other in (backwards, by_sentence, by_cell):
        torch.testing.assert_close(together, other, rtol=0, atol=1e-12)
    assert len(together.unique()) == 24


def test_more_draws_leave_the_first_ones_as_they_are():
    study = objective()
    with torch.no_grad():
        few = study.losses(study.draw([2, 4], (2, 2), 1)).view(2, 2, 2)
        many = study.losses(study.draw([4, 2], (3, 5), 1)).view(2, 3, 5)
        other = study.losses(study.draw([2, 4], (2, 2), 2)).view(2, 2, 2)
    torch.testing.assert_close(many.flip(0)[:, :2, :2], few, rtol=0, atol=1e-12)
    assert (few - other).abs().min() > 1e-6


def test_eager_attention_drops_what_sdpa_drops():
    losses = []
    for attention in ("sdpa", "eager"):
        study = objective(attention=attention)
        losses.append(study.losses(study.draw([0, 1, 2], DRAWS, 0)))
    torch.testing.assert_close(*losses, rtol=1e-12, atol=0)


def test_masks_are_those_of_a_study_without_dropout():
    two, three = cases.objective(padded=True), objective()
    plain, batch = two.draw([3, 1], (4,), 9), three.draw([3, 1], (4, 2), 9)
    assert torch.equal(batch.pop("dropout"), Cells([3, 1], (4, 2), 9).keys[:, 2])
    assert batch.keys() == plain.keys()
    for name, x in plain.items():
        assert torch.equal(batch[name], x.repeat_interleave(2, dim=0)), name


@pytest.mark.parametrize("kind", ["bert", "modernbert"])
def test_the_mean_over_dropout_is_within_its_error_of_many_ordinary_draws(kind):
    """The masks of torch's own dropout have the same mean loss: 4 standard errors, one right seed in 16,000 fails."""
    study = objective(kind, padded=False)
    batch = study.draw([0], (1, 2000), 0)
    with torch.no_grad():
        keyed = study.losses(batch)
        study.model.train()
        del batch["dropout"]
        ordinary = study.losses(batch)
    error = ((keyed.var() + ordinary.var()) / 2000).sqrt()
    assert abs(keyed.mean() - ordinary.mean()) < 4 * error
    assert abs(keyed.var() / ordinary.var() - 1) < 0.5


def test_the_model_is_in_evaluation_mode_between_the_losses():
    study = objective()
    batch = study.draw([0, 1], DRAWS, 0)
    assert torch.equal(study.losses(batch), study.losses(batch))
    assert not any(module.training for module in study.model.modules())


def test_a_study_tells_its_draws_of_dropout():
    result = gradvar.decompose(objective(), sentences=6, masks=(3, 2))
    printed = result.to_json()
    json.dumps(printed, allow_nan=False)
    assert printed["levels"] == ["data", "mask", "dropout"]
    assert printed["study"].items() >= {"sentences": 6, "masks": 3, "dropout": 2}.items()
    assert list(printed["components"]) == ["data", "mask", "dropout"]
    assert "from 6 sentences × 3 masks × 2 dropouts" in " ".join(repr(result).split())


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ((1, (2, 2)), "--sentences 1"),
        ((6, (1, 2)), "--masks 1"),
        ((6, (2, 1)), "--dropout 1"),
        ((6, 2), "give one each"),
    ],
)
def test_too_few_draws_are_refused_by_the_options_name(counts, words):
    with pytest.raises(GradvarError, match=words):
        gradvar.decompose(objective(), sentences=counts[0], masks=counts[1])


@pytest.mark.parametrize("kind", ["bert", "modernbert"])
def test_a_model_without_dropout_is_refused(kind):
    with pytest.raises(GradvarError, match="has no dropout: every rate in its configuration is 0; leave --dropout out"):
        objective(kind, rate=0.0)


def test_relative_positions_that_cells_share_are_refused_by_name():
    with pytest.raises(GradvarError, match=r"'deberta.encoder.layer.0.attention.self.pos_dropout' drops elements of"):
        objective("deberta-v2")


def test_layerdrop_is_refused():
    sizes = {"emb_dim": 16, "n_layers": 2, "n_heads": 2, "vocab_size": 60, "max_position_embeddings": 32}
    model = AutoModelForMaskedLM.from_config(FlaubertConfig(**sizes, pad_index=0, layerdrop=1e-6))
    with pytest.raises(GradvarError, match="random numbers beside the model's dropout, such as LayerDrop's"):
        MaskedLM(model, cases.tokenizer(), cases.corpus([12, 12]), dropout=True)


def test_gradient_checkpointing_is_refused():
    model = cases.model("bert", rate=0.1)
    model.activation_checkpointing_enable()
    with pytest.raises(GradvarError, match="gradient checkpointing runs dropout a second time"):
        MaskedLM(model, cases.tokenizer(), cases.corpus([12, 12]), dropout=True)
