"""The phases of a run: how long the sequences are that it is shown, and which of them each step sees."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from math import gcd

import numpy as np

from gradvar.training.order import Order, Place
from gradvar.training.pieces import Units
from gradvar.training.schedule import Schedule
from gradvar.training.sequences import Sequences


@dataclass(frozen=True)
class Phase:
    """A part of a run whose sequences are of one length.

    Attributes:
        order: Of whole sequences, or of pieces.
        units: The pieces; None for whole sequences.
    """

    order: Order
    units: Units | None = None

    def at(self, step: int, first: int) -> list[Place]:
        """List the places of a step of the run, in which the phase begins at step `first`."""
        places = [place._replace(step=step) for place in self.order.at(step - first)]
        if self.units is None:
            return places
        return [place._replace(**self._piece(place.row)) for place in places]

    def _piece(self, unit: int) -> dict[str, int]:
        assert self.units is not None
        found = {"row": self.units.rows, "start": self.units.starts, "stop": self.units.stops}
        return {name: int(values[unit]) for name, values in found.items()}


@dataclass(frozen=True)
class Phases:
    """Which sequences a step sees, phase after phase.

    Attributes:
        parts: The phases.
        counts: Steps of each; the last one does not end.
    """

    parts: tuple[Phase, ...]
    counts: tuple[int, ...]

    @property
    def steps(self) -> int:
        """Steps of all."""
        return sum(self.counts)

    @property
    def batch(self) -> int:
        """The most sequences that a step of every phase has a multiple of."""
        return gcd(*(part.order.batch for part in self.parts))

    def at(self, step: int) -> list[Place]:
        """List the sequences of a step; see :meth:`Order.at`."""
        number, first = self.phase(step)
        return self.parts[number].at(step, first)

    def epochs(self, step: int) -> float:
        """Count how often all that there is was shown before a step."""
        number, first = self.phase(step)
        passed = [*self.counts[:number], step - first]
        return sum(n * part.order.batch / part.order.rows for n, part in zip(passed, self.parts, strict=False))

    def phase(self, step: int) -> tuple[int, int]:
        """Find the number of the phase of a step, and the step at which it begins."""
        firsts = np.concatenate([[0], np.cumsum(self.counts[:-1], dtype=np.int64)]).tolist()
        number = bisect_right(firsts, step) - 1
        return number, firsts[number]


def phases_of(
    sequences: Sequences,
    schedule: Schedule | None,
    batch: int,
    seed: int,
    *,
    steps: int | None = None,
    tokens: int | None = None,
    shown: int = 1,
) -> Phases:
    """Plan the phases of a run.

    A step shows about as many tokens in all of them: where the sequences are cut to ``L`` tokens, and the longest has
    ``M``, it sees ``batch * (M // L)`` pieces.

    Args:
        sequences: The data.
        schedule: Tokens of a sequence by the share of the budget; None shows whole sequences.
        batch: Sequences of a step, where they are whole.
        seed: Of the orders.
        steps: The budget, or
        tokens: The budget, of which each phase uses up its share by the fewest steps.
        shown: How often a step shows a sequence to the model.

    Returns:
        The phases; those that a short budget leaves no step for are left out.

    Raises:
        GradvarError: If there are fewer sequences or pieces than a step takes.
    """  # noqa: DOC502
    if schedule is None and tokens is None:
        return Phases((Phase(Order(len(sequences), batch, seed)),), (steps or 1,))
    lengths = sequences.lengths()
    schedule = schedule or Schedule.of(int(lengths.max()))
    ends = [*schedule.shares[1:], 1.0]
    parts, counts = [], []
    for number, (share, end, length) in enumerate(zip(schedule.shares, ends, schedule.values, strict=True)):
        if end == share or (steps is not None and round(end * steps) == round(share * steps)):
            continue
        part, of_units = _phase_of(sequences, lengths, int(length), batch, seed, number)
        parts.append(part)
        if tokens is None:
            counts.append(round(end * (steps or 1)) - round(share * (steps or 1)))
        else:
            counts.append(part.order.steps_for(max(1, round((end - share) * tokens)), of_units * shown))
    return Phases(tuple(parts), tuple(counts))


def _phase_of(
    sequences: Sequences, lengths: np.ndarray, length: int, batch: int, seed: int, number: int
) -> tuple[Phase, np.ndarray]:
    """Make a phase, and tell the tokens of its units."""
    longest = int(lengths.max())
    if length >= longest:
        return Phase(Order(len(lengths), batch, seed, number)), lengths
    units = sequences.cut(length)
    return Phase(Order(len(units.rows), batch * (longest // length), seed, number), units), units.lengths
