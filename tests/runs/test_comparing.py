"""The comparison of runs with known curves, in Python: baseline, targets, ratios, and what cannot be compared."""

import json
from math import exp, log

import pandas
import pytest

import gradvar
from gradvar.errors import GradvarError
from gradvar.report.runs import UNITS
from tests.runs.folders import hashed, write_arms, write_lines, write_run


def test_ratios_are_those_of_the_curves(tmp_path):
    """By hand: seed 0 is at 5.5 nats at 250 against 100 + 500/11 steps, with 3 times the seconds a step."""
    result = gradvar.compare_runs(write_arms(tmp_path), target_losses=[5.5])
    assert [(arm.name, len(arm.runs)) for arm in result.arms] == [("uniform/simple", 2), ("mapnet/pps", 2)]
    times = {arm.name: [run.times[5.5]["steps"].low for run in arm.runs] for arm in result.arms}
    assert times["uniform/simple"] == pytest.approx([250, 252])
    assert times["mapnet/pps"] == pytest.approx([100 + 100 * 0.5 / 1.1, 100 + 100 * 0.52 / 1.14])
    ratio = result.ratio("mapnet/pps")
    by_hand = [a / b for a, b in zip(times["mapnet/pps"], times["uniform/simple"], strict=True)]
    expected = exp(sum(map(log, by_hand)) / 2)
    assert ratio.seeds == (0, 1)
    assert ratio.ratios["steps"].low == pytest.approx(expected)
    assert ratio.ratios["tokens"].low == pytest.approx(expected)
    assert ratio.ratios["seconds"].low == pytest.approx(3 * expected)
    assert ratio.ratios["steps"].interval == pytest.approx((min(by_hand), max(by_hand)))


def test_the_default_target_is_what_all_finished_runs_of_the_baseline_reached(tmp_path):
    write_run(tmp_path / "a", [6, 5, 4.5, 4.2501], 0)
    write_run(tmp_path / "b", [6, 5, 4.1, 4.3], 1)
    write_run(tmp_path / "c", [6, 5.5], 2)  # not finished
    write_run(tmp_path / "d", [3, 2, 1, 1], 0, masking={"proposal": "loss/pps"})
    result = gradvar.compare_runs(sorted(tmp_path.iterdir()))
    assert result.targets == (4.251,)
    assert [run.times[4.251]["steps"].censored for run in result.baseline.runs] == [False, False, True]
    assert [run.folder for run in result.baseline.ended] == [str(tmp_path / "a"), str(tmp_path / "b")]
    assert result.baseline.final_loss == (pytest.approx(4.27505), pytest.approx(0.02495))
    (said,) = [line for line in result.notices if "not finished" in line]
    assert f"{tmp_path}/c is not finished: it was last evaluated at 200 of 400 steps" in said


@pytest.mark.parametrize("wanted", ["mapnet/pps", "masking.proposal=mapnet/pps", "{}/mapnet-1", None, "uniform/simple"])
def test_the_baseline_is_an_arm_a_proposal_or_a_run(tmp_path, wanted):
    folders = sorted(write_arms(tmp_path))  # mapnet first
    result = gradvar.compare_runs(folders, baseline=wanted and wanted.format(tmp_path))
    other = wanted in (None, "uniform/simple")
    assert result.baseline.name == ("uniform/simple" if other else "mapnet/pps")
    assert [ratio.arm for ratio in result.ratios] == ["mapnet/pps" if other else "uniform/simple"]


def test_without_uniform_masks_the_first_run_is_the_baseline(tmp_path):
    write_run(tmp_path / "a", masking={"proposal": "loss/pps"})
    write_run(tmp_path / "b", masking={"proposal": "logit/pps"})
    assert gradvar.compare_runs([tmp_path / "b", tmp_path / "a"]).baseline.name == "logit/pps"


def test_only_seeds_that_both_have_are_paired(tmp_path):
    runs = write_arms(tmp_path, (0, 1, 2))
    result = gradvar.compare_runs([run for run in runs if run.name not in ("uniform-0", "mapnet-2")])
    assert result.ratio("mapnet/pps").seeds == (1,)
    assert "one pair, so no interval" in repr(result)
    apart = gradvar.compare_runs([tmp_path / "uniform-0", tmp_path / "mapnet-1"])
    assert apart.ratio("mapnet/pps").ratios is None
    assert "mapnet/pps: no ratio, no seed in common (1 and 0)" in " ".join(repr(apart).split())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"data__max_length": 32}, "data.max_length 32, not 16"),
        ({"data__pack": False}, "data.pack False, not True"),
        ({"evaluation__sentences": 64}, "evaluation.sentences 64, not 512"),
        ({"evaluation__masks": 2}, "evaluation.masks 2, not 1"),
        ({"data__valid": "/texts/other.txt"}, "the held-out text is another one"),
        ({"data__tokenizer": {"vocabulary": 500}}, "the tokenizer is another one"),
    ],
)
def test_what_is_measured_otherwise_has_no_ratio_and_a_note(tmp_path, change, said):
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", **change)
    result = gradvar.compare_runs([tmp_path / "a", tmp_path / "b"])
    assert (result.arms[1].incomparable, result.ratios[0].ratios) == (said, None)
    assert sum(said in line and "not to be compared" in line for line in result.notices) == 1


