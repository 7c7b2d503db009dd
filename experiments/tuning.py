r"""Learning rates of all arms, with equal effort, and the target losses of the race.

Pre-stated. Every arm of every regime (`arms.py`) is trained with each learning rate of its regime's grid, with seed
200, for the steps of the race (half of them but in *adapted*). The grid goes by a factor of two; in *scratch* and
*mini* by its root, as the first runs of *scratch*, of three arms by a factor of two, showed that half a nat hangs on it
there (they are in the CSV, and count). The rate with the lowest held-out loss at the end is the arm's; where it is the
lowest or the highest of the grid, and nothing beyond it was measured, the grid of that arm goes on by one more rate on
that side, once. The control of the race has the second best rate of uniform masks. The target loss of a regime is the
mean, over two runs of its uniform arm with the tuned rate and seeds 200 and 201, of the held-out loss at three fifths
of the steps, on a straight line between evaluations. None of these seeds is used again.

    python experiments/tuning.py --train TRAIN --valid VALID --glue GLUE
"""

from __future__ import annotations

from collections.abc import Iterable

import arms
import ledger
import numpy as np
import regimes
import settings

from gradvar import GradvarError

GRIDS = {
    "scratch": (1.06e-3, 1.5e-3, 2.12e-3),
    "adapted": (5e-4, 1e-3, 2e-3),
    "published": (5e-5, 1e-4, 2e-4),
    "mini": (7.5e-4, 1.06e-3, 1.5e-3),
}
PART = {"scratch": 0.5, "adapted": 1.0, "published": 0.5, "mini": 0.5}
SEED = 200
TARGET_SEEDS = (200, 201)
AT = 0.6
"""Part of the steps whose loss is the target: an arm may take two thirds longer than uniform masks and get there."""


def book(it: settings.Setting) -> ledger.Ledger:
    """Return the numbers of this experiment."""
    return ledger.Ledger(it.figures / "tuning.csv")


def tuned(it: settings.Setting, regime: str, arm: str) -> float | None:
    """Return the learning rate of an arm, of the control the second best of uniform masks; None where not tuned yet."""
    ends = _ends(it, regime, arms.BASELINE if arm == arms.CONTROL else arm)
    grid = _grid(it, regime)
    if any(rate not in ends for rate in grid) or _beyond(ends, grid) is not None:
        return None
    order = sorted(ends, key=lambda rate: ends[rate])
    return order[min(1, len(order) - 1) if arm == arms.CONTROL else 0]


def rates(it: settings.Setting, regime: str, names: Iterable[str]) -> dict[str, float]:
    """Return the learning rates of some arms of a regime.

    Raises:
        GradvarError: If one is not tuned yet.
    """
    found = {arm: tuned(it, regime, arm) for arm in names}
    if missing := [arm for arm, rate in found.items() if rate is None]:
        raise GradvarError(f"{regime}: no learning rate of {'; '.join(missing)}; run experiments/tuning.py first")
    return {arm: rate for arm, rate in found.items() if rate is not None}


def target(it: settings.Setting, regime: str) -> float | None:
    """Return the target loss of a regime; None where it is not known yet."""
    curves, rate = _curves(it, regime, arms.BASELINE, "target"), tuned(it, regime, arms.BASELINE)
    if rate is None or any((rate, seed) not in curves for seed in TARGET_SEEDS):
        return None
    found = []
    for rows in (curves[rate, seed] for seed in TARGET_SEEDS):
        steps, losses = (np.array([float(row[name]) for row in rows]) for name in ("step", "loss"))
        found.append(float(np.interp(AT * steps[-1], steps, losses)))
    return float(np.mean(found))


def _curves(it: settings.Setting, regime: str, arm: str, what: str) -> dict[tuple[float, int], list[dict[str, str]]]:
    found: dict[tuple[float, int], list[dict[str, str]]] = {}
    for row in book(it).rows():
        if (row["regime"], row["arm"], row["what"]) == (regime, arm, what):
            found.setdefault((float(row["learning_rate"]), int(row["seed"])), []).append(row)
    return found


def _ends(it: settings.Setting, regime: str, arm: str) -> dict[float, float]:
    """Return the last loss by learning rate; that of a run that diverged is infinite."""
    curves = _curves(it, regime, arm, "rate")
    ends = {rate: float(rows[-1]["loss"] or "inf") for (rate, _), rows in curves.items()}
    return {rate: end if np.isfinite(end) else np.inf for rate, end in ends.items()}


def _grid(it: settings.Setting, regime: str) -> tuple[float, ...]:
    return GRIDS[regime][: 1 if it.quick else None]


def _beyond(ends: dict[float, float], grid: tuple[float, ...]) -> float | None:
    """Return the rate by which a grid goes on; None where the best is inside of what was measured, or beyond it."""
    best = min(ends, key=lambda rate: ends[rate])
    if len(grid) < 2 or best not in (grid[0], grid[-1]) or min(ends) < best < max(ends):
        return None
    return best * grid[0] / grid[1] if best == grid[0] else best * grid[-1] / grid[-2]


def _unit(it: settings.Setting, regime: str, arm: str, rate: float, what: str, seed: int) -> ledger.Unit:
    steps = regimes.recipe(it, regime, seed).training.steps
    part = PART[regime] if what == "rate" else 1.0
    key = {"regime": regime, "arm": arm, "what": what, "learning_rate": rate, "seed": seed}
    values = {"training.learning_rate": rate, "training.steps": max(2, round(part * steps))}
    return ledger.Unit(key, arms.race, (it, regime, arm, seed, values))


def measure(it: settings.Setting, names: list[str]) -> None:
    """Tune all arms of some regimes, and find their targets."""
    every = [(regime, arm) for regime in names for arm in arms.ARMS[regime] if arm != arms.CONTROL]
    grid = [_unit(it, regime, arm, rate, "rate", SEED) for regime, arm in every for rate in _grid(it, regime)]
    ledger.run(book(it), grid, it.jobs)
    beyond = {pair: _beyond(_ends(it, *pair), _grid(it, pair[0])) for pair in every}
    more = [_unit(it, *arm, rate, "rate", SEED) for arm, rate in beyond.items() if rate is not None]
    ledger.run(book(it), more, it.jobs)
    best = {regime: tuned(it, regime, arms.BASELINE) for regime in names}
    last = [
        _unit(it, regime, arms.BASELINE, rate, "target", seed)
        for regime, rate in best.items()
        if rate is not None
        for seed in TARGET_SEEDS
    ]
    ledger.run(book(it), last, it.jobs)


def main() -> None:
    """Measure what is missing, and say what was found."""
    it, drawing = settings.setting(__doc__)
    names = arms.wanted(it)
    if not drawing:
        measure(it, names)
    for regime in names:
        print(f"{regime}: target {target(it, regime)}")
        for arm in arms.ARMS[regime]:
            print(f"  {arm}: {tuned(it, regime, arm)}")


if __name__ == "__main__":
    settings.cleanly(main)
