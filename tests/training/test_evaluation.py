"""The held-out loss: the same targets whatever a run trains on, the value of a plain loop, and no trace of it."""

import math

import pytest
import torch
import torch.nn.functional as F
from transformers import TrainerCallback

from gradvar.measure import sampling_order
from gradvar.training.evaluation import evaluate
from gradvar.training.recipe import Evaluation, Masking
from tests.training import runs

VALID = runs.data(20, seed=1)


def targets(made, masks=2):
    """What the model is asked for: positions, tokens and corrupted input of some cells."""
    return made.held_out.studied(VALID).draw(range(20), (masks,), 0)


def test_every_run_is_asked_for_the_same_targets(tmp_path):
    """Whatever its proposal, seed, mask rate, batch or encoder; so two runs' losses can be compared."""
    one = runs.trainer(tmp_path)
    others = [
        runs.trainer(tmp_path, "mapnet/pps", seed=7, mask_rate=0.5, per_device_train_batch_size=4),
        runs.trainer(tmp_path, "uniform/disjoint:2", train=runs.data(16, seed=3), rate=0.0),
        runs.trainer(tmp_path, Masking(proposal="logit/pps", replacement=(100, 0, 0), weighting="token")),
        runs.trainer(tmp_path, "uniform/epoch-stratified", model=runs.encoder(dtype=torch.float64)),
    ]
    others[1].train()
    for other in others:
        assert runs.differences(targets(one), targets(other)) == []
    assert one.evaluate(VALID)["eval_loss"] == pytest.approx(others[0].evaluate(VALID)["eval_loss"], abs=0)
    assert one.evaluate(VALID)["eval_loss"] == others[2].evaluate(VALID)["eval_loss"]
    assert one.evaluate(VALID)["eval_loss"] != others[1].evaluate(VALID)["eval_loss"]


def test_the_targets_are_fifteen_percent_of_a_sentence_whatever_the_training_masks(tmp_path):
    cells = targets(runs.trainer(tmp_path, "mapnet/pps", mask_rate=0.5), masks=1)
    lengths = [len(row["input_ids"]) - 2 for row in VALID]
    found = (cells["target_weights"] > 0).sum(dim=1).tolist()
    assert found == [max(1, math.floor(0.15 * length + 0.5)) for length in lengths]
    assert cells["target_weights"].sum(dim=1).tolist() == pytest.approx([1.0] * 20)
    rows = runs.data(400, seed=5)
    cells = runs.trainer(tmp_path).held_out.studied(rows).draw(range(400), (1,), 0)
    places = cells["target_positions"][cells["target_weights"] > 0]
    assert set(places.tolist()) == set(range(1, 11))  # all but [CLS] and [SEP], somewhere


@pytest.mark.parametrize(("masks", "batch", "sentences"), [(1, 64, 512), (3, 4, 512), (2, 1, 7)])
def test_loss_and_accuracy_are_those_of_a_plain_loop(tmp_path, masks, batch, sentences):
    """A sentence at a time, logits at all positions; errors are those of a mean over sentences."""
    made = runs.trainer(tmp_path, "mapnet/pps")
    made.evaluation = Evaluation(sentences=sentences, masks=masks)
    made.args.per_device_eval_batch_size = batch
    model = made.joint.encoder.eval()
    losses, hits = [], []
    for row in sampling_order(20, 0)[:sentences]:
        loss = hit = 0.0
        cells = made.held_out.studied(VALID).draw([row], (masks,), 0)
        for cell in range(masks):
            places = cells["target_positions"][cell][cells["target_weights"][cell] > 0]
            true = torch.tensor(VALID[int(row)]["input_ids"])[places]
            with torch.no_grad():
                logits = model(input_ids=cells["input_ids"][cell : cell + 1]).logits[0, places]
            loss += F.cross_entropy(logits, true).item() / masks
            hit += (logits.argmax(dim=-1) == true).double().mean().item() / masks
        losses.append(loss)
        hits.append(hit)
    found = made.evaluate(VALID)
    n = len(losses)
    for name, values in (("loss", losses), ("accuracy", hits)):
        mean = sum(values) / n
        spread = math.sqrt(sum((x - mean) ** 2 for x in values) / (n - 1))
        assert found[f"eval_{name}"] == pytest.approx(mean, rel=1e-5)
        assert found[f"eval_{name}_se"] == pytest.approx(spread / math.sqrt(n), rel=1e-4)
    assert found["eval_perplexity"] == pytest.approx(math.exp(sum(losses) / n), rel=1e-5)


