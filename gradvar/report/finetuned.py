"""What fine-tuning a checkpoint gave: scores by task and seed, as text, table and JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import Field, FiniteFloat, NonNegativeFloat, NonNegativeInt, TypeAdapter, ValidationError
from rich.console import Group, RenderableType
from rich.text import Text

from gradvar.decomposition.median import Median, median_of
from gradvar.report.text import plain_table, plain_text

if TYPE_CHECKING:
    from pandas import DataFrame

FINETUNED_SCHEMA = "gradvar/finetuned/v1"
_Percent = Annotated[float, Field(ge=-100.01, le=100.01)]  # rounding takes a correlation of 1 above it
_DATA = ("train", "dev", "cut", "broken", "empty", "sha256")
_PARTS = "accuracy m/mm"  # of the two parts of MNLI
_LABELS = {"f1": "F1", "matthews": "Matthews", "pearson": "Pearson", "spearman": "Spearman"}


@dataclass(frozen=True)
class SeedResult:
    """What one seed gave.

    Attributes:
        seed: The seed.
        metrics: The official metrics after the last step, in percent; those of MNLI by part.
        sampling_error: Standard error of their mean over the choice of held-out examples, in percent points.
        training_loss: Mean over the steps.
        steps: Steps of the optimizer.
        seconds: Of training and evaluation.
    """

    seed: NonNegativeInt
    metrics: dict[str, _Percent]
    sampling_error: FiniteFloat
    training_loss: FiniteFloat
    steps: int
    seconds: Annotated[NonNegativeFloat, Field(allow_inf_nan=False)]

    @property
    def score(self) -> float:
        """Mean of the metrics, in percent."""
        return float(np.mean(list(self.metrics.values())))


@dataclass(frozen=True)
class TaskResult:
    """What a task gave.

    Attributes:
        task: Its name.
        train: How many training examples.
        dev: How many held-out examples.
        cut: Share of the training examples that were cut at the length limit.
        broken: Rows of its files that were left out, as they have too few columns.
        sha256: Of its examples.
        seeds: By seed.
        empty: Its examples with an empty text.
    """

    task: str
    train: int
    dev: int
    cut: FiniteFloat
    broken: int
    sha256: str
    seeds: tuple[SeedResult, ...] = ()
    empty: int = 0

    @cached_property
    def median(self) -> Median:
        """The median score over seeds, in percent."""
        return median_of(np.array([seed.score for seed in self.seeds]))

    @property
    def sampling_error(self) -> float:
        """Standard error of a score over the choice of held-out examples: the median over seeds, in percent points."""
        return float(np.median([seed.sampling_error for seed in self.seeds]))

    def metric(self, name: str) -> float:
        """Median of one metric over seeds, in percent."""
        return float(np.median([seed.metrics[name] for seed in self.seeds]))

    def having(self, found: SeedResult) -> TaskResult:
        """Return it with one more seed."""
        return replace(self, seeds=tuple(sorted((*self.seeds, found), key=lambda seed: seed.seed)))


@dataclass(frozen=True, repr=False)
class Finetuned:
    """What fine-tuning a checkpoint gave.

    Attributes:
        tasks: Of those that have a seed.
        settings: How was fine-tuned, and what: everything that must be the same to go on.
        provenance: What ran.
        asked: How many seeds of each task were asked for last, 0 to that less one.
    """

    tasks: tuple[TaskResult, ...]
    settings: dict[str, Any]
    provenance: dict[str, Any] = field(compare=False)
    asked: dict[str, NonNegativeInt] = field(default_factory=dict)

    def todo(self, task: str) -> list[int]:
        """Seeds of a task that were asked for and are not there."""
        done = {seed.seed for found in self.tasks if found.task == task for seed in found.seeds}
        return [seed for seed in range(self.asked.get(task, 0)) if seed not in done]

    @property
    def missing(self) -> int:
        """Seeds that were asked for and are not there, over all tasks."""
        return sum(len(self.todo(task)) for task in self.asked)

    @property
    def average(self) -> float:
        """Mean over the tasks of their median scores, in percent."""
        return float(np.mean([task.median.estimate for task in self.tasks]))

    def to_json(self) -> dict[str, Any]:
        """Return everything, in the schema ``gradvar/finetuned/v1``; scores in percent."""
        tasks = {
            task.task: {
                "median": asdict(task.median),
                "sampling_error": task.sampling_error,
                "metrics": {name: task.metric(name) for name in task.seeds[0].metrics},
            }
            | {name: getattr(task, name) for name in _DATA}
            | {"seeds": [asdict(seed) for seed in task.seeds]}
            for task in self.tasks
        }
        return {
            "schema": FINETUNED_SCHEMA,
            "average": self.average if self.tasks else None,
            "missing_seeds": self.missing,
            "asked_seeds": self.asked,
            "tasks": tasks,
            "settings": self.settings,
            "provenance": self.provenance,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Finetuned:
        """Read what :meth:`to_json` returned.

        Args:
            values: It.

        Returns:
            The result.

        Raises:
            ValueError: If it is something else.
        """
        try:
            if values["schema"] != FINETUNED_SCHEMA:
                raise ValueError(f"its schema is not {FINETUNED_SCHEMA}")
            tasks = [task | {"task": name} for name, task in values["tasks"].items()]
            given = {"asked": values["asked_seeds"], "tasks": tasks}
            result = TypeAdapter(cls).validate_python(dict(values) | given)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
        except (LookupError, TypeError, AttributeError) as error:
            raise ValueError("it lacks what a result has") from error
        for task in result.tasks:
            if len({frozenset(seed.metrics) for seed in task.seeds}) != 1:
                raise ValueError(f"the seeds of {task.task} are not of the same metrics")
            if len({seed.seed for seed in task.seeds}) < len(task.seeds):
                raise ValueError(f"a seed of {task.task} is there twice")
        return result

    def to_frame(self) -> DataFrame:
        """Return a pandas table with a row for each task and seed."""
        import pandas

        rows = [
            {"task": task.task, "seed": seed.seed, "score": seed.score}
            | seed.metrics
            | {
                "sampling_error": seed.sampling_error,
                "training_loss": seed.training_loss,
                "steps": seed.steps,
                "seconds": seed.seconds,
            }
            for task in self.tasks
            for seed in task.seeds
        ]
        return pandas.DataFrame(rows)

    def __repr__(self) -> str:
        """Render the summary as plain text."""
        return plain_text(render_finetuned(self))


def render_finetuned(result: Finetuned) -> RenderableType:
    """Build what a terminal shows."""
    table = plain_table("task", "median of seeds", "confidence", "dev", "seeds", "each")
    for column in table.columns[3:]:
        column.justify = "right"
    for task in result.tasks:
        table.add_row(*_row(task))
    parts: list[RenderableType] = [
        Text("Scores on the held-out examples after fine-tuning, in percent", style="bold"),
        Text(str(result.settings["checkpoint"]), style="dim"),
        Text(""),
        table,
    ]
    if len(result.tasks) > 1:
        parts += [Text(""), Text(f"Mean over these {len(result.tasks)} tasks: {result.average:.1f}")]
    parts += [Text("")]
    parts += [Text(line, style="yellow") for line in notes_of(result)]
    return Group(*parts)


def _row(task: TaskResult) -> tuple[str, ...]:
    median = task.median
    names = list(task.seeds[0].metrics)
    ends = "" if median.low is None else f" [{median.low:.1f}, {median.high:.1f}]"
    sure = "" if median.confidence is None else f"{median.confidence:.0%}"
    seconds = float(np.median([seed.seconds for seed in task.seeds]))
    what = _PARTS if len(names) > 1 and names[0].endswith("matched") else "/".join(_LABELS.get(n, n) for n in names)
    each = f"{seconds:,.0f} s"
    return (
        f"{task.task} ({what})",
        f"{median.estimate:.1f}{ends}",
        sure,
        f"± {task.sampling_error:.1f}",
        str(median.values),
        each,
    )


def notes_of(result: Finetuned) -> list[str]:
    """Say what a reader should know."""
    notes = [
        "Intervals are over seeds (head, order, dropout); dev ± is one standard error over the choice of held-out "
        "examples, which another seed does not remove."
    ]
    counts = {task.median.values for task in result.tasks}
    if 1 in counts:
        notes.append("One seed has no interval; take more --seeds.")
    if any(1 < count < 6 for count in counts):
        notes.append(
            "Below 6 seeds an interval is from the lowest to the highest seed, and holds the median of all seeds with "
            "the confidence shown, not with 95 %."
        )
    cut = [task for task in result.tasks if task.cut]
    notes += [
        f"{task.task}: {100 * task.cut:.3g} % of the training examples were cut, see --max-length" for task in cut
    ]
    notes += [
        f"{task.task}: {task.broken:,} rows with too few columns were left out" for task in result.tasks if task.broken
    ]
    notes += [
        f"{task.task}: {task.empty:,} examples have an empty text, and were taken as they are"
        for task in result.tasks
        if task.empty
    ]
    notes += [
        f"{task}: {len(missing)} of {asked} seeds are missing; --task {task} --seeds {asked} goes on with them"
        for task, asked in result.asked.items()
        if (missing := result.todo(task))
    ]
    return notes
