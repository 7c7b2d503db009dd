"""An engine against plain autograd on the user's own model: every cell, every parameter."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from gradvar.decomposition.moments import MomentAccumulator, even_layout
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
    counts = (data, *(draws for _ in objective.levels[1:]))
    layout = even_layout(counts, data)  # a group a datum, so that its mean gradient can be read off
    targets = select(objective.model, parameters)
    batch = dict(objective.draw(list(range(data)), counts[1:], seed))
    check_deterministic(objective.losses, batch)
    device = targets[0].parameter.device
    found = {id(t.parameter): MomentAccumulator(*t.shape, layout, t.parameter.dtype, device) for t in targets}
    chosen = make_engine(engine, objective, targets)
    for datum in range(data):
        cells = slice(datum * layout.cells, (datum + 1) * layout.cells)
        chosen.accumulate(objective.losses, {name: x[cells] for name, x in batch.items()}, found, datum)
    by_cell = [
        autograd_gradients(objective.losses, {name: x[cell : cell + 1] for name, x in batch.items()}, objective.model)
        for cell in range(data * layout.cells)
    ]
    whole = torch.stack([torch.stack([g.double().norm() for g in cell.values()]).norm() for cell in by_cell]).max()
    errors = {}
    for target in targets:
        nothing = torch.zeros_like(target.parameter)
        gradients = torch.stack([cell.get(id(target.parameter), nothing) for cell in by_cell]).double()
        explicit = gradients.view(data, layout.cells, *target.shape)
        errors[target.name] = _error(found[id(target.parameter)], explicit, whole)
    worst = max(errors, key=lambda name: errors[name])
    return EngineCheck(chosen.name, errors, worst, errors[worst], tolerance_of(targets[0].parameter.dtype))


def _error(found: MomentAccumulator, cells: Tensor, whole: Tensor) -> float:
    """Largest relative error of what an accumulator holds of one parameter, ``cells[data, cells, rows, columns]``."""
    means = cells.mean(dim=1)
    norms, mean_norms = cells.flatten(2).norm(dim=2), means.flatten(1).norm(dim=1)
    within = (cells - means.unsqueeze(1)).flatten(1).norm(dim=1)
    draws = found.layout.draws
    below = found.squares.new_tensor([prod(draws[level:]) for level in range(1, len(draws) + 1)])
    found_within = (found.squares[:, 1:] @ below).sqrt()
    gaps = [
        ((found.cell_norm2.sqrt() - norms).abs(), norms),
        ((found.sums.double() - means).flatten(1).norm(dim=1), mean_norms),
        ((found_within - within).abs(), torch.maximum(within, mean_norms)),
    ]
    return float(torch.stack([(gap / size.clamp(min=1e-8 * float(whole))).max() for gap, size in gaps]).max())
