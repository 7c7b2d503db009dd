"""The recipes that ship: they can be read, say what they are for, and make their encoder."""

from pathlib import Path

import pytest

from gradvar.training.model import build_encoder
from gradvar.training.reading import read_recipe
from tests import cases

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_that_ships(path):
    head = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert any(line.startswith("# Needs: ") for line in head)
    recipe = read_recipe(path)
    if recipe.model.source is None:
        encoder = build_encoder(recipe.model, cases.tokenizer(), recipe.data.max_length, seed=0)
        assert encoder.training


def test_there_are_some():
    assert {path.stem for path in RECIPES} >= {"demo", "mapnet-bert-tiny"}


def test_a_checkpoint_takes_the_place_of_an_architecture_and_back():
    path = RECIPES[0].with_name("demo.yaml")
    onward = read_recipe(path, ["model.source=runs/a"])
    assert (onward.model.source, onward.model.architecture, onward.model.config) == ("runs/a", None, {})
    long = path.with_name("mapnet-bert-tiny-long.yaml")
    assert read_recipe(long, ["model.architecture=bert"]).model.source is None
