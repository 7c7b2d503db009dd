"""The result of comparing runs: frozen dataclasses that know how to be a table, figures, text and JSON."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import sqrt
from typing import TYPE_CHECKING, Any

from gradvar.errors import GradvarError
from gradvar.racing.paired import Ratio
from gradvar.racing.times import Time

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

RUNS_SCHEMA = "gradvar/runs/v1"
UNITS = ("steps", "tokens", "seconds")


@dataclass(frozen=True)
class Evaluation:
    """One look at the held-out loss.

    Attributes:
        steps: Steps done.
        tokens: Tokens shown to the model.
        seconds: Of training: evaluation, checkpoints and looks at the variance apart.
        loss: Nats a target.
        error: Its standard error over sentences, where there is one.
    """

    steps: int
    tokens: float
    seconds: float
    loss: float
    error: float | None


@dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
        folder: As it was given.
        seed: None where a script made the run.
        finished: Whether its budget is used; None where that is not known.
        budget: The budget in words.
        evaluations: The held-out loss, by step; one at least.
        looks: What `watch.every` logged: a line a look, as it is.
        used: ``(step, exponent, epsilon)`` by which a MAPNet drew, at the lines of the training loss.
        times: When it reached each target, by target and unit.
        made: Command and versions that made it, as its recipe says.
    """

    folder: str
    seed: int | None
    finished: bool | None
    budget: str
    evaluations: tuple[Evaluation, ...]
    looks: tuple[dict[str, Any], ...] = field(repr=False)
    used: tuple[tuple[int, float, float], ...] = field(repr=False)
    times: dict[float, dict[str, Time]]
    made: tuple[str, ...] = field(default=(), compare=False, repr=False)

    @property
    def last(self) -> Evaluation:
        """The last evaluation."""
        return self.evaluations[-1]

    def to_json(self) -> dict[str, Any]:
        """Return the fields for JSON."""
        return {
            "folder": self.folder,
            "seed": self.seed,
            "finished": self.finished,
            "budget": self.budget,
            "made_by": list(self.made),
            "evaluations": [vars(each) for each in self.evaluations],
            "times_to_loss": [
                {"target": target, **{unit: time.to_json() for unit, time in units.items()}}
                for target, units in self.times.items()
            ],
            "looks": list(self.looks),
            "mapnet_in_use": [{"step": s, "exponent": x, "epsilon": e} for s, x, e in self.used],
        }


@dataclass(frozen=True)
class Arm:
    """Runs that differ in their seed alone.

    Attributes:
        name: What sets it apart from the other arms.
        settings: Values of all keys in which the arms' recipes differ; empty where a script made the run.
        runs: A run a seed.
        incomparable: Why its losses cannot be compared with the baseline's; None where they can.
    """

    name: str
    settings: dict[str, Any]
    runs: tuple[Run, ...]
    incomparable: str | None

    @property
    def ended(self) -> tuple[Run, ...]:
        """The runs whose last evaluation stands for the arm's end: those that are finished, or all, if none is."""
        return tuple(run for run in self.runs if run.finished is not False) or self.runs

    @property
    def final_loss(self) -> tuple[float, float | None]:
        """Mean of the last losses, with its standard error: over seeds, or over sentences where there is one run."""
        losses = [run.last.loss for run in self.ended]
        mean = sum(losses) / len(losses)
        if len(losses) == 1:
            return mean, self.ended[0].last.error
        return mean, sqrt(sum((x - mean) ** 2 for x in losses) / (len(losses) - 1) / len(losses))

    def to_json(self) -> dict[str, Any]:
        """Return the fields for JSON."""
        loss, error = self.final_loss
        over = "seeds" if len(self.ended) > 1 else "sentences"
        return {
            "name": self.name,
            "settings": self.settings,
            "incomparable": self.incomparable,
            "final_loss": {"mean": loss, "standard_error": error, "standard_error_over": over, "runs": len(self.ended)},
            "runs": [run.to_json() for run in self.runs],
        }


