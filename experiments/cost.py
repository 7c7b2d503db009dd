r"""What a training step of each arm costs beside one of uniform masks.

Pre-stated. In each of five rounds every arm of a regime is trained for 40 steps (10 in *published*), one after the
other, in an order that each round begins one arm later, with nothing else on the machine and one thread. An arm's
seconds are the median of four blocks of 8 steps (2), without the first block, evaluation apart. Its cost is the median
over rounds of the ratio to the uniform arm of the same round; its interval is the range of the five rounds, which holds
the median with 94 %.

The online calibration of a MAPNet, which trusts no score before it has looked 16 times, is made to trust from its first
look on, whatever it finds, so that the drawing that it leads to is timed, too. Whole sets weighted by a MAPNet, which
the calibration mostly leaves unused, are timed as it comes, too (*unused*); the race mixes both by the share of its
runs in which the MAPNet was in use.

Measured anew: a first time, with two rounds side by side and other work beside them, the ratios of the mask rates lay
below those of the runs of the race, and those of a MAPNet that was never in use were taken for those of one that was.

    python experiments/cost.py --train TRAIN --valid VALID --glue GLUE
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from itertools import pairwise
from pathlib import Path

import arms
import ledger
import numpy as np
import regimes
import settings

from gradvar.metrics import read_metrics

ROUNDS = 5
STEPS = {"scratch": 40, "adapted": 40, "published": 10, "mini": 40}
_QUICK_STEPS = 10
_SETS = "mapnet, weighted sets"
UNUSED = f"{_SETS}, unused"


def book(it: settings.Setting) -> ledger.Ledger:
    """Return the numbers of this experiment."""
    return ledger.Ledger(it.figures / "cost.csv")


def ratios(
    it: settings.Setting, regime: str, used: Mapping[str, float] | None = None
) -> dict[str, tuple[float, float, float]]:
    """Return median, lowest and highest ratio over rounds of a step's seconds to the uniform arm's, by arm.

    The range of five rounds holds the median with a confidence of ``1 - 2^-4``, 94 %.

    Args:
        it: The setting.
        regime: The regime.
        used: Share of its steps in which an arm's MAPNet was in use, by arm; 1 where it is not told.
    """
    seconds: dict[str, dict[str, float]] = {}
    for row in book(it).rows():
        if row["regime"] == regime:
            seconds.setdefault(row["round"], {})[row["arm"]] = float(row["step_seconds"])
    share, found = (used or {}).get(_SETS, 1.0), {}
    for of in seconds.values():
        if {_SETS, UNUSED} <= of.keys():
            of[_SETS] = share * of[_SETS] + (1 - share) * of[UNUSED]
    for arm in arms.ARMS[regime]:
        timed = arms.BASELINE if arm == arms.CONTROL else arm
        each = [of[timed] / of[arms.BASELINE] for of in seconds.values() if timed in of]
        if each:
            found[arm] = float(np.median(each)), min(each), max(each)
    return found


def time_round(it: settings.Setting, regime: str, number: int) -> ledger.Found:
    """Time all arms of a regime once."""
    names = [arm for arm in arms.ARMS[regime] if arm != arms.CONTROL]
    names += [UNUSED] * (_SETS in names)
    first, steps = number % len(names), _QUICK_STEPS if it.quick else STEPS[regime]
    short = {
        "training.steps": steps,
        "saving.log_every": steps // 5,
        "saving.every": None,
        "evaluation.every": None,
        "evaluation.sentences": 8,
        "training.schedule": "constant",
    }
    rows = []
    for arm in names[first:] + names[:first]:
        folder = it.work / "runs" / "cost" / f"{regime}-{number}"
        shutil.rmtree(folder, ignore_errors=True)
        changes = arms.ARMS[regime][_SETS if arm == UNUSED else arm]
        with nullcontext() if arm == UNUSED else trust_at_once():
            regimes.trained(it, regimes.recipe(it, regime, 300 + number, {**changes, **short}), folder)
        drawn = {name: line[name] for line in read_metrics(folder) for name in ("exponent", "epsilon") if name in line}
        rows.append({"arm": arm, "step_seconds": step_seconds(folder), **drawn})
        shutil.rmtree(folder)
    return ledger.Found(rows, regimes.texts(it, regime)[0].name)


@contextmanager
def trust_at_once() -> Iterator[None]:
    """Make the online calibration of MAPNets trust scores from its first look on."""
    from gradvar.mapnet import online

    usual = online._FEWEST, online._CERTAINTY
    online._FEWEST, online._CERTAINTY = 1, -1e9  # type: ignore[attr-defined]
    try:
        yield
    finally:
        online._FEWEST, online._CERTAINTY = usual  # type: ignore[attr-defined]


def step_seconds(run: Path) -> float:
    """Return the seconds of a step of a run, evaluation apart: the median between two lines of its log."""
    at = [(line["step"], line["seconds"]) for line in read_metrics(run) if "loss" in line]
    return float(np.median([(after - before) / (end - begin) for (begin, before), (end, after) in pairwise(at)]))


def main() -> None:
    """Measure what is missing, and say what was found."""
    it, drawing = settings.setting(__doc__)
    names = arms.wanted(it)
    if not drawing:
        units = [
            ledger.Unit({"regime": regime, "round": number}, time_round, (it, regime, number))
            for number in range(1 if it.quick else ROUNDS)
            for regime in names
        ]
        ledger.run(book(it), units, min(it.jobs, 1))
    for regime in names:
        for arm, (middle, low, high) in ratios(it, regime).items():
            print(f"{regime}, {arm}: {middle:.3f} [{low:.3f}, {high:.3f}]")


if __name__ == "__main__":
    settings.cleanly(main)
