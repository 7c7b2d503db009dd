r"""Does a proposal in proportion to the gradient norm reduce the variance? All ways to choose masks, at several stages.

Pre-stated. *Compared*, at 3 stages of *scratch*, 2 of *adapted* and the first of *published* (`regimes.py`), on the
same held-out sentences of a stage (96, 48, 16) with as many masks of each (16, 16, 8) at 15 %: the default field of
`gradvar compare`, two and as many disjoint masks as fit, uniform masks at 10 to 50 %, and a MAPNet by exact weights
(Midzuno, conditional Poisson), by weights of positions, with its permuted scores as placebo, and unweighted (`hard`).
The MAPNet is fitted to each stage anew, to 8,192 sentences of its training text (*published*: 2,048), seen once, or up
to 8 times where the text is short. Norms and scores that are measured are averages over 4 (*published*: 2) contexts.
One seed (0).

*Statistics*, each with its 95 % interval over sentences: variance and squared bias over the mask variance of uniform
masks; effective sample size of the weights; cost of a draw over that of a uniform one, with and without scores;
efficiency (ratio of mean squared errors) and batch gain (by alignment) at equal cost in a batch of 256; the three
ceilings.

*Questions*, and what holds. An arm has less variance at a stage where the upper end of its ratio is below 1.
 1. The oracle under exact weights (Midzuno, conditional Poisson, pool) has less variance: holds for the arms that have
    at more than half of the stages. By how much is told beside the ceiling of importance sampling.
 2. The oracle under weights of positions: likewise, beside the ceiling of position weights.
 3. MAPNet: likewise, and its ratio's upper end is below the estimate of the placebo's.
 4. An arm pays if the lower end of its batch gain at equal cost is above 1 at all stages of a regime; where the gain of
    a biased arm is not resolved, its efficiency counts instead, and the figure says so. Of some 25 arms in 3 regimes
    that do not pay, up to two are to be expected to come out above 1 by chance alone.

Regimes that are not there yet are left out, and added by a later call.

    python experiments/proposals.py --train TRAIN --valid VALID --glue GLUE
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ledger
import measuring
import proposals_figures
import regimes
import settings

if TYPE_CHECKING:
    from gradvar.huggingface.masked_lm import MaskedLM
    from gradvar.report.comparison import Comparison

POSITIONS = {"scratch": (1, 2, 4), "adapted": (0, 4), "published": (0,)}
RATES = (0.1, 0.2, 0.3, 0.4, 0.5)
FITTED = ("mapnet/midzuno", "mapnet/conditional-poisson", "mapnet/pps~0.1", "mapnet/hard", "mapnet-permuted/pps~0.1")
SEED = 0
BATCH = 256


@dataclass(frozen=True)
class Size:
    """How large a study is.

    Attributes:
        sentences: Held-out sentences.
        masks: Masks of each.
        contexts: Contexts in which norms and scores are measured.
        fitted: Sentences that the MAPNet sees.
    """

    sentences: int
    masks: int
    contexts: int
    fitted: int


SIZES = {"scratch": Size(96, 16, 4, 8192), "adapted": Size(48, 16, 4, 8192), "published": Size(16, 8, 2, 2048)}
QUICK = Size(4, 4, 2, 64)


def field(room: int) -> list[str]:
    """Return what is compared.

    Args:
        room: Disjoint masks that fit into every sentence.

    Returns:
        Proposals, each once.
    """
    from gradvar.comparing import FIELD

    disjoint = [f"uniform/disjoint:{masks}" for masks in sorted({2, room}) if 2 <= masks <= room]
    rates = [f"uniform/simple@{rate:g}" for rate in RATES]
    return list(dict.fromkeys([*(name for name in FIELD if name not in rates), *rates, *disjoint, *FITTED]))


def measure(stage: regimes.Stage, size: Size) -> ledger.Found:
    """Fit a MAPNet to a stage and compare the field there: one unit of work."""
    import gradvar
    from gradvar.fitting import Options

    fit = measuring.fit(measuring.masked_lm(stage, stage.train, 2), Options(), size.fitted, 8, SEED)
    objective = gradvar.MaskedLM.from_checkpoint(
        stage.folder,
        stage.valid,
        max_length=stage.max_length,
        contexts=size.contexts,
        mapnet=fit.network,
        device=stage.device,
    )
    found = gradvar.compare(
        objective, field(objective.room), sentences=size.sentences, masks=size.masks, batch=BATCH, seed=SEED
    )
    first = {**measuring.columns({"loss": loss(objective)}), **vars(size)}
    return ledger.Found(rows_of(found, first), stage.valid.name, stage.sha256)


def loss(objective: MaskedLM, sentences: int = 256) -> Any:
    """Estimate the held-out loss of uniform masks, in nats a target."""
    import torch

    from gradvar.decomposition.contributions import of_means
    from gradvar.measure import sampling_order

    data = sampling_order(len(objective), SEED)[:sentences].tolist()
    with torch.no_grad():
        parts = [objective.losses(objective.draw(data[at : at + 32], (1,), SEED)) for at in range(0, len(data), 32)]
    return of_means(lambda means: float(means[0]), torch.cat(parts).double().cpu().numpy()[:, None])


def rows_of(found: Comparison, first: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a row of the stage, with its variances and ceilings, and a row for each proposal.

    Args:
        found: What was compared.
        first: More about the stage.

    Returns:
        Rows of the kinds ``stage`` and ``proposal``.
    """
    variances = {f"{name}_variance": of for name, of in found.variance.items() if name != "gradient_norm2"}
    about = {
        **variances,
        "gradient_norm2": found.variance["gradient_norm2"],
        **{f"{name}_ceiling": of for name, of in found.headroom.items()},
        "disjoint_balance": found.disjoint.balance,
    }
    rows: list[dict[str, Any]] = [{"kind": "stage", **first, **measuring.columns(about)}]
    for row in found.proposals:
        named = {"proposal": row.proposal, "score": row.score, "design": row.design, "unbiased": row.declared_unbiased}
        rows.append({"kind": "proposal", **named, **measuring.columns(row.estimates())})
    return rows


def book(it: settings.Setting) -> ledger.Ledger:
    """Return the numbers of this experiment."""
    return ledger.Ledger(it.figures / "proposals.csv")


def draw(it: settings.Setting) -> None:
    """Draw what is there, and say what was found."""
    proposals_figures.draw(book(it).rows(), it.figures)


def measure_all(it: settings.Setting) -> None:
    """Measure what is missing."""
    units = []
    for _, stage in measuring.pick(it, measuring.last_of(POSITIONS) if it.quick else POSITIONS):
        size = QUICK if it.quick else SIZES[measuring.regime_of(stage.name)]
        units.append(ledger.Unit({"stage": stage.name}, measure, (stage, size)))
    ledger.run(book(it), units, it.jobs)


if __name__ == "__main__":
    settings.cleanly(lambda: settings.measure_and_draw(__doc__, measure_all, draw))
