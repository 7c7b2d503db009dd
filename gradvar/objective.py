"""What a cell is: the protocol between randomness, a model's loss, and everything that measures them."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from torch import Tensor, nn

Batch = Mapping[str, Tensor]


class HasModel(Protocol):
    """What an engine wants to know of an objective."""

    model: nn.Module


class Objective(HasModel, Protocol):
    """A loss with named, nested levels of randomness.

    The outermost level is a datum drawn from a population (for a masked LM, a sentence); each inner level
    is drawn again for every draw of the one around it (a mask of that sentence). A *cell* is one draw at
    every level. :class:`gradvar.MaskedLM` is one objective; any object with these attributes and methods is another,
    whatever its class. :class:`gradvar.Cells` makes draws that are functions of their indices,
    :func:`gradvar.keyed_dropout` makes dropout one of them.

    An objective may also have ``layer_group(layer) -> str``, the group of a module in reports; ``describe() ->
    {"study": ..., "provenance": ...}``, what its JSON should say; ``for_vmap(batch) -> batch``, the same cells in a
    form that runs under `torch.func.vmap`; and ``seconds_per_datum``, what one more datum costs.

    Attributes:
        model: The module whose parameters' gradients are studied, in evaluation mode.
        levels: Names of the levels, outermost first; at least two.
    """

    model: nn.Module
    levels: tuple[str, ...]

    def __len__(self) -> int:
        """Count the data in the population."""
        ...

    def draw(self, data: Sequence[int], draws: tuple[int, ...], seed: int) -> Batch:
        """Draw the cells of some data: a pure function of (seed, datum, inner draw indices).

        Args:
            data: Indices of the data in the population.
            draws: Number of draws at each inner level; their product is the cells of one datum.
            seed: Seed of every random choice.

        Returns:
            Tensors with leading dimension ``cells = len(data) * prod(draws)``, a datum's cells together
            and the innermost level fastest.
        """
        ...

    def losses(self, batch: Batch) -> Tensor:
        """Run the model; return the ``[cells]`` losses, each a function of its own cell alone."""
        ...


def is_masked_lm(levels: Sequence[str]) -> bool:
    """Whether levels are those of a masked LM, whose data are sentences."""
    return tuple(levels) in (("data", "mask"), ("data", "mask", "dropout"))


def unit_of(levels: Sequence[str]) -> str:
    """Name one draw of the outermost level: a sentence, for a masked LM."""
    return "sentence" if is_masked_lm(levels) else f"{levels[0]} draw"
