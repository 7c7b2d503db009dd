"""The figures of `over_training.py`, and the sentences above them, from its numbers alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import drawing
import matplotlib as mpl
import measuring
import numpy as np
import settings

Rows = list[dict[str, str]]

_RATE = "15"
_NAMES = {"data": "V_data", "mask": "V_mask", "norm2": "|mu|²"}
_CEILINGS = {"importance": "importance sampling", "position": "position weights", "stratification": "disjoint masks"}
_SHOWN = 0.01  # layers with less of the variance at every stage that is drawn are left out
_WORTH = 1.1


def draw(totals: Rows, layers: Rows, folder: Path) -> None:
    """Draw all figures, as far as the numbers go; print what they say.

    Args:
        totals: Of the whole gradient.
        layers: Of layers.
        folder: Where the figures go.
    """
    said = sentences(totals, layers)
    if not said:
        print("over_training.csv: no stage is done yet; nothing to draw")
    for name, sentence in said.items():
        made = _DRAWN[name](_sorted(totals, layers)[name])
        print(f"  {sentence}")
        drawing.headline(made, sentence)
        drawing.save(made, folder / name)


def sentences(totals: Rows, layers: Rows) -> dict[str, str]:
    """Return what each figure says, by its name, for those that there are numbers for."""
    return {name: _SAID[name](some) for name, some in _sorted(totals, layers).items() if some}


def _sorted(totals: Rows, layers: Rows) -> dict[str, dict[str, Rows]]:
    """Return the numbers of each figure, by regime."""
    at_rate = _by_regime([row for row in totals if row["mask_rate"] == _RATE])
    every = _by_regime(totals).items() if at_rate else ()
    return {
        "over_training": at_rate,
        "over_training_ceilings": at_rate,
        "over_training_rates": {
            name: rows for name, rows in every if any(len(own) > 1 for own in _by_stage(rows).values())
        },
        "over_training_layers": _by_regime([row for row in layers if at_rate and row["mask_rate"] == _RATE]),
    }


def _by_regime(rows: Rows) -> dict[str, Rows]:
    """Sort rows into regimes, and by step and mask rate there."""
    found: dict[str, Rows] = {}
    for row in sorted(rows, key=lambda row: (measuring.step_of(row["stage"]), int(row["mask_rate"]))):
        found.setdefault(measuring.regime_of(row["stage"]), []).append(row)
    return dict(sorted(found.items(), key=lambda pair: settings.NAMES.index(pair[0])))


def _number(row: dict[str, str], name: str) -> float:
    return float(row.get(name) or np.nan)


def shares_sentence(at_rate: dict[str, Rows]) -> str:
    """Say whether masks make most of the variance, and whether that changes, by the rules stated before.

    Args:
        at_rate: Rows at 15 % masked, by regime.

    Returns:
        The sentence.
    """
    parts = []
    for regime, rows in at_rate.items():
        above = sum(_number(row, "share_low") > 0.5 for row in rows)
        below = sum(_number(row, "share_high") < 0.5 for row in rows)
        text = f"{above} of {len(rows)} stages of {regime}" + f" (less at {below})" * bool(below)
        first, last = rows[0], rows[-1]
        way = "from"
        if _number(last, "share_low") > _number(first, "share_high"):
            way = "rising from"
        elif _number(last, "share_high") < _number(first, "share_low"):
            way = "falling from"
        parts.append(
            f"{text}, {way} {_percent(first, 'share')} to {_percent(last, 'share')}" if first is not last else text
        )
    return "Masks make more than half of the variance at " + "; ".join(parts)


def ceilings_sentence(at_rate: dict[str, Rows]) -> str:
    """Say what the remedies could do at most.

    Args:
        at_rate: Rows at 15 % masked, by regime.

    Returns:
        The sentence.
    """
    parts = []
    for regime, rows in at_rate.items():
        worth = [{name for name in _CEILINGS if _number(row, f"factor_{name}_low") > _WORTH} for row in rows]
        names = [text for name, text in _CEILINGS.items() if any(name in some for some in worth)]
        some = sum(map(bool, worth))
        parts.append(f"{some} of {len(rows)} stages of {regime}" + f" ({', '.join(names)})" * bool(names))
    return f"Some remedy can make the variance more than {_WORTH} times smaller at " + "; ".join(parts)


def rates_sentence(rates: dict[str, Rows]) -> str:
    """Say how the share of masks goes with the mask rate at the last stage.

    Args:
        rates: All rows, by regime.

    Returns:
        The sentence.
    """
    parts = []
    for rows in rates.values():
        several = [(stage, own) for stage, own in _by_stage(rows).items() if len(own) > 1]
        for stage, (low, *_, high) in several[-1:]:
            parts.append(
                f"{_percent(low, 'share')} at {low['mask_rate']} % and {_percent(high, 'share')} at "
                f"{high['mask_rate']} % masked in {stage}"
            )
    return "The masks' share of the variance is " + "; ".join(parts)


def layers_sentence(by_layer: dict[str, Rows]) -> str:
    """Say which layer has most of the mask variance at the last stage.

    Args:
        by_layer: Rows of layers at 15 % masked, by regime.

    Returns:
        The sentence.
    """
    parts = []
    for rows in by_layer.values():
        stage, own = list(_by_stage(rows).items())[-1]
        whole = sum(_number(row, "mask") for row in own)
        most = max(own, key=lambda row: _number(row, "mask"))
        part = 100 * _number(most, "mask") / whole
        parts.append(f"{most['layer']} ({part:.0f} %) in {stage}, where masks make {_range(own)} of a layer's variance")
    return "The layer with most of the mask variance is " + "; ".join(parts)


def _range(rows: Rows) -> str:
    shares = [100 * _number(row, "share") for row in rows if row.get("share")]
    return f"{min(shares):.0f} to {max(shares):.0f} %" if shares else "not resolved"


def _percent(row: dict[str, str], name: str) -> str:
    return f"{100 * _number(row, name):.0f} %" if row.get(name) else "a part not resolved"


def _by_stage(rows: Rows) -> dict[str, Rows]:
    found: dict[str, Rows] = {}
    for row in rows:
        found.setdefault(row["stage"], []).append(row)
    return found


def _grid(regimes: Sequence[str], heights: float, rows: int) -> tuple[Any, Any]:
    made, axes = drawing.figure(len(regimes), rows, 1 + 2.9 * len(regimes), heights, sharey="row", squeeze=False)
    return made, axes.T


def _components(at_rate: dict[str, Rows]) -> Any:
    made, axes = _grid(list(at_rate), 8.0, 3)
    for (above, middle, below), (regime, rows) in zip(axes, at_rate.items(), strict=True):
        steps = [measuring.step_of(row["stage"]) for row in rows]
        for index, name in enumerate(("data", "mask", "norm2")):
            _line(above, steps, rows, name, index, _NAMES[name])
        _line(middle, steps, rows, "share", 1, "")
        middle.axhline(0.5, color=drawing.GREY, linewidth=0.8)
        middle.set_ylim(0, 1)
        for index, name in enumerate(("data", "mask", "total")):
            _line(
                below,
                steps,
                rows,
                f"noise_{name}",
                index,
                name,
                marker="osP"[index],
                color=(*drawing.COLOURS[:2], "black")[index],
            )
        for axis in (above, below):
            axis.set_yscale("log")
        drawing.finish(above, regime, "", "")
        drawing.finish(middle, "", "", "")
        drawing.finish(below, "", "step", "")
    _name(
        axes[0], ("squared gradient, one cell", "masks' share of the variance", "noise scale, sentences (△ at least)")
    )
    _legend(axes[0][0])
    _legend(axes[0][2])
    return made


def _ceilings(at_rate: dict[str, Rows]) -> Any:
    made, axes = _grid(list(at_rate), 6.0, 2)
    for (above, below), (regime, rows) in zip(axes, at_rate.items(), strict=True):
        steps = [measuring.step_of(row["stage"]) for row in rows]
        for index, (name, text) in enumerate(_CEILINGS.items()):
            _line(above, steps, rows, f"ceiling_{name}", index, text)
            _line(below, steps, rows, f"factor_{name}", index, text)
        _line(below, steps, rows, "factor_all", 3, "no mask variance at all")
        below.set_yscale("log", base=2)
        below.yaxis.set_major_formatter("{x:.3g}")
        drawing.finish(above, regime, "", "")
        drawing.finish(below, "", "step", "")
    _name(axes[0], ("part of V_mask that could go", "variance of one cell, times smaller"))
    made.legend(*axes[0][1].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=7)
    return made


def _rates(rates: dict[str, Rows]) -> Any:
    made, axes = _grid(list(rates), 6.0, 2)
    for (above, below), (regime, rows) in zip(axes, rates.items(), strict=True):
        by_stage = _by_stage(rows)
        colours = mpl.colormaps["viridis"](np.linspace(0, 0.85, len(by_stage)))
        for colour, (stage, own) in zip(colours, by_stage.items(), strict=True):
            at = [float(row["mask_rate"]) for row in own]
            name = f"step {measuring.step_of(stage)}"
            _line(above, at, own, "share", 0, name, color=colour)
            _line(below, at, own, "noise_total", 0, name, color=colour)
        below.set_yscale("log")
        for axis in (above, below):
            axis.set_xticks(sorted({float(row["mask_rate"]) for row in rows}))
        drawing.finish(above, regime, "", "")
        drawing.finish(below, "", "% masked", "")
        _legend(above)
    _name(axes[0], ("masks' share of the variance", "noise scale, sentences (△ at least)"))
    return made


def _layers(by_layer: dict[str, Rows]) -> Any:
    """Layers downwards: their part of the mask variance, and the masks' share in them; first, middle, last stage."""
    shown = {}
    for regime, rows in by_layer.items():
        every = list(_by_stage(rows).items())
        kept = dict(every[index] for index in sorted({0, len(every) // 2, len(every) - 1}))
        wholes = {stage: sum(_number(row, "mask") for row in own) for stage, own in kept.items()}
        large = {r["layer"] for stage, own in kept.items() for r in own if _number(r, "mask") > _SHOWN * wholes[stage]}
        names = [row["layer"] for row in next(iter(kept.values())) if row["layer"] in large]
        shown[regime] = (kept, wholes, names)
    heights = [len(names) + 3 for _, _, names in shown.values()]
    made, axes = drawing.figure(
        2, len(shown), 10, 1 + 0.19 * sum(heights), sharey="row", sharex="col", squeeze=False, height_ratios=heights
    )
    for (left, right), (regime, (kept, wholes, names)) in zip(axes, shown.items(), strict=True):
        for index, (stage, own) in enumerate(kept.items()):
            rows = [row for name in names for row in own if row["layer"] == name]
            at = np.arange(len(rows)) + 0.22 * (index - 1)
            style = {"color": drawing.COLOURS[index], "marker": "osD"[index], "markersize": 4, "linestyle": ""}
            parts = np.array([[_number(row, f"mask{end}") for end in ("", "_low", "_high")] for row in rows])
            _across(left, at, parts / wholes[stage], {**style, "label": f"step {measuring.step_of(stage)}"})
            shares = np.array([[_number(row, f"share{end}") for end in ("", "_low", "_high")] for row in rows])
            _across(right, at, shares, style)
        left.set_yticks(range(len(names)), names, fontsize=7)
        left.set_ylim(len(names) - 0.5, -0.5)
        right.set_xlim(0, 1)
        drawing.finish(left, regime, "", "")
        drawing.finish(right, "", "", "")
        _legend(left)
    axes[-1][0].set_xlabel(f"part of V_mask (layers above {100 * _SHOWN:.0f} %), 95 %")
    axes[-1][1].set_xlabel("masks' share of the layer's variance, 95 %")
    return made


def _across(axes: Any, y: np.ndarray, values: np.ndarray, style: dict[str, Any]) -> None:
    """Draw points with horizontal intervals; what is not resolved is left out."""
    kept = np.isfinite(values).all(axis=1)
    middle, low, high = values[kept].T
    errors = np.clip([middle - low, high - middle], 0, None)
    axes.errorbar(middle, y[kept], xerr=errors, capsize=2, linewidth=1, **style)


def _line(axes: Any, at: Sequence[float], rows: Rows, name: str, index: int, label: str, **style: Any) -> None:
    """Draw a column with its intervals, and triangles where there is a lower bound alone."""
    style = {"color": drawing.COLOURS[index], "marker": "osD^"[index], **style}
    drawing.with_interval(axes, at, rows, name, label=label or None, **style)
    bounds = [(x, _number(row, f"{name}_low")) for x, row in zip(at, rows, strict=True) if not row.get(name)]
    bounds = [(x, low) for x, low in bounds if np.isfinite(low)]
    if bounds:
        axes.plot(*zip(*bounds, strict=True), color=style["color"], marker="^", linestyle="", fillstyle="none")


def _legend(axes: Any) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=7)


def _name(column: Any, labels: Sequence[str]) -> None:
    for axes, label in zip(column, labels, strict=True):
        axes.set_ylabel(label)


_SAID = {
    "over_training": shares_sentence,
    "over_training_ceilings": ceilings_sentence,
    "over_training_rates": rates_sentence,
    "over_training_layers": layers_sentence,
}
_DRAWN = {
    "over_training": _components,
    "over_training_ceilings": _ceilings,
    "over_training_rates": _rates,
    "over_training_layers": _layers,
}
PICTURES = tuple(_DRAWN)
