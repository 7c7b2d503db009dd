r"""What would change the answer: does the predicted batch gain rank the arms as their training does?

Pre-stated. At three stages of each regime's reference run (an eighth, a quarter and a half of its steps), for every arm
of the race, the batch gain at the batch of the race (`alignment.py`) is measured on 24 groups of up to 32 cells, by
plain autograd, under the arm's own masks and weights: in *scratch* from the training text, which is not gone through
once, in the other two from film reviews that no run is trained on. A MAPNet is fitted to the stage, on the training
text, and used for single positions as its calibration says (uniform masks, whose gain is one, where it says so); for
whole sets with its raw scores, whereas the race calibrates those, too. Predicted: the geometric mean of the gains over
the stages, divided by the cost of the arm's step; an arm of which a stage is not resolved is left out, and told.
Realised: how much sooner than uniform masks the arm is at the target loss, in seconds (`convergence.py`); of an arm
some of whose runs never got there, the bound. The question is whether the predicted gains rank the realised speeds:
Kendall's tau over the arms of a regime, with its p-value; beside it that of the predicted gains and the losses at the
end. Masks that are stratified over epochs are uniform in every step, so their predicted gain is one.

Added when the first numbers were there: tau of the gains before they are divided by the cost of a step, and of how many
times fewer steps the target took. Predicted gain and realised speed are divided by the same measured cost, which alone
makes them agree to a degree; these two share nothing that was measured. The stages of *published* come from two
reference runs of one recipe and seed, on a GPU and on the CPU, as the provenance says. Tau is told of each stage alone,
too, as who measures gains mostly has one checkpoint. The interval of a predicted gain
over cost reaches over the costs of all rounds, as that of the realised speed does. In *scratch* a MAPNet is fitted to
part of the text that its gain is measured on, as in the race, where it learns from what it is used on.

    python experiments/what_helps.py --train TRAIN --valid VALID --glue GLUE
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import alignment
import arms
import convergence
import cost
import drawing
import ledger
import measuring
import numpy as np
import regimes
import settings
from scipy import stats

GROUPS, CELLS = 24, 32
STAGES = (1, 2, 3)
FEWEST = 3  # arms of a regime that are ranked
SENTENCES = {"scratch": 16384, "adapted": 640, "published": 640, "mini": 16384}
"""To which a MAPNet is fitted; the film reviews have no more."""


_TICKS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1, 1.3, 1.6, 2)


def book(it: settings.Setting) -> ledger.Ledger:
    """Return the numbers of this experiment."""
    return ledger.Ledger(it.figures / "what_helps.csv")


def measure_stage(it: settings.Setting, regime: str, stage: regimes.Stage, batch: int) -> ledger.Found:
    """Measure the batch gains of all arms at one stage.

    Args:
        it: The setting.
        regime: The regime.
        stage: Where.
        batch: Cells of a step of the race.

    Returns:
        A row an arm.
    """
    from gradvar import MaskedLM

    options: dict[str, Any] = {"max_length": stage.max_length, "contexts": 2, "device": stage.device}
    network, proposal = _mapnet(it, regime, MaskedLM.from_checkpoint(stage.folder, stage.train, **options))
    text = stage.train if it.quick or regime in regimes.ON_WIKIPEDIA else regimes.film(it, "others")
    uniform = MaskedLM.from_checkpoint(stage.folder, text, **options)
    fitted = MaskedLM.from_checkpoint(stage.folder, text, mapnet=network, **options)
    order = np.random.default_rng(0).permutation(len(uniform))
    groups = 4 if it.quick else GROUPS
    cells = min(CELLS, len(uniform) // groups) // 2 * 2  # an arm with two masks a sentence takes half of the sentences
    blocks = [order[at * cells : (at + 1) * cells] for at in range(groups)]
    base = group_means(uniform, blocks, 1)
    rows = []
    for arm, changes in arms.ARMS[regime].items():
        if arm in (arms.BASELINE, arms.CONTROL, "epoch-stratified"):
            continue
        name, masks = changes.get("masking.proposal", "uniform/simple"), changes.get("masking.masks", 1)
        if name in ("mapnet/pps", "mapnet-permuted/pps"):
            name = proposal if name.startswith("mapnet/") else proposal.replace("mapnet", "mapnet-permuted", 1)
        if "masking.mask_rate" in changes:
            name = f"{name}@{changes['masking.mask_rate']:g}"
        objective = fitted.under(name)
        own = group_means(objective, blocks, masks)
        unbiased = objective.proposal.design.unbiased == "every model" and "@" not in name
        grams = alignment.Grams(base @ base.T, own @ base.T, own @ own.T, cells, unbiased)
        gain = alignment.batch_gain(grams, batch)
        row = {"arm": arm, "proposal": name, "batch": batch, "gain": gain.estimate, "gain_low": gain.low}
        rows.append(row | {"gain_high": gain.high})
    return ledger.Found(rows, text.name, stage.sha256)


def _mapnet(it: settings.Setting, regime: str, objective: Any) -> tuple[Any, str]:
    """Fit a MAPNet; return it with the proposal by which it is to be used for single positions."""
    from gradvar.fitting import Options, fit_mapnet

    many = SENTENCES[regime]
    epochs = max(1, 16384 // (8 * many))
    count, epochs = (64, 1) if it.quick else (min(many, len(objective) - 32), epochs)
    fit = fit_mapnet(objective, Options(epochs=epochs), sentences=count, held_out=16, seed=0)
    return fit.network, str(fit.proposal)


def group_means(objective: Any, blocks: list[np.ndarray], masks: int) -> np.ndarray:
    """Return the mean gradients of groups of cells, ``[groups, parameters]`` in float64, by plain autograd.

    Args:
        objective: A masked LM under the arm's proposal.
        blocks: Sentences of each group, one for each of its cells; an arm with several masks a sentence takes as many
            fewer of them.
        masks: Masks of a sentence, beside those that its design draws together.

    Returns:
        The gradients of the mean losses.
    """
    import torch

    together = objective.proposal.design.cells
    each = masks * together
    draws = (masks, together) if together > 1 else (masks,)
    parameters = [p for p in objective.model.parameters() if p.requires_grad]
    found = []
    for number, block in enumerate(blocks):
        batch = objective.draw(block[: len(block) // each].tolist(), draws, seed=number)
        objective.model.zero_grad(set_to_none=True)
        objective.losses(batch).mean().backward()
        parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        found.append(torch.cat([part.flatten() for part in parts]).double().cpu().numpy())
    objective.model.zero_grad(set_to_none=True)
    return np.stack(found)


def predicted(it: settings.Setting, regime: str, stage: str = "") -> dict[str, tuple[float, float, float]]:
    """Return gain over cost by arm: the geometric mean over stages, with its interval.

    From the lower end of the gain (from the stages' own intervals) at the highest cost of the rounds to its upper end
    at the lowest. Of one stage alone, if that is named.
    """
    logs: dict[str, list[tuple[float, float] | None]] = {}
    for row in book(it).rows():
        if row["regime"] == regime and stage in ("", row["stage"]):
            ends = [float(row[name]) if row[name] else 0.0 for name in ("gain", "gain_low", "gain_high")]
            if min(ends) > 0:
                middle, low, high = np.log(ends)
                logs.setdefault(row["arm"], []).append((float(middle), float(high - low) / (2 * 1.96)))
            else:
                logs.setdefault(row["arm"], []).append(None)
    costs = cost.ratios(it, regime)
    if logs and "epoch-stratified" in costs:
        logs["epoch-stratified"] = [(0.0, 0.0)]
    found = {}
    for arm, parts in logs.items():
        known = [part for part in parts if part is not None]
        if arm in costs and len(known) == len(parts):
            middle, errors = np.array(known).T
            centre, reach = middle.mean(), 1.96 * np.sqrt((errors**2).sum()) / len(errors)
            cheap, dear = costs[arm][1:]
            ends = np.exp([centre, centre - reach, centre + reach]) / (costs[arm][0], dear, cheap)
            found[arm] = tuple(ends.tolist())
    return found


@dataclass(frozen=True)
class Point:
    """An arm with what was predicted of it and what came of it.

    Attributes:
        arm: Its name.
        gain: Predicted batch gain over cost, with its interval.
        speed: How much sooner than uniform masks it was, with its interval.
        bound: ``>`` or ``<`` where that is but a bound, as some runs never got there; empty otherwise.
        loss: Difference of its losses at the end to uniform masks'.
        costs: Of its step, beside uniform masks', by which gain and speed are divided; not the same where the race left
            a MAPNet unused.
    """

    arm: str
    gain: tuple[float, float, float]
    speed: tuple[float, float, float]
    bound: str
    loss: float
    costs: tuple[float, float] = (1.0, 1.0)


def both(it: settings.Setting, regime: str, stage: str = "") -> list[Point]:
    """Return the arms of which both is known, foretold from all stages or from one."""
    gains, costs = predicted(it, regime, stage), cost.ratios(it, regime)
    found = []
    for one in convergence.standings(it, regime):
        if one.arm in gains and one.seconds.resolved:
            low, high = one.ends
            ends = (1 / one.middle, 0.0 if np.isinf(high) else 1 / high, 1 / low if low > 0 else np.inf)
            bound = {"": "", "<": ">", ">": "<"}[one.bound]
            found.append(Point(one.arm, gains[one.arm], ends, bound, one.loss[0], (costs[one.arm][0], one.cost[0])))
    return found


def left_out(it: settings.Setting, regime: str) -> list[str]:
    """Return the arms whose gain is not resolved at every stage, or whose speed has no bound."""
    known = [point.arm for point in both(it, regime)]
    return [one.arm for one in convergence.standings(it, regime) if one.arm not in (*known, arms.CONTROL)]


def agreement(points: list[Point]) -> dict[str, tuple[float, float]]:
    """Return Kendall's tau with its p-value by what is ranked: ``seconds``, ``steps`` and ``losses``.

    Args:
        points: Arms.

    Returns:
        Of predicted gains over cost and realised speeds; of gains and speeds in steps, without the cost; of the former
        gains and lower losses at the end.
    """
    gains, speeds = np.array([(point.gain[0], point.speed[0]) for point in points]).T
    over, under = np.array([point.costs for point in points]).T
    losses = [-point.loss for point in points]
    ranked = {"seconds": (gains, speeds), "steps": (gains * over, speeds * under), "losses": (gains, losses)}
    taus = {what: stats.kendalltau(*each) for what, each in ranked.items()}
    return {what: (float(tau.statistic), float(tau.pvalue)) for what, tau in taus.items()}


def of_stages(it: settings.Setting, regime: str) -> dict[str, float]:
    """Return Kendall's tau of gains over cost and realised speeds, foretold from each stage alone."""
    names = measuring.by_stage([row for row in book(it).rows() if row["regime"] == regime])
    every = {stage: both(it, regime, stage) for stage in names}
    return {stage: agreement(each)["seconds"][0] for stage, each in every.items() if len(each) >= FEWEST}


def finding(it: settings.Setting) -> str:
    """Say what the picture shows."""
    said = []
    for regime in arms.ARMS:
        points = both(it, regime)
        if len(points) >= FEWEST:
            told = {what: f"{tau:.2f} (p = {p:.2g})" for what, (tau, p) in agreement(points).items()}
            text = f"*{regime}*: Kendall's τ over {len(points)} arms {told['seconds']}, in steps, without the cost, "
            text += f"{told['steps']}, of lower losses at the end {told['losses']}"
            lost = left_out(it, regime)
            said.append(text + (f"; not resolved: {', '.join(lost)}" if lost else ""))
    return f"Predicted gains and realised speeds: {'; '.join(said)}."


def draw(it: settings.Setting) -> None:
    """Draw realised speed against predicted gain, a panel a regime."""
    shown = {regime: points for regime in arms.ARMS if len(points := both(it, regime)) >= FEWEST}
    if not shown:
        return
    made, axes = drawing.figure(len(shown), 1, 5 * len(shown), 6.6, squeeze=False)
    for axis, (regime, points) in zip(axes[0], shown.items(), strict=True):
        for number, point in enumerate(points):
            colour = drawing.COLOURS[number % len(drawing.COLOURS)]
            (x, left, right), (y, below, above) = point.gain, point.speed
            up = 0.0 if point.bound or np.isinf(above) else above - y
            style = {
                "marker": {"": "o", "<": "v", ">": "^"}[point.bound],
                "markersize": 4,
                "color": colour,
                "linewidth": 1,
            }
            label = f"{number + 1}  {point.arm}"
            axis.errorbar(x, y, [[y - below], [up]], [[x - left], [right - x]], label=label, **style)
            tips = ((right, y), (x, above), (left, y), (x, below))  # in turn, as arms of one kind lie side by side
            tip, place = tips[number % 4], ((3, -3), (-3, 3), (-10, -3), (-3, -9))[number % 4]
            tip = tip if min(tip) > 0 and max(tip) < np.inf else (x, y)
            axis.annotate(str(number + 1), tip, place, textcoords="offset points", fontsize=8, color=colour)
        near = [each for point in points for each in (*point.gain, *point.speed) if 0 < each < np.inf]
        axis.plot(ends := [min(near), max(near)], ends, color=drawing.GREY, linewidth=1, linestyle=":")
        limits = (0.95 * min(near), 1.05 * max(near))
        ticks = [tick for tick in _TICKS if limits[0] <= tick <= limits[1]]
        axis.set(xscale="log", yscale="log", xlim=limits, ylim=limits, xticks=ticks, yticks=ticks)
        axis.xaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_major_formatter("{x:g}")
        axis.minorticks_off()
        tau, p = agreement(points)["seconds"]
        title = f"{regime}: Kendall's τ {tau:.2f} over {len(points)} arms (p = {p:.2g})"
        drawing.finish(
            axis, title, "predicted batch gain over cost (95 %)", "realised speed beside uniform masks (95 %)"
        )
        axis.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.11), handlelength=0.8, ncols=3)
    drawing.save(made, it.figures / "what_helps")


def main() -> None:
    """Measure what is missing, and draw."""
    it, drawing_alone = settings.setting(__doc__)
    names = arms.wanted(it, stages=True)
    if not drawing_alone:
        units = []
        for _, stage in measuring.pick(it, dict.fromkeys(names, STAGES[:1] if it.quick else STAGES)):
            regime = measuring.regime_of(stage.name)
            batch = regimes.recipe(it, regime, 0).training.batch
            key = {"regime": regime, "stage": stage.name}
            units.append(ledger.Unit(key, measure_stage, (it, regime, stage, batch)))
        ledger.run(book(it), units, it.jobs)
    draw(it)
    for regime in names:
        for point in both(it, regime):
            print(f"{regime}, {point.arm}: predicted {point.gain[0]:.3f}, realised {point.speed[0]:.3f}")


if __name__ == "__main__":
    settings.cleanly(main)
