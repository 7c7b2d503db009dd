"""Compares ways to choose masks on the same sentences: variance, bias and cost, with intervals."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING

import numpy as np
from scipy import stats
from torch import Tensor

from gradvar import arms, ranks
from gradvar.ceilings import gradient_norms, headroom, masks_of
from gradvar.decomposition.components import Components
from gradvar.decomposition.contributions import of_means
from gradvar.decomposition.estimate import Estimate
from gradvar.decomposition.intervals import LEVEL
from gradvar.decomposition.merit import Draws, Merit, disjoint_advice
from gradvar.decomposition.moments import total
from gradvar.errors import GradvarError
from gradvar.masking.proposal import Proposal
from gradvar.masking.sets import Pool
from gradvar.measure import measure, sampling_order
from gradvar.provenance import command, versions
from gradvar.report.comparison import Comparison, Row
from gradvar.shading import SHOWN, score_tokens
from gradvar.study import check_request

if TYPE_CHECKING:
    from gradvar.huggingface.masked_lm import MaskedLM

FIELD = (
    "oracle/midzuno",
    "oracle/conditional-poisson",
    "oracle/pool:4",
    "oracle/pps~0.1",
    "logit/pps~0.1",
    "last-layer/pps~0.1",
    "loss^0.25/pps",
    "frequency/pps",
    "logit/hard",
    "uniform/span",
    "uniform/whole-word",
    "uniform/simple@0.3",
)
"""Compared by default, beside disjoint masks and whatever a fitted network offers."""
FITTED = ("mapnet/midzuno", "mapnet/pps~0.1", "mapnet-permuted/pps~0.1")
Progress = Callable[[int, int], None]


def compare(
    objective: MaskedLM,
    proposals: Sequence[str | Proposal] | None = None,
    *,
    sentences: int = 32,
    masks: int = 8,
    batch: int = 256,
    seed: int = 0,
    engine: str = "auto",
    parameters: str | None = None,
    memory: int | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Compare proposals by variance, bias and cost, on the same sentences, and measure what the best could reach.

    Args:
        objective: A masked LM under uniform masks.
        proposals: Proposals or their text; None takes the default field. ``uniform/simple`` is always there.
        sentences: Sentences sampled from the data.
        masks: Masks of each sentence, at least 4; a group of disjoint ones counts as its masks.
        batch: Sentences of the batch for which bias is weighed against variance.
        seed: Seed of every random choice.
        engine: ``onepass``, ``reference`` or ``auto``.
        parameters: Regular expression; only gradients of parameters whose name it finds are compared.
        memory: Bytes that the process may hold; by default most of what is free.
        progress: Called with the cells done and the cells in all.

    Returns:
        The comparison, with 95 % intervals.

    Raises:
        GradvarError: If something that was asked for cannot be done; the message says what to change.

    Examples:
        >>> import gradvar
        >>> objective = gradvar.MaskedLM.from_checkpoint(gradvar.DEMO_CHECKPOINT, gradvar.DEMO_TEXT, max_length=16)
        >>> result = gradvar.compare(objective, ["uniform/simple@0.3"], sentences=4, masks=4)
        >>> [row.proposal for row in result.proposals]
        ['uniform/simple', 'uniform/simple@0.3']
        >>> print(result["uniform/simple@0.3"].variance_ratio)
        0.64 [0.506, 0.775]
    """  # noqa: DOC502
    check_request(engine, parameters, None, None, None, None, sentences)
    _check(objective, sentences, masks, batch)
    start = time.perf_counter()
    objective = objective.studying(parameters)
    wanted, notices = _field(objective, proposals)
    _try_scores(objective, wanted, sentences, seed)
    own = [p for p in wanted if arms.needs_cells(p, objective.mask_rate)]
    for proposal in wanted:
        if proposal not in own:
            arms.check_pool(proposal, masks)
    steps = _Steps(progress, objective, sentences, masks, own)
    study = _uniform_study(objective, sentences, masks, seed, engine, parameters, memory, steps)
    norms = gradient_norms(objective, study.sentences, steps.scored)
    steps.next(steps.scoring)
    passes = _time_passes(study, own)
    rows, disjoint = [_uniform_row()], None
    scoring: dict[object, np.ndarray] = {}
    for proposal in wanted:
        scored = objective.under(proposal).scores(study.sentences)
        pooled = isinstance(proposal.design, Pool) and proposal not in own
        of_cells = arms.cell_scores(study, proposal, scored) if pooled else None
        key = arms.score_key(proposal)
        if key not in scoring:
            scoring[key] = arms.time_scoring(study, proposal, passes[proposal.mask_rate or objective.mask_rate])
        if proposal in own:
            draws = arms.measure_arm(study, proposal, steps.measured)
            steps.next(sentences * _cells_each(proposal, masks))
        else:
            draws = arms.reweighted(study, proposal, scored, of_cells)
        # Of masks of another rate, which have a bias, the covariance is another one.
        if draws.covariance is not None and draws.bias is None and (disjoint is None or draws.cells > disjoint.cells):
            disjoint = draws
        rows.append(_row(study, proposal, draws, scored, of_cells, passes, scoring[key], batch))
    whole, described = study.whole, objective.describe()
    weights = objective.weights_of(study.measured.data.tolist())
    return Comparison(
        headroom=headroom(whole, study.sentences, study.masks, norms, weights),
        disjoint=disjoint_advice(
            study.draws.data,
            study.draws.mask,
            None if disjoint is None else disjoint.covariance,
            objective.seconds_per_datum,
            float(np.median(passes[objective.mask_rate])),
            objective.room,
        ),
        proposals=tuple(rows),
        variance={
            "data": whole.component(0),
            "mask": whole.component(1),
            "gradient_norm2": whole.gradient_norm2(),
        },
        study={
            "sentences": sentences,
            "masks": masks,
            "batch": batch,
            **described["study"],
            "contexts": objective.scoring.contexts,
            "engine": study.measured.engine,
            "dtype": str(next(objective.model.parameters()).dtype).removeprefix("torch."),
            "seed": seed,
        },
        provenance={
            "command": command(),
            "versions": versions(),
            **described["provenance"],
            "wall_seconds": time.perf_counter() - start,
        },
        notices=(*notices, *study.measured.notices),
        tokens=score_tokens(objective, study.measured.data[:SHOWN].tolist(), seed=seed),
    )


