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
- Shown: ratio of times to uniform masks' (geometric mean over pairs, bootstrap interval over pairs, 95 %; that of the
  seconds reaches from its lower end at the lowest cost of the rounds to its upper end at the highest), and difference
  of the losses at the end (mean over pairs, Student's interval).
- Tests, two-sided, over pairs: Student's of the logarithm of the ratio of seconds, at the cost of all rounds that is
  least in its favour; where a run never gets there, on the bounds. Student's of the difference of the losses at the end
  (the sign test where a run diverged). Each corrected over the arms of a regime by Holm's method, not over regimes. An
  arm *converges sooner* (*later*) if the first says so at 5 %, and *ends better* if the second does.

The placebo's scores are permuted, and the control is uniform masks with the second best learning rate: what they show
is the resolution of the race, and nothing that is smaller is called an effect. *Oracle* is whole-mask importance
sampling by true gradient norms, out of four candidates. The MAPNets of *adapted* and *published* are trained or fitted
before the race, at a cost that is not counted (`arms.py`); in *scratch* and *mini* all of it is. Every run is
published. All intervals are about seeds: the held-out text is one.

    python experiments/convergence.py --train TRAIN --valid VALID --glue GLUE
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import arms
import cost
import drawing
import ledger
import measuring
import numpy as np
import regimes
import tuning
from scipy import stats

from gradvar.racing.paired import Ratio, paired_ratio
from gradvar.racing.times import Time, time_to

LEVEL = 0.05
SEEDS = {"adapted": 8, "published": 8, "scratch": 6, "mini": 5}
"""Of every arm; fixed before the race."""


def book(it: regimes.Setting) -> ledger.Ledger:
    """Return the numbers of this experiment."""
    return ledger.Ledger(it.figures / "convergence.csv")


Curve = tuple[np.ndarray, np.ndarray]
"""Steps and losses of one run."""


def curves(it: regimes.Setting, regime: str) -> dict[str, dict[int, Curve]]:
    """Return the runs of a regime, by arm and seed."""
    rows: dict[str, dict[int, list[tuple[float, float]]]] = {}
    rates = {arm: tuning.tuned(it, regime, arm) for arm in arms.ARMS[regime]}
    for row in book(it).rows():
        if row["regime"] == regime:
            if float(row["learning_rate"]) != rates[row["arm"]]:
                raise regimes.GradvarError(
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


@dataclass(frozen=True)
class Standing:
    """Where an arm stands beside uniform masks.

    Attributes:
        regime: Its regime.
        arm: Its name.
        pairs: Seeds that both have.
        steps: Ratio of steps to the target, below 1 where the arm is sooner.
        cost: Ratio of the costs of a step.
        seconds: Ratio of seconds to the target, for the median of the cost.
        ends: Interval of that ratio, from the lowest to the highest cost.
        p_sooner: p-value for the seconds, before Holm's correction.
        loss: Mean difference of the losses at the end, and its interval; below 0 where the arm is better.
        p_better: p-value for the losses.
    """

    regime: str
    arm: str
    pairs: int
    steps: Ratio
    cost: tuple[float, float, float]
    seconds: Ratio
    ends: tuple[float, float]
    p_sooner: float
    loss: tuple[float, float, float]
    p_better: float

    @property
    def said(self) -> str:
        """The ratio of seconds in words, with its interval."""
        bound = "" if self.seconds.low == self.seconds.high else "> " if np.isinf(self.seconds.high) else "< "
        low, high = ("∞" if np.isinf(end) else f"{end:.3g}" for end in self.ends)
        return f"{bound}{min(self.seconds.high, self.seconds.low or np.inf):.3g} [{low}, {high}]"


def standing(
    regime: str, arm: str, own: Mapping[int, Curve], uniform: Mapping[int, Curve], target: float,
    cost_ratio: tuple[float, float, float],
) -> Standing | None:  # fmt: skip
    """Compare an arm with uniform masks.

    Args:
        regime: Name of the regime.
        arm: Name of the arm.
        own: Its runs by seed.
        uniform: Those of uniform masks.
        target: Loss to reach.
        cost_ratio: Median, lowest and highest ratio of the costs of a step.

    Returns:
        Where it stands; None of fewer than two pairs.
    """
    seeds = [seed for seed in own if seed in uniform]
    if len(seeds) < 2:
        return None
    times = [(time_to(target, *map(list, own[seed])), time_to(target, *map(list, uniform[seed]))) for seed in seeds]
    costs = {ratio: [(Time(one.low * ratio, one.high * ratio), two) for one, two in times] for ratio in cost_ratio}
    at_cost = {ratio: paired_ratio(pairs) for ratio, pairs in costs.items()}
    intervals = [(ratio.interval or (ratio.low, ratio.high)) for ratio in at_cost.values()]
    with np.errstate(invalid="ignore"):  # two runs that both diverged
        differences = np.array([own[seed][1][-1] - uniform[seed][1][-1] for seed in seeds])
    return Standing(
        regime=regime,
        arm=arm,
        pairs=len(seeds),
        steps=paired_ratio(times),
        cost=cost_ratio,
        seconds=at_cost[cost_ratio[0]],
        ends=(min(low for low, _ in intervals), max(high for _, high in intervals)),
        p_sooner=max(p_of_times(pairs) for pairs in costs.values()) if _one_side(at_cost.values()) else 1.0,
        loss=_mean(differences),
        p_better=p_of(differences),
    )


def _one_side(ratios: Iterable[Ratio]) -> bool:
    """Whether an arm is sooner, or later, at the cost of every round."""
    ratios = list(ratios)
    return all(ratio.high < 1 for ratio in ratios) or all(ratio.low > 1 for ratio in ratios)


def _mean(differences: np.ndarray) -> tuple[float, float, float]:
    """Return the mean with Student's interval; of what is not finite, infinite ends."""
    if not np.isfinite(differences).all():
        return float(differences.mean()), -np.inf, np.inf
    reach = float(stats.t.ppf(0.975, len(differences) - 1) * stats.sem(differences))
    return float(differences.mean()), float(differences.mean()) - reach, float(differences.mean()) + reach


def p_of_times(pairs: Sequence[tuple[Time, Time]]) -> float:
    """Return the two-sided p-value for the hypothesis that both times are alike on average.

    Twice the smaller of two one-sided p-values of Student's test of the logarithms of the ratios: that their mean is
    above 0, from the lower bounds of the ratios, and that it is below, from the upper bounds. Where all times are known
    that is the two-sided test. The mean of the bounds is below (above) that of the ratios, so it errs on the safe side.

    Args:
        pairs: Times of the arm and of uniform masks.

    Returns:
        The p-value; 1 where nothing is known.
    """
    with np.errstate(divide="ignore"):
        lows, highs = (
            np.log([getattr(one, mine) for one, _ in pairs]) - np.log([getattr(two, theirs) for _, two in pairs])
            for mine, theirs in (("low", "high"), ("high", "low"))
        )
    return min(1.0, 2 * min(_one_sided(lows), _one_sided(-highs)))


def _one_sided(values: np.ndarray) -> float:
    """Return the p-value of Student's test that a mean is above 0; of values that are all alike, of the sign test."""
    if not np.isfinite(values).all():
        return 1.0
    if np.ptp(values) > 1e-12:
        return float(stats.ttest_1samp(values, 0.0, alternative="greater").pvalue)
    return 0.5 ** len(values) if values[0] > 1e-12 else 1.0


def p_of(differences: np.ndarray) -> float:
    """Return the two-sided p-value for a mean of zero: Student's, or the sign test of differences not all finite."""
    if not np.isfinite(differences).all():
        told = differences[~np.isnan(differences) & (differences != 0)]
        return float(stats.binomtest(int((told > 0).sum()), len(told)).pvalue) if len(told) else 1.0
    return min(1.0, 2 * min(_one_sided(differences), _one_sided(-differences)))


def holm(p_values: Sequence[float], count: int = 0) -> list[float]:
    """Correct p-values for their number, by Holm's method (1979): the family-wise error is at most the level.

    The i-th smallest of n is multiplied by ``n - i + 1``, made no smaller than those before it, and cut at 1.

    Args:
        p_values: Of all hypotheses, or of some.
        count: Of all hypotheses, where these are some; the others are taken for the least likely to be rejected.

    Returns:
        The corrected ones, in the same order.
    """
    order = np.argsort(p_values)
    scaled = np.array(p_values)[order] * (max(count, len(p_values)) - np.arange(len(p_values)))
    corrected = np.minimum(np.maximum.accumulate(scaled), 1.0)
    found = np.empty(len(p_values))
    found[order] = corrected
    return found.tolist()


def used(it: regimes.Setting, regime: str) -> dict[str, float]:
    """Return the part of their logs in which MAPNets were in use, by arm: the mean over its runs."""
    last: dict[str, dict[str, float]] = {}
    for row in book(it).rows():
        if row["regime"] == regime and row.get("in_use"):
            last.setdefault(row["arm"], {})[row["seed"]] = float(row["in_use"])
    return {arm: float(np.mean(list(shares.values()))) for arm, shares in last.items()}


def standings(it: regimes.Setting, regime: str) -> list[Standing]:
    """Return where all arms of a regime stand that have run; none where target or costs are not known yet."""
    found, target, costs = curves(it, regime), tuning.target(it, regime), cost.ratios(it, regime, used(it, regime))
    uniform = found.get(arms.BASELINE)
    if uniform is None or target is None or not costs:
        return []
    without = [arm for arm in found if arm not in costs]
    if without:
        raise regimes.GradvarError(f"{regime}: no cost of {', '.join(without)}; run experiments/cost.py")
    every = [
        standing(regime, arm, runs, uniform, target, costs[arm]) for arm, runs in found.items() if arm != arms.BASELINE
    ]
    return [each for each in every if each is not None]


def spread(it: regimes.Setting, regime: str) -> tuple[float, int]:
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


def corrected(each: Sequence[Standing]) -> tuple[list[float], list[float]]:
    """Return the p-values of the seconds and of the losses of a regime's arms, by Holm's method over all its arms."""
    if not each:
        return [], []
    count = len(arms.ARMS[each[0].regime]) - 1
    return holm([one.p_sooner for one in each], count), holm([one.p_better for one in each], count)


def resolution(each: Sequence[Standing]) -> float:
    """Return by what factor control and placebo come to the target sooner or later, in steps; 1 where neither ran."""
    return max((_factor(one.steps) for one in each if one.arm in (arms.CONTROL, arms.PLACEBO)), default=1.0)


def _factor(ratio: Ratio) -> float:
    return max(ratio.low, 1 / ratio.high) if ratio.high > 0 else np.inf


def verdicts(each: Sequence[Standing]) -> dict[str, list[Standing]]:
    """Sort the arms of a regime into those that are clearly sooner, clearly later, and the rest.

    Control and placebo belong to the rest, and so does what differs by a smaller factor than these.
    """
    found: dict[str, list[Standing]] = {"sooner": [], "later": [], "not told apart": []}
    for one, p in zip(each, corrected(each)[0], strict=True):
        clear = p < LEVEL and _factor(one.seconds) > resolution(each)
        clear = clear and one.arm not in (arms.CONTROL, arms.PLACEBO)
        found[("sooner" if one.seconds.high < 1 else "later") if clear else "not told apart"].append(one)
    return found


def finding(it: regimes.Setting) -> str:
    """Say what the picture shows."""
    said = []
    for regime in arms.ARMS:
        each = standings(it, regime)
        if each:
            parts = [
                f"{what}: {', '.join(f'{one.arm} ({one.said})' for one in those)}"
                for what, those in verdicts(each).items()
                if those
            ]
            said.append(f"*{regime}*, seconds to the target loss over uniform masks': {'; '.join(parts)}.")
    return " ".join(said)


def draw(it: regimes.Setting) -> None:
    """Draw the curves' differences to uniform masks and the ratios of times, a row a regime."""
    shown = [(regime, each) for regime in arms.ARMS if (each := standings(it, regime))]
    if not shown:
        return
    heights = [1.0 + 0.26 * len(each) for _, each in shown]
    made, axes = drawing.figure(
        2, len(shown), 10, sum(heights) + 0.8, squeeze=False, sharey="row", gridspec_kw={"height_ratios": heights}
    )
    for (left, right), (regime, each) in zip(axes, shown, strict=True):
        clear = len(verdicts(each)["sooner"])
        _ratios(left, each)
        drawing.finish(
            left,
            f"{regime}: {clear or 'no'} arm{'s' * (clear != 1)} of {len(each)} clearly sooner (Holm, 5 %)",
            "seconds to the target loss, over uniform masks' (95 %)",
            "",
        )
        _losses(right, each)
        pairs = measuring.span([one.pairs for one in each], 0)
        drawing.finish(right, f"{pairs} pairs of runs", "loss at the end less uniform masks' (nats, 95 %)", "")
    drawing.save(made, it.figures / "convergence")


_FROM, _TO = 0.5, 2.0  # of the ratios that are drawn


def _ratios(axes: object, each: Sequence[Standing]) -> None:
    for y, one in enumerate(each):
        low, high = np.clip(one.ends, _FROM, _TO)
        axes.plot([low, high], [y, y], color=drawing.COLOURS[0], linewidth=1.5)
        if one.ends[0] < _FROM:
            axes.plot(_FROM, y, "<", color=drawing.COLOURS[0], markersize=5)
        if one.ends[1] > _TO:
            axes.plot(_TO, y, ">", color=drawing.COLOURS[0], markersize=5)
            if one.seconds.low > _TO:
                axes.annotate(one.said, (_TO, y), (-8, 0), textcoords="offset points", ha="right", va="center")
        for ratio, style, colour, size in ((one.seconds, "o", 0, 5), (one.steps, "|", 1, 9)):
            if ratio.low == ratio.high and _FROM <= ratio.low <= _TO:
                axes.plot(ratio.low, y, style, color=drawing.COLOURS[colour], markersize=size)
    axes.plot([], [], "o", color=drawing.COLOURS[0], label="seconds")
    axes.plot([], [], "|", color=drawing.COLOURS[1], label="steps")
    axes.legend(loc="lower right")
    axes.axvline(1, color=drawing.GREY, linewidth=1)
    axes.set_xscale("log")
    ticks = (0.5, 0.7, 0.85, 1, 1.2, 1.5, 2)
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xlim(_FROM * 0.96, _TO * 1.04)
    axes.minorticks_off()
    axes.set_yticks(range(len(each)), [one.arm for one in each])
    axes.invert_yaxis()


def _losses(axes: object, each: Sequence[Standing]) -> None:
    for y, one in enumerate(each):
        mean, low, high = one.loss
        axes.plot([low, high], [y, y], color=drawing.COLOURS[0], linewidth=1.5)
        axes.plot(mean, y, "o", color=drawing.COLOURS[0], markersize=5)
    axes.axvline(0, color=drawing.GREY, linewidth=1)


def measure(it: regimes.Setting, names: Sequence[str]) -> None:
    """Run what has not run yet, seed by seed, so that what is there at any time is balanced."""
    units = []
    for regime in names:
        rates = {arm: tuning.tuned(it, regime, arm) for arm in arms.ARMS[regime]}
        missing = [arm for arm, rate in rates.items() if rate is None]
        if missing:
            raise regimes.GradvarError(
                f"{regime}: no learning rate of {', '.join(missing)}; run experiments/tuning.py first"
            )
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
    it, drawing_alone = regimes.setting(__doc__)
    names = arms.wanted(it)
    if not drawing_alone:
        measure(it, names)
    draw(it)
    for regime in names:
        each = standings(it, regime)
        for one, sooner, better in zip(each, *corrected(each), strict=True):
            print(
                f"{regime}, {one.arm}: seconds {one.said} (p {sooner:.3f}), steps {one.steps}, "
                f"loss {one.loss[0]:+.4f} [{one.loss[1]:+.4f}, {one.loss[2]:+.4f}] (p {better:.3f})"
            )


if __name__ == "__main__":
    regimes.cleanly(main)
