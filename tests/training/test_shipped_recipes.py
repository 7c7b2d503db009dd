"""The recipes that ship: they can be read, say what they are for, and make their encoder."""

import re
from pathlib import Path

import pytest
from transformers import AutoConfig

from gradvar.training.devices import parse_devices
from gradvar.training.dry_run import plan
from gradvar.training.model import build_encoder
from gradvar.training.reading import read_recipe
from tests import cases

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))


@pytest.mark.parametrize(
    "path", cases.mostly_full(RECIPES, lambda path: not path.stem.endswith("base")), ids=lambda path: path.stem
)
def test_a_recipe_that_ships(path):
    head = [line for line in path.read_text().splitlines() if line.startswith("#")]
    for part in ("For", "Needs", "Measured"):
        assert sum(line.startswith(f"# {part}: ") for line in head) == 1, part
    recipe = read_recipe(path)
    if recipe.model.source is None:
        encoder = build_encoder(recipe.model, cases.tokenizer(), recipe.data.max_length, seed=0)
        assert encoder.training


def _rounded(value, text):
    """Whether a text is a number rounded to the digits that it has."""
    digits = len(text.partition(".")[2])
    return round(value, digits) == float(text)


def _shown(recipe):
    """Tokens that a run shows in all, if no sequence is shorter."""
    return recipe.training.steps * recipe.training.batch * recipe.data.max_length


def _config(recipe):
    return AutoConfig.for_model(recipe.model.architecture, **recipe.model.config)


STATED = {  # what a header may say of its recipe, and of which number
    "parameters": (r"([\d.]+) M parameters", lambda recipe, found: found.parameters / 1e6),
    "vocabulary": (r"M parameters with ([\d,]+) tokens", lambda recipe, found: recipe.data.tokenizer.vocabulary),
    "layers": (r"(\d+) layers of width", lambda recipe, found: _config(recipe).num_hidden_layers),
    "width": (r"layers of width (\d+)", lambda recipe, found: _config(recipe).hidden_size),
    "length": (r"sequences of (\d+) tokens", lambda recipe, found: recipe.data.max_length),
    "batch": (r"batches of (\d+)", lambda recipe, found: recipe.training.batch),
    "steps": (r"([\d.]+) M steps", lambda recipe, found: found.steps / 1e6),
    "rate": (r"masks of (\d+) %", lambda recipe, found: 100 * recipe.masking.mask_rate),
}
MEASURED = {  # and what its measurement may, or what comes behind it
    "tokens": (r"after (\d+) M tokens", lambda recipe: _shown(recipe) / 1e6),
    "every": (r"at every (\d+)th step", lambda recipe: recipe.mapnet.every),
    "length": (r"nats on (\d+) tokens after", lambda recipe: recipe.data.max_length),
}
SAY = {  # at least
    "continue": set(),
    "demo": {"parameters", "layers", "width", "tokens"},
    "mapnet-bert-base": {"parameters", "length", "batch", "steps"},
    "mapnet-bert-mini": {"parameters", "vocabulary", "layers", "width"},
    "mapnet-bert-small": {"parameters", "vocabulary", "layers", "width"},
    "mapnet-bert-tiny": {"parameters", "layers", "width", "tokens", "every"},
    "mapnet-bert-tiny-long": {"length", "tokens"},
    "mapnet-modernbert-base": {"layers", "width", "rate"},
    "mapnet-modernbert-mini": {"parameters", "vocabulary", "layers", "width"},
    "mapnet-modernbert-small": {"parameters", "vocabulary", "layers", "width"},
    "mapnet-modernbert-tiny": {"parameters", "layers", "width", "tokens"},
}


def _header(path):
    """What a recipe says of itself, and of what was measured."""
    lines = path.read_text().splitlines()
    said, measured, after = " ".join(line[2:] for line in lines if line.startswith("# ")).partition("Measured: ")
    assert measured
    return said, after


@pytest.mark.parametrize(
    "path", cases.mostly_full(RECIPES, lambda path: not path.stem.endswith("base")), ids=lambda path: path.stem
)
def test_headers_say_what_the_recipe_is(path):
    recipe, (said, after) = read_recipe(path), _header(path)
    found = plan(recipe, parse_devices("1xH100", recipe.training.bf16), 0.4) if recipe.model.source is None else None
    names = set()
    for name, (pattern, of) in STATED.items():
        for text in re.findall(pattern, said):
            assert _rounded(of(recipe, found), text.replace(",", "")), (name, text, of(recipe, found))
            names.add(name)
    for name, (pattern, of) in MEASURED.items():
        for text in re.findall(pattern, after):
            assert _rounded(of(recipe), text), (name, text, of(recipe))
            names.add(name)
    assert names >= SAY[path.stem]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_headers_say_what_was_measured(path):
    assert "MEASURE" not in path.read_text()
    assert re.search(r"\d", _header(path)[1])


def test_recipes_that_name_each_other_agree():
    """In batches and steps; in the length that one begins with, and the other goes on from."""
    bert, modern, tiny, long = (
        read_recipe(RECIPES[0].with_name(f"mapnet-{name}.yaml"))
        for name in ("bert-base", "modernbert-base", "bert-tiny", "bert-tiny-long")
    )
    assert (
        "in the batches and steps of mapnet-bert-base.yaml"
        in _header(RECIPES[0].with_name("mapnet-modernbert-base.yaml"))[0]
    )
    assert (bert.training.batch, bert.training.steps) == (modern.training.batch, modern.training.steps)
    assert f"began with {tiny.data.max_length} tokens" in _header(RECIPES[0].with_name("mapnet-bert-tiny-long.yaml"))[0]
    assert f"sequences of {long.data.max_length} tokens" in _header(RECIPES[0].with_name("mapnet-bert-tiny.yaml"))[1]


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
