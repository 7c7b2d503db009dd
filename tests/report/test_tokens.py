import json

import numpy as np
import pytest
from rich.cells import cell_len
from scipy import stats

from gradvar.report.tokens import DEEPEST, SCALES, ScoredSentence, agreement, printable
from gradvar.report.writer import TOKENS_FILES, write_report
from tests.report.scored import scores, sentence

WORDS = ("[CLS]", *(f"w{i}" for i in range(30)), "[SEP]")


def with_scores(**values):
    """A sentence without special tokens."""
    length = len(next(iter(values.values())))
    tokens = tuple(f"w{i}" for i in range(length))
    arrays = {name: np.array(row, dtype=float) for name, row in values.items()}
    return ScoredSentence(0, tokens, tokens, np.ones(length, dtype=bool), arrays)


def test_rank_correlations_are_scipys():
    one = sentence(WORDS)
    one.scores["loss"][5:9] = 1.5  # ties
    found = one.correlations()
    assert found.keys() == {"loss", "logit"}
    for name, value in found.items():
        expected = stats.spearmanr(one.scores["oracle"][one.maskable], one.scores[name][one.maskable])
        assert value == pytest.approx(float(expected.statistic), abs=1e-12)


def test_what_cannot_be_masked_has_no_part_in_the_ranks():
    one = sentence(WORDS)
    before = one.correlations()
    one.scores["loss"][[0, -1]] = 1e9
    assert one.correlations() == before
    assert one.highest("loss", 1) != [0]
    assert one.opacities("loss")[[0, -1]].tolist() == [0, 0]
    assert one.opacities("loss").max() == DEEPEST


def test_the_means_are_of_the_sentences_that_have_a_correlation():
    first, second = with_scores(oracle=[1, 2, 3], loss=[1, 2, 3]), with_scores(oracle=[1, 2, 3], loss=[3, 2, 1])
    single, flat = with_scores(oracle=[1], loss=[2]), with_scores(oracle=[1, 2, 3], loss=[1, 1, 1])
    assert scores(first, second, single, flat).correlations() == {"loss": 0.0}
    assert scores(first, single).correlations() == {"loss": 1.0}
    assert scores(single, flat).correlations() == {"loss": None}


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0.9, "almost as the oracle does (Spearman 0.9)"),
        (0.5, "much as"),
        (0.3, "somewhat as"),
        (0.0, "not as"),
        (-0.9, "contrary to how"),
        (-1.0, "contrary to how the oracle does (Spearman -1)"),
        (None, "no rank correlation with the oracle, for want of 3 different tokens"),
    ],
)
def test_agreement_in_words(value, words):
    (line,) = agreement({"mapnet": value})
    assert line.startswith("MAPNet")
    assert words in line


def test_json_holds_everything_and_null_where_nothing_can_be_masked():
    found = json.loads(json.dumps(scores(sentence(WORDS), notices=("cut",)).to_json(), allow_nan=False))
    assert (found["schema"], found["notices"]) == ("gradvar/tokens/v1", ["cut"])
    assert {name: scale["unit"] for name, scale in found["scores"].items()} == {
        "oracle": "gradient units",
        "loss": "nats",
        "logit": "|p − y|",
    }
    (one,) = found["sentences"]
    assert one["tokens"] == list(WORDS)
    assert one["maskable"] == [False, *[True] * 30, False]
    assert one["scores"].keys() == found["scores"].keys()
    for values in one["scores"].values():
        assert (values[0], values[-1]) == (None, None)
        assert all(value > 0 for value in values[1:-1])
    assert one["rank_correlation"] == found["rank_correlation"]


def test_the_table_has_a_row_a_token():
    result = scores(sentence(WORDS), sentence(seed=1, datum=8))
    table = result.to_frame()
    assert len(table) == len(WORDS) + 7
    assert table["sentence"].tolist() == [1] * len(WORDS) + [2] * 7
    assert table["datum"].unique().tolist() == [3, 8]
    assert table["oracle"].isna().tolist() == (~table["maskable"]).tolist()
    assert table["loss"][5] == result.sentences[0].scores["loss"][5]


@pytest.mark.parametrize("tokens", [WORDS, ("[CLS]", "x" * 90, "w1", "[SEP]"), ("[CLS]", "字" * 60, "[SEP]")])
def test_the_summary_fits_a_terminal(tokens):
    names = tuple(SCALES)
    text = repr(scores(sentence(tokens, names=names), sentence(names=names), notices=("a note " * 20,)))
    assert max(map(cell_len, text.splitlines())) <= 80
    assert "\x1b" not in text


def test_the_summary_lists_the_highest_tokens_with_a_bar():
    one = with_scores(oracle=[1, 10, 5, 0], loss=[1, 2, 3, 4])
    lines = repr(scores(one)).splitlines()
    rows = [line.split() for line in lines if (line[:1] == "w" and "█" in line) or line.startswith("w3 ")]
    assert [row[:3] for row in rows] == [["w1", "1", "10"], ["w2", "2", "5"], ["w0", "0", "1"], ["w3", "3", "0"]]
    assert [row[3].count("█") for row in rows[:3]] == [10, 5, 1]
    assert lines[-1] == "loss ranks the tokens contrary to how the oracle does (Spearman -0.4)."


def test_a_sentence_of_zeros_and_one_of_a_single_token():
    text = repr(scores(with_scores(oracle=[0, 0], loss=[0, 0]), with_scores(oracle=[2], loss=[1])))
    assert "Sentence 2, 1 token\n" in text
    assert "loss: no rank correlation with the oracle" in text


@pytest.mark.parametrize(
    ("text", "shown"), [("a\x1b[0m", "a\ufffd[0m"), ("a\n\tb", "a  b"), ("ż字", "ż字"), ("\0", "\ufffd")]
)
def test_printable(text, shown):
    assert printable(text) == shown


def test_the_report_folder(tmp_path):
    folder = write_report(scores(sentence(), notices=("cut",)), tmp_path / "page")
    assert sorted(path.name for path in folder.iterdir()) == sorted(TOKENS_FILES)
    assert set(TOKENS_FILES) == {"report.html", "tokens.json", "tokens.csv", "summary.txt"}
    assert json.loads((folder / "tokens.json").read_text(encoding="utf-8"))["schema"] == "gradvar/tokens/v1"
    assert (
        (folder / "tokens.csv").read_text(encoding="utf-8").startswith("sentence,datum,position,token,maskable,oracle")
    )
    assert (folder / "report.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    write_report(scores(), folder, overwrite=True)
