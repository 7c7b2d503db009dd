"""The summary of runs for people: tables with units and intervals, then what they say."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.text import Text

from gradvar.racing.paired import FEWEST, Ratio
from gradvar.racing.times import geometric_mean, number
from gradvar.report.runs import UNITS
from gradvar.report.text import plain_table, plain_text

if TYPE_CHECKING:
    from rich.table import Table

    from gradvar.report.runs import Arm, ArmRatio, RunComparison

NOTHING = "–"


def runs_summary(result: RunComparison) -> str:
    """Render the result as plain text of at most 80 columns."""
    return plain_text(render_runs(result))


def render_runs(result: RunComparison) -> RenderableType:
    """Build what a terminal shows."""
    parts: list[RenderableType] = [Text(runs_headline(result), style="bold"), Text("")]
    table = _table("arm", "seeds", "steps", "tokens", "seconds", "held-out loss")
    for row in arm_rows(result):
        table.add_row(*row)
    parts += [table, Text(losses_caption(result), style="dim"), Text("")]
    for target in result.targets if len(result.arms) > 1 else ():
        parts += [Text(line) for line in ratios_caption(result, target)]
        columns = _table("arm", "pairs", "got there", result.effort, "seconds")
        for *first, steps, tokens, seconds in ratio_rows(result, target):
            columns.add_row(*first, steps if result.effort == "steps" else tokens, seconds)
        parts += [columns, Text("")]
    parts += [Text(line) for line in runs_verdicts(result)]
    parts += [Text(f"note: {line}", style="yellow") for line in runs_notes(result)]
    return Group(*parts)


def _table(*columns: str) -> Table:
    table = plain_table(*columns)
    table.columns[0].no_wrap, table.columns[0].overflow = False, "fold"
    return table


def runs_headline(result: RunComparison) -> str:
    """Say what is compared."""
    count, arms = sum(len(arm.runs) for arm in result.arms), len(result.arms)
    runs = f"{count} run{'s' * (count > 1)}"
    return f"{runs} in {arms} arm{'s' * (arms > 1)}: held-out loss under fixed masks"


def losses_caption(result: RunComparison) -> str:
    """Say what the numbers of the first table are."""
    counts = [len(arm.ended) for arm in result.arms]
    over = "sentences" if max(counts) == 1 else "seeds" if min(counts) > 1 else "seeds (of one, over sentences)"
    return f"loss in nats a target at the end, ± its standard error over {over}"


def arm_rows(result: RunComparison) -> list[tuple[str, ...]]:
    """List the arms: name, seeds, and steps, tokens, seconds and loss at the end, means over seeds."""
    rows: list[tuple[str, ...]] = []
    for arm in result.arms:
        ends = [run.last for run in arm.ended]
        steps, tokens, seconds = (sum(getattr(end, unit) for end in ends) / len(ends) for unit in UNITS)
        rows.append((arm.name, str(len(arm.runs)), number(steps), millions(tokens), number(seconds), loss(arm)))
    return rows


def loss(arm: Arm) -> str:
    """Write an arm's last loss with its standard error."""
    mean, error = arm.final_loss
    return f"{mean:.3f}" if error is None else f"{mean:.3f} ± {error:.3f}"


def millions(count: float) -> str:
    """Write a number of tokens."""
    return f"{count / 1e6:,.3g} M" if count >= 1e6 else f"{count:,.0f}"


def ratios_caption(result: RunComparison, target: float) -> list[str]:
    """Head the table of ratios."""
    lines = [f"To {nats(target)}, over {result.baseline.name} (below 1: sooner)"]
    few = sorted({len(ratio.seeds) for ratio in _resolved(result, target) if 1 < len(ratio.seeds) < FEWEST})
    enough = any(len(ratio.seeds) >= FEWEST for ratio in _resolved(result, target))
    confidence = ", ".join(f"{100 * (1 - 2.0 ** (1 - n)):.0f} % with {n} pairs" for n in few)
    said = ["95 % bootstrap intervals over paired seeds"] * enough
    said += [f"{'of few pairs' if enough else 'intervals:'} their range, whose confidence is {confidence}"] * bool(few)
    return [*lines, *(["; ".join(said)] if said else [])]


def nats(target: float) -> str:
    """Write a loss."""
    return f"{target:.4g} nats"


def _resolved(result: RunComparison, target: float) -> list[ArmRatio]:
    return [ratio for ratio in result.ratios if ratio.target == target and ratio.ratios]


