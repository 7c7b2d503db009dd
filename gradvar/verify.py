"""An engine against plain autograd on the user's own model: every cell, every parameter."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, prod
from typing import Final

import torch
from torch import Tensor

from gradvar.decomposition.accumulator import MomentAccumulator, Tables
from gradvar.errors import GradvarError
from gradvar.objective import Objective
from gradvar.persample.check import autograd_gradients, check_deterministic, tolerance_of
from gradvar.persample.parameters import select
from gradvar.runner import check_engine_name, make_engine

_FLOORS: Final = {torch.float64: 1e-8}  # of the whole gradient; see EngineCheck.errors


@dataclass(frozen=True)
class EngineCheck:
    """How far an engine is from autograd.

    Attributes:
        engine: Its name.
        errors: Largest error by parameter: of a cell's norm, of the mean gradient of a datum and of the sum of
            squares within it, each relative to autograd's, or to 1e-8 of the whole gradient's if that is larger (1e-3
            of it, unless in float64: rounding leaves that much of the gradient of a key bias, which is zero).
        worst: Name of the parameter with the largest error.
        error: That error.
        tolerance: What the always-on check allows: 1e-3, in float64 1e-7.
    """

    engine: str
    errors: dict[str, float]
    worst: str
    error: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether every parameter is within the tolerance."""
        return self.error <= self.tolerance

    def __str__(self) -> str:
        """Say it in one line."""
        verdict = "agrees" if self.passed else "DISAGREES"
        return (
            f"engine {self.engine} {verdict} with autograd on {len(self.errors)} parameters; "
            f"the worst is '{self.worst}', with a relative error of {self.error:.1e}"
        )


def check_engine(
    objective: Objective,
    *,
    data: int = 2,
    draws: int = 2,
    engine: str = "onepass",
    seed: int = 0,
    parameters: str | None = None,
) -> EngineCheck:
    """Compare an engine with a backward pass of its own for every cell.

    Best in float64, where rounding is far below any mistake: ``objective.model.double()``.

    Args:
        objective: Whose cells, on whose model.
        data: Data of the population to try, the first ones.
        draws: Draws at each inner level.
        engine: ``onepass`` or ``reference``.
        seed: Seed of the draws.
        parameters: Regular expression of parameter names; None takes all.

    Returns:
        The errors, parameter by parameter.

    Raises:
        GradvarError: If the population is too small, the model is random, or the engine refuses it.

    Examples:
        >>> import gradvar
        >>> objective = gradvar.MaskedLM.from_checkpoint(gradvar.DEMO_CHECKPOINT, gradvar.DEMO_TEXT, max_length=32)
        >>> objective.model.double()  # doctest: +ELLIPSIS
        ModernBertForMaskedLM(...)
        >>> check = gradvar.check_engine(objective)
        >>> check.passed, len(check.errors)
        (True, 29)
    """
    check_engine_name(engine)
    if len(objective) < data:
        raise GradvarError(f"asked for {data} data, but the population holds {len(objective)}")
    inner = tuple(draws for _ in objective.levels[1:])
    counts = (1, *inner)  # a datum at a time, so that its mean gradient can be read off
    targets = select(objective.model, parameters)
    batch = dict(objective.draw(list(range(data)), inner, seed))
    check_deterministic(objective.losses, batch)
    by_cell = [
        autograd_gradients(objective.losses, {name: x[cell : cell + 1] for name, x in batch.items()}, objective.model)
        for cell in range(data * prod(inner))
    ]
    if not all(by_cell):
        raise GradvarError("the loss of some cell reaches no trainable parameter; there is nothing to compare")
    device = targets[0].parameter.device
    chosen = make_engine(engine, objective, targets)
    found = []
    for start in range(0, data * prod(inner), prod(inner)):
        part = {name: x[start : start + prod(inner)] for name, x in batch.items()}
        found.append({id(t.parameter): MomentAccumulator(*t.shape, counts, t.parameter.dtype, device) for t in targets})
        chosen.accumulate(objective.losses, part, found[-1], 0)
    whole = torch.stack([torch.stack([g.double().norm() for g in cell.values()]).norm() for cell in by_cell]).max()
    floor = float(whole) * _FLOORS.get(targets[0].parameter.dtype, 1e-3)
    errors = {}
    for target in targets:
        nothing = torch.zeros_like(target.parameter)
        gradients = torch.stack([cell.get(id(target.parameter), nothing) for cell in by_cell]).double()
        explicit = gradients.view(data, prod(inner), *target.shape)
        errors[target.name] = max(
            _error(accumulators[id(target.parameter)].tables, cells, inner, floor)
            for accumulators, cells in zip(found, explicit, strict=True)
        )
    worst = max(errors, key=lambda name: errors[name])
    return EngineCheck(chosen.name, errors, worst, errors[worst], tolerance_of(targets[0].parameter.dtype))


def _error(found: Tables, cells: Tensor, draws: tuple[int, ...], floor: float) -> float:
    """Largest relative error of what is known of one datum and parameter, beside ``cells[cells, rows, columns]``."""
    mean = cells.mean(dim=0)
    norms, within = cells.flatten(1).norm(dim=1), (cells - mean).norm()
    below = found.squares.new_tensor([prod(draws[level:]) for level in range(1, len(draws) + 1)])
    gaps = [
        ((found.cell_norm2[0].sqrt() - norms).abs(), norms),
        ((found.sums.double() - mean).norm(), mean.norm()),
        (((found.squares[0] @ below).sqrt() - within).abs(), torch.maximum(within, mean.norm())),
    ]
    largest = torch.stack([(gap / size.clamp(min=floor)).max() for gap, size in gaps]).max()
    return float(largest.nan_to_num(nan=inf))
