"""`gradvar runs` from end to end: the folder, the page, bad input, and runs that were really trained."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pandas
import pytest

import gradvar
from gradvar.cli import main
from gradvar.report.writer import RUNS_FILES
from tests.report.scored import Page
from tests.runs.folders import write_arms, write_lines, write_run
from tests.training import runs


@pytest.fixture
def run(capsys, tmp_path, monkeypatch):
    """Run the command in an empty folder; return its exit code and what it printed."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        with pytest.raises(SystemExit) as stop:
            main(["runs", *map(str, arguments)])
        printed = capsys.readouterr()
        return stop.value.code, printed.out, printed.err

    return call


@pytest.mark.usefixtures("undrawn")
def test_trained_runs_become_a_page(run, tmp_path, capsys):
    """Two arms of two seeds, trained here; one of them was watched."""
    place = runs.make_place(tmp_path)
    small = ["--steps", "6", "evaluation.every=2"]
    for seed in ("0", "1"):
        looks = ["watch.every=6", "watch.sentences=8", "watch.masks=4"] if seed == "0" else []
        for proposal, more in (("uniform/simple", []), (runs.DRAWN, looks)):
            out = tmp_path / "runs" / f"{proposal[:6]}-{seed}"
            words = runs.words(place, out, *small, "--seed", seed, "--proposal", proposal, *more)
            assert runs.command(words) == 0
    capsys.readouterr()
    folders = sorted(Path("runs").iterdir())
    code, out, err = run(*folders, "--out", "page")
    assert (code, err) == (0, "")
    assert sorted(os.listdir("page")) == sorted(RUNS_FILES)
    assert out.startswith("4 runs in 2 arms: held-out loss under fixed masks\n")
    found = json.loads(Path("page/runs.json").read_text())
    assert [[arm["name"], *(each["seed"] for each in arm["runs"])] for arm in found["arms"]] == [
        ["uniform/simple", 0, 1],
        [runs.DRAWN, 0, 1],
    ]
    for arm in found["arms"]:
        for each in arm["runs"]:
            lines = runs.read_metrics(Path(each["folder"]))
            losses = [line["eval_loss"] for line in lines if "eval_loss" in line]
            assert [x["loss"] for x in each["evaluations"]] == losses
            assert each["finished"] is True
    (ratio,) = found["ratios"]
    assert ratio["seeds"] == [0, 1]
    assert found["notices"] == []
    assert len(pandas.read_csv("page/runs.csv")) == 4


# ---- what is written


@pytest.fixture
def arms(tmp_path):
    return write_arms(tmp_path / "runs")


def test_the_page_says_what_the_terminal_says(run, arms):
    code, out, _ = run(*arms, "--out", "page", "--target-loss", "5", "--target-loss", "4.5")
    assert code == 0
    summary = Path("page/summary.txt").read_text()
    assert (
        "\n".join(line.rstrip() for line in out.splitlines())
        == f"{summary}\nwrote page: {', '.join(sorted(RUNS_FILES))}"
    )
    page = Page(Path("page/report.html").read_text())
    assert [h["text"] for h in page.all("h1")] == ["4 runs in 2 arms: held-out loss under fixed masks"]
    captions = [" ".join(e["text"].split()) for e in page.all("figcaption")]
    assert captions[0].startswith("mapnet/pps takes 0.625 [")
    assert captions[1] == "The mask variance of mapnet/pps (seed 0) changes by a factor of 3 from step 0 to 400"
    assert captions[2].startswith("2 of 2 MAPNets rank positions better than chance")
    assert [img["attributes"]["src"][:26] for img in page.all("img")] == ["data:image/svg+xml;base64,"] * 3
    texts = " ".join(e["text"] for e in page.elements)
    for words in (
        "All that differs between the arms",
        "When each run got to 5 nats",
        "To 4.5 nats, over uniform/simple",
    ):
        assert words in texts
    for path in Path("page").glob("*.svg"):
        assert ElementTree.parse(path).getroot().tag.endswith("svg")


@pytest.mark.parametrize("left_out", [None, "exponent", "mapnet/ceiling_share"])
def test_a_figure_has_a_panel_for_what_was_measured_and_no_other(arms, left_out):
    for folder in arms:
        lines = runs.read_metrics(folder)
        kept = [
            {key: x for key, x in line.items() if left_out is None or not key.startswith(left_out)} for line in lines
        ]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept))
    panels = gradvar.compare_runs(arms).plot("mapnet").axes
    assert len(panels) == 4 - (left_out is not None)
    assert all(axes.lines and axes.get_ylabel() for axes in panels)