def ratio_rows(result: RunComparison, target: float) -> list[tuple[str, ...]]:
    """List the arms: name, pairs, runs that got to the target, and the ratios of steps, tokens and seconds.

    The baseline's own row has its geometric mean times.
    """
    base = result.baseline
    times = [geometric_mean([run.times[target][unit] for run in base.runs]) for unit in UNITS]
    rows: list[tuple[str, ...]] = [
        (base.name, NOTHING, reached(base, target), *(f"1 = {time}" if time.observed else str(time) for time in times))
    ]
    for arm in result.arms[1:]:
        ratio = result.ratio(arm.name, target)
        if ratio.ratios is None:
            rows.append((arm.name, "0", reached(arm, target), *(NOTHING for _ in UNITS)))
        else:
            said = (str(ratio.ratios.get(unit, NOTHING)) for unit in UNITS)
            rows.append((arm.name, str(len(ratio.seeds)), reached(arm, target), *said))
    return rows


def time_rows(result: RunComparison, target: float) -> list[tuple[str, ...]]:
    """List the runs that can be compared: folder, seed, and when they got to a target."""
    return [
        (
            run.folder,
            arm.name,
            NOTHING if run.seed is None else str(run.seed),
            *(str(run.times[target][u]) for u in UNITS),
        )
        for arm in result.arms
        if arm.incomparable is None
        for run in arm.runs
    ]


def reached(arm: Arm, target: float) -> str:
    """Say how many runs of an arm got to a target."""
    if arm.incomparable is not None:
        return NOTHING
    return f"{sum(not run.times[target]['steps'].censored for run in arm.runs)} of {len(arm.runs)}"


def runs_verdicts(result: RunComparison) -> list[str]:
    """Say in words what the ratios mean, a line a ratio."""
    lines = []
    for target in result.targets:
        for ratio in _resolved(result, target):
            assert ratio.ratios is not None
            units = [unit for unit in (result.effort, "seconds") if ratio.ratios[unit].resolved]
            times = [f"{ratio.ratios[unit]} times the {unit} ({_verdict(ratio.ratios[unit])})" for unit in units]
            said = [f"{' and '.join(times) or 'not resolved beside the times'} of {result.baseline.name}"]
            said += [line for arm in (result[ratio.arm], result.baseline) for line in _bounded(arm, target)]
            lines.append(f"{ratio.arm} to {nats(target)}: {'; '.join(said)}.")
    return lines


def _bounded(arm: Arm, target: float) -> list[str]:
    """Say how many runs of an arm have no time of their own."""
    times, of = [run.times[target]["steps"] for run in arm.runs], f"in {{}} of {len(arm.runs)}"
    never, early = sum(time.censored for time in times), sum(time.early for time in times)
    said = [f"{arm.name} never got there {of.format(never)}"] if never else []
    return [*said, f"{arm.name} was there at its first evaluation {of.format(early)}"] if early else said


def _verdict(ratio: Ratio) -> str:
    if ratio.clear:
        return "clearly fewer" if ratio.clear < 0 else "clearly more"
    if ratio.pairs == 1:
        return "one pair, so no interval"
    for count, word in ((ratio.below, "fewer"), (ratio.above, "more")):
        if count == ratio.pairs:
            pairs = "both" if count == 2 else f"all {count}"
            return f"{word} in {pairs} pairs, which are too few or too far apart to be sure"
    return "no clear difference"


def runs_notes(result: RunComparison) -> list[str]:
    """List what a reader should know: the notices, and why ratios are missing."""
    named: dict[str, list[str]] = {}
    for ratio in result.ratios:
        arm = result[ratio.arm]
        if ratio.reason and arm.incomparable is None and ratio.arm not in named.get(ratio.reason, ()):
            named.setdefault(ratio.reason, []).append(ratio.arm)
    return [*result.notices, *(f"{'; '.join(arms)}: no ratio, {reason}" for reason, arms in named.items())]


def differences_rows(result: RunComparison) -> list[tuple[str, ...]]:
    """List the keys in which the arms differ, with the value of each arm."""
    return [(key, *(_setting(arm.settings, key) for arm in result.arms)) for key in result.differences]


def _setting(settings: dict[str, Any], key: str) -> str:
    value = settings.get(key)
    return NOTHING if value is None else value if isinstance(value, str) else str(value)
