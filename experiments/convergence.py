r"""The race: does a way to choose masks make training converge sooner, or end better?

Pre-stated. Regimes, models, texts and tokens: `regimes.py` and `recipes/`; arms: `arms.py`; learning rates and target
losses: `tuning.py`, on seeds that are not used here; what a step costs: `cost.py`. Seeds 0, 1, 2, …, as many as `SEEDS`
says; a seed settles first weights (where there are any to draw), the order of the text and the masks, so an arm and
uniform masks are compared on the same ones, in pairs. The learning-rate schedule and the steps of all arms of a regime
are the same.

- Metric: held-out loss under the same uniform masks of 15 % for all arms, in nats a target.
- Time to the target: steps at which that loss is first at the target, on a straight line between evaluations. A run
  that never gets there takes longer than its steps; one that diverges has an infinite loss.
- Seconds to the target, the primary endpoint: steps times the cost of the arm's step beside uniform masks' (`cost.py`),
  as wall-clock time on a shared machine tells more of the machine than of the arm. Wall-clock seconds are in the CSV.
- Shown: ratio of times to uniform masks' (geometric mean over pairs, bootstrap interval over pairs, 95 %, or of fewer
  than five pairs their range; that of the seconds reaches from its lower end at the lowest cost of the rounds to its
  upper end at the highest), and difference of the losses at the end (mean over pairs, Student's interval).
- Tests, two-sided, over pairs: Student's of the logarithm of the ratio of seconds, at the cost of all rounds that is
  least in its favour; where a run never gets there, on the bounds. Student's of the difference of the losses at the end
  (the sign test where a run diverged). Each corrected over the arms of a regime by Holm's method, not over regimes. An
  arm *converges sooner* (*later*) if the first says so at 5 %, and *ends better* if the second does.

The placebo's scores are permuted, and the control is uniform masks with the second best learning rate: what they show
is the resolution of the race, and nothing that is smaller is called an effect. *Oracle* is whole-mask importance
sampling by true gradient norms, out of four candidates. The MAPNets of *adapted* and *published* are trained or fitted
before the race, at a cost that is not counted (`arms.py`); in *scratch* and *mini* all of it is. Every run is
published. All intervals are about seeds: the held-out text is one.

Added afterwards: pairs that differ by less than rounding does (`standing.ALIKE`: the arm did what uniform masks did, at
another cost) have no spread that Student's test could use, and are judged by the sign test. Of *scratch*, whose control
turned out to have the better rate of the two, the page shows all arms beside the control, too, without tests.

    python experiments/convergence.py --train TRAIN --valid VALID --glue GLUE
"""

from __future__ import annotations

from collections.abc import Sequence

import arms
import convergence_figure
import cost
import ledger
import measuring
import numpy as np
import regimes
import settings
import standing
import tuning
from standing import Curve, Standing

from gradvar import GradvarError
from gradvar.racing.times import time_to

SEEDS = {"adapted": 8, "published": 8, "scratch": 6, "mini": 5}
"""Of every arm; fixed before the race."""


def book(it: settings.Setting) -> ledger.Ledger:
    """Return the numbers of this experiment."""
    return ledger.Ledger(it.figures / "convergence.csv")


def curves(it: settings.Setting, regime: str) -> dict[str, dict[int, Curve]]:
    """Return the runs of a regime, by arm and seed."""
    rows: dict[str, dict[int, list[tuple[float, float]]]] = {}
    there = [row for row in book(it).rows() if row["regime"] == regime]
    rates = tuning.rates(it, regime, {row["arm"]: None for row in there})
    for row in there:
        if float(row["learning_rate"]) != rates[row["arm"]]:
            raise GradvarError(
                f"{it.figures.name}/convergence.csv: {regime}, {row['arm']}, seed {row['seed']} was trained with "
                f"another learning rate than the tuned one; remove its rows from {book(it).provenance.name}"
            )
        rows.setdefault(row["arm"], {}).setdefault(int(row["seed"]), []).append(
            (float(row["step"]), float(row["loss"]))
        )
    order = [arm for arm in arms.ARMS[regime] if arm in rows]
    return {
        arm: {seed: (np.array(run).T[0], np.array(run).T[1]) for seed, run in sorted(rows[arm].items())}
        for arm in order
    }


