"""Which runs belong together: an arm is what differs in its seed alone. Its name says what sets it apart."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradvar.checkpoints import PREFIX
from gradvar.errors import GradvarError
from gradvar.runs.reading import Found, recipe_at
from gradvar.training.reading import all_keys, values_of
from gradvar.training.recipe import Recipe
from gradvar.training.schedule import is_written, parse_schedule

_NO_ARM = ("seed", "saving.", "watch.", "evaluation.every", "evaluation.batch", "training.workers")
"""Keys that change nothing of what is trained and of the loss that is measured."""
_PROPOSAL = "masking.proposal"
_SOURCE = "model.source"
_ARCHITECTURE = "model.architecture"
_MAPNET = "mapnet."
_TEXT = ("data.train", "data.valid", "data.valid_share", "data.tokenizer.source")
DATA = "data_sha256"
"""What stands for the text in an arm's settings where runs name it alike though it is not the same."""
MORE = ", …"
"""Ends a name that has not all the keys in which the arms differ."""
_FIRST = (DATA, _PROPOSAL, _ARCHITECTURE, "data.max_length", _SOURCE, "mapnet.target")
"""Keys that say most about an arm."""
_ALL = 3  # keys up to which a name has all in which the arms differ


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seed alone.

    Attributes:
        name: What sets them apart from the other groups.
        settings: Values of the keys in which the groups differ.
        runs: By the number that pairs them with those of other groups: their seed, or that of the run they go on from
            where their own are alike; None where a script made the run, which is a group by itself.
        recipe: Of the first run.
        abridged: Whether the name leaves out some of what may set them apart: a key, or the head of a path.
    """

    name: str
    settings: dict[str, Any]
    runs: dict[int | None, Found]
    recipe: Recipe | None
    abridged: bool

    def differs(self, other: Group) -> list[str]:
        """List the keys in which another group differs, where both have recipes; hashes of texts if both have one."""
        theirs = other.settings
        return [
            key
            for key, value in self.settings.items()
            if key in theirs and theirs[key] != value and (key != DATA or None not in (value, theirs[key]))
        ]


def group(found: Sequence[Found]) -> tuple[list[Group], list[str], list[str]]:
    """Sort runs into arms.

    Args:
        found: The runs, with evaluations.

    Returns:
        The arms in the order of their first runs, the keys in which they differ, and what was left out.

    Raises:
        GradvarError: If runs of one recipe have the same seed though they are not the same.
    """  # noqa: DOC502
    parts: dict[str, list[Found]] = {}
    values = _values(found)
    for run, own in zip(found, values, strict=True):
        key = str(run.path) if run.recipe is None else json.dumps(own, sort_keys=True)
        parts.setdefault(key, []).append(run)
    notices: list[str] = []
    seeded = [_by_seed(runs, notices) for runs in parts.values()]
    settings = [{} if runs[0].recipe is None else json.loads(key) for key, runs in parts.items()]
    for own, runs in zip(settings, seeded, strict=True):
        if _SOURCE in own:
            own[_SOURCE] = _origin_name(list(runs.values()))
    named = [own for own in settings if own]
    differing = _differing(named)
    telling = _telling(named, differing)
    names = [
        _name(own, telling) if own else Path(next(iter(runs.values())).folder).name
        for own, runs in zip(settings, seeded, strict=True)
    ]
    left_out = len(telling) < len(differing)
    groups = [
        Group(
            name=unique + MORE if own and left_out else unique,
            settings={key: own.get(key) for key in differing} if own else {},
            runs=runs,
            recipe=next(iter(runs.values())).recipe,
            abridged=bool(own) and (left_out or unique != name),
        )
        for name, unique, own, runs in zip(names, _unique(names, seeded), settings, seeded, strict=True)
    ]
    return groups, differing, notices


def measured_on(recipe: Recipe) -> dict[str, Any]:
    """Say what decides the held-out loss beside the model: two runs' can be compared where all of it is the same."""
    data = recipe.data
    return {
        "the held-out text": data.valid or [data.train, data.valid_share],
        "the tokenizer": _tokenizer(recipe),
        "data.max_length": data.max_length,
        "data.pack": data.pack,
        "evaluation.sentences": recipe.evaluation.sentences,
        "evaluation.masks": recipe.evaluation.masks,
    }


