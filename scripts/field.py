r"""Write the tables of docs/field.md from the reports of `gradvar compare` and `gradvar fit-mapnet`.

Pre-stated. Compared, on the same 48 held-out sentences of English Wikipedia with 16 masks each at 15 %: the default
field of proposals and those of a fitted MAPNet, by variance and squared bias over uniform masks' mask variance,
effective sample size and largest weight, cost, and batch gain at equal cost for small batches and for 256 sentences;
and the three ceilings. Of the MAPNet: ceiling share and captured share, predicted from the true gradient norms of 48
sentences of TRAIN that it was not fitted to, and the ceiling share as measured by the comparison. One seed (0) each;
intervals (95 %) are over sentences. Twice: for the embedded checkpoint, a ModernBERT of 4 layers, and for a BERT of 2
layers that has learnt less: the run "long" of scripts/training_page.py. TRAIN and VALID are English Wikipedia; the
encoders were trained on TRAIN.

    gradvar fit-mapnet --checkpoint CHECKPOINT --data TRAIN --sentences 65536 --epochs 1 --held-out 48 --contexts 8 \
        --out fit-NAME
    gradvar compare --checkpoint CHECKPOINT --data VALID --sentences 48 --masks 16 --contexts 8 \
        --mapnet-dir fit-NAME --out compare-NAME
    python scripts/field.py --reports . --out docs/field.md        # of NAMEs embedded and bert
"""

import argparse
import json
from pathlib import Path
from typing import Any

from pages import fill

from gradvar.decomposition.estimate import Estimate

NAMES = ("embedded", "bert")
CEILINGS = ("importance", "position", "stratification")


def value(found: dict[str, Any], scale: float = 1.0, digits: int = 3) -> str:
    """Format a number of a report with its interval."""
    estimate = Estimate(found["estimate"], found.get("low"), found.get("high"), found.get("reason"))
    if estimate.estimate is None:
        return "not resolved"
    ends = [estimate.low, estimate.high]
    number = f"{scale * estimate.estimate:.{digits}g}"
    if None in ends:
        return f"{number} (no interval)"
    if ends == [estimate.estimate] * 2:
        return number
    return f"{number} [{', '.join(f'{scale * (end or 0.0):.{digits}g}' for end in ends)}]"


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Write a Markdown table."""
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def ceilings(reports: dict[str, Any]) -> str:
    """Write the variances and the ceilings of both checkpoints, in percent of the mask variance."""
    rows = []
    for name in NAMES:
        found = reports[f"compare-{name}"]
        parts = [value(found["variance"][level]) for level in ("data", "mask")]
        shares = [value(found["headroom"][ceiling], 100) for ceiling in CEILINGS]
        balance = f"{value(found['disjoint']['balance'])}, {found['disjoint']['masks_per_sentence']}"
        rows.append((name, *parts, *shares, balance))
    head = ("checkpoint", "`V_data`", "`V_mask`", "importance, %", "position, %", "stratification, %")
    return table((*head, "`V_data + Cov`, best K"), rows)


def field(report: dict[str, Any]) -> str:
    """Write all proposals of one checkpoint."""
    rows = []
    for row in report["proposals"]:
        bias = "0 by design" if row["declared_unbiased"] else value(row["bias2_ratio"])
        cost, free = (f"{row[name]['estimate']:.3g}" for name in ("cost_ratio", "cost_ratio_without_scoring"))
        aligned = row["alignment"]
        shown = (row["efficiency"], row["efficiency_at_batch"], aligned["batch_gain"], aligned["batch_gain_at_batch"])
        gains = [value(x) for x in shown]
        weights = [f"{row[name]['estimate']:.3g}" for name in ("ess", "max_weight")]
        rows.append((f"`{row['proposal']}`", value(row["variance_ratio"]), bias, *weights, f"{cost} ({free})", *gains))
    head = ("proposal", "variance", "bias²", "ESS", "largest weight", "cost (scores free)")
    batch = report["study"]["batch"]
    efficiency, gain = ("efficiency, B = 1", f"efficiency, B = {batch}"), ("gain, small B", f"gain, B = {batch}")
    return table((*head, *efficiency, *gain), rows)


def mapnet(reports: dict[str, Any]) -> str:
    """Write what the MAPNets are worth."""
    rows = []
    for name in NAMES:
        fit, compared = reports[f"fit-{name}"], reports[f"compare-{name}"]
        mixed = next(row for row in compared["proposals"] if row["proposal"] == "mapnet/pps~0.1")
        top = compared["headroom"]["position"]["estimate"]
        left = mixed["variance_ratio"]
        ends = {"estimate": left["estimate"], "low": left["high"], "high": left["low"]}
        measured = {end: (1 - x) / top for end, x in ends.items()}
        found = [fit[part] for part in ("rank_correlation", "ceiling_share", "captured_share")]
        calibrated = f"`{fit['proposal']}`", value(fit["calibrated_ceiling_share"])
        others = ", ".join(f"{other} {value(share)}" for other, share in fit["others"].items())
        rows.append((name, *(value(part) for part in found), *calibrated, value(measured), others))
    head = ("checkpoint", "rank correlation", "ceiling share", "captured share", "calibrated proposal")
    return table((*head, "its ceiling share", "measured", "ceiling share of other scores"), rows)


def curve(reports: dict[str, Any]) -> str:
    """Write the learning curves."""
    curves = {name: {p["sentences"]: p["ceiling_share"] for p in reports[f"fit-{name}"]["curve"]} for name in NAMES}
    seen = sorted(set(curves[NAMES[0]]) & set(curves[NAMES[1]]))
    rows = [(f"{n:,}", *(value(curves[name][n], digits=2) for name in NAMES)) for n in seen if n]
    return table(("sentences seen", *NAMES), rows)


def main() -> None:
    """Replace what stands between the markers of the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reports", type=Path, required=True, help="folder of the reports")
    parser.add_argument("--out", type=Path, required=True, help="the page, with markers")
    args = parser.parse_args()
    reports = {
        f"{kind}-{name}": json.loads((args.reports / f"{kind}-{name}" / file).read_text())
        for kind, file in (("compare", "comparison.json"), ("fit", "fit.json"))
        for name in NAMES
    }
    tables = {"ceilings": ceilings(reports), "mapnet": mapnet(reports), "curve": curve(reports)}
    tables |= {f"field-{name}": field(reports[f"compare-{name}"]) for name in NAMES}
    fill(args.out, tables)


if __name__ == "__main__":
    main()
