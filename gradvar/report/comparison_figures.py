"""The figures of a comparison: what the title says must be what the picture shows."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

from gradvar.decomposition.estimate import Estimate
from gradvar.report.comparison_text import CEILINGS, clearly_better, disjoint_note
from gradvar.report.figures import COLOURS, GREY

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from gradvar.report.comparison import Comparison

_WIDEST = 4.0  # ratios beyond this are cut off at the axis' end


def mse_figure(result: Comparison) -> Figure:
    """Mean squared error of one draw by proposal, split in variance and squared bias, with the ceilings as lines."""
    rows = result.proposals
    figure, axes = _axes(len(rows))
    largest = max([1.2, *(e.high or e.estimate or 0.0 for row in rows for e in (row.mse_ratio,))])
    end = min(largest * 1.05, _WIDEST)
    for y, row in enumerate(rows):
        variance, bias = row.variance_ratio.estimate, max(row.bias2_ratio.estimate or 0.0, 0.0)
        if variance is None:
            continue
        axes.barh(y, min(variance, end), height=0.5, color=COLOURS[0], alpha=0.35, label="variance" if y == 0 else None)
        if bias > 0:
            left = min(variance, end)
            axes.barh(y, min(bias, end - left), left=left, height=0.5, color=COLOURS[1], alpha=0.5)
        _dot(axes, row.mse_ratio, y, end)
    axes.barh(0, 0, color=COLOURS[1], alpha=0.5, label="squared bias")
    for style, (name, what) in zip((":", "--", "-."), CEILINGS.items(), strict=True):
        ceiling = result.headroom[name].estimate
        if ceiling is not None and ceiling < 1:
            axes.axvline(1 - ceiling, color=GREY, linestyle=style, linewidth=1, label=f"least by {what}")
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xlim(0, end)
    axes.set_yticks(range(len(rows)), [row.proposal for row in rows], fontsize=8)
    what = "mean squared error of one draw over the mask variance of uniform masks, 95 % interval"
    axes.set_xlabel("\n".join([what, *disjoint_note(result)]))
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=8)
    axes.set_title(_error_title(result), fontsize=10, loc="left", wrap=True)
    return figure


def gain_figure(result: Comparison) -> Figure:
    """Batch gain at equal cost by proposal, with and without what scoring costs; of biased ones by the error, too."""
    rows = result.proposals
    figure, axes = _axes(len(rows))
    axes.set_xscale("log")
    for y, row in enumerate(rows):
        gain, by_error = row.batch_gain_at_batch, row.efficiency_at_batch
        if not row.declared_unbiased and by_error.estimate is not None:
            if by_error.low is not None and by_error.high is not None:
                axes.plot([by_error.low, by_error.high], [y, y], color=GREY, linewidth=1, solid_capstyle="butt")
            axes.plot(by_error.estimate, y, "D", color=GREY, markersize=4)
        if gain.estimate is None:
            axes.text(
                1.02, y, "not resolved", va="center", fontsize=7, color=GREY, transform=axes.get_yaxis_transform()
            )
            continue
        if gain.low is not None and gain.high is not None:
            axes.plot([gain.low, gain.high], [y, y], color=COLOURS[0], linewidth=1.5, solid_capstyle="butt")
        axes.plot(gain.estimate, y, "o", color=COLOURS[0], markersize=5, label="all costs" if y == 0 else None)
        ratio = (row.cost_ratio.estimate or 1.0) / (row.cost_ratio_without_scoring.estimate or 1.0)
        free = gain.estimate * ratio
        if ratio > 1.02:
            axes.plot(free, y, "o", color=COLOURS[0], markersize=5, fillstyle="none")
    axes.plot([], [], "o", color=COLOURS[0], fillstyle="none", label="scores for nothing")
    axes.plot([], [], "D", color=GREY, markersize=4, label="by mean squared error")
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_yticks(range(len(rows)), [row.proposal for row in rows], fontsize=8)
    batch = result.study["batch"]
    axes.set_xlabel(f"batch gain at equal cost, B = {batch} (how much a uniform batch must grow), 95 % interval")
    axes.grid(axis="x", alpha=0.3)
    axes.legend(loc="upper left", bbox_to_anchor=(1.08, 1.0), frameon=False, fontsize=8)
    axes.set_title(_gain_title(result), fontsize=10, loc="left", wrap=True)
    return figure


COMPARISON_FIGURES: dict[str, Callable[[Comparison], Figure]] = {"mse": mse_figure, "gain": gain_figure}


def _axes(rows: int) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(9, 1.8 + 0.28 * rows), layout="constrained")
    axes = figure.subplots()
    axes.set_ylim(rows - 0.4, -0.6)
    return figure, axes


def _dot(axes: Axes, estimate: Estimate, y: int, end: float) -> None:
    if estimate.estimate is None:
        return
    if estimate.low is not None and estimate.high is not None:
        ends = np.clip([estimate.low, estimate.high], 0, end)
        axes.plot(ends, [y, y], color="black", linewidth=1.2, solid_capstyle="butt")
    marker = ">" if estimate.estimate > end else "o"
    axes.plot(min(estimate.estimate, end), y, marker, color="black", markersize=4)


def _error_title(result: Comparison) -> str:
    clear = [row for row in result.proposals if row.mse_ratio.high is not None and row.mse_ratio.high < 1]
    if not clear:
        return "No proposal has a clearly smaller error than uniform masks"
    best = min(clear, key=lambda row: row.mse_ratio.estimate or 1.0)
    beside = "as many independent masks" if best.design.startswith("disjoint") else "a uniform mask"
    return f"{best.proposal} has the smallest error: {best.mse_ratio.estimate:.2f} times that of {beside}"


def _gain_title(result: Comparison) -> str:
    better, by_error = clearly_better(result)
    if better:
        return (
            f"{better[0].proposal} is worth {better[0].batch_gain_at_batch.estimate:.2f} times the batch at equal cost"
        )
    if by_error:
        gain = by_error[0].efficiency_at_batch.estimate
        return f"By mean squared error alone, {by_error[0].proposal} is worth {gain:.2f} times the batch at equal cost"
    return "No proposal clearly beats uniform masks at equal cost"
