"""`gradvar tokens`: one sentence of one's own, or some of the data, shaded by their scores."""

import json
import os
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch

import gradvar
from gradvar.cli import main
from gradvar.mapnet.config import MapNetConfig
from gradvar.mapnet.network import MapNet
from gradvar.report.writer import TOKENS_FILES
from gradvar.shading import score_tokens
from tests import cases
from tests.report.scored import Page

SIZES = ["--max-length", "12", "--contexts", "1"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("place")
    for kind in ("bert", "modernbert", "deberta-v2"):
        cases.save_checkpoint(place / kind, kind)
    cases.write_text(place / "text.txt", documents=4)
    torch.manual_seed(3)
    for name, width in (("mapnet", 16), ("other", 20)):
        MapNet(MapNetConfig(60, width, "model", width=8, layers=1, heads=2)).save_pretrained(place / name)
    return place


@pytest.fixture
def tokens(capsys, tmp_path, monkeypatch, place):
    """Run a small `gradvar tokens` in an empty folder; `{place}` stands for the folder of checkpoints."""
    monkeypatch.chdir(tmp_path)

    def call(*more, **options):
        given = {"checkpoint": "{place}/bert"} | options
        chosen = [
            word
            for name, value in given.items()
            if value is not None
            for each in (value if isinstance(value, list) else [value])
            for word in (f"--{name.replace('_', '-')}", str(each).format(place=place))
        ]
        with pytest.raises(SystemExit) as stop:
            main(["tokens", *SIZES, *chosen, *more])
        printed = capsys.readouterr()
        return stop.value.code, printed.out, printed.err

    return call


@pytest.mark.parametrize("kind", ["bert", "modernbert", "deberta-v2"])
def test_texts_are_scored_and_written(tokens, kind):
    code, out, err = tokens(checkpoint=f"{{place}}/{kind}", text=["w1 w2 w3 w1", "w9 w8 w7", "w4"], out="page")
    assert code == 0
    assert sorted(os.listdir("page")) == sorted(TOKENS_FILES)
    summary, _, written = out.rpartition("\n\n")
    assert written == f"wrote page: {', '.join(sorted(TOKENS_FILES))}\n"
    assert [line.rstrip() for line in summary.splitlines()] == Path("page/summary.txt").read_text().splitlines()
    assert "3 sentences in 1 random context" in summary
    assert err.startswith("loading the checkpoint and the data\n")
    assert err.splitlines()[-1].startswith("8/8 cells, ")
    found = json.loads(Path("page/tokens.json").read_text())
    assert [len(sentence["tokens"]) for sentence in found["sentences"]] == [6, 5, 3]
    assert [sentence["tokens"][1] for sentence in found["sentences"]] == ["w1", "w9", "w4"]
    assert found["scores"].keys() == {"oracle", "loss", "logit"}
    table = pandas.read_csv("page/tokens.csv")
    assert table["token"].tolist() == [token for sentence in found["sentences"] for token in sentence["tokens"]]
    page = Page(Path("page/report.html").read_text())
    assert [span["text"] for span in page.all("span", "t")][:4] == ["w1", "w2", "w3", "w1"]


def test_sentences_of_the_data_as_in_python(tokens, place):
    code, out, _ = tokens("--json", data="{place}/text.txt", sentences=2, seed=5, dtype="float64", mask_rate=0.4)
    assert code == 0
    objective = gradvar.MaskedLM.from_checkpoint(
        place / "bert", place / "text.txt", max_length=12, contexts=1, dtype="float64", mask_rate=0.4
    )
    expected = score_tokens(objective, 2, seed=5)
    for printed, sentence in zip(json.loads(out)["sentences"], expected.sentences, strict=True):
        assert (printed["datum"], tuple(printed["tokens"])) == (sentence.datum, sentence.tokens)
        assert printed["scores"]["oracle"][1:-1] == pytest.approx(sentence.scores["oracle"][1:-1], rel=1e-9)


def test_a_fitted_network_is_shown_beside(tokens):
    code, out, _ = tokens("--json", text="w1 w2 w3 w4", mapnet_dir="{place}/mapnet")
    assert code == 0
    found = json.loads(out)
    assert list(found["scores"]) == ["oracle", "mapnet", "loss", "logit"]
    assert all(value > 0 for value in found["sentences"][0]["scores"]["mapnet"][1:-1])


def test_without_text_and_data_the_embedded_sentences_are_shown(tokens, monkeypatch, place):
    monkeypatch.setattr("gradvar.demo.DEMO_CHECKPOINT", place / "bert")
    monkeypatch.setattr("gradvar.demo.DEMO_TEXT", place / "text.txt")
    code, out, _ = tokens("--json", checkpoint=None)
    assert code == 0
    found = json.loads(out)
    assert len(found["sentences"]) == found["study"]["sentences"] == 4
    assert found["provenance"]["data"] == str(place / "text.txt")


@pytest.mark.parametrize("mask_rate", [0.01, 0.15, 0.99])
def test_a_single_token(tokens, mask_rate):
    code, out, _ = tokens(text="w5", out="page", mask_rate=mask_rate, contexts=3)
    assert code == 0
    assert "Sentence 1, 1 token\n" in out
    assert "loss: no rank correlation with the oracle" in out
    (sentence,) = json.loads(Path("page/tokens.json").read_text())["sentences"]
    assert sentence["tokens"] == ["[CLS]", "w5", "[SEP]"]
    assert sentence["scores"]["oracle"][1] > 0
    assert sentence["rank_correlation"] == {"loss": None, "logit": None}
    assert Page(Path("page/report.html").read_text()).all("span", "t")[0]["attributes"]["style"] == "--a:0.6000"


def test_a_text_with_unknown_tokens_among_others(tokens):
    code, out, _ = tokens("--json", text="w1 <script> w2")
    assert code == 0
    (sentence,) = json.loads(out)["sentences"]
    assert [sentence["scores"]["oracle"][i] is None for i in range(len(sentence["tokens"]))] == [
        token.startswith("[") for token in sentence["tokens"]
    ]


def test_a_text_that_is_too_long_is_cut_with_a_notice(tokens):
    code, out, _ = tokens(text=" ".join(f"w{i}" for i in range(20)), out="page")
    assert code == 0
    note = "has 20 tokens; the first 10 were taken, see --max-length"
    assert note in " ".join(out.split())
    assert note in Page(Path("page/report.html").read_text()).text
    assert len(json.loads(Path("page/tokens.json").read_text())["sentences"][0]["tokens"]) == 12


def test_the_same_command_gives_the_same_numbers(tokens):
    first, second, other = (
        json.loads(tokens("--json", text="w1 w2 w3 w4 w5 w6", mask_rate=0.5, seed=seed)[1]) for seed in (1, 1, 2)
    )
    assert first["sentences"] == second["sentences"]
    assert not np.array_equal(first["sentences"][0]["scores"]["oracle"], other["sentences"][0]["scores"]["oracle"])


BAD = [
    ({"text": ""}, "--text is empty; give a text"),
    ({"text": ["w1 w2", "  \n"]}, "--text is empty; give a text"),
    ({"text": "nothing known"}, "the text 'nothing known' holds only tokens that the checkpoint does not know"),
    ({"text": "\u200b"}, "nothing in it can be masked"),
    ({"text": "[MASK] [CLS]"}, "nothing in it can be masked"),
    ({"text": "w1 \udc80"}, "bytes that are no UTF-8"),
    ({"text": "w1", "data": "{place}/text.txt"}, "--text and --data: give one of the two"),
    ({"text": "w1", "checkpoint": "nowhere"}, "no checkpoint at 'nowhere'"),
    ({"text": "w1", "mapnet_dir": "{place}/bert"}, "bert"),
    ({"text": "w1", "mapnet_dir": "{place}/other"}, "16"),
    ({"text": "w1", "max_length": 2}, "--max-length 2 leaves no room beside 2 special tokens"),
    ({"text": "w1", "max_length": 33}, "--max-length 33 is beyond the 32 positions"),
    ({"text": "w1", "contexts": 0}, "--contexts 0: a score is measured in 1 context at least"),
    ({"text": "w1", "mask_rate": 1.0}, "--mask-rate 1.0 is not between 0 and 1"),
    ({"text": "w1", "engine": "steam"}, "--engine 'steam' is unknown"),
    ({"text": "w1", "dtype": "float16"}, "--dtype 'float16' is unknown"),
    ({"text": "w1", "seed": -1}, "--seed -1 is negative"),
    ({"text": "w1", "out": "{place}"}, "is not empty; give another folder"),
    ({"data": "{place}/text.txt", "sentences": 0}, "--sentences 0: at least 1 is needed"),
    ({"data": "{place}/text.txt", "sentences": 10**6}, "asked for 1000000 sentences, but the data hold 24"),
    ({"data": "nowhere.txt"}, "no data at 'nowhere.txt'"),
]


@pytest.mark.parametrize(("options", "words"), BAD, ids=[" ".join(f"{k} {v!a}" for k, v in o.items()) for o, _ in BAD])
def test_bad_input_gets_one_line_and_leaves_nothing(tokens, options, words):
    code, out, err = tokens(**({"out": "new/page"} | options))
    *progress, message = err.splitlines()
    assert (code, out) == (2, "")
    assert message.startswith("gradvar: ")
    assert words in message
    assert set(progress) <= {"loading the checkpoint and the data"}
    assert os.listdir() == []


def test_help_names_the_scores(tokens):
    code, out, _ = tokens("--help")
    assert code == 0
    assert "shaded by oracle, MAPNet, loss and logits" in " ".join(out.split())
