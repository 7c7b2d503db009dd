"""What a user's own script may do with the trainer and the joint model, and what it is told where it may not."""

import re
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
import torch
from transformers import TrainerCallback, TrainingArguments

from gradvar import checkpoints
from gradvar.errors import GradvarError
from gradvar.huggingface.masked_lm import MaskedLM
from gradvar.mapnet.network import MapNet
from gradvar.training.recipe import Masking
from gradvar.training.trainer import MaskProposalTrainer
from tests import cases
from tests.test_cli import ROOT
from tests.training import runs

# ---- a loop of one's own


def printed_loop():
    """The loop that docs/training.md prints."""
    page = (ROOT / "docs/training.md").read_text()
    return next(code for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "take_tallies" in code)


def test_the_printed_loop_trains_encoder_and_mapnet(tmp_path):
    torch.manual_seed(0)
    maker = runs.trainer(tmp_path, "mapnet/pps", max_steps=60)
    joint = maker.joint
    optimizer = torch.optim.AdamW(joint.parameters(), lr=1e-2)
    batches = (batch for batch, _ in zip(maker.get_train_dataloader(), range(60), strict=False))
    before = [p.detach().clone() for p in joint.mapnet.parameters()]
    first = joint(**next(iter(maker.get_train_dataloader())))["loss"].item()
    joint.take_tallies()
    exec(printed_loop(), {"joint": joint, "optimizer": optimizer, "batches": batches})
    assert joint(**next(iter(maker.get_train_dataloader())))["loss"].item() < first - 0.3
    assert all(not torch.equal(p, old) for p, old in zip(joint.mapnet.parameters(), before, strict=True))
    assert joint.state()["calibration"]["looks"] == 60


# ---- a folder that is used again


def test_a_new_run_in_the_folder_of_another_is_refused(tmp_path):
    runs.trainer(tmp_path, max_steps=6, save_steps=2, save_total_limit=2).train()
    again = runs.trainer(tmp_path, max_steps=5, save_steps=2, save_total_limit=2)
    with pytest.raises(GradvarError, match=r"checkpoint-6 is of a later step than 0.*give another output_dir"):
        again.train()
    with pytest.raises(GradvarError, match="checkpoint-6 is of a later step than 4"):
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert [path.name for path in checkpoints.whole(tmp_path)] == ["checkpoint-4", "checkpoint-6"]
    runs.trainer(tmp_path, max_steps=3, save_strategy="no").train()
    assert [path.name for path in checkpoints.whole(tmp_path)] == ["checkpoint-4", "checkpoint-6"]


def test_a_copy_of_a_checkpoint_can_be_gone_on_from_elsewhere(tmp_path):
    runs.trainer(tmp_path / "one", max_steps=6, save_steps=2).train()
    other = runs.trainer(tmp_path / "other", max_steps=6, save_steps=2)
    other.train(resume_from_checkpoint=str(tmp_path / "one" / "checkpoint-2"))
    assert [path.name for path in checkpoints.whole(tmp_path / "other")] == ["checkpoint-4", "checkpoint-6"]


# ---- optimizers and callbacks of one's own


def scheduled(parameters):
    optimizer = torch.optim.AdamW(parameters, lr=1e-3)
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)


def made(out, network=None, optimizers=(None, None), model=None, proposal="mapnet/pps", **options):
    given = {"per_device_train_batch_size": 8, "max_steps": 3, "report_to": "none", "disable_tqdm": True}
    given |= {"use_cpu": True, "save_strategy": "no", "logging_steps": 1}
    return MaskProposalTrainer(
        model or runs.encoder(),
        TrainingArguments(output_dir=str(out), **given | options),
        runs.data(),
        runs.data(20, seed=1),
        processing_class=cases.tokenizer(),
        masking=proposal,
        mapnet=runs.MAPNET,
        network=network,
        optimizers=optimizers,
    )


def test_a_schedule_that_does_not_know_the_mapnet_is_refused(tmp_path):
    encoder = runs.encoder()
    with pytest.raises(GradvarError, match="groups of their own, which a schedule that was made before does not know"):
        made(tmp_path, model=encoder, optimizers=scheduled(encoder.parameters()))


