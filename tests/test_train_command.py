"""`gradvar train` from end to end: the run's folder, interruptions, what other commands make of it, and bad input."""

import json
import os
import re
import shutil
import signal
from pathlib import Path

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForMaskedLM

from gradvar import checkpoints
from gradvar.huggingface.masked_lm import MaskedLM
from gradvar.mapnet.network import MapNet
from gradvar.training import clock
from gradvar.training import run as run_module
from gradvar.training import trainer as module
from tests import cases
from tests.test_cli import ROOT
from tests.training import runs


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with text, a recipe, and a finished run of it, `done`, with a MAPNet."""
    place = runs.make_place(tmp_path_factory.mktemp("place"))
    runs.write_recipe(place, masking={"proposal": runs.DRAWN})
    assert runs.command(runs.words(place, place / "done")) == 0
    return place


@pytest.fixture
def run(capsys, tmp_path, monkeypatch):
    """Run the command in an empty folder; return its exit code and what it printed."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        code = runs.command([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return call


# ---- a run


def test_what_watching_took_is_said(run, place):
    code, out, _ = run(*runs.words(place, Path("run")), "--steps", "4", "evaluation.sentences=8", *UNIFORM)
    assert code == 0
    assert re.search(r"^watching the variance took \d+ s beside that, [\d,]+% of it$", out, re.MULTILINE)
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "variance/mask" in line] == [0, 4]


def test_a_run_leaves_what_is_needed_and_says_so(run, place):
    code, out, err = run(*runs.words(place, Path("run")), "saving.loggers=[tensorboard]", "--steps", "7", "--seed", "3")
    assert code == 0
    assert sorted(os.listdir()) == ["run"]
    left = ["checkpoint-4", "checkpoint-7", "metrics.jsonl", "recipe.yaml", "tensorboard"]
    assert sorted(os.listdir("run")) == left
    loss = json.loads(Path("run/metrics.jsonl").read_text().splitlines()[-1])["eval_loss"]
    assert re.fullmatch(
        rf"held-out loss {loss:.4f} ± \d+\.\d{{4}} nats \(standard error over sentences\), perplexity [\d.]+, "
        r"accuracy [\d.]+%, after 7 steps and \d+ s of training\nmasks were drawn by mapnet\^0.5/pps~0.1 at the end\n"
        rf"wrote run: {', '.join(left)}; last checkpoint run/checkpoint-7\n",
        out,
    )
    assert "Traceback" not in err
    assert "train: 5 documents, 300 tokens, 30 sequences; dropped 0 tokens (0.0%), unknown 0.00%\n" in err
    assert "valid: 3 documents, 180 tokens, 18 sequences" in err
    assert re.search(r"model: BertForMaskedLM, [\d,]+ parameters, MAPNet [\d,]+\n", err)
    written = yaml.safe_load(Path("run/recipe.yaml").read_text())
    assert (written["seed"], written["training"]["steps"], written["training"]["clip"]) == (3, 7, 1.0)
    assert any(path.name.startswith("events.") for path in Path("run/tensorboard").iterdir())


def test_the_recipe_of_a_run_makes_the_same_run(run, place):
    run("train", place / "done/recipe.yaml", "--out", "again", "--cache", place / "cache", "--cpu")
    assert runs.differences(runs.everything(place / "done"), runs.everything(Path("again"))) == []


def test_a_line_of_metrics_has_everything(place):
    lines = [json.loads(line) for line in (place / "done" / "metrics.jsonl").read_text().splitlines()]
    training, held_out = lines[0], lines[1]
    assert [line["step"] for line in lines] == [3, 5, 6, 9, 10, 12, 14]
    names = "loss grad_norm learning_rate ess mapnet_loss skipped_steps tokens seconds epoch"
    assert {*names.split()} <= training.keys()
    assert held_out.keys() >= {"eval_loss", "eval_loss_se", "eval_perplexity", "eval_accuracy", "tokens", "seconds"}
    assert lines[-1]["tokens"] == 14 * 8 * 12
    assert lines[-1]["epoch"] == pytest.approx(14 * 8 / 30)


@pytest.mark.parametrize(("budget", "steps"), [({"tokens": 700}, 8), ({"tokens": 1}, 1), ({"steps": 2}, 2)])
def test_a_budget_is_what_is_used(run, place, budget, steps):
    ((name, value),) = budget.items()
    code, out, _ = run(*runs.words(place, Path("run")), f"--{name}", value)
    assert (code, f"after {steps} steps" in out) == (0, True)
    assert Path(f"run/checkpoint-{steps}").is_dir()


