"""Over training: how much of a gradient's variance the masks make, and how much of that could be removed.

    python experiments/over_training.py --train TRAIN --valid VALID --glue GLUE

The claim: the mask term is what makes pretraining slower. Measured at five stages of the reference runs of scratch and
adapted, and at the first and the last of published, whose gradients are dear, from the first weights to the end, on
held-out text, at 15 % masked: V_data, V_mask, |mu|^2, the mask's share of the variance of one cell, the noise scales,
in total and by layer, from 8 masks each (seed 0) of as many sentences as `SIZES` says, or of all that the text has; and
the three ceilings: what importance sampling of whole masks, weights of positions and disjoint masks can remove of
V_mask at most, each alone, from the first of these sentences (positions in 2 contexts). The same without ceilings at
10, 20, 30, 40 and 50 % masked (published: 30 %). Intervals are 95 %, those of `gradvar.decompose`, one run a regime:
they are about sentences and masks, not about other runs. (512 sentences of adapted were planned for the other mask
rates; when a first unit had shown that they would take two hours, and before any was measured, that became 128.)

What it means for speed, where batches are small beside the noise scale, so that variance is what costs steps: without
any mask variance a batch has V/V_data times less of it; with a ceiling c removed, V/(V - c V_mask) times less. The
intervals of the latter take share and ceiling as independent. Costs of a remedy are not counted here.

The claim holds at a stage if the interval of the mask's share is above one half, fails if it is below, and is open
otherwise; it holds in a regime if it holds at all of its stages. That something can be done about it is called shown at
a stage if the interval of some V/(V - c V_mask) is above 1.1. A share has risen or fallen over training if its
intervals at the first and the last stage do not overlap.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ledger
import measuring
import over_training_figures
import regimes
import settings

RATE = 15
OTHER_RATES = {"scratch": (10, 20, 30, 40, 50), "adapted": (10, 20, 30, 40, 50), "published": (30,)}
PLACES = {"scratch": (0, 1, 2, 3, 4), "adapted": (0, 1, 2, 3, 4), "published": (0, 4)}
CEILINGS = ("importance", "position", "stratification")


@dataclass(frozen=True)
class Size:
    """How many sentences are studied, at most.

    Attributes:
        sentences: At 15 % masked.
        others: At other mask rates.
        ceilings: For the ceilings, which take the gradients of all positions.
        masks: Masks of each.
    """

    sentences: int
    others: int
    ceilings: int
    masks: int = 8


SIZES = {"scratch": Size(1024, 512, 64), "adapted": Size(1024, 128, 64), "published": Size(128, 64, 16)}
_QUICK = Size(8, 8, 4, masks=4)


class Book(ledger.Ledger):
    """The numbers, with those of layers in a file of their own: ``NAME.layers.csv``."""

    @property
    def layers(self) -> ledger.Ledger:
        """The numbers of layers."""
        return ledger.Ledger(self.path.with_suffix(".layers.csv"))

    def add(self, key: Mapping[str, Any], found: ledger.Found, seconds: float, device: str = "cpu") -> None:
        """Write down a finished unit: its layers first, so that what is done is whole."""
        parts = {of_layer: [row for row in found.rows if ("layer" in row) == of_layer] for of_layer in (True, False)}
        self.layers.add(key, replace(found, rows=parts[True]), seconds, device)
        super().add(key, replace(found, rows=parts[False]), seconds, device)


def study(stage: regimes.Stage, rate: int, size: Size) -> ledger.Found:
    """Study one stage at one mask rate.

    Args:
        stage: A checkpoint.
        rate: Per cent of the positions that are masked; at `RATE`, the ceilings are measured, too.
        size: How many sentences and masks.

    Returns:
        A row of totals, and one a layer.
    """
    import gradvar

    options = {"max_length": stage.max_length, "mask_rate": rate / 100, "contexts": 2, "device": stage.device}
    objective = gradvar.MaskedLM.from_checkpoint(stage.folder, stage.valid, **options)
    count = min(size.sentences if rate == RATE else size.others, len(objective))
    result = gradvar.decompose(objective, sentences=count, masks=size.masks, seed=0)
    estimates = {
        **_parts(result),
        **{f"noise_{name}": found for name, found in result.noise_scale.items()},
        "factor_all": without(result.shares["mask"], gradvar.Estimate(1.0, 1.0, 1.0)),
    }
    row = {"sentences": count, "masks": size.masks, "parameters": result.parameters, "loss": result.losses.mean()}
    if rate == RATE:
        count = min(size.ceilings, count)
        found = gradvar.decompose(objective, sentences=count, masks=size.masks, seed=0, headroom=True).headroom
        row["ceiling_sentences"] = count
        for name in CEILINGS:
            estimates[f"ceiling_{name}"] = found[name]
            estimates[f"factor_{name}"] = without(result.shares["mask"], found[name])
    layers = [
        {"layer": layer.name, "group": layer.group, "parameters": layer.parameters, **columns(_parts(layer))}
        for layer in result.layers
    ]
    return ledger.Found([{**row, **columns(estimates)}, *layers], stage.valid.name, stage.sha256)


def _parts(of: Any) -> dict[str, Any]:
    return {**of.components, "norm2": of.gradient_norm2, "share": of.shares["mask"]}


def without(share: Any, ceiling: Any) -> Any:
    """Estimate by how much less a batch varies with a part of its mask variance gone: ``1/(1 - share ceiling)``.

    Args:
        share: The mask's share of the variance of a cell.
        ceiling: The part of the mask variance that is removed.

    Returns:
        The factor ``V/(V - ceiling V_mask)``. The distances of the product's ends from it are the roots of sums of
        squares of what each factor's own ends do to it (share and ceiling as independent); a ceiling below zero counts
        as zero.
    """
    from gradvar import Estimate

    ends = [(part.estimate, part.low, part.high) for part in (share, ceiling)]
    if None in (*ends[0], *ends[1]):
        return Estimate(None, reason="the share or the ceiling is not resolved")
    (s, s_low, s_high), (c, c_low, c_high) = ends
    removed = [max(0.0, x) for x in (c * s, c * s - _root(c * (s - s_low), s * (c - c_low)))]
    highest = c * s + _root(c * (s_high - s), s * (c_high - c))
    if removed[0] >= 1:
        return Estimate(
            None, 1 / (1 - removed[1]) if removed[1] < 1 else None, reason="there is nothing but mask variance"
        )
    value, low = (1 / (1 - x) for x in removed)
    if highest >= 1:
        return Estimate(value, low, reason="all of the variance may be mask variance")
    return Estimate(value, low, max(value, 1 / (1 - highest)))


def _root(one: float, other: float) -> float:
    return float((one**2 + other**2) ** 0.5)


def columns(estimates: Mapping[str, Any]) -> dict[str, Any]:
    """Lay estimates out as columns ``NAME``, ``NAME_low`` and ``NAME_high``; ``unresolved`` says why some are empty.

    Args:
        estimates: By name.

    Returns:
        A row.
    """
    reasons = "; ".join(f"{name}: {found.reason}" for name, found in estimates.items() if found.reason)
    return {**measuring.columns(estimates), "unresolved": reasons}


def units(it: settings.Setting) -> list[ledger.Unit]:
    """Return what is to be done: each stage at each mask rate."""
    found = [stage for _, stage in measuring.pick(it, {"scratch": (0, 4)} if it.quick else PLACES)]
    pairs = [(stage, RATE) for stage in found]
    pairs += [(stage, rate) for stage in found for rate in OTHER_RATES[measuring.regime_of(stage.name)]]
    if it.quick:
        pairs = [pair for pair in pairs if pair[1] == RATE] + [(found[-1], 30)] if found else []
    return [
        ledger.Unit(
            {"stage": stage.name, "mask_rate": rate},
            study,
            (stage, rate, _QUICK if it.quick else SIZES[measuring.regime_of(stage.name)]),
        )
        for stage, rate in pairs
    ]


def book(it: settings.Setting) -> Book:
    """Return the numbers of this experiment."""
    return Book(Path(it.figures) / "over_training.csv")


def draw(it: settings.Setting) -> None:
    """Draw what the numbers say, and say it."""
    over_training_figures.draw(book(it).rows(), book(it).layers.rows(), Path(it.figures))


def measure_all(it: settings.Setting) -> None:
    """Measure what is missing."""
    ledger.run(book(it), units(it), it.jobs)


if __name__ == "__main__":
    settings.cleanly(lambda: settings.measure_and_draw(__doc__, measure_all, draw))
