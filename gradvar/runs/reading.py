"""What the folder of a run says: its recipe, its evaluations, its looks at the variance. Loads no model and no text."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gradvar import checkpoints
from gradvar.checkpoints import STATE
from gradvar.errors import GradvarError
from gradvar.metrics import METRICS, parse_metrics
from gradvar.report.runs import Evaluation
from gradvar.training.folder import RECIPE
from gradvar.training.reading import read_recipe, recipe_of
from gradvar.training.recipe import Recipe

_HISTORY = "trainer_state.json"
_LOOKED = ("variance/", "mapnet/", "proposal/")


@dataclass(frozen=True)
class Found:
    """What the folder of one run says.

    Attributes:
        folder: As it was given.
        path: The same, absolute and without links.
        recipe: None where a script made the run.
        text: Hash of its tokenised text, where a checkpoint tells.
        evaluations: With a finite loss, by step.
        looks: Lines of the looks at the variance, by step.
        used: ``(step, exponent, epsilon)`` by which a MAPNet drew.
        made: Command and versions that made it.
        notices: What is wrong with it.
    """

    folder: str
    path: Path
    recipe: Recipe | None
    text: str | None
    evaluations: tuple[Evaluation, ...]
    looks: tuple[dict[str, Any], ...]
    used: tuple[tuple[int, float, float], ...]
    made: tuple[str, ...] = ()
    notices: tuple[str, ...] = field(default=())

    @property
    def seed(self) -> int | None:
        """Its seed, where a recipe tells."""
        return None if self.recipe is None else self.recipe.seed

    @property
    def budget(self) -> str:
        """Its budget in words."""
        if self.recipe is None:
            return ""
        name, most = _budget(self.recipe)
        return f"{most:,.15g} {name}"

    @property
    def finished(self) -> bool | None:
        """Whether it was evaluated when its budget was used; None where there is no recipe to tell."""
        if self.recipe is None:
            return None
        name, most = _budget(self.recipe)
        return bool(self.evaluations) and getattr(self.evaluations[-1], name) >= most * (1 - 1e-6)


def _budget(recipe: Recipe) -> tuple[str, float]:
    training = recipe.training
    given = {"steps": training.steps, "tokens": training.tokens, "seconds": training.seconds}
    return next((name, float(most)) for name, most in given.items() if most is not None)


def read_folders(folders: Sequence[str | Path]) -> list[Found]:
    """Read the folders of runs.

    Args:
        folders: One at least.

    Returns:
        What they say, in the same order.

    Raises:
        GradvarError: If one is no run, cannot be read, or is given twice.
    """
    if not folders:
        raise GradvarError("give the folders of runs, such as runs/*")
    found = [read_folder(folder) for folder in folders]
    seen: dict[Path, str] = {}
    for run in found:
        if run.path in seen:
            twice = run.folder if seen[run.path] == run.folder else f"{seen[run.path]} and {run.folder}"
            raise GradvarError(f"{twice}: one run, given twice; give each folder once")
        seen[run.path] = run.folder
    return found


def read_folder(folder: str | Path) -> Found:
    """Read the folder of a run.

    A script's run, which has no recipe and may have no `metrics.jsonl`, is read from the history in its last whole
    checkpoint.

    Args:
        folder: As `gradvar train --out` or `TrainingArguments.output_dir` named it.

    Returns:
        What it says.

    Raises:
        GradvarError: If it is no run, or cannot be read.
    """
    path = Path(folder)
    try:
        if not path.is_dir():
            what = "is a file" if path.exists() else "is not there"
            raise GradvarError(f"{folder} {what}; give the folders of runs, such as runs/*")
        last = checkpoints.last_whole(path)
        saved = {} if last is None else _json(last / STATE)
        lines, broken = _lines(path, last)
        recipe, made = _recipe(path, last, saved)
        if recipe is None and lines is None:
            raise GradvarError(_no_run(path))
    except OSError as error:
        raise GradvarError(f"{folder} cannot be read ({error.strerror or error}); see to its permissions") from error
    evaluations, lost = _evaluations(lines or ())
    notices = [f"{folder}: {broken} broken lines of {METRICS} are left out"] if broken else []
    notices += [f"{folder}: {lost} evaluations without a finite loss are left out"] if lost else []
    return Found(
        folder=str(folder),
        path=path.resolve(),
        recipe=recipe,
        text=text if isinstance(text := saved.get("data_sha256"), str) else None,
        evaluations=evaluations,
        looks=_looks(lines or ()),
        used=_used(lines or ()),
        made=made,
        notices=tuple(notices),
    )


def recipe_at(folder: Path) -> Recipe | None:
    """Return the recipe of a run, given its folder or one of its checkpoints; None where there is none to be read."""
    for place in (folder, folder.parent) if folder.name.startswith(checkpoints.PREFIX) else (folder,):
        try:
            if (place / RECIPE).is_file():
                return read_recipe(place / RECIPE)
        except (OSError, GradvarError):
            return None
    return None


def _no_run(path: Path) -> str:
    inside = sorted(each for each in path.iterdir() if (each / RECIPE).exists() or (each / METRICS).exists())
    if inside:
        return f"{path} is no run, but holds some; give {path}/*"
    return f"{path} is no run: it has no {RECIPE}, no {METRICS} and no checkpoint; give the folders of runs"


def _recipe(path: Path, last: Path | None, saved: Mapping[str, Any]) -> tuple[Recipe | None, tuple[str, ...]]:
    """Read the recipe, or that in the last checkpoint, with the comments at its head."""
    if (path / RECIPE).exists():
        text = (path / RECIPE).read_text(encoding="utf-8", errors="replace")
        head = (line.removeprefix("#").strip() for line in text.splitlines() if line.startswith("#"))
        return read_recipe(path / RECIPE), tuple(head)
    if isinstance(saved.get("recipe"), dict):
        return recipe_of(saved["recipe"], str(last)), ()
    return None, ()


def _lines(path: Path, last: Path | None) -> tuple[list[dict[str, Any]] | None, int]:
    """Return what was logged, None where there is no log, and how many lines were broken."""
    if (path / METRICS).exists():
        return parse_metrics((path / METRICS).read_text(encoding="utf-8", errors="replace"))
    if last is None:
        return None, 0
    history = _json(last / _HISTORY).get("log_history")
    if not isinstance(history, list):
        return None, 0
    return [line for line in history if isinstance(line, dict) and type(line.get("step")) is int], 0


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


_MOST = 1e100  # of any number of a log; what is larger is as lost as what is not finite


def _number(line: Mapping[str, Any], name: str) -> float | None:
    """Return a finite number of a line, or None."""
    value = line.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) < _MOST else None


def _evaluations(lines: Iterable[Mapping[str, Any]]) -> tuple[tuple[Evaluation, ...], int]:
    """Return the evaluations by step, the last one of each, and how many had no finite loss or time."""
    found: dict[int, Evaluation] = {}
    lost = 0
    for line in lines:
        if "eval_loss" not in line:
            continue
        loss, tokens, seconds = (_number(line, name) for name in ("eval_loss", "tokens", "seconds"))
        if loss is None or tokens is None or seconds is None or min(line["step"], tokens, seconds) < 0:
            lost += 1
            continue
        found[line["step"]] = Evaluation(line["step"], tokens, seconds, loss, _number(line, "eval_loss_se"))
    return tuple(found[step] for step in sorted(found)), lost


def _looks(lines: Iterable[Mapping[str, Any]]) -> tuple[dict[str, Any], ...]:
    found: dict[int, dict[str, Any]] = {}
    for line in lines:
        if any(name.startswith(_LOOKED) for name in line):
            numbers = {name: x for name in line if (x := _number(line, name)) is not None}
            found[line["step"]] = numbers | {"step": line["step"]}
    return tuple(found[step] for step in sorted(found))


def _used(lines: Iterable[Mapping[str, Any]]) -> tuple[tuple[int, float, float], ...]:
    found: dict[int, tuple[int, float, float]] = {}
    for line in lines:
        exponent, epsilon = _number(line, "exponent"), _number(line, "epsilon")
        if exponent is not None and epsilon is not None:
            found[line["step"]] = line["step"], exponent, epsilon
    return tuple(found[step] for step in sorted(found))
