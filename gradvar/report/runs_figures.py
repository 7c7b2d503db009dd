"""The figures of runs: what the title says must be what the picture shows."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from gradvar.report.figures import COLOURS, GREY
from gradvar.report.runs import UNITS
from gradvar.report.runs_text import loss, nats

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from gradvar.report.runs import Arm, Run, RunComparison

# Okabe and Ito's, but for yellow, which is hard to see on white.
ARM_COLOURS = (*COLOURS, "#56B4E9", "#E69F00", "#000000")
_REST = "#BBBBBB"
_AXES = {"steps": "optimizer steps", "tokens": "tokens shown, millions", "seconds": "seconds of training"}
_SCALES = {"steps": 1.0, "tokens": 1e6, "seconds": 1.0}
_LOOKS = {"variance": ("variance/mask", "variance/data"), "mapnet": ("mapnet/", "proposal/variance_ratio")}
_SPREAD = 30.0  # ratio of the longest and the shortest arm from which on an axis is logarithmic


def shows(result: RunComparison, kind: str) -> bool:
    """Whether a figure has anything to show."""
    if kind == "loss":
        return True
    runs = [run for arm in result.arms for run in arm.runs]
    if kind == "mapnet" and any(exponent > 0 for run in runs for _, exponent, _ in run.used):
        return True
    return any(name.startswith(_LOOKS[kind]) for run in runs for look in run.looks for name in look)


def loss_figure(result: RunComparison) -> Figure:
    """Held-out loss against steps, tokens and seconds: thin lines are runs, bold ones means over seeds."""
    figure = Figure(figsize=(12, 4.2), layout="constrained")
    panels = figure.subplots(1, len(UNITS), sharey=True)
    for axes, unit in zip(panels, UNITS, strict=True):
        for arm, colour in reversed(_coloured(result.arms)):
            style = "-" if arm.incomparable is None else "--"
            for run in arm.runs:
                x, y = _curve(run, unit)
                thin = {"linewidth": 0.8, "alpha": 0.5} if len(arm.runs) > 1 else {"linewidth": 1.8}
                axes.plot(x, y, style, color=colour, marker="." if len(x) < 2 else None, **thin)
            if len(arm.runs) > 1:
                axes.plot(*_mean_curve(arm, unit), style, color=colour, linewidth=2.2)
        for target in result.targets:
            axes.axhline(target, color=GREY, linestyle=":", linewidth=1)
        lengths = [getattr(run.last, unit) for arm in result.arms for run in arm.runs]
        if min(lengths) > 0 and max(lengths) > _SPREAD * min(lengths):
            axes.set_xscale("log")
        axes.set_xlabel(_AXES[unit])
        axes.grid(alpha=0.3)
    for target in result.targets:
        place = {"xycoords": panels[-1].get_yaxis_transform(), "va": "center"}
        panels[-1].annotate(nats(target), (1.01, target), **place, color=GREY, fontsize=8)
    panels[0].set_ylabel("held-out loss, nats a target")
    _legend(figure, _coloured(result.arms), 3, dashed=True)
    _title(figure, _loss_title(result))
    return figure


def variance_figure(result: RunComparison) -> Figure:
    """Mask and data variance of one cell's gradient through training, with intervals."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    names = {"variance/mask": "mask variance of one cell", "variance/data": "data variance of one cell"}
    for axes, (name, label) in zip(figure.subplots(1, 2), names.items(), strict=True):
        _looks(axes, result, name, floor=0.0)
        axes.set_yscale("log")
        axes.set_ylabel(f"{label}\n(squared gradient units), 95 %")
    _legend(figure, _with(result, *names), 2)
    _title(figure, _variance_title(result))
    return figure


