"""A run that was killed and goes on ends as if it had never been: all tensors, draws and metrics, bit for bit."""

import os
import shutil
import signal
from itertools import product

import pytest

from gradvar import checkpoints
from tests import cases
from tests.training import runs

STEP = "gradvar.training.trainer:MaskProposalTrainer.training_step"
STEPS = 14  # of 8 sequences of 30: 3.7 epochs; checkpoints every 4 steps, metrics every 3, held-out losses every 5
TOKENS = STEPS * 8 * 12


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return runs.make_place(tmp_path_factory.mktemp("place"))


@pytest.fixture(scope="module")
def whole(place, tmp_path_factory):
    """Make a run in one go, once for all the places at which another one is killed."""
    made = {}

    def make(*combination):
        if combination not in made:
            made[combination] = tmp_path_factory.mktemp("whole") / "run"
            assert run(place, made[combination], *combination) == [0] * combination[2]
        return made[combination]

    return make


def run(place, out, proposal, workers, ranks, budget, accumulation, dies_at=None):
    """Run by the recipe in a process of its own, or several; kill all of them in the step of that number."""
    training = {"steps": None, "tokens": None, "seconds": None, "workers": workers, "accumulation": accumulation}
    training[budget] = {"steps": STEPS, "tokens": TOKENS}[budget]
    runs.write_recipe(place, masking={"proposal": proposal}, training=training)

    def work():
        return runs.command(runs.words(place, out))

    if dies_at:
        work = runs.dying(STEP, dies_at * accumulation, work)
    return runs.forked(work, ranks, out.parent / "log")


def check(place, tmp_path, whole, combination, dies_at):
    straight, out = whole(*combination), tmp_path / "run"
    ranks = combination[2]
    assert run(place, out, *combination, dies_at=dies_at) == [-signal.SIGKILL] * ranks
    left = checkpoints.last_whole(out)
    assert left == (out / f"checkpoint-{(dies_at - 1) // 4 * 4}" if dies_at > 4 else None)
    assert runs.forked(lambda: runs.command(runs.resuming(place, out)), ranks, tmp_path / "log") == [0] * ranks
    assert runs.differences(runs.everything(straight), runs.everything(out)) == []
    assert runs.differences(runs.draws(straight, combination[0]), runs.draws(out, combination[0])) == []


# Killed in the last step; right behind a checkpoint; between two, with metrics half gathered; in the first of an epoch.
DEFAULT = [
    (("uniform/simple", 0, 1, "steps", 1), 14),
    pytest.param(("mapnet/pps", 2, 1, "tokens", 2), 6, marks=pytest.mark.full),
    ((runs.DRAWN, 0, 1, "tokens", 1), 9),
    pytest.param((runs.DRAWN, 2, 2, "steps", 2), 12, marks=pytest.mark.full),
]
MATRIX = [
    (combination, dies_at)
    for combination in product(
        ["uniform/simple", "mapnet/pps", runs.DRAWN], [0, 2], [1, 2], ["steps", "tokens"], [1, 2]
    )
    for dies_at in (5, 8, 11)
]


@pytest.mark.parametrize(("combination", "dies_at"), DEFAULT, ids=str)
def test_a_killed_run_goes_on_bit_for_bit(place, tmp_path, whole, combination, dies_at):
    check(place, tmp_path, whole, combination, dies_at)


@pytest.mark.full
@pytest.mark.parametrize(("combination", "dies_at"), MATRIX, ids=str)
def test_every_killed_run_goes_on_bit_for_bit(place, tmp_path, whole, combination, dies_at):
    check(place, tmp_path, whole, combination, dies_at)


