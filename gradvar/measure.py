"""Runs an objective's cells through an engine, chunk by chunk, into moments by parameter."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gradvar.decomposition.moments import Layout, MomentAccumulator, Moments, even_layout
from gradvar.errors import GradvarError
from gradvar.objective import Objective
from gradvar.persample.check import check_against_autograd
from gradvar.persample.engine import Engine
from gradvar.persample.memory import Footprint, default_budget, format_memory, used_memory
from gradvar.persample.onepass import OnePass
from gradvar.persample.parameters import Target, select
from gradvar.persample.reference import Reference

ENGINES: dict[str, type[OnePass] | type[Reference]] = {"onepass": OnePass, "reference": Reference}
_CHECKED = 2  # data of the first chunk, which autograd repeats
_CHUNKS = 8  # at least so many chunks a study on a GPU, so that progress shows
_CELLS_CPU = 8  # cells of a chunk on a CPU, rounded up to a whole datum
_WORKSPACES = 3  # largest saved tensors (the logits) that the backward pass holds beside what autograd keeps


@dataclass(frozen=True)
class Measurement:
    """Everything that a study measured.

    Attributes:
        moments: Moments of each parameter, by its first name.
        targets: The parameters.
        layout: The study's shape.
        data: ``[N]`` indices of the data in the population.
        losses: ``[N, cells]``.
        zero: First names of the parameters whose gradient is zero but for rounding.
        notices: What the user should know, one line each.
        seconds: Wall time of the study.
        seconds_per_cell: Time of an ordinary forward and backward pass of one cell.
    """

    moments: dict[str, Moments]
    targets: list[Target]
    layout: Layout
    data: np.ndarray
    losses: np.ndarray
    zero: frozenset[str]
    notices: tuple[str, ...]
    seconds: float
    seconds_per_cell: float

    @property
    def cells_per_second(self) -> float:
        """Cells measured a second."""
        return self.losses.size / self.seconds


def measure(
    objective: Objective,
    counts: tuple[int, ...],
    groups: int,
    seed: int = 0,
    engine: str = "onepass",
    parameters: str | None = None,
    memory: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Measurement:
    """Measure the gradient moments of a nested sample of cells.

    Args:
        objective: What to differentiate.
        counts: Draws at each level, outermost first; data are drawn without replacement.
        groups: Groups of data, for the intervals that need group means.
        seed: Seed of the data and of every inner draw.
        engine: ``onepass`` or ``reference``.
        parameters: Regular expression of parameter names; None takes all.
        memory: Bytes that the process may hold; None takes most of what is free.
        progress: Called with the cells done and the cells in all.

    Returns:
        The measurement.

    Raises:
        GradvarError: If the study does not fit the population or the memory, if a loss or gradient is not
            finite, or if the engine fails its check against autograd.
    """
    if counts[0] > len(objective):
        raise GradvarError(
            f"asked for {counts[0]} sentences, but the data hold {len(objective)}; lower --sentences or give more text"
        )
    start = time.perf_counter()
    data = np.random.default_rng(seed).permutation(len(objective))[: counts[0]]
    run = _Run(objective, even_layout(counts, groups), data, seed, engine, parameters, memory)
    losses = run.all_chunks(progress)
    seconds_per_cell = run.time_ordinary_step()
    return Measurement(
        {target.name: run.accumulators[id(target.parameter)].finish() for target in run.targets},
        run.targets,
        run.layout,
        data,
        losses,
        frozenset(run.zero),
        run.notices,
        time.perf_counter() - start,
        seconds_per_cell,
    )


def engine_of(name: str) -> type[OnePass] | type[Reference]:
    """Look an engine up by its name, or say in one line which there are."""
    if name not in ENGINES:
        raise GradvarError(f"--engine '{name}' is unknown; use {' or '.join(ENGINES)}")
    return ENGINES[name]


class _Run:
    """The state of one study while it runs."""

    def __init__(
        self,
        objective: Objective,
        layout: Layout,
        data: np.ndarray,
        seed: int,
        engine: str,
        parameters: str | None,
        memory: int | None,
    ) -> None:
        self.objective, self.layout, self.data, self.seed = objective, layout, data, seed
        self.targets = select(objective.model, parameters)
        self.engine: Engine = engine_of(engine)(objective.model, self.targets)
        self.device = self.targets[0].parameter.device
        self.budget = memory or default_budget(self.device)
        sums = len(layout.group_sizes) * sum(t.parameter.numel() * t.parameter.element_size() for t in self.targets)
        if used_memory(self.device) + sums > self.budget:
            raise GradvarError(
                f"the means of {len(layout.group_sizes)} groups take {format_memory(sums)} beside "
                f"{format_memory(used_memory(self.device))} in use, over --memory {format_memory(self.budget)}; "
                "lower --groups or raise --memory"
            )
        self.accumulators = {
            id(t.parameter): MomentAccumulator(*t.shape, layout, t.parameter.dtype, self.device) for t in self.targets
        }
        self.notices: tuple[str, ...] = ()
        self.zero: set[str] = set()

    def all_chunks(self, progress: Callable[[int, int], None] | None) -> np.ndarray:
        """Run every chunk, the first one small and checked; return the losses ``[N, cells]``."""
        layout = self.layout
        losses = np.empty((layout.counts[0], layout.cells))
        size = self._first_size()
        done = 0
        for group_start, group_size in zip(layout.group_starts, layout.group_sizes, strict=True):
            while done < group_start + group_size:
                stop = min(done + size, group_start + group_size)
                losses[done:stop] = self._chunk(done, stop).view(-1, layout.cells).cpu().numpy()
                if done == 0:
                    size = self._check(stop)
                done = stop
                if progress:
                    progress(done * layout.cells, losses.size)
        return losses

    def _first_size(self) -> int:
        """Look at one datum's forward pass before anything large runs; return how many data to begin with."""
        footprint = self._footprint()
        with footprint.measure(), torch.enable_grad():
            self.objective.losses(self._draw(0, 1))
        return min(_CHECKED, self._fitting(footprint, 1, opened=0))

    def _footprint(self) -> Footprint:
        return Footprint({p.untyped_storage().data_ptr() for p in self.objective.model.parameters()})

    def _draw(self, start: int, stop: int) -> dict[str, Tensor]:
        return dict(self.objective.draw(self.data[start:stop].tolist(), self.layout.draws, self.seed))

    def _chunk(self, start: int, stop: int) -> Tensor:
        losses = self.engine.accumulate(self.objective.losses, self._draw(start, stop), self.accumulators, start)
        finite = losses.isfinite().view(stop - start, -1).all(dim=1)
        norms = torch.stack([a.cell_norm2[start:stop].isfinite().all(dim=1) for a in self.accumulators.values()])
        if not bool(finite.all() & norms.all()):
            self._report_not_finite(start, finite.cpu().numpy(), norms.cpu().numpy())
        return losses

    def _report_not_finite(self, start: int, losses: np.ndarray, norms: np.ndarray) -> None:
        bad = int(np.argmin(losses & norms.all(axis=0)))
        broken = [name for name, p in self.objective.model.named_parameters() if not bool(p.isfinite().all())]
        what = "loss" if not losses[bad] else f"gradient of '{self.targets[int(np.argmin(norms[:, bad]))].name}'"
        neither = f", and neither are the weights '{broken[0]}'" if broken else ""
        raise GradvarError(
            f"the {what} of sentence {self.data[start + bad]} is not finite{neither}; check the checkpoint's weights, "
            "or try --dtype float64"
        )

    def _check(self, stop: int) -> int:
        """Repeat the first chunk with autograd; return how many data a chunk may hold from now on."""
        footprint = self._footprint()
        batch = self._draw(0, stop)

        def losses() -> Tensor:
            with footprint.measure():
                return self.objective.losses(batch)

        sums = {key: accumulator.sums[0] * self.layout.cells for key, accumulator in self.accumulators.items()}
        result = check_against_autograd(losses, self.objective.model, self.targets, sums, self.engine.covers)
        del sums
        self.zero = {*result.unreached, *result.zero}
        if result.unreached:
            self.notices += (f"the loss never reaches {_names(result.unreached)}, counted as zero",)
        if result.zero:
            self.notices += (f"the gradient is zero, up to rounding, for {_names(result.zero)}",)
        # A processor has nothing to gain from larger batches once its cores are busy, and loses its caches.
        wanted = -(-_CELLS_CPU // self.layout.cells) if self.device.type == "cpu" else self.layout.counts[0] // _CHUNKS
        return min(self._fitting(footprint, stop, opened=1), max(1, wanted))

    def _fitting(self, footprint: Footprint, data: int, opened: int) -> int:
        """How many data fit the budget, by the footprint of some data and the groups whose sums are in use."""
        per_datum = (footprint.total + _WORKSPACES * footprint.largest) // data
        per_datum += self.engine.bytes_per_datum(self.layout.cells)
        untouched = sum(a.sums[opened:].numel() * a.sums.element_size() for a in self.accumulators.values())
        used = used_memory(self.device) + untouched
        fitting = (self.budget - used) // max(per_datum, 1)
        if fitting < 1:
            raise GradvarError(
                f"a sentence with its {self.layout.cells} cells takes {format_memory(per_datum)} beside "
                f"{format_memory(used)} in use, over --memory {format_memory(self.budget)}; "
                "raise --memory, or lower --masks, --groups or --max-length"
            )
        return int(fitting)

    def time_ordinary_step(self) -> float:
        """Time an ordinary forward and backward pass, in seconds a cell: the better of two."""
        batch = self._draw(0, 1)
        parameters = [target.parameter for target in self.targets]
        times = []
        for _ in range(2):
            start = time.perf_counter()
            torch.autograd.grad(self.objective.losses(batch).sum(), parameters, allow_unused=True)
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            times.append(time.perf_counter() - start)
        return min(times) / self.layout.cells


def _names(names: tuple[str, ...]) -> str:
    """Count parameters and name the first few."""
    return f"{len(names)} parameters ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"
