"""How figures look, and how they are written: the same bytes every time."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from gradvar.report.figures import COLOURS, GREY

__all__ = ["COLOURS", "GREY", "figure", "finish", "headline", "save", "with_interval"]

# A salt instead of random ids, and text as text, so that a picture hangs on its data and nothing else.
_STYLE = {
    "svg.hashsalt": "gradvar",
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
}


def figure(columns: int = 1, rows: int = 1, width: float = 7.0, height: float = 4.2, **options: Any) -> tuple[Any, Any]:
    """Make an empty figure with its axes, as `Figure.subplots` returns them."""
    mpl.rcParams.update(_STYLE)
    made = Figure(figsize=(width, height), layout="constrained")
    return made, made.subplots(rows, columns, **options)


def finish(axes: Any, title: str, x: str, y: str) -> None:
    """Name what is seen: a title that states the finding, and axes with units."""
    axes.set_title(title, wrap=True)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.3)


def headline(made: Figure, text: str) -> None:
    """Write what several axes show above all of them."""
    lines = textwrap.wrap(text, int(12 * made.get_figwidth()))
    made.suptitle("\n".join(lines), fontsize=10, x=0.01, ha="left")


def with_interval(axes: Any, x: Sequence[float], rows: Sequence[dict[str, str]], name: str, **style: Any) -> None:
    """Draw the numbers of a column with their intervals, `NAME_low` and `NAME_high`, where they are resolved."""
    points = [
        (at, *(float(row[f"{name}{end}"]) for end in ("", "_low", "_high")))
        for at, row in zip(x, rows, strict=True)
        if row.get(name) and row.get(f"{name}_low") and row.get(f"{name}_high")
    ]
    if not points:
        return
    at, middle, low, high = np.array(points).T
    errors = np.clip([middle - low, high - middle], 0, None)
    axes.errorbar(at, middle, errors, capsize=2, markersize=4, linewidth=1.2, **{"marker": "o", **style})


def save(made: Figure, path: Path) -> None:
    """Write a figure as PNG and SVG, without dates or versions."""
    path.parent.mkdir(parents=True, exist_ok=True)
    made.draw_without_rendering()
    made.set_layout_engine(None)  # with an engine, saving would draw twice
    for axes in made.axes:  # the solver of the layout is not the same in the last digits every time
        axes.set_position([round(float(end), 5) for end in axes.get_position().bounds])
    for ending, unnamed in (("png", {"Software": None}), ("svg", {"Date": None, "Creator": None})):
        made.savefig(path.with_suffix(f".{ending}"), dpi=130, metadata=unnamed)
