"""Plans a study: which data, on which ranks, and when there are enough; then the tables."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from gradvar import ranks
from gradvar.decomposition.accumulator import MomentAccumulator, Tables
from gradvar.decomposition.components import Components
from gradvar.decomposition.moments import Moments, total
from gradvar.decomposition.precision import half_widths
from gradvar.errors import GradvarError
from gradvar.objective import Objective
from gradvar.persample.memory import release_freed_memory
from gradvar.persample.parameters import Target
from gradvar.runner import Portion, Runner


@dataclass(frozen=True)
class Goal:
    """When a study that grows may end.

    Attributes:
        precision: Half-width that all intervals of :func:`~gradvar.decomposition.precision.half_widths` must reach.
        most: Data at which it ends in any case.
    """

    precision: float
    most: int


@dataclass(frozen=True)
class Measurement:
    """Everything that a study measured.

    Attributes:
        moments: Moments of each parameter, by its first name.
        targets: The parameters.
        data: ``[N]`` indices of the data in the population.
        losses: ``[N, cells]``.
        engine: The engine that measured.
        zero: First names of the parameters whose gradient is zero but for rounding.
        notices: What the user should know, one line each.
        ended: How a study that could grow came to its end, in words; empty for one of fixed size.
        seconds: Wall time of the study.
        seconds_per_cell: Time of an ordinary forward and backward pass of one cell.
        tables: Sums and sketches of each parameter, in the order of the targets, where they were to be kept.
    """

    moments: dict[str, Moments]
    targets: list[Target]
    data: np.ndarray
    losses: np.ndarray
    engine: str
    zero: frozenset[str]
    notices: tuple[str, ...]
    ended: str
    seconds: float
    seconds_per_cell: float
    tables: tuple[Tables, ...] = ()

    @property
    def cells_per_second(self) -> float:
        """Cells measured a second."""
        return self.losses.size / self.seconds


def sampling_order(population: int, seed: int) -> np.ndarray:
    """Order the data of a population as studies sample them: those of any size take the first of these indices."""
    return np.random.default_rng(seed).permutation(population)


def measure(
    objective: Objective,
    counts: tuple[int, ...],
    seed: int = 0,
    engine: str = "auto",
    parameters: str | None = None,
    memory: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    goal: Goal | None = None,
    pairs: bool = False,
    keep: bool = False,
) -> Measurement:
    """Measure the gradient moments of a nested sample of cells.

    Under `torchrun` the data are shared out among the ranks; every rank gets the same result.

    Args:
        objective: What to differentiate.
        counts: Draws at each level, outermost first; data are drawn without replacement.
        seed: Seed of the data and of every inner draw.
        engine: ``onepass``, ``reference``, or ``auto``: the first, and the second where the first cannot.
        parameters: Regular expression of parameter names; None takes all.
        memory: Bytes that the process may hold; None takes most of what is free.
        progress: Called with the cells done and the cells in all.
        goal: Where given, ``counts[0]`` data are the first look, and groups of a quarter of that (at least four
            data, and one a rank) are added until the goal is met.
        pairs: Keep the inner products of a datum's cells, too.
        keep: Return the sums and sketches, which only one process has.

    Returns:
        The measurement.

    Raises:
        GradvarError: If the study does not fit the population or the memory, if a loss or gradient is not
            finite, or if the engine fails its check against autograd.
    """
    most = goal.most if goal else counts[0]
    name = "--max-sentences" if most > counts[0] else "--sentences"
    if most > len(objective):
        raise GradvarError(
            f"asked for {most} sentences, but the data hold {len(objective)}; lower {name} or give more text"
        )
    if counts[0] < ranks.world():
        raise GradvarError(f"--sentences {counts[0]} are fewer than the {ranks.world()} processes; start fewer")
    start = time.perf_counter()
    order = sampling_order(len(objective), seed)
    study = _Study(objective, counts[1:], seed, engine, parameters, memory, order, progress, counts[0], most, pairs)
    study.extend(counts[0], most)
    moments = study.moments()
    ended = ""
    if goal:
        group = max(4, counts[0] // 4, ranks.world())
        levels = tuple(objective.levels)
        while not (ended := _end(Components(total(list(moments.values())), levels), goal)):
            left = most - study.done
            study.extend(left if left < 2 * group else group, most)  # the last group takes the remainder
            moments = study.moments()
    runner = study.runner
    found = ranks.from_first(
        lambda: (study.losses, runner.engine.name, runner.zero, runner.notices, runner.time_ordinary_step())
    )
    losses, engine_name, zero, notices, seconds_per_cell = found
    release_freed_memory()  # what comes next, such as figures, would be held on top of it
    return Measurement(
        moments,
        runner.targets,
        order[: study.done],
        losses,
        engine_name,
        frozenset(zero),
        notices,
        ended,
        time.perf_counter() - start,
        seconds_per_cell,
        study.tables if keep else (),
    )


def _end(components: Components, goal: Goal) -> str:
    """Say which bound ends a study now; empty if none does."""
    widths = half_widths(components)
    worst = max(widths, key=lambda name: widths[name])
    data = components.counts[0]
    if widths[worst] <= goal.precision:
        return f"stopped at {data} sentences: every half-width is within --precision {goal.precision:g}"
    if data >= goal.most:
        return (
            f"stopped at --max-sentences {goal.most}: the half-width of the {worst} is {widths[worst]:.2g}, over "
            f"--precision {goal.precision:g}"
        )
    return ""


class _Study:
    """A study that can grow: the runner of this rank and, on rank 0, what all ranks have measured so far."""

    def __init__(
        self,
        objective: Objective,
        draws: tuple[int, ...],
        seed: int,
        engine: str,
        parameters: str | None,
        memory: int | None,
        order: np.ndarray,
        progress: Callable[[int, int], None] | None,
        first: int,
        most: int,
        pairs: bool,
    ) -> None:
        alone = ranks.world() == 1
        copies = 2 if ranks.rank() == 0 and (most > first or not alone) else 1
        planned = most if ranks.rank() == 0 else -(-most // ranks.world())
        probed = int(order[ranks.rank()])
        self.runner = ranks.together(
            lambda: Runner(objective, draws, seed, engine, parameters, memory, probed, planned, copies, pairs)
        )
        self.done = 0
        self._order, self._progress = order, progress
        self._accumulators: list[MomentAccumulator] = []
        self._losses: list[np.ndarray] = []

    @property
    def losses(self) -> np.ndarray:
        """``[N, cells]``; known on rank 0."""
        return np.concatenate(self._losses)

    @property
    def tables(self) -> tuple[Tables, ...]:
        """Tables of each parameter; known on rank 0."""
        return tuple(accumulator.tables for accumulator in self._accumulators)

    def extend(self, count: int, planned: int) -> None:
        """Measure the next data.

        Args:
            count: How many.
            planned: Data of the whole study, for the progress.
        """
        data = self._order[self.done : self.done + count][ranks.share_of(count)]
        cells, before = self.runner.cells, self.done

        def progress(done: int) -> None:
            if self._progress:  # the other ranks are about as far
                self._progress(min(before * cells + done * ranks.world(), planned * cells), planned * cells)

        portion = ranks.together(lambda: self.runner.run(data, progress))
        whole = ranks.gather(portion, count)
        self.done += count
        if whole is not None:
            self._join(whole)

    def _join(self, portion: Portion) -> None:
        self._losses.append(portion.losses)
        if not self._accumulators:
            self._accumulators = portion.accumulators
            return
        for mine, more in zip(self._accumulators, portion.accumulators, strict=True):
            mine.join(more.tables)

    def moments(self) -> dict[str, Moments]:
        """Return the tables of all data so far, on every rank."""
        names = [target.name for target in self.runner.targets]
        tables = ranks.from_first(lambda: [accumulator.finish() for accumulator in self._accumulators])
        return dict(zip(names, tables, strict=True))
