"""What `proposals.py` found, in words and in two figures; from the rows alone."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import drawing
import measuring
import numpy as np

Rows = Sequence[dict[str, str]]
EXACT, DISJOINT, POSITIONS, OTHER = (
    "whole masks, exact weights",
    "disjoint masks",
    "weights of positions",
    "other objectives",
)
GROUPS = {EXACT: drawing.COLOURS[0], POSITIONS: drawing.COLOURS[1], DISJOINT: drawing.COLOURS[2], OTHER: drawing.GREY}
_DESIGNS = {"midzuno": EXACT, "conditional-poisson": EXACT, "pool": EXACT, "pps": POSITIONS, "disjoint": DISJOINT}
BASELINE = "uniform/simple"


def group(row: dict[str, str]) -> str:
    """Say of which kind a proposal is, by its design."""
    name = row["design"]
    for mark in ":~@":
        name = name.partition(mark)[0]
    return _DESIGNS.get(name, OTHER)


def gain(row: dict[str, str]) -> tuple[str, bool]:
    """Return the column that says what an arm is worth at equal cost, and whether it is by alignment.

    Where that of a biased arm is not resolved, it is by mean squared error.
    """
    aligned = measuring.number(row, "batch_gain_at_batch_low") is not None
    return ("batch_gain_at_batch" if aligned else "efficiency_at_batch"), aligned


def proposals(rows: Rows) -> dict[str, list[dict[str, str]]]:
    """Sort the rows of proposals into their stages, without uniform masks, which all are compared with."""
    return measuring.by_stage([row for row in rows if row["kind"] == "proposal" and row["proposal"] != BASELINE])


def ceilings(rows: Rows, name: str) -> dict[str, float]:
    """Return one of the ceilings, a part of the mask variance, by stage."""
    found = {row["stage"]: measuring.number(row, f"{name}_ceiling") for row in rows if row["kind"] == "stage"}
    return {stage: value for stage, value in found.items() if value is not None}


def less(rows: Rows, arm: str) -> str:
    """Say at how many stages an arm has less variance than uniform masks, and how much it removes."""
    mine = [row for row in rows if row.get("proposal") == arm and measuring.number(row, "variance_ratio") is not None]
    if not mine:
        return f"{arm}: not measured"
    ends = [measuring.number(row, "variance_ratio_high") for row in mine]
    clear = sum(end is not None and end < 1 for end in ends)
    removed = [100 * (1 - float(row["variance_ratio"])) for row in mine]
    part = f"{measuring.span(removed)} % of the mask variance"
    return f"{arm}: less variance at {clear} of {len(mine)} stages; it removes {part}"


def beats_placebo(rows: Rows) -> str:
    """Say at how many stages a MAPNet's position weights leave less variance than permuted scores."""
    ratios: dict[str, dict[str, float | None]] = {"mapnet": {}, "mapnet-permuted": {}}
    for row in rows:
        score, _, design = (row.get("proposal") or "").partition("/")
        if score in ratios and design == "pps~0.1":
            column = "variance_ratio_high" if score == "mapnet" else "variance_ratio"
            ratios[score][row["stage"]] = measuring.number(row, column)
    pairs = [(ratios["mapnet"].get(stage), other) for stage, other in ratios["mapnet-permuted"].items()]
    known = [(high, other) for high, other in pairs if high is not None and other is not None]
    return f"mapnet/pps~0.1: less than its placebo at {sum(a < b for a, b in known)} of {len(known)} stages"


def paying(rows: Rows) -> dict[str, list[tuple[str, bool]]]:
    """Return by regime the arms that are worth more than their cost at all of its stages; see `proposals.py`.

    Args:
        rows: All rows.

    Returns:
        Pairs of an arm and whether it is so by alignment everywhere.
    """
    stages = proposals(rows)
    found: dict[str, list[tuple[str, bool]]] = {}
    for regime in dict.fromkeys(stage.partition("@")[0] for stage in stages):
        mine = [
            {row["proposal"]: row for row in some} for name, some in stages.items() if name.startswith(f"{regime}@")
        ]
        found[regime] = []
        for arm in mine[0]:
            each = [(of[arm], *gain(of[arm])) for of in mine if arm in of]
            lows = [measuring.number(row, f"{column}_low") for row, column, _ in each]
            if len(each) == len(mine) and all(low is not None and low > 1 for low in lows):
                found[regime].append((arm, all(aligned for *_, aligned in each)))
    return found


