"""`--dry-run`: its numbers are those of the model's own code, checked against what really happens."""

import re
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForMaskedLM

from gradvar.errors import GradvarError
from gradvar.huggingface.forward import logits_at
from gradvar.training.devices import parse_devices
from gradvar.training.dry_run import lines_of, plan
from gradvar.training.model import build_encoder
from gradvar.training.reading import read_recipe
from gradvar.training.recipe import Model
from gradvar.training.trainer import MaskProposalTrainer
from gradvar.training.weightless import saved_bytes
from tests import cases
from tests.training import runs

RECIPES = Path(__file__).parents[2] / "recipes"
CHEAP = "1x1e12"
LEFT = ("architectures", "model_type", "transformers_version", "vocab_size", "dtype", "attn_implementation")


def planned(*overrides, recipe="mapnet-bert-tiny.yaml", devices=CHEAP, utilisation=0.5):
    read = read_recipe(RECIPES / recipe, overrides)
    return plan(read, parse_devices(devices, read.training.bf16), utilisation)


# ---- against what really happens


@pytest.mark.parametrize("recipe", ["mapnet-bert-tiny.yaml", "mapnet-modernbert-tiny.yaml"])
def test_parameters_are_those_of_the_run(tmp_path, recipe):
    """The trainer's, of the same recipe with this module's 60 tokens."""
    read = read_recipe(RECIPES / recipe, ["data.tokenizer.vocabulary=100"])
    words = cases.tokenizer(95)
    encoder = build_encoder(read.model, words, read.data.max_length, 0)
    train = [{"input_ids": [cases.CLS, *[9] * (read.data.max_length - 2), cases.SEP]}] * 8
    args = runs.trainer(tmp_path).args
    made = MaskProposalTrainer(encoder, args, train, processing_class=words, masking=read.masking, mapnet=read.mapnet)
    found = plan(read, parse_devices(CHEAP, False), 1.0)
    assert found.parameters == sum(p.numel() for p in made.joint.encoder.parameters())
    assert found.mapnet == sum(p.numel() for p in made.joint.mapnet.parameters())


@pytest.mark.parametrize("kind", cases.ARCHITECTURES)
def test_every_architecture_can_be_planned(kind):
    config = cases.config(kind, 60, 16, True, "sdpa").to_diff_dict()
    kept = {name: x for name, x in config.items() if not name.endswith("token_id") and name not in LEFT}
    read = read_recipe(RECIPES / "mapnet-bert-tiny.yaml", ["masking.proposal=uniform/simple"])
    read = read.model_copy(update={"model": Model(architecture=kind, config=kept)})
    found = plan(read, parse_devices(CHEAP, False), 0.5)
    assert found.parameters > 60 * 8
    assert found.memory["activations"] > 0
    assert found.flops > 0


def test_an_architecture_that_cannot_be_planned_is_one_line():
    with pytest.raises(GradvarError, match="'longformer' cannot be planned without weights"):
        planned("model.architecture=longformer", "masking.proposal=uniform/simple")


def test_a_checkpoint_is_planned_as_it_is(tmp_path):
    cases.save_checkpoint(tmp_path)
    found = planned(f"model.source={tmp_path}", "masking.proposal=uniform/simple")
    assert found.parameters == sum(p.numel() for p in cases.model("bert").parameters())


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("recipe", ["mapnet-bert-tiny.yaml", "mapnet-modernbert-tiny.yaml"])
def test_activations_are_what_autograd_keeps_of_real_tensors(recipe, bf16):
    read = read_recipe(RECIPES / recipe, ["training.batch=8", f"training.bf16={bf16}", "masking.mask_rate=0.3"])
    words = cases.tokenizer(8187)
    model = build_encoder(read.model, words, read.data.max_length, 0)
    length = read.data.max_length
    real = saved_bytes(model, 8, length, max(1, round(0.3 * (length - 2))), bf16)
    found = plan(read, parse_devices(CHEAP, False), 1.0).memory["activations"]
    assert found == pytest.approx(real, rel=0.02)  # real kernels keep random states and the like, too


