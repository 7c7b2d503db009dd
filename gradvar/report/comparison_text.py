"""The summary of a comparison for people: the ceilings, two tables, and what they say."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from gradvar.decomposition.estimate import Estimate
from gradvar.report.text import percent, plain_table, plain_text

if TYPE_CHECKING:
    from gradvar.report.comparison import Comparison, Row

CEILINGS = {
    "importance": "importance sampling of whole masks",
    "position": "weighting single positions",
    "stratification": "disjoint masks",
}


def comparison_summary(result: Comparison) -> str:
    """Render the result as plain text of at most 80 columns."""
    return plain_text(render_comparison(result))


def render_comparison(result: Comparison) -> RenderableType:
    """Build what a terminal shows."""
    source = result.provenance.get("checkpoint")
    parts: list[RenderableType] = [Text(comparison_headline(result), style="bold")]
    parts += [Text(str(source), style="dim")] if source else []
    parts += [Text(""), *(Text(line) for line in ceiling_lines(result)), Text("")]
    parts += [Text(line) for line in errors_caption(result)]
    parts += [_error_table(result), Text("")]
    parts += [Text(gains_caption(result))]
    parts += [_gain_table(result), Text("")]
    parts += [Text(line) for line in verdicts(result)]
    parts += [Text(f"note: {line}", style="yellow") for line in comparison_notes(result)]
    return Group(*parts)


def comparison_headline(result: Comparison) -> str:
    """Say what was compared, and from how many draws."""
    study = result.study
    return f"{len(result.proposals)} ways to choose masks, from {study['sentences']} sentences × {study['masks']} masks"


def comparison_notes(result: Comparison) -> list[str]:
    """List what a reader should know: the study's notices, and why values are missing."""
    return [*result.notices, *_reasons(result)]


def error_rows(result: Comparison) -> list[tuple[str, ...]]:
    """List the proposals: name, variance, squared bias, largest weight."""
    return [
        (
            row.proposal,
            _value(row.variance_ratio),
            "0 by design" if row.declared_unbiased else _hundredths(row.bias2_ratio),
            _short(row.max_weight),
        )
        for row in result.proposals
    ]


def gain_rows(result: Comparison) -> list[tuple[str, ...]]:
    """List the proposals: name, cost, gain of small batches, of the batch asked for, and that by the error."""
    return [
        (
            row.proposal,
            _short(row.cost_ratio),
            *(_value(gain) for gain in (row.batch_gain, row.batch_gain_at_batch, row.efficiency_at_batch)),
        )
        for row in result.proposals
    ]


def errors_caption(result: Comparison) -> list[str]:
    """Head the table of errors."""
    return ["Beside uniform masks: variance and squared bias over their mask variance", *disjoint_note(result)]


def disjoint_note(result: Comparison) -> list[str]:
    """Say what the errors of disjoint masks are over, where there are any."""
    several = any(row.design.startswith("disjoint") for row in result.proposals)
    return ["(disjoint:K: of K masks together, over that of K independent ones)"] if several else []


def gains_caption(result: Comparison) -> str:
    """Head the table of gains."""
    return "Gain at equal cost, of alignment and by mean squared error (over 1: better)"


def ceiling_lines(result: Comparison) -> list[str]:
    """Say how much of the mask variance each remedy can remove at best."""
    lines = [f"Variance of one cell: data {result.variance['data']}, mask {result.variance['mask']}."]
    lines += ["Of the mask variance, at most"]
    lines += [f"  {percent(result.headroom[name]):24} by {what}" for name, what in CEILINGS.items()]
    return lines


