"""The tables of docs/results.md and docs/scaling.md, from the numbers in `figures/`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import arms
import base_cost
import confirm
import convergence
import glue
import ledger
import mapnet_quality
import measuring
import numpy as np
import over_training
import proposals
import scaling
import settings
import standing
import theorem
import theorem_figure
import tuning
import what_helps

_NONE = "not measured yet"
_ROUNDING = 1e-9
BASE_STEPS = 1_000_000
"""Of `recipes/mapnet-bert-base.yaml`."""


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a Markdown table, or that there is nothing yet."""
    if not rows:
        return _NONE
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ("---",) * len(head), *rows))


def ends(value: float, low: float, high: float, form: str = ".3g") -> str:
    """Write a number with its interval; what is nothing but rounding as zero."""
    value, low, high = (0.0 if abs(number) < _ROUNDING else number for number in (value, low, high))
    return f"{value:{form}} [{low:{form}}, {high:{form}}]"


def column(row: dict[str, str], name: str, scale: float = 1.0, form: str = ".3g") -> str:
    """Write a number of a CSV with its interval; of one that is not resolved, the bound that there is."""
    value, low, high = (row.get(f"{name}{end}", "") for end in ("", "_low", "_high"))
    if not value:
        return f"over {scale * float(low):{form}}" if low else "not resolved"
    if not low or not high:
        return f"{scale * float(value):{form}}"
    return ends(*(scale * float(x) for x in (value, low, high)), form)


def _in_order(book: ledger.Ledger) -> list[dict[str, str]]:
    """Return the numbers of a study of stages by regime and step, in whatever order they were measured."""
    return [row for some in measuring.by_stage(book.rows()).values() for row in some]


def of_theorem(it: settings.Setting) -> str:
    """Write how predicted and measured variances compare, a row a stage."""
    rows = []
    for part, title in theorem_figure.PARTS.items():
        for stage in theorem_figure.read(theorem.book(it).rows(), part):
            inside = sum(theorem_figure.holds(kind.ratio) for kind in stage.kinds)
            rows.append((stage.name, title, ends(*stage.pooled(), ".3f"), f"{inside} of {len(stage.kinds)}"))
    return table(("stage", "predicted", "measured / predicted, mean over the grid", "intervals with 1 inside"), rows)


def of_training(it: settings.Setting) -> str:
    """Write components, noise scale and ceilings at 15 % masked, a row a stage."""
    rows = []
    for row in _in_order(over_training.book(it)):
        if row["mask_rate"] == str(over_training.RATE):
            parts = [column(row, name) for name in ("data", "mask", "noise_total")]
            shares = [column(row, f"ceiling_{name}", 100) for name in over_training.CEILINGS]
            share = column(row, "share", 100)
            rows.append((row["stage"], f"{float(row['loss']):.2f}", *parts[:2], share, parts[2], *shares))
    head = ("stage", "loss", "`V_data`", "`V_mask`", "mask's share, %", "noise scale")
    return table((*head, "importance, %", "position, %", "stratification, %"), rows)


def of_proposals(it: settings.Setting) -> str:
    """Write the variance under each proposal over that of uniform masks, a column a stage."""
    found: dict[str, dict[str, str]] = {}
    stages: dict[str, None] = {}
    for row in _in_order(proposals.book(it)):
        if row["kind"] == "proposal":
            stages[row["stage"]] = None
            found.setdefault(row["proposal"], {})[row["stage"]] = column(row, "variance_ratio")
    rows = [(f"`{name}`", *(each.get(stage, "") for stage in stages)) for name, each in found.items()]
    return table(("proposal", *stages), rows)


def of_mapnet(it: settings.Setting) -> str:
    """Write what MAPNets are worth, a row a stage and choice."""
    rows = [
        (
            row["stage"], row["target"], row["loss"], f"{float(row['size']):g}×", row["seed"],
            *(column(row, name) for name in ("rank_correlation", "ceiling_share", "captured_share")),
        )
        for row in _in_order(mapnet_quality.book(it))
    ]  # fmt: skip
    head = ("stage", "target", "loss", "width", "seed", "rank correlation", "ceiling share", "captured share")
    return table(head, rows)


