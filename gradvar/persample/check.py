"""The always-on check: an engine's summed gradient must be autograd's, parameter by parameter."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gradvar.errors import GradvarError
from gradvar.persample.parameters import Target


@dataclass(frozen=True)
class CheckResult:
    """What the check found.

    Attributes:
        unreached: Names of the parameters that the loss never reaches.
        zero: Names of the parameters whose gradient is zero but for rounding, such as key biases.
        worst: Name of the parameter with the largest error.
        error: Its error ``|g - g_autograd| / max(|g_autograd|, 1e-3 |all g|)``.
    """

    unreached: tuple[str, ...]
    zero: tuple[str, ...]
    worst: str
    error: float


def check_against_autograd(
    losses: Callable[[], Tensor],
    model: nn.Module,
    targets: list[Target],
    sums: dict[int, Tensor],
    covers: Callable[[Target], bool],
) -> CheckResult:
    """Compare summed gradients with one ordinary backward pass over the same cells.

    Args:
        losses: Runs the model on these cells and returns their losses ``[cells]``.
        model: The model; errors are relative to the gradient of all its parameters.
        targets: The parameters studied.
        sums: ``[rows, columns]`` sum over cells of each parameter's gradient, by ``id(parameter)``.
        covers: Whether the engine has a rule for a parameter.

    Returns:
        The parameters that the loss does not reach, and the largest error.

    Raises:
        GradvarError: If a parameter that the loss reaches is covered by no rule, or a gradient differs by
            more than 1e-3 (float32) or 1e-7 (float64).
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with torch.enable_grad():
        found = torch.autograd.grad(losses().sum(), parameters, allow_unused=True)
    by_parameter: dict[int, Tensor | None] = dict(zip(map(id, parameters), found, strict=True))
    norms = [gradient.norm() for gradient in by_parameter.values() if gradient is not None]
    whole = torch.stack(norms).norm() if norms else torch.zeros(())
    rounding = 4 * torch.finfo(whole.dtype).eps
    unreached: list[str] = []
    zero: list[str] = []
    worst, error = "", 0.0
    for target in targets:
        expected = by_parameter[id(target.parameter)]
        if expected is None or not (covers(target) or bool(expected.any())):
            unreached.append(target.name)
            continue
        if not covers(target):
            raise GradvarError(
                f"the loss reaches parameter '{target.name}' but no rule covers it; use --engine reference"
            )
        if expected.norm() <= rounding * whole:
            zero.append(target.name)
        difference = (sums[id(target.parameter)].view_as(expected) - expected).norm()
        relative = float(difference / torch.maximum(expected.norm(), 1e-3 * whole).clamp(min=1e-30))
        if not relative <= error:
            worst, error = target.name, relative
    tolerance = 1e-7 if targets[0].parameter.dtype == torch.float64 else 1e-3
    if not error <= tolerance:
        raise GradvarError(
            f"parameter '{worst}': the engine's gradient differs from autograd's by {error:.1e}; the model may be "
            "random, or use its weights outside their modules; use --engine reference"
        )
    return CheckResult(tuple(unreached), tuple(zero), worst, error)
