"""The trainer in one process: steps that are no step, checkpoints whatever happens, clocks, and a user's own script."""

import copy
import errno
import math
import os
import resource
import signal
import subprocess
import sys
from types import SimpleNamespace

import datasets
import pytest
import safetensors
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer, TrainerCallback, TrainingArguments

from gradvar import checkpoints
from gradvar.errors import GradvarError
from gradvar.mapnet.network import MapNet
from gradvar.training import clock as clock_module
from gradvar.training import trainer as module
from gradvar.training.trainer import MaskProposalTrainer
from tests import cases
from tests.training import runs

# ---- steps without a finite loss or gradient


class Watching(TrainerCallback):
    """Compares everything that a step may change, before and after it."""

    def __init__(self):
        self.trainer, self.unchanged = None, []

    def _state(self):
        t = self.trainer
        parts = [dict(t.joint.state_dict()), t.optimizer.state_dict()["state"], t.joint.state(), t.tokens]
        return copy.deepcopy(parts)

    def on_step_begin(self, args, state, control, **_):
        self._before = self._state()

    def on_step_end(self, args, state, control, **_):
        if not runs.differences(self._before, self._state()):
            self.unchanged.append(state.global_step - 1)


@pytest.fixture
def poisoned(monkeypatch):
    """Make a trainer some steps of which have a loss, or a gradient, that is not finite."""

    def make(out, kind, steps, **options):
        watching = Watching()
        made = runs.trainer(out, runs.DRAWN, callbacks=[watching], **options)
        watching.trainer = made
        forward = made.joint.forward
        owner = made.joint.mapnet if kind == "gradient of the MAPNet" else made.joint.encoder
        *_, parameter = (p for p in owner.parameters() if p.requires_grad)

        def broken(ids, row, epoch, step):
            found = forward(ids, row, epoch, step)
            if int(step[0]) not in steps:
                return found
            if kind.startswith("gradient"):
                hook = parameter.register_hook(lambda gradient: (hook.remove(), gradient * math.nan)[1])
                return found
            return {"loss": found["loss"] * {"loss": math.nan, "infinite loss": math.inf}[kind]}

        monkeypatch.setattr(made.joint, "forward", broken)
        return made, watching

    return make


@pytest.mark.parametrize(
    "kind",
    cases.mostly_full(
        ["loss", "infinite loss", "gradient", "gradient of the MAPNet"], lambda kind: kind.startswith("gradient")
    ),
)
def test_a_step_that_is_not_finite_changes_nothing(tmp_path, poisoned, kind):
    """Neither weights nor the optimizer's moments and counts, nor what the MAPNet knows; the first step, too."""
    made, watching = poisoned(tmp_path, kind, {0, 4, 5}, logging_steps=2)
    made.train()
    assert watching.unchanged == [0, 4, 5]
    state, encoder = made.optimizer.state, set(made.joint.encoder.parameters())
    assert {float(each["step"]) for parameter, each in state.items() if parameter in encoder} == {8.0}
    # The scale of the MAPNet's targets is known from its second step on.
    assert {float(each["step"]) for parameter, each in state.items() if parameter not in encoder} == {7.0}
    assert all(p.isfinite().all() for p in made.joint.parameters())
    assert runs.metrics(tmp_path)[-1]["skipped_steps"] == 3


def test_a_poisoned_micro_batch_takes_its_whole_step_along(tmp_path, monkeypatch):
    made = runs.trainer(tmp_path, per_device_train_batch_size=4, gradient_accumulation_steps=2)
    forward, calls = made.joint.forward, iter(range(99))
    factor = {4: math.nan}  # the first half of the third step
    monkeypatch.setattr(
        made.joint, "forward", lambda **x: {"loss": forward(**x)["loss"] * factor.get(next(calls), 1.0)}
    )
    made.train()
    assert {float(state["step"]) for state in made.optimizer.state.values()} == {10.0}
    assert runs.metrics(tmp_path)[-1]["skipped_steps"] == 1


def test_metrics_make_up_no_loss_where_all_steps_were_skipped(tmp_path, poisoned):
    poisoned(tmp_path, "loss", {3, 4, 5}, logging_steps=3)[0].train()
    lines = {line["step"]: line for line in runs.metrics(tmp_path)}
    assert [lines[step]["skipped_steps"] for step in (3, 6, 9)] == [0, 3, 3]
    assert lines[6].get("loss") is None
    assert 3 < lines[3]["loss"] < 6


