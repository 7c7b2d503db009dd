"""Held-out loss under fixed uniform masks, the same in every run, whatever the training masks are."""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, nan, sqrt

import numpy as np
import torch

from gradvar import ranks
from gradvar.huggingface.masked_lm import MaskedLM
from gradvar.measure import sampling_order
from gradvar.training.joint import evaluating

MASK_RATE = 0.15
_SEED = 0  # of sentences and masks: no run's, so that all runs are asked for the same targets


@dataclass(frozen=True)
class Quality:
    """What a model is worth on held-out text.

    Attributes:
        loss: Mean over sentences of the mean cross-entropy of their targets, in nats.
        loss_error: Its standard error over sentences; not a number where there is one.
        accuracy: Mean over sentences of the share of targets whose likeliest token is the right one.
        accuracy_error: Its standard error over sentences.
        sentences: How many.
    """

    loss: float
    loss_error: float
    accuracy: float
    accuracy_error: float
    sentences: int

    def metrics(self, prefix: str) -> dict[str, float]:
        """Return it as the Trainer's metrics; the perplexity is ``exp(loss)``."""
        found = {"loss": self.loss, "loss_se": self.loss_error, "perplexity": exp(min(self.loss, 700.0))}
        found |= {"accuracy": self.accuracy, "accuracy_se": self.accuracy_error}
        return {f"{prefix}_{name}": value for name, value in found.items()}


def evaluate(objective: MaskedLM, sentences: int, masks: int = 1, batch: int = 64) -> Quality:
    """Evaluate a masked LM on some sentences of its corpus, always the same.

    Args:
        objective: The model with the held-out text, under uniform masks of 15 %.
        sentences: How many; all, if there are fewer.
        masks: Masks of each.
        batch: Cells at once.

    Returns:
        Loss and accuracy, the same on all ranks, which share the sentences.
    """
    count, at_once = min(sentences, len(objective)), max(1, batch // masks)
    own = sampling_order(len(objective), _SEED)[:count][ranks.share_of(count)].tolist()
    found = [np.empty((0, 2))]
    with torch.no_grad(), evaluating(objective.model):
        for start in range(0, len(own), at_once):
            cells = objective.draw(own[start : start + at_once], (masks,), _SEED)
            logits = objective.logits(cells)
            losses = objective.target_losses(logits.float(), cells)
            hits = logits.argmax(dim=-1) == cells["target_ids"]
            each = [(x.double() * cells["target_weights"]).sum(dim=1) for x in (losses, hits)]
            found.append(torch.stack(each, dim=1).view(-1, masks, 2).mean(dim=1).cpu().numpy())
    loss, hit = ranks.all_rows(np.concatenate(found)).T
    return Quality(*_mean(loss), *_mean(hit), count)


def _mean(values: np.ndarray) -> tuple[float, float]:
    return float(values.mean()), float(values.std(ddof=1) / sqrt(len(values))) if len(values) > 1 else nan
