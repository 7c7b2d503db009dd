"""The interface of the engines: cells in, moments of their gradients out."""

from collections.abc import Callable, Mapping
from typing import Protocol

from torch import Tensor

from gradvar.decomposition.accumulator import MomentAccumulator

Batch = Mapping[str, Tensor]
Losses = Callable[[Batch], Tensor]


class Engine(Protocol):
    """Computes every cell's gradient, and keeps only its moments."""

    name: str

    def bytes_per_datum(self, cells: int) -> int:
        """Bytes that the gradients of one datum's cells take, beside what autograd keeps."""
        ...

    def accumulate(
        self, losses: Losses, batch: Batch, accumulators: Mapping[int, MomentAccumulator], first: int
    ) -> Tensor:
        """Add the cells of some consecutive data, each once; accumulators of a call that failed are of no more use.

        Args:
            losses: Runs the model on a batch and returns its losses ``[cells]``.
            batch: Tensors with the cells in front, those of a datum together.
            accumulators: Accumulator by ``id(parameter)``.
            first: Index of the first datum in the study.

        Returns:
            ``[cells]`` losses, detached.

        Raises:
            EngineError: If this engine cannot measure the model.
        """
        ...
