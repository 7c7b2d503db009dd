"""Watches the gradient variance of a model in training: `decompose` and `compare`, small and often."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from transformers import TrainerCallback, TrainingArguments
from transformers.trainer_callback import TrainerControl, TrainerState

from gradvar import ranks
from gradvar.comparing import compare
from gradvar.decomposition.estimate import Estimate
from gradvar.errors import GradvarError
from gradvar.huggingface.masked_lm import MaskedLM
from gradvar.judging import Judge
from gradvar.mapnet.score import MapNetScore
from gradvar.masking.epochs import EpochStratified
from gradvar.masking.scores import Permuted
from gradvar.measure import sampling_order
from gradvar.study import decompose
from gradvar.training.joint import evaluating
from gradvar.training.recipe import Watch

if TYPE_CHECKING:
    from gradvar.training.trainer import MaskProposalTrainer

FEWEST = 4
"""Held-out sequences that a look takes."""
_SEED = 0  # of the sentences, and of the masks that are decomposed: the same at every look and in every run
_log = logging.getLogger(__name__)


class VarianceWatch(TrainerCallback):
    """Measures, every so many steps, where the noise of the gradient comes from and what the proposal does to it.

    The training is not touched: random numbers, modes and gradients are afterwards what they were, and the clock of a
    budget in seconds stands still. What a look costs is logged with it.

    Args:
        trainer: Whose model.
        dataset: Held-out sequences, of which always the same are taken.
        spec: How often, and how much.
        say: Is told of looks that fail, such as at a model whose loss is not finite; the training goes on.
    """

    def __init__(
        self, trainer: MaskProposalTrainer, dataset: Any, spec: Watch, say: Callable[[str], Any] = _log.warning
    ) -> None:
        self._trainer, self._dataset, self._spec, self._say = trainer, dataset, spec, say
        self._looked = -1
        self.seconds = 0.0

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Look at the model as it begins."""
        if state.global_step == 0:
            self.look(state)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Look, if it is time."""
        if self._spec.every and state.global_step % self._spec.every == 0:
            self.look(state)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Look at what it has become."""
        if self._trainer.is_over:
            self.look(state)

    def look(self, state: TrainerState) -> None:
        """Look now, unless this step was looked at already."""
        if self._looked == state.global_step:
            return
        self._looked = state.global_step
        trainer, start = self._trainer, time.perf_counter()
        logs: dict[str, float] = {}
        first = trainer.args.process_index == 0
        with trainer.paused(), trainer.whole(trainer.args.device if first else None):
            if first:
                with untouched(trainer.joint), ranks.alone():
                    try:
                        logs = self._figures(state.global_step)
                    except GradvarError as error:
                        self._say(f"note: nothing was seen at step {state.global_step}: {error}")
            trainer.accelerator.wait_for_everyone()
        spent = time.perf_counter() - start
        self.seconds += spent
        trainer.log(logs | {"watch/seconds": spent})

    def _figures(self, step: int) -> dict[str, float]:
        joint, spec = self._trainer.joint, self._spec
        objective = self._trainer.held_out.trained(self._dataset, spec.contexts)
        drawing = self._trainer.held_out.trained(self._dataset, joint.masking.contexts, spec.sentences)
        return figures(objective, drawing, joint.in_words, joint.options.target, spec, step)


def figures(
    objective: MaskedLM, drawing: MaskedLM, proposal: str, target: str, spec: Watch, seed: int
) -> dict[str, float]:
    """Decompose the gradient variance, and compare a proposal with uniform masks.

    Args:
        objective: The masked LM under uniform masks, with the MAPNet, if there is one.
        drawing: The same of those sentences alone, with scores measured as the training measures them.
        proposal: The proposal in use.
        target: What the MAPNet learns from.
        spec: How many sentences, masks and contexts.
        seed: Of the masks that are compared, so that no look has the luck of another.

    Returns:
        Components, shares and noise scales by level, the ceilings, variance and effective sample size of the proposal,
        rank correlation and ceiling share of the MAPNet, rank correlations of its placebo and of its target: each with
        its ends, ``_low`` and ``_high``, where it is resolved.
    """
    count = min(spec.sentences, len(objective))
    study = decompose(objective, sentences=count, masks=spec.masks, headroom=True, seed=_SEED)
    found: dict[str, Estimate] = {"signal": study.gradient_norm2}
    found |= {f"variance/{level}": value for level, value in study.components.items()}
    found |= {f"share/{level}": value for level, value in study.shares.items()}
    found |= {f"noise_scale/{level}": value for level, value in study.noise_scale.items()}
    found |= {f"headroom/{name}": value for name, value in study.headroom.items()}
    together = objective.read(proposal).design.cells
    if not isinstance(objective.read(proposal).design, EpochStratified) and proposal != "uniform/simple":
        masks = max(spec.masks, 2 * together)
        row = compare(drawing, [proposal], sentences=count, masks=masks, seed=seed).proposals[-1]
        found |= {"proposal/variance_ratio": row.variance_ratio, "proposal/ess": row.ess}
    if "mapnet" in objective.known_scores:
        score = objective.known_scores["mapnet"]
        assert isinstance(score, MapNetScore)
        judge = Judge(objective, sampling_order(len(objective), _SEED)[:count].tolist(), _SEED)
        found["mapnet/rank_correlation"] = judge.rank_correlation(score)
        found["mapnet/ceiling_share"] = judge.ceiling_share(score)
        found["mapnet/placebo_rank_correlation"] = judge.rank_correlation(Permuted(score))
        found["mapnet/target_rank_correlation"] = judge.target_rank_correlation(target)
    logs: dict[str, float] = {}
    for name, value in found.items():
        parts = {"": value.estimate, "_low": value.low, "_high": value.high}
        logs |= {f"{name}{end}": x for end, x in parts.items() if x is not None}
    return logs


@contextmanager
def untouched(module: nn.Module) -> Iterator[None]:
    """Leave random numbers, modes and gradients as they are, whatever the block does.

    Args:
        module: Whose modes and gradients.
    """
    gradients = [(p, p.grad, p.requires_grad) for p in module.parameters()]
    states = random.getstate(), np.random.get_state()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=list(devices)), evaluating(module):
        for parameter, _, _ in gradients:
            parameter.grad = None
        try:
            yield
        finally:
            for parameter, gradient, required in gradients:
                parameter.grad, parameter.requires_grad = gradient, required
            random.setstate(states[0])
            np.random.set_state(states[1])
