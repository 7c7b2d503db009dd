import json
import math
import os
import subprocess
import sys
import tomllib
from itertools import product
from pathlib import Path

import pandas
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import BertModel, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from gradvar.cli import main
from gradvar.persample import onepass, rules
from gradvar.report import figures
from gradvar.report.writer import CELLS, FILES
from tests import cases

ROOT = Path(__file__).parents[1]
SIZES = ["--max-length", "12", "--sentences", "6", "--masks", "2"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with every checkpoint and text, good and bad, that the command is given below."""
    place = tmp_path_factory.mktemp("place")
    for kind in cases.ARCHITECTURES:
        cases.save_checkpoint(place / kind, kind)
    cases.write_text(place / "text.txt", documents=4)
    for name, change in DAMAGES.items():
        cases.save_checkpoint(place / name, change=change)
    for name, content in TEXTS.items():
        (place / name).write_bytes(content)
    return place


@pytest.fixture
def run(capsys, tmp_path, monkeypatch):
    """Run the command in an empty folder; return its exit code and what it printed."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return stop.value.code, printed.out, printed.err

    return call


@pytest.fixture
def decompose(run, place):
    """Run a small `gradvar decompose`; `{place}` in an option stands for the folder, and None leaves one out."""

    def call(*more, **options):
        given = {"checkpoint": "{place}/bert", "data": "{place}/text.txt"} | options
        chosen = [
            word
            for name, value in given.items()
            if value is not None
            for word in (f"--{name.replace('_', '-')}", str(value).format(place=place))
        ]
        return run("decompose", *SIZES, *chosen, *more)

    return call


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("kind", ["bert", pytest.param("modernbert", marks=pytest.mark.full)])
def test_a_full_run_prints_a_table_and_writes_a_report(decompose, kind):
    code, out, err = decompose("--save-cells", checkpoint=f"{{place}}/{kind}", out="report")
    assert code == 0
    assert sorted(os.listdir()) == ["report"]
    assert sorted(os.listdir("report")) == sorted(FILES)
    table, _, written = out.rpartition("\n\n")
    assert [word for word in ("from 6 sentences × 2 masks", "data", "mask", "noise scale") if word not in table] == []
    assert written == f"wrote report: {', '.join(sorted(FILES))}\n"
    assert err.startswith("loading the checkpoint and the data\n")
    assert err.splitlines()[-1].startswith("12/12 cells, ")


@pytest.mark.parametrize("kind", cases.ARCHITECTURES)
def test_every_architecture_is_measured(decompose, kind):
    code, out, err = decompose("--json", checkpoint=f"{{place}}/{kind}")
    assert (code, "12/12 cells" in err) == (0, True)
    printed = json.loads(out)
    assert printed["study"]["engine"] == ("onepass" if kind in cases.ONE_PASS else "reference")
    assert printed["components"]["mask"]["estimate"] > 0


@pytest.mark.usefixtures("undrawn")
def test_the_reference_engine_comes_with_a_notice(decompose):
    code, out, _ = decompose(checkpoint="{place}/deberta-v2", out="report")
    words = "the slow reference engine was used, as the one-pass engine cannot measure this: "
    assert code == 0
    assert f"note: {words}" in " ".join(out.split())
    printed = json.loads(Path("report/decomposition.json").read_text())
    assert printed["study"]["engine"] == "reference"
    assert [line[: len(words)] for line in printed["notices"]].count(words) == 1
    code, _, err = decompose(checkpoint="{place}/deberta-v2", engine="onepass")
    assert (code, err.splitlines()[-1].endswith("; use --engine reference")) == (2, True)


@pytest.mark.usefixtures("undrawn")
def test_json_is_all_there_is_on_stdout(decompose):
    code, out, err = decompose("--json", "--overwrite", out="report")
    assert code == 0
    printed = json.loads(out)
    assert printed == json.loads(Path("report/decomposition.json").read_text())
    assert printed["study"].items() >= {"sentences": 6, "masks": 2, "max_length": 12}.items()
    assert "12/12 cells" in err
    assert CELLS not in os.listdir("report")


def test_dropout_is_a_third_level_everywhere(decompose):
    code, out, _ = decompose("--save-cells", out="report", dropout=3)
    assert code == 0
    assert "from 6 sentences × 2 masks × 3 dropouts" in out
    printed = json.loads(Path("report/decomposition.json").read_text())
    assert printed["levels"] == ["data", "mask", "dropout"]
    assert printed["study"].items() >= {"sentences": 6, "masks": 2, "dropout": 3}.items()
    for part in (printed, *printed["layers"]):
        assert set(part["components"]) == {"data", "mask", "dropout"}
    cells = pandas.read_parquet(f"report/{CELLS}")
    assert list(zip(cells["mask"], cells["dropout"], strict=True)) == list(product(range(2), range(3))) * 6
    assert cells["sentence"].nunique() == 6
    by_mask = cells.assign(ids=cells["corrupted_ids"].map(tuple)).groupby(["sentence", "mask"])
    assert by_mask["ids"].nunique().eq(1).all()
    assert by_mask["loss"].nunique().eq(3).all()
    total = pandas.read_csv("report/layers.csv").iloc[0]
    assert total["variance_dropout"] == pytest.approx(printed["components"]["dropout"]["estimate"])


def test_every_option_reaches_the_study(decompose):
    options = {"mask_rate": 0.4, "replacement": "50,20,30", "weighting": "token", "engine": "reference", "seed": 7}
    options |= {"dtype": "float64", "cost_sentence": 1, "cost_mask": 2, "memory": "64GiB", "device": "cpu"}
    code, out, _ = decompose("--json", "--no-pack", parameters="LayerNorm", **options)
    assert code == 0
    printed = json.loads(out)
    expected = {
        "mask_rate": 0.4,
        "replacement": [0.5, 0.2, 0.3],
        "weighting": "token",
        "engine": "reference",
        "seed": 7,
    }
    assert printed["study"].items() >= (expected | {"dtype": "float64", "population": 8}).items()
    assert {layer["name"].rpartition(".")[2] for layer in printed["layers"]} == {"LayerNorm"}
    assert (printed["advice"]["cost_sentence"], printed["advice"]["cost_mask"]) == (1, 2)


def test_the_same_command_gives_the_same_numbers(decompose):
    first, second, other = (json.loads(decompose("--json", seed=seed)[1]) for seed in (3, 3, 4))
    assert first["layers"] == second["layers"]
    assert first["layers"] != other["layers"]


def test_without_an_option_the_embedded_default_is_used(decompose, monkeypatch, place):
    monkeypatch.setattr("gradvar.demo.DEMO_CHECKPOINT", place / "modernbert")
    monkeypatch.setattr("gradvar.demo.DEMO_TEXT", place / "text.txt")
    code, out, _ = decompose("--json", checkpoint=None, data=None)
    assert code == 0
    assert json.loads(out)["provenance"]["checkpoint"] == str(place / "modernbert")


def test_a_random_head_on_request(decompose):
    assert decompose("--json", "--allow-random-head", checkpoint="{place}/headless")[0] == 0


def scaled(name, factor):
    def change(folder):
        weights = load_file(folder / "model.safetensors")
        weights[name] *= factor
        save_file(weights, folder / "model.safetensors", {"format": "pt"})

    return change


def causal(folder):
    special = {"bos_token_id": 2, "eos_token_id": 3}
    config = GPT2Config(vocab_size=60, n_embd=8, n_layer=1, n_head=1, n_positions=32, **special)
    GPT2LMHeadModel(config).save_pretrained(folder)


def maskless(folder):
    raw = Tokenizer.from_file(str(folder / "tokenizer.json"))
    PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="[PAD]").save_pretrained(folder)


