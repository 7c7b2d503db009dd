"""The figures of a decomposition: what the title says must be what the picture shows."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from gradvar.decomposition.components import Components
from gradvar.decomposition.estimate import Estimate
from gradvar.decomposition.moments import total

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from gradvar.report.result import Decomposition

# Okabe and Ito's colours, which colour-blind readers can tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
GREY = "#555555"
_MOST_ROWS = 36


def layers_figure(result: Decomposition) -> Figure:
    """Components by layer, with intervals; by block and group where there are many layers."""
    rows = {layer.name: layer.statistics for layer in result.layers}
    if len(rows) > _MOST_ROWS:
        rows = _by_block(result)
    rows = {name: statistics for name, statistics in rows.items() if not statistics.vanishes}
    figure = Figure(figsize=(8, 1.9 + 0.24 * len(rows)), layout="constrained")
    axes = figure.subplots()
    largest = max((float(s.values.max()) for s in rows.values()), default=1.0)
    floor = largest * 1e-6
    for i, level in enumerate(result.levels):
        offset = 0.16 * (i - (len(result.levels) - 1) / 2)
        for y, statistics in enumerate(rows.values()):
            _interval(axes, statistics.component(i), y + offset, COLOURS[i], floor, level if y == 0 else None)
    axes.set_yticks(range(len(rows)), list(rows), fontsize=8)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xscale("log")
    axes.set_xlabel("variance of one cell's gradient (squared gradient units), 95 % interval; ◂ below the range")
    axes.grid(axis="x", alpha=0.3)
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    inner = result.levels[-1]
    axes.set_title(f"{_share_sentence(result)}{_where(result, inner)}", fontsize=10, loc="left", wrap=True)
    return figure


def batch_figure(result: Decomposition) -> Figure:
    """Variance of a batch gradient against the batch size, for several inner draws."""
    figure = Figure(figsize=(7, 4.6), layout="constrained")
    axes = figure.subplots()
    outer, inner = result.unit, result.levels[-1]
    batches = np.geomspace(1, 4096, 25)
    resting = (1,) * (len(result.levels) - 2)
    studied = result.statistics.counts[-1]
    several = sorted({1, 2, studied, 4 * studied})
    for shade, draws in zip(np.linspace(0.35, 1.0, len(several)), several, strict=True):
        curve = [result.variance(batch, *resting, draws) for batch in batches]
        if curve[0].estimate is None:
            text = textwrap.fill(f"not resolved: {curve[0].reason}", 60)
            axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", in_layout=False)
            break
        values = np.array([point.estimate for point in curve], dtype=float)
        axes.plot(
            batches, values, color=COLOURS[0], alpha=shade, label=f"{draws} {inner}{'s' if draws > 1 else ''} each"
        )
        if draws == 1 and curve[0].low is not None:
            low = np.array([max(point.low or 0.0, 1e-300) for point in curve])
            high = np.array([point.high for point in curve], dtype=float)
            axes.fill_between(batches, low, high, color=COLOURS[0], alpha=0.12, linewidth=0)
    counts = result.statistics.counts
    measured = result.statistics.linear(1 / np.cumprod((1, *counts[1:])))
    if measured.estimate is not None and measured.low is not None and measured.high is not None:
        error = [[measured.estimate - measured.low], [measured.high - measured.estimate]]
        label = f"measured: 1 {outer}, {' x '.join(map(str, counts[1:]))} {inner}s"
        axes.errorbar(
            [1], [measured.estimate], yerr=error, color=COLOURS[1], marker="o", capsize=3, label=label, zorder=3
        )
    signal = result.gradient_norm2
    if signal.estimate is not None and signal.estimate > 0:
        axes.axhline(signal.estimate, color=GREY, linestyle="--", linewidth=1)
        axes.text(batches[-1], signal.estimate * 1.08, "signal |μ|²", color=GREY, fontsize=8, ha="right")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlim(0.75 * batches[0], 1.5 * batches[-1])
    axes.xaxis.set_major_locator(LogLocator(base=2, numticks=14))
    axes.set_xlabel(f"batch size B ({outer}s)")
    axes.set_ylabel("variance of the batch gradient (squared gradient units)")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8)
    scale = result.noise_scale["total"]
    if scale.estimate is not None:
        title = (
            f"With one {inner} each, noise falls to the size of the signal at a batch of {scale.estimate:,.0f} {outer}s"
        )
    else:
        title = "Variance of a batch gradient; the signal is not resolved at this study size"
    axes.set_title(title, fontsize=10, loc="left", wrap=True)
    return figure


def cells_figure(result: Decomposition) -> Figure:
    """Distribution of the gradient norms of the cells."""
    norms = np.sqrt(result.statistics.moments.cell_norm2)
    figure = Figure(figsize=(7, 3.8), layout="constrained")
    axes = figure.subplots()
    wide = norms.min() > 0 and norms.max() > 5 * norms.min()
    edges = np.geomspace(norms.min(), norms.max(), 31) if wide else np.linspace(norms.min(), norms.max() or 1.0, 31)
    bins = edges.tolist()
    means = norms.mean(axis=1)
    axes.hist(
        norms.ravel(), bins, weights=np.full(norms.size, 100 / norms.size), color=COLOURS[0], alpha=0.5, label="cells"
    )
    weights = np.full(means.size, 100 / means.size)
    axes.hist(
        means, bins, weights=weights, color=COLOURS[1], histtype="step", linewidth=1.5, label=f"{result.unit} means"
    )
    axes.set_xscale("log" if wide else "linear")
    axes.legend(frameon=False, fontsize=8)
    axes.set_xlabel("norm of a cell's gradient |g| (gradient units)")
    axes.set_ylabel("share (%)")
    headroom, inner = result.headroom["importance"], result.levels[-1]
    title = "Gradient norms of the cells"
    if headroom.estimate is not None:
        within = np.sqrt(norms.var(axis=1, ddof=1).mean()) / norms.mean()
        title = (
            f"Within a {result.unit} the norms vary by {100 * within:.0f} %: importance sampling of {inner}s\n"
            f"can remove at most {100 * headroom.estimate:.2g} % of the {inner} variance"
        )
    axes.set_title(title, fontsize=10, loc="left", wrap=True)
    return figure


FIGURES: dict[str, Callable[[Decomposition], Figure]] = {
    "layers": layers_figure,
    "batch": batch_figure,
    "cells": cells_figure,
}


def _interval(axes: Axes, estimate: Estimate, y: float, colour: str, floor: float, label: str | None) -> None:
    """Draw a point with its interval on a logarithmic axis; what is below the floor is an arrow at it."""
    if estimate.estimate is None:
        return
    low = max(estimate.low if estimate.low is not None else estimate.estimate, floor)
    high = max(estimate.high if estimate.high is not None else estimate.estimate, floor)
    axes.plot([low, high], [y, y], color=colour, linewidth=1.5, solid_capstyle="butt")
    marker = "o" if estimate.estimate > floor else "<"
    axes.plot([max(estimate.estimate, floor)], [y], marker, color=colour, markersize=4, label=label)


def _by_block(result: Decomposition) -> dict[str, Components]:
    """Join layers of the same block and group; moments add up."""
    joined: dict[str, list[Components]] = {}
    for layer in result.layers:
        block = re.search(r"\.(\d+)\.", layer.name)
        name = f"block {block[1]} {layer.group}" if block else layer.group
        joined.setdefault(name, []).append(layer.statistics)
    return {name: Components(total([part.moments for part in parts]), result.levels) for name, parts in joined.items()}


def _share_sentence(result: Decomposition) -> str:
    inner = result.levels[-1]
    share = result.shares[inner]
    if share.estimate is None:
        return "The shares of the levels are not resolved"
    return f"{100 * share.estimate:.0f} % of the gradient variance comes from the choice of {inner}"


def _where(result: Decomposition, inner: str) -> str:
    """Name the group of layers that holds most of the inner variance."""
    level = result.levels.index(inner)
    by_group: dict[str, float] = {}
    for layer in result.layers:
        by_group[layer.group] = by_group.get(layer.group, 0.0) + float(layer.statistics.values[level])
    whole = sum(by_group.values())
    if whole <= 0 or len(by_group) < 2:
        return ""
    group, value = max(by_group.items(), key=lambda item: item[1])
    return f";\n{100 * value / whole:.0f} % of that sits in the {group} layers"
