"""The page of runs: its heading, sentences, tables and notes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gradvar.report.runs_text import (
    arm_rows,
    differences_rows,
    losses_caption,
    nats,
    ratio_rows,
    ratios_caption,
    runs_headline,
    runs_notes,
    runs_verdicts,
    time_rows,
)
from gradvar.report.table import Table

if TYPE_CHECKING:
    from gradvar.report.runs import RunComparison


def runs_view(result: RunComparison) -> dict[str, Any]:
    """Say the result in the words of its summary.

    Args:
        result: The runs.

    Returns:
        ``title``, ``lead``, ``tables`` and ``notes`` of the page, and ``details``, the tables below its figures.
    """
    columns = ("arm", "seeds", "steps", "tokens", "seconds", "held-out loss")
    tables = [Table(losses_caption(result).capitalize(), columns, tuple(arm_rows(result)))]
    details = []
    for target in result.targets:
        if len(result.arms) > 1:
            columns = ("arm", "pairs", "got there", "steps", "tokens", "seconds")
            tables.append(Table("; ".join(ratios_caption(result, target)), columns, tuple(ratio_rows(result, target))))
        caption = f"When each run got to {nats(target)} (>: not by its last evaluation)"
        columns = ("run", "arm", "seed", "steps", "tokens", "seconds")
        details.append(Table(caption, columns, tuple(time_rows(result, target))))
    if result.differences:
        arms = tuple(arm.name for arm in result.arms)
        rows = tuple(differences_rows(result))
        details.append(Table("All that differs between the arms' recipes", ("key", *arms), rows))
    return {
        "title": runs_headline(result),
        "lead": runs_verdicts(result),
        "tables": tables,
        "details": details,
        "notes": runs_notes(result),
    }
