"""Plans a study: which data, in which groups, on which ranks, and when there are enough; then the tables."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from gradvar import ranks
from gradvar.decomposition.moments import Layout, MomentAccumulator, Moments, even_layout
from gradvar.errors import GradvarError
from gradvar.objective import Objective
from gradvar.persample.parameters import Target
from gradvar.runner import Portion, Runner


@dataclass(frozen=True)
class Measurement:
    """Everything that a study measured.

    Attributes:
        moments: Moments of each parameter, by its first name.
        targets: The parameters.
        layout: The study's shape.
        data: ``[N]`` indices of the data in the population.
        losses: ``[N, cells]``.
        engine: The engine that measured.
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
    engine: str
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
    engine: str = "auto",
    parameters: str | None = None,
    memory: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Measurement:
    """Measure the gradient moments of a nested sample of cells.

    Under `torchrun` the groups are shared out among the ranks; every rank gets the same result.

    Args:
        objective: What to differentiate.
        counts: Draws at each level, outermost first; data are drawn without replacement.
        groups: Groups of data, for the intervals that need group means.
        seed: Seed of the data and of every inner draw.
        engine: ``onepass``, ``reference``, or ``auto``: the first, and the second where the first cannot.
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
    if groups < ranks.world():
        raise GradvarError(f"--groups {groups} are fewer than the {ranks.world()} ranks; raise --groups")
    start = time.perf_counter()
    order = np.random.default_rng(seed).permutation(len(objective))
    study = _Study(objective, counts[1:], groups, seed, engine, parameters, memory, order, progress)
    study.extend(even_layout(counts, groups).group_sizes, counts[0])
    moments = study.moments()
    runner = study.runner
    found = ranks.from_first(
        lambda: (
            study.layout,
            study.losses,
            runner.engine.name,
            runner.zero,
            runner.notices,
            runner.time_ordinary_step(),
        )
    )
    layout, losses, engine_name, zero, notices, seconds_per_cell = found
    return Measurement(
        moments,
        runner.targets,
        layout,
        order[: layout.counts[0]],
        losses,
        engine_name,
        frozenset(zero),
        notices,
        time.perf_counter() - start,
        seconds_per_cell,
    )


class _Study:
    """A study that can grow: the runner of this rank and, on rank 0, what all ranks have measured so far."""

    def __init__(
        self,
        objective: Objective,
        draws: tuple[int, ...],
        groups: int,
        seed: int,
        engine: str,
        parameters: str | None,
        memory: int | None,
        order: np.ndarray,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        held = groups if ranks.rank() == 0 else -(-groups // ranks.world())
        probed = int(order[ranks.rank()])
        self.runner = ranks.together(lambda: Runner(objective, draws, seed, engine, parameters, memory, probed, held))
        self._order, self._progress = order, progress
        self._accumulators: list[MomentAccumulator] = []
        self._losses: list[np.ndarray] = []
        self._done = 0

    @property
    def layout(self) -> Layout:
        """Shape of what has been measured; known on rank 0."""
        return self._accumulators[0].layout

    @property
    def losses(self) -> np.ndarray:
        """``[N, cells]``; known on rank 0."""
        return np.concatenate(self._losses)

    def extend(self, group_sizes: tuple[int, ...], planned: int) -> None:
        """Measure the next groups of data.

        Args:
            group_sizes: Their sizes.
            planned: Data of the whole study, for the progress.
        """
        mine = ranks.share_of(len(group_sizes))
        start = self._done + sum(group_sizes[: mine.start])
        sizes = group_sizes[mine]
        data = self._order[start : start + sum(sizes)]
        cells, before = self.runner.cells, self._done

        def progress(done: int) -> None:
            if self._progress:  # the other ranks are about as far
                self._progress(min(before * cells + done * ranks.world(), planned * cells), planned * cells)

        portion = ranks.together(lambda: self.runner.run(data, sizes, progress))
        whole = ranks.gather(portion, group_sizes)
        self._done += sum(group_sizes)
        if whole is not None:
            self._join(whole)

    def _join(self, portion: Portion) -> None:
        if not self._accumulators:
            self._accumulators = portion.accumulators
        else:
            for i, more in enumerate(portion.accumulators):  # one at a time, so that memory is not held twice
                self._accumulators[i] = self._accumulators[i].join(more)
        self._losses.append(portion.losses)

    def moments(self) -> dict[str, Moments]:
        """Return the tables of all data so far, on every rank."""
        names = [target.name for target in self.runner.targets]
        tables = ranks.from_first(lambda: [accumulator.finish() for accumulator in self._accumulators])
        return dict(zip(names, tables, strict=True))