def of_race(regime: str) -> Callable[[settings.Setting], str]:
    """Return what writes where the arms of a regime stand."""

    def write(it: settings.Setting) -> str:
        each = convergence.standings(it, regime)
        sooner, better = standing.corrected(each)
        rows = [
            (
                one.arm, str(one.pairs), f"{tuning.tuned(it, regime, one.arm):g}", ends(*one.cost), str(one.steps),
                one.said, f"{p:.2g}", ends(*one.loss, "+.3f"), f"{q:.2g}",
            )
            for one, p, q in zip(each, sooner, better, strict=True)
        ]  # fmt: skip
        head = ("arm", "pairs", "learning rate", "cost of a step", "steps to the target", "seconds to the target", "p")
        return table((*head, "loss at the end", "p"), rows)

    return write


def of_control(regime: str) -> Callable[[settings.Setting], str]:
    """Return what writes where the arms of a regime stand beside its control."""

    def write(it: settings.Setting) -> str:
        each = convergence.standings(it, regime, arms.CONTROL)
        rows = [(one.arm, str(one.pairs), str(one.steps), one.said, ends(*one.loss, "+.3f")) for one in each]
        return table(("arm", "pairs", "steps to the target", "seconds to the target", "loss at the end"), rows)

    return write


def of_confirm(it: settings.Setting) -> str:
    """Write how the winner ends at equal seconds, a row a regime."""
    rows = []
    for one in confirm.compared(it):
        pairs = f"{len(one.differences)} of {confirm.SEEDS[one.regime]}"
        both = (ends(*standing.mean_interval(one.differences, level), "+.3f") for level in (0.95, confirm.TOGETHER))
        rows.append((one.title, one.arm, pairs, ends(*confirm.seconds(it, one.regime)), f"{one.clock:.2f}", *both))
    head = (
        "regime",
        "arm",
        "pairs",
        "seconds of a CPU core over uniform masks'",
        "on the clock where it ran",
        "loss at the end less theirs, nats, 95 %",
        "98.75 %",
    )
    return table(head, rows)


def of_glue(it: settings.Setting) -> str:
    """Write the medians of the tasks, and the differences to the uniform arm."""
    apart = {(row["task"], row["arm"]): row for row in glue.differences(it)}
    rows = []
    for task, title in glue.TASKS.items():
        for arm, own in glue.scores(it, task).items():
            row = apart.get((task, arm))
            told = (
                ("", "")
                if row is None
                else (ends(*(row[x] for x in ("difference", "low", "high")), "+.1f"), f"{row['p']:.2g}")
            )
            rows.append((title, arm, f"{np.median(list(own.values())):.1f}", str(len(own)), *told))
    return table(("task", "arm", "median", "seeds", "less uniform's", "p"), rows)


def of_help(it: settings.Setting) -> str:
    """Write predicted gains and realised speeds."""
    rows = [
        (regime, point.arm, ends(*point.gain), f"{point.bound} {ends(*point.speed)}".lstrip(), f"{point.loss:+.3f}")
        for regime in arms.ARMS
        for point in what_helps.both(it, regime)
    ]
    return table(("regime", "arm", "predicted batch gain over cost", "realised speed", "loss at the end"), rows)


def of_taus(it: settings.Setting) -> str:
    """Write how well gains rank arms, a row a regime."""
    rows = []
    for regime in arms.ARMS:
        points = what_helps.both(it, regime)
        if len(points) >= what_helps.FEWEST:
            told = what_helps.agreement(points)
            taus = (f"{tau:.2f} (p = {p:.2g})" for tau, p in (told[name] for name in ("seconds", "steps", "losses")))
            alone = ", ".join(f"{tau:.2f}" for tau in what_helps.of_stages(it, regime).values())
            rows.append((regime, str(len(points)), *taus, alone))
    head = (
        "regime",
        "arms",
        "seconds",
        "steps, without the cost",
        "losses at the end",
        "seconds, from one stage alone",
    )
    return table(head, rows)


