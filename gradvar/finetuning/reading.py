"""The examples of a task: from tab-separated files as GLUE has them, or from a hub data set."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradvar.errors import GradvarError
from gradvar.finetuning.tasks import SCORE_RANGE, Task
from gradvar.huggingface.reading import BROKEN, DECOMPRESS

_MOST_BAD = 0.01  # of the rows; QQP's official file has some with too few columns


@dataclass(frozen=True)
class Examples:
    """Labelled texts.

    Attributes:
        source: Where they come from.
        texts: One or two texts of each.
        labels: Number of the label of each, or its score.
        broken: Rows with too few columns, which were left out.
    """

    source: str
    texts: tuple[tuple[str, ...], ...]
    labels: tuple[float, ...]
    broken: int = 0

    @property
    def empty(self) -> int:
        """How many have an empty text; they stay, as each held-out example is to be scored."""
        return sum(not all(map(str.strip, texts)) for texts in self.texts)


@dataclass(frozen=True)
class TaskData:
    """All that a task is trained and judged on.

    Attributes:
        task: The task.
        train: Training examples.
        dev: Held-out examples by the name of the part.
        sha256: Of the texts and labels.
    """

    task: Task
    train: Examples
    dev: Mapping[str, Examples]
    sha256: str


def read_task(task: Task, data: str) -> TaskData:
    """Read the examples of a task.

    Args:
        task: The task.
        data: A folder with ``CoLA.train.tsv`` or ``CoLA/train.tsv`` and so on, plain or as ``.xz``/``.gz``, or the name
            of a hub data set with a configuration for each task, such as ``nyu-mll/glue``.

    Returns:
        The examples.

    Raises:
        GradvarError: If a file is missing, or is no such file; the message names the place.
    """
    read = _folder if os.path.isdir(data) else _hub
    train, *dev = read(task, data)
    parts = dict(zip(task.dev, dev, strict=True))
    for examples in (train, *dev):
        if len(examples.labels) < 2:
            raise GradvarError(f"{examples.source} holds {len(examples.labels)} examples; give 2 at least")
        for count, what in (
            (examples.broken, "have too few columns; is it tab-separated?"),
            (examples.empty, "have an empty text; is it the right column?"),
        ):
            if count > _MOST_BAD * len(examples.labels):
                raise GradvarError(f"{examples.source}: {count:,} of its rows {what}")
        if len(set(examples.labels)) < 2:
            raise GradvarError(
                f"{examples.source}: all labels are alike, so there is nothing to learn or to judge; give another file"
            )
    digest = hashlib.sha256()
    for examples in (train, *dev):
        for texts, label in zip(examples.texts, examples.labels, strict=True):
            digest.update(repr((texts, label)).encode())
    return TaskData(task, train, parts, digest.hexdigest())


def _folder(task: Task, data: str) -> list[Examples]:
    return [_read_file(task, _find(task, Path(data), part)) for part in ("train", *task.dev)]


def _find(task: Task, folder: Path, part: str) -> Path:
    """Find the file of a part."""
    stems = (f"{task.files}.{part}.tsv", f"{task.files}/{part}.tsv", f"{part}.tsv")
    for stem in stems:
        for ending in DECOMPRESS:
            if (folder / f"{stem}{ending}").is_file():
                return folder / f"{stem}{ending}"
    raise GradvarError(
        f"--data {folder} has no {part} part of {task.name}: no {' or '.join(stems)}, plain or as .xz or .gz"
    )


def _read_file(task: Task, path: Path) -> Examples:
    ending = path.suffix if path.suffix in DECOMPRESS else ""
    try:
        text = DECOMPRESS[ending](path.read_bytes()).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise GradvarError(f"{path} is not UTF-8 (byte {error.start}); convert it, e.g. with iconv -t utf-8") from error
    except BROKEN as error:
        raise GradvarError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    lines = [
        (i, line.rstrip("\n").split("\t")) for i, line in enumerate(io.StringIO(text, newline=None), 1) if line.strip()
    ]
    if not lines:
        raise GradvarError(f"{path} is empty")
    header, rows = lines[0][1], lines[1:]
    wanted = (*task.texts, task.label)
    if missing := [name for name in wanted if name not in header]:
        if len(header) != len(task.headless):
            raise GradvarError(f"{path}, line 1: there is no column '{missing[0]}'; there are {', '.join(header)}")
        header, rows = list(task.headless), lines
    columns = [header.index(name) for name in wanted]
    kept = [(f"{path}, line {i}", [row[c] for c in columns]) for i, row in rows if len(row) > max(columns)]
    return _examples(task, str(path), kept, len(rows) - len(kept))


def _hub(task: Task, data: str) -> list[Examples]:
    if data.startswith((".", "~", "/")) or not data.strip() or os.path.exists(data):
        what = "is a file" if os.path.exists(data) else "is no folder"
        raise GradvarError(f"--data {data} {what}; give the folder of the task files, or a hub data set")
    import datasets

    from gradvar.huggingface.checkpoint import quiet

    found, texts, label = [], task.hub_texts or task.texts, "label"
    for part in ("train", *task.hub_dev):
        try:
            with quiet():
                rows: Any = datasets.load_dataset(data, task.name, split=part)
        except Exception as error:  # the library raises dozens of types here, all meaning "not to be had"
            said = (str(error).splitlines() or [type(error).__name__])[0]
            raise GradvarError(f"--data {data} is no folder, and the hub does not give it ({said})") from error
        if missing := [name for name in (*texts, label) if name not in rows.column_names]:
            raise GradvarError(
                f"{data}, {task.name}, {part}: there is no column '{missing[0]}'; there are "
                f"{', '.join(rows.column_names)}"
            )
        source = f"{data}, {task.name}, {part}"
        columns = zip(*(rows[name] for name in (*texts, label)), strict=True)
        found.append(_examples(task, source, [(f"{source}, row {i}", list(row)) for i, row in enumerate(columns)], 0))
    return found


def _examples(task: Task, source: str, rows: list[tuple[str, list[Any]]], broken: int) -> Examples:
    for place, row in rows:
        if not all(isinstance(text, str) for text in row[:-1]):
            raise GradvarError(f"{place}: a text is missing")
    texts = tuple(tuple(row[:-1]) for _, row in rows)
    return Examples(source, texts, tuple(_label(task, row[-1], place) for place, row in rows), broken)


def _label(task: Task, given: Any, place: str) -> float:
    """Read a label: its name, or from a hub its number, or a score."""
    if task.labels is None:
        try:
            score = float(given)
        except (TypeError, ValueError):
            score = float("nan")
        if not SCORE_RANGE[0] <= score <= SCORE_RANGE[1]:
            raise GradvarError(
                f"{place}: the label '{given}' is no score of {task.name} ({SCORE_RANGE[0]:g} to {SCORE_RANGE[1]:g})"
            )
        return score
    number = given if isinstance(given, int) else task.labels.index(given) if given in task.labels else -1
    if not 0 <= number < len(task.labels):
        raise GradvarError(
            f"{place}: the label '{given}' is none of {task.name}'s, which are {', '.join(task.labels)}; "
            "is it the file of another task, or of a test set?"
        )
    return float(number)