def test_a_budget_in_seconds(run, place, monkeypatch):
    """Two a step, by a clock that nothing else moves."""

    class Clock:
        now = 0.0
        perf_counter = staticmethod(lambda: Clock.now)
        monotonic = perf_counter

    step = module.MaskProposalTrainer.training_step

    def slow(*arguments, **options):
        Clock.now += 2
        return step(*arguments, **options)

    monkeypatch.setattr(clock, "time", Clock)
    monkeypatch.setattr(module.MaskProposalTrainer, "training_step", slow)
    words = [*runs.words(place, Path("run")), "saving.log_every=1"]
    assert run(*words, "--seconds", "17")[0] == 0
    lines = [line for line in runs.metrics(Path("run")) if "loss" in line]
    assert len(lines) == 9
    rates = [line["learning_rate"] for line in lines]
    assert rates[0] == 0
    assert rates[1] == max(rates)
    assert rates[-1] < 0.05 * max(rates)
    code, out, _ = run(*runs.resuming(place, Path("run")))
    assert (code, "after 9 steps" in out) == (0, True)


# ---- interruptions


def signalled(arguments, call, *numbers):
    """Run the command, and send signals to it in the nth step. To be forked."""

    def work():
        step, calls = module.MaskProposalTrainer.training_step, iter(range(1, 999))

        def once(*given, **options):
            if next(calls) == call:
                for number in numbers:
                    os.kill(os.getpid(), number)
            return step(*given, **options)

        module.MaskProposalTrainer.training_step = once  # in a process that ends with the test
        return runs.command(arguments)

    return work


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_an_interrupted_run_is_saved_and_goes_on(place, tmp_path, number, code):
    out = tmp_path / "run"
    assert runs.forked(signalled(runs.words(place, out), 7, number), log=tmp_path / "log") == [code]
    last = checkpoints.last_whole(out)
    assert last == out / "checkpoint-7"
    said = (tmp_path / "log").read_text()
    assert said.endswith(f"interrupted at step 7, saved in {last}; go on with\ngradvar train --resume {out}\n")
    assert runs.command(runs.resuming(place, out)) == 0
    assert runs.differences(runs.everything(place / "done"), runs.everything(out)) == []


@pytest.mark.full  # signals to forks are tested above and below
def test_ctrl_c_at_a_terminal(place, tmp_path):
    """It reaches the processes that load data, too."""
    straight, out = tmp_path / "straight", tmp_path / "run"
    more = ("--steps", "40", "saving.every=30", "training.workers=2")
    assert runs.command(runs.words(place, straight, *more)) == 0
    with runs.started(runs.words(place, out, *more)) as process:
        runs.once(process, out, step=6)
        os.killpg(process.pid, signal.SIGINT)
        printed, said = process.communicate(timeout=60)
    assert (process.returncode, printed, "Traceback" in said) == (130, "", False)
    assert said.endswith(f"gradvar train --resume {out}\n")
    assert 6 <= int(checkpoints.last_whole(out).name.removeprefix(checkpoints.PREFIX)) < 40
    assert runs.command(runs.resuming(place, out)) == 0
    assert runs.differences(runs.everything(straight), runs.everything(out)) == []


@pytest.mark.parametrize(
    ("numbers", "code"),
    [((signal.SIGTERM,) * 2, -signal.SIGTERM), ((signal.SIGINT,) * 2, 130), ((signal.SIGINT, signal.SIGTERM), -15)],
    ids=str,
)
def test_a_second_signal_ends_at_once(place, tmp_path, numbers, code):
    """In the step under way: nothing is saved, and what was saved before is whole."""
    work = signalled(runs.words(place, tmp_path / "run"), 7, *numbers)
    assert runs.forked(work, log=tmp_path / "log") == [code]
    assert checkpoints.whole(tmp_path / "run") == [tmp_path / "run" / "checkpoint-4"]
    assert "Traceback" not in (tmp_path / "log").read_text()


