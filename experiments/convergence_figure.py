"""The picture of the race: ratios of seconds and differences of losses, a row a regime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import arms
import drawing
import measuring
import numpy as np
import standing
from standing import Standing

from gradvar.racing.paired import FEWEST


def draw(shown: Mapping[str, Sequence[Standing]], folder: Path) -> None:
    """Draw the ratios of times and the differences of losses.

    Args:
        shown: Where the arms of each regime stand.
        folder: For the picture.
    """
    heights = [1.0 + 0.26 * len(each) for each in shown.values()]
    made, axes = drawing.figure(
        2, len(shown), 10, sum(heights) + 0.8, squeeze=False, sharey="row", gridspec_kw={"height_ratios": heights}
    )
    for (left, right), (regime, each) in zip(axes, shown.items(), strict=True):
        clear = len(standing.verdicts(each)["sooner"])
        some = sum(one.arm not in (arms.CONTROL, arms.PLACEBO) for one in each)
        _ratios(left, each)
        title = f"{regime}: {clear or 'no'} arm{'s' * (clear > 1)} of {some} clearly sooner than uniform masks"
        ends = "95 %" if min(one.pairs for one in each) >= FEWEST else "range of pairs"
        drawing.finish(left, title, f"seconds to the target loss, over uniform masks' ({ends})", "")
        _losses(right, each)
        pairs = measuring.span([one.pairs for one in each], 0)
        drawing.finish(right, f"{pairs} pairs of runs", "loss at the end less uniform masks' (nats, 95 %)", "")
    drawing.save(made, folder / "convergence")


_FROM, _TO = 0.5, 2.0  # of the ratios that are drawn


def _ratios(axes: object, each: Sequence[Standing]) -> None:
    for y, one in enumerate(each):
        low, high = np.clip(one.ends, _FROM, _TO)
        axes.plot([low, high], [y, y], color=drawing.COLOURS[0], linewidth=1.5)
        if one.ends[0] < _FROM:
            axes.plot(_FROM, y, "<", color=drawing.COLOURS[0], markersize=5)
        if one.ends[1] > _TO:
            axes.plot(_TO, y, ">", color=drawing.COLOURS[0], markersize=5)
            if one.seconds.low > _TO:
                axes.annotate(one.said, (_TO, y), (-8, 0), textcoords="offset points", ha="right", va="center")
        for ratio, style, colour, size in ((one.seconds, "o", 0, 5), (one.steps, "|", 1, 9)):
            if ratio.low == ratio.high and _FROM <= ratio.low <= _TO:
                axes.plot(ratio.low, y, style, color=drawing.COLOURS[colour], markersize=size)
    axes.plot([], [], "o", color=drawing.COLOURS[0], label="seconds")
    axes.plot([], [], "|", color=drawing.COLOURS[1], label="steps")
    axes.legend(loc="lower right")
    axes.axvline(1, color=drawing.GREY, linewidth=1)
    axes.set_xscale("log")
    ticks = (0.5, 0.7, 0.85, 1, 1.2, 1.5, 2)
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xlim(_FROM * 0.96, _TO * 1.04)
    axes.minorticks_off()
    axes.set_yticks(range(len(each)), [one.arm for one in each])
    axes.invert_yaxis()


def _losses(axes: object, each: Sequence[Standing]) -> None:
    for y, one in enumerate(each):
        mean, low, high = one.loss
        axes.plot([low, high], [y, y], color=drawing.COLOURS[0], linewidth=1.5)
        axes.plot(mean, y, "o", color=drawing.COLOURS[0], markersize=5)
    axes.axvline(0, color=drawing.GREY, linewidth=1)
