"""Compares runs: their arms, the baseline, the targets, and the ratios of the times to them over paired seeds."""

from __future__ import annotations

import os
from collections.abc import Sequence
from math import ceil, isfinite
from pathlib import Path
from typing import Any

from gradvar.errors import GradvarError
from gradvar.provenance import command, versions
from gradvar.racing.paired import paired_ratio
from gradvar.racing.times import Time, time_to
from gradvar.report.runs import UNITS, Arm, ArmRatio, Run, RunComparison
from gradvar.runs.arms import DATA, MORE, Group, group, measured_on
from gradvar.runs.reading import Found, read_folders

_UNIFORM = "uniform/simple"
_SCHEDULE = ("steps", "tokens", "seconds", "schedule", "warmup")
_STEP = 1.05  # ratio of the tokens of their steps from which on two arms' steps are not the same
_DIGITS = 1000  # parts of a nat to which the default target is rounded up


def compare_runs(
    folders: Sequence[str | Path], *, baseline: str | Path | None = None, target_losses: Sequence[float] = ()
) -> RunComparison:
    """Compare runs by their held-out loss: how long each arm takes to a target, beside the baseline.

    An arm is a set of runs that differ in their seed alone. Of each run the first time is taken at which its held-out
    loss is at the target, in steps, tokens and seconds of training; a run that never gets there counts with the bound
    that it gives. Ratios are geometric means over the seeds that both arms have; there is none of steps where a step
    of one arm shows more tokens than one of the other.

    Args:
        folders: Of runs, as `gradvar train --out` named them, or the `output_dir` of a script's.
        baseline: Name of an arm, its proposal, or the folder of one of its runs; by default the arm with
            ``uniform/simple``, or else that of the first run.
        target_losses: In nats a target; by default the lowest loss that all finished runs of the baseline reached, to
            the next thousandth, so that no time of the baseline's is missing.

    Returns:
        The arms, their final losses, and the ratios with intervals.

    Raises:
        GradvarError: If a folder is no run, no run has an evaluation, there is no such baseline, or no run crosses a
            target.
    """
    found = read_folders(folders)
    notices = [line for run in found for line in run.notices]
    with_loss = [run for run in found if run.evaluations]
    without = [run for run in found if not run.evaluations]
    if not with_loss:
        said = f"no evaluation in {', '.join(run.folder for run in without)} yet; wait for one, or set evaluation.every"
        raise GradvarError("; ".join([said, *notices]))
    if without:
        notices.append(f"without an evaluation, left out: {', '.join(run.folder for run in without)}")
    groups, differing, left_out = group(with_loss)
    first = _baseline(groups, baseline)
    groups = [first, *(each for each in groups if each is not first)]
    reasons = {each.name: _incomparable(first, each) for each in groups}
    targets = _targets(groups, reasons, target_losses)
    arms = tuple(_arm(each, reasons[each.name], targets) for each in groups)
    notices += [*left_out, *_notes(groups, reasons), *_steps(arms)]
    return RunComparison(
        arms=arms,
        targets=targets,
        ratios=tuple(_ratio(target, groups[0], arms[0], other, arm) for target in targets
                     for other, arm in zip(groups[1:], arms[1:], strict=True)),
        differences=tuple(differing),
        study={
            "runs": sum(len(arm.runs) for arm in arms),
            "baseline": first.name,
            "target_losses": list(targets),
            "target": "asked for" if target_losses else "lowest loss that all finished runs of the baseline reached",
        },
        provenance={"command": command(), "folders": [run.folder for run in found], "versions": versions()},
        notices=tuple(notices),
    )  # fmt: skip


