"""What `mapnet_quality.py` found, in words and in a figure; from the rows alone."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import drawing
import measuring

Rows = Sequence[dict[str, str]]
DEFAULT = {"target": "logit", "loss": "variance", "size": "1"}
SHOWN = {
    "rank_correlation": "rank correlation",
    "ceiling_share": "ceiling share",
    "captured_share": "captured share",
    "oracle_ceiling_share": "ceiling share of measured norms",
}
_NOTHING = 1e-9
"""Share below which scores are equal but for rounding."""
_SIZES = {"0.5": "half", "2": "double"}


def is_default(row: dict[str, str]) -> bool:
    """Whether a fit is by default."""
    return all(row[name] == value for name, value in DEFAULT.items())


def named(row: dict[str, str]) -> str:
    """Name a fit by what differs from the default."""
    if is_default(row):
        return f"default, seed {row['seed']}"
    if row["size"] in _SIZES:
        return f"{_SIZES[row['size']]} the width"
    return next(f"{name} {row[name]}" for name, usual in DEFAULT.items() if row[name] != usual)


def approximates(rows: Rows) -> dict[str, str]:
    """Say by stage whether MAPNet approximates the optimum there, by the rules of `mapnet_quality.py`.

    Args:
        rows: All rows.

    Returns:
        ``approximates``, ``tells something of`` or ``tells nothing of`` the optimum; not where it is not resolved.
    """
    found = {}
    for stage, some in measuring.by_stage([row for row in rows if is_default(row)]).items():
        lows = [low for row in some if (low := measuring.number(row, "ceiling_share_low")) is not None]
        if len(lows) == len(some):
            least = min(lows)
            found[stage] = "approximates" if least > 0.5 else "tells something of" if least > 0 else "tells nothing of"
    return found


def differing(some: Rows) -> dict[str, str]:
    """Say which choices are better or worse than the default at a stage, by the rules of `mapnet_quality.py`.

    Args:
        some: Rows of one stage.

    Returns:
        ``better`` (``better, by equal scores,`` where its scores say nothing) or ``worse`` by choice; choices that are
        neither are not there.
    """
    usual = {row["seed"]: share for row in some if is_default(row) and (share := _share(row)) is not None}
    found = {}
    for row in some:
        share, same = _share(row), usual.get(row["seed"])
        low, high = (measuring.number(row, f"ceiling_share_{end}") for end in ("low", "high"))
        if is_default(row) or share is None or same is None or low is None or high is None:
            continue
        if share > max(usual.values()) and low > same:
            found[named(row)] = "better" if abs(share) > _NOTHING else "better, by equal scores,"
        if share < min(usual.values()) and high < same:
            found[named(row)] = "worse"
    return found


def findings(rows: Rows) -> list[str]:
    """Return what was found, a line for each stage and each comparison of choices."""
    told: dict[str, list[str]] = {}
    for stage, what in approximates(rows).items():
        told.setdefault(what, []).append(stage)
    known = [stage for stages in told.values() for stage in stages]
    lines = [f"MAPNet {what} the optimum at {', '.join(stages)}" for what, stages in told.items()]
    if missing := [stage for stage in measuring.by_stage(rows) if stage not in known]:
        lines.append(f"not resolved at {', '.join(missing)}")
    for stage, some in _compared(rows).items():
        lines.append(f"{stage}: {_choices(some)}")
    shares = [100 * float(row["flops_share"]) for row in rows if is_default(row)]
    if shares:
        lines.append(f"FLOPs of the default: {measuring.span(shares)} % of the encoder's")
    return lines


def draw(rows: Rows, folder: Path) -> None:
    """Draw what there is: a panel through training, and one for each stage at which choices are compared.

    Args:
        rows: Of the CSV; of some units, if others are missing.
        folder: For the figure.
    """
    if not rows:
        print("mapnet_quality.csv holds no numbers yet; nothing is drawn")
        return
    compared = _compared(rows)
    width = 5.0 + 3.4 * len(compared)
    ratios = [5.0, *(3.4 for _ in compared)]
    made, axes = drawing.figure(1 + len(compared), 1, width, 4.6, squeeze=False, gridspec_kw={"width_ratios": ratios})
    _through_training(axes[0, 0], measuring.by_stage([row for row in rows if is_default(row)]))
    for panel, (stage, some) in zip(axes[0, 1:], compared.items(), strict=True):
        _beside_default(panel, stage, some)
    drawing.save(made, folder / "mapnet_quality")
    print("\n".join(findings(rows)))


def _through_training(panel: Any, stages: dict[str, list[dict[str, str]]]) -> None:
    """Draw the default's worth by stage, its seeds side by side."""
    colours = (*drawing.COLOURS[:3], drawing.GREY)
    for number, (name, label) in enumerate(SHOWN.items()):
        places, rows = [], []
        for at, some in enumerate(stages.values()):
            places += [at - 0.3 + 0.2 * number + 0.05 * seed for seed in range(len(some))]
            rows += some
        style = {"linestyle": "none", "color": colours[number], "label": label}
        drawing.with_interval(panel, places, rows, name, marker="os^x"[number], **style)
    shares = [share for some in stages.values() for row in some if (share := _share(row)) is not None]
    part = f"{measuring.span([100 * share for share in shares], 0)} %" if shares else "an unknown part"
    title = f"Through training a MAPNet's scores say how to remove {part} of what weights of positions can remove"
    drawing.finish(panel, textwrap.fill(title, 52), "stage; seeds side by side", "share or correlation, 95 % interval")
    panel.set_xticks(range(len(stages)), [name.replace("@", "\n@") for name in stages], fontsize=8)
    panel.axhline(0, color="black", linewidth=0.8)
    panel.set_ylim(*_limits([row for some in stages.values() for row in some], list(SHOWN)))
    if panel.get_legend_handles_labels()[0]:
        panel.legend(loc="upper center", bbox_to_anchor=(0.5, -0.22), ncol=2)