def test_a_schedule_that_knows_the_mapnet_is_followed(tmp_path):
    encoder = runs.encoder()
    network = MapNet(made(tmp_path).joint.mapnet.config)
    both = [*encoder.parameters(), *network.parameters()]
    trainer = made(tmp_path, network, scheduled(both), encoder)
    trainer.train()
    assert [group["lr"] for group in trainer.optimizer.param_groups] == [1e-3 / 8]
    assert trainer.joint.mapnet is network


def test_a_schedule_without_a_mapnet_is_followed(tmp_path):
    encoder = runs.encoder()
    trainer = made(tmp_path, model=encoder, optimizers=scheduled(encoder.parameters()), proposal="uniform/simple")
    trainer.train()
    assert [group["lr"] for group in trainer.optimizer.param_groups] == [1e-3 / 8]


class Saves(TrainerCallback):
    """Sees epochs, and asks for a checkpoint at the end."""

    def __init__(self):
        self.epochs = []

    def on_step_end(self, args, state, control, **_):
        self.epochs.append(state.epoch)
        control.should_save = state.global_step == state.max_steps


def test_a_users_callback_sees_the_epoch_and_may_ask_for_a_checkpoint(tmp_path):
    seen = Saves()
    runs.trainer(tmp_path, callbacks=[seen], max_steps=5, save_strategy="no").train()
    assert seen.epochs == pytest.approx([8 * step / runs.ROWS for step in range(1, 6)])
    assert checkpoints.last_whole(tmp_path).name == "checkpoint-5"


# ---- what stock scripts end with


def test_the_last_lines_of_a_stock_script_work(tmp_path):
    trainer = runs.trainer(tmp_path, "mapnet/pps", max_steps=2)
    result = trainer.train()
    trainer.save_model()
    trainer.log_metrics("train", result.metrics)
    trainer.save_metrics("train", result.metrics)
    trainer.save_state()
    trainer.create_model_card(tags="of-masks")
    assert "of-masks" in (tmp_path / "README.md").read_text()
    assert trainer.model is trainer.joint


def test_predict_is_refused(tmp_path):
    with pytest.raises(GradvarError, match="these sequences are unmasked; use evaluate"):
        runs.trainer(tmp_path).predict(runs.data(4))


# ---- data that are none


TEXT = datasets.Dataset.from_dict({"text": ["w1 w2"] * 20})
NOT_DATA = {
    "nothing": (None, "train_dataset is a NoneType; give a data set of tokenised sequences"),
    "an iterator": (iter(runs.data()), "train_dataset is a list_iterator, which can be gone through only once"),
    "several": ({"a": runs.data()}, r"train_dataset is a dict \(a\); give one data set"),
    "none": ([], "train_dataset holds no sequence"),
    "text": (TEXT, "sequence 0 of train_dataset has text; tokenise it: it needs input_ids"),
    "lists": ([[1, 2]] * 20, "sequence 0 of train_dataset is a list; tokenise it"),
    "batches": ([{"input_ids": [[2, 7, 3]]}] * 20, "input_ids of sequence 0 of train_dataset are no list of tokens"),
    "another vocabulary": ([{"input_ids": [2, 7, 60, 3]}] * 20, "holds token 60, which is none of the tokenizer's 60"),
    "a file's name": ("text.txt", r"train_dataset is text \('text.txt'\); give tokenised sequences"),
    "words": ([{"input_ids": ["w1", "w2"]}] * 20, "input_ids of sequence 0 of train_dataset are no list of tokens"),
    "a mask of another length": ([{"input_ids": [2, 7, 3], "attention_mask": [1, 1]}] * 20, "no list of tokens"),
    "a mask of all": ([{"input_ids": [2, 7, 3], "attention_mask": [0, 0, 0]}] * 20, "or are all masked"),
    "a negative token": ([{"input_ids": [2, -100, 3]}] * 20, "holds token -100"),
    "too long": ([{"input_ids": [2, *[7] * 80, 3]}] * 20, r"has 82 tokens, beyond the \d+ positions of the model"),
}