def _baseline(groups: Sequence[Group], wanted: str | Path | None) -> Group:
    """Find the arm that is meant."""
    if wanted is None:
        uniform = [each for each in groups if _proposal(each) == _UNIFORM]
        return (uniform or groups)[0]
    text = os.fspath(wanted)
    for each in groups:
        if text in (each.name, each.name.removesuffix(MORE)) or any(
            run.path == Path(text).resolve() for run in each.runs.values()
        ):
            return each
    proposed = [each for each in groups if _proposal(each) == text.removeprefix("masking.proposal=")]
    if len(proposed) == 1:
        return proposed[0]
    there = "; ".join(each.name for each in proposed or groups)
    if proposed:
        raise GradvarError(f"--baseline '{text}' is the proposal of several arms; give the name of one: {there}")
    raise GradvarError(f"--baseline '{text}' is no arm, proposal or run of these; there are {there}")


def _proposal(each: Group) -> str | None:
    return None if each.recipe is None else each.recipe.masking.proposal


def _targets(groups: Sequence[Group], reasons: dict[str, str | None], wanted: Sequence[float]) -> tuple[float, ...]:
    """Check the targets, or choose one."""
    if not wanted:
        runs = list(groups[0].runs.values())
        ended = [run for run in runs if run.finished is not False] or runs
        worst = max(min(each.loss for each in run.evaluations) for run in ended)
        return (ceil(worst * _DIGITS) / _DIGITS,)
    runs = [run for each in groups if reasons[each.name] is None for run in each.runs.values()]
    highest = max(run.evaluations[0].loss for run in runs)
    lowest = min(each.loss for run in runs for each in run.evaluations)
    for target in wanted:
        if not isfinite(target):
            raise GradvarError(f"--target-loss {target} is no number of nats")
        if target < lowest:
            raise GradvarError(f"--target-loss {target:g}: no run gets there; the lowest loss is {lowest:.4g}")
        if target >= highest:
            raise GradvarError(
                f"--target-loss {target:g}: all runs were there at their first evaluation; give less than {highest:.4g}"
            )
    return tuple(dict.fromkeys(float(target) for target in wanted))


def _arm(each: Group, reason: str | None, targets: Sequence[float]) -> Arm:
    runs = tuple(_run(run, seed, () if reason else targets) for seed, run in each.runs.items())
    return Arm(each.name, each.settings, runs, reason)


def _run(run: Found, seed: int | None, targets: Sequence[float]) -> Run:
    losses = [each.loss for each in run.evaluations]
    times = {
        target: {unit: time_to(target, [getattr(each, unit) for each in run.evaluations], losses) for unit in UNITS}
        for target in targets
    }
    return Run(
        folder=run.folder,
        seed=seed,
        finished=run.finished,
        budget=run.budget,
        evaluations=run.evaluations,
        looks=run.looks,
        used=run.used,
        times=times,
        made=run.made,
    )


def _ratio(target: float, baseline: Group, base: Arm, other: Group, arm: Arm) -> ArmRatio:
    """Pair the runs of two arms by their seeds; single runs whose seeds are not known make a pair, too."""
    if arm.incomparable:
        return ArmRatio(arm.name, target, (), None, arm.incomparable)
    own, theirs = ({run.seed: run for run in each.runs} for each in (arm, base))
    pairs = [(seed, own[seed], theirs[seed]) for seed in own if seed in theirs]
    if not pairs and len(own) == len(theirs) == 1 and None in {*own, *theirs}:
        pairs = [(None, arm.runs[0], base.runs[0])]
    if not pairs:
        said = " and ".join(", ".join(map(str, seeds)) or "none" for seeds in (own, theirs))
        return ArmRatio(arm.name, target, (), None, f"no seed in common ({said})")
    times: dict[str, list[tuple[Time, Time]]] = {
        unit: [(one.times[target][unit], two.times[target][unit]) for _, one, two in pairs]
        for unit in UNITS
        if unit != "steps" or _longer(base, arm) is None
    }
    ratios = {unit: paired_ratio(each) for unit, each in times.items()}
    return ArmRatio(arm.name, target, tuple(seed for seed, _, _ in pairs), ratios)


