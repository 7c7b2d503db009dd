"""`gradvar finetune` from end to end: a task that can be learnt is learnt; what is done is not done again."""

import errno
import json
import re
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pandas
import pytest
import torch

from gradvar.cli import main
from gradvar.errors import GradvarError
from gradvar.finetuning import finetune as module
from gradvar.finetuning.reading import read_task
from gradvar.finetuning.tasks import TASKS
from gradvar.finetuning.tuning import FinetuneSettings, encode, tune
from gradvar.report.finetuned import Finetuned, SeedResult, TaskResult, notes_of
from tests import cases
from tests.finetuning import files

QUICK = ["--epochs", "12", "--learning-rate", "1e-2", "--batch", "16", "--cpu"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with checkpoints of several kinds and task files."""
    place = tmp_path_factory.mktemp("place")
    for kind in ("bert", "modernbert", "distilbert"):
        cases.save_checkpoint(place / kind, kind)
    for name in TASKS:
        files.write(place / "data", name)
    return place


@pytest.fixture
def run(capsys, tmp_path, monkeypatch, place):
    """Run the command in an empty folder; return its exit code and what it printed."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments, checkpoint="bert"):
        given = ["finetune", "--checkpoint", str(place / checkpoint), "--data", str(place / "data")]
        with pytest.raises(SystemExit) as stop:
            main([*given, *map(str, arguments)])
        printed = capsys.readouterr()
        return stop.value.code, printed.out, printed.err

    return call


class Asked(list):
    """Tasks and seeds that were to be tuned; `failing` says what some of them raise."""

    def __init__(self):
        self.failing = {}

    def tune(self, folder, tokenizer, prepared, settings, seed, *_):
        task = prepared.data.task
        if (task.name, seed) in self.failing:
            raise self.failing[task.name, seed]
        self.append((task.name, seed))
        return SeedResult(seed, dict.fromkeys(sorted(task.all_scores), 50.0 + seed), 1.0, 0.5, 10, 1.0)


@pytest.fixture
def asked(monkeypatch):
    """Let nothing be trained."""
    asked = Asked()
    monkeypatch.setattr(module, "tune", asked.tune)
    return asked


@pytest.mark.parametrize("checkpoint", ["bert", "modernbert"])
def test_other_encoders_learn(place, checkpoint):
    prepared = encode(read_task(TASKS["sst2"], str(place / "data")), cases.tokenizer(), 32)
    found = tune(place / checkpoint, cases.tokenizer(), prepared, FinetuneSettings(12, 16, 1e-2), 0, cpu=True)
    assert found.score > 90  # by chance: 50


def test_tasks_are_learnt(run):
    code, out, err = run("--task", "sst2,stsb,mnli", "--seeds", "2", "--out", "ft", *QUICK, checkpoint="distilbert")
    assert code == 0
    found = json.loads(Path("ft/results.json").read_text())
    assert found["schema"] == "gradvar/finetuned/v1"
    assert found["missing_seeds"] == 0
    assert list(found["tasks"]["mnli"]["metrics"]) == ["accuracy_matched", "accuracy_mismatched"]
    assert found["tasks"]["sst2"]["median"]["confidence"] == 0.5
    for name in ("sst2", "mnli"):
        assert found["tasks"][name]["median"]["estimate"] > 90  # by chance: 50, 33
    assert found["tasks"]["stsb"]["median"]["estimate"] > 50  # by chance: 0
    assert found["average"] == pytest.approx(sum(t["median"]["estimate"] for t in found["tasks"].values()) / 3)
    frame = pandas.read_csv("ft/results.csv")
    assert frame[["task", "seed"]].values.tolist() == [[t, s] for t in ("sst2", "stsb", "mnli") for s in (0, 1)]
    assert set(frame[frame.task == "sst2"].steps) == {48}
    assert re.search(r"^sst2 \(accuracy\) +\d+\.\d \[", out, re.MULTILINE)
    assert "Mean over these 3 tasks" in out
    assert re.search(
        r"^mnli, seed 1: accuracy matched \d+\.\d, accuracy mismatched \d+\.\d \(48 steps", err, re.MULTILINE
    )
    assert " ".join(out.split()).startswith(" ".join(Path("ft/summary.txt").read_text().split()))
    assert all(len(line) <= 80 for line in Path("ft/summary.txt").read_text().splitlines())


def test_what_is_done_is_not_done_again(run, asked):
    for task, seeds in (("rte", 2), ("rte", 3), ("cola", 1), ("rte,cola", 3)):
        assert run("--task", task, "--seeds", seeds, "--out", "ft")[0] == 0
    assert asked == [("rte", 0), ("rte", 1), ("rte", 2), ("cola", 0), ("cola", 1), ("cola", 2)]
    code, out, _ = run("--task", "rte", "--out", "ft", "--seeds", "3", "--json")
    assert code == 0
    assert len(asked) == 6
    assert set(json.loads(out)["tasks"]) == {"rte", "cola"}
    again = Finetuned.from_json(json.loads(out))
    assert again.to_json() == json.loads(out)


def summary():
    return " ".join(Path("ft/summary.txt").read_text().split())


@pytest.mark.parametrize(
    ("failure", "status"), [(KeyboardInterrupt(), 130), (GradvarError("rte, seed 1: the loss is not finite"), 2)]
)
def test_an_interruption_keeps_what_is_done(run, asked, failure, status):
    asked.failing["rte", 1] = failure
    assert run("--task", "rte,sst2", "--out", "ft")[0] == status
    found = Finetuned.from_json(json.loads(Path("ft/results.json").read_text()))
    assert [seed.seed for seed in found.tasks[0].seeds] == [0]
    assert found.missing == 9
    assert "rte: 4 of 5 seeds are missing; --task rte --seeds 5 goes on with them" in summary()
    assert "sst2: 5 of 5 seeds are missing" in summary()
    assert run("--task", "cola", "--seeds", 1, "--out", "ft")[0] == 0  # another task forgets nothing
    assert "rte: 4 of 5 seeds are missing" in summary()
    assert json.loads(Path("ft/results.json").read_text())["missing_seeds"] == 9
    assert run("--task", "rte", "--seeds", 1, "--out", "ft")[0] == 0  # fewer are asked for
    assert "rte: 4" not in summary()
    assert "sst2: 5 of 5 seeds are missing" in summary()
    assert run("--task", "sst2", "--seeds", 1, "--out", "ft")[0] == 0
    assert "missing" not in summary()
    assert asked == [("rte", 0), ("cola", 0), ("sst2", 0)]


def test_results_are_read_under_the_lock(run, asked, tmp_path, monkeypatch):
    """Those that another process has written until it let go of the folder count."""
    arguments = ("--task", "rte", "--seeds", 1, "--out", "ft")
    assert run(*arguments)[0] == 0
    (tmp_path / "ft").rename(tmp_path / "other")

    @contextmanager
    def held(out):
        (tmp_path / "other" / "results.json").rename(out / "results.json")
        yield

    monkeypatch.setattr(module, "held", held)
    assert run(*arguments)[0] == 0
    assert asked == [("rte", 0)]


def test_a_folder_in_use_is_left_alone(run, asked, tmp_path):
    lock = "import fcntl; f = open('ft/.lock', 'w'); fcntl.lockf(f, fcntl.LOCK_EX); print(flush=True); input()"
    (tmp_path / "ft").mkdir()
    with subprocess.Popen([sys.executable, "-c", lock], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        code, _, err = run("--task", "rte", "--out", "ft")
        other.communicate(b"\n")
    assert (code, asked) == (2, [])
    assert "ft is in use by another process" in err


def test_a_full_disk(run, asked, tmp_path, monkeypatch):
    def full(path, text, **_):
        path.write_bytes(text.encode()[:9])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    code, out, err = run("--task", "rte", "--out", "some/where")
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert "--out some/where cannot be written (No space left on device)" in err
    assert list(tmp_path.iterdir()) == []


def first(found):
    return found["tasks"]["rte"]["seeds"][0]


EDITS = {
    "words": (lambda x: first(x).update(steps="many"), "tasks.0.seeds.0.steps: Input should be a valid integer"),
    "nan": (lambda x: first(x)["metrics"].update(accuracy=float("nan")), "it holds NaN"),
    "negative": (lambda x: first(x).update(seed=-1), "greater than or equal to 0"),
    "twice": (lambda x: x["tasks"]["rte"]["seeds"].append(first(x)), "a seed of rte is there twice"),
    "metric": (lambda x: first(x).update(metrics={"bleu": 1}), "'rte' with bleu is no task of GLUE"),
    "task": (lambda x: x["tasks"].update(sst3=x["tasks"]["rte"]), "'sst3' with accuracy is no task of GLUE"),
    "tasks": (lambda x: x.update(tasks=[1]), "it lacks what a result has"),
    "a task": (lambda x: x["tasks"].update(rte=1), "it lacks what a result has"),
    "no seeds": (lambda x: x["tasks"]["rte"].update(seeds=[]), "the seeds of rte are not of the same metrics"),
    "a nan of nobody's": (lambda x: x["provenance"].update(x=float("nan")), "it holds NaN"),
    "percent": (lambda x: first(x)["metrics"].update(accuracy=1e308), "less than or equal to 100.01"),
    "seconds": (lambda x: first(x).update(seconds=-5.0), "greater than or equal to 0"),
    "asked of": (lambda x: x.update(asked_seeds={"foo": 3}), "'foo' is no task of GLUE"),
    "unasked": (lambda x: x.pop("asked_seeds"), "it lacks what a result has"),
    "unsaid": (lambda x: x["settings"].pop("bf16"), "it does not say what its bf16 was"),
    "asked": (lambda x: x.update(asked_seeds={"rte": "x"}), "asked.rte: Input should be a valid integer"),
    "settings": (lambda x: x.update(settings="ab"), "settings: Input should be a valid dictionary"),
    "schema": (lambda x: x.update(schema=2), "its schema is not gradvar/finetuned/v1"),
}


@pytest.fixture(scope="module")
def results(place, tmp_path_factory):
    """What a command leaves."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "tune", Asked().tune)
        module.finetune(place / "bert", "rte", place / "data", seeds=1, out=(out := tmp_path_factory.mktemp("ft")))
    return (out / "results.json").read_text()


@pytest.mark.parametrize("what", EDITS)
def test_edited_results_are_refused(run, asked, results, what):
    edit, message = EDITS[what]
    edit(found := json.loads(results))
    Path("ft").mkdir()
    Path("ft/results.json").write_text(json.dumps(found))
    code, out, err = run("--task", "rte", "--out", "ft")
    assert (code, out, asked) == (2, "", [])
    assert err.startswith("gradvar: ft/results.json cannot be gone on with (")
    assert message in err
    assert err.endswith("; remove it, or give another folder\n")
    assert err.count("\n") == 1


def test_empty_texts_are_told():
    seeds = (SeedResult(0, {"accuracy": 50.0}, 1.0, 0.5, 10, 1.0),)
    said = notes_of(Finetuned((TaskResult("rte", 9, 9, 0.0, 0, "", seeds, empty=2),), {"checkpoint": ""}, {}))
    assert "rte: 2 examples have an empty text, and were taken as they are" in said


@pytest.mark.parametrize(("seeds", "words"), [(1, "One seed has no interval"), (2, "Below 6 seeds"), (6, None)])
def test_what_the_notes_say_of_the_interval(seeds, words):
    found = [SeedResult(seed, {"accuracy": 50.0 + seed}, 1.0, 0.5, 10, 1.0) for seed in range(seeds)]
    said = " ".join(notes_of(Finetuned((TaskResult("rte", 9, 9, 0.0, 0, "", tuple(found)),), {"checkpoint": ""}, {})))
    for other in ("One seed has no interval", "Below 6 seeds"):
        assert (other in said) == (other == words)


def test_a_failure_leaves_nothing(run, tmp_path):
    code, _, err = run("--task", "rte", "--out", "some/where", "--learning-rate", "1e30", "--cpu")
    assert code == 2
    assert "lower --learning-rate" in err
    assert list(tmp_path.iterdir()) == []


def test_bfloat16_needs_a_gpu(run, asked):
    code, _, err = run("--task", "rte", "--bf16", "--cpu")
    assert (code, asked) == (2, [])
    assert "--bf16 needs a GPU that has bfloat16; leave it out" in err


def test_a_seed_decides_everything(place):
    task = read_task(TASKS["stsb"], str(place / "data"))
    prepared = encode(task, cases.tokenizer(), 32)
    settings = FinetuneSettings(epochs=1, learning_rate=1e-3)
    one, same, other = (
        tune(place / "bert", cases.tokenizer(), prepared, settings, seed, cpu=True) for seed in (0, 0, 1)
    )
    assert one.metrics == same.metrics
    assert one.training_loss == same.training_loss
    assert one.metrics != other.metrics


def test_texts_are_paired_and_cut(place):
    task = read_task(TASKS["rte"], str(place / "data"))
    whole, cut = (encode(task, cases.tokenizer(), length) for length in (32, 10))
    assert whole.cut == 0
    assert cut.cut == 1
    text, other = task.train.texts[0]
    ids = cases.tokenizer().convert_tokens_to_ids
    expected = [cases.CLS, *ids(text.split()), cases.SEP, *ids(other.split()), cases.SEP]
    assert whole.train[0]["input_ids"] == expected
    assert whole.train[0]["token_type_ids"] == [0] * 6 + [1] * 5
    assert len(cut.train[0]["input_ids"]) == 10
    assert whole.train[0]["labels"] == 0
    assert isinstance(
        encode(read_task(TASKS["stsb"], str(place / "data")), cases.tokenizer(), 32).train[0]["labels"], float
    )


BAD = {
    "no task": (["--seeds", "1"], "--task is missing"),
    "unknown task": (["--task", "sst"], "there is no task 'sst'; did you mean 'sst2'?"),
    "seeds": (["--task", "rte", "--seeds", "0"], "--seeds 0: give 1 or more"),
    "epochs": (["--task", "rte", "--epochs", "0"], "--epochs 0.0 is impossible"),
    "rate": (["--task", "rte", "--learning-rate", "nan"], "--learning-rate nan is impossible"),
    "decay": (["--task", "rte", "--weight-decay", "-1"], "--weight-decay -1.0 is impossible"),
    "length": (["--task", "rte", "--max-length", "512"], "beyond the 32 positions of the model; lower it"),
    "short": (["--task", "rte", "--max-length", "7"], "--max-length 7 is impossible"),
    "data": (["--task", "rte", "--data", "/no/such"], "--data /no/such is no folder"),
    "checkpoint": (["--task", "rte", "--checkpoint", "/no/such"], "no checkpoint at '/no/such'"),
    "no model": (["--task", "rte", "--checkpoint", "full"], "full has no config.json"),
    "file": (["--task", "rte", "--out", "file"], "--out file is a file"),
    "foreign": (["--task", "rte", "--out", "full"], "--out full holds 'thing', which is no part of such results"),
    "broken": (["--task", "rte", "--out", "broken"], "results.json cannot be gone on with"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_one_line(run, tmp_path, what):
    (tmp_path / "file").write_text("")
    for name, file in (("full", "thing"), ("broken", "results.json")):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text("{}")
    arguments, message = BAD[what]
    before = sorted(tmp_path.rglob("*"))
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def rewritten(path, old, new):
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (["--epochs", "0.2"], "results that were made otherwise (epochs 3.0, not 0.2)"),
        (["--checkpoint", "{place}/distilbert"], "made otherwise (checkpoint sha256 "),
        (["--checkpoint", "{other}"], "made otherwise (tokenizer sha256 "),
        (["--data", "{other}"], "results of other rte examples"),
    ],
)
def test_results_made_otherwise_are_not_gone_on_with(run, asked, place, tmp_path, changed, message):
    cases.save_checkpoint(tmp_path / "other", change=lambda at: rewritten(at / "tokenizer.json", '"w54"', '"u54"'))
    files.write(tmp_path / "other", "rte", dev=30)
    first = ["--task", "rte", "--seeds", "1", "--out", "ft"]
    assert run(*first)[0] == 0
    places = {"place": place, "other": tmp_path / "other"}
    code, _, err = run(*first, *(word.format(**places) for word in changed))
    assert code == 2
    assert message in err


def with_more_words(folder):
    cases.tokenizer(words=56).save_pretrained(folder)


def without_padding(folder):
    rewritten(folder / "tokenizer_config.json", '"pad_token": "[PAD]"', '"pad_token": null')


def with_other_shapes(folder):
    rewritten(folder / "config.json", '"intermediate_size": 24', '"intermediate_size": 32')


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (with_more_words, "has 61 tokens, the model 60; give the checkpoint the tokenizer that it was trained with"),
        (without_padding, "has no padding token; set its pad_token and save it there"),
        (with_other_shapes, "intermediate.dense.bias' has not the shape that config.json says"),
    ],
)
def test_checkpoints_that_do_not_fit_together(run, asked, tmp_path, capsys, change, message):
    cases.save_checkpoint(tmp_path / "odd", change=change)
    capsys.readouterr()
    code, _, err = run("--task", "rte", "--checkpoint", tmp_path / "odd")
    assert (code, asked) == (2, [])
    assert message in err
    assert err.count("\n") == 1


def test_an_encoder_that_is_not_whole(run, place, tmp_path):
    def without_a_layer(folder):
        from safetensors.torch import load_file, save_file

        weights = load_file(folder / "model.safetensors")
        save_file({n: w for n, w in weights.items() if "layer.1" not in n}, folder / "model.safetensors")

    cases.save_checkpoint(tmp_path / "half", change=without_a_layer)
    code, _, err = run("--task", "rte", "--checkpoint", tmp_path / "half")
    assert code == 2
    assert "weights lack 'bert.encoder.layer.1." in err


def test_torchrun_is_refused(monkeypatch, place):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(GradvarError, match="without torchrun"):
        module.finetune(place / "bert", "rte", place / "data")


def test_weights_stay_as_they_are(place):
    """The checkpoint is read, never written: its encoder is what the classifier begins with."""
    from transformers import AutoModelForMaskedLM

    from gradvar.huggingface.classifier import load_classifier

    masked = AutoModelForMaskedLM.from_pretrained(place / "bert").base_model.state_dict()
    built = [load_classifier(place / "bert", 3, seed) for seed in (0, 0, 1)]
    for name, weight in built[0].base_model.state_dict().items():
        if "pooler" not in name:
            assert torch.equal(weight, masked[name]), name
    heads = [model.classifier.weight for model in built]
    assert heads[0].shape == (3, 16)
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])
