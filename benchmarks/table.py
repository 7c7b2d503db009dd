"""Rows of `engine.py` as a page of markdown."""

from __future__ import annotations

from itertools import groupby
from typing import Any

HEAD = """# What per-cell statistics cost

Written by `{command}`
on {cores} cores ({threads} threads; {processor}, {memory_GiB} GiB) with Python {python}, {versions}.

*ordinary* is the forward and backward of all cells in one batch, *ordinary-1* a sentence's cells at a time, as all
others but *loop* go. A step is taken in the middle of a study; what a study takes once is told apart. All
run with the allocator's settings that gradvar chooses: freed memory below 32 MiB is reused. Ratios are
medians over rounds of the time over *ordinary*'s in the same round, with their range; *processors* is the same of
the processors' time, which other jobs on the machine disturb less. *Error* is the largest relative error of
{checked} cells' gradient norms against plain autograd in float32 (about 1e-6 is rounding; anything near 1e-2 is
wrong). Memory in MiB: *means* has the size of the parameters and outlives the step (gradients, or their sums; one
group); *activations* is what autograd keeps, *scratch* the per-cell gradients held at once; *step* the rise of the
process's peak over what it held before its first step, *means* included, *over ordinary* its ratio.
"""
NAMES = {
    "ordinary": "ordinary",
    "ordinary-1": "ordinary-1",
    "onepass": "**gradvar, onepass**",
    "loop": "autograd loop, norms only",
    "reference": "gradvar, reference (`torch.func`)",
    "hooks": "stitched hooks",
    "opacus": "Opacus",
    "opacus-untied": "Opacus, untied weights",
    "opacus-ghost": "Opacus ghost norms (norms only)",
    "opacus-ghost-untied": "Opacus ghost norms (norms only), untied weights",
    "backpack": "BackPACK",
    "backpack-linear": "BackPACK, Linear layers only",
    "backpack-linear-untied": "BackPACK, Linear layers only, untied weights",
}
COLUMNS = (
    "contender",
    "seconds",
    "ratio",
    "range",
    "processors",
    "error",
    "means",
    "activations",
    "scratch",
    "step",
    "over ordinary",
    "over ordinary-1",
)


def markdown(found: dict[str, Any], checked: int = 4) -> str:
    """Write the page: a table a case."""
    facts = dict(found["machine"], checked=checked)
    facts["versions"] = ", ".join(f"{name} {number}" for name, number in facts["versions"].items() if number)
    page = [HEAD.format(**facts)]

    def case(row: dict[str, Any]) -> tuple[Any, ...]:
        return row["model"], row["sentences"], row["masks"], row["length"]

    for (model, sentences, masks, length), group in groupby(found["rows"], key=case):
        rows = list(group)
        weights = next((r["weights_MiB"] for r in rows if "weights_MiB" in r), 0.0)
        family = "ModernBERT" if model.startswith("modernbert") else "BERT"
        size = model.removeprefix("modernbert-")
        page.append(f"## {family} {size}, {sentences} sentences × {masks} masks × {length} tokens\n")
        once = [f" Start and end of a gradvar study: {r['study_s']:.2f} s." for r in rows if r.get("study_s")]
        page.append(f"Weights: {weights:.0f} MiB.{''.join(once)}\n")
        page.append("| " + " | ".join(COLUMNS) + " |")
        page.append("|---" * len(COLUMNS) + "|")
        step = {r["contender"]: r["step_MiB"] for r in rows if "step_MiB" in r}
        page.extend("| " + " | ".join(cells(r, step)) + " |" for r in rows if "failed" not in r)
        page.append("")
        page.extend(f"- {NAMES[r['contender']]} does not run: `{r['failed']}`" for r in rows if "failed" in r)
        page.append("")
    return "\n".join(page).rstrip() + "\n"


def cells(row: dict[str, Any], step: dict[str, float]) -> list[str]:
    """Write a row's cells."""
    sizes = [row[f"{name}_MiB"] for name in ("means", "activations", "scratch", "step")]
    return [
        NAMES[row["contender"]],
        f"{row['median_s']:.2f}",
        f"{row['ratio']:.2f}",
        f"{row['ratio_low']:.2f}–{row['ratio_high']:.2f}",
        f"{row['cpu_ratio']:.2f}",
        "–" if row["error"] is None else f"{row['error']:.0e}",
        *("–" if size is None else f"{size:.0f}" for size in sizes),
        *(f"{row['step_MiB'] / step[name]:.2f}" if name in step else "–" for name in ("ordinary", "ordinary-1")),
    ]
