"""The parameters of an optimizer: the encoder's and the MAPNet's, each with what is its own."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import nn

from gradvar.errors import GradvarError


def groups(
    module: nn.Module, prefix: str, decayed: Collection[str], decay: float, learning_rate: float
) -> list[dict[str, Any]]:
    """Make the parameter groups of a part of the joint model.

    Args:
        module: The joint model.
        prefix: First letters of the names of the part's parameters.
        decayed: Names of those with weight decay.
        decay: Weight decay.
        learning_rate: Learning rate.

    Returns:
        Groups as :class:`torch.optim.Optimizer` takes them; none is empty.
    """
    named = [(n, p) for n, p in module.named_parameters() if n.startswith(prefix) and p.requires_grad]
    parts = (([p for n, p in named if (n in decayed) == own], value) for own, value in ((True, decay), (False, 0.0)))
    return [{"params": part, "weight_decay": value, "lr": learning_rate} for part, value in parts if part]


def is_known(optimizer: torch.optim.Optimizer | None, module: nn.Module) -> bool:
    """Whether an optimizer has some of a module's parameters."""
    held = {id(p) for group in ([] if optimizer is None else optimizer.param_groups) for p in group["params"]}
    return any(id(p) in held for p in module.parameters())


def check_given(optimizer: torch.optim.Optimizer | None, schedule: Any, mapnet: nn.Module | None) -> None:
    """Refuse a user's schedule that knows nothing of the MAPNet's parameters.

    Args:
        optimizer: The user's, or None.
        schedule: The user's, or None.
        mapnet: The MAPNet, or None.

    Raises:
        GradvarError: If the optimizer would get groups that the schedule was not made for.
    """
    if schedule is not None and mapnet is not None and not is_known(optimizer, mapnet):
        raise GradvarError(
            "optimizers: the MAPNet's parameters get groups of their own, which a schedule that was made before does "
            "not know; give (optimizer, None) and lr_scheduler_type, or a network of your own whose parameters are in "
            "the optimizer"
        )


def forget(module: nn.Module) -> None:
    """Take the gradients away, so that the optimizer passes the parameters over, its own state included."""
    for parameter in module.parameters():
        parameter.grad = None
