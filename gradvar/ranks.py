"""Several processes on one study: each measures groups of its own, rank 0 joins them, all get the tables.

Without `torchrun` there is one rank, and nothing here costs anything.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from gradvar.decomposition.moments import Layout, MomentAccumulator
from gradvar.errors import GradvarError
from gradvar.runner import Portion

T = TypeVar("T")


def rank() -> int:
    """Return this process's number; 0 where there is only one."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """Count the processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


@contextmanager
def started() -> Iterator[None]:
    """Join the processes that `torchrun` started, if it did; part from them at the end."""
    if dist.is_initialized() or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    dist.init_process_group("gloo")  # whatever the device: what travels is gathered on the host
    try:
        yield
    finally:
        dist.destroy_process_group()


def share_of(count: int) -> slice:
    """Which of so many groups are this rank's: as even as can be, in the order of the ranks."""
    edges = np.linspace(0, count, world() + 1).round().astype(int)
    return slice(int(edges[rank()]), int(edges[rank() + 1]))


def together(work: Callable[[], T]) -> T:
    """Run something on every rank; where it fails on one, it fails on all with the same message.

    Args:
        work: What to run.

    Returns:
        This rank's value.

    Raises:
        GradvarError: If some rank raised it.
    """
    if world() == 1:
        return work()
    value, problem = None, None
    try:
        value = work()
    except GradvarError as error:
        problem = str(error)
    problems: list[str | None] = [None] * world()
    dist.all_gather_object(problems, problem)
    for text in problems:
        if text is not None:
            raise GradvarError(text)
    return value  # type: ignore[return-value]  # of type T where nothing was raised


def from_first(work: Callable[[], T]) -> T:
    """Compute something on rank 0 and hand it to all."""
    if world() == 1:
        return work()
    box = [together(lambda: work() if rank() == 0 else None)]
    dist.broadcast_object_list(box, src=0)
    return box[0]  # type: ignore[return-value]  # what rank 0 made


def gather(portion: Portion, group_sizes: tuple[int, ...]) -> Portion | None:
    """Put the ranks' portions together on rank 0, in the order of the ranks.

    Args:
        portion: This rank's, of the groups that :func:`share_of` gave it.
        group_sizes: Of all groups.

    Returns:
        The whole on rank 0, None elsewhere.
    """
    if world() == 1:
        return portion
    edges = np.linspace(0, len(group_sizes), world() + 1).round().astype(int)
    losses = _collect(torch.from_numpy(portion.losses))
    joined = []
    for mine in portion.accumulators:
        tables = [_collect(table) for table in (mine.sums, mine.squares, mine.cell_norm2)]
        if rank() != 0:
            continue
        whole = mine
        for other in range(1, world()):
            sizes = group_sizes[edges[other] : edges[other + 1]]
            part = MomentAccumulator.from_tables(
                Layout((sum(sizes), *mine.layout.draws), sizes),
                *(table[other].to(mine.sums.device) for table in tables),
            )
            whole = whole.join(part)
        joined.append(whole)
    return Portion(joined, torch.cat(losses).numpy()) if rank() == 0 else None


def _collect(table: Tensor) -> list[Tensor]:
    """Gather tables that differ in their first dimension only, on rank 0."""
    rows: list[int] = [0] * world()
    dist.all_gather_object(rows, len(table))
    if rank() != 0:
        dist.send(table.cpu().contiguous(), dst=0)
        return []
    found = [table.cpu()]
    for other in range(1, world()):
        buffer = torch.empty(rows[other], *table.shape[1:], dtype=table.dtype)
        dist.recv(buffer, src=other)
        found.append(buffer)
    return found
