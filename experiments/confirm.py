r"""The winner of the race, at equal wall-clock time, on seeds that chose nothing.

Pre-stated. Of each regime the arm whose interval for the ratio of seconds to the target (`convergence.py`) has the
lowest upper end, whatever it is (but for the control and for the oracle, which no one can afford). It is trained again
beside uniform masks with the seeds 20, 21, 22, … (eight, in *mini* five), for as many steps as take the seconds of the
uniform arm's (the steps of the race over the median cost of its step), so that its learning rate has come down to zero
at the same time. Compared: held-out loss at the end, mean difference over pairs with Student's interval of 95 %, and
with one of 98.75 %, which holds in all four regimes together with 95 %. The arm wins where the latter is below zero.

    python experiments/confirm.py --train TRAIN --valid VALID --glue GLUE
"""

from __future__ import annotations

import arms
import convergence
import cost
import drawing
import ledger
import numpy as np
import regimes
import settings
import tuning
from standing import mean_interval

FIRST_SEED = 20
SEEDS = {"adapted": 8, "published": 8, "scratch": 8, "mini": 5}
TOGETHER = 1 - 0.05 / 4


def book(it: settings.Setting) -> ledger.Ledger:
    """Return the numbers of this experiment."""
    return ledger.Ledger(it.figures / "confirm.csv")


def chosen(it: settings.Setting, regime: str) -> tuple[str, int] | None:
    """Return the arm that has been trained again, and for how many steps; None where none has."""
    rows = [row for row in book(it).rows() if row["regime"] == regime and row["arm"] != arms.BASELINE]
    return (rows[0]["arm"], int(rows[0]["steps"])) if rows else None


def seconds(it: settings.Setting, regime: str) -> tuple[float, float, float]:
    """Return how many times uniform masks' seconds the chosen arm took, by what its step is known to cost by now."""
    steps = {row["arm"]: int(row["steps"]) for row in book(it).rows() if row["regime"] == regime}
    uniform = steps.pop(arms.BASELINE)
    ((arm, own),) = steps.items()
    middle, low, high = (ratio * own / uniform for ratio in _costs(it, regime)[arm])
    return middle, low, high


def _costs(it: settings.Setting, regime: str) -> dict[str, tuple[float, float, float]]:
    return cost.ratios(it, regime, convergence.used(it, regime))


def winner(it: settings.Setting, regime: str) -> str | None:
    """Return the arm that was soonest in the race; None where arms are missing, or have fewer than five pairs."""
    few = 1 if it.quick else 5
    every = convergence.standings(it, regime)
    each = [one for one in every if one.arm not in _APART]
    if len(every) < len(arms.ARMS[regime]) - 1 or min(one.pairs for one in each) < min(few, it.seeds or few):
        return None
    return min(each, key=lambda one: one.ends[1]).arm


_APART = (arms.CONTROL, "oracle, weighted sets")


def clock(it: settings.Setting, regime: str) -> float:
    """Return how many times uniform masks' seconds the runs took on the machine that they ran on, mean over pairs."""
    taken: dict[str, dict[str, float]] = {}
    for row in book(it).rows():
        if row["regime"] == regime:
            taken.setdefault(row["seed"], {})[row["arm"]] = float(row["train_seconds"])
    logs = [
        np.log(seconds / each[arms.BASELINE])
        for each in taken.values()
        for arm, seconds in each.items()
        if arm != arms.BASELINE and arms.BASELINE in each
    ]
    return float(np.exp(np.mean(logs)))


def differences(it: settings.Setting, regime: str) -> tuple[str, np.ndarray] | None:
    """Return the winner's name, and the differences of its losses at the end to uniform masks', by seed."""
    ends: dict[str, dict[int, float]] = {}
    for row in book(it).rows():
        if row["regime"] == regime:
            ends.setdefault(row["arm"], {})[int(row["seed"])] = float(row["loss"])
    names = [arm for arm in ends if arm != arms.BASELINE]
    if len(names) != 1:
        return None
    own, uniform = ends[names[0]], ends.get(arms.BASELINE, {})
    found = np.array([own[seed] - uniform[seed] for seed in sorted(own) if seed in uniform])
    return (names[0], found) if len(found) > 1 else None


def finding(it: settings.Setting) -> str:
    """Say what the picture shows."""
    said = []
    for regime in arms.ARMS:
        told = differences(it, regime)
        if told:
            mean, low, high = mean_interval(told[1])
            said.append(f"*{regime}*: {told[0]}, {mean:+.3f} [{low:+.3f}, {high:+.3f}] nats over {len(told[1])} pairs")
    return f"Held-out loss at the end less uniform masks', for the same seconds: {'; '.join(said)}."


def draw(it: settings.Setting) -> None:
    """Draw the differences of all pairs, and their means with intervals."""
    shown = {regime: told for regime in arms.ARMS if (told := differences(it, regime))}
    if not shown:
        return
    made, axis = drawing.figure(width=7, height=1.4 + 0.5 * len(shown))
    for y, (_, found) in enumerate(shown.values()):
        mean, low, high = mean_interval(found)
        wide = mean_interval(found, TOGETHER)[1:]
        axis.plot(wide, [y, y], color=drawing.COLOURS[0], linewidth=1)
        axis.plot(found, np.full(len(found), y + 0.18), "o", color=drawing.GREY, markersize=3)
        axis.plot([low, high], [y, y], color=drawing.COLOURS[0], linewidth=2)
        axis.plot(mean, y, "o", color=drawing.COLOURS[0], markersize=6)
    axis.axvline(0, color=drawing.GREY, linewidth=1)
    axis.set_yticks(range(len(shown)), [f"{regime}: {arm}" for regime, (arm, _) in shown.items()])
    axis.set_ylim(len(shown) - 0.5, -0.5)
    won = sum(mean_interval(found, TOGETHER)[2] < 0 for _, found in shown.values())
    title = f"At equal seconds the soonest arm ends better than uniform masks in {won} of {len(shown)} regimes"
    drawing.finish(axis, title, "loss at the end less uniform masks' (nats; thick 95 %, thin 98.75 %; dots: pairs)", "")
    drawing.save(made, it.figures / "confirm")


def main() -> None:
    """Run what is missing, and draw."""
    it, drawing_alone = settings.setting(__doc__)
    units = []
    for regime in () if drawing_alone else arms.wanted(it):
        steps, best = regimes.recipe(it, regime, 0).training.steps, winner(it, regime)
        if best is None and chosen(it, regime) is None:
            print(f"{regime}: the race has fewer than five pairs of every arm; run experiments/convergence.py first")
            continue
        # What was chosen once stays, even where the cost of a step has been measured anew.
        best, fewer = chosen(it, regime) or (best, round(steps / _costs(it, regime)[best][0]))
        for seed in range(FIRST_SEED, FIRST_SEED + (it.seeds or SEEDS[regime])):
            for arm, many in ((arms.BASELINE, steps), (best, fewer)):
                values = {"training.learning_rate": tuning.tuned(it, regime, arm), "training.steps": many}
                key = {"regime": regime, "arm": arm, "steps": values["training.steps"], "seed": seed}
                units.append(ledger.Unit(key, last_row, (it, regime, arm, seed, values)))
    if units:
        ledger.run(book(it), units, it.jobs)
    draw(it)
    print(finding(it))


def last_row(it: settings.Setting, regime: str, arm: str, seed: int, values: dict[str, float]) -> ledger.Found:
    """Train one run; return its last row."""
    found = arms.race(it, regime, arm, seed, values)
    return ledger.Found([found.rows[-1]], found.data, found.checkpoint)


if __name__ == "__main__":
    settings.cleanly(main)
