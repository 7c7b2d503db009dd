"""Recipes from YAML and back, with overrides; what is wrong with one is told in one line."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from typing_extensions import is_typeddict

from gradvar.errors import GradvarError
from gradvar.training.recipe import Recipe
from gradvar.training.schedule import is_written

_INSTEAD = {
    "training.steps": ("tokens", "seconds"),
    "training.tokens": ("steps", "seconds"),
    "training.seconds": ("steps", "tokens"),
    "model.source": ("architecture", "config"),
    "model.architecture": ("source",),
}
"""Keys of a section that an override takes the place of."""


class _Once(yaml.SafeLoader):
    """Refuses keys that are given twice, of which YAML would take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Read a section."""
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"'{key.value}' twice", key.start_mark)
            if isinstance(key.value, str):
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_recipe(path: str | Path, overrides: Sequence[str] = (), values: Mapping[str, Any] | None = None) -> Recipe:
    """Read a recipe.

    Args:
        path: A YAML file.
        overrides: ``section.key=value`` each, the value in YAML; later ones win. A key without its section stands for
            the one that there is of that name.
        values: More of them, by ``section.key``; they win.

    Returns:
        The recipe.

    Raises:
        GradvarError: If the file cannot be read, or a key or value is none; the message suggests the nearest key.
    """
    try:
        found = yaml.load(Path(path).read_text(encoding="utf-8"), _Once)
    except OSError as error:
        raise GradvarError(f"the recipe '{path}' cannot be read ({error.strerror}); give a YAML file") from error
    except UnicodeDecodeError as error:
        raise GradvarError(f"the recipe '{path}' is not UTF-8 text; give a YAML file") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: 2024-13-45 looks like a date
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        said = str(getattr(error, "problem", None) or error).splitlines()[0]
        raise GradvarError(f"{path}{where}: not YAML ({said}); correct it") from error
    if not isinstance(found, dict):
        raise GradvarError(f"{path} holds no sections; a recipe is 'section:' with 'key: value' lines below")
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise GradvarError(f"'{text}' is no override; write section.key=value, like training.learning_rate=1e-3")
        try:
            _override(found, _in_full(key.strip()), yaml.safe_load(value))
        except (yaml.YAMLError, ValueError, RecursionError):
            raise GradvarError(f"'{text}': the value is not YAML; put it in quotes") from None
    for key, given in (values or {}).items():
        _override(found, key, given)
    return recipe_of(found, str(path))


def recipe_of(values: Mapping[str, Any], place: str) -> Recipe:
    """Check the values of a recipe.

    Args:
        values: As YAML or JSON gives them.
        place: Where they come from, for messages.

    Returns:
        The recipe.

    Raises:
        GradvarError: If a key or value is none.
    """
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise GradvarError(f"{place}: {_first(error)}") from None


def changed(one: Recipe, other: Recipe) -> list[str]:
    """List the keys in which two recipes differ, as ``section.key``."""
    mine, theirs = values_of(one), values_of(other)
    return sorted(key for key in {*mine, *theirs} if mine.get(key, ...) != theirs.get(key, ...))


def values_of(recipe: Recipe) -> dict[str, Any]:
    """Return all values of a recipe by ``section.key``, as JSON has them; a schedule is one value."""
    return _flat(recipe.model_dump(mode="json"))


def write_recipe(recipe: Recipe) -> str:
    """Write a recipe as YAML, with every value."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _in_full(key: str) -> str:
    """Put the sections before a key that was given without them, where no other section has one of that name."""
    known = [] if "." in key or key in Recipe.model_fields else _named(key)
    return known[0] if len(known) == 1 else key


def _override(values: dict[str, Any], key: str, value: Any) -> None:
    """Put a value into nested ones, by ``section.key``."""
    *sections, last = key.split(".")
    place: Any = values
    for section in sections:
        inner = place.get(section)
        place[section] = dict(inner) if isinstance(inner, dict) else {}
        place = place[section]
    for other in _INSTEAD.get(key, ()) if value is not None else ():
        place.pop(other, None)
    place[last] = value


def _first(error: ValidationError) -> str:
    """Say the first thing that is wrong, in one line."""
    found = error.errors(include_url=False)[0]
    path = [str(part) for part in found["loc"]]
    if found["type"] == "extra_forbidden":
        known = _keys(path[:-1])
        close = difflib.get_close_matches(path[-1], known, n=1, cutoff=0.5)
        elsewhere = _named(path[-1])
        hint = (
            f"; did you mean {' or '.join(elsewhere)}?"
            if elsewhere
            else f"; did you mean '{close[0]}'?"
            if close
            else ";"
        )
        return f"unknown key '{'.'.join(path)}'{hint} there are {', '.join(known)}"
    if found["type"] == "missing":
        return f"'{'.'.join(path)}' is missing; see recipes/ for examples"
    said = found["msg"].removeprefix("Value error, ")
    where = f"{'.'.join(path)}: " if path else ""
    given = "" if found["type"] == "value_error" else f", not {found['input']!r}"
    return f"{where}{said[0].lower()}{said[1:]}{given}"


def _keys(path: Sequence[str]) -> list[str]:
    """Keys of the section at a path."""
    section: Any = Recipe
    for part in path:
        section = _members(section)[part]
    return list(_members(section))


def all_keys(section: Any = Recipe, above: str = "") -> list[str]:
    """All keys that there are, as ``section.key``."""
    found = []
    for name, kind in _members(section).items():
        found += all_keys(kind, f"{above}{name}.") if _members(kind) else [f"{above}{name}"]
    return found


def _named(last: str) -> list[str]:
    """All keys whose last part it is."""
    return [name for name in all_keys() if name.rpartition(".")[2] == last]


def _members(kind: Any) -> dict[str, Any]:
    """Kinds of the values of a section by key; none for what is a value itself."""
    if is_typeddict(kind):
        return dict(kind.__annotations__)
    return {name: field.annotation for name, field in getattr(kind, "model_fields", {}).items()}


def _flat(values: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        path = f"{above}{name}"
        deeper = isinstance(value, dict) and value and not is_written(value)
        found |= _flat(value, f"{path}.") if deeper else {path: value}
    return found