def test_an_evaluation_leaves_no_trace(tmp_path):
    """Random numbers, modes of modules, gradients, weights, what the MAPNet knows, counts: all as before."""
    made = runs.trainer(tmp_path, runs.DRAWN)
    made.train()
    joint = made.joint.train()
    joint.encoder.bert.embeddings.eval()  # a mode of its own, as for a part that is frozen
    for p in joint.parameters():
        p.grad = torch.ones_like(p)

    def traces():
        return [
            runs.random_numbers(),
            {name: module.training for name, module in joint.named_modules()},
            {name: p.grad.clone() for name, p in joint.named_parameters()},
            {name: x.clone() for name, x in joint.state_dict().items()},
            joint.state(),
            (made.tokens, made.elapsed, len(joint.tallies)),
        ]

    before = traces()
    assert len({*before[1].values()}) == 2
    made.evaluate()
    made.evaluate(VALID, metric_key_prefix="other")
    assert runs.differences(before, traces()) == []


def test_a_run_that_evaluates_is_the_run_that_does_not(tmp_path):
    quiet, often = tmp_path / "quiet", tmp_path / "often"
    runs.trainer(quiet, "mapnet/pps").train()
    runs.trainer(often, "mapnet/pps", eval_strategy="steps", eval_steps=1).train()
    one, other = runs.everything(quiet), runs.everything(often)
    assert sum("eval_loss" in line for line in other["metrics"]) == 11
    other["metrics"] = [line for line in other["metrics"] if "eval_loss" not in line]
    for part in (one, other):
        del part["trainer_state.json"]
    assert runs.differences(one, other) == []


def test_the_best_checkpoint_is_kept_and_loaded(tmp_path):
    """`load_best_model_at_end`, with a learning rate that destroys the model after a while."""

    class Destroying(TrainerCallback):
        def on_step_begin(self, args, state, control, model=None, **_):
            if state.global_step >= 6:
                for p in model.encoder.parameters():
                    p.data += torch.randn_like(p)

    best = {"metric_for_best_model": "loss", "greater_is_better": False, "load_best_model_at_end": True}
    every = {"eval_strategy": "steps", "eval_steps": 2, "save_steps": 2, "save_total_limit": 2}
    made = runs.trainer(tmp_path, callbacks=[Destroying()], max_steps=12, learning_rate=1e-2, **best, **every)
    made.train()
    lines = [line for line in runs.metrics(tmp_path) if "eval_loss" in line]
    losses = {line["step"]: line["eval_loss"] for line in lines[:6]}
    assert min(losses, key=losses.get) == 6
    assert made.evaluate()["eval_loss"] == losses[6]
    kept = {path.name for path in tmp_path.glob("checkpoint-*")}
    assert {"checkpoint-12", "checkpoint-6"} <= kept <= {"checkpoint-12", "checkpoint-10", "checkpoint-6"}


def test_the_masks_of_a_sentence_are_averaged_before_its_error_is_taken(tmp_path):
    """More masks of a sentence lower no error but that of the masks; the batch is of no account."""
    made = runs.trainer(tmp_path)
    objective = made.held_out.studied(VALID)
    one, other = (evaluate(objective, 20, masks=4, batch=batch) for batch in (3, 80))
    assert one.sentences == 20
    assert one.loss == pytest.approx(other.loss, rel=1e-6)
    assert one.loss_error == pytest.approx(other.loss_error, rel=1e-5)
