"""Several processes on one study: each measures data of its own, rank 0 joins them, all get the tables.

Without `torchrun` there is one rank, and nothing here costs anything.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from itertools import pairwise
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from gradvar.decomposition.accumulator import Tables
from gradvar.errors import GradvarError
from gradvar.runner import Portion

T = TypeVar("T")


_by_itself = False


def rank() -> int:
    """Return this process's number; 0 where there is only one."""
    return dist.get_rank() if dist.is_initialized() and not _by_itself else 0


def world() -> int:
    """Count the processes."""
    return dist.get_world_size() if dist.is_initialized() and not _by_itself else 1


@contextmanager
def alone() -> Iterator[None]:
    """Let this process work as if there were no others, which wait for it or do something else."""
    global _by_itself
    before, _by_itself = _by_itself, True
    try:
        yield
    finally:
        _by_itself = before


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


def own_device(name: str) -> str:
    """Return the device of this process: of several on a machine, each takes a GPU of its own."""
    return f"cuda:{os.environ['LOCAL_RANK']}" if name == "cuda" and "LOCAL_RANK" in os.environ else name


def share_of(count: int) -> slice:
    """Which of so many data are this rank's: as even as can be, in the order of the ranks."""
    return _shares(count)[rank()]


def _shares(count: int) -> list[slice]:
    edges = np.linspace(0, count, world() + 1).round().astype(int).tolist()
    return [slice(first, last) for first, last in pairwise(edges)]


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


def all_rows(rows: np.ndarray) -> np.ndarray:
    """Put the ranks' rows together, in the order of the ranks; all get them."""
    if world() == 1:
        return rows
    parts: list[np.ndarray] = [rows] * world()
    dist.all_gather_object(parts, rows)
    return np.concatenate(parts)


def gather(portion: Portion, count: int) -> Portion | None:
    """Put the ranks' portions together on rank 0, in the order of the ranks.

    Args:
        portion: This rank's, of the data that :func:`share_of` gave it; used up.
        count: Of all data.

    Returns:
        The whole on rank 0, None elsewhere.
    """
    names = [field.name for field in fields(Tables)]
    if rank() != 0:
        dist.send(torch.from_numpy(portion.losses), dst=0)
        for accumulator in portion.accumulators:
            for name in names:
                table = getattr(accumulator.tables, name).cpu().contiguous()
                if 0 not in table.shape:
                    dist.send(table, dst=0)
        return None
    losses = [portion.losses]
    for other, share in enumerate(_shares(count)[1:], start=1):
        data = share.stop - share.start
        losses.append(_received(other, (data, losses[0].shape[1]), torch.float64).numpy())
        for accumulator in portion.accumulators:
            parts = {}
            for name in names:
                like = getattr(accumulator.tables, name)
                shape = like.shape if name in ("sums", "between") else (data, *like.shape[1:])
                empty = like.new_empty(shape)
                parts[name] = empty if 0 in shape else _received(other, shape, like.dtype).to(like.device)
            accumulator.join(Tables(**parts))
    return Portion(portion.accumulators, np.concatenate(losses))


def _received(other: int, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    buffer = torch.empty(tuple(shape), dtype=dtype)
    dist.recv(buffer, src=other)
    return buffer
