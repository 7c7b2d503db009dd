"""The summary for people: tables with units and intervals, then what they say."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from gradvar.decomposition.estimate import Estimate

if TYPE_CHECKING:
    from gradvar.report.result import Decomposition

_LAYERS = 8
WIDTH = 100


def summary(result: Decomposition) -> str:
    """Render the result as plain text of at most 100 columns."""
    buffer = io.StringIO()
    Console(file=buffer, width=WIDTH, color_system=None, highlight=False).print(render(result))
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines())


def render(result: Decomposition) -> RenderableType:
    """Build what a terminal shows."""
    study = result.study
    draws = study["masks"] if isinstance(study["masks"], int) else " x ".join(map(str, study["masks"]))
    source = result.provenance.get("checkpoint")
    title = f"Gradient variance of one cell: {study['sentences']} {result.levels[0]} draws x {draws}"
    parts: list[RenderableType] = [Text(title + (f", {source}" if source else ""), style="bold", overflow="fold")]
    parts += [_levels_table(result), Text("")]
    parts += [Text(line) for line in findings(result)]
    parts += [Text(""), _layers_table(result)]
    parts += [Text(f"note: {line}", style="yellow") for line in (*result.notices, *_reasons(result))]
    return Group(*parts)


def findings(result: Decomposition) -> list[str]:
    """Say in words what the numbers mean, one line each."""
    inner = result.levels[-1]
    lines = [f"Signal: squared norm of the expected gradient {result.gradient_norm2}."]
    total = result.noise_scale["total"]
    if total.resolved:
        lines.append(f"Noise equals signal at a batch of {total} {result.levels[0]} draws (noise scale).")
    headroom = result.headroom["importance"]
    if headroom.resolved:
        lines.append(f"Importance sampling of {inner}s can remove at most {percent(headroom)} of the {inner} variance.")
    advice = result.advice
    ratio = advice.variance_ratio_to_one_mask
    if advice.masks_per_sentence is not None:
        costs = f"a sentence costs {advice.cost_sentence:.2g}, a mask {advice.cost_mask:.2g}"
        if advice.masks_per_sentence == 1:
            lines.append(f"One mask a sentence is best at equal cost ({costs}).")
        else:
            lines.append(
                f"{advice.masks_per_sentence} masks a sentence are best at equal cost ({costs}): "
                f"{ratio} x the variance of one mask."
            )
    return lines


def percent(estimate: Estimate) -> str:
    """Format a share as a percentage with its interval."""
    if estimate.estimate is None:
        return str(estimate)
    if estimate.low is None or estimate.high is None:
        return f"{100 * estimate.estimate:.3g} %"
    return f"{100 * estimate.estimate:.3g} % [{100 * estimate.low:.3g}, {100 * estimate.high:.3g}]"


def _levels_table(result: Decomposition) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for column in ("level", "variance [95 % interval]", "share", f"noise scale ({result.levels[0]} draws)"):
        table.add_column(column, justify="left", no_wrap=True)
    for level in result.levels:
        table.add_row(level, str(result.components[level]), percent(result.shares[level]), str(result.noise_scale[level]))
    return table


def _layers_table(result: Decomposition) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    table.add_column("layers with most variance", overflow="fold")
    table.add_column("group")
    table.add_column("of the total", justify="right")
    for level in result.levels:
        table.add_column(f"{level} variance", no_wrap=True)
    totals = {layer.name: float(layer.statistics.values.sum()) for layer in result.layers}
    whole = float(result.statistics.values.sum())
    for layer in sorted(result.layers, key=lambda layer: -totals[layer.name])[:_LAYERS]:
        share = f"{100 * totals[layer.name] / whole:.1f} %" if whole > 0 else "-"
        table.add_row(layer.name, layer.group, share, *(str(layer.components[level]) for level in result.levels))
    if len(result.layers) > _LAYERS:
        table.caption = f"{len(result.layers) - _LAYERS} more layers in layers.csv"
        table.caption_justify = "left"
    return table


def _reasons(result: Decomposition) -> list[str]:
    """Explain every value that is not resolved, each reason once."""
    named: dict[str, list[str]] = {}
    values = {f"share of {level}": e for level, e in result.shares.items()}
    values |= {"|mu|^2": result.gradient_norm2}
    values |= {f"noise scale of {name}" if name != "total" else "noise scale": e for name, e in result.noise_scale.items()}
    values |= {f"headroom of {name} sampling": e for name, e in result.headroom.items()}
    values |= {"advice": result.advice.variance_ratio_to_one_mask}
    for name, estimate in values.items():
        if estimate.reason:
            named.setdefault(estimate.reason, []).append(name)
    return [f"{', '.join(names)}: {reason}" for reason, names in named.items()]