def mapnet_figure(result: RunComparison) -> Figure:
    """What the MAPNets are worth through training, and how far their scores were trusted."""
    panels: dict[str, Callable[[Axes, RunComparison], None]] = {
        "mapnet/rank_correlation": _correlation_panel,
        "mapnet/ceiling_share": _share_panel,
        "exponent": _use_panel,
        "proposal/variance_ratio": _ratio_panel,
    }
    shown = [panel for name, panel in panels.items() if _has(result.arms, name)]
    rows = -(-len(shown) // 2)
    figure = Figure(figsize=(10, 0.5 + 3.2 * rows), layout="constrained")
    grid = figure.subplots(rows, min(2, len(shown)), squeeze=False).ravel()
    for axes, panel in zip(grid, shown, strict=False):
        panel(axes, result)
    for axes in grid[len(shown) :]:
        axes.remove()
    _legend(figure, _with(result, *panels), 2)
    _title(figure, _mapnet_title(result))
    return figure


RUNS_FIGURES: dict[str, Callable[[RunComparison], Figure]] = {
    "loss": loss_figure,
    "variance": variance_figure,
    "mapnet": mapnet_figure,
}


def _correlation_panel(axes: Axes, result: RunComparison) -> None:
    _looks(axes, result, "mapnet/rank_correlation")
    _looks(axes, result, "mapnet/placebo_rank_correlation", style=":", marker=None)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_ylabel("rank correlation with true norms,\n95 % (dotted: its placebo's)")


def _share_panel(axes: Axes, result: RunComparison) -> None:
    _looks(axes, result, "mapnet/ceiling_share")
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_ylabel("share of what position weights\ncan remove, 95 %")


def _use_panel(axes: Axes, result: RunComparison) -> None:
    for arm, colour in _coloured(result.arms):
        for run in arm.runs:
            if run.used:
                steps, exponents, epsilons = np.array(run.used).T
                axes.plot(steps, exponents, color=colour, linewidth=1, drawstyle="steps-post")
                axes.plot(steps, epsilons, ":", color=colour, linewidth=1, drawstyle="steps-post")
    axes.set_xlabel(_AXES["steps"])
    axes.set_ylabel("exponent of the scores in use\n(0: uniform masks; dotted: ε)")
    axes.grid(alpha=0.3)


def _ratio_panel(axes: Axes, result: RunComparison) -> None:
    _looks(axes, result, "proposal/variance_ratio")
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_ylabel("mask variance over that of\nuniform masks, 95 %")


def _has(arms: Sequence[Arm], name: str) -> bool:
    runs = [run for arm in arms for run in arm.runs]
    if name == "exponent":
        return any(run.used for run in runs)
    return any(name in look for run in runs for look in run.looks)


def _looks(
    axes: Axes, result: RunComparison, name: str, style: str = "-", marker: str | None = "o", floor: float | None = None
) -> None:
    """Draw a number of the looks with its intervals, a line a run; arms stand a little apart."""
    last = max((look["step"] for arm in result.arms for run in arm.runs for look in run.looks), default=1)
    runs = [(run, colour) for arm, colour in _coloured(result.arms) for run in arm.runs if _points(run, name, floor)]
    for number, (run, colour) in enumerate(runs):
        steps, values, low, high = np.array(_points(run, name, floor)).T
        steps = steps + 0.004 * last * (number - (len(runs) - 1) / 2)
        axes.plot(steps, values, style, color=colour, marker=marker, markersize=3, linewidth=1, alpha=0.9)
        if marker is not None:
            axes.vlines(steps, low, high, color=colour, linewidth=1, alpha=0.6)
    axes.set_xlabel(_AXES["steps"])
    axes.grid(alpha=0.3)


def _points(run: Run, name: str, floor: float | None) -> list[tuple[float, float, float, float]]:
    """Return ``(step, value, low, high)`` of every look that resolved a number, cut off at a floor."""
    found = []
    for look in run.looks:
        value = look.get(name)
        if value is None or (floor is not None and value <= floor):
            continue
        low, high = look.get(f"{name}_low", value), look.get(f"{name}_high", value)
        if floor is not None:
            low = max(low, value / 100)
        found.append((float(look["step"]), value, low, high))
    return found


def _coloured(arms: Sequence[Arm]) -> list[tuple[Arm, str]]:
    """Give each arm a colour; where there are more arms than colours, those that are left share a light grey."""
    return list(zip(arms, (*ARM_COLOURS, *(_REST,) * len(arms)), strict=False))


def _curve(run: Run, unit: str) -> tuple[list[float], list[float]]:
    return [getattr(each, unit) / _SCALES[unit] for each in run.evaluations], [each.loss for each in run.evaluations]


def _mean_curve(arm: Arm, unit: str) -> tuple[list[float], list[float]]:
    """Average time and loss over the runs of an arm, at the steps at which all were evaluated."""
    by_step = [{each.steps: each for each in run.evaluations} for run in arm.runs]
    steps = sorted(set.intersection(*(set(each) for each in by_step)))
    x = [sum(getattr(each[step], unit) for each in by_step) / len(by_step) / _SCALES[unit] for step in steps]
    return x, [sum(each[step].loss for each in by_step) / len(by_step) for step in steps]


def _legend(figure: Figure, arms: Sequence[tuple[Arm, str]], columns: int, dashed: bool = False) -> None:
    """Name the arms below the panels, in room of their own."""
    handles: list[Any] = []
    for arm, colour in arms:
        if colour == _REST:
            continue
        seeds = f" ({len(arm.runs)} seeds)" if len(arm.runs) > 1 else ""
        apart = ", measured otherwise" if dashed and arm.incomparable else ""
        style: Literal["-", "--"] = "--" if apart else "-"
        label = textwrap.fill(f"{arm.name}{seeds}{apart}", 120 // columns)
        handles.append(Line2D([], [], color=colour, linestyle=style, linewidth=2, label=label))
    if rest := sum(colour == _REST for _, colour in arms):
        handles.append(Line2D([], [], color=_REST, linewidth=2, label=f"{rest} more arms, see the tables"))
    deep = -(-len(handles) // columns)
    lines = [str(handle.get_label()).count("\n") + 1 for handle in handles]
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, height + 0.17 * max(sum(lines[k : k + deep]) for k in range(0, len(lines), deep)))
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False, fontsize=8)


def _with(result: RunComparison, *names: str) -> list[tuple[Arm, str]]:
    """List the arms that have something to show."""
    return [(arm, colour) for arm, colour in _coloured(result.arms) if any(_has([arm], name) for name in names)]


def _title(figure: Figure, text: str) -> None:
    wide = int(12 * figure.get_size_inches()[0])
    figure.suptitle(textwrap.fill(text, wide), x=0.01, ha="left", fontsize=10)


def _loss_title(result: RunComparison) -> str:
    unit = result.effort
    clear = [ratio for ratio in result.ratios if ratio.ratios and ratio.ratios[unit].clear]
    resolved = [ratio for ratio in result.ratios if ratio.ratios and ratio.ratios[unit].resolved]
    base = result.baseline.name
    if clear or len(resolved) == 1:
        ratio = min(clear or resolved, key=lambda each: each.ratios[unit].low if each.ratios else 1.0)
        assert ratio.ratios is not None
        steps, seconds = ratio.ratios[unit], ratio.ratios["seconds"]
        pairs = f"{steps.pairs} pair{'s' * (steps.pairs > 1)} of seeds"
        what = f"{ratio.arm} takes {steps} times the {unit} and {seconds} times the seconds of {base}"
        return f"{what} to {nats(ratio.target)} ({pairs})"
    comparable = [arm for arm in result.arms if arm.incomparable is None]
    best = min(comparable, key=lambda arm: arm.final_loss[0])
    if len(comparable) == 1:
        return f"The held-out loss of {best.name} ends at {loss(best)} nats"
    if resolved:
        return (
            f"No difference to {base} is sure at {nats(result.targets[0])}; {best.name} ends lowest: {loss(best)} nats"
        )
    return f"Of the arms that can be compared, {best.name} ends lowest: {loss(best)} nats"


def _variance_title(result: RunComparison) -> str:
    """Say how the mask variance of the first arm that was watched changed."""
    for arm in result.arms:
        for run in arm.runs:
            points = _points(run, "variance/mask", 0.0)
            if len(points) > 1:
                factor = points[-1][1] / points[0][1]
                until = f"from step {points[0][0]:,.0f} to {points[-1][0]:,.0f}"
                which = arm.name if len(arm.runs) == 1 else f"{arm.name} (seed {run.seed})"
                return f"The mask variance of {which} changes by a factor of {factor:.3g} {until}"
    return "Variance of one cell's gradient where the runs were watched"


def _mapnet_title(result: RunComparison) -> str:
    """Say what the MAPNets' ranks are worth at the end."""
    ends = [
        points[-1]
        for arm in result.arms
        for run in arm.runs
        if (points := _points(run, "mapnet/rank_correlation", None))
    ]
    if not ends:
        return "How far the scores of the MAPNets were trusted"
    above = sum(low > 0 for _, _, low, _ in ends)
    values = [value for _, value, _, _ in ends]
    spread = f"{min(values):.2g}" if len(values) == 1 else f"{min(values):.2g} to {max(values):.2g}"
    many = (
        f"{above} of {len(ends)} MAPNets rank"
        if len(ends) > 1
        else f"The MAPNet {'ranks' if above else 'does not rank'}"
    )
    return f"{many} positions better than chance at the end of their runs: rank correlation {spread}"
