"""The always-on check: an engine's gradients must be autograd's, parameter by parameter, summed and cell by cell."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gradvar.errors import EngineError, GradvarError
from gradvar.persample.engine import Batch, Losses
from gradvar.persample.parameters import Target

_FLOOR = 1e-3  # of the whole gradient: smaller parameters' errors are relative to it


@dataclass(frozen=True)
class CheckResult:
    """What the check found.

    Attributes:
        zero: Names of the parameters whose gradient is zero but for rounding, such as key biases.
        worst: Name of the parameter with the largest error.
        error: Its error ``|g - g_autograd| / max(|g_autograd|, 1e-3 |all g|)``.
    """

    zero: tuple[str, ...]
    worst: str
    error: float


def tolerance_of(dtype: torch.dtype) -> float:
    """Largest relative error of a gradient that rounding may explain."""
    return 1e-7 if dtype == torch.float64 else 1e-3


def autograd_gradients(losses: Losses, batch: Batch, model: nn.Module) -> dict[int, Tensor]:
    """Differentiate the summed losses of a batch by ordinary autograd.

    Args:
        losses: Runs the model.
        batch: The cells.
        model: All its trainable parameters are differentiated.

    Returns:
        The gradients by ``id(parameter)``, without those that the loss does not reach.

    Raises:
        GradvarError: If the model uses the kind of gradient checkpointing that allows no such call.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with torch.enable_grad():
        value = losses(batch).sum()
        if not value.requires_grad:
            return {}
        try:
            found = torch.autograd.grad(value, parameters, allow_unused=True)
        except RuntimeError as error:
            if "use_reentrant" not in str(error):
                raise
            raise GradvarError(
                "the model uses reentrant gradient checkpointing; switch it off, or pass use_reentrant=False"
            ) from error
    return {id(p): g for p, g in zip(parameters, found, strict=True) if g is not None}


def check_deterministic(losses: Losses, batch: Batch) -> None:
    """Refuse a model whose losses of the same cells differ from call to call.

    Args:
        losses: Runs the model.
        batch: Some cells.

    Raises:
        GradvarError: If they do.
    """
    with torch.no_grad():
        first, second = losses(batch), losses(batch)
    gap = float((first - second).abs().max() / first.abs().max().clamp(min=1e-30))
    # Sums in another order may round differently on a GPU; randomness is larger.
    if gap > 1e3 * torch.finfo(first.dtype).eps:
        raise GradvarError(
            f"the model is random: two calls gave losses of the same cells that differ by {gap:.1e}; "
            "put it in evaluation mode, or make that randomness a level"
        )


def check_against_autograd(
    losses: Losses,
    batch: Batch,
    model: nn.Module,
    targets: list[Target],
    sums: Callable[[Target], Tensor],
    last_norm2: Callable[[Target], Tensor],
) -> CheckResult:
    """Compare an engine with two ordinary backward passes: over all cells, and over the last one alone.

    The second pass sees what the sum does not: cells that are mistaken for one another, or that mix.

    Args:
        losses: Runs the model on a batch and returns its losses ``[cells]``.
        batch: The cells.
        model: Errors are relative to the gradient of all its parameters.
        targets: The parameters studied.
        sums: The engine's sum over the cells of a parameter's gradient.
        last_norm2: The engine's squared gradient norm of the last cell.

    Returns:
        The parameters whose gradient vanishes, and the largest error.

    Raises:
        EngineError: If a gradient differs by more than 1e-3 (float32) or 1e-7 (float64).
    """
    last = autograd_gradients(losses, {name: x[-1:] for name, x in batch.items()}, model)
    alone = {key: gradient.norm() for key, gradient in last.items()}
    del last  # so that the gradients of one batch are held at a time
    together = autograd_gradients(losses, batch, model)
    tolerance = tolerance_of(targets[0].parameter.dtype)
    whole, whole_alone = _norm(together), _norm(alone)
    rounding = 4 * torch.finfo(whole.dtype).eps
    zero: list[str] = []
    worst, error, seen = "", 0.0, True
    for target in targets:
        key, nothing = id(target.parameter), torch.zeros_like(target.parameter)
        summed, single = together.get(key, nothing), alone.get(key, nothing.norm())
        engine = sums(target).view_as(summed)
        by_sum = (engine - summed).norm() / _size(summed.norm(), whole)
        by_cell = (last_norm2(target).sqrt() - single).abs() / _size(single, whole_alone)
        relative = float(torch.maximum(by_sum.double(), by_cell.double()))
        if not relative <= error:
            worst, error = target.name, relative
            seen = bool(engine.count_nonzero()) or not bool(single)
        if key in together and summed.norm() <= rounding * whole and single <= rounding * whole_alone:
            zero.append(target.name)
    if not error <= tolerance:
        cause = (
            f"the engine's gradient differs from autograd's by {error:.1e}; the model may mix cells, or use its "
            "weights outside their modules"
            if seen
            else "the model uses it without calling the module that holds it"
        )
        raise EngineError(f"parameter '{worst}': {cause}; use --engine reference")
    return CheckResult(tuple(zero), worst, error)


def _norm(gradients: dict[int, Tensor]) -> Tensor:
    norms = [gradient.norm() for gradient in gradients.values()]
    return torch.stack(norms).norm() if norms else torch.zeros(())


def _size(norm: Tensor, whole: Tensor) -> Tensor:
    return torch.maximum(norm, _FLOOR * whole).clamp(min=1e-30)