def _incomparable(baseline: Group, other: Group) -> str | None:
    """Say why two arms' losses are of different things; what a script measured is not known."""
    if baseline.recipe is None or other.recipe is None:
        return None
    ours, theirs = measured_on(baseline.recipe), measured_on(other.recipe)
    same: set[str] = set()
    if _text(other) is not None and _text(other) == _text(baseline):  # whatever the files are called
        same = {name for name in ours if not name.startswith("evaluation.")}
    apart = [name for name in ours if name not in same and ours[name] != theirs[name]]
    differing = baseline.differs(other)
    if DATA in differing and not any(key.startswith("data.") for key in differing):
        return "its text is another one, though it has the same name: a file changed in between"
    said = [f"{name} {theirs[name]}, not {ours[name]}" if "." in name else f"{name} is another one" for name in apart]
    return "; ".join(said) or None


def _text(each: Group) -> str | None:
    return next((run.text for run in each.runs.values() if run.text is not None), None)


def _notes(groups: Sequence[Group], reasons: dict[str, str | None]) -> list[str]:
    """Say what a reader should know of the runs."""
    lines = [
        f"{run.folder} is not finished: it was last evaluated at {_at(run)}; of a target that it had not reached by "
        "then it only says that it takes longer"
        for each in groups
        for run in each.runs.values()
        if run.finished is False
    ]
    lines += [
        f"{each.name} is measured otherwise than {groups[0].name} ({reason}): its losses are not to be compared"
        for each in groups
        if (reason := reasons[each.name])
    ]
    scripts = [each.name for each in groups if each.recipe is None]
    if scripts and len(groups) > 1:
        lines.append(
            f"made by scripts, without a recipe: {', '.join(scripts)}; whether their held-out loss is that of the "
            "others, and what else differs, is not known"
        )
    compared = [each for each in groups if reasons[each.name] is None]
    for each in compared[1:]:
        if each.abridged and (keys := groups[0].differs(each)):
            lines.append(f"{each.name} differs from {groups[0].name} in {'all of ' * (len(keys) > 1)}{', '.join(keys)}")
    lines += _schedules(compared)
    made = {tuple(run.made[1:]) for each in compared for run in each.runs.values() if run.made[1:]}
    if len(made) > 1:
        lines.append("not all runs were made by the same versions of Python, torch and the rest: see runs.json")
    return lines


def _steps(arms: Sequence[Arm]) -> list[str]:
    """Tell of steps that are not the same."""
    return [
        f"a step of {arm.name} shows {factor:.3g} times the tokens of one of {arms[0].name}: steps are not compared, "
        "but tokens and seconds are"
        for arm in arms[1:]
        if arm.incomparable is None and (factor := _longer(arms[0], arm)) is not None
    ]


def _longer(baseline: Arm, arm: Arm) -> float | None:
    """Say how many times the tokens a step of an arm shows; None where they are as many, or nobody knows."""
    ours, theirs = ([run.last for run in each.runs if run.last.steps and run.last.tokens] for each in (baseline, arm))
    if not ours or not theirs:
        return None
    one, two = (sum(end.tokens for end in ends) / sum(end.steps for end in ends) for ends in (ours, theirs))
    return two / one if max(one, two) > _STEP * min(one, two) else None


def _at(run: Found) -> str:
    done = getattr(run.evaluations[-1], run.budget.split()[-1])
    return f"{done:,.0f} of {run.budget}"


def _schedules(groups: Sequence[Group]) -> list[str]:
    """Tell of learning rates that follow different budgets."""

    def schedule(each: Group) -> Any:
        training = each.recipe and each.recipe.training
        return training and tuple(getattr(training, name) for name in _SCHEDULE)

    ours = schedule(groups[0])
    others = [each.name for each in groups[1:] if ours and schedule(each) and schedule(each) != ours]
    if not others:
        return []
    return [
        f"{'; '.join(others)}: budget or schedule differ from those of {groups[0].name}, and with them the learning "
        "rate at a step: a run that ends sooner may reach a target sooner for that alone"
    ]
