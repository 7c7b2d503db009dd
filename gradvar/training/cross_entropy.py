"""Cross-entropies of targets with what a MAPNet learns from: the norms of their gradients at the logits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from gradvar.masking.masks import Masks


class _CrossEntropy(torch.autograd.Function):
    """Cross-entropies, and the norms of their gradients at the logits, of one table of errors."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        log_p = logits.log_softmax(dim=-1)
        target = targets.unsqueeze(-1)
        nll = -log_p.gather(-1, target)
        # Of the error itself: sums of squares of p and y apart would cancel where a model is sure.
        error = log_p.exp_().scatter_(-1, target, torch.expm1(-nll))
        ctx.save_for_backward(error)
        norms = torch.linalg.vector_norm(error, dim=-1)
        ctx.mark_non_differentiable(norms)
        return nll.squeeze(-1), norms

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor, None]:
        (error,) = ctx.saved_tensors
        return error * gradient.unsqueeze(-1), None


def cross_entropy(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Compute cross-entropies, and the norms ``|p - y|`` of their gradients at the logits, which cost nothing more.

    Args:
        logits: ``[cells, targets, vocabulary]``; half precision becomes float32.
        targets: ``[cells, targets]`` int64.

    Returns:
        ``[cells, targets]`` cross-entropies in nats, and norms without a graph.
    """
    logits = logits if logits.dtype == torch.float64 else logits.float()
    found: tuple[Tensor, Tensor] = _CrossEntropy.apply(logits, targets)  # type: ignore[no-untyped-call]
    return found


def squared_errors(logits: Tensor, batch: Mapping[str, Tensor], masks: Masks) -> Tensor:
    """``[cells]`` squared norms of the mean over a cell's targets of ``p - y``, as if all weights were alike."""
    errors = logits.double().softmax(dim=-1)
    target = batch["target_ids"].unsqueeze(-1)
    errors.scatter_add_(-1, target, torch.full_like(target, -1.0, dtype=errors.dtype))
    counts = masks.valid.sum(dim=1, keepdim=True)
    return (errors * masks.valid.unsqueeze(-1)).sum(dim=1).div(counts).square().sum(dim=1)
