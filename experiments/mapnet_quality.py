r"""Does MAPNet approximate the optimal proposal? Fits judged by true gradient norms, through training and by choice.

Pre-stated. *Compared*: MAPNets fitted to frozen stages (`regimes.py`: 3 of *scratch*, 2 of *adapted*, the first of
*published*) by default (target ``logit``, loss ``variance``, the width that costs a tenth of the encoder at most), with
3 seeds (*adapted*: 2, *published*: 1), each of which holds out sentences of its own; and, at the last stage of
*scratch* and the first of *adapted* with seed 0, so on the same held-out sentences, fits that differ from the default
in one choice: target (``gradient``, ``loss``, ``last-layer``), loss (``kl``, ``log-regression``), width (half, double).
A fit sees 8,192 sentences (*adapted* and *published*: 2,048), in up to 8 epochs where the text is short, and is judged
by the true norms of 32 (*adapted*: 24, *published*: 12) sentences of the same text that it has not seen (the encoder
may have), in 4 (*adapted*: 3, *published*: 2) contexts.

*Statistics*, each with its 95 % interval over held-out sentences: rank correlation within a sentence of scores and
measured norms (whose noise makes it smaller); ceiling share, the part of what weights of positions can remove that the
raw scores are predicted to remove; captured share, the same over what the oracle removes from as many contexts;
calibrated ceiling share, on the half of the sentences that had no part in the calibration; the ceiling share of scores
that need no network. The optimal proposal has a ceiling share of 1. Cost: FLOPs of the network over the encoder's.

*What holds.* MAPNet approximates the optimum at a stage if the lower end of its ceiling share is above 0.5 for all
seeds; it tells something of it if the lower end is above 0 for all seeds; else the claim does not hold there. A choice
is better (worse) than the default at a stage if its ceiling share is above (below) those of all seeds of the default
and its interval leaves out the default's of the same seed. The seven choices at two stages are fourteen looks.

    python experiments/mapnet_quality.py --train TRAIN --valid VALID --glue GLUE
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ledger
import mapnet_figures
import measuring
import regimes
import settings

if TYPE_CHECKING:
    from gradvar.huggingface.masked_lm import MaskedLM
    from gradvar.report.fit import Fit

POSITIONS = {"scratch": (1, 2, 4), "adapted": (0, 4), "published": (0,)}
CHOICES_AT = {"scratch": 4, "adapted": 0}
"""Position of the stage at which choices are compared."""
SEEDS = {"scratch": 3, "adapted": 2, "published": 1}
TARGETS, LOSSES, WIDTHS = ("logit", "gradient", "loss", "last-layer"), ("variance", "kl", "log-regression"), (1, 0.5, 2)
DEFAULT = {"target": TARGETS[0], "loss": LOSSES[0], "size": WIDTHS[0]}


@dataclass(frozen=True)
class Size:
    """How large a fit is.

    Attributes:
        fitted: Sentences that it sees.
        held_out: Sentences that judge it.
        contexts: Contexts in which their true norms are measured.
    """

    fitted: int
    held_out: int
    contexts: int


SIZES = {"scratch": Size(8192, 32, 4), "adapted": Size(2048, 24, 3), "published": Size(2048, 12, 2)}
QUICK = Size(64, 8, 2)


def choices(quick: bool) -> Iterator[dict[str, Any]]:
    """Yield what differs from the default in one choice; with ``quick`` one of each kind."""
    for name, values in (("target", TARGETS), ("loss", LOSSES), ("size", WIDTHS)):
        for value in values[1 : 2 if quick else None]:
            yield {**DEFAULT, name: value}


def units(it: settings.Setting, stages: list[tuple[int, regimes.Stage]]) -> list[ledger.Unit]:
    """List the work, the default first; with ``--quick`` choices at the first stage alone.

    Args:
        it: The setting.
        stages: Positions and stages.

    Returns:
        The units.
    """
    found = []
    for number, (position, stage) in enumerate(stages):
        regime = measuring.regime_of(stage.name)
        size = QUICK if it.quick else SIZES[regime]
        found += [
            (stage, DEFAULT, seed, size)
            for seed in range(1 if it.quick else min(it.seeds or SEEDS[regime], SEEDS[regime]))
        ]
        if number == 0 if it.quick else CHOICES_AT.get(regime) == position:
            found += [(stage, choice, 0, size) for choice in choices(it.quick)]
    return [
        ledger.Unit({"stage": stage.name, **choice, "seed": seed}, measure, (stage, choice, seed, size))
        for stage, choice, seed, size in sorted(found, key=lambda each: (each[1] != DEFAULT, each[2]))
    ]


def measure(stage: regimes.Stage, choice: dict[str, Any], seed: int, size: Size) -> ledger.Found:
    """Fit a MAPNet and judge it: one unit of work."""
    from gradvar.fitting import Options

    objective = measuring.masked_lm(stage, stage.train, size.contexts)
    shape = () if choice["size"] == 1 else (("width", width(objective, choice["size"])),)
    options = Options(choice["target"], choice["loss"], shape=shape)
    found = measuring.fit(objective, options, size.fitted, size.held_out, seed)
    return ledger.Found([row_of(found)], stage.train.name, stage.sha256)


def width(objective: MaskedLM, factor: float) -> int:
    """Return a multiple of the default's width."""
    from gradvar.huggingface.forward import embedding_shape, encoder_flops_per_token
    from gradvar.mapnet.config import default_config

    length = objective.corpus.max_length
    usual = default_config(*embedding_shape(objective.model), encoder_flops_per_token(objective.model, length), length)
    return round(factor * usual.width)


def row_of(fit: Fit) -> dict[str, Any]:
    """Return what a fit is worth as a row."""
    study = fit.study
    return {
        **measuring.columns(
            {
                "rank_correlation": fit.rank_correlation,
                "ceiling_share": fit.ceiling_share,
                "captured_share": fit.captured_share,
                "calibrated_ceiling_share": fit.calibrated_ceiling_share,
                **{f"{name}_ceiling_share": share for name, share in fit.others.items()},
            }
        ),
        "flops_share": fit.flops_share,
        "width": fit.network.config.width,
        "parameters": sum(each.numel() for each in fit.network.parameters()),
        "proposal": fit.proposal,
        "sentences": study["sentences"],
        "epochs": study["epochs"],
        "held_out": study["held_out"],
        "contexts": study["contexts"],
        "fit_seconds": fit.provenance["wall_seconds"],
    }


def book(it: settings.Setting) -> ledger.Ledger:
    """Return the numbers of this experiment."""
    return ledger.Ledger(it.figures / "mapnet_quality.csv")


def draw(it: settings.Setting) -> None:
    """Draw what is there, and say what was found."""
    mapnet_figures.draw(book(it).rows(), it.figures)


def measure_all(it: settings.Setting) -> None:
    """Measure what is missing."""
    wanted = measuring.last_of(POSITIONS) if it.quick else POSITIONS
    ledger.run(book(it), units(it, measuring.pick(it, wanted)), it.jobs)


if __name__ == "__main__":
    settings.cleanly(lambda: settings.measure_and_draw(__doc__, measure_all, draw))
