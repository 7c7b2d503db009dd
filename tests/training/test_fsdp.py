"""FSDP on two gloo ranks, where only its refusal on CPUs is lifted: the run of one process, up to rounding.

By gradient descent, or an Adam whose epsilon drowns rounding: see `test_trainer_ranks.py`. What the ranks are to do is
done in two launches, whose facts the tests look at: what `make test` can afford, and the rest.
"""

import errno
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch.distributed.fsdp import FSDPModule
from transformers import AutoModelForMaskedLM
from transformers.trainer_utils import FSDPOption

from gradvar import checkpoints
from gradvar.errors import GradvarError, NotFiniteError
from gradvar.training import sharding
from gradvar.training.joint import JointModel
from gradvar.training.recipe import MapNetTraining, Masking
from tests import cases
from tests.training import runs
from tests.training.test_trainer_ranks import ADAM, DESCENT, cells, distance

BATCH_NORM = ("running_mean", "running_var", "num_batches_tracked")
LOGGED = {"logging_steps": 1}
SHARDED = {"fsdp": True, **LOGGED}
WATCHED = {"watch": {"every": 14, "sentences": 8, "masks": 4}, "masking": {"proposal": runs.DRAWN}}
STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def supported(patch):
    """Lift the refusal on CPUs, and nothing else."""
    patch.setattr(sharding, "_is_cpu", lambda args: False)


def words(place, out):
    return [*runs.words(place, out), "fsdp=full_shard"]


def trained(place):
    """What is trained on the ranks in `make test`; returns what each of them found."""
    runs.command(words(place, place / "refused"))
    refused = (place / "refused").exists()
    with pytest.MonkeyPatch.context() as patch:
        supported(patch)
        return {"refused": refused} | _trained(place)


def more(place):
    """The rest, by which the first launch's runs are gone on with."""
    with pytest.MonkeyPatch.context() as patch:
        supported(patch)
        facts = _gone_on(place) | _troubled(place)
        facts["exit"] = runs.command(words(place, place / "command"))
        facts["resumed"] = runs.command(runs.resuming(place, place / "command"))
    return facts


def _trained(place):
    made = runs.trainer(place / "uniform", **cells(4), **DESCENT, **SHARDED)
    facts = {"before": made.evaluate()}
    made.train()
    facts["after"] = made.evaluate()
    made = runs.trainer(place / "mapnet", runs.DRAWN, **cells(2, 2), **ADAM, **SHARDED)
    made.train()
    parameters = list(made.joint.parameters())
    moments = [x for state in made.optimizer.state.values() for x in state.values() if x.numel() > 1]
    facts["kinds"] = sorted({type(x).__name__ for x in (*parameters, *moments)})
    facts["share"] = sum(p.to_local().numel() for p in parameters) / sum(p.numel() for p in parameters)
    facts["moments"] = sum(x.to_local().numel() for x in moments) / sum(x.numel() for x in moments)
    made.save_model(str(place / "saved"))
    _again(place, "2-to-2", "mapnet")
    return facts | {"layers": _layers_behind(made), "groups": _groups(made)}


def _gone_on(place):
    _again(place, "1-to-2", "mapnet-1")
    kept = runs.trainer(place / "kept", **cells(4), **DESCENT, **LOGGED, fsdp="shard_grad_op")
    kept.train()
    facts = {"layers kept": _layers_behind(kept)}
    facts["then"] = kept.evaluate()  # with layers that are still whole
    twice = runs.trainer(place / "twice", max_steps=2, save_strategy="no", **cells(4), **DESCENT, **SHARDED)
    twice.train()
    twice.train()
    facts["twice"] = twice.state.global_step
    for name, how in (("bf16", SHARDED), ("bf16-whole", LOGGED)):
        runs.trainer(place / name, runs.DRAWN, bf16=True, max_steps=4, **cells(4), **DESCENT, **how).train()
    return facts


def _again(place, name, origin):
    """Go on with a run from the middle of it."""
    again = runs.trainer(place / name, runs.DRAWN, **cells(2, 2), **ADAM, **SHARDED)
    again.train(str(place / origin / "checkpoint-5"))


def _groups(made):
    return [type(module).__name__ for module in made.joint.modules() if isinstance(module, FSDPModule)]


def _layers_behind(made):
    """What the layers hold behind a forward pass."""
    made.joint(**next(iter(made.get_train_dataloader())))
    made.joint.take_tallies()
    return [type(next(layer.parameters())).__name__ for layer in made.joint.encoder.bert.encoder.layer]