def _check(objective: MaskedLM, sentences: int, masks: int, batch: int) -> None:
    """Refuse what cannot be compared, before anything is measured."""
    if ranks.world() > 1:
        raise GradvarError("compare runs in one process; start it without torchrun")
    if sentences < 4 or masks < 4:
        name, count = ("--sentences", sentences) if sentences < 4 else ("--masks", masks)
        raise GradvarError(f"{name} {count}: a comparison needs at least 4")
    if batch < 1:
        raise GradvarError(f"--batch {batch} is not a positive number of sentences")
    if objective.levels != ("data", "mask") or objective.proposal != Proposal():
        raise GradvarError("compare begins with uniform masks and without dropout; leave --proposal and --dropout out")


def _field(objective: MaskedLM, proposals: Sequence[str | Proposal] | None) -> tuple[list[Proposal], list[str]]:
    """Read the proposals, each once; of the default field those that fit, with what is to be said of it."""
    notices = []
    if proposals is None:
        room = objective.room
        disjoint = [f"uniform/disjoint:{masks}" for masks in sorted({2, room}) if masks <= room and room > 1]
        if not disjoint:
            notices.append("two disjoint masks do not fit into every sentence, and are left out")
        proposals = [*FIELD, *disjoint, *(FITTED if "mapnet" in objective.known_scores else ())]
    wanted = [objective.read(proposal) for proposal in proposals]
    for proposal in wanted:
        objective.under(proposal)  # refuses what does not fit
    return list(dict.fromkeys(p for p in wanted if p != Proposal())), notices


def _try_scores(objective: MaskedLM, wanted: list[Proposal], sentences: int, seed: int) -> None:
    """Refuse tables without a token and scores that are no numbers at once, not after the study of uniform masks."""
    rows = objective.sentences(sampling_order(len(objective), seed)[:sentences].tolist(), seed)
    for proposal in wanted:
        if not arms.is_measured(proposal.score):
            objective.under(proposal).scores(rows)


