import dataclasses
import itertools
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from gradvar.errors import GradvarError
from gradvar.mapnet.config import MapNetConfig
from gradvar.training.reading import changed, read_recipe, recipe_of, write_recipe
from gradvar.training.recipe import MapNetTraining, Shape

LEAST = {"model": {"architecture": "bert"}, "training": {"steps": 10}}
EVERYTHING = {
    "seed": 2**32 - 1,
    "data": {
        "train": "größe: #1 'ü'.txt",
        "valid": "1e-3",  # a string, though it looks like a number
        "valid_share": 1e-5,
        "max_length": 3,
        "pack": False,
        "tokenizer": {"source": "null", "vocabulary": 100, "lowercase": False},
    },
    "model": {"architecture": "modernbert", "config": {"a": [1, 2.5, None, "on"], "b": {"c": True}}},
    "masking": {"proposal": "logit^0.5/pps~0.1", "replacement": [100, 0, 0], "masks": 2, "weighting": "token"},
    "mapnet": {"target": "gradient", "every": 4, "loss": "kl", "shape": {"width": 32}, "into_encoder": True},
    "training": {"seconds": 1e20, "betas": [0.0, 0.999], "warmup": 0, "clip": 0, "bf16": True},
    "evaluation": {"every": None, "sentences": 2},
    "watch": {"every": 7},
    "saving": {"every": None, "loggers": []},
}
RECIPES = sorted(Path("recipes").glob("*.yaml"))


def written(tmp_path, values):
    path = tmp_path / "recipe.yaml"
    path.write_text(values if isinstance(values, str) else yaml.safe_dump(values, allow_unicode=True), encoding="utf-8")
    return path


def read(tmp_path, *overrides, values=LEAST, **more):
    return read_recipe(written(tmp_path, values), overrides, {key.replace("__", "."): x for key, x in more.items()})


def refusal(tmp_path, *overrides, values=LEAST):
    with pytest.raises(GradvarError) as caught:
        read(tmp_path, *overrides, values=values)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_our_own_recipes_are_recipes(path):
    recipe = read_recipe(path)
    assert changed(recipe, recipe_of(yaml.safe_load(path.read_text()), "")) == []


def test_there_are_recipes_of_our_own():
    assert RECIPES


def test_what_is_not_said_has_a_default(tmp_path):
    recipe = read(tmp_path)
    assert (recipe.seed, recipe.data.max_length, recipe.data.tokenizer.vocabulary) == (0, 128, 8192)
    assert recipe.masking.replacement == (80, 10, 10)
    assert (recipe.training.steps, recipe.training.tokens, recipe.training.seconds) == (10, None, None)


@pytest.mark.parametrize("values", [LEAST, EVERYTHING], ids=["least", "everything"])
def test_a_recipe_is_read_as_it_was_written(tmp_path, values):
    recipe = recipe_of(values, "")
    again = read_recipe(written(tmp_path, write_recipe(recipe)))
    assert again == recipe
    assert changed(again, recipe) == []
    assert write_recipe(again) == write_recipe(recipe)


def test_a_written_recipe_says_every_value(tmp_path):
    """So that a run stays what it was when a default changes."""
    recipe = recipe_of(LEAST, "")
    text = yaml.safe_load(write_recipe(recipe))
    assert list(text) == list(type(recipe).model_fields)
    for name in ("data", "masking", "mapnet", "training", "evaluation", "watch", "saving"):
        assert list(text[name]) == list(type(getattr(recipe, name)).model_fields)


def test_a_recipe_cannot_be_changed():
    with pytest.raises(ValidationError, match="frozen"):
        recipe_of(LEAST, "").training.batch = 3


@pytest.mark.parametrize(
    ("override", "place", "value"),
    [
        ("seed=7", "seed", 7),
        ("training.learning_rate=1e-3", "training.learning_rate", 1e-3),  # a string to YAML 1.1
        ("training.learning_rate=2.5E-4", "training.learning_rate", 2.5e-4),
        (" training.batch = 8 ", "training.batch", 8),
        ("data.tokenizer.vocabulary=300", "data.tokenizer.vocabulary", 300),
        ("data.train=a=b.txt", "data.train", "a=b.txt"),
        ("data.train='7'", "data.train", "7"),
        ("data.pack=false", "data.pack", False),
        ("evaluation.every=null", "evaluation.every", None),
        ("evaluation.every=", "evaluation.every", None),
        ("training.betas=[0.8, 0.95]", "training.betas", (0.8, 0.95)),
        ("masking.proposal=logit^0.5/pps~0.1@0.3", "masking.proposal", "logit^0.5/pps~0.1@0.3"),
        ("model.config={hidden_size: 32}", "model.config", {"hidden_size": 32}),
        ("model.config.hidden_size=32", "model.config", {"hidden_size": 32}),
        ("saving.loggers=[]", "saving.loggers", ()),
        ("mapnet.shape.width=32", "mapnet.shape", {"width": 32}),
        ("mapnet.shape={temperature: 2, embeddings: own}", "mapnet.shape", {"embeddings": "own", "temperature": 2.0}),
        # Without its section, where there is one of that name.
        ("block=64", "data.block", 64),
        ("proposal=uniform/midzuno", "masking.proposal", "uniform/midzuno"),
        ("vocabulary=300", "data.tokenizer.vocabulary", 300),
        ("width=32", "mapnet.shape", {"width": 32}),
        ("config={hidden_size: 32}", "model.config", {"hidden_size": 32}),
    ],
)
def test_an_override_sets_one_value(tmp_path, override, place, value):
    recipe = read(tmp_path, override)
    found = recipe
    for part in place.split("."):
        found = getattr(found, part)
    assert found == value
    assert [key for key in changed(recipe, recipe_of(LEAST, "")) if not key.startswith(place)] == []