class Malicious:
    def __reduce__(self):
        return Path.touch, (Path("touched"),)


def pickled(folder):
    (folder / "model.safetensors").unlink()
    torch.save({"weight": Malicious()}, folder / "pytorch_model.bin")


DAMAGES = {
    "weightless": lambda folder: (folder / "model.safetensors").unlink(),
    "headless": lambda folder: BertModel(cases.model("bert").config).save_pretrained(folder),
    "maskless": maskless,
    "causal": causal,
    "pickled": pickled,
    "nan": scaled("bert.encoder.layer.0.output.dense.bias", math.nan),
    "huge": lambda folder: (  # the norm divides by its epsilon and multiplies by 1e35
        scaled("cls.predictions.transform.dense.weight", 1e-10)(folder),
        scaled("cls.predictions.transform.dense.bias", 0.0)(folder),
        scaled("cls.predictions.transform.LayerNorm.weight", 1e35)(folder),
    ),
}
TEXTS = {
    "empty.txt": b"",
    "binary.txt": b"w1\0w2",
    "latin.txt": "café".encode("latin-1"),
    "short.txt": b"w1 w2\n\nw3",
    "table.csv": b"w1,w2",
    "broken.jsonl": b'{"text": "w1"}\n{',
    "ids.jsonl": b'{"input_ids": [2, 99, 3]}',
}

