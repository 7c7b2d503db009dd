"""Two ranks, micro-batches and other numbers of them on resume: a step is the same step, up to rounding.

By gradient descent: where a gradient is zero but for rounding, as at biases of keys, AdamW makes it as large as any.
The ranks are forked from the test's process, as torchrun would start them; one test shows that torchrun does the same.
"""

import errno
import os
import signal
from pathlib import Path

import datasets
import pytest
import torch
import torch.distributed as dist

from gradvar import checkpoints
from gradvar.errors import GradvarError
from gradvar.training.joint import JointModel
from gradvar.training.recipe import Masking
from gradvar.training.schedule import Schedule
from gradvar.training.trainer import MaskProposalTrainer
from tests import cases
from tests.training import runs

DESCENT = {"optim": "sgd", "learning_rate": 0.1, "rate": 0.0}
ADAM = {"optim": "adamw_torch", "adam_epsilon": 1e-2, "rate": 0.0}
RESUME = "gradvar train --resume"
PROPOSALS = ("uniform/simple", runs.DRAWN)


def cells(count, accumulation=1, **more):
    return {"per_device_train_batch_size": count, "gradient_accumulation_steps": accumulation, **more}


def weights(run: Path) -> torch.Tensor:
    """Encoder and MAPNet of the last checkpoint, in one row."""
    left = runs.everything(run)
    tensors = left["model.safetensors"] | left.get("mapnet.safetensors", {})
    return torch.cat([tensors[name].flatten().double() for name in sorted(tensors)])


def distance(one: Path, other: Path) -> float:
    return float((weights(one) - weights(other)).abs().max())


def test_two_ranks_make_the_steps_of_one(tmp_path):
    """With micro-batches, too, and from a checkpoint of other ranks; a draw that knows its rank does not."""
    uniform, mapnet = (tmp_path / name for name in ("uniform", "mapnet"))
    pairs = tuple(zip((uniform, mapnet), PROPOSALS, strict=True))
    for run, proposal in pairs:
        runs.trainer(run / "1", proposal, **cells(8), **DESCENT).train()

    def ranks():
        for run, proposal in pairs:
            runs.trainer(run / "2", proposal, **cells(4), **DESCENT).train()
            keyed = runs.trainer(run / "keyed", proposal, **cells(4), **DESCENT)
            keyed.joint.seed += dist.get_rank()
            keyed.train()
        runs.trainer(mapnet / "2x2", runs.DRAWN, **cells(2, 2), **DESCENT).train()
        runs.trainer(mapnet / "1-to-2", runs.DRAWN, **cells(4), **DESCENT).train(str(mapnet / "1" / "checkpoint-5"))

    assert runs.forked(ranks, 2, tmp_path / "log") == [0, 0], (tmp_path / "log").read_text()
    runs.trainer(mapnet / "2-to-1", runs.DRAWN, **cells(8), **DESCENT).train(str(mapnet / "2" / "checkpoint-5"))
    start = torch.cat([p.detach().flatten() for p in runs.encoder().parameters()])
    for run, _ in pairs:
        assert float((weights(run / "1")[: len(start)] - start).abs().max()) > 0.01
        assert distance(run / "1", run / "2") < 1e-6
        assert distance(run / "1", run / "keyed") > 1e-4
        one, two = (runs.metrics(run / ranks) for ranks in ("1", "2"))
        assert [line["tokens"] for line in one] == [line["tokens"] for line in two]
        assert [line["loss"] for line in one] == pytest.approx([line["loss"] for line in two], rel=1e-5)
    for other in ("2x2", "1-to-2", "2-to-1"):
        assert distance(mapnet / "1", mapnet / other) < 1e-6