def test_an_override_leaves_the_rest_of_its_section(tmp_path):
    recipe = read(tmp_path, "data.tokenizer.lowercase=true", values=EVERYTHING)
    assert changed(recipe, recipe_of(EVERYTHING, "")) == ["data.tokenizer.lowercase"]


def test_a_section_without_values_takes_overrides(tmp_path):
    assert read(tmp_path, "training.steps=3", values="model: {architecture: bert}\ntraining:\n").training.steps == 3


def test_later_overrides_win_and_values_win_over_all(tmp_path):
    assert read(tmp_path, "seed=1", "seed=2").seed == 2
    assert read(tmp_path, "seed=1", "seed=2", seed=3).seed == 3
    assert read(tmp_path, "data.train=a.txt", data__train="1e3").data.train == "1e3"


BUDGETS = {"steps": 4, "tokens": 5, "seconds": 6.5}


@pytest.mark.parametrize("how", ["overrides", "values"])
@pytest.mark.parametrize(("old", "new"), list(itertools.product(BUDGETS, BUDGETS)))
def test_a_budget_takes_the_place_of_the_others(tmp_path, how, old, new):
    values = LEAST | {"training": {old: 3, "batch": 8}}
    key, value = f"training.{new}", BUDGETS[new]
    given = {"overrides": [f"{key}={value}"]} if how == "overrides" else {"values": {key: value}}
    training = read_recipe(written(tmp_path, values), **given).training
    assert {name: getattr(training, name) for name in BUDGETS} == dict.fromkeys(BUDGETS) | {new: value}
    assert training.batch == 8


def test_a_budget_without_its_section_takes_the_place_of_the_others(tmp_path):
    training = read(tmp_path, "tokens=5").training
    assert (training.steps, training.tokens, training.seconds) == (None, 5, None)


def test_the_last_of_two_budgets_wins(tmp_path):
    training = read(tmp_path, "training.tokens=5", "training.seconds=6").training
    assert (training.steps, training.tokens, training.seconds) == (None, None, 6)