def _tokenizer(recipe: Recipe) -> Any:
    """Name the folder of a tokenizer, or what it is trained from, of whichever run it comes."""
    tokenizer, source = recipe.data.tokenizer, recipe.model.source
    if tokenizer.source is not None:
        return tokenizer.source
    if source is None:
        return [recipe.data.train, tokenizer.vocabulary, tokenizer.lowercase]
    before = recipe_at(Path(source))
    return source if before is None else _tokenizer(before)


def _values(found: Sequence[Found]) -> list[dict[str, Any]]:
    """Return what makes the arm of each run: its values, and a hash of its text where the values do not tell of it."""
    values = _named_values(found)
    named = [_text_name(own, run) for own, run in zip(values, found, strict=True)]
    texts = {(name, run.text) for name, run in zip(named, found, strict=True) if name and run.text}
    changed = {name for name in named if sum(name == other for other, _ in texts) > 1}
    return [
        own | {DATA: run.text[:12] if run.text else "unknown"} if name in changed else own
        for own, name, run in zip(values, named, found, strict=True)
    ]


def _text_name(own: Mapping[str, Any], run: Found) -> str | None:
    """Write all that decides the tokenised text but for what its files hold."""
    if run.recipe is None:
        return None
    data = {key: x for key, x in own.items() if key.startswith("data.")}
    return json.dumps([data, _blank({_SOURCE: _tokenizer(run.recipe)}, run.seed)], sort_keys=True)


def _named_values(found: Sequence[Found]) -> list[dict[str, Any]]:
    """Return the values that make the arm of each run.

    Texts of the same hash have the names that the first such run gave them. The run that one goes on from is known by
    its recipe, whatever its seed; where that is not there any more, by its path, in which the run's own seed counts as
    a blank if that makes runs alike.
    """
    texts: dict[str, dict[str, Any]] = {}
    values = []
    for run in found:
        own = {} if run.recipe is None else _own(run.recipe)
        if run.text is not None and own:
            same = texts.setdefault(run.text, {key: own[key] for key in _TEXT})
            own |= same
        values.append(own)
    blank = [_blank(own, run.seed) for own, run in zip(values, found, strict=True)]
    alike = [json.dumps(own, sort_keys=True) for own in blank]
    exact = [json.dumps(own, sort_keys=True) for own in values]
    shared = {one for one in exact if exact.count(one) > 1}
    return [
        other if alike.count(likeness) > 1 and one not in shared else own
        for own, other, one, likeness in zip(values, blank, exact, alike, strict=True)
    ]


def _own(recipe: Recipe, depth: int = 0) -> dict[str, Any]:
    """Return the values that make an arm; the run that it goes on from is told by its own."""
    inert = _NO_ARM if "mapnet" in recipe.masking.proposal else (*_NO_ARM, _MAPNET)
    own = {key: x for key, x in values_of(recipe).items() if not key.startswith(inert) and x != {}}
    before = recipe_at(Path(recipe.model.source)) if recipe.model.source and depth < 20 else None
    return own if before is None else own | {_SOURCE: _own(before, depth + 1)}


def _blank(own: Mapping[str, Any], seed: int | None) -> dict[str, Any]:
    """Put a star for the seed in the last part of the source's path that has it, checkpoints apart."""
    source = own.get(_SOURCE)
    if not isinstance(source, str) or seed is None:
        return dict(own)
    parts = list(Path(source).parts)
    for number in reversed(range(len(parts))):
        starred = re.sub(rf"(?<!\d){seed}(?!\d)", "*", parts[number])
        if starred != parts[number] and not parts[number].startswith(PREFIX):
            parts[number] = starred
            break
    return {**own, _SOURCE: str(Path(*parts))}


def _by_seed(runs: Sequence[Found], notices: list[str]) -> dict[int | None, Found]:
    """Order the runs of an arm by seed; of two that are the same, the one that got further stays."""
    kept: dict[tuple[int | None, str | None], Found] = {}
    for run in runs:
        same = (run.seed, None if run.recipe is None else run.recipe.model.source)
        before = kept.get(same)
        if before is None:
            kept[same] = run
            continue
        further, other = (run, before) if _steps(run) > _steps(before) else (before, run)
        kept[same] = further
        notices.append(f"{other.folder} is the run of {further.folder} once more, with the same seed; it is left out")
    seeds = [seed for seed, _ in kept]
    if len(set(seeds)) < len(seeds):
        seeds = [_seed_before(run) for run in kept.values()]
    if len(set(seeds)) < len(seeds):
        names = " and ".join(run.folder for run in list(kept.values())[:2])
        raise GradvarError(f"{names} go on from different runs with the same seed; leave one of them out")
    return dict(sorted(zip(seeds, kept.values(), strict=True), key=lambda item: item[0] or 0))


