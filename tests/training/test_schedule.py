"""Schedules say what they are written to say, in recipes and back."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradvar.errors import GradvarError
from gradvar.training.reading import read_recipe, recipe_of, write_recipe
from gradvar.training.recipe import Masking
from gradvar.training.schedule import Schedule
from tests.training import runs

NAN = float("nan")
LARGE = f"1{'0' * 400}"  # no float
BASE = {"model": {"architecture": "bert"}, "training": {"steps": 10}}


def test_points_and_between():
    linear, steps = (Schedule(kind, (0.0, 0.5, 1.0), (0.3, 0.1, 0.2)) for kind in ("linear", "steps"))
    shares = (0.0, 0.25, 0.5, 0.75, 1.0, 1.2)
    assert [linear.at(x) for x in shares] == pytest.approx([0.3, 0.2, 0.1, 0.15, 0.2, 0.2])
    assert [steps.at(x) for x in shares] == [0.3, 0.3, 0.1, 0.1, 0.2, 0.2]
    assert steps.at(np.nextafter(0.5, 0)) == 0.3
    assert Schedule.of(0.15).at(0.7) == 0.15
    assert Schedule.of(0.15).constant
    assert not linear.constant


@given(
    st.sampled_from(["linear", "steps"]),
    st.lists(st.tuples(st.floats(1e-6, 1), st.floats(0.01, 0.99)), max_size=5, unique_by=lambda x: x[0]),
    st.floats(0.01, 0.99),
    st.floats(0, 1),
)
def test_values_stay_within_and_agree_with_the_points(kind, points, first, share):
    points = [(0.0, first), *sorted(points)]
    schedule = Schedule(kind, *zip(*points, strict=True))
    values = [value for _, value in points]
    assert min(values) - 1e-12 <= schedule.at(share) <= max(values) + 1e-12
    assert [schedule.at(x) for x, _ in points] == pytest.approx(values)


@pytest.mark.parametrize(
    ("key", "given"),
    [
        ("masking.mask_rate", {"linear": {0: 0.3, 1: 0.15}}),
        ("masking.mask_rate", {"steps": {0.25: 0.15, 0: 0.3}}),
        ("training.max_length", {"steps": {0: 16, 0.9: 128}}),
        ("training.max_length", 64),
        ("masking.mask_rate", 0.4),
    ],
)
def test_recipes_and_back(tmp_path, key, given):
    path = tmp_path / "recipe.yaml"
    path.write_text(write_recipe(recipe_of(BASE, "here")))
    recipe = read_recipe(path, values={key: given})
    path.write_text(write_recipe(recipe))
    assert read_recipe(path) == recipe
    assert recipe_of(recipe.model_dump(mode="json"), "state") == recipe
    section, name = key.split(".")
    value = getattr(getattr(recipe, section), name)
    if isinstance(given, dict):
        (kind, points), *_ = given.items()
        assert value == Schedule(kind, *zip(*sorted(points.items()), strict=True))
    else:
        assert value == given


def test_from_python():
    schedule = Schedule("linear", (0.0, 1.0), (0.3, 0.15))
    assert Masking(mask_rate=schedule).mask_rate == schedule
    assert Masking(mask_rate={"linear": {0: 0.3, 1: 0.15}}).mask_rate == schedule


BAD = {
    "masking.mask_rate": [
        ("{cosine: {0: 0.3}}", "write a schedule as {linear: {0: 0.3, 1: 0.15}} or"),
        ("{linear: 3}", "write a schedule as"),
        ("{linear: {0: 0.3}, steps: {0: 0.3}}", "write a schedule as"),
        ("{linear: {}}", "takes a value for each share"),
        ("{linear: {0: 0.3, 0.5: 1.5}}", "mask_rate: input should be less than 1, not 1.5"),
        ("{linear: {0: true}}", "input should be a number"),
        ("{linear: {0: null}}", "input should be a valid number"),
        ("{linear: {0: [0.3]}}", "input should be a valid number"),
        ("{linear: {0: 0}}", "input should be greater than 0, not 0"),
        ("{linear: {0: 0.3, 1: 1}}", "input should be less than 1, not 1"),
        ("{linear: {0: 0.3, 1: -0.2}}", "input should be greater than 0, not -0.2"),
        ("{linear: {0: .inf}}", "the values of a schedule are finite, not inf"),
        (f"{{linear: {{0: {LARGE}}}}}", "mask_rate: input should be a valid number"),
        ("{steps: {true: 0.2, 0: 0.3}}", "the shares of a schedule are numbers"),
        ("{steps: {false: 0.3}}", "the shares of a schedule are numbers"),
        ("{steps: {null: 0.3}}", "the shares of a schedule are numbers"),
        ("{steps: {.nan: 0.3}}", "the shares of a schedule rise from 0"),
        ("{steps: {0: 0.3, .nan: 0.2}}", "the shares of a schedule rise from 0"),
        ("{steps: {.nan: 0.2, 0: 0.3, 1: 0.1}}", "the shares of a schedule rise from 0"),
        ("{steps: {-0.5: 0.2, 0: 0.3}}", "the shares of a schedule rise from 0"),
        ("{steps: {0: 0.3, '0': 0.2}}", "the shares of a schedule rise from 0"),
        ("{steps: {0: 0.3, .inf: 0.2}}", "inf is no share of the budget; give 0 to 1"),
        (f"{{steps: {{0: 0.3, {LARGE}: 0.2}}}}", "the shares of a schedule are numbers"),
        ("{linear: {0.5: 0.3}}", "the shares of a schedule rise from 0"),
        ("{steps: {0: 0.3, 2: 0.2}}", "2 is no share of the budget; give 0 to 1"),
        ("{steps: {a: 0.3}}", "the shares of a schedule are numbers"),
        ("{steps: {0: 0.3, 1: .nan}}", "not nan"),
        ("0", "input should be greater than 0, not 0"),
        ("true", "input should be a number"),
        (".nan", "input should be less than 1, not nan"),
        ("-0.3", "input should be greater than 0, not -0.3"),
    ],
    "training.max_length": [
        ("{steps: {0: 2}}", "input should be greater than or equal to 3, not 2"),
        ("{steps: {0: 16.5}}", "input should be a valid integer"),
        ("{steps: {0: -16}}", "input should be greater than or equal to 3, not -16"),
        ("{steps: {0: true}}", "input should be a whole number, not True"),
        ("{steps: {0: .nan}}", "the values of a schedule are finite, not nan"),
        (f"{{steps: {{0: {LARGE}}}}}", "000 is more than the 128 tokens of the data's sequences"),
        (LARGE, "000 is more than the 128 tokens of the data's sequences"),
        ("{linear: {0: 16, 1: 64}}", "max_length goes by steps"),
        ("256", "training.max_length 256 is more than the 128 tokens of the data's sequences"),
        ("{steps: {0: 16, 0.5: 256}}", "training.max_length 256 is more than"),
    ],
}


@pytest.mark.parametrize(("key", "text", "message"), [(k, *case) for k, cases in BAD.items() for case in cases])
def test_bad_schedules(tmp_path, key, text, message):
    path = tmp_path / "recipe.yaml"
    path.write_text(write_recipe(recipe_of(BASE, "here")))
    with pytest.raises(GradvarError) as error:
        read_recipe(path, [f"{key}={text}"])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("kind", "shares", "values", "message"),
    [
        ("cosine", (0, 1), (0.3, 0.2), "there is no schedule 'cosine'; take linear, or steps"),
        ("steps", (), (), "takes a value for each share"),
        ("steps", (0, 1), (0.3,), "takes a value for each share"),
        ("steps", (0, True), (0.3, 0.2), "the shares of a schedule are numbers"),
        ("steps", (False, 1), (0.3, 0.2), "the shares of a schedule are numbers"),
        ("steps", (0, "1"), (0.3, 0.2), "the shares of a schedule are numbers"),
        ("steps", (NAN,), (0.3,), "the shares of a schedule rise from 0"),
        ("steps", (0, NAN), (0.3, 0.2), "the shares of a schedule rise from 0"),
        ("steps", (0, NAN, 1), (0.3, 0.2, 0.1), "the shares of a schedule rise from 0"),
        ("steps", (0, 0.5, 0.2), (0.3, 0.2, 0.1), "the shares of a schedule rise from 0"),
        ("steps", (0, 0.5, 0.5), (0.3, 0.2, 0.1), "the shares of a schedule rise from 0"),
        ("steps", (-0.5, 0), (0.3, 0.2), "the shares of a schedule rise from 0"),
        ("steps", (0, 1.5), (0.3, 0.2), "1.5 is no share of the budget; give 0 to 1"),
        ("linear", (0, 1), (0.3, NAN), "the values of a schedule are finite, not nan"),
        ("linear", (0, 1), (-float("inf"), 0.3), "the values of a schedule are finite, not -inf"),
    ],
)
def test_bad_schedules_from_python(kind, shares, values, message):
    with pytest.raises(ValueError, match=message) as error:
        Schedule(kind, shares, values)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("length", [0, -4, 2])
def test_lengths_without_room_from_python(tmp_path, length):
    with pytest.raises(GradvarError, match=f"max_length {length} leaves no room beside 2 special tokens"):
        runs.trainer(tmp_path, max_length=Schedule("steps", (0, 0.5), (12, length)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"masking.proposal": "uniform/simple@0.4"}, "has a mask rate of its own; leave '@' or the schedule out"),
        ({"masking.proposal": "uniform/epoch-stratified"}, "are of one size; give a number"),
        (
            {"training.seconds": 3, "training.max_length": {"steps": {0: 16, 0.5: 32}}},
            "a schedule of max_length takes a budget in steps or tokens",
        ),
    ],
)
def test_what_does_not_go_together(tmp_path, changes, message):
    path = tmp_path / "recipe.yaml"
    path.write_text(write_recipe(recipe_of(BASE, "here")))
    with pytest.raises(GradvarError) as error:
        read_recipe(path, values={"masking.mask_rate": {"linear": {0: 0.3, 1: 0.15}}} | changes)
    assert message in str(error.value)