def test_a_recipe_without_a_budget_is_refused(tmp_path):
    assert "give one budget: 'steps', 'tokens' or 'seconds'" in refusal(tmp_path, "training.steps=null")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        (
            "training.learning_rat=1",
            "unknown key 'training.learning_rat'; did you mean 'learning_rate'? there are steps,",
        ),
        ("trainig.batch=1", "unknown key 'trainig'; did you mean 'training'? there are seed, data,"),
        ("data.tokenizer.vocab=200", "'data.tokenizer.vocab'; did you mean 'vocabulary'? there are source,"),
        ("learning_rate=1", "did you mean mapnet.learning_rate or training.learning_rate?"),
        ("xyzzy=1", "unknown key 'xyzzy'; there are seed, data,"),
        ("training.xyzzy=1", "unknown key 'training.xyzzy'; there are steps, tokens,"),
        # The very name elsewhere is nearer than a similar one here.
        ("batch=8", "did you mean training.batch or evaluation.batch"),
        ("every=5", "did you mean mapnet.every or evaluation.every or watch.every or saving.every?"),
        ("tokenizer=x", "unknown key 'tokenizer'; there are seed, data,"),  # which is a section
        ("training.mask_rate=0.3", "did you mean masking.mask_rate"),
        ("data.vocabulary=300", "did you mean data.tokenizer.vocabulary"),
        (
            "mapnet.shape.widht=8",
            "unknown key 'mapnet.shape.widht'; did you mean 'width'? "
            "there are embeddings, width, window, layers, heads, feed_forward, temperature",
        ),
        ("mapnet.shape.xyzzy=8", "unknown key 'mapnet.shape.xyzzy'; there are embeddings, width, window"),
        ("mapnet.shape.input_width=8", "unknown key 'mapnet.shape.input_width'; did you mean 'width'? there"),
        ("mapnet.width=8", "unknown key 'mapnet.width'; did you mean mapnet.shape.width?"),
    ],
)
def test_an_unknown_key_is_told_with_the_nearest_ones(tmp_path, override, words):
    message = refusal(tmp_path, override)
    assert message.startswith(f"{tmp_path / 'recipe.yaml'}: unknown key ")
    assert words in message


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("seed=-1", "seed: input should be greater than or equal to 0, not -1"),
        ("seed=4294967296", "seed: input should be less than 4294967296"),
        ("training.steps=0", "training.steps: input should be greater than or equal to 1, not 0"),
        ("training.steps=2.5", "training.steps: input should be a valid integer"),
        ("training.seconds=.inf", "training.seconds: input should be a finite number, not inf"),
        ("training.warmup=.nan", "training.warmup: input should be"),
        ("training.warmup=1", "training.warmup: input should be less than 1, not 1"),
        ("training.betas=[0.9, 1.0]", "training.betas.1: input should be less than 1, not 1.0"),
        ("training.betas=[0.9]", "'training.betas.1' is missing"),
        ("training=5", "training: input should be a valid dictionary"),
        ("data.valid_share=1", "data.valid_share: input should be less than 1, not 1"),
        ("data.train=2024-01-01", "data.train: input should be a valid string, not datetime.date(2024, 1, 1)"),
        ("data.train.x=3", "data.train: input should be a valid string"),
        ("saving.loggers=wandb", "saving.loggers: input should be a valid tuple, not 'wandb'"),
        ("mapnet.target=grad", "mapnet.target: input should be 'logit' or 'gradient', not 'grad'"),
        ("mapnet.every=4", "mapnet: 'every' belongs to target: gradient"),
        ("mapnet.shape=8", "mapnet.shape: input should be a valid dictionary, not 8"),
        *(
            (f"mapnet.shape.{name}={value}", f"mapnet.shape.{name}: input should be {words}")
            for name in ("width", "window", "layers", "heads", "feed_forward")
            for value, words in (
                ("wide", "a valid integer, unable to parse string as an integer, not 'wide'"),
                ("-8", "greater than or equal to 1, not -8"),
                ("true", "a whole number"),
                ("8.5", "a valid integer"),
                ("null", "a valid integer"),
                ("[8]", "a valid integer"),
            )
        ),
        ("training.learning_rate=true", "training.learning_rate: input should be a number"),
        ("mapnet.shape.temperature=warm", "mapnet.shape.temperature: input should be a valid number"),
        ("mapnet.shape.temperature=true", "mapnet.shape.temperature: input should be a number"),
        ("mapnet.shape.temperature=0.1", "mapnet.shape.temperature: input should be greater than or equal to 0.125"),
        ("mapnet.shape.temperature=.inf", "mapnet.shape.temperature: input should be a finite number"),
        ("mapnet.shape.embeddings=theirs", "mapnet.shape.embeddings: input should be 'model' or 'own', not 'theirs'"),
        ("mapnet.shape={width: 8, heads: 3}", "mapnet.shape: a MAPNet's width of 8 cannot be shared among 3 heads"),
        ("mapnet.shape.heads=9", "mapnet.shape: none of the widths that are tried can be shared among 9 heads; give"),
        ("masking.proposal=mapnet/simple", "masking: 'mapnet/simple': simple takes the uniform score only"),
        (
            "masking.proposal=mapnet-permuted^0.5/disjoint:2",
            "masking: 'mapnet-permuted^0.5/disjoint:2': disjoint takes the uniform score only",
        ),
        (
            "masking.proposal=mapnett/pps",
            "no score 'mapnett'; did you mean 'mapnet'? there are uniform, oracle, logit, last-layer, loss, frequency, "
            "mapnet, mapnet-permuted, file=PATH",
        ),
        (
            "model={source: x, architecture: bert}",
            "model: give 'architecture' (from scratch) or 'source' (a checkpoint), one of the two",
        ),
        ("model.architecture=null", "model: give 'architecture' (from scratch) or 'source'"),
        ("model={source: x, config: {a: 1}}", "model: 'config' belongs to an architecture from scratch"),
        ("training.steps", "'training.steps' is no override; write section.key=value"),
        ("=3", "'=3' is no override"),
        ("training.steps=[", "'training.steps=[': the value is not YAML; put it in quotes"),
        ("data.train=2024-13-45", "'data.train=2024-13-45': the value is not YAML; put it in quotes"),
    ],
)
def test_a_bad_value_is_told_with_its_place(tmp_path, override, words):
    assert words in refusal(tmp_path, override)