BAD = [
    ({"checkpoint": "nowhere"}, "no checkpoint at 'nowhere': no such folder"),
    ({"checkpoint": "./nowhere"}, "no checkpoint at './nowhere': no such folder; give a folder"),
    ({"checkpoint": ""}, "has no config.json"),
    ({"checkpoint": "{place}/text.txt"}, "text.txt is a file; give the folder"),
    ({"checkpoint": "{place}/weightless"}, "weightless holds no weights"),
    ({"checkpoint": "{place}/headless"}, "headless has no masked-LM head --allow-random-head"),
    ({"checkpoint": "{place}/maskless"}, "the tokenizer in maskless has no mask token"),
    ({"checkpoint": "{place}/causal"}, "causal is a causal LM needs a masked LM"),
    ({"checkpoint": "{place}/pickled"}, "pytorch_model.bin does not load with weights_only=True"),
    ({"checkpoint": "{place}/nan"}, "the loss of sentence is not finite, and neither are the weights --dtype float64"),
    ({"checkpoint": "{place}/huge"}, "the gradient of 'bert. of sentence is not finite; --dtype float64"),
    ({"data": "nowhere.txt"}, "no data at 'nowhere.txt': no such file"),
    ({"data": "{place}"}, "is a folder; give one file"),
    ({"data": ""}, "is a folder; give one file"),
    ({"data": "{place}/empty.txt"}, "empty.txt is empty"),
    ({"data": "{place}/binary.txt"}, "binary.txt is binary, not text"),
    ({"data": "{place}/latin.txt"}, "latin.txt is not UTF-8 (byte 3)"),
    ({"data": "{place}/short.txt"}, "no document reaches 6 tokens; lower --max-length, or use --no-pack"),
    ({"data": "{place}/table.csv"}, "unknown format '.csv'"),
    ({"data": "{place}/broken.jsonl"}, "broken.jsonl, line 2: not JSON"),
    ({"data": "{place}/ids.jsonl"}, "row 1: token id 99 is not in the tokenizer's 60"),
    ({"sentences": 10**6}, "asked for 1000000 sentences, but the data hold 24; lower --sentences"),
    ({"sentences": 1}, "--sentences 1: at least 2"),
    ({"sentences": -3}, "--sentences -3: at least 2"),
    ({"sentences": "many"}, "--sentences valid"),
    ({"masks": 1}, "--masks 1: the mask variance is not identifiable"),
    ({"masks": "2.5"}, "--masks valid"),
    ({"precision": 0}, "--precision 0.0 is not between 0 and 1"),
    ({"max_sentences": 9}, "--max-sentences bounds a study that grows; give --precision too"),
    ({"precision": 0.1, "max_sentences": 5}, "--max-sentences 5 is less than --sentences 6"),
    ({"dropout": 1}, "--dropout 1: the dropout variance is not identifiable"),
    ({"dropout": 0}, "--dropout 0: the dropout variance is not identifiable"),
    ({"dropout": "some"}, "--dropout valid"),
    ({"dropout": 2, "checkpoint": "{place}/modernbert"}, "ModernBertForMaskedLM has no dropout leave --dropout out"),
    *(({"mask_rate": rate}, f"--mask-rate {rate} is not between 0 and 1") for rate in (0.0, 1.0, -0.1, "nan", "inf")),
    ({"mask_rate": "high"}, "--mask-rate valid"),
    ({"max_length": 33}, "--max-length 33 is beyond the 32 positions"),
    ({"max_length": 2}, "--max-length 2 leaves no room beside 2 special tokens"),
    ({"max_length": 0}, "--max-length 0 is not a positive number"),
    ({"replacement": "80,10"}, "--replacement '80,10' is not three percentages, like 80,10,10"),
    ({"replacement": "80,10,20"}, "three probabilities that sum to 1"),
    ({"replacement": "nan,10,10"}, "three probabilities that sum to 1"),
    ({"weighting": "length"}, "--weighting 'length' is unknown; use sentence or token"),
    ({"engine": "steam"}, "--engine 'steam' is unknown; use onepass or reference"),
    ({"dtype": "float16"}, "--dtype 'float16' is unknown; use float32 or float64"),
    ({"device": "abacus"}, "--device 'abacus' is unknown; use cpu"),
    ({"device": "cuda:99"}, "--device 'cuda:99': CUDA devices; use --device cpu"),
    ({"seed": -1}, "--seed -1 is negative"),
    ({"seed": "x"}, "--seed valid"),
    ({"memory": "-1"}, "--memory '-1' is not an amount of memory"),
    ({"memory": "1MiB"}, "the mean gradient and the data's sketches take over --memory raise --memory"),
    ({"parameters": "("}, "--parameters '(' is not a regular expression"),
    ({"parameters": "nothing"}, "--parameters 'nothing' matches no trainable parameter; names look like 'bert."),
    ({"cost_sentence": -1}, "--cost-sentence -1.0 is not a positive number"),
    ({"cost_mask": "nan"}, "--cost-mask nan is not a positive number"),
    ({"cost_sentence": 1}, "--cost-sentence and --cost-mask share a unit; give both, or neither"),
    ({"device": "cpu:3"}, "--device 'cpu:3' is not supported; use cpu or cuda"),
    ({"out": "{place}"}, "is not empty; give another folder, or --overwrite"),
    ({"out": "{place}/text.txt"}, "text.txt is a file; give a folder"),
    ({"out": "{place}/text.txt/out"}, "cannot be written (Not a directory); give another folder"),
    ({"colour": "red"}, "No such option: --colour"),
]


