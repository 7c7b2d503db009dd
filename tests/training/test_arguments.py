"""What `TrainingArguments` say is done, or refused by name; a user's own optimizer, best checkpoints, epochs."""

import os
import signal
from types import SimpleNamespace

import pytest
import torch
from transformers import EarlyStoppingCallback

from gradvar import checkpoints
from gradvar.errors import GradvarError
from gradvar.metrics import read_metrics
from gradvar.training import sequences
from gradvar.training.recipe import MapNetTraining, Masking
from gradvar.training.trainer import MaskProposalTrainer
from tests import cases
from tests.training import runs


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"fp16": True}, r"fp16=True\) is not supported: take bf16"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor"),
        ({"neftune_noise_alpha": 5.0}, "neftune_noise_alpha"),
        ({"auto_find_batch_size": True}, "auto_find_batch_size"),
        ({"train_sampling_strategy": "group_by_length"}, "train_sampling_strategy"),
        ({"data_seed": 3}, "data_seed"),
        ({"warmup_steps": 100, "seconds": 5.0}, "takes warmup_steps as a share"),
    ],
)
def test_what_cannot_hold_is_refused_by_name(tmp_path, arguments, words):
    with pytest.raises(GradvarError, match=words):
        runs.trainer(tmp_path, **arguments)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_parameters_of_half_precision_are_refused(tmp_path, dtype):
    """In which from_pretrained loads a checkpoint that was saved so."""
    with pytest.raises(GradvarError, match=rf"parameters are {str(dtype)[6:]}.*dtype=torch.float32.*bf16=True"):
        runs.trainer(tmp_path, model=runs.encoder(dtype=dtype))


def test_a_dict_of_held_out_texts_is_refused(tmp_path):
    with pytest.raises(GradvarError, match="eval_dataset is a dict"):
        runs.trainer(tmp_path, valid={"a": runs.data(3)})


def test_the_users_arguments_stay_as_they_are(tmp_path):
    made = runs.trainer(tmp_path, seconds=1.0)
    args = made.args
    again = MaskProposalTrainer(
        runs.encoder(), args, runs.data(), processing_class=cases.tokenizer(), masking="uniform/simple"
    )
    assert again.args is not args
    args.max_steps = 3
    assert again.args.max_steps != 3


def test_strategies_by_epoch_act_at_every_epoch(tmp_path):
    """30 sequences, 8 a step: an epoch ends within the 4th, 8th and 12th step."""
    by_epoch = dict.fromkeys(("eval_strategy", "save_strategy", "logging_strategy"), "epoch")
    runs.trainer(tmp_path, max_steps=-1, num_train_epochs=3, **by_epoch).train()
    assert [path.name for path in checkpoints.whole(tmp_path)] == [f"checkpoint-{step}" for step in (4, 8, 12)]
    lines = read_metrics(tmp_path)
    assert [line["step"] for line in lines if "eval_loss" in line] == [4, 8, 12]
    assert [line["step"] for line in lines if "loss" in line] == [4, 8, 12]


def test_the_best_checkpoint_is_loaded_at_the_end(tmp_path):
    """With a learning rate that ruins the model, the first one is; all that is kept knows where it is."""
    best = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 4, "save_steps": 4}
    made = runs.trainer(
        tmp_path, runs.DRAWN, learning_rate=0.5, max_steps=8, save_total_limit=1, **best, lr_scheduler_type="constant"
    )
    made.train()
    losses = {line["step"]: line["eval_loss"] for line in read_metrics(tmp_path) if "eval_loss" in line}
    step = min(losses, key=losses.get)
    assert made.state.best_model_checkpoint == str(tmp_path / f"checkpoint-{step}")
    assert made.evaluate()["eval_loss"] == losses[step]
    assert made.tokens == next(line["tokens"] for line in read_metrics(tmp_path) if line["step"] == 8)
    assert checkpoints.is_whole(tmp_path / f"checkpoint-{step}")


def test_early_stopping_works_as_in_any_trainer(tmp_path):
    best = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 2, "save_steps": 2}
    made = runs.trainer(
        tmp_path,
        learning_rate=3.0,
        max_steps=40,
        lr_scheduler_type="constant",
        callbacks=[EarlyStoppingCallback(early_stopping_patience=2)],
        **best,
    )
    made.train()
    assert made.state.global_step < 40