def _beside_default(panel: Any, stage: str, some: Rows) -> None:
    """Draw the ceiling shares of the default and of what differs from it in one choice; an arrow is beyond the axis."""
    left, right = _limits(some, ["ceiling_share"])
    ordered = sorted(some, key=lambda row: (not is_default(row), row["seed"]))
    for at, row in enumerate(ordered):
        share, low, high = (measuring.number(row, f"ceiling_share{end}") for end in ("", "_low", "_high"))
        colour = drawing.GREY if is_default(row) else drawing.COLOURS[0]
        if share is not None and share < left:
            panel.plot(left, at, "<", color=colour, markersize=6, clip_on=False)
            panel.annotate(f"{share:.2g}", (left, at), (8, -3), textcoords="offset points", fontsize=7, color=colour)
        elif share is not None:
            panel.plot(share, at, "o", color=colour, markersize=4)
        if low is not None and high is not None:
            panel.hlines(at, low, high, colour, linewidth=1.2)
    drawing.finish(panel, textwrap.fill(f"{stage}: {_choices(some)}", 34), "ceiling share, 95 % interval", "")
    panel.set_yticks(range(len(ordered)), [named(row) for row in ordered], fontsize=8)
    panel.set_ylim(len(ordered) - 0.5, -0.5)
    panel.set_xlim(left, right)
    panel.axvline(0, color="black", linewidth=0.8)


def _compared(rows: Rows) -> dict[str, list[dict[str, str]]]:
    """Return the stages at which there is more than the default."""
    return {stage: some for stage, some in measuring.by_stage(rows).items() if not all(map(is_default, some))}


def _choices(some: Rows) -> str:
    found = differing(some)
    if not found:
        return "no choice differs clearly from the default"
    return "; ".join(
        f"{what} than the default: {', '.join(name for name, of in found.items() if of == what)}"
        for what in ("better", "better, by equal scores,", "worse")
        if what in found.values()
    )


def _share(row: dict[str, str]) -> float | None:
    return measuring.number(row, "ceiling_share")


def _limits(rows: Rows, names: Sequence[str]) -> tuple[float, float]:
    """Return the ends of an axis that shows all intervals, but for what is far below zero."""
    ends = [measuring.number(row, f"{name}{end}") for row in rows for name in names for end in ("", "_low", "_high")]
    known = [0.0, 0.5, *(end for end in ends if end is not None)]
    return max(-1.0, min(known)) - 0.05, min(1.5, max(known)) + 0.05