def verdicts(result: Comparison) -> list[str]:
    """Say in words what pays."""
    lines = []
    better, by_error = clearly_better(result)
    if better:
        lines.append(
            f"Best at equal cost: {better[0].proposal}, worth {better[0].batch_gain_at_batch} times the batch."
        )
    elif by_error:
        lines.append("No proposal is clearly better aligned than uniform masks at equal cost.")
    else:
        lines.append("No proposal is clearly better than uniform masks at equal cost.")
    if by_error:
        gains = ", ".join(f"{row.proposal} (worth {row.efficiency_at_batch} times the batch)" for row in by_error)
        lines.append(f"By mean squared error alone, alignment not telling: {gains}.")
    small = [row for row in result.proposals if _above_one(row.batch_gain) and row not in better]
    if small:
        lines.append(f"Better for small batches alone: {', '.join(row.proposal for row in small)}.")
    free = [row for row in result.proposals if _scored(row) and _above_one(row.efficiency_without_scoring)]
    if free:
        lines.append(f"Better if scores were free: {', '.join(row.proposal for row in free)}.")
    balance = result.disjoint.balance
    if balance.low is not None and balance.high is not None:
        pays = "pay" if balance.high < 0 else "do not pay" if balance.low > 0 else "may or may not pay"
        best_masks = result.disjoint.masks
        lines.append(f"Disjoint masks {pays}: V_data + Cov = {balance}, best K = {best_masks}.")
    return lines


def clearly_better(result: Comparison) -> tuple[list[Row], list[Row]]:
    """List what beats uniform masks in the batch asked for: by alignment, and by the error alone; the best first."""
    aligned = [row for row in result.proposals if _above_one(row.batch_gain_at_batch)]
    by_error = [row for row in result.proposals if _above_one(row.efficiency_at_batch) and row not in aligned]
    return (
        sorted(aligned, key=lambda row: -(row.batch_gain_at_batch.estimate or 0.0)),
        sorted(by_error, key=lambda row: -(row.efficiency_at_batch.estimate or 0.0)),
    )


def _scored(row: Row) -> bool:
    """Whether scoring is most of what a draw costs more than a uniform one."""
    return (row.cost_ratio.estimate or 1.0) > 1.02 * (row.cost_ratio_without_scoring.estimate or 1.0)


def _above_one(estimate: Estimate) -> bool:
    return estimate.low is not None and estimate.low > 1


def _error_table(result: Comparison) -> RenderableType:
    table = plain_table("proposal", "variance [95 %]", "bias²", "max w")
    for row in error_rows(result):
        table.add_row(*row)
    return table


def _gain_table(result: Comparison) -> RenderableType:
    table = plain_table("proposal", "cost", "small B", f"B = {result.study['batch']} [95 %]", "by MSE")
    for row in result.proposals:
        short = _short(row.cost_ratio), _short(row.batch_gain)
        table.add_row(row.proposal, *short, _value(row.batch_gain_at_batch), _short(row.efficiency_at_batch))
    return table


def _value(estimate: Estimate) -> str:
    """Leave out an interval of no width."""
    exact = estimate.estimate is not None and estimate.low == estimate.estimate == estimate.high
    return _short(estimate) if exact else str(estimate)


def _hundredths(estimate: Estimate) -> str:
    """Write a small part in percent, to the second decimal."""
    if estimate.estimate is None or estimate.low is None or estimate.high is None:
        return percent(estimate)
    return f"{100 * estimate.estimate:.2f} % [{100 * estimate.low:.2f}, {100 * estimate.high:.2f}]"


def _short(estimate: Estimate) -> str:
    if estimate.estimate is None:
        return "-"
    size = abs(estimate.estimate)
    return f"{estimate.estimate:{'.1g' if size < 0.01 else '.0f' if 100 <= size < 1e6 else '.3g'}}"


def _reasons(result: Comparison) -> list[str]:
    """Explain every value of the tables that is not resolved, each reason once."""
    named: dict[str, list[str]] = {}
    for name, estimate in result.headroom.items():
        if estimate.reason:
            named.setdefault(estimate.reason, []).append(f"ceiling of {CEILINGS[name]}")
    for row in result.proposals:
        for reason in dict.fromkeys(e.reason for e in _shown(row) if e.reason):
            named.setdefault(reason, []).append(row.proposal)
    if result.disjoint.balance.reason:
        named.setdefault(result.disjoint.balance.reason, []).append("disjoint masks")
    return [f"{', '.join(names)}: {reason}" for reason, names in named.items()]


def _shown(row: Row) -> tuple[Estimate, ...]:
    return row.variance_ratio, row.bias2_ratio, row.efficiency, row.batch_gain_at_batch