@pytest.mark.full  # forks that die at a given moment are tested above
def test_a_command_that_is_killed_from_outside_goes_on(place, tmp_path):
    """At whatever moment of whatever step; twice, the second time when the calibrated MAPNet draws."""
    runs.write_recipe(place, masking={"proposal": "mapnet/pps"}, training={"steps": 70})
    straight, out = tmp_path / "straight", tmp_path / "run"
    assert runs.command(runs.words(place, straight)) == 0
    assert next(line["ess"] for line in runs.metrics(straight) if line["step"] == 48) < 0.999
    with runs.started(runs.words(place, out)) as process:
        runs.once(process, out, step=18)
        os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert not (out / "checkpoint-68").exists()
    assert runs.forked(runs.dying(STEP, 31, lambda: runs.command(runs.resuming(place, out)))) == [-signal.SIGKILL]
    assert runs.metrics(out)[-1]["step"] >= 45
    assert runs.command(runs.resuming(place, out)) == 0
    assert runs.differences(runs.everything(straight), runs.everything(out)) == []


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Train in this process, once a proposal; return the trainer, the run's folder, and how to take copies of it."""
    made = {}

    def make(proposal):
        if proposal not in made:
            out = tmp_path_factory.mktemp("trained") / "run"
            made[proposal] = runs.trainer(out, proposal), out
            made[proposal][0].train()
        return made[proposal]

    return make


def cut(run, out, step):
    """Copy a run as if it had ended behind the checkpoint of a step, but for its metrics."""
    shutil.copytree(run, out)
    for path in checkpoints.whole(out):
        if int(path.name.removeprefix(checkpoints.PREFIX)) > step:
            checkpoints.remove(path)
    return out


@pytest.mark.parametrize(
    "proposal",
    ["uniform/epoch-stratified", runs.DRAWN, *cases.mostly_full(["uniform/simple", "mapnet/pps"], lambda _: False)],
)
def test_a_trainer_goes_on_bit_for_bit(tmp_path, trained, proposal):
    """From either of its checkpoints, with other workers, and an encoder that was another one until then."""
    straight, run = trained(proposal)
    for step, workers in ((5, 0), (10, 2)):
        out = cut(run, tmp_path / str(step), step)
        fresh = runs.encoder()
        fresh.cls.predictions.bias.data += 1
        again = runs.trainer(out, proposal, model=fresh, dataloader_num_workers=workers)
        again.train(resume_from_checkpoint=True)
        assert runs.differences(runs.everything(run), runs.everything(out)) == []
        assert runs.differences(straight.joint.state(), again.joint.state()) == []
        assert runs.differences(dict(straight.joint.state_dict()), dict(again.joint.state_dict())) == []
        assert runs.differences(straight.optimizer.state_dict(), again.optimizer.state_dict()) == []


def test_a_calibration_that_draws_goes_on_bit_for_bit(tmp_path):
    """The online calibration believes nothing for 16 looks; here it is made to be sure at once."""
    straight, out = tmp_path / "straight", tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gradvar.mapnet.online._FEWEST", 2)
        patch.setattr("gradvar.mapnet.online._CERTAINTY", -5.0)
        one = runs.trainer(straight, "mapnet/pps")
        one.train()
        assert one.joint.in_use[0] != 0
        assert str(one.joint.in_use[1]) != "uniform/simple"
        cut(straight, out, 5)
        runs.trainer(out, "mapnet/pps").train(resume_from_checkpoint=True)
        assert runs.differences(runs.everything(straight), runs.everything(out)) == []
        assert runs.differences(runs.draws(straight, "mapnet/pps"), runs.draws(out, "mapnet/pps")) == []


@pytest.mark.parametrize("forgotten", ["scale", "calibration", "rng", "optimizer", "order"])
def test_what_is_forgotten_is_noticed(tmp_path, trained, monkeypatch, forgotten):
    """The comparison can fail: a resume that loses one of these does not end as the run in one go."""
    proposal = "mapnet/pps" if forgotten == "calibration" else runs.DRAWN
    straight = trained(proposal)[1]
    out = cut(straight, tmp_path / "run", 5)
    again = runs.trainer(out, proposal)
    restore = type(again.joint).restore
    if forgotten in ("scale", "calibration"):
        fresh = again.joint.state()[forgotten]
        monkeypatch.setattr(type(again.joint), "restore", lambda self, state: restore(self, state | {forgotten: fresh}))
    elif forgotten == "rng":
        monkeypatch.setattr(type(again), "_load_rng_state", lambda *_: None)
    elif forgotten == "optimizer":
        monkeypatch.setattr(type(again), "_load_optimizer_and_scheduler", lambda *_: None)
    else:
        at = type(again.course.order).at
        monkeypatch.setattr(
            type(again.course.order), "at", lambda self, step: [p._replace(step=step) for p in at(self, step - 5)]
        )
    again.train(resume_from_checkpoint=True)
    assert runs.differences(runs.everything(straight), runs.everything(out)) != []