def test_ten_steps_in_a_row_end_the_run_and_nine_do_not(tmp_path, poisoned):
    made, watching = poisoned(tmp_path / "nine", "loss", set(range(1, 10)))
    made.train()
    assert watching.unchanged == list(range(1, 10))
    options = {"max_steps": 40, "save_steps": 4, "save_total_limit": 1}
    made, _ = poisoned(tmp_path / "ten", "loss", set(range(4, 99)), **options)
    with pytest.raises(GradvarError, match=r"10 steps in a row gave no finite loss.*checkpoint-4 is whole: lower the"):
        made.train()
    assert [path.name for path in checkpoints.whole(tmp_path / "ten")] == ["checkpoint-4"]  # not of a skipped step
    made, _ = poisoned(tmp_path / "none", "loss", set(range(99)), max_steps=40, save_strategy="no")
    with pytest.raises(GradvarError, match="no checkpoint was written yet"):
        made.train()


def test_what_was_skipped_is_counted_across_a_resume(tmp_path, poisoned):
    poisoned(tmp_path, "loss", {2, 3})[0].train()
    checkpoints.remove(tmp_path / "checkpoint-11")
    runs.trainer(tmp_path, runs.DRAWN).train(resume_from_checkpoint=True)
    assert runs.metrics(tmp_path)[-1] | {"skipped_steps": 2} == runs.metrics(tmp_path)[-1]


# ---- a disk that is full, and an end in the middle of a save

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
POINTS = {
    "the staging folder": ("pathlib:Path.mkdir", FULL),
    "the encoder": (
        "transformers.modeling_utils:safe_save_file",
        safetensors.SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ),
    "the MAPNet": ("pathlib:Path.write_bytes", FULL),
    "the optimizer": ("torch:save", RuntimeError("PytorchStreamWriter failed writing file data/3: file write failed")),
    "the end of the optimizer": ("torch:save", RuntimeError("basic_ios::clear: iostream error")),
    "the rest": ("pathlib:Path.write_text", FULL),
    "a sync": ("os:fsync", OSError(errno.EIO, os.strerror(errno.EIO))),
    "the renaming": ("pathlib:Path.rename", FULL),
}


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    run = tmp_path_factory.mktemp("straight")
    runs.trainer(run, runs.DRAWN).train()
    return run