def used(it: settings.Setting, regime: str) -> dict[str, float]:
    """Return the part of their logs in which MAPNets were in use, by arm: the mean over its runs."""
    last: dict[str, dict[str, float]] = {}
    for row in book(it).rows():
        if row["regime"] == regime and row.get("in_use"):
            last.setdefault(row["arm"], {})[row["seed"]] = float(row["in_use"])
    return {arm: float(np.mean(list(shares.values()))) for arm, shares in last.items()}


def standings(it: settings.Setting, regime: str, beside: str = arms.BASELINE) -> list[Standing]:
    """Return where all arms of a regime stand that have run; none where target or costs are not known yet.

    Args:
        it: The setting.
        regime: The regime.
        beside: Beside which arm: uniform masks, or their control, whose step costs the same.
    """
    found, target, costs = curves(it, regime), tuning.target(it, regime), cost.ratios(it, regime, used(it, regime))
    uniform = found.get(beside)
    if uniform is None or target is None or not costs:
        return []
    without = [arm for arm in found if arm not in costs]
    if without:
        raise GradvarError(f"{regime}: no cost of {', '.join(without)}; run experiments/cost.py")
    every = [
        standing.standing(regime, arm, runs, uniform, target, costs[arm])
        for arm, runs in found.items()
        if arm != beside
    ]
    return [each for each in every if each is not None]


def spread(it: settings.Setting, regime: str) -> tuple[float, int]:
    """Return how much the logarithm of an arm's ratio of steps to the target varies from pair to pair.

    Args:
        it: The setting.
        regime: The regime.

    Returns:
        Standard deviation of one pair: the root of the mean over arms of its variances, of arms with three pairs or
        more that all get there; and how many arms these are.
    """
    found, target = curves(it, regime), tuning.target(it, regime)
    uniform = found.pop(arms.BASELINE, {})
    variances = []
    for runs in found.values():
        times = [
            [time_to(target, *map(list, each[seed])) for each in (runs, uniform)] for seed in runs if seed in uniform
        ]
        if len(times) >= 3 and all(one.low == one.high for pair in times for one in pair):
            variances.append(np.log([one.low / two.low for one, two in times]).var(ddof=1))
    return (float(np.sqrt(np.mean(variances))), len(variances)) if variances else (np.nan, 0)


def finding(it: settings.Setting) -> str:
    """Say what the picture shows."""
    said = []
    for regime, each in _shown(it).items():
        found = standing.verdicts(each)
        rest = len(found.pop("not told apart"))
        parts = [
            f"{what}: {', '.join(f'{one.arm} ({one.said})' for one in those)}" for what, those in found.items() if those
        ]
        pairs = f"{measuring.span([one.pairs for one in each], 0)} of {SEEDS[regime]} pairs"
        said.append(f"*{regime}*, {pairs}: {'; '.join([*parts, f'{rest} arms not told apart'])}")
    return f"Seconds to the target loss over uniform masks': {'. '.join(said)}."


def _shown(it: settings.Setting) -> dict[str, list[Standing]]:
    return {regime: each for regime in arms.ARMS if (each := standings(it, regime))}


def draw(it: settings.Setting) -> None:
    """Draw where all arms stand, as far as the numbers go."""
    if shown := _shown(it):
        convergence_figure.draw(shown, it.figures)


def measure(it: settings.Setting, names: Sequence[str]) -> None:
    """Run what has not run yet, seed by seed, so that what is there at any time is balanced."""
    units = []
    for regime in names:
        regimes.recipe(it, regime, 0)  # makes what all of its runs begin from, before several processes want it
        rates = tuning.rates(it, regime, arms.ARMS[regime])
        units += [
            ledger.Unit(
                {"regime": regime, "arm": arm, "seed": seed},
                arms.race,
                (it, regime, arm, seed, {"training.learning_rate": rate}),
            )
            for seed in range(it.seeds or SEEDS[regime])
            for arm, rate in rates.items()
        ]
    ledger.run(book(it), units, it.jobs)


def main() -> None:
    """Run what is missing, and draw."""
    it, drawing_alone = settings.setting(__doc__)
    names = arms.wanted(it)
    if not drawing_alone:
        measure(it, names)
    draw(it)
    for regime in names:
        each = standings(it, regime)
        for one, sooner, better in zip(each, *standing.corrected(each), strict=True):
            print(
                f"{regime}, {one.arm}: seconds {one.said} (p {sooner:.3f}), steps {one.steps}, "
                f"loss {one.loss[0]:+.4f} [{one.loss[1]:+.4f}, {one.loss[2]:+.4f}] (p {better:.3f})"
            )


if __name__ == "__main__":
    settings.cleanly(main)
