"""The tasks of GLUE: where their columns are, what their labels mean, and by which metrics they are judged."""

from __future__ import annotations

from dataclasses import dataclass

from gradvar.errors import GradvarError
from gradvar.masking.proposal import nearest


@dataclass(frozen=True)
class Task:
    """One task.

    Attributes:
        name: As users and the hub write it.
        files: Name of its files, or of the folder that they are in.
        texts: Columns of the one or two texts.
        label: Column of the label.
        labels: What the label can be, by number; None for a score.
        metrics: Names of its official metrics, see :data:`~gradvar.finetuning.metrics.METRICS`.
        headless: All columns by position, where its files may come without a header.
        dev: Names of its held-out parts.
        hub_texts: Columns of the texts on the hub, where they are called otherwise.
        hub_dev: Names of the held-out parts on the hub.
    """

    name: str
    files: str
    texts: tuple[str, ...]
    label: str
    labels: tuple[str, ...] | None
    metrics: tuple[str, ...]
    headless: tuple[str, ...] = ()
    dev: tuple[str, ...] = ("dev",)
    hub_texts: tuple[str, ...] = ()
    hub_dev: tuple[str, ...] = ("validation",)

    def scores(self, part: str) -> tuple[str, ...]:
        """Names of the metrics of a held-out part, which tell the part where there are several."""
        suffix = "" if len(self.dev) == 1 else f"_{part.removeprefix('dev_')}"
        return tuple(f"{name}{suffix}" for name in self.metrics)

    @property
    def all_scores(self) -> set[str]:
        """Those of all its parts."""
        return {name for part in self.dev for name in self.scores(part)}


SCORE_RANGE = (0.0, 5.0)
"""Of the labels of a task without label names (STS-B)."""

_PAIR, _ENTAILED = ("sentence1", "sentence2"), ("entailment", "not_entailment")

TASKS = {
    task.name: task
    for task in (
        Task(
            "cola",
            "CoLA",
            ("sentence",),
            "label",
            ("0", "1"),
            ("matthews",),
            headless=("source", "label", "mark", "sentence"),
        ),
        Task("sst2", "SST-2", ("sentence",), "label", ("0", "1"), ("accuracy",)),
        Task(
            "mrpc",
            "MRPC",
            ("#1 String", "#2 String"),
            "Quality",
            ("0", "1"),
            ("f1", "accuracy"),
            hub_texts=_PAIR,
        ),
        Task("stsb", "STS-B", _PAIR, "score", None, ("pearson", "spearman")),
        Task("qqp", "QQP", ("question1", "question2"), "is_duplicate", ("0", "1"), ("f1", "accuracy")),
        Task(
            "mnli",
            "MNLI",
            _PAIR,
            "gold_label",
            ("entailment", "neutral", "contradiction"),
            ("accuracy",),
            dev=("dev_matched", "dev_mismatched"),
            hub_texts=("premise", "hypothesis"),
            hub_dev=("validation_matched", "validation_mismatched"),
        ),
        Task("qnli", "QNLI", ("question", "sentence"), "label", _ENTAILED, ("accuracy",)),
        Task("rte", "RTE", _PAIR, "label", _ENTAILED, ("accuracy",)),
        Task("wnli", "WNLI", _PAIR, "label", ("0", "1"), ("accuracy",)),
    )
}
"""By name; formats and metrics are those of https://gluebenchmark.com, numbers of labels those of ``nyu-mll/glue``."""


def parse_tasks(text: str) -> tuple[Task, ...]:
    """Read a list of tasks.

    Args:
        text: Names with commas between, in any case, such as ``sst2,CoLA``; ``all`` for all.

    Returns:
        The tasks, in that order.

    Raises:
        GradvarError: If a name is none, or comes twice.
    """
    if text.strip().lower() == "all":
        return tuple(TASKS.values())
    found: list[Task] = []
    for given in text.split(","):
        name = given.strip().lower().replace("-", "").replace("_", "")
        if name not in TASKS:
            hint = nearest(name, TASKS) if name else f"; there are {', '.join(TASKS)}, and all"
            raise GradvarError(f"--task: there is no task '{given.strip()}'{hint}")
        if TASKS[name] in found:
            raise GradvarError(f"--task names {name} twice; leave one out")
        found.append(TASKS[name])
    return tuple(found)