def findings(rows: Rows) -> list[str]:
    """Answer the questions of `proposals.py`, a line each."""
    exact = ("oracle/midzuno", "oracle/conditional-poisson", "oracle/pool:4")
    mapnet = ("mapnet/midzuno", "mapnet/conditional-poisson", "mapnet/pps~0.1")
    lines = [less(rows, arm) for arm in (*exact, "oracle/pps~0.1", *mapnet)]
    lines.append(beats_placebo(rows))
    for name in ("importance", "position"):
        found = [100 * value for value in ceilings(rows, name).values()]
        lines.append(
            f"ceiling of {name}: {measuring.span(found)} % of the mask variance" if found else f"no ceiling of {name}"
        )
    for regime, arms in paying(rows).items():
        named = ", ".join(arm if aligned else f"{arm} (by mean squared error)" for arm, aligned in arms)
        lines.append(f"{regime}: at equal cost {named or 'no arm'} beats uniform masks at all stages")
    return lines


def less_variance(rows: Rows) -> str:
    """Say in a sentence which weights leave clearly less variance than uniform masks."""
    kinds = {
        "true norms in exact weights": _clear(rows, "oracle", EXACT),
        "true norms in weights of positions": _clear(rows, "oracle", POSITIONS),
        "a MAPNet in exact weights": _clear(rows, "mapnet", EXACT),
        "a MAPNet in weights of positions": _clear(rows, "mapnet", POSITIONS),
    }
    return "Clearly less variance than uniform masks: " + "; ".join(f"{kind} {cases}" for kind, cases in kinds.items())


def at_equal_cost(rows: Rows) -> str:
    """Say in a sentence what is worth more than its cost."""
    many = Counter(measuring.regime_of(stage) for stage in proposals(rows))
    found = [
        f"{', '.join(arm for arm, _ in arms)} ({regime}, {many[regime]} stage{'s' * (many[regime] > 1)})"
        for regime, arms in paying(rows).items()
        if arms
    ]
    verb = "beat" if sum(map(len, paying(rows).values())) > 1 else "beats"
    named = "; ".join(found) or "no arm"
    return f"At equal cost {named} {verb} uniform masks at all stages of a regime (by chance, up to two arms would)"


def _clear(rows: Rows, score: str, kind: str) -> str:
    """Say in how many cases, an arm at a stage, the variance is clearly below that of uniform masks; by how much."""
    some = [row for row in rows if row["kind"] == "proposal" and row["score"] == score and group(row) == kind]
    cases = [
        (float(row["variance_ratio"]), measuring.number(row, "variance_ratio_high"))
        for row in some
        if row["variance_ratio"]
    ]
    removed = [100 * (1 - ratio) for ratio, high in cases if high is not None and high < 1]
    return f"in {len(removed)} of {len(cases)} cases" + (f", by {measuring.span(removed)} %" if removed else "")


def _head(made: Any, title: str, below: str, width: float) -> None:
    made.suptitle(textwrap.fill(title, round(13 * width)), fontsize=10)
    made.supxlabel(textwrap.fill(below, round(15 * width)), fontsize=8)


def draw(rows: Rows, folder: Path) -> None:
    """Draw both figures, and print what they say.

    Args:
        rows: Of the CSV; of some stages, if others are missing.
        folder: For the figures.
    """
    stages = proposals(rows)
    if not stages:
        print("proposals.csv holds no numbers yet; nothing is drawn")
        return
    losses = {row["stage"]: measuring.number(row, "loss") for row in rows if row["kind"] == "stage"}
    titles = {name: name if losses.get(name) is None else f"{name}\n{losses[name]:.2f} nats" for name in stages}
    drawing.save(variance_figure(rows, stages, titles), folder / "proposals")
    drawing.save(cost_figure(rows, stages, titles), folder / "proposals_cost")
    print("\n".join(findings(rows)))


def variance_figure(rows: Rows, stages: dict[str, list[dict[str, str]]], titles: dict[str, str]) -> Any:
    """Variance ratios, a column a stage: exact weights, weights of positions and others, each on an axis of its own."""
    parts, width = _parts(stages), 2.6 + 1.5 * len(stages)
    made, axes = drawing.figure(
        len(stages),
        len(parts),
        width,
        2.6 + 0.19 * sum(map(len, parts)),
        sharex="row",
        sharey="row",
        squeeze=False,
        gridspec_kw={"height_ratios": [max(1, len(part)) for part in parts]},
    )
    reaches, least = ((0.89, 1.1), (0.8, 1.3), (0.0, 2.5)), ("importance", "position", "")
    for of, part, reach, which in zip(axes, parts, reaches, least, strict=True):
        shown = [row for some in stages.values() for row in some if row["proposal"] in part]
        limits = _limits(shown, "variance_ratio", *reach, [1 - value for value in ceilings(rows, which).values()])
        for panel, (name, some) in zip(of, stages.items(), strict=True):
            _dots(panel, {row["proposal"]: row for row in some}, part, "variance_ratio", limits)
            ceiling = ceilings(rows, which).get(name)
            if ceiling is not None and part:
                panel.axvline(1 - ceiling, color=drawing.GREY, linestyle="dashed", linewidth=1)
    for panel, name in zip(axes[0], stages, strict=True):
        panel.set_title(titles[name], fontsize=8)
    _head(
        made,
        less_variance(rows),
        "variance over that of uniform masks, 95 % interval; dashed: the least that each kind of weights could reach",
        width,
    )
    return made


