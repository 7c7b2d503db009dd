"""The summary for people: tables with units and intervals, then what they say."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from gradvar.decomposition.ceilings import NOT_ASKED
from gradvar.decomposition.estimate import Estimate

if TYPE_CHECKING:
    from gradvar.report.result import Decomposition, Layer

_LAYERS = 8
_REMEDIES = {
    "importance": "Importance sampling",
    "position": "Position weights",
    "stratification": "Disjoint masks",
}
WIDTH = 80


def summary(result: Decomposition) -> str:
    """Render the result as plain text of at most 80 columns."""
    return plain_text(render(result))


def plain_text(shown: RenderableType) -> str:
    """Turn what a terminal shows into plain text of at most 80 columns."""
    buffer = io.StringIO()
    Console(file=buffer, width=WIDTH, color_system=None, highlight=False).print(shown)
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines())


def render(result: Decomposition) -> RenderableType:
    """Build what a terminal shows."""
    source = result.provenance.get("checkpoint")
    parts: list[RenderableType] = [Text(headline(result), style="bold")]
    parts += [Text(str(source), style="dim")] if source else []
    parts += [Text(f"masks by {result.proposal}")] if result.proposal != "uniform/simple" else []
    parts += [Text(""), _levels_table(result), Text("")]
    parts += [Text(line) for line in findings(result)]
    parts += [Text(""), _layers_table(result)]
    if len(result.layers) > _LAYERS:
        parts.append(Text(f"… and {len(result.layers) - _LAYERS} more layers", style="dim"))
    parts += [Text(f"note: {line}", style="yellow") for line in notes(result)]
    return Group(*parts)


def headline(result: Decomposition) -> str:
    """Say what was measured, and from how many draws."""
    names = (result.unit, *(result.levels[1:] if result.draw is None else ("draw",)))
    draws = " × ".join(f"{n} {name}s" for n, name in zip(result.statistics.counts, names, strict=True))
    what = "cell" if result.draw is None else f"draw of {result.draw.masks} disjoint masks"
    return f"Gradient variance of one {what}, from {draws}"


def findings(result: Decomposition) -> list[str]:
    """Say in words what the numbers mean, one line each."""
    inner = result.levels[-1]
    lines = [f"This study {result.study['ended']}."] if result.study.get("ended") else []
    lines += [f"Signal |μ|², the squared norm of the expected gradient: {result.gradient_norm2}."]
    total = result.noise_scale["total"]
    if total.resolved:
        lines.append(f"Noise is as large as the signal at a batch of {total} {result.unit}s.")
    for name, remedy in _REMEDIES.items():
        if result.headroom[name].resolved:
            lines.append(f"{remedy} can remove at most {percent(result.headroom[name])} of {inner} variance.")
    if (draw := result.draw) is not None:
        lines.append(f"One mask alone: {draw.variance_of_one}; covariance of two of a draw: {draw.covariance}.")
    advice = result.advice
    if (best := advice.masks_per_sentence) is not None:
        costs = f"(a {result.unit} costs {advice.cost_sentence:.2g}, a {inner} {advice.cost_mask:.2g})"
        if best == 1:
            lines.append(f"One {inner} a {result.unit} is best at equal cost {costs}.")
        else:
            lines.append(f"{best} {inner}s a {result.unit} are best at equal cost {costs}:")
            lines.append(f"the variance is {advice.variance_ratio_to_one_mask} times that with one.")
    return lines


def notes(result: Decomposition) -> list[str]:
    """List what a reader should know: the study's notices, and why values are missing."""
    return [*result.notices, *_reasons(result)]


def level_rows(result: Decomposition) -> list[tuple[str, ...]]:
    """List the levels: name, variance, share, noise scale."""
    return [
        (level, str(result.components[level]), percent(result.shares[level]), str(result.noise_scale[level]))
        for level in result.levels
    ]


def layer_rows(result: Decomposition) -> list[tuple[str, ...]]:
    """List the layers, those with most variance first: name, part of the total, share of the innermost level."""
    inner, whole = result.levels[-1], float(result.statistics.values.sum())
    rows: list[tuple[str, ...]] = []
    for layer in by_variance(result):
        part = f"{100 * layer.statistics.values.sum() / whole:.1f} %" if whole > 0 else "-"
        rows.append((layer.name, part, percent(layer.shares[inner])))
    return rows


def by_variance(result: Decomposition) -> list[Layer]:
    """Return the layers, those with most variance first."""
    return sorted(result.layers, key=lambda layer: -float(layer.statistics.values.sum()))


def percent(estimate: Estimate) -> str:
    """Format a share as a percentage with its interval."""
    if estimate.estimate is None:
        return str(estimate)
    if estimate.low is None or estimate.high is None:
        return f"{100 * estimate.estimate:.3g} %"
    return f"{100 * estimate.estimate:.3g} % [{100 * estimate.low:.3g}, {100 * estimate.high:.3g}]"


def plain_table(*columns: str) -> Table:
    """Make a table without lines."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, no_wrap=True)
    return table


def _levels_table(result: Decomposition) -> Table:
    table = plain_table("level", "variance [95 %]", "share", "noise scale")
    for row in level_rows(result):
        table.add_row(*row)
    return table


def _layers_table(result: Decomposition) -> Table:
    """List the layers with most variance: how much, and how much of theirs is the innermost level's."""
    inner = result.levels[-1]
    table = plain_table("layer", "of total", f"{inner} share")
    table.columns[0].no_wrap, table.columns[0].overflow = False, "fold"
    table.columns[1].justify = "right"
    for row in layer_rows(result)[:_LAYERS]:
        table.add_row(*row)
    return table


def _reasons(result: Decomposition) -> list[str]:
    """Explain every value that is not resolved, each reason once."""
    named: dict[str, list[str]] = {}
    values = {f"{level} variance": e for level, e in result.components.items()}
    values |= {f"share of {level}": e for level, e in result.shares.items()}
    values |= {"|mu|^2": result.gradient_norm2}
    values |= {
        f"noise scale of {name}" if name != "total" else "noise scale": e for name, e in result.noise_scale.items()
    }
    asked = {name: e for name, e in result.headroom.items() if e.reason != NOT_ASKED}
    values |= {f"headroom of {_REMEDIES[name].lower()}": e for name, e in asked.items()}
    values |= {"advice": result.advice.variance_ratio_to_one_mask}
    for name, estimate in values.items():
        if estimate.reason:
            named.setdefault(estimate.reason, []).append(name)
    inner = result.levels[-1]
    said = set(named)
    for layer in by_variance(result)[:_LAYERS]:
        reason = layer.shares[inner].reason
        if reason and reason not in said:
            named.setdefault(reason, []).append(f"{inner} share of {layer.name}")
    return [f"{', '.join(names)}: {reason}" for reason, names in named.items()]