def test_what_does_not_change_the_measure_is_compared(tmp_path):
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", training__batch=64, data__train="/texts/other.txt", data__tokenizer={"source": "/tok"})
    write_run(tmp_path / "c", data__tokenizer={"source": "/tok"})
    found = gradvar.compare_runs([tmp_path / "c", tmp_path / "b"])
    assert found.arms[1].incomparable is None
    assert found.ratios[0].ratios is not None
    assert gradvar.compare_runs([tmp_path / "a", tmp_path / "c"]).arms[1].incomparable == "the tokenizer is another one"


def test_another_budget_is_told(tmp_path):
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", training__steps=300)
    result = gradvar.compare_runs([tmp_path / "a", tmp_path / "b"])
    assert sum("budget or schedule differ" in line for line in result.notices) == 1


def test_a_scripts_run_is_compared_as_one_pair_with_a_note(tmp_path):
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", [5.0, 4.0], recipe=False)
    result = gradvar.compare_runs([tmp_path / "a", tmp_path / "b"])
    assert result.ratio("b").seeds == (None,)
    assert str(result.ratio("b").ratios["steps"]) == "0.438"  # 175 of 400 steps to 4.25 nats
    assert any("made by scripts, without a recipe: b" in line for line in result.notices)


def test_runs_without_an_evaluation_are_left_out_or_an_error(tmp_path):
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", [], 1)
    (write_run(tmp_path / "c", [], 2) / "metrics.jsonl").unlink()
    result = gradvar.compare_runs(sorted(tmp_path.iterdir()))
    assert f"without an evaluation, left out: {tmp_path}/b, {tmp_path}/c" in result.notices
    with pytest.raises(GradvarError, match=r"no evaluation in .*/b, .*/c yet; wait for one, or set evaluation.every"):
        gradvar.compare_runs([tmp_path / "b", tmp_path / "c"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            {"baseline": "nothing"},
            "'nothing' is no arm, proposal or run of these; there are uniform/simple; mapnet/pps",
        ),
        ({"target_losses": [4.3]}, "4.3: no run gets there; the lowest loss is 4.4"),
        ({"target_losses": [7.0]}, "7: all runs were there at their first evaluation; give less than 7"),
        ({"target_losses": [5, float("nan")]}, "nan is no number of nats"),
    ],
)
def test_what_cannot_be_asked_is_said(tmp_path, arguments, said):
    with pytest.raises(GradvarError, match=said):
        gradvar.compare_runs(write_arms(tmp_path), **arguments)


def test_a_proposal_of_several_arms_is_no_name_of_one(tmp_path):
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", training__clip=0.5)
    with pytest.raises(GradvarError, match=r"several arms; give the name of one: clip=1; clip=0\.5"):
        gradvar.compare_runs([tmp_path / "a", tmp_path / "b"], baseline="uniform/simple")


# ---- what a verdict may say


def said_of(folders, **options):
    result = gradvar.compare_runs(folders, **options)
    return result, " ".join(repr(result).split())


def test_what_differs_beside_the_proposal_is_in_the_names_or_told(tmp_path):
    write_run(tmp_path / "a")
    training = {"steps": 400, "clip": 0.5, "learning_rate": 0.1}
    few = write_run(tmp_path / "b", masking={"proposal": "loss/pps"}, training=training)
    many = write_run(tmp_path / "c", masking={"proposal": "loss/pps"}, training=training | {"weight_decay": 0.1})
    _, said = said_of([tmp_path / "a", few])
    assert "loss/pps, clip=0.5, training.learning_rate=0.1 to 4.25 nats: " in said
    result, said = said_of([tmp_path / "a", many], baseline="uniform/simple")
    assert [arm.name for arm in result.arms] == ["uniform/simple, …", "loss/pps, …"]
    assert result.plot()._suptitle.get_text().startswith("loss/pps, … takes ")
    keys = "masking.proposal, training.clip, training.learning_rate, training.weight_decay"
    assert f"note: loss/pps, … differs from uniform/simple, … in all of {keys}" in said


def test_names_that_paths_would_tell_apart_have_the_proposal_the_folder_and_a_note(tmp_path):
    write_run(tmp_path / "a", data__train="/t0/train.txt")
    for number in (1, 2):
        write_run(
            tmp_path / f"b{number}",
            data__train=f"/t{number}/train.txt",
            masking={"proposal": "loss/pps"},
            training={"steps": 400, "learning_rate": 0.1, "weight_decay": 0.1, "warmup": 0.2},
            data__tokenizer={"source": "/tok"},
        )
    write_run(tmp_path / "c", data__train="/t0/train.txt", data__tokenizer={"source": "/tok"})
    folders = [tmp_path / name for name in ("c", "b1", "b2")]
    names = ["uniform/simple, …", f"loss/pps ({tmp_path}/b1), …", f"loss/pps ({tmp_path}/b2), …"]
    result, said = said_of(folders)
    assert [arm.name for arm in result.arms] == names
    keys = "data.train, training.learning_rate, training.warmup, training.weight_decay"
    for name in names[1:]:
        assert f"{name} differs from uniform/simple, … in all of masking.proposal, {keys}" in said
    for name in names:
        assert gradvar.compare_runs(folders, baseline=name).baseline.name == name
        assert gradvar.compare_runs(folders, baseline=name.removesuffix(", …")).baseline.name == name
    result, said = said_of(folders, baseline=names[1])
    assert f"{names[2]} differs from {names[1]} in data.train" in said


def test_where_a_path_alone_differs_a_note_says_so(tmp_path):
    for number in (0, 1):
        write_run(tmp_path / str(number), data__train=f"/t{number}/train.txt", data__tokenizer={"source": "/tok"})
    result, said = said_of([tmp_path / "0", tmp_path / "1"])
    names = [f"train=train.txt ({tmp_path}/{number})" for number in (0, 1)]
    assert [arm.name for arm in result.arms] == names
    assert f"{names[1]} differs from {names[0]} in data.train" in said
    write_run(tmp_path / "2", masking={"proposal": "loss/pps"}, data__tokenizer={"source": "/tok"})
    assert "differs from" not in said_of([tmp_path / "0", tmp_path / "2"])[1]


def test_the_name_of_a_scripts_folder_is_never_abridged(tmp_path):
    write_run(tmp_path / "a")
    write_run(tmp_path / "b, …", [5.0, 4.0], recipe=False)
    assert "differs from" not in said_of([tmp_path / "a", tmp_path / "b, …"])[1]


def test_steps_of_another_size_are_not_compared(tmp_path):
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", training__batch=64)
    result, said = said_of([tmp_path / "a", tmp_path / "b"])
    assert list(result.ratios[0].ratios) == ["tokens", "seconds"]
    assert "training.batch=64 to 4.25 nats: 2 times the tokens (" in said
    assert "a step of training.batch=64 shows 2 times the tokens of one of training.batch=32: steps are not" in said
    assert "times the steps" not in said
    assert "times the tokens" in result.plot()._suptitle.get_text()
    write_run(tmp_path / "c", training__accumulation=2)
    assert list(gradvar.compare_runs([tmp_path / "a", tmp_path / "c"]).ratios[0].ratios) == list(UNITS)


def test_an_arm_that_never_got_there_is_said_to_be_later(tmp_path):
    """The baseline's worst run gets to the default target at its very end, where the other arm ends, too."""
    folders = [write_run(tmp_path / f"a{seed}", seed=seed) for seed in range(6)]
    slow = {"masking": {"proposal": "loss/pps"}}
    folders += [write_run(tmp_path / f"b{seed}", [7, 6, 5.5, 5], seed, **slow) for seed in range(6)]
    _, said = said_of(folders, target_losses=[4.25])
    assert "> 1 [1, ∞] times the steps (clearly more)" in said
    assert "loss/pps never got there in 6 of 6." in said
    _, said = said_of(folders[:3] + folders[6:9], target_losses=[4.25])
    assert "> 1 [1, ∞] times the steps (more in all 3 pairs, which are too few or too far apart to be sure)" in said
    assert "loss/pps never got there in 3 of 3." in said


def test_texts_that_changed_under_their_name_are_told_and_not_compared(tmp_path):
    hashed(write_run(tmp_path / "a"), "1" * 64)
    hashed(write_run(tmp_path / "b", masking={"proposal": "loss/pps"}), "2" * 64)
    result, said = said_of([tmp_path / "a", tmp_path / "b"])
    assert result.arms[1].name == "data_sha256=222222222222, loss/pps"
    assert result.ratios[0].ratios is None
    assert "(its text is another one, though it has the same name: a file changed in between)" in said


@pytest.mark.parametrize("twice", [False, True])
def test_a_text_that_changed_under_its_name_is_no_reason_where_the_other_arm_has_another(tmp_path, twice):
    """Hashes tell texts of one name apart; whether those of two names can be compared, the recipes say."""
    same = {"data__tokenizer": {"source": "/tok"}}
    other = {**same, "data__train": "/texts/b.txt", "masking": {"proposal": "loss/pps"}}
    for seed in (0, 1):
        hashed(write_run(tmp_path / f"u{seed}", seed=seed, **same), f"u{seed}" * 32)
    for seed in (0, 1)[: 1 + twice]:
        hashed(write_run(tmp_path / f"m{seed}", seed=seed, **other), f"m{seed}" * 32)
    result, said = said_of([tmp_path / "u0", *sorted(tmp_path.glob("m?")), tmp_path / "u1"])
    hashes = ["data_sha256=m0m0m0m0m0m0, ", "data_sha256=m1m1m1m1m1m1, "] if twice else [""]
    assert [arm.name for arm in result.arms] == [
        "data_sha256=u0u0u0u0u0u0, uniform/simple, train=train.txt",
        *(f"{text}loss/pps, train=b.txt" for text in hashes),
        "data_sha256=u1u1u1u1u1u1, uniform/simple, train=train.txt",
    ]
    assert [arm.incomparable is None for arm in result.arms] == [True] * (2 + twice) + [False]
    assert result.ratios[0].ratios["steps"].pairs == 1
    assert said.count("though it has the same name") == 1


def test_a_single_evaluation_says_what_is_known(tmp_path):
    write_run(tmp_path / "a", [4.0])
    write_run(tmp_path / "b", [3.9], masking={"proposal": "loss/pps"})
    _, said = said_of([tmp_path / "a", tmp_path / "b"])
    assert "?" not in said
    assert "loss/pps to 4 nats: not resolved beside the times of uniform/simple; loss/pps was there at its" in said
    assert "; uniform/simple was there at its first evaluation in 1 of 1." in said


def test_where_nothing_is_left_the_error_has_the_notices(tmp_path):
    folder = write_run(tmp_path / "a")
    write_lines(folder, [{"step": 10, "eval_loss": None, "tokens": 1, "seconds": 1}])
    with pytest.raises(GradvarError, match=r"set evaluation.every; .*/a: 1 evaluations without a finite loss are left"):
        gradvar.compare_runs([folder])


# ---- what becomes of it


def test_json_and_table_have_everything(tmp_path):
    result = gradvar.compare_runs(write_arms(tmp_path), target_losses=[5.0, 4.5])
    found = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert (found["schema"], found["baseline"], found["targets"]) == ("gradvar/runs/v1", "uniform/simple", [5.0, 4.5])
    assert [arm["final_loss"]["standard_error_over"] for arm in found["arms"]] == ["seeds", "seeds"]
    run = found["arms"][1]["runs"][0]
    assert [each["loss"] for each in run["evaluations"]] == [6.0, 4.9, 4.6, 4.4]
    assert run["mapnet_in_use"] == [{"step": 60, "exponent": 0.5, "epsilon": 0.1}]
    assert run["looks"][0]["variance/mask_high"] == pytest.approx(110)
    assert found["arms"][0]["runs"][0]["times_to_loss"][1] == {
        "target": 4.5,
        **{unit: {"low": end, "high": None} for unit, end in zip(UNITS, (400, 400_000, 200), strict=True)},
    }
    assert [(each["target"], each["ratios"]["steps"]["pairs"]) for each in found["ratios"]] == [(5.0, 2), (4.5, 2)]
    table = result.to_frame()
    assert isinstance(table, pandas.DataFrame)
    assert table["steps_to_4.5_is"].tolist() == ["at least", "at least", "exact", "exact"]
    assert table["seed"].tolist() == [0, 1, 0, 1]


def test_seconds_and_steps_are_told_apart_in_words(tmp_path):
    far = write_arms(tmp_path, range(5))
    said = " ".join(repr(gradvar.compare_runs(far, target_losses=[5.5])).split())
    assert "times the steps (clearly fewer)" in said
    assert "times the seconds (clearly more) of uniform/simple." in said
    assert "95 % bootstrap intervals over paired seeds" in said
    few = " ".join(repr(gradvar.compare_runs(far[:6], target_losses=[5.5])).split())
    assert "intervals: their range, whose confidence is 75 % with 3 pairs" in few


def test_one_run_alone_is_shown(tmp_path):
    result = gradvar.compare_runs([write_run(tmp_path / "a")])
    assert "1 run in 1 arm" in repr(result)
    assert "4.250 ± 0.100" in repr(result)
    assert result.ratios == ()
    assert result.figures() == ("loss",)


def test_an_evaluation_at_the_beginning_leaves_nothing_to_say(tmp_path):
    folder = write_run(tmp_path / "b", masking={"proposal": "loss/pps"})
    write_run(tmp_path / "a")
    write_lines(folder, [{"step": 0, "eval_loss": 4.0, "tokens": 0, "seconds": 0.0}])
    result = gradvar.compare_runs([tmp_path / "a", folder])
    assert str(result.ratio("loss/pps").ratios["steps"]) == "not resolved"
    result.plot("loss")
