"""An objective on an engine: looked at, checked against autograd, and run chunk by chunk within the memory."""

import time
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gradvar.decomposition.accumulator import MomentAccumulator
from gradvar.decomposition.sketch import sketch_size
from gradvar.errors import EngineError, GradvarError
from gradvar.objective import HasModel, Objective, unit_of
from gradvar.persample.check import autograd_gradients, check_against_autograd, check_deterministic
from gradvar.persample.engine import Batch, Engine
from gradvar.persample.memory import Footprint, Rise, default_budget, format_memory, used_memory
from gradvar.persample.onepass import OnePass
from gradvar.persample.parameters import Target, select
from gradvar.persample.reference import Reference

ENGINES = ("auto", "onepass", "reference")
_CHECKED = 2  # data of the first chunk, which autograd repeats
_CHUNKS = 8  # at least so many chunks a study on a GPU, so that progress shows
_CELLS_CPU = 8  # cells of a chunk on a CPU, rounded up to a whole datum
_SLACK = 1.2  # on what a datum takes: an allocator leaves gaps, and other sentences are longer
_WORKSPACES = 3  # largest saved tensors (the logits) that the backward pass holds beside what autograd keeps


@dataclass(frozen=True)
class Portion:
    """What some data gave.

    Attributes:
        accumulators: Moments under way, a parameter each, in the order of the targets.
        losses: ``[data, cells]``.
    """

    accumulators: list[MomentAccumulator]
    losses: np.ndarray


def check_engine_name(name: str) -> None:
    """Refuse an unknown engine in one line that says which there are."""
    if name not in ENGINES:
        raise GradvarError(f"--engine '{name}' is unknown; use {', '.join(ENGINES[:-1])} or {ENGINES[-1]}")


def make_engine(name: str, objective: HasModel, targets: list[Target], unreached: Set[str] = frozenset()) -> Engine:
    """Build an engine for an objective.

    Args:
        name: ``onepass``, ``reference``, or ``auto``, which begins with the first.
        objective: What is differentiated.
        targets: The parameters to study.
        unreached: Names of targets that the loss does not reach.

    Returns:
        The engine.

    Raises:
        EngineError: If the one-pass engine cannot be built.
    """  # noqa: DOC502
    if name != "reference":
        return OnePass(objective.model, targets, unreached)
    return Reference(objective.model, targets, getattr(objective, "for_vmap", None))


