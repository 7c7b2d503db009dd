"""Every engine against the only oracle: a plain autograd loop, in float64, for every parameter."""

import itertools

import numpy as np
import pytest
import torch

from gradvar.decomposition.accumulator import MomentAccumulator
from gradvar.errors import EngineError
from gradvar.measure import measure
from gradvar.persample.onepass import OnePass
from gradvar.persample.parameters import select
from gradvar.persample.reference import Reference
from tests import cases
from tests.persample import oracle

SENTENCES, MASKS = COUNTS = 4, 3
# Biases that an untied head owns beside its decoder's, and never uses.
HEAD_BIASES = ("cls.predictions.bias", "lm_head.bias", "predictions.bias")
MODELS = [
    *itertools.product(("bert", "modernbert"), (True, False), ("sdpa", "eager")),
    *((kind, tied, "sdpa") for kind in cases.ARCHITECTURES[2:] for tied in (True, False)),
]


def study(kind, tied, attention, padded, dtype=torch.float64):
    objective = cases.objective(kind, padded, inner_pads=True, tied=tied, attention=attention)
    objective.model.to(dtype)
    return objective, objective.draw(range(SENTENCES), (MASKS,), seed=3)


def chosen(engine, kind, tied, attention, padded):
    """Every architecture with the one-pass engine; the references with one of each way to build masks."""
    if engine == "onepass":
        return attention == "sdpa" and (padded or (tied and kind in ("bert", "modernbert")))
    return tied and attention == "sdpa" and padded and kind in ("bert", "modernbert", "deberta-v2")


ENGINES = {"onepass": OnePass, "vmap": Reference, "loop": lambda model, targets: Reference(model, targets, loop=True)}


@pytest.mark.parametrize(
    ("engine", "kind", "tied", "attention", "padded"),
    cases.mostly_full(
        (
            (e, *m, p)
            for e in ENGINES
            for m in MODELS
            for p in (False, True)
            if e != "onepass" or m[0] in cases.ONE_PASS
        ),
        chosen,
    ),
)
def test_exact_per_cell_sentence_and_grand_mean(engine, kind, tied, attention, padded):
    objective, batch = study(kind, tied, attention, padded)
    targets = select(objective.model)
    errors = oracle.errors(ENGINES[engine](objective.model, targets), objective, batch, targets, COUNTS)
    assert {name: error for name, error in errors.items() if error > oracle.EXACT} == {}
    gradients = oracle.explicit(objective.losses, batch, targets)
    whole = torch.stack([g.norm() for g in gradients]).norm()
    zeros = [t.name for t, g in zip(targets, gradients, strict=True) if g.norm() < 1e-12 * whole]
    # Adding a constant to all keys leaves attention as it is; an untied BERT head has a bias that it never uses.
    keys = ("attention.self.key.bias", "attention.key.bias", "k_lin.bias", "pos_key_proj.bias")
    expected = [n for n, _ in objective.model.named_parameters() if n.endswith(keys)]
    if not tied:
        expected += [n for n in HEAD_BIASES if n in dict(objective.model.named_parameters())]
    assert sorted(zeros) == sorted(expected)


def test_deberta_goes_by_the_reference_engine():
    """Its relative positions have no dimension for the cells, and its broadcast cannot be expanded."""
    objective = cases.objective("deberta-v2", padded=True)
    with pytest.raises(EngineError, match="use --engine reference"):
        measure(objective, (4, 2), engine="onepass")
    measured = measure(objective, (4, 2))
    assert measured.engine == "reference"
    assert "the slow reference engine was used" in measured.notices[0]


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("kind", cases.ONE_PASS)
def test_vmap_runs_with_the_masks_that_the_model_builds(kind, padded):
    objective, batch = study(kind, True, "sdpa", padded)
    with torch.no_grad():
        torch.testing.assert_close(
            objective.losses(objective.for_vmap(batch)), objective.losses(batch), rtol=1e-12, atol=0
        )
    engine = Reference(objective.model, targets := select(objective.model), objective.for_vmap)
    oracle.accumulate(engine, objective.losses, batch, targets, COUNTS)
    assert engine.by_vmap