@pytest.mark.parametrize(("options", "words"), BAD, ids=[" ".join(f"{k} {v}" for k, v in o.items()) for o, _ in BAD])
def test_bad_input_gets_one_line_and_leaves_nothing(decompose, place, options, words):
    before = sorted(place.rglob("*"))
    code, out, err = decompose(**({"out": "new/report"} | options))
    *progress, message = err.splitlines()
    assert (code, out) == (2, "")
    assert message.startswith("gradvar: ")
    assert [word for word in words.split() if word not in message] == []
    assert set(progress) <= {"loading the checkpoint and the data"}
    assert os.listdir() == []
    assert sorted(place.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "Missing command"),
        (["compose"], "No such command 'compose'"),
        (["decompose", "text.txt"], "unexpected extra argument"),
        (["decompose", "--save-cells"], "--save-cells needs --out"),
        (["decompose", "--sentences"], "--sentences requires an argument"),
    ],
)
def test_a_command_that_is_none_gets_one_line(run, arguments, words):
    code, out, err = run(*arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert [word for word in words.split() if word not in err] == []


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("engine", ["auto", "onepass"])
def test_a_rule_that_is_wrong_is_named(decompose, monkeypatch, engine):
    """LayerNorm's weight taken for a bias: the check turns to the reference engine, or refuses if told not to."""
    rules_of = onepass.rules_of
    wrong = {"weight": rules.bias, "bias": rules.bias}
    monkeypatch.setattr(onepass, "rules_of", lambda m: wrong if isinstance(m, torch.nn.LayerNorm) else rules_of(m))
    code, out, err = decompose(out="report", engine=engine)
    name = "LayerNorm.weight': the engine's gradient differs from autograd's by"
    if engine == "auto":
        assert code == 0
        assert "the slow reference engine was used" in out.replace("\n", " ")
    else:
        assert code == 2
        assert name in err
        assert os.listdir() == []


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_out_of_memory_says_what_to_lower(decompose, monkeypatch, error):
    monkeypatch.setattr(onepass.OnePass, "accumulate", raiser(error))
    code, _, err = decompose(out="report")
    assert code == 2
    assert err.endswith("lower --memory, --masks, --batch or --max-length (training.batch, data.max_length)\n")
    assert os.listdir() == []


def test_an_error_of_our_own_is_no_user_error(decompose, monkeypatch):
    monkeypatch.setattr(onepass.OnePass, "accumulate", raiser(RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="a bug"):
        decompose(out="report")
    assert os.listdir() == []


@pytest.mark.parametrize("where", ["loading", "measuring", "drawing a figure"])
def test_an_interrupt_leaves_nothing(decompose, monkeypatch, where):
    if where == "loading":
        monkeypatch.setattr("gradvar.huggingface.masked_lm.load_checkpoint", raiser(KeyboardInterrupt()))
    elif where == "measuring":
        monkeypatch.setattr(onepass.OnePass, "accumulate", raiser(KeyboardInterrupt()))
    else:
        monkeypatch.setitem(figures.FIGURES, "cells", raiser(KeyboardInterrupt()))
    code, out, err = decompose(out="new/report")
    assert (code, out) == (130, "")
    assert err.endswith("gradvar: interrupted; nothing is left half-written\n")
    assert os.listdir() == []


def raiser(error):
    def fail(*arguments, **options):
        raise error

    return fail


def test_version(run):
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert run("--version") == (0, f"gradvar {version}\n", "")


@pytest.fixture
def blocked(tmp_path):
    """A folder that, first on the path, makes every heavy import an error."""
    folder = tmp_path / "blocked"
    folder.mkdir()
    for name in ("torch", "transformers", "numpy", "pandas", "matplotlib", "scipy", "pyarrow"):
        (folder / f"{name}.py").write_text(f"raise SystemExit('{name} was imported')")
    return folder


def python(*arguments, path=(), cwd=None):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, path))}
    return subprocess.run([sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["--help"], "decompose"), (["decompose", "--help"], "--mask-rate"), (["--version"], "gradvar ")],
)
def test_help_imports_nothing_heavy(blocked, arguments, words):
    done = python("-m", "gradvar", *arguments, path=[blocked], cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")
    assert words in done.stdout


def test_the_block_blocks(blocked):
    done = python("-m", "gradvar", "decompose", "--checkpoint", "nowhere", path=[blocked], cwd=ROOT)
    assert done.returncode == 1
    assert "was imported" in done.stderr


def test_an_installed_wheel_holds_everything(blocked, tmp_path):
    def pip(*arguments):
        done = python("-m", "pip", "--disable-pip-version-check", *arguments, "--no-index", "--no-deps", cwd=tmp_path)
        assert done.returncode == 0, done.stderr

    pip("wheel", "--no-build-isolation", "--wheel-dir", "wheels", ROOT)
    (wheel,) = (tmp_path / "wheels").glob("gradvar-*.whl")
    pip("install", "--target", "site", wheel)
    site = tmp_path / "site"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    helped = python("-m", "gradvar", "--help", path=[blocked, site], cwd=elsewhere)
    assert (helped.returncode, helped.stderr) == (0, "")
    where = python("-c", "import gradvar; print(gradvar.__file__)", path=[blocked, site], cwd=elsewhere)
    assert Path(where.stdout.strip()) == site / "gradvar" / "__init__.py"
    demo = site / "gradvar" / "demo"
    found = {path.name for path in (demo / "checkpoint").glob("*")}
    assert found >= {"config.json", "model.safetensors", "tokenizer.json"}
    texts = list(demo.glob("*.txt*"))
    assert texts != []
    assert sum(path.stat().st_size for path in [*texts, *(demo / "checkpoint").iterdir()]) < 5e6