class Runner:
    """Runs an objective's cells through an engine.

    One datum is looked at before anything large runs; the first chunk is repeated with autograd.

    Args:
        objective: What to differentiate.
        draws: Draws at each inner level.
        seed: Seed of every inner draw.
        engine: ``onepass``, ``reference``, or ``auto``: the first, and the second where the first cannot.
        parameters: Regular expression of parameter names; None takes all.
        memory: Bytes that the process may hold; None takes most of what is free.
        probed: A datum to look at.
        planned: Data whose tables this process will hold in the end.
        copies: How often it will hold the sums over the data, which have the parameters' size.
        pairs: Keep the inner products of a datum's cells, too.

    Attributes:
        targets: The parameters under study.
        engine: The engine in use.
        zero: First names of the parameters whose gradient is zero but for rounding; known after the first chunk.
        notices: What the user should know, one line each.
    """

    def __init__(
        self,
        objective: Objective,
        draws: tuple[int, ...],
        seed: int,
        engine: str,
        parameters: str | None,
        memory: int | None,
        probed: int,
        planned: int,
        copies: int = 1,
        pairs: bool = False,
    ) -> None:
        check_engine_name(engine)
        self.objective, self.draws, self.seed = objective, draws, seed
        self.cells = int(np.prod(draws))
        self._pairs = pairs
        self.targets = select(objective.model, parameters)
        self.device = self.targets[0].parameter.device
        self.budget = memory or default_budget(self.device)
        self.notices: tuple[str, ...] = ()
        self.zero: set[str] = set()
        self._choice, self._probed = engine, probed
        self._chunk_size: int | None = None  # known once the first chunk was checked
        self._sketches = planned * sum(sketch_size(*t.shape) * t.parameter.element_size() for t in self.targets)
        self._means = sum(t.parameter.numel() * t.parameter.element_size() for t in self.targets)
        self._check_means(copies)
        per_datum, self._unreached = self._probe()
        self._first_size = min(_CHECKED, self._fitting(per_datum, self._means + copies * self._means))
        try:
            self.engine = make_engine(engine, objective, self.targets, self._unreached)
        except EngineError as error:
            self._turn_to_reference(error)

    def _check_means(self, copies: int) -> None:
        """Refuse a study whose sums and sketches do not fit."""
        means = copies * self._means + self._sketches
        if used_memory(self.device) + means > self.budget:
            raise GradvarError(
                f"the mean gradient and the data's sketches take {format_memory(means)} beside "
                f"{format_memory(used_memory(self.device))} in use, over --memory {format_memory(self.budget)}; "
                "raise --memory, or select fewer --parameters"
            )

    def run(self, data: np.ndarray, progress: Callable[[int], None]) -> Portion:
        """Measure some data.

        Args:
            data: ``[N]`` indices in the population.
            progress: Called with the cells done.

        Returns:
            Their moments and losses.

        Raises:
            GradvarError: If a loss or gradient is not finite, if the memory does not suffice, or if the engine
                fails its check.
        """  # noqa: DOC502
        try:
            return self._run(data, progress)
        except EngineError as error:
            if self._chunk_size is not None:  # it is too late to begin again
                raise
            self._turn_to_reference(error)
        return self._run(data, progress)

    def _run(self, data: np.ndarray, progress: Callable[[int], None]) -> Portion:
        counts = (len(data), *self.draws)
        accumulators = [
            MomentAccumulator(*target.shape, counts, target.parameter.dtype, self.device, seed, self._pairs)
            for seed, target in enumerate(self.targets)
        ]
        losses = np.empty((len(data), self.cells))
        done = 0
        while done < len(data):
            stop = min(done + (self._chunk_size or self._first_size), len(data))
            if self._chunk_size is None:
                with Rise(self.device) as rise:
                    values = self._chunk(data[done:stop], accumulators, done)
                self._chunk_size = self._check(data[:stop], accumulators, len(data), rise.bytes)
            else:
                values = self._chunk(data[done:stop], accumulators, done)
            losses[done:stop] = values.view(-1, self.cells).cpu().numpy()
            done = stop
            progress(done * self.cells)
        return Portion(accumulators, losses)

    def _turn_to_reference(self, error: EngineError) -> None:
        """Go on with the reference engine, if the choice is ours."""
        if self._choice != "auto":
            raise error
        reason = str(error).removesuffix("; use --engine reference")
        self.notices += (f"the slow reference engine was used, as the one-pass engine cannot measure this: {reason}",)
        self._choice = "reference"
        self.engine = make_engine("reference", self.objective, self.targets)

    def _draw(self, data: Sequence[int]) -> dict[str, Tensor]:
        return dict(self.objective.draw(list(data), self.draws, self.seed))

    def _footprint(self) -> tuple[Footprint, Callable[[Batch], Tensor]]:
        """Measure what autograd keeps while the losses that come with it run."""
        footprint = Footprint({p.untyped_storage().data_ptr() for p in self.objective.model.parameters()})

        def losses(batch: Batch) -> Tensor:
            with footprint.measure():
                return self.objective.losses(batch)

        return footprint, losses

    def _probe(self) -> tuple[int, frozenset[str]]:
        """Look at one datum: the bytes that it takes, and the parameters that the loss does not reach."""
        footprint, losses = self._footprint()
        batch = self._draw([self._probed])
        with Rise(self.device) as rise:
            reached = autograd_gradients(losses, batch, self.objective.model)
        if not reached:
            raise GradvarError(
                "the loss reaches no trainable parameter; switch off what detaches it, such as no_grad or reentrant "
                "gradient checkpointing"
            )
        check_deterministic(self.objective.losses, batch)
        gradients = sum(gradient.numel() * gradient.element_size() for gradient in reached.values())
        unreached = frozenset(t.name for t in self.targets if id(t.parameter) not in reached)
        return max(_kept(footprint), rise.bytes - gradients), unreached

    def _chunk(self, data: np.ndarray, accumulators: list[MomentAccumulator], first: int) -> Tensor:
        """Measure consecutive data; return their losses ``[cells]``."""
        by_key = {id(t.parameter): a for t, a in zip(self.targets, accumulators, strict=True)}
        losses = self.engine.accumulate(self.objective.losses, self._draw(data.tolist()), by_key, first)
        finite = losses.isfinite().view(len(data), -1).all(dim=1)
        tables = [a.tables.cell_norm2[first : first + len(data)].isfinite().all(dim=1) for a in accumulators]
        norms = torch.stack(tables)
        if not bool(finite.all() & norms.all()):
            self._report_not_finite(data, finite.cpu().numpy(), norms.cpu().numpy())
        return losses

    def _report_not_finite(self, data: np.ndarray, losses: np.ndarray, norms: np.ndarray) -> None:
        bad = int(np.argmin(losses & norms.all(axis=0)))
        broken = [name for name, p in self.objective.model.named_parameters() if not bool(p.isfinite().all())]
        what = "loss" if not losses[bad] else f"gradient of '{self.targets[int(np.argmin(norms[:, bad]))].name}'"
        neither = f", and neither are the weights '{broken[0]}'" if broken else ""
        raise GradvarError(
            f"the {what} of {unit_of(self.objective.levels)} {data[bad]} is not finite{neither}; check the "
            "checkpoint's weights, or try --dtype float64"
        )

    def _check(self, data: np.ndarray, accumulators: list[MomentAccumulator], planned: int, rise: int) -> int:
        """Repeat the first chunk with autograd; return how many data a chunk may hold from now on.

        Args:
            data: Of the first chunk.
            accumulators: What the engine made of them.
            planned: Data of the whole study.
            rise: Bytes by which the memory in use rose while the engine ran.

        Returns:
            At least one.
        """
        footprint, losses = self._footprint()
        by_name = {t.name: a for t, a in zip(self.targets, accumulators, strict=True)}
        result = check_against_autograd(
            losses,
            self._draw(data.tolist()),
            self.objective.model,
            self.targets,
            lambda target: by_name[target.name].tables.sums * self.cells,
            lambda target: by_name[target.name].tables.cell_norm2[len(data) - 1, -1],
        )
        self.zero = {*self._unreached, *result.zero}
        if self._unreached:
            names = [t.name for t in self.targets if t.name in self._unreached]
            self.notices += (f"the loss never reaches {_names(names)}, counted as zero",)
        if result.zero:
            self.notices += (f"the gradient is zero, up to rounding, for {_names(result.zero)}",)
        kept = _kept(footprint) // len(data) + self.engine.bytes_per_datum(self.cells)
        per_datum = max(kept, (rise - self._means) // len(data))  # the sums were touched for the first time
        fitting = self._fitting(per_datum, 0)
        # A processor has nothing to gain from larger batches once its cores are busy, and loses its caches.
        wanted = -(-_CELLS_CPU // self.cells) if self.device.type == "cpu" else planned // _CHUNKS
        return min(fitting, max(1, wanted))

    def _fitting(self, per_datum: int, promised: int) -> int:
        """How many data fit the budget at a time.

        Args:
            per_datum: Bytes that one takes.
            promised: Bytes that will be taken beside, apart from the sketches.

        Returns:
            At least one.

        Raises:
            GradvarError: If not even one fits.
        """
        used = used_memory(self.device) + promised + self._sketches
        fitting = int((self.budget - used) // max(_SLACK * per_datum, 1))
        if fitting < 1:
            raise GradvarError(
                f"a {unit_of(self.objective.levels)} with its {self.cells} cells takes {format_memory(per_datum)} "
                f"beside {format_memory(used)} in use, over --memory {format_memory(self.budget)}; "
                "raise --memory, or lower --masks or --max-length"
            )
        return fitting

    def time_ordinary_step(self) -> float:
        """Time an ordinary forward and backward pass, in seconds a cell: the better of two."""
        batch = self._draw([self._probed])
        times = []
        for _ in range(2):
            start = time.perf_counter()
            autograd_gradients(self.objective.losses, batch, self.objective.model)
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            times.append(time.perf_counter() - start)
        return min(times) / self.cells


def _kept(footprint: Footprint) -> int:
    """Estimate what a batch takes from what autograd kept of it."""
    return footprint.total + _WORKSPACES * footprint.largest


def _names(names: Sequence[str]) -> str:
    """Count parameters and name the first few."""
    return f"{len(names)} parameters ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"