def test_masks_that_lose_the_sliding_window_are_noticed():
    """A plain 4-D mask makes ModernBERT's windows see everything; the losses tell, and every cell runs by itself."""
    objective, batch = study("modernbert", True, "sdpa", True)

    def plain(batch):
        full = objective.for_vmap(batch)
        rest = {name: x for name, x in full.items() if not name.startswith("attention_mask")}
        return rest | {"attention_mask": full["attention_mask.full_attention"]}

    engine = Reference(objective.model, targets := select(objective.model), plain)
    oracle.accumulate(engine, objective.losses, batch, targets, COUNTS)
    assert not engine.by_vmap


@pytest.mark.parametrize(
    ("kind", "padded"), cases.mostly_full(itertools.product(cases.ONE_PASS, (False, True)), lambda kind, padded: padded)
)
def test_float32_totals(kind, padded):
    """float32 keeps 24 bits; a sum over some thousand products may lose four decimal digits of its seven."""
    objective, batch = study(kind, True, "sdpa", padded)
    targets = select(objective.model)
    explicit = oracle.explicit(objective.losses, batch, targets)
    objective.model.float()
    single = oracle.accumulate(OnePass(objective.model, targets), objective.losses, batch, targets, COUNTS)
    norm2 = sum(g.square().sum((1, 2)) for g in explicit)
    within = sum(oracle.squares(g.view(*COUNTS, *t.shape))[:, 0] for g, t in zip(explicit, targets, strict=True))
    assert torch.allclose(sum(a.cell_norm2 for a in single).flatten(), norm2, rtol=1e-4)
    assert torch.allclose(sum(a.squares[:, 0] for a in single), within, rtol=1e-4)


@pytest.mark.parametrize(
    ("kind", "by_gram"),
    cases.mostly_full(
        itertools.product(cases.ONE_PASS, (False, True)),
        lambda kind, by_gram: kind in (("bert", "albert") if by_gram else ("bert", "modernbert", "albert")),
    ),
)
def test_chunks_and_blocks_change_nothing(kind, by_gram, monkeypatch):
    """Nor does it matter whether the cells of a Linear weight are formed; float64 has digits to subtract."""
    if by_gram:
        monkeypatch.setattr("gradvar.persample.onepass.gram_pays", lambda *sizes: True)
        monkeypatch.setattr("gradvar.persample.onepass._MEAN", 50)
        monkeypatch.setattr("gradvar.decomposition.accumulator._LEAST_LEFT", 1e-4)
    objective, batch = study(kind, True, "sdpa", True)
    targets = select(objective.model)

    def run(chunk, block):
        monkeypatch.setattr("gradvar.persample.onepass._BLOCK_CPU", block)
        accumulators = {
            id(t.parameter): MomentAccumulator(*t.shape, (SENTENCES, MASKS), torch.float64) for t in targets
        }
        engine = OnePass(objective.model, targets)
        for start in range(0, SENTENCES, chunk):
            part = {name: x[start * MASKS : (start + chunk) * MASKS] for name, x in batch.items()}
            engine.accumulate(objective.losses, part, accumulators, start)
        return [a.finish() for a in accumulators.values()]

    whole = run(SENTENCES, 1 << 20)
    for chunk, block in [(1, 1 << 20), (2, 40), (4, 1000), (3, 1)]:
        for target, a, b in zip(targets, whole, run(chunk, block), strict=True):
            scale = max(a.cell_norm2.max(), 1e-12)
            assert np.allclose(a.squares, b.squares, rtol=1e-9, atol=1e-12 * scale), target.name
            assert np.allclose(a.cell_norm2, b.cell_norm2, rtol=1e-9, atol=1e-12 * scale), target.name
            assert np.isclose(a.mean_norm2, b.mean_norm2, rtol=1e-9, atol=1e-12 * scale), target.name
            assert np.isclose(a.between, b.between, rtol=1e-9, atol=1e-12 * scale), target.name
            assert np.allclose(a.sketch_distance2, b.sketch_distance2, rtol=1e-9, atol=1e-12 * scale), target.name


def test_autograd_state_is_left_as_it_was():
    objective, batch = study("bert", True, "sdpa", False)
    frozen = objective.model.bert.embeddings.word_embeddings.weight.requires_grad_(False)
    targets = select(objective.model)
    oracle.accumulate(OnePass(objective.model, targets), objective.losses, batch, targets, COUNTS)
    assert not frozen.requires_grad
    assert all(p.requires_grad for p in objective.model.parameters() if p is not frozen)
    assert all(p.grad is None for p in objective.model.parameters())
    assert not any(m._forward_hooks for m in objective.model.modules())
