r"""What the ends of the race are worth on tasks.

Pre-stated. The end checkpoints of the race of `adapted`, of the arms below and of the seeds 0 to 4 (and the checkpoint
that they all began from), are fine-tuned once each (seed 0, the same first weights of the head for all) on CoLA and on
the first 8,000 training examples of SST-2, whose sentences are of the kind that the models were adapted to. Shown:
median over seeds of the official metric (Matthews' correlation, accuracy; times 100), and the mean difference to the
uniform arm over pairs of one seed with Student's interval (95 %); Holm's correction over arms and tasks.

What it can show: whether an arm that ends at another held-out loss is worth more on a task. What it cannot: differences
below a point or two. SST-2 has 872 held-out examples, so that one standard error of an accuracy of 80 % is 1.4 points;
pairs share the examples, which takes part of that away. A model of 1.7 M parameters says little of one of 110 M.

Changed since: the ends of the race's own runs were not kept, so each is trained once more, by the recipe and seed of
the race, before it is fine-tuned. All arms of a seed are on one kind of processor (the provenance says which); of seed
2, two that had run on a GPU were removed, and ran again on the CPU with the others of that seed.

    python experiments/glue.py --train TRAIN --valid VALID --glue GLUE
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import arms
import drawing
import ledger
import measuring
import numpy as np
import regimes
import settings
import standing
import tuning

from gradvar import checkpoints

REGIME = "adapted"
BEFORE = "before"
SHOWN = (BEFORE, "uniform", "mapnet, weighted positions", "mapnet, unweighted", "epoch-stratified", "30 % masked")
TASKS = {"cola": "CoLA", "sst2": "SST-2"}
EXAMPLES = 8000


def book(it: settings.Setting) -> ledger.Ledger:
    """Return the numbers of this experiment."""
    return ledger.Ledger(it.figures / "glue.csv")


def tasks(it: settings.Setting) -> Path:
    """Return a folder of the tasks' files, with the first training examples of each; of made-up ones with `--quick`."""
    folder = it.work / "glue"
    for place in (folder / f"{name}.{part}.tsv" for name in TASKS.values() for part in ("train", "dev")):
        if not place.exists():
            lines = _made_up(it, place.name) if it.quick else regimes.lines_of(it.glue / place.name)
            regimes.write(place, "".join(lines[: EXAMPLES + 1] if ".train." in place.name else lines))
    return folder


def _made_up(it: settings.Setting, name: str) -> list[str]:
    """Return examples of the form of a task, whose label says whether a line is long."""
    lines = [line.replace("\t", " ") for line in it.train.read_text(encoding="utf-8").splitlines() if line][:64]
    if name.startswith("CoLA"):
        return ["source\tlabel\tmark\tsentence\n", *(f"x\t{int(len(line) > 200)}\t\t{line}\n" for line in lines)]
    return ["sentence\tlabel\n", *(f"{line}\t{int(len(line) > 200)}\n" for line in lines)]


def tune(it: settings.Setting, arm: str, seed: int, data: Path) -> ledger.Found:
    """Fine-tune one end of the race on all tasks.

    Args:
        it: The setting.
        arm: Its arm, or `BEFORE` for the checkpoint before the race.
        seed: Of its run.
        data: Folder of the tasks' files.

    Returns:
        A row a task.
    """
    from gradvar import FinetuneSettings, finetune

    if arm == BEFORE:
        folder = Path(regimes.recipe(it, REGIME, seed).model.source)
    else:
        values = {"training.learning_rate": tuning.tuned(it, REGIME, arm)}
        folder = arms.folder(it, REGIME, arm, seed, values)
        regimes.trained(it, arms.recipe(it, REGIME, arm, seed, values), folder)  # where the race ran elsewhere
    settings = FinetuneSettings(epochs=1 if it.quick else 3, learning_rate=3e-4)
    found = {task: finetune(folder, task, data, seeds=1, settings=settings, cpu=it.device == "cpu") for task in TASKS}
    return ledger.Found(
        [{"task": task, "score": each.tasks[0].seeds[0].score} for task, each in found.items()],
        " and ".join(TASKS.values()),
        regimes.sha256_of(checkpoints.last_whole(folder) or folder),
    )