@pytest.mark.full
def test_two_ranks_make_the_steps_of_one_of_a_stream_and_of_a_run_with_schedules(tmp_path):
    """Sequences of several lengths, 3 epochs of a stream; pieces of several phases, and a mask rate that changes."""
    rates = {"linear": {0: 0.6, 1: 0.2}}
    stream = {"train": datasets.Dataset.from_list(runs.data()).to_iterable_dataset(), "block": 7}
    phases = {"max_length": Schedule("steps", (0.0, 0.4), (6, 12))}
    kinds = {"stream": stream, "phases": phases}
    masking = Masking(proposal=runs.DRAWN, mask_rate=rates, weighting="sentence")

    def train(name, ranks, *sizes):
        runs.trainer(tmp_path / name / str(ranks), masking, **cells(*sizes), **DESCENT, **kinds[name]).train()

    def ranks():
        for name in kinds:
            train(name, 2, 2, 2)

    for name in kinds:
        train(name, 1, 8)
    assert runs.forked(ranks, 2, tmp_path / "log") == [0, 0], (tmp_path / "log").read_text()
    for name in kinds:
        assert distance(tmp_path / name / "1", tmp_path / name / "2") < 1e-6
        one, two = (runs.metrics(tmp_path / name / ranks) for ranks in ("1", "2"))
        for key in ("tokens", "mask_rate"):
            assert [line.get(key) for line in one] == [line.get(key) for line in two]
    assert distance(tmp_path / "stream" / "1", tmp_path / "phases" / "1") > 1e-3


@pytest.mark.parametrize(
    ("proposal", "options"),
    cases.mostly_full(
        [("uniform/simple", DESCENT), (runs.DRAWN, DESCENT), (runs.DRAWN, ADAM)], lambda _, options: options is ADAM
    ),
    ids=["uniform, descent", "mapnet, descent", "mapnet, adam"],
)
def test_sixteen_micro_batches_make_the_step_of_one(tmp_path, proposal, options):
    for name, sizes in (("one", cells(64)), ("many", cells(4, 16))):
        train = runs.data(150)
        runs.trainer(tmp_path / name, proposal, train=train, max_steps=3, **sizes, **options).train()
    assert distance(tmp_path / "one", tmp_path / "many") < 1e-6


def poison(steps, ranks=(0, 1)):
    """Make the loss of some steps no number, on some ranks."""
    forward = JointModel.forward

    def poisoned(self, ids, row, epoch, step):
        found = forward(self, ids, row, epoch, step)
        bad = int(step[0]) in steps and dist.get_rank() in ranks
        return {"loss": found["loss"] * float("nan")} if bad else found

    JointModel.forward = poisoned  # in a process that ends with the test


def test_a_step_that_is_not_finite_on_one_rank_is_skipped_on_all(tmp_path):
    def ranks(log):
        def work():
            poison({4}, ranks=(1,))
            made = runs.trainer(tmp_path / log, runs.DRAWN, **cells(4), **DESCENT)
            made.train()
            steps = [float(state["step"]) for state in made.optimizer.state.values() if "step" in state]
            assert set(steps) <= {10.0}
            ours = torch.cat([p.detach().flatten() for p in made.joint.parameters()])
            theirs = [torch.empty_like(ours) for _ in range(2)]
            dist.all_gather(theirs, ours)
            assert torch.equal(*theirs)
            assert ours.isfinite().all()

        return work

    assert runs.forked(ranks("a"), 2, tmp_path / "log") == [0, 0], (tmp_path / "log").read_text()
    assert runs.metrics(tmp_path / "a")[-1]["skipped_steps"] == 1


def test_what_one_rank_alone_knows_of_is_skipped_on_all(tmp_path):
    """A tally, which no gradient carries to the others."""

    def work():
        take = JointModel.take_tallies

        def poisoned(self):
            found = take(self)
            bad = made.state.global_step == 4 and dist.get_rank() == 1
            return found | {"loss": found["loss"] * float("nan")} if bad else found

        JointModel.take_tallies = poisoned  # in a process that ends with the test
        made = runs.trainer(tmp_path, **cells(4), **DESCENT)
        made.train()

    assert runs.forked(work, 2, tmp_path / "log") == [0, 0], (tmp_path / "log").read_text()
    assert runs.metrics(tmp_path)[-1]["skipped_steps"] == 1


def test_every_rank_has_dropout_of_its_own(tmp_path):
    def work():
        forward = JointModel.forward

        def seen(self, **batch):
            states.append(torch.get_rng_state())
            return forward(self, **batch)

        states = []
        JointModel.forward = seen  # in a process that ends with the test
        runs.trainer(tmp_path, max_steps=2, **cells(4)).train()
        for state in states:
            theirs = [torch.empty_like(state) for _ in range(2)]
            dist.all_gather(theirs, state)
            assert not torch.equal(*theirs)

    assert runs.forked(work, 2, tmp_path / "log") == [0, 0], (tmp_path / "log").read_text()