def _troubled(place):
    facts = {}
    for name in ("loss", "score"):
        with pytest.MonkeyPatch.context() as patch:
            (_poison if name == "loss" else _overflow)(patch)
            made = runs.trainer(place / name, runs.DRAWN, max_steps=6, **cells(4), **ADAM, **SHARDED)
            made.train()
            facts[name] = {"skipped": made._skipped, "steps": made.state.global_step}
    for rank in range(2):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("torch.save", _full(rank, torch.save))
            with pytest.raises(GradvarError, match=r"step 10 cannot be written .*checkpoint-5 is whole"):
                runs.trainer(place / f"full-{rank}", **cells(4), **DESCENT, **SHARDED).train()
    return facts


def _poison(patch):
    """Make the loss of step 4 no number, on one rank."""
    forward = JointModel.forward

    def poisoned(self, ids, row, epoch, step):
        found = forward(self, ids, row, epoch, step)
        return {"loss": found["loss"] * float("nan")} if int(step[0]) == 4 and dist.get_rank() else found

    patch.setattr(JointModel, "forward", poisoned)


def _overflow(patch):
    """Let one rank come no further than to its masks, in step 4."""
    draw, calls = JointModel.draw, iter(range(99))

    def overflowing(*arguments):
        if next(calls) == 4 and dist.get_rank():
            raise NotFiniteError("a score is infinite")
        return draw(*arguments)

    patch.setattr(JointModel, "draw", overflowing)


