r"""Draw the curves of docs/training.md, and write its table of MAPNets, from the folders of runs.

Pre-stated. One run of recipes/demo.yaml (seed 0); three each of recipes/mapnet-modernbert-tiny.yaml and
recipes/mapnet-bert-tiny.yaml (seeds 0, 1, 2), whose MAPNets learn from true norms, and one where it learns from the
logits; one that goes on from the first BERT by recipes/mapnet-bert-tiny-long.yaml, and one of BERT that begins with
sequences of 128 tokens, under uniform masks; all on English Wikipedia. Shown: held-out loss under fixed uniform masks
against tokens, beside the unigram cross-entropy of the same held-out tokens (counts of the training text plus one); the
components of the gradient's variance at the looks of the demo's run; and of the MAPNets, at the end of each run, rank
correlation with true gradient norms, that of the placebo and of the target that they learn from, and ceiling share,
with intervals (95 %) over held-out sentences (64; 16 of the demo).

    gradvar train recipes/demo.yaml --data TRAIN data.valid=VALID --out RUNS/demo
    gradvar train recipes/mapnet-modernbert-tiny.yaml --data TRAIN data.valid=VALID --seed S \
        watch.every=1250 watch.sentences=64 watch.contexts=4 --out RUNS/modernbert-S
    gradvar train recipes/mapnet-bert-tiny.yaml --data TRAIN data.valid=VALID --seed S \
        watch.every=1250 watch.sentences=64 watch.contexts=4 --out RUNS/bert-S
    gradvar train recipes/mapnet-bert-tiny.yaml --data TRAIN data.valid=VALID mapnet.target=logit mapnet.every=1 \
        watch.every=1250 watch.sentences=64 watch.contexts=4 --out RUNS/bert-free
    gradvar train recipes/mapnet-bert-tiny-long.yaml --data TRAIN data.valid=VALID model.source=RUNS/bert-0 \
        --out RUNS/long
    gradvar train recipes/mapnet-bert-tiny.yaml --data TRAIN data.valid=VALID --proposal uniform/simple \
        data.max_length=128 training.batch=32 --out RUNS/plateau
    python scripts/training_page.py --runs RUNS --out docs/training.md --figure docs/training.png
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from pages import fill

from gradvar.metrics import read_metrics
from gradvar.report.figures import COLOURS, GREY
from gradvar.training.data import prepare
from gradvar.training.folder import RECIPE
from gradvar.training.reading import read_recipe
from gradvar.training.recipe import Recipe
from gradvar.training.run import default_cache

SEEDS = (0, 1, 2)
TINY = {
    f"{name}-{seed}": f"{title}, seed {seed}"
    for name, title in (("modernbert", "ModernBERT 2×128"), ("bert", "BERT 2×128"))
    for seed in SEEDS
}
JUDGED = TINY | {"bert-free": "BERT 2×128, by logits", "demo": "ModernBERT 4×128 (demo)"}
SHOWN = {
    "demo": "ModernBERT 4×128 (demo)",
    "modernbert-0": "ModernBERT 2×128, 64 tokens",
    "bert-0": "BERT 2×128, 16 tokens",
    "long": "the same going on with 128 tokens",
    "plateau": "BERT 2×128, 128 tokens from the start",
}


def unigram(recipe: Recipe, cache: Path) -> float:
    """Cross-entropy of held-out tokens by the frequencies of the training text, in nats."""
    prepared = prepare(recipe.data, cache, recipe.model.source)
    special = list(prepared.tokenizer.all_special_ids)
    parts = [
        split.data.column("input_ids").combine_chunks().flatten().to_numpy()
        for split in (prepared.train, prepared.valid)
    ]
    train, valid = (part[~np.isin(part, special)] for part in parts)
    counts = np.bincount(train, minlength=len(prepared.tokenizer)) + 1.0
    return float(-np.log(counts / counts.sum())[valid].mean())


def curve(axes: Any, runs: dict[str, tuple[list[dict[str, Any]], float]]) -> None:
    """Held-out loss against tokens, a line a run."""
    for (name, (lines, floor)), colour in zip(runs.items(), (*COLOURS, GREY), strict=True):
        points = np.array([(x["tokens"] / 1e6, x["eval_loss"], x["eval_loss_se"]) for x in lines if "eval_loss" in x])
        axes.plot(points[:, 0], points[:, 1], color=colour, label=name)
        low, high = (points[:, 1] + sign * 1.96 * points[:, 2] for sign in (-1, 1))
        axes.fill_between(points[:, 0], low, high, color=colour, alpha=0.2, linewidth=0)
        axes.axhline(floor, color=colour, linestyle=":", linewidth=1)
    axes.set_xlabel("tokens shown, millions")
    axes.set_ylabel("held-out loss, nats a target (95 %)")
    axes.legend(frameon=False, fontsize=8)
    axes.grid(alpha=0.3)
    axes.set_title("Held-out loss (dotted: unigram cross-entropy)", fontsize=10, loc="left")


def components(axes: Any, lines: list[dict[str, Any]]) -> None:
    """Variance of one cell by level, at the looks of a run."""
    looks = [x for x in lines if "variance/mask" in x]
    for level, colour in (("mask", COLOURS[0]), ("data", COLOURS[1])):
        found = np.array([[x[f"variance/{level}{end}"] for end in ("", "_low", "_high")] for x in looks])
        steps = [x["step"] for x in looks]
        errors = np.abs(found[:, 1:] - found[:, :1]).T
        axes.errorbar(steps, found[:, 0], errors, color=colour, marker="o", markersize=4, capsize=3, label=level)
    axes.set_yscale("log")
    axes.set_xlabel("step")
    axes.set_ylabel("variance of one cell's gradient (95 %)")
    axes.legend(frameon=False, fontsize=8)
    axes.grid(alpha=0.3)
    axes.set_title("Gradient variance through the demo's run", fontsize=10, loc="left")


def interval(line: dict[str, Any], name: str) -> str:
    """Write a number of a look with its interval."""
    return f"{line[name]:.3f} [{line[f'{name}_low']:.3f}, {line[f'{name}_high']:.3f}]"


def mapnets(folders: dict[str, list[dict[str, Any]]]) -> str:
    """Write the table of the MAPNets."""
    names = ("rank_correlation", "placebo_rank_correlation", "target_rank_correlation", "ceiling_share")
    rows = []
    for name, title in JUDGED.items():
        lines = folders[name]
        look = [x for x in lines if f"mapnet/{names[0]}" in x][-1]
        used = [x["exponent"] for x in lines if "exponent" in x]
        cells = [interval(look, f"mapnet/{each}") if f"mapnet/{each}" in look else "" for each in names]
        rows.append((title, *cells, f"{used[-1]:g}", f"{np.mean([x > 0 for x in used]):.0%}"))
    head = ("run", "rank correlation", "placebo's", "its target's", "ceiling share", "exponent at the end", "in use")
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ("---",) * len(head), *rows))


def losses(folders: dict[str, list[dict[str, Any]]], floors: dict[str, float]) -> str:
    """Write the table of the runs' ends."""
    rows = [("run", "tokens", "training", "held-out loss", "unigram"), ("---",) * 5]
    for name, title in (SHOWN | JUDGED).items():
        end = [x for x in folders[name] if "eval_loss" in x][-1]
        loss = f"{end['eval_loss']:.3f} ± {end['eval_loss_se']:.3f}"
        times = (f"{end['tokens'] / 1e6:.1f} M", f"{end['seconds'] / 60:.0f} min")
        rows.append((SHOWN.get(name, title), *times, loss, f"{floors[name]:.2f}"))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> None:
    """Draw, and replace what stands between the markers of the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--figure", type=Path, required=True)
    parser.add_argument("--cache", type=Path, default=default_cache())
    args = parser.parse_args()
    names = (*SHOWN, *TINY, "bert-free")
    folders = {name: read_metrics(args.runs / name) for name in names}
    floors = {name: unigram(read_recipe(args.runs / name / RECIPE), args.cache) for name in names}
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    curve(left, {title: (folders[name], floors[name]) for name, title in SHOWN.items()})
    components(right, folders["demo"])
    figure.savefig(args.figure, dpi=150)
    fill(args.out, {"mapnets": mapnets(folders), "losses": losses(folders, floors)})


if __name__ == "__main__":
    main()
