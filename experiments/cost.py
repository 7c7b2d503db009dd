r"""What a training step of each arm costs beside one of uniform masks.

Pre-stated. In each of five rounds every arm of a regime is trained for 16 steps, one after the other, in an order that
each round begins one arm later; the seconds of the last 12 steps count, evaluation apart. An arm's cost is the median
over rounds of the ratio to the uniform arm of the same round; its interval is the range of the five rounds, which holds
the median with 94 %. One thread each.

    python experiments/cost.py --train TRAIN --valid VALID --glue GLUE
"""

from __future__ import annotations

import shutil

import arms
import ledger
import numpy as np
import regimes

from gradvar.metrics import read_metrics

ROUNDS = 5
STEPS, BEFORE = 16, 4


def book(it: regimes.Setting) -> ledger.Ledger:
    """Return the numbers of this experiment."""
    return ledger.Ledger(it.figures / "cost.csv")


def ratios(it: regimes.Setting, regime: str) -> dict[str, tuple[float, float, float]]:
    """Return median, lowest and highest ratio over rounds of a step's seconds to the uniform arm's, by arm.

    The range of five rounds holds the median with a confidence of ``1 - 2^-4``, 94 %.
    """
    seconds: dict[str, dict[str, float]] = {}
    for row in book(it).rows():
        if row["regime"] == regime:
            seconds.setdefault(row["round"], {})[row["arm"]] = float(row["step_seconds"])
    found = {}
    for arm in arms.ARMS[regime]:
        each = [of[arm] / of[arms.BASELINE] for of in seconds.values() if arm in of]
        if each:
            found[arm] = float(np.median(each)), min(each), max(each)
    return found


def time_round(it: regimes.Setting, regime: str, number: int) -> ledger.Found:
    """Time all arms of a regime once."""
    names = list(arms.ARMS[regime])
    first = number % len(names)
    short = {
        "training.steps": STEPS,
        "saving.log_every": BEFORE,
        "saving.every": None,
        "evaluation.every": None,
        "evaluation.sentences": 8,
        "training.schedule": "constant",
    }
    rows = []
    for arm in names[first:] + names[:first]:
        folder = it.work / "runs" / "cost" / f"{regime}-{number}"
        shutil.rmtree(folder, ignore_errors=True)
        regimes.trained(it, regimes.recipe(it, regime, 300 + number, {**arms.ARMS[regime][arm], **short}), folder)
        at = {line["step"]: line["seconds"] for line in read_metrics(folder) if "loss" in line}
        last = max(at)
        rows.append({"arm": arm, "step_seconds": (at[last] - at[BEFORE]) / (last - BEFORE)})
        shutil.rmtree(folder)
    return ledger.Found(rows, regimes.texts(it, regime)[0].name)


def main() -> None:
    """Measure what is missing, and say what was found."""
    it, drawing = regimes.setting(__doc__)
    names = [regime for regime in arms.ARMS if not it.only or regime in it.only]
    if not drawing:
        units = [
            ledger.Unit({"regime": regime, "round": number}, time_round, (it, regime, number))
            for regime in names
            for number in range(1 if it.quick else ROUNDS)
        ]
        ledger.run(book(it), units, it.jobs)
    for regime in names:
        for arm, (middle, low, high) in ratios(it, regime).items():
            print(f"{regime}, {arm}: {middle:.3f} [{low:.3f}, {high:.3f}]")


if __name__ == "__main__":
    regimes.cleanly(main)