@pytest.mark.usefixtures("undrawn")
def test_runs_that_were_not_watched_have_one_figure(run, arms):
    plain = [folder for folder in arms if folder.name.startswith("uniform")]
    assert run(*arms, "--out", "page")[0] == 0
    assert run(*plain, "--out", "page", "--overwrite")[0] == 0
    figures = {"variance.png", "variance.svg", "mapnet.png", "mapnet.svg"}
    assert set(os.listdir("page")) == set(RUNS_FILES) - figures


@pytest.mark.usefixtures("undrawn")
def test_json_is_all_there_is_on_stdout(run, arms):
    code, out, err = run(*arms, "--json", "--out", "page")
    assert (code, err) == (0, "")
    assert json.loads(out) == json.loads(Path("page/runs.json").read_text())


def test_more_arms_than_colours_are_drawn_in_grey_and_said(run, tmp_path):
    for number in range(9):
        write_run(tmp_path / "many" / str(number), training__clip=1.0 + number)
    assert run(*sorted((tmp_path / "many").iterdir()), "--out", "page")[0] == 0
    figure = gradvar.compare_runs(sorted((tmp_path / "many").iterdir())).plot()
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels[-1] == "2 more arms, see the tables"
    assert len(labels) == 8


# ---- bad input

BAD = {
    "nothing": ([], "give the folders of runs, such as runs/*"),
    "no folder": (["none"], "none is not there; give the folders of runs, such as runs/*"),
    "a file": (["file"], "file is a file; give the folders of runs, such as runs/*"),
    "no run": (["empty"], "empty is no run: it has no recipe.yaml, no metrics.jsonl and no checkpoint"),
    "their folder": (["runs"], "runs is no run, but holds some; give runs/*"),
    "twice": (["runs/a", "runs/a"], "runs/a: one run, given twice; give each folder once"),
    "no log": (["unlogged"], "no evaluation in unlogged yet; wait for one, or set evaluation.every"),
    "a broken log": (["garbled"], "no evaluation in garbled yet"),
    "a broken recipe": (["broken"], "broken/recipe.yaml: unknown key 'training.setps'; did you mean 'steps'?"),
    "no baseline": (["runs/a", "--baseline", "b"], "--baseline 'b' is no arm, proposal or run of these; there are"),
    "too low": (["runs/a", "--target-loss", "1"], "--target-loss 1: no run gets there; the lowest loss is 4.25"),
    "too high": (["runs/a", "--target-loss", "6"], "--target-loss 6: all runs were there at their first evaluation"),
    "no number": (["runs/a", "--target-loss", "x"], "Invalid value for '--target-loss'"),
    "no place": (["runs/a", "--out", "file"], "--out file is a file; give a folder"),
    "a full place": (["runs/a", "--out", "runs"], "--out runs is not empty; give another folder, or --overwrite"),
    "a run's place": (
        ["runs/a", "--out", "runs/a", "--overwrite"],
        "holds 'metrics.jsonl', which is no part of a report",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_one_line(run, tmp_path, case):
    write_run(tmp_path / "runs" / "a")
    write_run(tmp_path / "broken", training={"setps": 3})
    (write_run(tmp_path / "unlogged") / "metrics.jsonl").write_text("")
    (write_run(tmp_path / "garbled") / "metrics.jsonl").write_text("{\n\x00\n")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    before = sorted(tmp_path.rglob("*"))
    arguments, said = BAD[case]
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert re.fullmatch(r"gradvar: [^\n]+\n", err)
    assert said in err
    assert sorted(tmp_path.rglob("*")) == before


def test_a_page_that_cannot_be_written_leaves_nothing(run, arms, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("gradvar.report.writer.render_page", full)
    code, _, err = run(*arms, "--out", "page")
    assert (code, err) == (2, "gradvar: --out page cannot be written (No space left on device); give another folder\n")
    assert os.listdir() == ["runs"]


def test_broken_lines_are_noted_and_the_rest_is_shown(run, tmp_path):
    folder = write_run(tmp_path / "a")
    path = folder / "metrics.jsonl"
    path.write_text("broken\n" + path.read_text())
    code, out, _ = run("a")
    assert code == 0
    assert "note: a: 1 broken lines of metrics.jsonl are left out" in out


def test_a_diverged_run_is_noted(run, tmp_path):
    folder = write_run(tmp_path / "a")
    write_lines(folder, [{"step": s, "eval_loss": x, "tokens": s, "seconds": s} for s, x in ((1, 5.0), (2, None))])
    code, out, _ = run("a")
    assert code == 0
    assert "note: a: 1 evaluations without a finite loss are left out" in " ".join(out.split())


@pytest.mark.full
def test_neither_a_model_nor_a_text_is_loaded(tmp_path):
    """Nor the libraries that would load them."""
    write_run(tmp_path / "a")
    code = "import sys, gradvar; gradvar.compare_runs(['a']); print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True, text=True)
    loaded = set(done.stdout.split())
    assert "gradvar" in loaded
    assert not {"transformers", "datasets", "tokenizers"} & loaded
