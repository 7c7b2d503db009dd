"""Looking at the variance of a model in training: what a look says, and that the run does not notice."""

import json
import random
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from gradvar import checkpoints, ranks
from gradvar.comparing import compare
from gradvar.errors import GradvarError
from gradvar.huggingface.corpus import Corpus
from gradvar.huggingface.masked_lm import MaskedLM
from gradvar.masking.corruption import Replacement
from gradvar.measure import sampling_order
from gradvar.metrics import read_metrics
from gradvar.study import decompose
from gradvar.training import watch
from gradvar.training.recipe import Masking, Watch
from gradvar.training.watch import VarianceWatch, untouched
from tests import cases
from tests.training import runs

SPEC = Watch(every=4, sentences=8, masks=4, contexts=2)


def watched(out, proposal=runs.DRAWN, every=4, **arguments):
    """A trained run that was looked at."""
    trainer = runs.trainer(out, proposal, **arguments)
    trainer.add_callback(VarianceWatch(trainer, trainer.eval_dataset, SPEC.model_copy(update={"every": every})))
    trainer.train()
    return trainer


@pytest.mark.parametrize(
    "proposal",
    cases.mostly_full(["uniform/simple", "mapnet/pps", runs.DRAWN, "oracle/midzuno"], lambda name: name == runs.DRAWN),
)
def test_a_run_does_not_notice_that_it_is_looked_at(tmp_path, proposal):
    """Dropout is on: a random number taken by a look would show."""
    seen = watched(tmp_path / "seen", proposal, max_steps=6)
    unseen = runs.trainer(tmp_path / "unseen", proposal, max_steps=6)
    unseen.train()
    for one, other in zip(seen.joint.state_dict().values(), unseen.joint.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    assert seen.joint.state() == unseen.joint.state()
    mine, theirs = (trainer.optimizer.state_dict()["state"] for trainer in (seen, unseen))
    assert all(torch.equal(x, theirs[i][name]) for i, values in mine.items() for name, x in values.items())
    logged = [[line for line in read_metrics(tmp_path / name) if "loss" in line] for name in ("seen", "unseen")]
    assert [{**line, "seconds": 0} for line in logged[0]] == [{**line, "seconds": 0} for line in logged[1]]


def test_it_looks_at_the_beginning_every_so_many_steps_and_at_the_end(tmp_path):
    watched(tmp_path, "uniform/simple")
    looks = [line for line in read_metrics(tmp_path) if "watch/seconds" in line]
    assert [line["step"] for line in looks] == [0, 4, 8, 11]
    assert all(line["watch/seconds"] > 0 for line in looks)


@pytest.mark.parametrize("proposal", ["uniform/simple", pytest.param(runs.DRAWN, marks=pytest.mark.full)])
def test_a_resumed_run_looks_at_no_step_twice(tmp_path, proposal):
    watched(tmp_path, proposal)
    for step in (10, 11):
        checkpoints.remove(tmp_path / f"checkpoint-{step}")
    again = runs.trainer(tmp_path, proposal)
    again.add_callback(VarianceWatch(again, again.eval_dataset, SPEC))
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    looks = [line["step"] for line in read_metrics(tmp_path) if "watch/seconds" in line]
    assert looks == [0, 4, 8, 11]


PROPOSALS = ["uniform/simple", "mapnet^0.5/pps~0.1", "uniform/disjoint:2", "frequency/pps", "loss/pps"]


@pytest.mark.parametrize("proposal", cases.mostly_full(PROPOSALS, lambda name: name in PROPOSALS[:2]))
def test_what_it_says_is_what_the_commands_say(tmp_path, proposal):
    """Of the objective that is trained, whatever its corruption, weighting and scores."""
    masking = Masking(proposal=proposal, mask_rate=0.3, replacement=(100, 0, 0), weighting="token", contexts=3)
    trainer = runs.trainer(tmp_path, masking, max_steps=1)
    joint = trainer.joint
    corpus, text = (
        Corpus(tuple(np.array(row["input_ids"]) for row in rows), "", "", 12, 0.0)
        for rows in (trainer.eval_dataset, trainer.train_dataset)
    )
    order = sampling_order(len(corpus), 0)[:8]
    some = replace(corpus, sequences=tuple(corpus.sequences[i] for i in sorted(order)))
    options = {"mask_rate": 0.3, "replacement": Replacement(1, 0, 0), "weighting": "token", "mapnet": joint.mapnet}
    with untouched(joint):  # dropout is no level here
        objective, drawing = (
            MaskedLM(joint.encoder, cases.tokenizer(), rows, contexts=contexts, **options)
            for rows, contexts in ((corpus, 2), (some, 3))
        )
        drawing.token_counts = drawing.vocabulary.counts_in(text.sequences)
        study = decompose(objective, sentences=8, masks=4, headroom=True)
        row = compare(drawing, [proposal], sentences=8, masks=4, seed=0).proposals[-1]
    trainer.add_callback(VarianceWatch(trainer, trainer.eval_dataset, SPEC))
    trainer.train()
    found = read_metrics(tmp_path)[0]
    assert found["variance/mask"] == study.components["mask"].estimate
    assert found["variance/data_low"] == study.components["data"].low
    assert found["signal"] == study.gradient_norm2.estimate
    assert found["headroom/position"] == study.headroom["position"].estimate
    assert found.get("noise_scale/total") == study.noise_scale["total"].estimate
    assert ("mapnet/rank_correlation" in found) == (joint.mapnet is not None)
    assert ("mapnet/target_rank_correlation" in found) == (joint.mapnet is not None)
    assert found["step"] == 0
    if proposal == "uniform/simple":
        assert not any(name.startswith("proposal/") for name in found)
    else:
        assert found["proposal/variance_ratio"] == row.variance_ratio.estimate
        assert found["proposal/ess"] == row.ess.estimate


def test_epoch_stratified_masks_are_looked_at_as_the_uniform_ones_that_each_of_them_is(tmp_path):
    trainer = watched(tmp_path, "uniform/epoch-stratified", max_steps=1)
    last = [line for line in read_metrics(trainer.run) if "watch/seconds" in line][-1]
    assert last["variance/mask"] > 0
    assert "proposal/variance_ratio" not in last


def test_the_figures_are_json_and_finite(tmp_path):
    watched(tmp_path, max_steps=2)
    found = (tmp_path / "metrics.jsonl").read_text().splitlines()
    values = [value for line in found for value in json.loads(line, parse_constant=pytest.fail).values()]
    assert len(values) > 50
    assert all(isinstance(value, int | float) and np.isfinite(value) for value in values)


def test_looks_compare_the_same_sentences_under_other_masks(tmp_path, monkeypatch):
    """Or all looks of a run would share the luck of one set of masks."""
    seen = []

    def spied(drawing, proposals, *, sentences, masks, seed):
        seen.append(([row.tolist() for row in drawing.corpus.sequences], sentences, seed))
        return compare(drawing, proposals, sentences=sentences, masks=masks, seed=seed)

    monkeypatch.setattr(watch, "compare", spied)
    watched(tmp_path, "frequency/pps", max_steps=5)
    assert [seed for _, _, seed in seen] == [0, 4, 5]
    assert all(some == seen[0][0] and len(some) == count == 8 for some, count, _ in seen)


def test_a_look_that_fails_is_told_and_the_run_goes_on(tmp_path, monkeypatch):
    def fails(*_, **__):
        raise GradvarError("the loss is not finite")

    monkeypatch.setattr(watch, "decompose", fails)
    said = []
    trainer = runs.trainer(tmp_path, runs.DRAWN)
    trainer.add_callback(VarianceWatch(trainer, trainer.eval_dataset, SPEC, said.append))
    trainer.train()
    assert said == [f"note: nothing was seen at step {step}: the loss is not finite" for step in (0, 4, 8, 11)]
    assert [line["step"] for line in read_metrics(tmp_path) if "watch/seconds" in line] == [0, 4, 8, 11]
    assert checkpoints.step_of(checkpoints.last_whole(tmp_path)) == 11


def test_untouched_puts_everything_back(tmp_path):
    joint = runs.trainer(tmp_path, runs.DRAWN).joint
    joint.train()
    frozen = joint.encoder.bert.embeddings.LayerNorm
    frozen.eval()
    for parameter in joint.parameters():
        parameter.grad = torch.ones_like(parameter)
    gradients = [parameter.grad for parameter in joint.parameters()]
    expected = draws()
    with pytest.raises(ZeroDivisionError):
        spoil(joint)
    assert joint.encoder.training
    assert not frozen.training
    assert all(parameter.requires_grad for parameter in joint.parameters())
    assert all(parameter.grad is own for parameter, own in zip(joint.parameters(), gradients, strict=True))
    assert draws() == expected


def spoil(joint):
    with untouched(joint):
        assert not joint.encoder.training
        assert all(parameter.grad is None for parameter in joint.parameters())
        joint.mapnet.train()
        next(joint.parameters()).requires_grad = False
        random.random()
        np.random.random()
        torch.rand(1)
        raise ZeroDivisionError


def draws():
    """The next numbers of all generators, which are left as they are."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    found = random.random(), np.random.random(), float(torch.rand(()))
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])
    return found


def test_the_clock_of_the_run_stands_still(tmp_path, monkeypatch):
    """By a clock that goes on during looks alone."""
    now = [0.0]
    clock = SimpleNamespace(monotonic=lambda: now[0], perf_counter=time.perf_counter)
    monkeypatch.setattr("gradvar.training.clock.time", clock)

    def look(*_):
        now[0] += 100
        return {}

    monkeypatch.setattr(watch, "figures", look)
    trainer = watched(tmp_path, "uniform/simple", every=1, max_steps=3)
    assert now == [400.0]
    assert trainer.elapsed == 0


def test_a_rank_can_work_alone(monkeypatch):
    monkeypatch.setattr(ranks.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(ranks.dist, "get_rank", lambda: 3)
    monkeypatch.setattr(ranks.dist, "get_world_size", lambda: 5)
    assert (ranks.rank(), ranks.world()) == (3, 5)
    with ranks.alone():
        assert (ranks.rank(), ranks.world()) == (0, 1)
    assert (ranks.rank(), ranks.world()) == (3, 5)
