"""An engine against plain autograd on the user's own model: every cell, every parameter."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from gradvar.decomposition.moments import MomentAccumulator, Tables
from gradvar.errors import GradvarError
from gradvar.objective import Objective
from gradvar.persample.check import autograd_gradients, check_deterministic, tolerance_of
from gradvar.persample.parameters import select
from gradvar.runner import check_engine_name, make_engine


@dataclass(frozen=True)
class EngineCheck:
    """How far an engine is from autograd.

    Attributes:
        engine: Its name.
        errors: Largest error by parameter: of a cell's norm, of the mean gradient of a datum and of the sum of
            squares within it, each relative to autograd's (or to 1e-8 of the whole gradient's, if that is larger).
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
    """
    check_engine_name(engine)
    if len(objective) < data:
        raise GradvarError(f"asked for {data} data, but the population holds {len(objective)}")
    inner = tuple(draws for _ in objective.levels[1:])
    targets = select(objective.model, parameters)
    batch = dict(objective.draw(list(range(data)), inner, seed))
    check_deterministic(objective.losses, batch)
    chosen = make_engine(engine, objective, targets)
    found: list[dict[int, Tables]] = []
    for datum in range(data):  # each by itself, so that its mean gradient can be read off
        part = {name: x[datum * prod(inner) : (datum + 1) * prod(inner)] for name, x in batch.items()}
        made = {
            id(t.parameter): MomentAccumulator(*t.shape, (1, *inner), t.parameter.dtype, t.parameter.device)
            for t in targets
        }
        chosen.accumulate(objective.losses, part, made, 0)
        found.append({key: accumulator.tables for key, accumulator in made.items()})
    by_cell = [
        autograd_gradients(objective.losses, {name: x[cell : cell + 1] for name, x in batch.items()}, objective.model)
        for cell in range(data * prod(inner))
    ]
    whole = torch.stack([torch.stack([g.double().norm() for g in cell.values()]).norm() for cell in by_cell]).max()
    errors = {}
    for target in targets:
        nothing = torch.zeros_like(target.parameter)
        gradients = torch.stack([cell.get(id(target.parameter), nothing) for cell in by_cell]).double()
        explicit = gradients.view(data, prod(inner), *target.shape)
        each = zip(found, explicit, strict=True)
        errors[target.name] = max(_error(tables[id(target.parameter)], cells, inner, whole) for tables, cells in each)
    worst = max(errors, key=lambda name: errors[name])
    return EngineCheck(chosen.name, errors, worst, errors[worst], tolerance_of(targets[0].parameter.dtype))


def _error(found: Tables, cells: Tensor, draws: tuple[int, ...], whole: Tensor) -> float:
    """Largest relative error of what is known of one datum and parameter, beside ``cells[cells, rows, columns]``."""
    mean = cells.mean(dim=0)
    norms = cells.flatten(1).norm(dim=1)
    within = (cells - mean).norm()
    below = found.squares.new_tensor([prod(draws[level:]) for level in range(1, len(draws) + 1)])
    gaps = [
        ((found.cell_norm2[0].sqrt() - norms).abs(), norms),
        ((found.sums.double() - mean).norm(), mean.norm()),
        (((found.squares[0] @ below).sqrt() - within).abs(), torch.maximum(within, mean.norm())),
    ]
    return float(torch.stack([(gap / size.clamp(min=1e-8 * float(whole))).max() for gap, size in gaps]).max())
