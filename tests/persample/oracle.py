"""The only oracle, a backward pass a cell in plain autograd, and how far an engine is from it."""

from collections.abc import Callable

import torch
from torch import Tensor

from gradvar.decomposition.accumulator import MomentAccumulator, Tables
from gradvar.objective import Objective
from gradvar.persample.engine import Batch, Engine
from gradvar.persample.parameters import Target

EXACT = 1e-9


def explicit(losses: Callable[[Batch], Tensor], batch: Batch, targets: list[Target]) -> list[Tensor]:
    """Every parameter's gradients `[cells, rows, columns]`."""
    rows = []
    for cell in range(len(next(iter(batch.values())))):
        loss = losses({name: tensor[cell : cell + 1] for name, tensor in batch.items()}).sum()
        found = torch.autograd.grad(loss, [t.parameter for t in targets], allow_unused=True)
        rows.append([torch.zeros_like(t.parameter) if g is None else g for g, t in zip(found, targets, strict=True)])
    return [torch.stack(column).view(-1, *t.shape) for column, t in zip(zip(*rows, strict=True), targets, strict=True)]


def accumulate(
    engine: Engine, losses: Callable[[Batch], Tensor], batch: Batch, targets: list[Target], counts: tuple[int, ...]
) -> list[Tables]:
    """What an engine makes of all cells in one call."""
    accumulators = {id(t.parameter): MomentAccumulator(*t.shape, counts, t.parameter.dtype) for t in targets}
    engine.accumulate(losses, batch, accumulators, 0)
    return [accumulator.tables for accumulator in accumulators.values()]


def squares(gradients: Tensor) -> Tensor:
    """`[data, inner levels]`: of `[data, *draws, rows, columns]`, sums of squares of means about their parents'."""
    columns = []
    while gradients.ndim > 3:
        level = gradients.ndim - 3
        means = gradients.mean(dim=level, keepdim=True)
        columns.insert(0, (gradients - means).flatten(1).square().sum(dim=1))
        gradients = means.squeeze(level)
    return torch.stack(columns, dim=1)


def errors(
    engine: Engine, objective: Objective, batch: Batch, targets: list[Target], counts: tuple
) -> dict[str, float]:
    """Each parameter's largest error: of cell norms, of sums of squares, of the mean gradients of a datum and of all.

    Relative to max(|g_p|, 1e-8 |g|); the data run all at once, and each by itself for its mean gradient.
    """
    gradients = explicit(objective.losses, batch, targets)
    whole = float(torch.stack([g.norm() for g in gradients]).norm())
    together = accumulate(engine, objective.losses, batch, targets, counts)
    cells = len(gradients[0]) // counts[0]
    parts = [
        {name: x[first : first + cells] for name, x in batch.items()} for first in range(0, len(gradients[0]), cells)
    ]
    alone = [accumulate(engine, objective.losses, part, targets, (1, *counts[1:])) for part in parts]
    found = {}
    for index, (target, g) in enumerate(zip(targets, gradients, strict=True)):
        nested = g.view(*counts, *target.shape)
        means = g.view(counts[0], cells, *target.shape).mean(dim=1)
        all_at_once, by_datum = together[index], torch.stack([each[index].sums.view(target.shape) for each in alone])
        exact = squares(nested).sqrt()
        gaps = [
            (all_at_once.cell_norm2.flatten().sqrt() - g.flatten(1).norm(dim=1), g.flatten(1).norm(dim=1)),
            (all_at_once.squares.sqrt() - exact, exact),
            (torch.cat([each[index].squares for each in alone]).sqrt() - exact, exact),
            ((by_datum - means).flatten(1).norm(dim=1), means.flatten(1).norm(dim=1)),
            ((all_at_once.sums.view(target.shape) - means.sum(dim=0)).norm(), means.sum(dim=0).norm()),
        ]
        relative = [(gap.abs() / size.clamp(min=1e-8 * whole)).max() for gap, size in gaps]
        found[target.name] = float(torch.stack(relative).max().nan_to_num(nan=float("inf")))
    return found