@pytest.mark.parametrize(("train", "words"), NOT_DATA.values(), ids=list(NOT_DATA))
def test_what_are_no_sequences_is_said_in_one_line(tmp_path, train, words):
    given = TrainingArguments(output_dir=str(tmp_path), max_steps=1, use_cpu=True, report_to="none")
    with pytest.raises(GradvarError, match=words) as caught:
        MaskProposalTrainer(runs.encoder(), given, train, processing_class=cases.tokenizer())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_sequence_further_on_is_refused_when_it_is_loaded(tmp_path, workers):
    rows = [*runs.data(300), {"input_ids": [2, 7, 60, 3]}]
    trainer = runs.trainer(tmp_path, train=rows, max_steps=40, dataloader_num_workers=workers)
    with pytest.raises(GradvarError, match="sequence 300 of train_dataset holds token 60"):
        trainer.train()


def test_held_out_data_are_looked_at_as_well(tmp_path):
    with pytest.raises(GradvarError, match="sequence 0 of eval_dataset has text"):
        runs.trainer(tmp_path, valid=TEXT)
    trainer = runs.trainer(tmp_path)
    for given, words in (({"a": runs.data()}, "eval_dataset is a dict"), ([], "eval_dataset holds no sequence")):
        with pytest.raises(GradvarError, match=words):
            trainer.evaluate(given)


def test_no_tokenizer(tmp_path):
    given = TrainingArguments(output_dir=str(tmp_path), max_steps=1, use_cpu=True, report_to="none")
    with pytest.raises(GradvarError, match="processing_class is None; give the tokenizer"):
        MaskProposalTrainer(runs.encoder(), given, runs.data(), processing_class=None)


def test_a_transform_of_the_users_is_kept(tmp_path):
    rows = runs.data()
    numbered = datasets.Dataset.from_dict({"row": list(range(len(rows)))})
    numbered.set_transform(lambda some: {"input_ids": [rows[i]["input_ids"] for i in some["row"]]})
    runs.trainer(tmp_path / "transformed", train=numbered).train()
    runs.trainer(tmp_path / "plain", train=rows).train()
    found = [runs.everything(tmp_path / name) for name in ("transformed", "plain")]
    assert runs.differences(*found) == []


# ---- budgets in seconds


@pytest.mark.parametrize("seconds", [0, -1, float("nan")])
def test_no_seconds(tmp_path, seconds):
    with pytest.raises(GradvarError, match=r"seconds is none; give more than 0"):
        runs.trainer(tmp_path, seconds=seconds)


def test_a_schedule_in_steps_does_not_go_with_seconds(tmp_path):
    options = {"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": {"num_decay_steps": 2}}
    with pytest.raises(GradvarError, match="has no number of steps to give num_decay_steps of"):
        runs.trainer(tmp_path, seconds=5, **options)


# ---- what a checkpoint of a script is to the commands


def test_its_checkpoints_say_how_long_sequences_were(tmp_path):
    runs.trainer(tmp_path / "run", max_steps=1).train()
    text = tmp_path / "text.txt"
    text.write_text(" ".join(f"w{i % 40}" for i in range(200)))
    for folder, length in ((tmp_path / "run", 12), (Path(cases.save_checkpoint(tmp_path / "plain")), 128)):
        try:
            found = MaskedLM.from_checkpoint(folder, text).corpus.max_length
        except GradvarError as refusal:  # of a model that takes no more than 64
            found = int(re.findall(r"--max-length (\d+)", str(refusal))[0])
        assert found == length
    assert MaskedLM.from_checkpoint(tmp_path / "run", text, max_length=20).corpus.max_length == 20


def test_token_counts_are_of_the_text_that_is_trained_on(tmp_path):
    trainer = runs.trainer(tmp_path, Masking(proposal="frequency/pps", mask_rate=0.3))
    counts = torch.zeros(60, dtype=torch.float64)
    for row in trainer.train_dataset:
        for token in row["input_ids"][1:-1]:
            counts[token] += 1
    assert torch.equal(trainer.held_out.trained(trainer.eval_dataset, 2).token_counts, counts)


RAISES = """
import pathlib, sys, transformers
from tests.training import runs
class Raises(transformers.TrainerCallback):
    def on_step_end(self, *_, **__):
        raise ZeroDivisionError
runs.trainer(pathlib.Path(sys.argv[1]), callbacks=[Raises()], dataloader_num_workers=1).train()
"""


@pytest.mark.full
def test_a_script_that_raises_ends_with_its_workers(tmp_path):
    """They are deaf to signals to the group, but not when the script is ending."""
    script = [sys.executable, "-c", RAISES, str(tmp_path)]
    done = subprocess.run(script, cwd=ROOT, timeout=60, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr
