import pytest

from gradvar.runs.arms import group
from gradvar.runs.reading import read_folders
from tests.runs.folders import hashed, write_run


def arms(*folders):
    groups, _, notices = group(read_folders(folders))
    return {each.name: {seed: run.path.name for seed, run in each.runs.items()} for each in groups}, notices


def test_runs_that_differ_in_their_seed_alone_are_one_arm(tmp_path):
    for seed in (2, 0):
        write_run(tmp_path / f"a{seed}", seed=seed)
        write_run(tmp_path / f"b{seed}", seed=seed, masking={"proposal": "logit/pps"})
    found, notices = arms(*sorted(tmp_path.iterdir()))
    assert found == {"uniform/simple": {0: "a0", 2: "a2"}, "logit/pps": {0: "b0", 2: "b2"}}
    assert [[*runs] for runs in found.values()] == [[0, 2], [0, 2]]
    assert notices == []


@pytest.mark.parametrize(
    "change",
    [
        {"saving__every": 7},
        {"saving__loggers": []},
        {"watch__every": 100},
        {"evaluation__every": 50},
        {"evaluation__batch": 8},
        {"training__workers": 2},
        {"mapnet__learning_rate": 0.1},  # without a MAPNet
    ],
)
def test_what_does_not_touch_the_training_makes_no_arm(tmp_path, change):
    write_run(tmp_path / "a", seed=0)
    write_run(tmp_path / "b", seed=1, **change)
    assert arms(tmp_path / "a", tmp_path / "b")[0] == {"uniform/simple": {0: "a", 1: "b"}}


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"training__learning_rate": 0.01}, "training.learning_rate=0.01"),
        ({"evaluation__sentences": 64}, "evaluation.sentences=64"),
        ({"data__max_length": 32}, "data.max_length=32"),
        ({"masking__mask_rate": {"linear": {0: 0.3, 1: 0.15}}}, "mask_rate={linear: {0: 0.3, 1: 0.15}}"),
        ({"training__bf16": True}, "bf16=true"),
        ({"data__train": "/texts/other.txt"}, "train=other.txt"),
        ({"masking": {"proposal": "mapnet/pps"}, "mapnet__loss": "kl"}, "mapnet/pps"),
        ({"masking": {"proposal": "loss/pps"}, "training__batch": 64}, "loss/pps, training.batch=64"),
    ],
)
def test_the_name_of_an_arm_says_what_sets_it_apart(tmp_path, change, name):
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", **change)
    assert list(arms(tmp_path / "a", tmp_path / "b")[0])[1] == name


def test_where_much_differs_a_name_has_as_few_keys_as_tell_the_arms_apart(tmp_path):
    many = {"training": {"steps": 500, "batch": 64, "learning_rate": 0.1, "clip": 0.5}}
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", **many)
    write_run(tmp_path / "c", **many, data__max_length=32)
    groups, differing, _ = group(read_folders(sorted(tmp_path.iterdir())))
    assert [each.name for each in groups] == [
        "data.max_length=16, training.batch=32, …",
        "data.max_length=16, training.batch=64, …",
        "data.max_length=32, training.batch=64, …",
    ]
    assert differing == [
        "data.max_length",
        "training.batch",
        "training.clip",
        "training.learning_rate",
        "training.steps",
    ]
    assert [each.settings["training.steps"] for each in groups] == [400, 500, 500]


def test_keys_that_look_alike_do_not_tell_arms_apart(tmp_path):
    """Of two files of one name the name says nothing, so another key is taken; the proposal is there all the same."""
    for number, proposal in enumerate(("uniform/simple", "loss/pps", "loss/pps")):
        training = {"steps": 400, "clip": 0.5 + number, "learning_rate": 0.1 + number}
        masking = {"proposal": proposal}
        write_run(tmp_path / str(number), data__train=f"/t{number}/train.txt", masking=masking, training=training)
    groups, _, _ = group(read_folders(sorted(tmp_path.iterdir())))
    assert [(each.name, each.abridged) for each in groups] == [
        ("uniform/simple, clip=0.5, …", True),
        ("loss/pps, clip=1.5, …", True),
        ("loss/pps, clip=2.5, …", True),
    ]


# ---- runs that go on from others


def continued(folder, source, seed):
    return write_run(folder, seed=seed, model={"architecture": None, "source": str(source)})


def test_runs_that_go_on_from_seeds_of_one_arm_are_one_arm(tmp_path):
    for seed in (0, 1):
        write_run(tmp_path / f"first-{seed}", seed=seed)
        continued(tmp_path / f"then-{seed}", tmp_path / f"first-{seed}", seed)
    found, _ = arms(tmp_path / "then-0", tmp_path / "then-1")
    assert list(found.values()) == [{0: "then-0", 1: "then-1"}]
    together, _ = arms(*sorted(tmp_path.iterdir()))
    assert list(together) == ["architecture=bert, model.source=none", "model.source=first-*"]


def test_they_are_paired_by_the_seeds_that_they_go_on_from_where_their_own_are_alike(tmp_path):
    for seed in (4, 5):
        write_run(tmp_path / f"first-{seed}", seed=seed)
        continued(tmp_path / f"then-{seed}", tmp_path / f"first-{seed}" / "checkpoint-400", 0)
    found, notices = arms(tmp_path / "then-4", tmp_path / "then-5")
    assert list(found.values()) == [{4: "then-4", 5: "then-5"}]
    assert notices == []


def test_where_the_first_runs_are_gone_their_names_tell(tmp_path):
    for seed in (0, 1):
        continued(tmp_path / f"own-{seed}", f"/gone/first-{seed}", seed)
    assert len(arms(*sorted(tmp_path.iterdir()))[0]) == 1
    for seed in (0, 1):
        continued(tmp_path / f"same-{seed}", "/gone/0", seed)
    assert [*arms(*sorted(tmp_path.iterdir()))[0].values()] == [{0: "own-0", 1: "own-1"}, {0: "same-0", 1: "same-1"}]


def test_runs_that_go_on_from_other_recipes_are_other_arms(tmp_path):
    write_run(tmp_path / "first-0")
    write_run(tmp_path / "first-1", seed=1, training__learning_rate=0.1)
    for seed in (0, 1):
        continued(tmp_path / f"then-{seed}", tmp_path / f"first-{seed}", seed)
    assert len(arms(tmp_path / "then-0", tmp_path / "then-1")[0]) == 2


# ---- what is there twice, and texts


def test_of_a_run_that_is_there_twice_the_one_that_got_further_stays(tmp_path):
    write_run(tmp_path / "a", [6.0, 5.0])
    write_run(tmp_path / "b")
    found, notices = arms(tmp_path / "a", tmp_path / "b")
    assert found == {"uniform/simple": {0: "b"}}
    said = f"{tmp_path}/a is the run of {tmp_path}/b once more, with the same seed; it is left out"
    assert notices == [said]


def test_one_text_under_two_names_makes_no_arm(tmp_path):
    for seed, name in enumerate(("/here/a.txt", "/there/b.txt")):
        hashed(write_run(tmp_path / str(seed), seed=seed, data__train=name), "the same")
    assert len(arms(tmp_path / "0", tmp_path / "1")[0]) == 1


def test_two_texts_under_one_name_are_two_arms(tmp_path):
    for seed in (0, 1):
        hashed(write_run(tmp_path / str(seed), seed=seed), f"text {seed}")
    write_run(tmp_path / "2")  # without a checkpoint
    found = {"data_sha256=text 0": {0: "0"}, "data_sha256=text 1": {1: "1"}, "data_sha256=unknown": {0: "2"}}
    assert arms(*sorted(tmp_path.iterdir()))[0] == found


def test_texts_of_other_names_or_lengths_are_told_by_those(tmp_path):
    for number, change in enumerate(({}, {"data__train": "/texts/other.txt"}, {"data__max_length": 32})):
        hashed(write_run(tmp_path / str(number), **change), f"text {number}")
    assert not any("sha256" in name for name in arms(*sorted(tmp_path.iterdir()))[0])


def test_scripts_are_arms_by_the_name_of_their_folders(tmp_path):
    for name in ("a", "b", "c"):
        write_run(tmp_path / name, recipe=name == "c")
    assert arms(*sorted(tmp_path.iterdir()))[0] == {"a": {None: "a"}, "b": {None: "b"}, "uniform/simple": {0: "c"}}