def test_saved_bytes_counts_every_storage_once():
    """Of ``exp(x w)``: x for the product, and its exponential; the weight is the model's own."""

    class Model(torch.nn.Module):
        base_model_prefix = "none"

        def __init__(self):
            super().__init__()
            self.table, self.weight = torch.nn.Embedding(9, 4), torch.nn.Parameter(torch.ones(4, 7))

        @property
        def base_model(self):
            return self.table

        def forward(self, input_ids, attention_mask):
            return Output((self.table(input_ids) @ self.weight).exp())

    class Output:
        def __init__(self, logits):
            self.logits = logits

    model = Model()
    everything = 2 * 5 * 8 + 4 * (2 * 5 * 4 + 2 * 5 * 7) + 2 * 3 * 8 + 4 * 2 * 3 * 7  # ids, x, exp; targets and errors
    with torch.no_grad():
        model.table.weight.fill_(0.1)

    def gathered(model, positions, gather_first, **inputs):
        return logits_at(model, positions, False, **inputs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gradvar.training.weightless.logits_at", gathered)
        found = saved_bytes(model, 2, 5, 3, False)
    assert found == everything


@pytest.mark.parametrize("recipe", ["mapnet-bert-tiny.yaml", "mapnet-modernbert-tiny.yaml"])
def test_flops_are_those_that_torch_counts(recipe):
    """Torch counts products of real tensors, backward included; first layers need no gradient of their input."""
    overrides = ["masking.proposal=uniform/simple", "training.batch=4", "training.steps=1"]
    found = planned(*overrides, recipe=recipe)
    read = read_recipe(RECIPES / recipe, overrides)
    length, words = read.data.max_length, cases.tokenizer(8187)
    config = build_encoder(read.model, words, length, 0).config
    model = AutoModelForMaskedLM.from_config(config, attn_implementation="eager")
    ids = torch.full((4, length), 9)
    targets = max(1, int(0.15 * (length - 2) + 0.5))
    with FlopCounterMode(display=False) as counter:
        logits_at(model, torch.zeros(4, targets, dtype=torch.int64), True, input_ids=ids).sum().backward()
    assert found.flops == pytest.approx(counter.get_total_flops(), rel=0.05)


# ---- arithmetic


def test_budgets_and_days():
    steps, tokens, seconds = (
        planned(f"training.{name}", "training.batch=256") for name in ("steps=1000", "tokens=8192000", "seconds=86400")
    )
    assert steps.tokens == 1000 * 256 * 16
    assert tokens.steps == 2000
    assert tokens.tokens == 2 * steps.tokens
    assert tokens.flops == pytest.approx(2 * steps.flops)
    assert steps.days == pytest.approx(steps.flops / (1e12 * 0.5) / 86400)
    assert (seconds.steps, seconds.days) == (None, pytest.approx(1.0))
    several = planned("training.steps=1000", devices="4x1e12", utilisation=0.25)
    assert several.days == pytest.approx(steps.days / 2)
    assert (steps.micro, several.micro) == (256, 64)


def test_short_phases_show_as_many_tokens_for_less_arithmetic():
    whole = planned("data.max_length=128", "training.batch=32", "model.config.max_position_embeddings=512")
    half = planned("data.max_length=128", "training.batch=32", "training.max_length={steps: {0: 16, 0.5: 128}}")
    short = planned("data.max_length=128", "training.batch=32", "training.max_length=16")
    assert whole.tokens == half.tokens == short.tokens
    assert short.flops < whole.flops
    assert half.flops == pytest.approx((whole.flops + short.flops) / 2, rel=0.02)  # their MAPNets differ in width


def test_what_is_held_by_whom():
    def held(devices, *how):
        return planned("training.batch=8", *how, recipe="mapnet-modernbert-tiny.yaml", devices=devices)

    one, ddp = held("1xH100"), held("4xH100")
    full, grad = (held("4xH100", f"training.fsdp={how}") for how in ("full_shard", "shard_grad_op"))
    weights = 4 * (one.parameters + one.mapnet)
    names = ("weights", "gradients", "optimizer")
    assert [one.memory[name] for name in names] == [weights, weights, 2 * weights]
    assert ddp.memory["buckets"] == weights
    assert [full.memory[name] for name in names] == [weights / 4, weights / 4, weights / 2]
    assert [grad.memory[name] for name in names] == [weights, weights / 4, weights / 2]
    assert one.memory["activations"] == pytest.approx(4 * ddp.memory["activations"], rel=0.1)


def test_what_does_not_fit_is_told():
    large = planned("training.batch=4096", "data.max_length=512", devices="1xL4")
    assert large.fits is False
    assert "may not fit 24 GiB: raise training.accumulation" in " ".join(lines_of(large, 0.4))
    assert planned(devices="1xL4").fits is True
    assert planned().fits is None


@pytest.mark.parametrize(
    ("overrides", "note"),
    [
        ([], "true gradient norms at every 4 steps cost more"),
        (["masking.proposal=oracle/pps"], "measuring the score oracle takes passes of its own"),
        (["watch.every=100", "masking.proposal=uniform/simple"], "looks at the variance are not counted"),
    ],
)
def test_what_is_left_out_is_told(overrides, note):
    assert any(note in line for line in planned(*overrides).notes)


# ---- the command


@pytest.mark.parametrize(
    "path",
    cases.mostly_full(sorted(RECIPES.glob("*.yaml")), lambda path: path.stem in ("continue", "mapnet-bert-base")),
    ids=lambda path: path.stem,
)
def test_every_recipe_can_be_planned(path, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cases.save_checkpoint(tmp_path / "bert")
    source = (
        ["model.source=bert", "data.max_length=32", "mapnet.shape.width=4"] if "source:" in path.read_text() else []
    )
    assert runs.command(["train", str(path), "--dry-run", "--devices", "8xH100", *source]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^model: \w+ForMaskedLM, [\d,]+ parameters, MAPNet [\d,]+$", out, re.MULTILINE)
    assert re.search(r"^budget: [\d,]+ steps, [\d.]+ [MGT] tokens at most$", out, re.MULTILINE)
    assert re.search(r"^time: .* on 8 × H100 at 40% of [\de.+]+ FLOP/s", out, re.MULTILINE)
    assert [path.name for path in tmp_path.iterdir()] == ["bert"]


def test_cells_and_rates_are_those_that_are_shown():
    whole, short = (planned("data.max_length=128", "training.batch=32", f"training.max_length={n}") for n in (128, 16))
    assert (whole.cells, short.cells, short.micro) == ((32,), (256,), 256)
    both = planned("data.max_length=128", "training.batch=32", "training.max_length={steps: {0: 16, 0.9: 128}}")
    assert (both.cells, both.micro) == ((256, 32), 32)
    said = "a step: 256 cells of 16 tokens, from 0.9 of the budget on 32 cells of 128; 32 of 128 at once"
    assert said in lines_of(both, 0.4)
    assert "a step: 32 cells of 128 tokens; 32 at once" in lines_of(whole, 0.4)
    ended = planned("data.max_length=128", "training.batch=32", "training.max_length={steps: {0: 16, 1: 128}}")
    assert (ended.cells, ended.micro, ended.flops) == (short.cells, short.micro, short.flops)
    uniform = ("masking.proposal=uniform/simple", "masking.mask_rate=0.9")
    assert planned("masking.proposal=uniform/simple@0.9").flops == planned(*uniform).flops
    half = planned("masking.proposal=uniform/simple", "masking.mask_rate={linear: {0: 0.2, 1: 0.4}}")
    assert half.flops == pytest.approx(planned("masking.proposal=uniform/simple", "masking.mask_rate=0.3").flops)


def test_the_mapnet_costs_arithmetic():
    with_it, without = (
        planned(f"masking.proposal={p}/simple" if p == "uniform" else f"masking.proposal={p}/pps")
        for p in ("mapnet", "uniform")
    )
    assert 1.02 < with_it.flops / without.flops < 1.1  # a tenth of the encoder's, which is not all


SHARDED = ("training.fsdp=full_shard", "--devices", "8xH100")
BAD = {
    "masks": (
        ["masking.proposal=uniform/disjoint:2", "training.batch=8", "--devices", "8xH100"],
        "no multiple of the 2",
    ),
    "number": (["--devices", "8"], "8 FLOP/s is impossible; write how many, x, and what: 8xH100"),
    "device": (["--devices", "8xH10"], "no FLOP/s are on record for 'h10'; did you mean 'h100'?"),
    "none": (["--devices", "0xH100"], "give one device at least"),
    "flops": (["--devices", "2x-3"], "-3 FLOP/s is impossible"),
    "share": (["--utilisation", "0"], "--utilisation 0.0 is no share"),
    "batch": (["--devices", "3xH100"], "training.batch 256 cannot be shared among 3 devices"),
    "out": (["--out", "x"], "--dry-run makes no folder; leave --out out"),
    "fsdp, alone": (["training.fsdp=full_shard"], "of which there is one; give more, such as --devices 8xH100"),
    "fsdp, target": ([*SHARDED], "fsdp: mapnet.target 'gradient' is measured by passes of its own"),
    "fsdp, score": ([*SHARDED, "masking.proposal=oracle/pps"], "fsdp: the score 'oracle' is measured by passes"),
    "fsdp, compiled": (
        [*SHARDED, "masking.proposal=uniform/simple", "training.compile=true"],
        "fsdp: a compiled encoder",
    ),
    "length": (["model.architecture=reformer", "model.config={}"], "reformer cannot be planned (If training, make"),
    "width": (["model.config.num_attention_heads=3"], "model.config makes no 'bert'"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_one_line(capsys, tmp_path, monkeypatch, what):
    monkeypatch.chdir(tmp_path)
    more, words = BAD[what]
    assert runs.command(["train", str(RECIPES / "mapnet-bert-tiny.yaml"), "--dry-run", *more]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1


def test_devices_by_name_and_by_number():
    assert parse_devices("8xH100", True).flops == 989e12
    assert parse_devices("a100", False).flops == 19.5e12
    assert parse_devices("2X2.5e14", True).count == 2
    with pytest.raises(GradvarError, match="no FLOP/s are on record for 'tpu'"):
        parse_devices("tpu", True)