def test_an_optimizer_of_ones_own_trains_the_mapnet_too(tmp_path):
    model = runs.encoder()
    own = torch.optim.SGD(model.parameters(), lr=0.01)
    made = MaskProposalTrainer(
        model,
        runs.trainer(tmp_path).args,
        runs.data(),
        processing_class=cases.tokenizer(),
        masking=Masking(proposal=runs.DRAWN, mask_rate=0.3),
        mapnet=runs.MAPNET,
        optimizers=(own, None),
    )
    before = [p.clone() for p in made.joint.mapnet.parameters()]
    made.train()
    moved = [not torch.equal(p, q) for p, q in zip(made.joint.mapnet.parameters(), before, strict=True)]
    assert sum(moved) > len(moved) / 2
    assert [group["lr"] for group in own.param_groups[1:]] == pytest.approx([0.0, 0.0], abs=0.01)  # its own, decayed


def test_a_finished_run_stays_as_it_is(tmp_path):
    runs.trainer(tmp_path).train()
    made = runs.trainer(tmp_path)
    assert made.train(resume_from_checkpoint=True).global_step == 11
    assert [path.name for path in checkpoints.whole(tmp_path)] == ["checkpoint-5", "checkpoint-10", "checkpoint-11"]


def test_gradient_checkpointing_changes_nothing(tmp_path):
    ends = []
    for on in (False, True):
        made = runs.trainer(tmp_path / str(on), rate=0.0, gradient_checkpointing=on)
        made.train()
        assert made.joint.encoder.is_gradient_checkpointing == on
        ends.append(made.joint.encoder.state_dict())
    for name, x in ends[0].items():
        torch.testing.assert_close(ends[1][name], x, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("proposal", "target"), [(runs.DRAWN, "gradient"), ("oracle/pps", "logit"), ("logit/pps", "logit")]
)
def test_mixed_precision_measures_in_full_precision(tmp_path, proposal, target):
    made = MaskProposalTrainer(
        runs.encoder(),
        runs.trainer(tmp_path, bf16=True, max_steps=3).args,
        runs.data(),
        processing_class=cases.tokenizer(),
        masking=Masking(proposal=proposal, mask_rate=0.3),
        mapnet=MapNetTraining(target=target, shape=runs.SHAPE),
    )
    made.train()
    assert made.state.global_step == 3
    assert made._skipped == 0


def test_the_mapnet_rests_where_nothing_was_measured(tmp_path):
    """Neither momentum nor weight decay moves it then."""
    made = MaskProposalTrainer(
        runs.encoder(),
        runs.trainer(tmp_path, max_steps=9).args,
        runs.data(),
        processing_class=cases.tokenizer(),
        masking=Masking(proposal=runs.DRAWN, mask_rate=0.3),
        mapnet=MapNetTraining(target="gradient", every=3, shape=runs.SHAPE),
    )
    made.train()
    steps = {float(made.optimizer.state[p]["step"]) for p in made.joint.mapnet.parameters()}
    assert steps == {2.0}  # of the looks at 0, 3 and 6 the first one gives the scale
    assert {float(made.optimizer.state[p]["step"]) for p in made.joint.encoder.parameters()} == {9.0}


@pytest.mark.parametrize(
    "proposal", cases.mostly_full(["oracle/pps", "logit/midzuno", runs.DRAWN], lambda name: name == "logit/midzuno")
)
def test_a_measured_score_that_is_not_finite_skips_the_step(tmp_path, monkeypatch, proposal):
    made = runs.trainer(tmp_path, proposal)
    draw, calls = made.joint.draw, iter(range(99))

    def sometimes(*arguments):
        if next(calls) not in (2, 3):
            return draw(*arguments)
        table = made.joint.encoder.get_input_embeddings().weight
        with torch.no_grad():
            kept = table.clone()
            table.fill_(float("nan"))
            try:
                return draw(*arguments)
            finally:
                table.copy_(kept)

    monkeypatch.setattr(made.joint, "draw", sometimes)
    made.train()
    assert made._skipped == 2
    assert made.state.global_step == 11


def test_several_gpus_without_torchrun_are_one(tmp_path, monkeypatch):
    args = runs.trainer(tmp_path).args
    monkeypatch.setattr(type(args), "device", SimpleNamespace(type="cuda"))
    from gradvar.training.arguments import adapted

    args._n_gpu = 4
    assert adapted(args, runs.encoder(), None)._n_gpu == 1
    assert args._n_gpu == 4


def test_workers_leave_signals_to_the_main_process_until_it_ends(monkeypatch):
    ended = []
    monkeypatch.setattr("gradvar.training.sequences.os._exit", ended.append)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    deaf = sequences._Deaf()
    try:
        deaf(0)
        for number in before:
            os.kill(os.getpid(), number)
        assert ended == []
        deaf._ending.set()
        os.kill(os.getpid(), signal.SIGTERM)
        assert ended == [0]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
