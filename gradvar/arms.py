"""One proposal of a comparison: what its draws contribute, how its weights spread, and what it costs."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from gradvar.decomposition.components import Components
from gradvar.decomposition.contrast import squared_difference
from gradvar.decomposition.merit import Draws
from gradvar.decomposition.moments import total
from gradvar.errors import GradvarError
from gradvar.masking.designs import sum_over
from gradvar.masking.hashing import hash_key
from gradvar.masking.masks import Masks, Sentences
from gradvar.masking.pps import PPS
from gradvar.masking.proposal import Proposal, overflow
from gradvar.masking.scores import AtTargets, Power, Score, set_scores
from gradvar.masking.sets import Disjoint, Pool, SetDesign
from gradvar.measure import Measurement, measure
from gradvar.persample.check import autograd_gradients

if TYPE_CHECKING:
    from gradvar.huggingface.masked_lm import MaskedLM

_POOLS = 200  # of a sentence's cells, where not all are tried
_WEIGHTS = 64  # draws of a sentence whose weights are looked at
_ROUNDS = 7  # of timing
_PASSED = 8  # cells of a timed pass
_SCORED, _QUICK = 4, 0.005  # sentences scored alone to take the time, and seconds below which all are
_HUGE = 1e100  # second moments, whose squares still have to be numbers
_STREAM = 22  # of hashes


@dataclass(frozen=True)
class Weights:
    """How the importance weights of a proposal spread, the mean of a uniform draw's being one.

    Of set designs and ``pps`` the moments are exact or over uniform masks, and the largest is the largest that there
    can be; of others they are those of draws, among which large weights may be too rare to be seen.

    Attributes:
        first: ``[N]`` mean weight of each sentence's draws, or of their targets.
        second: ``[N]`` mean squared weight.
        largest: The largest of any sentence.
    """

    first: np.ndarray
    second: np.ndarray
    largest: float


@dataclass(frozen=True)
class Study:
    """The uniform study that everything is compared with.

    Attributes:
        objective: The masked LM, under uniform masks.
        measured: Its measurement, with tables kept.
        whole: Components of all parameters.
        sentences: Its sentences.
        masks: Its masks.
        draws: What they contribute.
        seed: Of sentences and masks.
        masks_each: Masks of a sentence.
        engine: As asked for.
        parameters: Regular expression of the parameters studied.
        memory: Bytes that the process may hold.
    """

    objective: MaskedLM
    measured: Measurement
    whole: Components
    sentences: Sentences
    masks: Masks
    draws: Draws
    seed: int
    masks_each: int
    engine: str
    parameters: str | None
    memory: int | None


def needs_cells(proposal: Proposal, rate: float) -> bool:
    """Whether a proposal must be measured on cells of its own.

    Designs that weigh whole sets by ``w(S)`` need none: ``E_q |w g|^2 = E_p[w |g|^2]``, over uniform masks.
    """
    if proposal.mask_rate not in (None, rate):
        return True
    return not isinstance(proposal.design, (SetDesign, Pool))


def measure_arm(study: Study, proposal: Proposal, progress: Callable[[int, int], None] | None = None) -> Draws:
    """Measure a proposal on cells of its own: the same sentences, the same number of masks or a few more.

    Args:
        study: The uniform study.
        proposal: The proposal.
        progress: Called with the cells done and the cells in all.

    Returns:
        What its draws contribute.
    """
    objective = study.objective.under(proposal)
    together = proposal.design.cells
    groups = max(2, study.masks_each // together)
    counts = (groups, together) if together > 1 else (study.masks_each,)
    rows = len(study.measured.data)
    measured = measure(
        objective, (rows, *counts), study.seed, study.engine, study.parameters, study.memory, progress, keep=True
    )
    whole = Components(total(list(measured.moments.values())), objective.levels)
    parts = whole.contributions
    unbiased = proposal.design.unbiased == "every model" and objective.mask_rate == study.objective.mask_rate
    bias = None if unbiased else squared_difference(measured.tables, study.measured.tables)
    data, signal = (study.draws.data, study.draws.signal) if unbiased else (parts[:, 0], whole.signal_contributions)
    if together == 1:
        return Draws(parts[:, 1], data, signal, bias)
    covariance = parts[:, 1] if isinstance(proposal.design, Disjoint) else None
    return Draws(parts[:, 1] + parts[:, 2] / together, data, signal, bias, together, covariance)


def reweighted(study: Study, proposal: Proposal, scores: Tensor, cell_scores: np.ndarray | None) -> Draws:
    """Measure a proposal that weighs whole sets on the cells of the uniform study.

    ``V_q(x) = V(x) + E_p[(w - 1)|g|^2]``. A pool's second moment is the mean over pools of the study's cells.

    Args:
        study: The uniform study.
        proposal: The proposal.
        scores: ``[N, positions]`` its scores.
        cell_scores: ``[N, M]`` scores of the study's cells, for a pool.

    Returns:
        What its draws contribute.

    Raises:
        GradvarError: If the weights overflow.
    """
    norms = study.whole.moments.cell_norm2
    design = proposal.design
    if isinstance(design, SetDesign):
        masks = study.masks
        log_weights = design.log_weight(study.sentences, scores, masks.positions, masks.valid)
        change = (torch.expm1(log_weights).cpu().numpy().reshape(norms.shape) * norms).mean(axis=1)
    else:
        assert isinstance(design, Pool)
        assert cell_scores is not None
        change = pool_moment(norms, cell_scores, design) - norms.mean(axis=1)
    if not np.abs(change).max() < _HUGE:
        raise GradvarError(overflow(proposal))
    mine = study.draws
    return Draws(mine.mask + change, mine.data, mine.signal, None)


def pool_moment(norms: np.ndarray, scores: np.ndarray, design: Pool) -> np.ndarray:
    """Second moment of a pool's weighted gradient, from cells in place of fresh candidates.

    ``E|g|^2/R + (1 - 1/R) E[|g_r|^2 s_r'/s_r]`` over pairs of different cells where ``epsilon = 0``; otherwise the mean
    of ``sum_r |g_r|^2 / Pr_r / R^2`` over pools of R different cells.

    Args:
        norms: ``[N, M]`` squared norms.
        scores: ``[N, M]`` scores of the cells.
        design: The pool.

    Returns:
        ``[N]``, unbiased.
    """
    size, cells = design.candidates, norms.shape[1]
    if design.epsilon == 0:
        all_pairs = (norms / scores).sum(axis=1) * scores.sum(axis=1) - norms.sum(axis=1)
        return norms.mean(axis=1) / size + (1 - 1 / size) * all_pairs / (cells * (cells - 1))
    return (
        np.mean([(norms[:, pool] / chances).sum(axis=1) for pool, chances in _pools(scores, design)], axis=0) / size**2
    )


def check_pool(proposal: Proposal, masks: int) -> None:
    """Refuse pools with epsilon that are larger than what a sentence has of masks.

    Args:
        proposal: Any proposal.
        masks: Masks of a sentence.

    Raises:
        GradvarError: If it is such a pool.
    """
    design = proposal.design
    if isinstance(design, Pool) and design.epsilon and design.candidates > masks:
        size = design.candidates
        raise GradvarError(
            f"pool:{size}~{design.epsilon:g} is measured on pools of a sentence's masks; give --masks {size} or more"
        )


def _pools(scores: np.ndarray, design: Pool) -> list[tuple[list[int], np.ndarray]]:
    """Pools of a sentence's cells, and the chances ``[N, R]`` of their members."""
    size, cells = design.candidates, scores.shape[1]
    every = [list(pool) for pool in combinations(range(cells), size)] if cells <= 12 else []
    rng = np.random.default_rng(0)
    some = every if 0 < len(every) <= _POOLS else [rng.permutation(cells)[:size].tolist() for _ in range(_POOLS)]

    def chances(pool: list[int]) -> np.ndarray:
        mine = scores[:, pool]
        return (1 - design.epsilon) * mine / mine.sum(axis=1, keepdims=True) + design.epsilon / size

    return [(pool, chances(pool)) for pool in some]


def is_measured(score: Score) -> bool:
    """Whether a score, or what it is a power of, is measured at every position in passes of its own."""
    return isinstance(_base(score), AtTargets)


def _by_true_norms(proposal: Proposal) -> bool:
    """Whether candidates are chosen by the norms of their own gradients."""
    return isinstance(proposal.design, Pool) and is_oracle(proposal.score)


def is_oracle(score: Score) -> bool:
    """Whether a score is the oracle, or a power of it."""
    base = _base(score)
    return isinstance(base, AtTargets) and base.quantity == "gradient"


def _base(score: Score) -> Score:
    return score.score if isinstance(score, Power) else score


def cell_scores(study: Study, proposal: Proposal, scores: Tensor) -> np.ndarray:
    """``[N, M]`` what a pool goes by: the true norms of the study's cells for the oracle, sums over positions else.

    A score of a user's own may have its own way to score whole cells.
    """
    norms = np.sqrt(study.whole.moments.cell_norm2)
    if is_oracle(proposal.score):
        exponent = proposal.score.exponent if isinstance(proposal.score, Power) else 1.0
        return _floored(norms) ** exponent
    masks = study.masks
    of_sets = set_scores(proposal.score, study.sentences, study.objective.scoring)
    if of_sets is None:
        return sum_over(scores, masks.positions, masks.valid).cpu().numpy().reshape(norms.shape)
    return _floored(of_sets(masks.positions, masks.valid, masks.keys).double().cpu().numpy().reshape(norms.shape))


def _floored(scores: np.ndarray) -> np.ndarray:
    """Make scores ``[N, M]`` of cells positive; nothing tells cells apart that are all zero."""
    mean = scores.mean(axis=1, keepdims=True)
    return np.where(mean > 0, np.maximum(scores, 1e-6 * mean), 1.0)


def weights_of(study: Study, proposal: Proposal, scores: Tensor, of_cells: np.ndarray | None) -> Weights:
    """Look at the importance weights of many draws; no gradient is needed for that."""
    objective = study.objective.under(proposal)
    sentences = objective.sentences(study.measured.data.tolist(), study.seed)
    rows = len(sentences.ids)
    if of_cells is not None:
        assert isinstance(proposal.design, Pool)
        return _pool_weights(of_cells, proposal.design)
    design = proposal.design
    # The draws of a pool take passes of their own, perhaps.
    number = study.masks_each if isinstance(design, Pool) else _WEIGHTS
    keys = hash_key(_STREAM, sentences.keys.unsqueeze(1), torch.arange(number, device=sentences.keys.device))
    if isinstance(design, SetDesign):
        square, most = design.mean_square(sentences, scores, keys), float(design.largest(sentences, scores).max())
        return _finite(proposal, Weights(np.ones(rows), square.cpu().numpy(), most))
    if isinstance(design, PPS):  # a target i has the weight k/(T pi_i)
        mean = sentences.counts.double() / sentences.totals
        inverse = torch.where(sentences.maskable, 1 / design.inclusion(sentences, scores), 0.0) * mean.unsqueeze(1)
        square = inverse.sum(dim=1) / sentences.totals
        return _finite(proposal, Weights(np.ones(rows), square.cpu().numpy(), float(inverse.max())))
    masks = proposal.draw(sentences, scores, keys, objective.scoring)
    counts = masks.valid.sum(dim=1, keepdim=True)
    relative = (masks.weights * counts * masks.valid).view(rows, -1)
    targets = masks.valid.view(rows, -1).sum(dim=1)
    first = relative.sum(dim=1) / targets
    second = relative.square().sum(dim=1) / targets
    return Weights(first.cpu().numpy(), second.cpu().numpy(), float(relative.max()))


def _finite(proposal: Proposal, weights: Weights) -> Weights:
    if not max(weights.largest, float(weights.second.max())) < _HUGE:
        raise GradvarError(overflow(proposal))
    return weights


def _pool_weights(scores: np.ndarray, design: Pool) -> Weights:
    """Weights ``1/(R Pr_r)``, drawn with the chances ``Pr_r``: ``E w = 1``, ``E w^2 = sum_r 1/Pr_r / R^2``."""
    size, (rows, cells) = design.candidates, scores.shape
    if size > cells and design.epsilon == 0:  # by pairs; the largest is that of the worst pool
        pairs = (scores.sum(axis=1) * (1 / scores).sum(axis=1) - cells) / (cells * (cells - 1))
        least, most = scores.min(axis=1), scores.max(axis=1)
        worst = float(((least + (size - 1) * most) / least).max()) / size
        return Weights(np.ones(rows), 1 / size + (1 - 1 / size) * pairs, worst)
    pools = [chances for _, chances in _pools(scores, design)]
    second = np.mean([(1 / chances).sum(axis=1) for chances in pools], axis=0) / size**2
    return Weights(np.ones(rows), second, max(float((1 / chances).max()) for chances in pools) / size)


def time_drawing(study: Study, proposal: Proposal, scores: Tensor) -> np.ndarray:
    """``[rounds]`` seconds that a draw takes, its scores given, in a batch of all sentences."""
    objective = study.objective.under(proposal)
    sentences = objective.sentences(study.measured.data.tolist(), study.seed)
    seconds = []
    for round_ in range(_ROUNDS + 1):
        keys = hash_key(_STREAM + round_, sentences.keys).unsqueeze(1)
        start = time.perf_counter()
        if _by_true_norms(proposal):  # of the candidates: their passes are counted as scoring
            proposal.design.draw(sentences, scores, keys)
        else:
            proposal.draw(sentences, scores, keys, objective.scoring)
        _finish(objective.device)
        seconds.append((time.perf_counter() - start) / len(sentences.ids))
    return np.array(seconds[1:])


def time_passes(objectives: list[MaskedLM], data: int, seed: int) -> np.ndarray:
    """``[objectives, rounds]`` seconds of an ordinary forward and backward pass of one cell, taking turns."""
    batches = [dict(objective.draw([data], (_PASSED,), seed)) for objective in objectives]
    seconds = np.empty((len(objectives), _ROUNDS + 1))
    for round_ in range(_ROUNDS + 1):
        for index, (objective, batch) in enumerate(zip(objectives, batches, strict=True)):
            start = time.perf_counter()
            autograd_gradients(objective.losses, batch, objective.model)
            _finish(objective.device)
            seconds[index, round_] = (time.perf_counter() - start) / len(batch["input_ids"])
    return seconds[:, 1:]


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def time_scoring(study: Study, proposal: Proposal, passes: np.ndarray) -> np.ndarray:
    """Time the scoring that a draw takes.

    Args:
        study: The uniform study.
        proposal: Whose score: of sentences of all lengths, each alone, or of all together where that is quick.
        passes: ``[rounds]`` seconds of a forward and backward pass, which a pool's candidates take by the oracle.

    Returns:
        ``[rounds]`` seconds.
    """
    if _by_true_norms(proposal):
        assert isinstance(proposal.design, Pool)
        return proposal.design.candidates * passes
    objective = study.objective.under(proposal)
    sentences = objective.sentences(study.measured.data.tolist(), study.seed)

    def once(some: Sentences) -> float:
        start = time.perf_counter()
        proposal.scores(some, objective.scoring.fresh())
        _finish(objective.device)
        return (time.perf_counter() - start) / len(some.ids)

    by_length = sentences.attended.sum(dim=1).argsort().tolist()
    places = [(2 * place + 1) * len(by_length) // (2 * _SCORED) for place in range(_SCORED)]
    alone = np.array([once(sentences.rows([by_length[place]])) for place in places])
    return alone if np.median(alone) > _QUICK else np.array([once(sentences) for _ in range(_ROUNDS)])


def score_key(proposal: Proposal) -> tuple[int, float | None, int]:
    """What the time of scoring depends on: powers of a score take as long; of the oracle's pools candidates count."""
    candidates = getattr(proposal.design, "candidates", 0) if _by_true_norms(proposal) else 0
    return id(_base(proposal.score)), proposal.mask_rate, candidates