def _cells_each(proposal: Proposal, masks: int) -> int:
    """Cells of a sentence that a proposal is measured on."""
    together = proposal.design.cells
    return max(2, masks // together) * together if together > 1 else masks


class _Steps:
    """Progress over all parts of a comparison, in cells."""

    def __init__(
        self, progress: Progress | None, objective: MaskedLM, sentences: int, masks: int, own: list[Proposal]
    ) -> None:
        self._progress, self._done = progress, 0
        self.scoring = round(sentences * objective.mean_length * objective.scoring.contexts)
        self._total = sentences * (masks + sum(_cells_each(p, masks) for p in own)) + self.scoring
        self._sentences = sentences

    def measured(self, done: int, _total: int) -> None:
        """Report cells of the part that runs."""
        if self._progress:
            self._progress(min(self._done + done, self._total), self._total)

    def scored(self, sentences: int) -> None:
        """Report sentences scored."""
        self.measured(self.scoring * sentences // self._sentences, 0)

    def next(self, cells: int) -> None:
        """Go on to the next part."""
        self._done += cells


def _uniform_study(
    objective: MaskedLM,
    sentences: int,
    masks: int,
    seed: int,
    engine: str,
    parameters: str | None,
    memory: int | None,
    steps: _Steps,
) -> arms.Study:
    measured = measure(
        objective, (sentences, masks), seed, engine, parameters, memory, steps.measured, pairs=True, keep=True
    )
    steps.next(sentences * masks)
    whole = Components(total(list(measured.moments.values())), objective.levels)
    if whole.importance_headroom().estimate is None:
        raise GradvarError("the mask variance is zero, up to rounding; there is nothing to compare")
    rows = objective.sentences(measured.data.tolist(), seed)
    parts = whole.contributions
    draws = Draws(parts[:, 1], parts[:, 0], whole.signal_contributions, None)
    drawn = masks_of(objective, rows, measured, masks, seed)
    return arms.Study(objective, measured, whole, rows, drawn, draws, seed, masks, engine, parameters, memory)


def _time_passes(study: arms.Study, own: list[Proposal]) -> dict[float, np.ndarray]:
    """Seconds of a forward and backward pass by mask rate: how the targets were chosen makes no difference to it."""
    rates = dict.fromkeys([study.objective.mask_rate, *(p.mask_rate for p in own if p.mask_rate is not None)])
    objectives = [study.objective.under(Proposal(mask_rate=rate)) for rate in rates]
    lengths = study.sentences.attended.sum(dim=1).double()
    usual = int(study.measured.data[int((lengths - lengths.mean()).abs().argmin())])  # scoring is timed as a mean, too
    return dict(zip(rates, arms.time_passes(objectives, usual, study.seed), strict=True))


def _uniform_row() -> Row:
    """The row of what all others are compared with: exactly one, or zero."""
    one, none = Estimate(1.0, 1.0, 1.0), Estimate(0.0, 0.0, 0.0)
    return Row(
        str(Proposal()),
        "uniform",
        "simple",
        True,
        True,
        one,
        none,
        one,
        one,
        one,
        one,
        one,
        one,
        one,
        one,
        one,
        one,
        one,
        one,
    )


def _row(
    study: arms.Study,
    proposal: Proposal,
    draws: Draws,
    scored: Tensor,
    of_cells: np.ndarray | None,
    passes: dict[float, np.ndarray],
    scoring: np.ndarray,
    batch: int,
) -> Row:
    rate = study.objective.mask_rate
    spread = arms.weights_of(study, proposal, scored, of_cells)
    sentence = study.objective.seconds_per_datum
    drawing = arms.time_drawing(study, proposal, scored)
    uniform = arms.time_drawing(study, Proposal(), scored) + passes[rate] + sentence
    free = drawing + draws.cells * passes[proposal.mask_rate or rate] + sentence
    full, unscored = _Cost.of(free, uniform, scoring), _Cost.of(free, uniform)
    merit = Merit(study.draws, draws, full.ratio, full.error)
    freely = Merit(study.draws, draws, unscored.ratio, unscored.error)
    score, _, design = str(proposal).rpartition("/")
    return Row(
        proposal=str(proposal),
        score=score,
        design=design,
        declared_unbiased=draws.bias is None,
        own_cells=arms.needs_cells(proposal, rate),
        variance_ratio=merit.variance_ratio(),
        bias2_ratio=merit.bias2_ratio(),
        mse_ratio=merit.mse_ratio(),
        mse_ratio_at_batch=merit.mse_ratio(batch),
        ess=of_means(lambda m: m[0] ** 2 / m[1], np.stack([spread.first, spread.second], axis=1)).clip(0.0, 1.0),
        max_weight=Estimate(spread.largest, reason="a largest value has no interval"),
        cost_ratio=full.estimate(),
        cost_ratio_without_scoring=unscored.estimate(),
        efficiency=merit.efficiency(),
        efficiency_at_batch=merit.efficiency(batch),
        efficiency_without_scoring=freely.efficiency(batch),
        cosine=merit.cosine(),
        batch_gain=merit.batch_gain(),
        batch_gain_at_batch=merit.batch_gain(batch),
    )


@dataclass(frozen=True)
class _Cost:
    """Ratio of two costs, with the standard error of its logarithm and that error's degrees of freedom."""

    ratio: float
    error: float
    df: float

    @classmethod
    def of(cls, seconds: np.ndarray, uniform: np.ndarray, more: np.ndarray | None = None) -> _Cost:
        """Compare seconds timed in turns; ``more`` is added, timed apart, with an error of its own (Welch)."""
        added = np.zeros(2) if more is None else more
        logs = np.log((seconds + added.mean()) / uniform)
        parts = np.array([logs.std(ddof=1), added.std(ddof=1) / (seconds + added.mean()).mean()])
        counts = np.array([len(logs), len(added)])
        squares = parts**2 / counts
        total = squares.sum()
        df = total**2 / (squares**2 / (counts - 1)).sum() if total > 0 else inf
        return cls(float(np.exp(logs.mean())), float(np.sqrt(total)), float(df))

    def estimate(self) -> Estimate:
        """Give the ratio with Student's interval of its logarithm."""
        reach = float(np.exp(stats.t.ppf((1 + LEVEL) / 2, self.df) * self.error))
        return Estimate(self.ratio, self.ratio / reach, self.ratio * reach)