def _seed_before(run: Found) -> int | None:
    assert run.recipe is not None
    before = None if run.recipe.model.source is None else recipe_at(Path(run.recipe.model.source))
    return None if before is None else before.seed


def _steps(run: Found) -> int:
    return run.evaluations[-1].steps


# ---- names


def _differing(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """List the keys in which arms differ, those that say most first."""
    keys = {key for own in settings for key in own}
    found = [key for key in keys if len({json.dumps(own.get(key)) for own in settings if _asked(own, key)}) > 1]
    return sorted(found, key=lambda key: (_FIRST.index(key) if key in _FIRST else len(_FIRST), key))


def _asked(own: Mapping[str, Any], key: str) -> bool:
    """Whether an arm has such a key: none has a hash if its text is named well, or `mapnet` if it has no MAPNet."""
    return key in own or not key.startswith((_MAPNET, DATA))


def _telling(settings: Sequence[Mapping[str, Any]], differing: Sequence[str]) -> list[str]:
    """Choose the keys of the names: all in which the arms differ, or if they are many, as few as tell arms apart.

    The proposal is always one where it differs. Arms are apart if it can be seen, so not by the head of a path.
    """
    if len(differing) <= _ALL:
        return [*differing] or [_PROPOSAL]
    chosen = [_PROPOSAL] if _PROPOSAL in differing else []
    while _classes(settings, chosen) < _classes(settings, differing):
        chosen.append(max(differing, key=lambda key: (_classes(settings, [*chosen, key]), -differing.index(key))))
    return sorted(chosen, key=differing.index)


def _classes(settings: Sequence[Mapping[str, Any]], keys: Iterable[str]) -> int:
    """Count the arms that can be seen to differ if these keys are in their names."""
    return len({frozenset(_parts(own, keys).items()) for own in settings})


def _name(own: Mapping[str, Any], keys: Iterable[str]) -> str:
    """Name an arm by some keys, or by its proposal if it has none of them."""
    return ", ".join(_parts(own, keys).values()) or str(own[_PROPOSAL])


def _parts(own: Mapping[str, Any], keys: Iterable[str]) -> dict[str, str]:
    """Write keys and values: a proposal alone, others by the last part of the key where there is only one such."""
    parts = {}
    for key in keys:
        if key == _PROPOSAL:
            parts[key] = str(own[key])
        elif _asked(own, key):
            place = _SOURCE if key == _ARCHITECTURE and own.get(key) is None else key
            parts[place] = f"{_short(place)}={shown(own.get(place))}"
    return parts


def _short(key: str) -> str:
    """Leave the section out where that leaves no doubt."""
    last = key.rpartition(".")[2]
    alone = sum(each.rpartition(".")[2] == last for each in all_keys()) <= 1
    return last if alone and not key.startswith(_MAPNET) else key


def shown(value: Any) -> str:
    """Write the value of a key, a path by its last part."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if is_written(value):
        return str(parse_schedule(value))
    if isinstance(value, list):
        return "[" + ",".join(map(shown, value)) + "]"
    if isinstance(value, float):
        return f"{value:g}"
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else str(value)


def _origin_name(runs: Sequence[Found]) -> str | None:
    """Name the runs that those of an arm go on from, with a star where their names differ."""
    sources = {run.recipe.model.source for run in runs if run.recipe is not None and run.recipe.model.source}
    if len(sources) < 2:
        return next(iter(sources), None)
    named = [_blank({_SOURCE: run.recipe.model.source}, run.seed)[_SOURCE] for run in runs if run.recipe is not None]
    if len(set(named)) == 1:
        return str(named[0])
    return ",".join(sorted(Path(source).name for source in sources))


def _unique(names: Sequence[str], groups: Sequence[Mapping[int | None, Found]]) -> list[str]:
    """Add the folder of the first run to names that several arms have."""
    return [
        f"{name} ({next(iter(runs.values())).folder})" if names.count(name) > 1 else name
        for name, runs in zip(names, groups, strict=True)
    ]