def of_sizes(it: settings.Setting) -> str:
    """Write what was measured of checkpoints of several sizes."""
    rows = []
    for row in sorted(scaling.book(it).rows(), key=lambda row: (float(row["parameters"]), int(row["length"]))):
        size = f"{float(row['parameters']) / 1e6:.1f} M"
        learnt = f"{float(row['unigram']) - float(row['loss']):.2f}"
        parts = [column(row, "share", 100), *(column(row, f"ceiling_{name}", 100) for name in over_training.CEILINGS)]
        rows.append((row["stage"], size, row["length"], learnt, *parts, column(row, "noise_total")))
    head = ("checkpoint", "parameters", "tokens", "nats below unigram", "mask's share, %")
    return table((*head, "importance, %", "position, %", "stratification, %", "noise scale"), rows)


def of_base(it: settings.Setting) -> str:
    """Write what the equations say of BERT-base."""
    rows = []
    for row in scaling.extrapolated(it):
        told = [min(row[name], row["most"]) for name in ("value", "low", "high")]
        ceiling = np.isfinite(row["most"])
        rows.append(
            (
                f"{row['number']}{', %' * bool(ceiling)}", str(row["tokens"]), f"{row['learnt']:g}",
                ends(*(100 * value if ceiling else value for value in told)),
                f"{row['points']} of {row['families']}", str(row["dropped"]),
            )
        )  # fmt: skip
    head = (
        "number",
        "tokens",
        "nats below unigram",
        "extrapolated, 95 %",
        "checkpoints of families",
        "without logarithm",
    )
    return table(head, rows)


EFFECTS = (0.05, 0.1, 0.2)
"""Parts of the steps to the target that an arm may save."""


def of_pairs(it: settings.Setting) -> str:
    """Write how much a ratio of steps varies from pair to pair, and how many pairs an effect takes to be seen."""
    rows = []
    for regime in arms.ARMS:
        spread, count = convergence.spread(it, regime)
        if count:
            pairs = [str(scaling.pairs_needed(spread, float(np.log(1 - effect)))) for effect in EFFECTS]
            rows.append((regime, str(count), f"{100 * spread:.1f}", *pairs))
    head = ("regime", "arms", "standard deviation of one pair, %")
    return table((*head, *(f"pairs to see {effect:.0%} fewer steps" for effect in EFFECTS)), rows)


def of_hours(it: settings.Setting) -> str:
    """Write what a step of BERT-base costs on one GPU, and what that makes of a run of its recipe."""
    rows = [
        (
            f"`{row['proposal']}`", row["length"], f"{float(row['step_seconds']):.3f}",
            f"{float(row['tokens_per_second']):,.0f}", f"{float(row['peak_gib']):.1f}",
            f"{float(row['step_seconds']) * BASE_STEPS / 3600:.0f}",
        )
        for row in base_cost.book(it).rows()
    ]  # fmt: skip
    head = ("proposal", "tokens a sequence", "seconds a step", "tokens a second", "peak GiB")
    return table((*head, "GPU-hours for 1 M steps"), rows)


PAGES: dict[str, dict[str, Callable[[settings.Setting], Any]]] = {
    "results.md": {
        "theorem": of_theorem,
        "training": of_training,
        "proposals": of_proposals,
        "mapnet": of_mapnet,
        **{f"race-{regime}": of_race(regime) for regime in arms.ARMS},
        "control-scratch": of_control("scratch"),
        "confirm": of_confirm,
        "glue": of_glue,
        "taus": of_taus,
        "help": of_help,
    },
    "scaling.md": {"sizes": of_sizes, "base": of_base, "pairs": of_pairs, "hours": of_hours},
}
"""What is written between the markers of a page, by page and marker."""
