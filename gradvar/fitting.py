"""Fits a MAPNet to a frozen masked LM, and judges it on sentences that it has not seen."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from gradvar.decomposition.estimate import Estimate
from gradvar.errors import GradvarError
from gradvar.huggingface.forward import embedding_shape, encoder_flops_per_token
from gradvar.judging import TARGETS, Judge
from gradvar.mapnet.calibration import Calibration
from gradvar.mapnet.config import default_config, flops_per_token
from gradvar.mapnet.losses import LOSSES, Loss, check_mixing, language, variance
from gradvar.mapnet.network import MapNet
from gradvar.mapnet.score import MapNetScore, log_scores, read, table
from gradvar.masking.hashing import hash_key
from gradvar.masking.masks import Sentences, chosen_of
from gradvar.masking.proposal import nearest
from gradvar.masking.sets import Simple
from gradvar.measure import sampling_order
from gradvar.provenance import command, versions
from gradvar.report.fit import Fit

if TYPE_CHECKING:
    from gradvar.huggingface.masked_lm import MaskedLM

_BATCH = 8  # sentences of a step: small ones learn far more from as many sentences
_FEWEST = 32  # sentences that choose the epoch, and that are fitted to
_VALIDATION = 0.1  # share of the fitting sentences that choose the epoch
_MOST_VALIDATED = 2048  # of them, which tell epochs apart well enough
_EPOCH_STREAM = 23  # of hashes


@dataclass(frozen=True)
class Options:
    """How a MAPNet is fitted; all of it is this project's choice.

    Attributes:
        target: What is measured: ``gradient`` (true norms, dear), ``logit``, ``last-layer`` or ``loss`` (forward only).
        loss: ``variance``, ``kl`` or ``log-regression``; see :mod:`gradvar.mapnet.losses`.
        language: Weight of the cross-entropy of all tokens given their surroundings, which is added; 0 for none.
        epochs: Passes over the sentences, each with a fresh mask of every sentence.
        learning_rate: Of AdamW, with a linear warm-up and a cosine decay.
        weight_decay: Of AdamW.
        epsilon: Uniform part that the ``variance`` loss reckons with.
        weight_cap: Cap of the weights in the ``variance`` loss; None for none.
        shape: Fields of :class:`~gradvar.mapnet.config.MapNetConfig` in place of the default's.
    """

    target: str = "logit"
    loss: str = "variance"
    language: float = 0.3
    epochs: int = 8
    learning_rate: float = 4e-3
    weight_decay: float = 0.05
    epsilon: float = 0.0
    weight_cap: float | None = None
    shape: tuple[tuple[str, Any], ...] = ()

    def __post_init__(self) -> None:
        if self.target not in TARGETS:
            raise GradvarError(f"--target '{self.target}' is unknown{nearest(self.target, TARGETS)}")
        if self.loss not in LOSSES:
            raise GradvarError(f"--loss '{self.loss}' is unknown{nearest(self.loss, LOSSES)}")
        if not 0 <= self.language < math.inf:
            raise GradvarError(f"--language {self.language} is not a number from 0 up")
        if self.epochs < 1:
            raise GradvarError(f"--epochs {self.epochs} is not a positive number")
        if not 0 < self.learning_rate < 1:
            raise GradvarError(f"--learning-rate {self.learning_rate} is not between 0 and 1")
        if self.loss != "variance" and (self.epsilon or self.weight_cap is not None):
            raise GradvarError(
                "--epsilon and --weight-cap belong to the variance loss; leave them out, or --loss variance"
            )
        check_mixing(self.epsilon, self.weight_cap)


def fit_mapnet(
    objective: MaskedLM,
    options: Options = Options(),
    *,
    sentences: int | None = None,
    held_out: int = 32,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Fit:
    """Fit a MAPNet to a masked LM whose weights stay as they are.

    Args:
        objective: The masked LM under uniform masks; its ``contexts`` are those of the held-out sentences' gradients.
        options: How.
        sentences: Sentences to fit to; None takes all that are not held out.
        held_out: Sentences whose true gradient norms judge the fit, 8 at least: half of them choose exponent and
            epsilon, the other half say what is reported.
        seed: Of the choice of sentences, the contexts and the network's first weights.
        progress: Called with the sentences measured and those in all.

    Returns:
        The network and what it is worth.

    Raises:
        GradvarError: If there are too few sentences, or the options do not fit the encoder.
    """
    contexts = objective.scoring.contexts
    if contexts < 2:
        raise GradvarError(f"--contexts {contexts}: held-out gradients take 2 contexts at least, to be judged fairly")
    if held_out < 8:
        raise GradvarError(f"--held-out {held_out}: a fit is judged on 8 sentences at least")
    available = len(objective) - held_out
    count = available if sentences is None else sentences
    if sentences is None and count < 2 * _FEWEST:
        raise GradvarError(
            f"the data hold {len(objective)} sentences; a fit takes {held_out} that are held out and {2 * _FEWEST} "
            "others at least: give more text, or lower --held-out or --max-length"
        )
    if available < count or count < 2 * _FEWEST:
        raise GradvarError(
            f"--sentences {count} and {held_out} held out do not go into the {len(objective)} of the data, or are "
            f"fewer than {2 * _FEWEST}; give more text, or lower them"
        )
    start = time.perf_counter()
    order = sampling_order(len(objective), seed)
    judged, fitted = order[:held_out], order[held_out : held_out + count]
    length = objective.corpus.max_length
    flops = encoder_flops_per_token(objective.model, length)
    config = default_config(*embedding_shape(objective.model), flops, length, **dict(options.shape))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = MapNet(config).to(objective.device)
    trained = (count - _validated(count)) // _BATCH * _BATCH * options.epochs
    steps = _Steps(progress, held_out, contexts * round(objective.mean_length), trained)
    judge = Judge(objective, judged.tolist(), seed, steps.judged)
    curve = _train(network, objective, options, fitted, seed, judge, steps)
    score = MapNetScore(network)
    calibration = judge.calibrate(score)
    fit = Fit(
        network=network,
        flops_share=flops_per_token(network.config, length) / flops,
        calibration=calibration,
        proposal=_proposal(calibration),
        rank_correlation=judge.rank_correlation(score),
        ceiling_share=judge.ceiling_share(score),
        captured_share=judge.captured_share(score),
        calibrated_ceiling_share=judge.calibrated_ceiling_share(score, calibration),
        others=judge.others(),
        curve=tuple(curve),
        study={
            "sentences": count,
            "held_out": held_out,
            "contexts": contexts,
            "target": options.target,
            "loss": options.loss,
            "language": options.language,
            "epochs": options.epochs,
            "learning_rate": options.learning_rate,
            "weight_decay": options.weight_decay,
            "epsilon": options.epsilon,
            "weight_cap": options.weight_cap,
            "seed": seed,
            **objective.describe()["study"],
        },
        provenance={
            "command": command(),
            "versions": versions(),
            **objective.describe()["provenance"],
            "wall_seconds": time.perf_counter() - start,
        },
    )
    network.record = fit.record()
    return fit


def _train(
    network: MapNet,
    objective: MaskedLM,
    options: Options,
    data: np.ndarray,
    seed: int,
    judge: Judge,
    steps: _Steps,
) -> list[tuple[int, Estimate]]:
    """Fit the network in place, keep the epoch that is best on a tenth of the sentences; return the learning curve."""
    cut = _validated(len(data))
    validation = objective.sentences(data[:cut].tolist(), seed)
    validated, watched = _measure(objective, validation, options.target, 0)

    def validate() -> float:
        with torch.no_grad():
            parts = torch.arange(cut).split(_FEWEST)  # the more sentences, the more memory
            mine = torch.cat([log_scores(network, validation.rows(p.tolist()), objective.scoring) for p in parts])
            return float(variance(mine, validated, watched, validation.maskable))

    score = MapNetScore(network)
    curve = {0: judge.ceiling_share(score)}
    best_loss, best = validate(), _copy(network)  # as it begins, it scores all positions alike
    loss_of, seen, checkpoint = _loss(options), 0, 64
    optimiser, schedule = _optimiser(network, options, (len(data) - cut) // _BATCH * options.epochs)
    for epoch in range(options.epochs):
        for batch in _batches(data[cut:], seed + epoch):
            rows = objective.sentences(batch, seed)
            norms, observed = _measure(objective, rows, options.target, epoch + 1)
            reading = read(network, rows, objective.scoring)
            loss = loss_of(reading.log_scores, norms, observed, rows.maskable)
            if options.language:
                tokens = table(network, objective.scoring)
                loss = loss + options.language * language(reading.contexts, tokens, rows.ids, rows.maskable)
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            seen += len(batch)
            steps.fitted(seen)
            if seen >= checkpoint:
                curve[seen] = judge.ceiling_share(score)
                checkpoint *= 2
        curve[seen] = judge.ceiling_share(score)
        if (value := validate()) < best_loss:
            best_loss, best = value, _copy(network)
    network.load_state_dict(best)
    network.eval()
    return list(curve.items())


def _validated(sentences: int) -> int:
    """Count those of the sentences that choose the epoch."""
    return max(_FEWEST, min(round(_VALIDATION * sentences), _MOST_VALIDATED))


def _copy(network: MapNet) -> dict[str, Tensor]:
    return {name: x.clone() for name, x in network.state_dict().items()}


def _loss(options: Options) -> Loss:
    if options.loss == "variance":
        return partial(variance, epsilon=options.epsilon, cap=options.weight_cap)
    return LOSSES[options.loss]


def _measure(objective: MaskedLM, rows: Sentences, target: str, epoch: int) -> tuple[Tensor, Tensor]:
    """``[rows, positions]`` norms at the targets of one fresh uniform mask an epoch, and where they are."""
    keys = hash_key(_EPOCH_STREAM, rows.keys, torch.tensor(epoch, device=rows.keys.device)).unsqueeze(1)
    masks = Simple().draw(rows, rows.maskable.double(), keys)
    values = objective.scoring.at_masks(TARGETS[target], rows, masks)
    slots = torch.where(masks.valid, masks.positions, rows.ids.shape[1])
    found = values.new_zeros(len(values), rows.ids.shape[1] + 1).scatter(1, slots, values)[:, :-1]
    observed = chosen_of(masks.positions, masks.valid, rows.ids.shape[1])
    return found / found[observed].median().clamp(min=1e-30), observed  # log-regression is not blind to the scale


def _batches(data: np.ndarray, seed: int) -> Iterator[list[int]]:
    shuffled = np.random.default_rng(seed).permutation(data)
    for start in range(0, len(shuffled) - _BATCH + 1, _BATCH):
        yield shuffled[start : start + _BATCH].tolist()


def _optimiser(
    network: MapNet, options: Options, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    optimiser = torch.optim.AdamW(
        network.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay, betas=(0.9, 0.98)
    )
    warm = max(1, steps // 20)

    def factor(step: int) -> float:
        if step < warm:
            return (step + 1) / warm
        return 0.5 * (1 + float(np.cos(np.pi * min(1.0, (step - warm) / max(1, steps - warm)))))

    return optimiser, torch.optim.lr_scheduler.LambdaLR(optimiser, factor)


def _proposal(calibration: Calibration) -> str:
    """Write the calibrated proposal; uniform masks where the scores are not trusted."""
    if calibration.fell_back or calibration.exponent == 0:
        return "uniform/simple"
    power = "" if calibration.exponent == 1 else f"^{calibration.exponent:g}"
    mixed = f"~{calibration.epsilon:g}" if calibration.epsilon else ""
    return f"mapnet{power}/pps{mixed}"


class _Steps:
    """Progress in cells of held-out gradients and sentences of the fit."""

    def __init__(self, progress: Callable[[int, int], None] | None, judged: int, each: int, fitted: int) -> None:
        self._progress, self._each = progress, each
        self._judging = judged * each
        self._total = self._judging + fitted

    def judged(self, sentences: int) -> None:
        if self._progress:
            self._progress(sentences * self._each, self._total)

    def fitted(self, sentences: int) -> None:
        if self._progress:
            self._progress(min(self._judging + sentences, self._total), self._total)