@pytest.mark.parametrize("point", POINTS)
def test_a_full_disk_is_one_line_and_the_last_checkpoint_stays(tmp_path, monkeypatch, point):
    place, error = POINTS[point]
    made = runs.trainer(tmp_path, runs.DRAWN)
    owner, name = runs.resolve(place)
    original = getattr(owner, name)

    def full(*arguments, **options):
        if made.state.global_step == 10:
            raise error
        return original(*arguments, **options)

    monkeypatch.setattr(owner, name, full)
    with pytest.raises(GradvarError, match=r"step 10 cannot be written \(.*checkpoint-5 is whole: make room in"):
        made.train()
    monkeypatch.undo()
    assert checkpoints.whole(tmp_path) == [tmp_path / "checkpoint-5"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-5", "metrics.jsonl"]


@pytest.mark.parametrize("most", [8_000, 40_000], ids=["weights", "optimizer"])
def test_the_systems_own_refusal_is_one_line(tmp_path, most):
    """A limit on the size of files, set once the first checkpoint is written."""

    class Limit(TrainerCallback):
        def on_save(self, args, state, control, **_):
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

    def work():
        with pytest.raises(GradvarError, match=r"step 10 cannot be written \(.*checkpoint-5 is whole"):
            runs.trainer(tmp_path, runs.DRAWN, callbacks=[Limit()]).train()

    assert runs.forked(work, log=tmp_path / "log") == [0], (tmp_path / "log").read_text()
    assert checkpoints.whole(tmp_path) == [tmp_path / "checkpoint-5"]


def test_an_error_of_our_own_is_no_full_disk(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("a bug")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        runs.trainer(tmp_path).train()
    assert checkpoints.whole(tmp_path) == []


MOMENTS = {  # the function in the nth call of which the process is killed, and the last whole checkpoint
    "weights": ("transformers.modeling_utils:safe_save_file", 2, 5),
    "optimizer": ("torch:save", 4, 5),
    "sync": ("os:fsync", 18, 5),
    "renaming": ("pathlib:Path.rename", 2, 5),
    "removal of the last one": ("gradvar.checkpoints:shutil.rmtree", 7, 10),
}


@pytest.mark.parametrize("moment", cases.mostly_full(MOMENTS, lambda moment: moment in ("weights", "renaming")))
def test_a_kill_in_the_middle_of_a_save_costs_that_save(tmp_path, straight, moment):
    place, call, whole = MOMENTS[moment]

    def work():
        runs.trainer(tmp_path, runs.DRAWN, save_total_limit=1).train()

    assert runs.forked(runs.dying(place, call, work)) == [-signal.SIGKILL]
    left = {path.name for path in tmp_path.iterdir()}
    assert left - {"metrics.jsonl", f"checkpoint-{whole}"} != set()  # it was in the middle
    assert checkpoints.whole(tmp_path) == [tmp_path / f"checkpoint-{whole}"]
    runs.trainer(tmp_path, runs.DRAWN).train(resume_from_checkpoint=True)
    assert runs.differences(runs.everything(straight), runs.everything(tmp_path)) == []
    assert not checkpoints.staging_of(tmp_path).exists()


# ---- what a checkpoint is


def test_the_last_checkpoints_are_kept(tmp_path):
    for keep, kept in ((None, [4, 8, 11]), (2, [8, 11]), (1, [11])):
        run = tmp_path / str(keep)
        runs.trainer(run, save_steps=4, save_total_limit=keep, logging_steps=100).train()
        assert [path.name for path in checkpoints.whole(run)] == [f"checkpoint-{step}" for step in kept]
        assert len([path for path in run.iterdir() if path.is_dir()]) == len(kept)


def test_transformers_loads_a_checkpoint_with_its_tokenizer(tmp_path, straight):
    made = runs.trainer(tmp_path, runs.DRAWN)
    made._load_from_checkpoint(str(straight / "checkpoint-11"))
    ids = torch.arange(5, 15).unsqueeze(0)
    model, tokenizer = (
        each.from_pretrained(straight / "checkpoint-11") for each in (AutoModelForMaskedLM, AutoTokenizer)
    )
    assert torch.equal(model(ids).logits, made.joint.encoder.eval()(ids).logits)
    assert tokenizer(" ".join(f"w{i}" for i in range(10)), add_special_tokens=False).input_ids == ids[0].tolist()
    assert tokenizer.mask_token_id == cases.MASK


@pytest.mark.full
def test_plain_transformers_loads_a_checkpoint(tmp_path, straight):
    """In a process that cannot import gradvar; the logits are those of the model in training."""
    made = runs.trainer(tmp_path, runs.DRAWN)
    made._load_from_checkpoint(str(straight / "checkpoint-11"))
    encoder = made.joint.encoder.eval()
    torch.save(encoder(torch.arange(5, 15).unsqueeze(0)).logits.detach(), tmp_path / "logits.pt")
    script = f"""
import sys
sys.modules["gradvar"] = None
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer
folder = {str(straight / "checkpoint-11")!r}
model, tokenizer = AutoModelForMaskedLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
ids = tokenizer(" ".join(f"w{{i}}" for i in range(10)), add_special_tokens=False, return_tensors="pt").input_ids
assert ids.tolist() == [list(range(5, 15))], ids
assert tokenizer.mask_token_id == {cases.MASK}
assert torch.equal(model(ids).logits, torch.load({str(tmp_path / "logits.pt")!r}, weights_only=True))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_nothing_in_a_checkpoint_can_run_code(straight):
    """`everything` reads all pickles with weights_only."""
    folder = straight / "checkpoint-11"
    names = {path.name for path in folder.iterdir()}
    pickles = {name for name in names if name.endswith((".pt", ".pth", ".bin", ".pkl"))}
    assert pickles == {"optimizer.pt", "scheduler.pt", "rng_state.pth"}
    assert pickles < runs.everything(straight).keys()
    assert {"config.json", "model.safetensors", "mapnet.json", "mapnet.safetensors", "tokenizer.json"} < names
    assert not any(name.endswith(".py") for name in names)
    found = MapNet.from_pretrained(folder)
    assert found.record == {"proposal": "mapnet^0.5/pps~0.1", "in_use": "mapnet^0.5/pps~0.1", "step": 11}


def test_a_folder_without_a_whole_checkpoint_is_refused(tmp_path, straight):
    with pytest.raises(GradvarError, match="holds no whole checkpoint to go on from"):
        runs.trainer(tmp_path).train(resume_from_checkpoint=True)
    with pytest.raises(GradvarError, match="no whole checkpoint"):
        runs.trainer(tmp_path).train(resume_from_checkpoint=str(tmp_path))
    torn = tmp_path / "checkpoint-5"
    torn.mkdir()
    for path in (straight / "checkpoint-5").iterdir():
        (torn / path.name).write_bytes(path.read_bytes())
    assert checkpoints.is_whole(torn)
    (torn / "optimizer.pt").write_bytes(b"")
    with pytest.raises(GradvarError, match="no whole checkpoint"):
        runs.trainer(tmp_path, runs.DRAWN).train(resume_from_checkpoint=str(torn))


# ---- a budget in seconds


@pytest.fixture
def clock(monkeypatch):
    """A clock of the trainer's that only a step moves on, by a second, and whatever a test adds."""
    now = SimpleNamespace(seconds=100.0)
    times = SimpleNamespace(monotonic=lambda: now.seconds, perf_counter=lambda: now.seconds)
    for part in (module, clock_module):
        monkeypatch.setattr(part, "time", times)
    step = MaskProposalTrainer.training_step

    def slow(self, *arguments, **options):
        now.seconds += 1
        return step(self, *arguments, **options)

    monkeypatch.setattr(MaskProposalTrainer, "training_step", slow)
    return now


def test_seconds_end_a_run_and_lower_its_learning_rate(tmp_path, clock):
    options = {"logging_steps": 1, "lr_scheduler_type": "linear", "warmup_steps": 0.2}
    made = runs.trainer(tmp_path / "run", seconds=20, **options)
    made.train()
    lines = [line for line in runs.metrics(tmp_path / "run") if "loss" in line]
    assert [line["step"] for line in lines] == list(range(1, 21))
    # the rate of a step follows what was used before it: up in the first 4 seconds, then down to zero at 20
    rates = [min(used / 4, (20 - used) / 16) * 1e-3 for used in range(20)]
    assert [line["learning_rate"] for line in lines] == pytest.approx(rates)
    assert made.lr_scheduler.get_last_lr()[0] == 0
    assert checkpoints.last_whole(tmp_path / "run").name == "checkpoint-20"
    assert made.elapsed == 20


def test_seconds_are_of_training_alone_and_of_all_sessions(tmp_path, clock, monkeypatch):
    def slow(name):
        original = getattr(module, name)

        def slower(*arguments, **options):
            clock.seconds += 1000
            return original(*arguments, **options)

        return slower

    monkeypatch.setattr(module, "evaluate", slow("evaluate"))
    monkeypatch.setattr(checkpoints, "publish", lambda *a, f=checkpoints.publish: (slower(), f(*a))[1])

    def slower():
        clock.seconds += 1000

    options = {"logging_steps": 1, "eval_strategy": "steps", "eval_steps": 3}
    runs.trainer(tmp_path, seconds=9, **options).train()
    assert checkpoints.last_whole(tmp_path).name == "checkpoint-9"
    straight = runs.everything(tmp_path)
    checkpoints.remove(tmp_path / "checkpoint-9")
    clock.seconds += 10_000
    made = runs.trainer(tmp_path, seconds=9, **options)
    made.train(resume_from_checkpoint=True)
    assert made.elapsed == 9
    assert runs.differences(straight, runs.everything(tmp_path)) == []


class Costly:
    """A stream whose first items, as many as it says, take an hour of a clock each time that they are read."""

    def __init__(self, clock, items):
        self.clock, self.items = clock, items

    def __iter__(self):
        for number, row in enumerate(runs.data(200)):
            self.clock.seconds += 3600 * (number < self.items)
            yield row


def test_seconds_of_a_session_begin_with_its_first_data(tmp_path, clock):
    """Behind the first item of a new run, and behind what a run that goes on reads again: 40 items, and 8 of a step."""
    runs.trainer(tmp_path, seconds=9, train=Costly(clock, 1), block=8).train()
    assert checkpoints.last_whole(tmp_path).name == "checkpoint-9"
    straight = runs.everything(tmp_path)
    checkpoints.remove(tmp_path / "checkpoint-9")
    made = runs.trainer(tmp_path, seconds=9, train=Costly(clock, 48), block=8)
    made.train(resume_from_checkpoint=True)
    assert (made.elapsed, made.state.global_step) == (9, 9)
    assert runs.differences(straight, runs.everything(tmp_path)) == []


# ---- a script of a user's own


def padded(rows):
    longest = max(len(row["input_ids"]) for row in rows)
    return datasets.Dataset.from_list(
        [
            {
                "input_ids": row["input_ids"] + [cases.PAD] * (longest - len(row["input_ids"])),
                "attention_mask": [1] * len(row["input_ids"]) + [0] * (longest - len(row["input_ids"])),
                "token_type_ids": [0] * longest,
            }
            for row in rows
        ]
    )


@pytest.mark.parametrize("proposal", ["uniform/simple", "mapnet/pps"])
def test_a_script_of_a_users_own(tmp_path, proposal):
    args = TrainingArguments(
        output_dir=str(tmp_path),
        num_train_epochs=2,
        per_device_train_batch_size=8,
        learning_rate=1e-2,
        logging_steps=5,
        save_strategy="no",
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
    )
    trainer = MaskProposalTrainer(
        runs.encoder(),
        args,
        padded(runs.data(201)),
        padded(runs.data(20, seed=1)),
        processing_class=cases.tokenizer(),
        masking=proposal,
        mapnet=runs.MAPNET,
    )
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.state.global_step == math.ceil(2 * 201 / 8)
    assert trainer.state.epoch == pytest.approx(2, abs=8 / 201)
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert sum(losses[-3:]) / 3 < losses[0] - 0.5
    assert trainer.evaluate()["eval_loss"] < before - 1
    trainer.save_model(str(tmp_path / "model"))
    loaded = AutoModelForMaskedLM.from_pretrained(tmp_path / "model")
    assert torch.equal(loaded.cls.predictions.bias, trainer.joint.encoder.cls.predictions.bias)
    assert len(AutoTokenizer.from_pretrained(tmp_path / "model")) == 60
    assert (tmp_path / "model" / "mapnet.json").exists() == (proposal == "mapnet/pps")


def test_padding_and_the_kind_of_data_set_change_nothing(tmp_path, straight):
    options = {"train": padded(runs.data()), "valid": padded(runs.data(20, seed=1))}
    runs.trainer(tmp_path / "padded", runs.DRAWN, **options).train()
    assert runs.differences(runs.everything(straight), runs.everything(tmp_path / "padded")) == []


def test_the_mapnet_has_rates_of_its_own_and_does_not_change_the_encoders_step(tmp_path):
    """Under uniform masks of the same seed, which the MAPNet's proposal draws until it is calibrated."""
    encoders = []
    for proposal in ("uniform/simple", "mapnet/pps"):
        made = runs.trainer(tmp_path / proposal, proposal, max_steps=4, lr_scheduler_type="constant")
        made.train()
        encoders.append(dict(made.joint.encoder.state_dict()))
    assert runs.differences(*encoders) == []
    groups = [(group["lr"], group["weight_decay"]) for group in made.optimizer.param_groups]
    assert set(groups) == {(1e-3, 0.0), (0.05, 0.05), (0.05, 0.0)}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"train": runs.data(5)}, "hold 5 sequences, fewer than the 8 of one step"),
        (
            {"proposal": "uniform/disjoint:3"},
            "8 cells at once on a device .* are no multiple of the 3 masks of a sentence",
        ),
        ({"proposal": "uniform/simpel"}, "simpel"),
    ],
)
def test_what_cannot_be_is_said_at_once(tmp_path, options, words):
    with pytest.raises(ValueError, match=words):
        runs.trainer(tmp_path / "run", **options)
    assert not (tmp_path / "run").exists() or not any((tmp_path / "run").iterdir())


def test_evaluation_without_held_out_text_is_refused(tmp_path):
    made = runs.trainer(tmp_path, save_strategy="no")
    made.eval_dataset = None
    with pytest.raises(GradvarError, match="no held-out text"):
        made.evaluate()