def _full(rank, save):
    def full(value, path, *more, **options):
        if dist.get_rank() == rank and "checkpoint-10" in str(path):
            raise OSError(errno.ENOSPC, "No space left on device")
        return save(value, path, *more, **options)

    return full


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The runs of one process, and those of two."""
    place = runs.make_place(tmp_path_factory.mktemp("fsdp"))
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    runs.write_recipe(place, model={"config": sizes | STILL}, **WATCHED)

    runs.trainer(place / "uniform-1", **cells(8), **DESCENT, **LOGGED).train()
    runs.trainer(place / "mapnet-1", runs.DRAWN, **cells(8), **ADAM, **LOGGED).train()
    launch(place, trained)
    return place


def launch(place, work):
    """Do it on two ranks, and write down what they found."""

    def on_a_rank():
        facts = work(place)
        (place / f"{work.__name__}-{dist.get_rank()}.json").write_text(json.dumps(facts))

    log = place / f"{work.__name__}.log"
    assert runs.forked(on_a_rank, 2, log) == [0, 0], log.read_text() + Path(f"{log}1").read_text()


def found(place, work):
    return [json.loads((place / f"{work.__name__}-{rank}.json").read_text()) for rank in range(2)]


@pytest.fixture(scope="module")
def facts(place):
    """What each rank found."""
    return found(place, trained)


@pytest.fixture(scope="module")
def further(place):
    """What each rank found in the second launch, whose runs are there then, too."""
    assert runs.command(runs.words(place, place / "command-1")) == 0
    launch(place, more)
    return found(place, more)


def losses(run):
    """All that is logged of steps."""
    return [line for line in runs.metrics(run) if "loss" in line]


def test_every_rank_holds_half_of_the_parameters_and_of_the_optimizer(facts):
    for found in facts:
        assert found["kinds"] == ["DTensor"]
        assert found["share"] == pytest.approx(0.5, abs=0.02)
        assert found["moments"] == pytest.approx(0.5, abs=0.02)


def test_layers_are_put_together_one_by_one_and_given_back_behind_their_turn(facts):
    for found in facts:
        assert found["groups"] == ["FSDPJointModel", "FSDPBertLayer", "FSDPBertLayer"]
        assert found["layers"] == ["DTensor", "DTensor"]


@pytest.mark.full
def test_layers_are_kept_for_the_backward_pass_on_request(facts, further):
    """By `shard_grad_op`."""
    for found, then in zip(facts, further, strict=True):
        assert then["layers kept"] == ["Parameter", "Parameter"]
        assert then["then"]["eval_loss"] == pytest.approx(found["after"]["eval_loss"], rel=1e-5)


def check(place, name, one):
    """Losses, gradient norms and parameters of a run on ranks are those of one of one process."""
    alone, two = (losses(place / run) for run in (one, name))
    assert len(alone) == len(two) == 11
    for a, b in zip(alone, two, strict=True):
        assert a == pytest.approx(b, rel=1e-6)
    assert ("mapnet_loss" in two[-1]) == (name == "mapnet")
    moved = runs.encoder().state_dict()
    left = runs.everything(place / name)["model.safetensors"]
    assert max(float((x - moved[key]).abs().max()) for key, x in left.items()) > 1e-3
    assert distance(place / one, place / name) < 1e-6


@pytest.mark.parametrize("name", ["uniform", "mapnet"])
def test_a_run_is_that_of_one_process(place, name):
    """With micro-batches and a MAPNet, too."""
    check(place, name, f"{name}-1")


@pytest.mark.full
def test_a_run_that_keeps_its_layers_is_that_of_one_process(place, further):
    check(place, "kept", "uniform-1")


@pytest.mark.full
def test_mixed_precision_is_that_of_two_ranks_without_sharding(place, further):
    """Which is not full precision."""
    one, two = (losses(place / name) for name in ("bf16-whole", "bf16"))
    for a, b in zip(one, two, strict=True):
        assert a == pytest.approx(b, rel=1e-5)
    exact = losses(place / "mapnet-1")[0]["grad_norm"]
    assert two[0]["grad_norm"] == pytest.approx(exact, rel=1e-2)
    assert two[0]["grad_norm"] != pytest.approx(exact, rel=1e-4)


def test_a_sharded_checkpoint_is_an_ordinary_one(place, facts):
    """Of the same files with the same tensors, which a single process evaluates alike."""
    one, two = (runs.everything(place / name) for name in ("mapnet-1", "mapnet"))
    assert {"rng_state.pth", *two} == {"rng_state_0.pth", "rng_state_1.pth", *one}
    for name in ("model.safetensors", "mapnet.safetensors"):
        assert {key: x.shape for key, x in one[name].items()} == {key: x.shape for key, x in two[name].items()}
    states = [x["optimizer.pt"] for x in (one, two)]
    assert states[0]["param_groups"] == states[1]["param_groups"]
    for i, values in states[0]["state"].items():
        assert {name: (type(x), x.shape) for name, x in values.items()} == {
            name: (type(x), x.shape) for name, x in states[1]["state"][i].items()
        }
    model = AutoModelForMaskedLM.from_pretrained(checkpoints.last_whole(place / "uniform"))
    plain = runs.trainer(place / "evaluated", model=model).evaluate()
    for name in ("eval_loss", "eval_loss_se", "eval_accuracy"):
        assert [found["after"][name] for found in facts] == pytest.approx([plain[name]] * 2, rel=1e-6)
    assert facts[0]["before"]["eval_loss"] > facts[0]["after"]["eval_loss"]


def test_a_saved_model_is_whole(place):
    last = checkpoints.last_whole(place / "mapnet")
    for name in ("model.safetensors", "mapnet.safetensors"):
        saved, kept = (runs.load_file(folder / name) for folder in (place / "saved", last))
        assert runs.differences(saved, kept) == []


@pytest.mark.full
def test_runs_go_on_with_other_numbers_of_processes(place, further):
    """From two ranks to one, and from one to two."""
    alone = runs.trainer(place / "2-to-1", runs.DRAWN, **cells(8), **ADAM, **LOGGED)
    alone.train(str(place / "mapnet" / "checkpoint-5"))
    for name in ("2-to-1", "1-to-2"):
        assert distance(place / "mapnet-1", place / name) < 1e-6
    assert further[0]["twice"] == 2


def test_a_run_goes_on_bit_for_bit(place):
    straight, again = (runs.everything(place / name) for name in ("mapnet", "2-to-2"))
    parts = ("model.safetensors", "mapnet.safetensors", "optimizer.pt", "scheduler.pt")
    assert runs.differences({name: straight[name] for name in parts}, {name: again[name] for name in parts}) == []


@pytest.mark.full
@pytest.mark.parametrize("name", ["loss", "score"])
def test_a_step_that_is_not_finite_on_one_rank_is_skipped_on_both(place, further, name):
    assert [found[name] for found in further] == [{"skipped": 1, "steps": 6}] * 2
    left = runs.everything(place / name)
    assert {float(state["step"]) for state in left["optimizer.pt"]["state"].values()} == {
        4.0,
        5.0,
    }  # MAPNet's, encoder's
    assert all(bool(x.isfinite().all()) for x in left["model.safetensors"].values())


@pytest.mark.full
def test_a_disk_that_is_full_for_one_rank_ends_both(place, further):
    for rank in range(2):
        assert checkpoints.last_whole(place / f"full-{rank}").name == "checkpoint-5"


# ---- the command


@pytest.mark.full
def test_the_command_trains_looks_and_evaluates_as_one_process(place, further):
    assert [(found["exit"], found["resumed"]) for found in further] == [(0, 0)] * 2
    said = (place / "more.log").read_text()
    assert "MAPNet" in said
    assert "; shared out among 2 processes" in said
    assert "this run is finished" in said
    one, two = (runs.metrics(place / name) for name in ("command-1", "command"))
    seen = {name for line in one for name in line}
    assert {"eval_loss", "grad_norm", "variance/mask", "mapnet/rank_correlation"} <= seen
    for a, b in zip(one, two, strict=True):
        a, b = ({name: x for name, x in line.items() if name != "watch/seconds"} for line in (a, b))
        assert a == pytest.approx(b, rel=1e-3, abs=1e-5)


def test_on_cpus_it_is_refused(place, facts, capsys, tmp_path):
    """In one process and in two, in one line, before anything is made."""
    said = "fsdp=full_shard is not supported on CPU, where it would save nothing; leave it out, or take GPUs\n"
    assert runs.command([*runs.words(place, tmp_path / "new"), "--cache", str(tmp_path / "c"), "fsdp=full_shard"]) == 2
    assert capsys.readouterr().err == f"gradvar: {said}"
    assert list(tmp_path.iterdir()) == []
    assert (place / "trained.log").read_text().startswith(f"gradvar: {said}")
    assert [found["refused"] for found in facts] == [False, False]


@pytest.mark.full
def test_a_sharded_run_goes_on_in_one_process(place, further, tmp_path, capsys):
    out = tmp_path / "run"
    shutil.copytree(place / "command", out)
    checkpoints.remove(out / "checkpoint-14")
    assert runs.command(runs.resuming(place, out)) == 0
    assert "note: there is one process, which holds the whole model" in capsys.readouterr().err
    assert distance(place / "command", out) < 1e-4
    state = json.loads((out / "checkpoint-14" / checkpoints.STATE).read_text())
    assert state["recipe"]["training"]["fsdp"] == "full_shard"


# ---- what is asked for


def arguments(tmp_path, world=2, **given):
    args = runs.trainer(tmp_path).args
    return SimpleNamespace(**{"fsdp": None, "fsdp_config": None, "device": args.device, "world_size": world} | given)


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({}, None),
        ({"fsdp": ""}, None),
        ({"fsdp": []}, None),
        ({"fsdp": "full_shard"}, "full_shard"),
        ({"fsdp": "full_shard auto_wrap"}, "full_shard"),
        ({"fsdp": [FSDPOption.SHARD_GRAD_OP, FSDPOption.AUTO_WRAP]}, "shard_grad_op"),
        ({"fsdp": True}, "full_shard"),
        ({"fsdp": True, "fsdp_config": {"min_num_params": 0, "xla": False, "version": 2}}, "full_shard"),
        ({"fsdp": True, "fsdp_config": {"reshard_after_forward": False}}, "shard_grad_op"),
    ],
)
def test_sharding_is_read_as_transformers_writes_it(tmp_path, monkeypatch, given, found):
    supported(monkeypatch)
    assert sharding.asked_for(arguments(tmp_path, **given)) == found


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"fsdp": "hybrid_shard"}, "fsdp='hybrid_shard' is not supported: take full_shard, or shard_grad_op"),
        ({"fsdp": "full_shard offload"}, "fsdp='full_shard offload' is not supported"),
        ({"fsdp": True, "fsdp_config": {"cpu_offload": True}}, "fsdp_config: 'cpu_offload' is not supported"),
        ({"fsdp": True, "fsdp_config": {"version": 1}}, "fsdp_config: 'version' is not supported"),
        ({"fsdp": True, "world": 1}, "of which there is one; start it with torchrun --nproc-per-node, or leave it out"),
    ],
)
def test_what_cannot_be_had_is_refused_by_name(tmp_path, monkeypatch, given, words):
    supported(monkeypatch)
    with pytest.raises(GradvarError, match=words):
        sharding.asked_for(arguments(tmp_path, **given))


@pytest.mark.parametrize(
    ("proposal", "mapnet", "options", "words"),
    [
        ("oracle/pps", {}, {}, "fsdp: the score 'oracle' is measured by passes of its own"),
        ("logit^0.5/pool:3", {}, {}, r"fsdp: the score 'logit\^0\.5' is measured"),
        ("mapnet/pps", {"target": "gradient"}, {}, "fsdp: mapnet.target 'gradient' is measured"),
        ("uniform/simple", {}, {"torch_compile": True}, "fsdp: a compiled encoder was not tried"),
        ("uniform/simple", {}, {"optim": "adafactor"}, "optim='adafactor' is not supported; take adamw_torch, "),
        ("uniform/simple", {}, {"optimizer": 1}, "fsdp: an optimizer made before holds parameters that are whole"),
        ("frequency/pps", {}, {}, None),
        ("mapnet-permuted^0.5/pps~0.1", {}, {}, None),
    ],
)
def test_what_takes_a_whole_model_is_refused_by_name(tmp_path, proposal, mapnet, options, words):
    joint = JointModel(
        runs.encoder(),
        cases.tokenizer(),
        Masking(proposal=proposal),
        MapNetTraining(shape=runs.SHAPE, **mapnet),
        max_length=12,
        token_counts=torch.ones(60),
    )
    args = SimpleNamespace(**{"torch_compile": False, "optim": "adamw_torch"} | options)
    if words is None:
        sharding.check_shardable(joint, args, None)
        return
    with pytest.raises(GradvarError, match=words):
        sharding.check_shardable(joint, args, options.get("optimizer"))


@pytest.mark.parametrize("kind", cases.ARCHITECTURES)
def test_the_layers_of_an_encoder_are_found(kind):
    encoder = cases.model(kind)
    found = sharding.layers(encoder)
    assert len(found) == (1 if kind == "albert" else 2)
    inside = sum(p.numel() for layer in found for p in layer.parameters())
    assert inside > 0.4 * sum(p.numel() for p in encoder.base_model.parameters())


def test_a_layer_that_shares_a_parameter_is_left_to_the_rest():
    encoder = cases.model("bert")
    first, second = encoder.bert.encoder.layer
    second.output.dense.weight = first.output.dense.weight
    assert sharding.layers(encoder) == []


def test_a_copy_is_filled_with_parameters_and_buffers():
    """As they are by now, persistent or not, in a storage of their own; who only helps gets no parameters."""
    live = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2), torch.nn.Linear(2, 3))
    live[2].weight.requires_grad_(False)
    live.register_buffer("kept", torch.zeros(4))
    live[0].register_buffer("passing", torch.zeros(2, 2), persistent=False)
    filled, helping = sharding._hollow(live), sharding._hollow(live)
    assert all(p.numel() == 0 for p in filled.parameters())
    with torch.no_grad():
        for number, tensor in enumerate((*live.parameters(), *live.buffers())):
            tensor.fill_(number + 1)
        live.requires_grad_(False)[0].weight.requires_grad_(True)
    sharding._fill(filled, live, "cpu")
    sharding._fill(helping, live, None)
    for copy in (filled, helping):
        assert dict(copy.named_buffers()).keys() == {"kept", "0.passing", *(f"1.{x}" for x in BATCH_NORM)}
        assert runs.differences(dict(live.named_buffers()), dict(copy.named_buffers())) == []
        assert all(a.data_ptr() != b.data_ptr() for a, b in zip(live.buffers(), copy.buffers(), strict=True))
    assert "0.passing" not in filled.state_dict()
    assert runs.differences(live.state_dict(), filled.state_dict()) == []
    assert [p.requires_grad for p in filled.parameters()] == [p.requires_grad for p in live.parameters()]
    assert all(p.numel() == 0 for p in helping.parameters())


@pytest.mark.full
@pytest.mark.parametrize("kind", cases.ARCHITECTURES)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_every_architecture_trains_as_in_one_process(tmp_path, kind, checkpointing):
    if checkpointing and not cases.model(kind).supports_gradient_checkpointing:
        pytest.skip("has no gradient checkpointing")

    def train(name, count, **options):
        model = cases.model(kind, rate=0.0).float().train()
        made = runs.trainer(
            tmp_path / name, runs.DRAWN, model=model, gradient_checkpointing=checkpointing, **cells(count), **options
        )
        made.train()

    train("1", 8, **DESCENT, **LOGGED)

    def work():
        with pytest.MonkeyPatch.context() as patch:
            supported(patch)
            train("2", 4, **DESCENT, **SHARDED)

    log = tmp_path / "log"
    assert runs.forked(work, 2, log) == [0, 0], log.read_text()
    assert distance(tmp_path / "1", tmp_path / "2") < 1e-5
