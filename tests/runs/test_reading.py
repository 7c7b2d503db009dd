import json

import pytest

from gradvar import checkpoints
from gradvar.errors import GradvarError
from gradvar.metrics import read_metrics
from gradvar.report.runs import Evaluation
from gradvar.runs.reading import read_folder, read_folders
from tests.runs.folders import look, write_lines, write_run


def evaluation(step, loss):
    return {"step": step, "eval_loss": loss, "tokens": 10 * step, "seconds": step}


def test_a_run_says_what_it_logged(tmp_path):
    folder = write_run(tmp_path / "a", [6.0, 5.0], 3, looks=[look(100, variance__mask=2.0)])
    found = read_folder(folder)
    assert found.evaluations == (Evaluation(100, 1e5, 50, 6.0, 0.1), Evaluation(200, 2e5, 100, 5.0, 0.1))
    assert found.looks == ({"step": 100, "variance/mask": 2.0, "variance/mask_low": 1.8, "variance/mask_high": 2.2},)
    assert (found.seed, found.budget, found.finished) == (3, "400 steps", False)
    assert found.made == ("gradvar train recipe.yaml --out a", "python 3.11, torch 2.9")
    assert found.notices == ()


@pytest.mark.parametrize(
    ("budget", "finished"),
    [
        ({"steps": 200}, True),
        ({"steps": 201}, False),
        ({"tokens": 200_000}, True),
        ({"tokens": 300_000}, False),
        ({"seconds": 99.0}, True),
        ({"seconds": 101.0}, False),
    ],
)
def test_a_run_is_finished_when_its_budget_is_used(tmp_path, budget, finished):
    folder = write_run(tmp_path / "a", [6.0, 5.0], training={"steps": None} | budget)
    assert read_folder(folder).finished is finished


def test_the_last_evaluation_of_a_step_counts_and_steps_are_in_order(tmp_path):
    folder = write_run(tmp_path / "a")
    write_lines(folder, [evaluation(20, 5.0), evaluation(10, 6.0), evaluation(20, 4.0)])
    assert [(each.steps, each.loss) for each in read_folder(folder).evaluations] == [(10, 6.0), (20, 4.0)]


@pytest.mark.parametrize("bad", [None, "4.5", True, float("nan"), float("inf")])
def test_an_evaluation_without_a_finite_loss_is_told_and_left_out(tmp_path, bad):
    folder = write_run(tmp_path / "a")
    write_lines(folder, [evaluation(10, 6.0), evaluation(20, bad), {"step": 30, "eval_loss": 5.0}])
    found = read_folder(folder)
    assert [each.steps for each in found.evaluations] == [10]
    assert found.notices == (f"{folder}: 2 evaluations without a finite loss are left out",)


def test_broken_lines_are_told_but_for_a_last_one_that_was_cut_off(tmp_path):
    folder = write_run(tmp_path / "a")
    whole = json.dumps(evaluation(10, 6.0))
    (folder / "metrics.jsonl").write_text(f"{whole}\n{{{{\n\n[1]\n{whole[:-4]}")
    found = read_folder(folder)
    assert found.notices == (f"{folder}: 2 broken lines of metrics.jsonl are left out",)
    assert [each.steps for each in found.evaluations] == [10]
    assert len(read_metrics(folder)) == 1


def test_a_scripts_run_is_read_from_the_history_of_its_last_checkpoint(tmp_path):
    place = checkpoints.folder_of(tmp_path / "a", 20)
    place.mkdir(parents=True)
    history = [evaluation(10, 6.0), {"step": 10, "loss": 7.0}, evaluation(20, 5.0)]
    (place / "trainer_state.json").write_text(json.dumps({"log_history": history}))
    with pytest.raises(GradvarError, match="is no run"):
        read_folder(tmp_path / "a")  # a checkpoint that is not whole is none
    checkpoints.seal(place)
    found = read_folder(tmp_path / "a")
    assert [each.loss for each in found.evaluations] == [6.0, 5.0]
    assert (found.seed, found.finished) == (None, None)


def test_what_is_no_run_is_refused(tmp_path):
    write_run(tmp_path / "a")
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    cases = {
        "none": "none is not there; give the folders of runs",
        "file": "file is a file; give the folders of runs",
        "empty": "is no run: it has no recipe.yaml, no metrics.jsonl and no checkpoint",
        ".": r"is no run, but holds some; give .*/\*",
    }
    for name, said in cases.items():
        with pytest.raises(GradvarError, match=said):
            read_folder(tmp_path / name)


def test_a_broken_recipe_is_named_with_its_line(tmp_path):
    folder = write_run(tmp_path / "a")
    (folder / "recipe.yaml").write_text("training: {steps: 3\nmodel: [")
    with pytest.raises(GradvarError, match=r"a/recipe.yaml, line 2: not YAML"):
        read_folder(folder)


def test_a_log_that_cannot_be_read_is_one_line(tmp_path):
    folder = write_run(tmp_path / "a")
    (folder / "metrics.jsonl").unlink()
    (folder / "metrics.jsonl").mkdir()
    with pytest.raises(GradvarError, match="a cannot be read"):
        read_folder(folder)


def test_a_run_is_given_once(tmp_path):
    write_run(tmp_path / "a")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    for other in ("a", "b/../a", "link"):
        (tmp_path / "b").mkdir(exist_ok=True)
        with pytest.raises(GradvarError, match="one run, given twice"):
            read_folders([tmp_path / "a", tmp_path / other])
