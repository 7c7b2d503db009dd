"""The slow engine: explicit per-cell gradients by `torch.func`, or by a plain loop where vmap cannot run the model."""

import warnings
from collections.abc import Callable, Mapping
from math import prod

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from gradvar.decomposition.accumulator import MomentAccumulator
from gradvar.persample.engine import Batch, Losses
from gradvar.persample.parameters import Target


class _LossModule(nn.Module):
    """Lets `functional_call` swap the parameters under any loss function."""

    def __init__(self, model: nn.Module, losses: Losses) -> None:
        super().__init__()
        self.model = model
        self.losses = losses

    def forward(self, batch: Batch) -> Tensor:
        return self.losses(batch)


class Reference:
    """Explicit per-cell gradients, the cells of one datum at a time; right for any model, slow and large.

    `torch.func`'s ``vmap(grad)`` is used if, on the first datum, it gives the same losses as the plain call;
    otherwise every cell gets a backward pass of its own.

    Args:
        model: The model.
        targets: The parameters to study.
        prepare: Turns a batch into one with the same losses that runs a cell at a time under `vmap`, where
            control flow may not depend on values.
        loop: Use the plain loop from the start.
    """

    name = "reference"

    def __init__(
        self,
        model: nn.Module,
        targets: list[Target],
        prepare: Callable[[Batch], Batch] | None = None,
        loop: bool = False,
    ) -> None:
        self.model = model
        self.targets = targets
        self._prepare = prepare or dict
        self._vmap: bool | None = False if loop else None

    @property
    def by_vmap(self) -> bool:
        """Whether `vmap` runs the model; known after the first datum."""
        return bool(self._vmap)

    def bytes_per_datum(self, cells: int) -> int:
        """Bytes of the gradients of one datum, twice: they are copied once on the way."""
        return 2 * cells * sum(t.parameter.numel() * t.parameter.element_size() for t in self.targets)

    def accumulate(
        self, losses: Losses, batch: Batch, accumulators: Mapping[int, MomentAccumulator], first: int
    ) -> Tensor:
        """Add the cells of some consecutive data; see :class:`~gradvar.persample.engine.Engine`."""
        cells = len(next(iter(batch.values())))
        draws = next(iter(accumulators.values())).draws
        each = prod(draws)
        values = []
        for start in range(0, cells, each):
            one = {name: tensor[start : start + each] for name, tensor in batch.items()}
            gradients, value = self._gradients(losses, one)
            for target in self.targets:
                accumulator = accumulators[id(target.parameter)]
                block = gradients.pop(target.name).contiguous().view(1, *draws, *target.shape)
                accumulator.add(block, first + start // each)
            values.append(value)
        return torch.cat(values)

    def _gradients(self, losses: Losses, batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
        """``{name: [cells, *shape]}`` and the losses ``[cells]``."""
        if self._vmap is None:
            with torch.no_grad():
                plain = losses(batch)
            try:
                gradients, value = self._by_vmap(losses, batch)
                # Masks that vmap makes a model drop move a loss by 1e-4 of itself; kernels' rounding is far below.
                self._vmap = torch.allclose(value, plain, rtol=50 * torch.finfo(plain.dtype).eps, atol=0.0)
            except torch.OutOfMemoryError:
                raise
            except Exception:  # a model may do anything with a value that vmap hides; the loop would fail likewise
                self._vmap = False
            if self._vmap:
                return gradients, value
        return self._by_vmap(losses, batch) if self._vmap else self._by_loop(losses, batch)

    def _by_vmap(self, losses: Losses, batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
        module = _LossModule(self.model, losses)
        parameters = {target.name: target.parameter.detach() for target in self.targets}

        def cell_loss(values: dict[str, Tensor], cell: Batch) -> Tensor:
            named = {f"model.{name}": value for name, value in values.items()}
            one = {name: tensor.unsqueeze(0) for name, tensor in cell.items()}
            return functional_call(module, named, (one,), tie_weights=True).squeeze(0)

        with (
            warnings.catch_warnings(),
            torch.no_grad(),
        ):  # vmap warns that some kernels run cell by cell: slow is what this engine is
            warnings.filterwarnings("ignore", message="There is a performance drop")
            return vmap(grad_and_value(cell_loss), in_dims=(None, 0))(parameters, dict(self._prepare(batch)))

    def _by_loop(self, losses: Losses, batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
        parameters = [target.parameter for target in self.targets]
        cells = len(next(iter(batch.values())))
        gradients = {target.name: target.parameter.new_zeros(cells, *target.parameter.shape) for target in self.targets}
        values = []
        for cell in range(cells):
            with torch.enable_grad():
                loss = losses({name: tensor[cell : cell + 1] for name, tensor in batch.items()}).sum()
                found = torch.autograd.grad(loss, parameters, allow_unused=True)
            for target, gradient in zip(self.targets, found, strict=True):
                if gradient is not None:
                    gradients[target.name][cell] = gradient
            values.append(loss.detach())
        return gradients, torch.stack(values)