@dataclass(frozen=True)
class ArmRatio:
    """How much longer an arm takes to a loss than the baseline, over paired seeds.

    Attributes:
        arm: Its name.
        target: The loss.
        seeds: Of the pairs; None for a pair of runs whose seeds are not known.
        ratios: By unit, without steps where a step of the two arms is not the same; None where there is no pair.
        reason: Why there is none.
    """

    arm: str
    target: float
    seeds: tuple[int | None, ...]
    ratios: dict[str, Ratio] | None
    reason: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the fields for JSON."""
        found: dict[str, Any] = {"arm": self.arm, "target": self.target, "seeds": list(self.seeds)}
        if self.ratios is None:
            return found | {"ratios": None, "reason": self.reason}
        return found | {"ratios": {unit: ratio.to_json() for unit, ratio in self.ratios.items()}}


@dataclass(frozen=True, repr=False)
class RunComparison:
    """Runs side by side.

    Attributes:
        arms: The baseline first, the others in the order given.
        targets: Losses, in nats a target.
        ratios: Time to each target over the baseline's, by target, an entry an arm.
        differences: Keys in which the arms' recipes differ.
        study: What was asked for.
        provenance: What ran.
        notices: What a reader should know, one line each.
    """

    arms: tuple[Arm, ...]
    targets: tuple[float, ...]
    ratios: tuple[ArmRatio, ...]
    differences: tuple[str, ...]
    study: dict[str, Any]
    provenance: dict[str, Any] = field(compare=False)
    notices: tuple[str, ...]

    @property
    def effort(self) -> str:
        """The unit beside seconds: steps, or tokens, where steps are not the same in all arms."""
        return "steps" if all("steps" in each.ratios for each in self.ratios if each.ratios) else "tokens"

    @property
    def baseline(self) -> Arm:
        """The arm that the others are compared with."""
        return self.arms[0]

    def __getitem__(self, name: str) -> Arm:
        """Return an arm by its name."""
        for arm in self.arms:
            if arm.name == name:
                return arm
        raise KeyError(name)

    def ratio(self, arm: str, target: float | None = None) -> ArmRatio:
        """Return the ratios of an arm, to the first target unless another is given."""
        wanted = self.targets[0] if target is None else target
        for ratio in self.ratios:
            if (ratio.arm, ratio.target) == (arm, wanted):
                return ratio
        raise KeyError((arm, wanted))

    def to_frame(self) -> DataFrame:
        """Return a pandas table: a row a run; times to each target in columns ``steps_to_4.5`` and ``*_is``."""
        import pandas

        table = pandas.DataFrame([_row(arm, run) for arm in self.arms for run in arm.runs])
        return table.astype({"seed": "Int64"})

    def figures(self) -> tuple[str, ...]:
        """List the figures that there is something for: ``loss``; of runs that were watched more."""
        from gradvar.report.runs_figures import RUNS_FIGURES, shows

        return tuple(name for name in RUNS_FIGURES if shows(self, name))

    def plot(self, kind: str = "loss") -> Figure:
        """Draw a matplotlib figure.

        Args:
            kind: One of :meth:`figures`: ``loss`` (held-out loss against steps, tokens and seconds), ``variance`` (of
                the gradient, through training) or ``mapnet`` (what the MAPNets are worth, through training).

        Returns:
            The figure, not attached to any window.

        Raises:
            GradvarError: If there is no such figure, or nothing for it.
        """
        from gradvar.report.runs_figures import RUNS_FIGURES

        if kind not in self.figures():
            raise GradvarError(f"there is no figure '{kind}' of these runs; there are {', '.join(self.figures())}")
        return RUNS_FIGURES[kind](self)

    def to_json(self) -> dict[str, Any]:
        """Return everything, in the schema ``gradvar/runs/v1``."""
        return {
            "schema": RUNS_SCHEMA,
            "baseline": self.baseline.name,
            "targets": list(self.targets),
            "differences": list(self.differences),
            "arms": [arm.to_json() for arm in self.arms],
            "ratios": [ratio.to_json() for ratio in self.ratios],
            "study": self.study,
            "provenance": self.provenance,
            "notices": list(self.notices),
        }

    def __repr__(self) -> str:
        """Render the summary as plain text."""
        from gradvar.report.runs_text import runs_summary

        return runs_summary(self)


def _row(arm: Arm, run: Run) -> dict[str, Any]:
    last = run.last
    row: dict[str, Any] = {
        "arm": arm.name,
        "folder": run.folder,
        "seed": run.seed,
        "finished": run.finished,
        **{unit: getattr(last, unit) for unit in UNITS},
        "loss": last.loss,
        "loss_se": last.error,
    }
    for target, units in run.times.items():
        for unit, time in units.items():
            row[f"{unit}_to_{target:g}"] = time.low if time.censored else time.high
            row[f"{unit}_to_{target:g}_is"] = "at least" if time.censored else "exact" if time.observed else "at most"
    return row