def scores(it: settings.Setting, task: str) -> dict[str, dict[int, float]]:
    """Return the scores of a task by arm and seed."""
    found: dict[str, dict[int, float]] = {}
    for row in book(it).rows():
        if row["task"] == task:
            found.setdefault(row["arm"], {})[int(row["seed"])] = float(row["score"])
    return {arm: found[arm] for arm in SHOWN if arm in found}


def differences(it: settings.Setting) -> list[dict[str, Any]]:
    """Return the mean differences to the uniform arm by task and arm, with Student's intervals and Holm's p-values."""
    rows: list[dict[str, Any]] = []
    for task in TASKS:
        found = scores(it, task)
        uniform = found.pop(arms.BASELINE, {})
        for arm, own in found.items():
            pairs = np.array([own[seed] - uniform[seed] for seed in own if seed in uniform])
            if arm != BEFORE and len(pairs) > 1:
                ends = dict(zip(("difference", "low", "high"), standing.mean_interval(pairs), strict=True))
                rows.append({"task": task, "arm": arm, **ends, "p": standing.p_of(pairs), "pairs": len(pairs)})
    family = len(TASKS) * sum(arm not in (BEFORE, arms.BASELINE) for arm in SHOWN)
    for row, p in zip(rows, standing.holm([row["p"] for row in rows], family), strict=True):
        row["p"] = p
    return rows


def _clear(it: settings.Setting) -> list[dict[str, Any]]:
    return [row for row in differences(it) if row["p"] < standing.LEVEL]


def draw(it: settings.Setting) -> None:
    """Draw all scores, with their medians, a panel a task."""
    found = {task: each for task in TASKS if (each := scores(it, task))}
    if not found:
        return
    clear = _clear(it)
    made, axes = drawing.figure(len(found), 1, 10.5, 3.2, squeeze=False, sharey=True)
    for axis, (task, each) in zip(axes[0], found.items(), strict=True):
        for y, own in enumerate(each.values()):
            axis.plot(list(own.values()), [y] * len(own), "o", color=drawing.COLOURS[0], markersize=4, alpha=0.6)
            axis.plot(np.median(list(own.values())), y, "|", color=drawing.COLOURS[1], markersize=14, markeredgewidth=2)
        axis.set_yticks(range(len(each)), list(each))
        told = [row["arm"] for row in clear if row["task"] == task]
        says = f"differs from uniform: {', '.join(map(str, told))}" if told else "no arm differs from uniform"
        metric = "Matthews' correlation" if task == "cola" else "accuracy"
        drawing.finish(axis, f"{TASKS[task]}: {says}", f"{metric} × 100, a dot a seed, with the median", "")
    axes[0][0].set_ylim(len(SHOWN) - 0.5, -0.5)
    drawing.save(made, it.figures / "glue")


def finding(it: settings.Setting) -> str:
    """Say what the picture shows."""
    told = [
        f"{row['arm']} on {TASKS[str(row['task'])]} {row['difference']:+.1f} [{row['low']:+.1f}, {row['high']:+.1f}]"
        for row in _clear(it)
    ]
    pairs = measuring.span([row["pairs"] for row in differences(it)] or [0], 0)
    named = f"{'; '.join(told)} points" if told else "none"
    return f"Arms that are worth another score than uniform masks, over {pairs} pairs: {named}."


def main() -> None:
    """Fine-tune what is missing, and draw."""
    it, drawing_alone = settings.setting(__doc__)
    if not drawing_alone:
        tuning.rates(it, REGIME, [arm for arm in SHOWN if arm != BEFORE])
        data, seeds = tasks(it), range(min(it.seeds or 5, 5))
        units = [
            ledger.Unit({"arm": arm, "seed": seed}, tune, (it, arm, seed, data))
            for seed in seeds
            for arm in SHOWN
            if arm != BEFORE or seed == 0
        ]
        ledger.run(book(it), units, it.jobs)
    draw(it)
    for row in differences(it):
        ends = f"[{row['low']:+.2f}, {row['high']:+.2f}]"
        print(f"{row['task']}, {row['arm']}: {row['difference']:+.2f} {ends}, p {row['p']:.2f}")


if __name__ == "__main__":
    settings.cleanly(main)
