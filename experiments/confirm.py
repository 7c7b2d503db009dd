r"""The winner of the race, at equal wall-clock time, on seeds that chose nothing.

Pre-stated. Of each regime the arm whose interval for the ratio of seconds to the target (`convergence.py`) has the
lowest upper end, whatever it is (but for the control and for the oracle, which no one can afford). It is trained again
beside uniform masks with the seeds 20, 21, 22, … (eight, in *mini* five), for as many steps as take the seconds of the
uniform arm's (the steps of the race over the median cost of its step), so that its learning rate has come down to zero
at the same time. Compared: held-out loss at the end, mean difference over pairs with Student's interval of 95 %, and
with one of 98.75 %, which holds in all four regimes together with 95 %. The arm wins where the latter is below zero.

Added afterwards: in *scratch* the race showed that the rate that had been tuned for uniform masks was the worse of its
two best (`convergence.py`, the control), so the control is trained on the same seeds, too, and compared with.

    python experiments/confirm.py --train TRAIN --valid VALID --glue GLUE
"""

from __future__ import annotations

from dataclasses import dataclass

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
MISTUNED = ("scratch",)
"""Regimes in which the control is trained, too."""
_UNIFORM = (arms.BASELINE, arms.CONTROL)


def book(it: settings.Setting) -> ledger.Ledger:
    """Return the numbers of this experiment."""
    return ledger.Ledger(it.figures / "confirm.csv")


def chosen(it: settings.Setting, regime: str) -> tuple[str, int] | None:
    """Return the arm that has been trained again, and for how many steps; None where none has."""
    rows = [row for row in book(it).rows() if row["regime"] == regime and row["arm"] not in _UNIFORM]
    return (rows[0]["arm"], int(rows[0]["steps"])) if rows else None


def seconds(it: settings.Setting, regime: str) -> tuple[float, float, float]:
    """Return how many times uniform masks' seconds the chosen arm took, by what its step is known to cost by now."""
    steps = {row["arm"]: int(row["steps"]) for row in book(it).rows() if row["regime"] == regime}
    ((arm, own),) = ((arm, many) for arm, many in steps.items() if arm not in _UNIFORM)
    middle, low, high = (ratio * own / steps[arms.BASELINE] for ratio in _costs(it, regime)[arm])
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


@dataclass(frozen=True)
class Compared:
    """A winner beside uniform masks, over pairs of one seed.

    Attributes:
        regime: Its regime.
        arm: Its name.
        other: What it is compared with: uniform masks, or their control.
        differences: ``[pairs]`` of its losses at the end to theirs.
        clock: How many times their seconds it took on the machine that both ran on, geometric mean.
    """

    regime: str
    arm: str
    other: str
    differences: np.ndarray
    clock: float

    @property
    def title(self) -> str:
        """The regime, and that it is beside the control if so."""
        return self.regime if self.other == arms.BASELINE else f"{self.regime}, beside the control"


def compared(it: settings.Setting) -> list[Compared]:
    """Return the winners of all regimes beside uniform masks and, where that has run, beside the control."""
    found = []
    for regime in arms.ARMS:
        runs: dict[str, dict[int, tuple[float, float]]] = {}
        for row in book(it).rows():
            if row["regime"] == regime:
                own = float(row["loss"]), np.log(float(row["train_seconds"]))
                runs.setdefault(row["arm"], {})[int(row["seed"])] = own
        names = [arm for arm in runs if arm not in _UNIFORM]
        for other in _UNIFORM if len(names) == 1 else ():
            seeds = sorted(runs[names[0]].keys() & runs.get(other, {}).keys())
            if len(seeds) > 1:
                losses, clocks = (
                    np.array([runs[names[0]][seed] for seed in seeds]) - [runs[other][s] for s in seeds]
                ).T
                found.append(Compared(regime, names[0], other, losses, float(np.exp(clocks.mean()))))
    return found


def finding(it: settings.Setting) -> str:
    """Say what the picture shows."""
    said = []
    for one in compared(it):
        mean, low, high = mean_interval(one.differences)
        pairs = f"over {len(one.differences)} pairs"
        said.append(f"*{one.title}*: {one.arm}, {mean:+.3f} [{low:+.3f}, {high:+.3f}] nats {pairs}")
    return f"Held-out loss at the end less uniform masks', for the same seconds: {'; '.join(said)}."


def draw(it: settings.Setting) -> None:
    """Draw the differences of all pairs, and their means with intervals."""
    shown = compared(it)
    if not shown:
        return
    made, axis = drawing.figure(width=8, height=1.4 + 0.5 * len(shown))
    for y, one in enumerate(shown):
        mean, low, high = mean_interval(one.differences)
        wide = mean_interval(one.differences, TOGETHER)[1:]
        axis.plot(wide, [y, y], color=drawing.COLOURS[0], linewidth=1)
        axis.plot(one.differences, np.full(len(one.differences), y + 0.18), "o", color=drawing.GREY, markersize=3)
        axis.plot([low, high], [y, y], color=drawing.COLOURS[0], linewidth=2)
        axis.plot(mean, y, "o", color=drawing.COLOURS[0], markersize=6)
    axis.axvline(0, color=drawing.GREY, linewidth=1)
    axis.set_yticks(range(len(shown)), [f"{one.title}: {one.arm}" for one in shown])
    axis.set_ylim(len(shown) - 0.5, -0.5)
    won = sum(mean_interval(one.differences, TOGETHER)[2] < 0 for one in shown)
    title = f"At equal seconds the soonest arm ends lower than uniform masks in {won} of {len(shown)} comparisons"
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
            beside = [(arms.CONTROL, steps)] if regime in MISTUNED else []
            for arm, many in ((arms.BASELINE, steps), (best, fewer), *beside):
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