def test_a_signal_before_the_first_step_leaves_nothing(run, place, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("gradvar.training.run.prepare", interrupted)
    code, out, err = run(*runs.words(place, Path("run")))
    assert (code, out, err) == (130, "", "gradvar: interrupted; nothing is left half-written\n")
    assert os.listdir() == []


def test_a_run_that_came_first_is_left_alone(run, place, monkeypatch):
    """Two commands with one folder: the other one was done while this one tokenised its text."""
    prepare = run_module.prepare

    def slowly(*arguments):
        shutil.copytree(place / "done", "run")
        return prepare(*arguments)

    monkeypatch.setattr(run_module, "prepare", slowly)
    code, _, err = run(*runs.words(place, Path("run"), "--seed", "5"))
    assert code == 2
    assert "--out run is there already; go on with gradvar train --resume run, or give another folder" in err
    assert runs.differences(runs.everything(place / "done"), runs.everything(Path("run"))) == []
    assert (place / "done" / "recipe.yaml").read_bytes() == Path("run/recipe.yaml").read_bytes()


def test_sigterm_while_text_is_tokenised_leaves_nothing(place, tmp_path):
    def work():
        os.chdir(tmp_path)
        return runs.command([*runs.words(place, Path("run"))[:4], "--cache", "cache", "--cpu"])

    ended = runs.broken("gradvar.training.data:_write", 2, lambda: os.kill(os.getpid(), signal.SIGTERM), work)
    assert runs.forked(ended) == [143]
    assert list(tmp_path.rglob("*")) == [tmp_path / "cache"]


def test_a_run_takes_one_process(place, tmp_path):
    """A second one is told, and leaves all to the first."""
    out = tmp_path / "run"
    more = ("--steps", "40", "saving.every=30")
    straight = tmp_path / "straight"
    assert runs.command(runs.words(place, straight, *more)) == 0

    def twice():
        step, calls, second = module.MaskProposalTrainer.training_step, iter(range(99)), []

        def disturbed(*arguments, **options):
            if next(calls) == 35:
                second.extend(runs.forked(lambda: runs.command(runs.resuming(place, out)), log=tmp_path / "second"))
                assert second == [2]
            return step(*arguments, **options)

        module.MaskProposalTrainer.training_step = disturbed  # in a process that ends with the test
        return runs.command(runs.words(place, out, *more))

    assert runs.forked(twice, log=tmp_path / "log") == [0], (tmp_path / "log").read_text()
    said = (tmp_path / "second").read_text().splitlines()[-1]
    assert said == f"gradvar: {out} is in use by another process; wait for it, or end it"
    assert runs.differences(runs.everything(straight), runs.everything(out)) == []
    assert not (out / ".lock").exists()


def test_the_handlers_of_signals_are_given_back(place):
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler


# ---- resuming


@pytest.fixture
def finished(place, tmp_path):
    return shutil.copytree(place / "done", tmp_path / "done")


def test_a_finished_run_says_so(run, place, finished):
    before = runs.everything(finished)
    code, out, err = run(*runs.resuming(place, finished))
    assert code == 0
    assert "finished" in err
    assert re.match(r"held-out loss [\d.]+ ± [\d.]+ nats", out)
    assert "after 14 steps" in out
    assert runs.differences(before, runs.everything(finished)) == []


def test_a_finished_run_without_its_last_evaluation_is_evaluated(run, place, finished):
    before = runs.everything(finished)
    lines = (finished / "metrics.jsonl").read_text().splitlines(keepends=True)
    assert "eval_loss" in lines[-1]
    (finished / "metrics.jsonl").write_text("".join(lines[:-1]))
    code, out, _ = run(*runs.resuming(place, finished))
    assert (code, "after 14 steps" in out) == (0, True)
    assert runs.differences(before, runs.everything(finished)) == []


def test_a_line_of_metrics_that_was_cut_off_is_written_anew(run, place, finished):
    before = runs.everything(finished)
    checkpoints.remove(finished / "checkpoint-14")
    text = (finished / "metrics.jsonl").read_text()
    (finished / "metrics.jsonl").write_text(text[: text.index('"step": 14') + 30])
    assert run(*runs.resuming(place, finished))[0] == 0
    assert runs.differences(before, runs.everything(finished)) == []
    assert all(json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines())


# ---- a run's folder stands for its last whole checkpoint

STUDY = ["--max-length", "12", "--sentences", "4", "--masks", "2", "--json"]


def test_a_runs_folder_stands_for_its_last_checkpoint(run, place):
    data = ["--data", place / "valid.txt", *STUDY]
    results = [
        json.loads(run("decompose", "--checkpoint", path, *data, "--proposal", "mapnet/pps~0.1")[1])
        for path in (place / "done", place / "done/checkpoint-14")
    ]
    assert results[0]["layers"] == results[1]["layers"]
    assert results[0]["proposal"] == "mapnet/pps~0.1"
    hashes = [result["provenance"]["checkpoint_sha256"] for result in results]
    assert hashes[0] == hashes[1]
    older = run("decompose", "--checkpoint", place / "done/checkpoint-12", *data)
    assert json.loads(older[1])["provenance"]["checkpoint_sha256"] != hashes[0]


def test_a_run_without_a_whole_checkpoint_is_told_of(run, place):
    shutil.copytree(place / "done/checkpoint-14", "run/checkpoint-14")
    Path("run/checkpoint-14/model.safetensors").write_bytes(b"")
    code, out, err = run("decompose", "--checkpoint", "run", "--data", place / "valid.txt", *STUDY)
    assert (code, out) == (2, "")
    assert err.splitlines()[-1] == "gradvar: --checkpoint run: no checkpoint of this run is whole; give another one"


def test_a_mapnet_of_a_run_is_found_beside_its_encoder_or_by_the_runs_folder(place):
    own, given = (
        MapNet.from_pretrained(place / "done/checkpoint-14"),
        MapNet.from_pretrained(place / "done/checkpoint-12"),
    )
    for mapnet, expected in ((None, own), (place / "done", own), (place / "done/checkpoint-12", given)):
        objective = MaskedLM.from_checkpoint(
            place / "done", place / "valid.txt", max_length=12, proposal="mapnet/pps~0.1", mapnet=mapnet
        )
        score = objective.known_scores["mapnet"]
        used = next(value for value in vars(score).values() if isinstance(value, MapNet))
        assert runs.differences(dict(used.state_dict()), dict(expected.state_dict())) == []


def test_a_run_goes_into_a_comparison_with_its_mapnet(run, place):
    data = ["--checkpoint", place / "model", "--data", place / "valid.txt", "--max-length", "12", "--sentences", "6"]
    code, out, err = run(
        "compare", "--proposals", "uniform/simple,mapnet/pps~0.1", *data, "--mapnet-dir", place / "done", "--json"
    )  # fmt: skip
    assert code == 0, err
    assert json.loads(out)["schema"].startswith("gradvar/")


def test_a_run_can_start_from_a_run(run, place):
    """From its last checkpoint, tokenizer included; a step of next to no size leaves it as it was."""
    runs.write_recipe(place, "more.yaml", model={"architecture": None, "config": {}, "source": str(place / "done")})
    words = ["train", place / "more.yaml", "--out", "more", "--cache", place / "cache", "--cpu", "--steps", "1"]
    assert run(*words, "training.learning_rate=1e-30")[0] == 0
    models = [AutoModelForMaskedLM.from_pretrained(p) for p in (place / "done/checkpoint-14", "more/checkpoint-1")]
    assert torch.equal(*(model.cls.predictions.transform.dense.weight for model in models))


# ---- bad input


@pytest.fixture(scope="module")
def bad(place):
    """The folder, with what is bad in it."""
    runs.write_recipe(place, "typo.yaml", training={"learning_rat": 1e-3})
    runs.write_recipe(place, "type.yaml", training={"batch": "many"})
    (place / "broken.yaml").write_text("training: {steps: 3\n")
    (place / "list.yaml").write_text("- 1\n- 2\n")
    (place / "empty.yaml").write_text("")
    runs.write_recipe(place, "nodata.yaml", data={"train": None})
    runs.write_recipe(place, "gone.yaml", data={"train": str(place / "nowhere.txt")})
    other = cases.tokenizer(40)
    other.save_pretrained(place / "other")
    source = {"architecture": None, "config": {}, "source": str(place / "model")}
    runs.write_recipe(place, "vocabulary.yaml", model=source, data={"tokenizer": {"source": str(place / "other")}})
    runs.write_recipe(place, "both.yaml", model={"source": str(place / "model")})
    (place / "bare").mkdir()
    (place / "bare" / "note").write_text("of the user's")
    for name, change in (("edited", lambda text: text.replace("batch: 8", "batch: 4")), ("torn", str)):
        shutil.copytree(place / "done", place / name)
        recipe = place / name / "recipe.yaml"
        recipe.write_text(change(recipe.read_text()))
    for folder in (place / "torn").glob("checkpoint-*"):
        (folder / "optimizer.pt").write_bytes(b"")
    return place


FRESH = "{place}/recipe.yaml --out new/run"
BAD = [
    ("", "give a recipe, such as recipes/"),
    ("{place}/recipe.yaml", "give --out, the folder of the run"),
    (
        "nowhere.yaml --out new",
        "the recipe 'nowhere.yaml' cannot be read (No such file or directory); give a YAML file",
    ),
    ("{place}/typo.yaml --out new", "typo.yaml: unknown key 'training.learning_rat'; did you mean 'learning_rate'?"),
    ("{place}/type.yaml --out new", "type.yaml: training.batch: integer not 'many'"),
    ("{place}/broken.yaml --out new", "broken.yaml, line not YAML"),
    ("{place}/list.yaml --out new", "list.yaml holds no sections"),
    ("{place}/empty.yaml --out new", "empty.yaml holds no sections"),
    ("{place}/nodata.yaml --out new", "there is no text to train on; give --data FILE"),
    ("{place}/gone.yaml --out new", "no data at nowhere.txt"),
    ("{place}/vocabulary.yaml --out new", "the vocabulary of the data (45 tokens) is not that of (60; leave"),
    ("{place}/both.yaml --out new", "both.yaml: model: 'architecture' 'source' one of the two"),
    ("{place}/recipe.yaml --out {place}/done", "done is there already; go on with gradvar train --resume"),
    ("{place}/recipe.yaml --out {place}/bare", "bare is there already; give another folder"),
    ("{place}/recipe.yaml --out {place}/train.txt", "train.txt is there already; give another folder"),
    (f"{{place}}/recipe.yaml --out {'a' * 300}/run", "cannot be written (File name too long); give another folder"),
    ("{place}/recipe.yaml --out {place}/train.txt/run", "train.txt/run cannot be written (Not a directory)"),
    (f"{FRESH} --steps 3 --tokens 100", "--steps and --tokens: give one budget"),
    (f"{FRESH} --steps 0", "training.steps: greater than or equal to 1, not 0"),
    (f"{FRESH} --seconds nan", "training.seconds: finite number"),
    (f"{FRESH} --seed -1", "seed: greater than or equal to 0, not -1"),
    (f"{FRESH} training.accumulation=3", "training.batch 8 is no multiple of 3 micro-batches"),
    (f"{FRESH} training.batch=64", "hold 30 sequences, fewer than the 64 of one step; give more text, a smaller batch"),
    (f"{FRESH} training.schedule=cosinus", "training cosinus cosine"),
    (f"{FRESH} training.schedule=cosine_with_min_lr", "cosine_with_min_lr"),
    (f"{FRESH} training.schedule=warmup_stable_decay", "warmup_stable_decay"),
    (f"{FRESH} training.schedule=reduce_lr_on_plateau --seconds 1", "reduce_lr_on_plateau"),
    (f"{FRESH} training.warmup=2", "training.warmup: less than 1, not 2"),
    (f"{FRESH} training.betas=[0.9]", "training.betas"),
    (f"{FRESH} training", "'training' is no override; write section.key=value"),
    (f"{FRESH} training.steps=[", "'training.steps=[': the value is not YAML"),
    (f"{FRESH} trainig.steps=3", "unknown key 'trainig'; did you mean 'training'?"),
    (f"{FRESH} masking.mask_rate=1.5", "masking.mask_rate: less than 1, not 1.5"),
    (f"{FRESH} --proposal uniform/simpel", "simpel"),
    (f"{FRESH} --proposal unifrom/simple", "unifrom"),
    (f"{FRESH} --proposal uniform/disjoint:3", "training.batch 8 is no multiple of 3 masks"),
    (f"{FRESH} --proposal uniform/disjoint:5 training.batch=10", "5 disjoint masks do not fit into a sentence"),
    (f"{FRESH} masking.masks=3 --proposal uniform/disjoint:2", "masking.masks 3 is no multiple of the 2 masks"),
    (f"{FRESH} mapnet.shape.hieght=3", "unknown key 'mapnet.shape.hieght'; there are embeddings, width,"),
    (f"{FRESH} mapnet.shape.width=-8", "width"),
    (f"{FRESH} mapnet.shape.width=wide", "wide"),
    (f"{FRESH} mapnet.shape.heads=3", "heads"),
    (f"{FRESH} mapnet.every=2", "mapnet: 'every' belongs to target: gradient"),
    (f"{FRESH} model.architecture=brt", "model.architecture 'brt' has no masked LM; did you mean bert"),
    (f"{FRESH} model.config.hiden_size=3", "model.config has no key 'hiden_size' for 'bert'; hidden_size"),
    (f"{FRESH} model.config.num_attention_heads=3", "model.config makes no 'bert'"),
    (f"{FRESH} data.max_length=33", "data.max_length 33 is beyond the 32 positions of the model"),
    (f"{FRESH} saving.loggers=[abacus]", "abacus"),
    ("--resume nowhere", "--resume nowhere: it is no folder; give the --out folder"),
    ("--resume {place}/bare", "bare: it holds no whole checkpoint; give"),
    ("--resume {place}/torn", "torn: it holds no whole checkpoint; give"),
    ("--resume {place}/edited", "edited/recipe.yaml was changed since the run began (training.batch); restore it"),
    ("--resume {place}/done --steps 20", "--resume takes nothing but the folder of a run"),
    ("{place}/recipe.yaml --resume {place}/done", "--resume takes nothing but the folder of a run"),
    ("--resume {place}/done --out new", "--resume takes nothing but the folder of a run"),
]


@pytest.mark.parametrize(("given", "words"), BAD, ids=[given or "nothing" for given, _ in BAD])
def test_bad_input_gets_one_line_and_leaves_nothing(run, bad, given, words):
    before = sorted(path for path in bad.rglob("*") if "cache" not in path.parts)
    words_given = [word.format(place=bad) for word in given.split(" ") if word]
    code, out, err = run("train", *words_given, "--cache", bad / "cache", "--cpu")
    *progress, message = err.splitlines()
    assert (code, out) == (2, "")
    assert message.startswith("gradvar: ")
    assert [word for word in words.split() if word not in message] == []
    assert [line for line in progress if not line.startswith(("train: ", "valid: ", "model: "))] == []
    assert os.listdir() == []
    assert sorted(path for path in bad.rglob("*") if "cache" not in path.parts) == before


def test_other_text_under_the_same_name_is_refused(run, tmp_path):
    (tmp_path / "place").mkdir()
    place = runs.make_place(tmp_path / "place")
    assert run(*runs.words(place, place / "run"), "--steps", "5")[0] == 0
    checkpoints.remove(place / "run" / "checkpoint-5")
    (place / "train.txt").write_text((place / "train.txt").read_text() * 2)
    before = sorted((place / "run").rglob("*"))
    code, out, err = run(*runs.resuming(place, place / "run"))
    assert (code, out) == (2, "")
    assert err.splitlines()[-1].startswith(f"gradvar: {place / 'train.txt'} is another text than the run began with")
    assert sorted((place / "run").rglob("*")) == before


def test_a_full_disk_is_one_line(run, place, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    code, out, err = run(*runs.words(place, Path("run")))
    assert (code, out) == (2, "")
    expected = "gradvar: the checkpoint of step 4 cannot be written (No space left on device); there is no earlier one"
    assert err.splitlines()[-1].startswith(expected)
    assert sorted(os.listdir("run")) == ["metrics.jsonl", "recipe.yaml"]


@pytest.mark.full
@pytest.mark.parametrize("recipe", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_is_one(recipe):
    from gradvar.training.reading import read_recipe

    assert read_recipe(recipe).training.batch > 0


# ---- found by a review


@pytest.mark.full
def test_a_signal_to_the_whole_group_saves_with_workers_too(place, tmp_path):
    """As a scheduler sends it: to the loading processes as well."""
    process = runs.started(runs.words(place, tmp_path / "run", "--steps", "4000", "training.workers=2"))
    runs.once(process, tmp_path / "run", 6)
    os.killpg(process.pid, signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "Traceback" not in err
    assert f"gradvar train --resume {tmp_path / 'run'}" in err
    assert checkpoints.last_whole(tmp_path / "run") is not None


def test_a_continued_run_goes_on_without_what_it_began_with(run, place):
    """Encoder, tokenizer and MAPNet come from the first run, whose folder is gone when the second one is resumed."""
    shutil.copytree(place / "done", "first")
    text = yaml.safe_load((place / "recipe.yaml").read_text())
    text["model"], text["data"]["tokenizer"], text["mapnet"] = {"source": "first"}, {}, {"calibrate_every": 1}
    Path("next.yaml").write_text(yaml.safe_dump(text))
    code, _, err = run("train", "next.yaml", "--out", "second", "--cache", "cache", "--cpu", "--steps", "9")
    assert code == 0
    assert re.search(r"^going on with the MAPNet of /.*/first/checkpoint-14$", err, re.MULTILINE)
    one, other = (MapNet.from_pretrained(path).config for path in ("first/checkpoint-14", "second/checkpoint-9"))
    assert one == other
    shutil.rmtree("first")
    shutil.rmtree("second/checkpoint-9")
    code, out, err = run(*runs.resuming(Path("."), Path("second")))
    assert code == 0, err
    assert "after 9 steps" in out


@pytest.mark.parametrize(
    ("proposal", "words"),
    [
        ("frequency/hard", "carries no weights; what it trains is another objective"),
        ("frequency/pps", "only as far as targets do not interact"),
        ("uniform/simple@0.5", "masks of 50% train another objective"),
        ("frequency/midzuno", None),
    ],
)
def test_a_proposal_that_changes_the_objective_says_so(run, place, proposal, words):
    code, _, err = run(*runs.words(place, Path("run")), "--steps", "1", "--proposal", proposal)
    assert code == 0
    assert ("note:" in err) == (words is not None)
    assert words is None or words in err


# ---- folders in a state of their own


@pytest.mark.parametrize(
    ("odd", "words"),
    [
        (b"masking: [", "not YAML"),
        (b"\xff\xfe", "is not UTF-8 text"),
        (b"- a list", "holds no sections"),
        (None, "cannot be read (Is a directory)"),
    ],
)
def test_a_recipe_that_cannot_be_read_any_more(run, place, finished, odd, words):
    recipe = finished / "recipe.yaml"
    recipe.unlink()
    recipe.mkdir() if odd is None else recipe.write_bytes(odd)
    code, _, err = run(*runs.resuming(place, finished))
    assert code == 2
    assert words in err
    assert err.count("\n") == 1


def test_a_run_of_a_script_is_gone_on_with_by_the_script(run, place):
    runs.trainer(Path("script"), max_steps=1).train()
    code, _, err = run(*runs.resuming(place, Path("script")))
    assert code == 2
    assert "a script made this run; go on with it there" in err


def test_lines_of_metrics_that_are_none_are_passed_over(run, place, finished):
    lines = (finished / "metrics.jsonl").read_text()
    (finished / "metrics.jsonl").write_text('{"loss": 1}\n[3]\n4\n' + lines)
    shutil.rmtree(finished / "checkpoint-14")
    assert run(*runs.resuming(place, finished))[0] == 0
    assert runs.differences(runs.everything(place / "done"), runs.everything(finished)) == []


def test_a_finished_run_without_a_finite_loss_is_told_of(run, place, finished):
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    nothing = dict.fromkeys(("eval_loss", "eval_loss_se", "eval_perplexity"))
    written = (json.dumps(line | nothing if "eval_loss" in line else line) + "\n" for line in lines)
    (finished / "metrics.jsonl").write_text("".join(written))
    code, out, _ = run(*runs.resuming(place, finished))
    assert code == 0
    assert "held-out loss nan" in out


WATCHED = ["watch.every=4", "watch.sentences=8", "watch.masks=4"]
UNIFORM = [*WATCHED, "--proposal", "uniform/simple"]


def looks(folder):
    return [line["step"] for line in runs.metrics(folder) if "variance/mask" in line]


WATCHES = pytest.mark.parametrize(
    "watched", [UNIFORM, pytest.param(WATCHED, marks=pytest.mark.full)], ids=["uniform", "mapnet"]
)


@WATCHES
def test_the_last_look_is_made_up_for(run, place, tmp_path, watched):
    words = runs.words(place, tmp_path / "cut", *watched, "--steps", "6")
    killed = runs.dying("gradvar.training.watch:decompose", 3, lambda: runs.command(words))
    assert runs.forked(killed, log=tmp_path / "log") == [-signal.SIGKILL]
    assert looks(tmp_path / "cut") == [0, 4]
    assert run(*runs.resuming(place, tmp_path / "cut"))[0] == 0
    assert looks(tmp_path / "cut") == [0, 4, 6]
    assert run(*runs.words(place, tmp_path / "whole", *watched, "--steps", "6"))[0] == 0

    def figures(folder):
        lines = runs.metrics(folder)
        return [{k: v for k, v in line.items() if k != "watch/seconds"} for line in lines]

    def sort(lines):
        return sorted(lines, key=lambda line: (line["step"], sorted(line)))

    assert sort(figures(tmp_path / "cut")) == sort(figures(tmp_path / "whole"))
    code, _, err = run(*runs.resuming(place, tmp_path / "cut"))
    assert code == 0
    assert "this run is finished" in err


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.full)]
)
@WATCHES
def test_a_signal_in_the_last_look_ends_the_run_which_goes_on(run, place, tmp_path, number, code, watched):
    words = runs.words(place, tmp_path / "cut", *watched, "--steps", "6")

    def interrupted():
        os.kill(os.getpid(), number)

    work = runs.broken("gradvar.training.watch:decompose", 3, interrupted, lambda: runs.command(words))
    assert runs.forked(work, log=tmp_path / "log") == [code]
    assert f"gradvar train --resume {tmp_path / 'cut'}" in (tmp_path / "log").read_text()
    assert run(*runs.resuming(place, tmp_path / "cut"))[0] == 0
    assert looks(tmp_path / "cut") == [0, 4, 6]


@pytest.mark.parametrize("empty", [False, True])
def test_a_run_that_fails_in_its_first_step_leaves_nothing(run, place, empty):
    out = Path("above/run")
    if empty:
        out.mkdir(parents=True)
    code, _, err = run(*runs.words(place, out, "--proposal", "file=nope.json/pps"))
    assert code == 2
    assert "nope.json" in err
    assert list(Path().rglob("*")) == ([Path("above"), out] if empty else [])


def test_one_held_out_sequence(run, place):
    Path("one.txt").write_text(" ".join(f"w{i}" for i in range(10)))
    words = [*runs.words(place, Path("run")), "data.valid=one.txt", "--steps", "2"]
    code, _, err = run(*words, "watch.every=4")
    assert code == 2
    assert "watch.every takes 4 held-out sequences, of which there are 1; give more text" in err
    assert not Path("run").exists()
    code, out, _ = run(*words)
    assert code == 0
    assert "± nan nats" in out


def test_a_run_can_be_gone_on_with_from_elsewhere(run, place, monkeypatch):
    for name in ("train.txt", "valid.txt"):
        shutil.copy(place / name, name)
    shutil.copytree(place / "model", "model")
    text = yaml.safe_load((place / "recipe.yaml").read_text())
    text["data"] |= {"train": "train.txt", "valid": "valid.txt", "tokenizer": {"source": "model"}}
    Path("near.yaml").write_text(yaml.safe_dump(text))
    assert run("train", "near.yaml", "--out", "run", "--cache", place / "cache", "--cpu")[0] == 0
    shutil.rmtree("run/checkpoint-14")
    home = Path.cwd()
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    code, _, err = run(*runs.resuming(place, home / "run"))
    assert code == 0, err
    assert checkpoints.last_whole(home / "run").name == "checkpoint-14"


def test_a_run_is_studied_with_the_length_that_it_was_trained_with(run, place):
    code, out, _ = run(
        "decompose", "--checkpoint", place / "done", "--data", place / "valid.txt", "--sentences", "4", "--json"
    )
    assert code == 0
    assert json.loads(out)["study"]["max_length"] == 12


def test_a_run_that_fails_takes_nothing_of_others(run, place, monkeypatch):
    """A run beside it that began in the meantime, what a user put there, and a cache in the run's folder."""
    build = run_module.build_encoder

    def meanwhile(*arguments):
        Path("runs/b").mkdir()
        Path("runs/a/notes.txt").write_text("mine")
        return build(*arguments)

    monkeypatch.setattr(run_module, "build_encoder", meanwhile)
    words = ["train", place / "recipe.yaml", "--out", "runs/a", "--cache", "runs/a/cache", "--cpu"]
    assert run(*words, "--proposal", "file=nope.json/pps")[0] == 2
    left = {str(path) for path in Path("runs").rglob("*") if "cache/" not in str(path)}
    assert left == {"runs/a", "runs/b", "runs/a/notes.txt", "runs/a/cache"}


@WATCHES
def test_tensorboard_has_the_last_look_and_the_last_evaluation(run, place, watched):
    words = runs.words(place, Path("run"), *watched, "--steps", "7", "saving.loggers=[tensorboard]")
    assert run(*words)[0] == 0
    events = EventAccumulator("run/tensorboard").Reload()
    assert [event.step for event in events.Scalars("train/variance/mask")] == [0, 4, 7]
    assert [event.step for event in events.Scalars("eval/loss")] == [5, 7]
    assert sorted(path.name for path in Path("run").iterdir() if path.is_dir() and "-" not in path.name) == [
        "tensorboard"
    ]


@pytest.mark.parametrize("what", ["add_scalar", "flush"])
def test_a_full_disk_for_tensorboard_is_one_line(run, place, monkeypatch, what):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(f"torch.utils.tensorboard.SummaryWriter.{what}", full)
    code, out, err = run(*runs.words(place, Path("run"), "saving.loggers=[tensorboard]"))
    assert (code, out) == (2, "")
    expected = "gradvar: run/tensorboard cannot be written (No space left on device); make room, then start anew in an"
    assert err.splitlines()[-1].startswith(expected)


@WATCHES
def test_a_signal_in_the_last_save_ends_the_run_without_a_look(place, tmp_path, watched):
    words = runs.words(place, tmp_path / "cut", *watched, "--steps", "6")
    publish = checkpoints.publish

    def interrupted(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        publish(*arguments)

    def start():
        checkpoints.publish = lambda *given: (interrupted if given[-1] == 6 else publish)(*given)
        return runs.command(words)

    assert runs.forked(start, log=tmp_path / "log") == [143]
    assert looks(tmp_path / "cut") == [0, 4]
    assert checkpoints.last_whole(tmp_path / "cut").name == "checkpoint-6"


def test_a_score_files_path_is_made_absolute(run, place):
    Path("scores.tsv").write_text("w1\t3\n*\t1\n")
    assert run(*runs.words(place, Path("run"), "--proposal", "file=scores.tsv^0.5/pps", "--steps", "2"))[0] == 0
    masking = yaml.safe_load(Path("run/recipe.yaml").read_text())["masking"]
    assert masking["proposal"] == f"file={Path.cwd()}/scores.tsv^0.5/pps"


def test_a_full_disk_at_the_first_save_says_to_start_anew(run, place, monkeypatch):
    monkeypatch.setattr(
        checkpoints, "publish", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    code, _, err = run(*runs.words(place, Path("run"), "saving.log_every=50"))
    assert code == 2
    assert "there is no earlier one: make room in run, then start anew in another folder" in err