def test_ten_such_steps_end_all_ranks(tmp_path):
    def work():
        poison(range(6, 99), ranks=(1,))
        with pytest.raises(GradvarError, match=r"10 steps in a row .*checkpoint-5 is whole"):
            runs.trainer(tmp_path, max_steps=40, save_steps=5, **cells(4)).train()

    assert runs.forked(work, 2, tmp_path / "log") == [0, 0], (tmp_path / "log").read_text()


def test_a_disk_that_is_full_for_one_rank_ends_all(tmp_path):
    """Rank 1 cannot write its random numbers' state; rank 0 could write all else."""

    def work():
        save = torch.save

        def full(value, path, *more, **options):
            if os.environ["RANK"] == "1" and "checkpoint-10" in str(path):
                raise OSError(errno.ENOSPC, "No space left on device")
            return save(value, path, *more, **options)

        torch.save = full  # in a process that ends with the test
        with pytest.raises(GradvarError, match=r"step 10 cannot be written .*checkpoint-5 is whole"):
            runs.trainer(tmp_path, **cells(4)).train()

    assert runs.forked(work, 2, tmp_path / "log") == [0, 0], (tmp_path / "log").read_text()
    assert checkpoints.whole(tmp_path) == [tmp_path / "checkpoint-5"]
    assert not checkpoints.staging_of(tmp_path).exists()


def test_a_signal_to_one_rank_interrupts_all(tmp_path):
    place, out = runs.make_place(tmp_path), tmp_path / "run"

    def work():
        step, calls = MaskProposalTrainer.training_step, iter(range(99))

        def signalled(*arguments, **options):
            if next(calls) == 5 and dist.get_rank() == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            return step(*arguments, **options)

        MaskProposalTrainer.training_step = signalled  # in a process that ends with the test
        return runs.command(runs.words(place, out))

    assert runs.forked(work, 2, tmp_path / "log") == [143, 143]
    assert checkpoints.last_whole(out).name == "checkpoint-6"
    said = (tmp_path / "log").read_text()
    assert said.endswith(f"interrupted at step 6, saved in {out / 'checkpoint-6'}; go on with\n{RESUME} {out}\n")
    assert runs.forked(lambda: runs.command(runs.resuming(place, out)), 2, tmp_path / "log") == [0, 0]
    assert checkpoints.last_whole(out).name == "checkpoint-14"


@pytest.mark.full
def test_torchrun_does_the_same_as_the_tests_ranks(tmp_path):
    """Bit for bit; and a SIGTERM to torchrun, which it passes on to its ranks, saves a checkpoint to go on from."""
    place = runs.make_place(tmp_path)
    runs.write_recipe(place, masking={"proposal": runs.DRAWN}, training={"steps": 24})
    straight, out = tmp_path / "straight", tmp_path / "run"
    assert runs.forked(lambda: runs.command(runs.words(place, straight)), 2, tmp_path / "log") == [0, 0]
    with runs.started(runs.words(place, out), ranks=2) as process:
        runs.once(process, out, step=6)
        process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=60)[1]
    assert f"{RESUME} {out}" in said
    assert said.count("interrupted at step") == 1
    assert "Traceback" not in said.split("torch/distributed")[0]
    assert checkpoints.last_whole(out).name != "checkpoint-24"
    assert runs.forked(lambda: runs.command(runs.resuming(place, out)), 2, tmp_path / "log") == [0, 0]
    assert runs.differences(runs.everything(straight), runs.everything(out)) == []


@pytest.mark.full
@pytest.mark.parametrize("ranks", [2, 4])
def test_torchrun_gives_the_run_of_one_process(tmp_path, ranks):
    place = runs.make_place(tmp_path)
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    runs.write_recipe(place, masking={"proposal": runs.DRAWN}, model={"config": sizes | still})
    one, many = tmp_path / "one", tmp_path / "many"
    assert runs.command(runs.words(place, one)) == 0
    with runs.started(runs.words(place, many), ranks=ranks) as process:
        said = process.communicate(timeout=100)
    assert process.returncode == 0, said
    pairs = zip(runs.metrics(one), runs.metrics(many), strict=True)
    assert all(a == pytest.approx(b, rel=1e-3, abs=1e-6) for a, b in pairs)
    assert said[1].count("held-out loss") == 1 or said[0].count("held-out loss") == 1