def test_a_shape_has_the_fields_of_a_mapnet_but_those_of_its_encoder():
    fields = [field.name for field in dataclasses.fields(MapNetConfig)]
    assert list(Shape.__annotations__) == [name for name in fields if name not in ("vocabulary", "input_width")]


@pytest.mark.parametrize("shape", [{}, {"width": 8, "heads": 2}, {"temperature": 2.0, "embeddings": "own"}])
def test_a_shape_stays_a_plain_dict(shape):
    found = MapNetTraining(shape=shape).shape
    assert type(found) is dict
    assert found == shape


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ({"depth": 3}, r"shape\.depth"),
        ({"width": "wide"}, r"shape\.width"),
        ({"width": 8, "heads": 3}, "width of 8 cannot be shared among 3 heads"),
    ],
)
def test_a_shape_that_cannot_be_is_refused_where_it_is_given(shape, words):
    with pytest.raises(ValidationError, match=words):
        MapNetTraining(shape=shape)


BUDGET = "model: {architecture: bert}\ntraining: {steps: 1}\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "holds no sections; a recipe is 'section:' with 'key: value' lines below"),
        ("[]", "holds no sections"),
        ("bert", "holds no sections"),
        (BUDGET + "data: [", "line 3: not YAML"),
        (BUDGET + "\tseed: 1", "line 3: not YAML (found character '\\t'"),
        (BUDGET + "data: *b", "line 3: not YAML (found undefined alias 'b')"),
        (BUDGET + "data: !!python/object/apply:os.getcwd []", "line 3: not YAML (could not determine a constructor"),
        (BUDGET + "data: {train: a\0b}", "not YAML (unacceptable character #x0000"),
        (BUDGET + "data: {train: 2024-13-45}", "not YAML (month must be in 1..12)"),
        (BUDGET + "seed: 3\nseed: 4", "line 4: not YAML ('seed' twice)"),
        ("model: {architecture: bert}\ntraining: {steps: 1, steps: 2}", "line 2: not YAML ('steps' twice)"),
        (BUDGET + "1: 2", "1: keys should be strings, not 1"),
        ("training: {steps: 1}", "'model' is missing; see recipes/ for examples"),
        ("model: {architecture: bert}", "'training' is missing"),
        ("model: bert\ntraining: {steps: 1}", "model: input should be a valid dictionary"),
        ("model: {architecture: bert}\ntraining: {}", "training: give one budget: 'steps', 'tokens' or 'seconds'"),
        ("model: {architecture: bert}\ntraining: {steps: 1, tokens: 2}", "training: give one budget"),
    ],
)
def test_a_bad_file_is_told_with_the_place(tmp_path, text, words):
    message = refusal(tmp_path, values=text)
    assert str(tmp_path / "recipe.yaml") in message
    assert words in message


def test_what_cannot_be_read_is_told(tmp_path):
    (tmp_path / "latin.yaml").write_bytes("seed: café".encode("latin-1"))
    for name, words in (
        ("nowhere.yaml", "cannot be read (No such file or directory); give a YAML file"),
        (".", "cannot be read (Is a directory)"),
        ("latin.yaml", "is not UTF-8 text"),
    ):
        with pytest.raises(GradvarError) as caught:
            read_recipe(tmp_path / name)
        assert words in str(caught.value)


def test_reading_changes_nothing_given(tmp_path):
    values = {"model.config": {"hidden_size": 32}, "model.config.intermediate_size": 64}
    recipe = read_recipe(written(tmp_path, LEAST), ["model.config.num_hidden_layers=1"], values)
    assert recipe.model.config == {"hidden_size": 32, "intermediate_size": 64}
    assert values["model.config"] == {"hidden_size": 32}


@pytest.mark.parametrize(
    ("one", "other", "keys"),
    [
        ([], [], []),
        ([], ["seed=0", "data.max_length=128", "data.valid=null"], []),  # what is the default anyway
        ([], ["seed=1", "data.tokenizer.vocabulary=300"], ["data.tokenizer.vocabulary", "seed"]),
        ([], ["training.tokens=5"], ["training.steps", "training.tokens"]),
        ([], ["training.betas=[0.9, 0.99]"], ["training.betas"]),
        (["model.config.a.b=1"], ["model.config.a.b=2"], ["model.config.a.b"]),
        (["model.config.a.b=1"], ["model.config.a.b=1", "model.config.c=null"], ["model.config.c"]),
        (["model.config.a.b=1"], ["model.config.a.c=1"], ["model.config.a.b", "model.config.a.c"]),
    ],
)
def test_changed_keys_are_named(tmp_path, one, other, keys):
    mine, theirs = read(tmp_path, *one), read(tmp_path, *other)
    assert changed(mine, theirs) == keys
    assert changed(theirs, mine) == keys
