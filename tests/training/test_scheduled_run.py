"""A run whose mask rate and sequence length change: what it is shown, what it is judged by, and going on with it."""

import json
import shutil
from pathlib import Path

import pytest

from gradvar import MaskedLM, checkpoints
from gradvar.masking.uniform import target_count
from gradvar.training.evaluation import MASK_RATE, evaluate
from gradvar.training.joint import JointModel
from gradvar.training.schedule import Schedule
from tests.training import runs

RATES = Schedule("linear", (0.0, 0.5), (0.6, 0.2))
LENGTHS = Schedule("steps", (0.0, 0.3, 0.7), (4, 6, 12))
SCHEDULES = [f"masking.mask_rate={RATES}", f"training.max_length={LENGTHS}"]
DETERMINED = [f"model.config.{name}=0.0" for name in ("hidden_dropout_prob", "attention_probs_dropout_prob")]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = runs.make_place(tmp_path_factory.mktemp("place"))
    return runs.write_recipe(place, masking={"proposal": runs.DRAWN}, saving={"keep": 9})


@pytest.fixture(scope="module")
def run(place):
    """A run of 14 steps, and for each forward pass in training: its step, `[rows, positions]`, and targets of a row."""
    shown, forward = [], JointModel.forward

    def spied(joint, ids, row, epoch, step):
        sentences = joint.sentences(ids, row, epoch, step)
        assert sentences.counts.tolist() == target_count(sentences.totals, joint.mask_rate).tolist()
        shown.append((int(step[0]), tuple(ids.shape), joint.mask_rate, len(set(row.tolist()))))
        return forward(joint, ids, row, epoch, step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(JointModel, "forward", spied)
        assert runs.command(runs.words(place, place / "run", *SCHEDULES, *DETERMINED)) == 0
    return place / "run", shown


def test_lengths_and_mask_rates_step_by_step(run):
    """Of 14 steps, 4.2 and 9.8 are where the length changes; the batch is 8 sequences of 12 tokens."""
    _, shown = run
    assert [step for step, *_ in shown] == list(range(14))
    assert [shape for _, shape, _, _ in shown] == [(24, 4)] * 4 + [(16, 6)] * 6 + [(8, 12)] * 4
    assert [rate for _, _, rate, _ in shown] == pytest.approx([RATES.at(step / 14) for step in range(14)])
    assert all(rows == shape[0] for _, shape, _, rows in shown)  # no two pieces share their masks


def test_it_is_judged_by_uniform_masks_of_full_sequences(run, place):
    folder, _ = run
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    judged = [line for line in lines if "eval_loss" in line]
    assert [line["step"] for line in judged] == [5, 10, 14]
    for line in judged[-1:]:
        objective = MaskedLM.from_checkpoint(
            checkpoints.folder_of(folder, line["step"]), place / "valid.txt", max_length=12, mask_rate=MASK_RATE
        )
        found = evaluate(objective, 12)
        assert line["eval_loss"] == pytest.approx(found.loss, rel=1e-6)
    logged = [(line["step"], line["mask_rate"]) for line in lines if "mask_rate" in line]
    assert logged == [(step, pytest.approx(RATES.at((step - 1) / 14))) for step in (3, 6, 9, 12)]


@pytest.mark.parametrize("step", [4, 8])
def test_it_is_gone_on_with_bit_for_bit(run, place, step, tmp_path):
    """From the first step of another length, and from the middle of a phase."""
    folder, _ = run
    shutil.copytree(folder, tmp_path / "run")
    for checkpoint in checkpoints.whole(tmp_path / "run"):
        if checkpoints.step_of(checkpoint) > step:
            shutil.rmtree(checkpoint)
    assert runs.command(runs.resuming(place, tmp_path / "run")) == 0
    assert runs.differences(runs.everything(tmp_path / "run"), runs.everything(folder)) == []


def test_workers_and_micro_batches_change_nothing_but_rounding(run, place, tmp_path):
    folder, _ = run
    alone = [*SCHEDULES, *DETERMINED, "training.accumulation=2", "training.workers=1"]
    assert runs.command(runs.words(place, tmp_path / "run", *alone)) == 0
    one, other = (runs.metrics(path)[-1]["eval_loss"] for path in (folder, tmp_path / "run"))
    assert one == pytest.approx(other, rel=1e-5)


def test_it_says_what_it_does(place, capsys, tmp_path):
    assert runs.command(runs.words(place, tmp_path / "run", *SCHEDULES, "training.steps=2")) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert f"the mask rate is {RATES} by the share of the budget" in said


def test_a_budget_in_tokens(place, tmp_path):
    words = runs.words(place, tmp_path / "run", SCHEDULES[1], "--tokens", "800")
    assert runs.command(words) == 0
    end = runs.metrics(tmp_path / "run")[-1]
    assert 800 <= end["tokens"] < 800 + 3 * 96
    assert Path(tmp_path / "run" / f"checkpoint-{end['step']}").is_dir()
