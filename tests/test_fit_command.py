"""`gradvar fit-mapnet` from end to end on a tiny checkpoint: files, record, use, and bad input."""

import json
from pathlib import Path

import pytest

from gradvar.cli import main
from gradvar.huggingface.checkpoint import load_checkpoint
from gradvar.huggingface.forward import encoder_flops_per_token
from gradvar.mapnet.config import flops_per_token
from gradvar.mapnet.network import MapNet
from gradvar.report.writer import FIT_FILES
from tests import cases

FIT = ["fit-mapnet", "--max-length", "12", "--held-out", "8", "--contexts", "2", "--epochs", "1"]
SHAPE = ["--width", "8", "--layers", "1", "--heads", "2"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("fit")
    cases.save_checkpoint(place / "bert")
    cases.write_text(place / "text.txt", documents=16)
    return place


@pytest.fixture
def run(place, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def call(*words):
        given = ["--checkpoint", place / "bert", "--data", place / "text.txt"]
        with pytest.raises(SystemExit) as stop:
            main([str(word) for word in (*words, *given)])
        printed = capsys.readouterr()
        return stop.value.code, printed.out, printed.err

    return call


def test_a_fit_is_written_and_used(run, place):
    code, out, _ = run(*FIT, *SHAPE, "--out", "net", "--json")
    assert code == 0
    assert sorted(path.name for path in Path("net").iterdir()) == sorted(FIT_FILES)
    printed = json.loads(out)
    assert printed["schema"] == "gradvar/mapnet-fit/v1"
    assert printed == json.loads(Path("net/fit.json").read_text())
    assert json.loads(Path("net/mapnet.json").read_text())["record"]["study"] == printed["study"]
    assert printed["network"]["width"] == 8
    network, encoder = printed["network"], load_checkpoint(place / "bert").model
    cost = flops_per_token(MapNet.from_pretrained("net").config, 12)
    assert network["flops_share"] == pytest.approx(cost / encoder_flops_per_token(encoder, 12))
    assert printed["curve"][0]["sentences"] == 0
    code, out, _ = run(
        "decompose", "--max-length", "12", "--sentences", "4", "--masks", "2", "--proposal", "mapnet/midzuno",
        "--mapnet-dir", "net", "--json",
    )  # fmt: skip
    assert (code, json.loads(out)["proposal"]) == (0, "mapnet/midzuno")


def test_sentences_of_one_word_leave_shares_open(run):
    """T = 1: there is nothing to choose, and nothing to remove."""
    words = [*FIT, *SHAPE, "--max-length", "3", "--sentences", "64", "--out", "net", "--json"]
    code, out, _ = run(*words)
    printed = json.loads(out)
    assert (code, printed["proposal"]) == (0, "uniform/simple")
    for share in (printed["ceiling_share"], printed["captured_share"], *printed["others"].values()):
        assert share == {"estimate": None, "reason": "what can be removed is not clearly positive; hold out more "
                                                     "sentences, in more contexts"}  # fmt: skip


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([*SHAPE], "--out is missing"),
        ([*SHAPE, "--out", "net", "--target", "losss"], "--target 'losss' is unknown; did you mean 'loss'?"),
        ([*SHAPE, "--out", "net", "--loss", "mse"], "--loss 'mse' is unknown"),
        ([*SHAPE, "--out", "net", "--contexts", "1"], "--contexts 1: held-out gradients take 2 contexts"),
        ([*SHAPE, "--out", "net", "--held-out", "4"], "--held-out 4: a fit is judged on 8 sentences"),
        ([*SHAPE, "--out", "net", "--sentences", "9999"], "do not go into the"),
        ([*SHAPE, "--out", "net", "--loss", "kl", "--epsilon", "0.1"], "belong to the variance loss"),
        ([*SHAPE, "--out", "net", "--language", "-1"], "--language -1.0 is not a number from 0 up"),
        ([*SHAPE, "--out", "net", "--weight-cap", "0.5"], "cannot cap weights at 0.5; give a number from 1 up"),
        ([*SHAPE, "--out", "net", "--epsilon", "1.5"], "cannot mix with epsilon 1.5; give a number from 0 to below 1"),
        ([*SHAPE, "--out", "net", "--embeddings", "foo"], "a MAPNet has no embeddings 'foo'; use model or own"),
        (["--width", "9", "--layers", "1", "--heads", "2", "--out", "net"], "cannot be shared among 2 heads"),
    ],
)
def test_bad_input_is_one_line_before_anything_is_measured(run, words, said, monkeypatch):
    monkeypatch.setattr("gradvar.fitting.Judge", None)
    code, out, err = run(*FIT, *words)
    assert (code, out) == (2, "")
    assert said in err.splitlines()[-1]
    assert not Path("net").exists()
