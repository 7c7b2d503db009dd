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
    for part in ("For", "Needs", "Measured"):
        assert sum(line.startswith(f"# {part}: ") for line in head) == 1, part
    recipe = read_recipe(path)
    if recipe.model.source is None:
        encoder = build_encoder(recipe.model, cases.tokenizer(), recipe.data.max_length, seed=0)
        assert encoder.training


def test_the_scales_of_the_field_are_there_and_the_page_has_them():
    sizes = {f"mapnet-{kind}-{size}" for kind in ("bert", "modernbert") for size in ("tiny", "mini", "small", "base")}
    assert {path.stem for path in RECIPES} >= {"demo", "continue", *sizes}
    page = (RECIPES[0].parents[1] / "docs" / "recipes.md").read_text()
    for path in RECIPES:
        assert f"| `{path.name}` |" in page


def test_base_is_at_the_scale_of_the_field():
    recipe = read_recipe(RECIPES[0].with_name("mapnet-bert-base.yaml"))
    assert (recipe.data.max_length, recipe.training.batch, recipe.training.steps) == (512, 256, 1_000_000)


def test_a_checkpoint_takes_the_place_of_an_architecture_and_back():
    path = RECIPES[0].with_name("demo.yaml")
    onward = read_recipe(path, ["model.source=runs/a"])
    assert (onward.model.source, onward.model.architecture, onward.model.config) == ("runs/a", None, {})
    long = path.with_name("mapnet-bert-tiny-long.yaml")
    assert read_recipe(long, ["model.architecture=bert"]).model.source is None
