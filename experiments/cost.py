r"""What a training step of each arm costs beside one of uniform masks.

Pre-stated. In each of five rounds every arm of a regime is trained for 40 steps (10 in *published*), one after the
other, in an order that each round begins one arm later; the seconds of the last 32 (8) count, evaluation apart. The
online calibration of a MAPNet, which trusts no score before it has looked 16 times, is made to trust from its first
look on, whatever it finds, so that the drawing that it leads to is timed, too: for a run in which it abstains the cost
is an upper bound. An arm's cost is the median over rounds of the ratio to the uniform arm of the same round; its
interval is the range of the five rounds, which holds the median with 94 %. One thread each, two rounds side by side, as
runs are.

    python experiments/cost.py --train TRAIN --valid VALID --glue GLUE
"""

from __future__ import annotations

import shutil
from pathlib import Path

import arms
import ledger
import numpy as np
import regimes

from gradvar.metrics import read_metrics

ROUNDS = 5
STEPS = {"scratch": 40, "adapted": 40, "published": 10, "mini": 40}


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
        timed = arms.BASELINE if arm == arms.CONTROL else arm
        each = [of[timed] / of[arms.BASELINE] for of in seconds.values() if timed in of]
        if each:
            found[arm] = float(np.median(each)), min(each), max(each)
    return found


def time_round(it: regimes.Setting, regime: str, number: int) -> ledger.Found:
    """Time all arms of a regime once."""
    trust_at_once()
    names = [arm for arm in arms.ARMS[regime] if arm != arms.CONTROL]
    first = number % len(names)
    steps = STEPS[regime]
    before = steps // 5
    short = {
        "training.steps": steps,
        "saving.log_every": before,
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
        drawn = {name: line[name] for line in read_metrics(folder) for name in ("exponent", "epsilon") if name in line}
        rows.append({"arm": arm, "step_seconds": step_seconds(folder, before), **drawn})
        shutil.rmtree(folder)
    return ledger.Found(rows, regimes.texts(it, regime)[0].name)


def trust_at_once() -> None:
    """Make the online calibration of MAPNets in this process trust scores from its first look on."""
    from gradvar.mapnet import online

    online._FEWEST, online._CERTAINTY = 1, -1e9  # type: ignore[attr-defined]


def step_seconds(run: Path, before: int) -> float:
    """Return the seconds of a step of a run, evaluation apart, without its first steps.

    Args:
        run: Its folder.
        before: Steps that are left out, after which it has written a line.

    Returns:
        The seconds.
    """
    at = {line["step"]: line["seconds"] for line in read_metrics(run) if "loss" in line}
    last = max(at)
    return (at[last] - at[before]) / (last - before)


def main() -> None:
    """Measure what is missing, and say what was found."""
    it, drawing = regimes.setting(__doc__)
    names = arms.wanted(it)
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