def cost_figure(rows: Rows, stages: dict[str, list[dict[str, str]]], titles: dict[str, str]) -> Any:
    """What an arm is worth at equal cost, a column a stage."""
    arms = [arm for part in _parts(stages) for arm in part]
    width = 2.6 + 1.5 * len(stages)
    made, axes = drawing.figure(len(stages), 1, width, 2.2 + 0.19 * len(arms), sharex=True, sharey=True, squeeze=False)
    for panel, (name, some) in zip(axes[0], stages.items(), strict=True):
        panel.set_xscale("log")
        mine = {row["proposal"]: row for row in some}
        for at, arm in enumerate(arms):
            free = measuring.number(mine.get(arm, {}), "efficiency_without_scoring")
            if arm in mine and measuring.number(mine[arm], gain(mine[arm])[0]) is None:
                panel.text(0.03, at, "not resolved", va="center", fontsize=6, transform=panel.get_yaxis_transform())
            if free is not None:
                panel.plot(free, at, "|", color=drawing.GREY, markersize=7, zorder=3)
        aligned = {arm: row for arm, row in mine.items() if gain(row)[1]}
        others = {arm: row for arm, row in mine.items() if arm not in aligned}
        _dots(panel, aligned, arms, "batch_gain_at_batch", None)
        _dots(panel, others, arms, "efficiency_at_batch", None, marker="D")
        panel.set_title(titles[name], fontsize=8)
    _head(
        made,
        at_equal_cost(rows),
        "worth at equal cost, batch of 256, 95 % interval: by alignment (dots), by mean squared error where that is "
        "not resolved (diamonds); grey bars: by mean squared error, scores for nothing",
        width,
    )
    return made


def _parts(stages: dict[str, list[dict[str, str]]]) -> list[list[str]]:
    """Return the arms under exact weights, those with weights of positions, and all others."""
    kinds = {row["proposal"]: group(row) for some in stages.values() for row in some}
    return [
        [arm for kind in some for arm, of in kinds.items() if of == kind]
        for some in ((EXACT,), (POSITIONS,), (DISJOINT, OTHER))
    ]


def _limits(rows: Rows, name: str, least: float, most: float, also: Sequence[float]) -> tuple[float, float]:
    """Return the ends of an axis that shows all intervals and other places, as far as ``least`` and ``most``."""
    ends = [measuring.number(row, f"{name}{end}") for row in rows for end in ("", "_low", "_high")]
    known = [1.0, *also, *(value for value in ends if value is not None)]
    low, high = max(least, min(known)), min(most, max(known))
    margin = 0.06 * (high - low) or 0.01
    return low - margin, high + margin


def _dots(
    panel: Any,
    rows: dict[str, dict[str, str]],
    arms: Sequence[str],
    name: str,
    limits: tuple[float, float] | None,
    marker: str = "o",
) -> None:
    """Draw a column of the arms with intervals; what is beyond the limits as an arrow at their end."""
    for at, arm in enumerate(arms):
        value, low, high = (measuring.number(rows.get(arm, {}), f"{name}{end}") for end in ("", "_low", "_high"))
        if value is None:
            continue
        colour = GROUPS[group(rows[arm])]
        if low is not None and high is not None:
            panel.hlines(at, low, high, colour, linewidth=1.2)
        inside = value if limits is None else float(np.clip(value, *limits))
        panel.plot(
            inside, at, marker if inside == value else ("<" if inside > value else ">"), color=colour, markersize=3.5
        )
    if limits is not None:
        panel.set_xlim(*limits)
    panel.axvline(1, color="black", linewidth=0.8)
    panel.set_yticks(range(len(arms)), arms, fontsize=7)
    panel.set_ylim(len(arms) - 0.4, -0.6)
    panel.tick_params(axis="x", labelsize=7)
    panel.grid(axis="x", alpha=0.3)
