"""One forward and one backward over all cells: hooks catch what the gradients are made of and reduce it at once.

Autograd's own weight gradients are switched off; the same products are formed a few rows at a time for the
cells of one datum, turned into moments while they are in cache, and forgotten.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from gradvar.decomposition.moments import MomentAccumulator
from gradvar.errors import GradvarError
from gradvar.persample.engine import Batch, Losses
from gradvar.persample.memory import keep_freed_memory
from gradvar.persample.parameters import Target
from gradvar.persample.rules import Fill, Rule, embedding_weight, rules_of

# Elements of a block: the cells of a few rows, small enough to stay in the caches of two cores.
_BLOCK_CPU = 1 << 20
_BLOCK_GPU = 1 << 26


@dataclass(frozen=True)
class Call:
    """One call of a module, for one of its parameters.

    Attributes:
        module: The module.
        rule: The rule of the parameter.
        x: ``[cells, ...]`` the module's input.
        dy: ``[cells, ..., outputs]`` the gradient of the summed loss at its output.
    """

    module: nn.Module
    rule: Rule
    x: Tensor
    dy: Tensor


class OnePass:
    """Exact per-cell gradient moments at about the cost of an ordinary forward and backward.

    Covers Linear, LayerNorm and Embedding, biases, and parameters shared between them or used many times.

    Args:
        model: The model, in evaluation mode.
        targets: The parameters to study.
    """

    name = "onepass"

    def __init__(self, model: nn.Module, targets: list[Target]) -> None:
        keep_freed_memory()
        self.model = model
        wanted = {id(target.parameter) for target in targets}
        self._sites: list[tuple[nn.Module, dict[int, Rule]]] = []
        for module in model.modules():
            rules = {
                id(parameter): rule
                for name, rule in rules_of(module).items()
                if (parameter := getattr(module, name, None)) is not None and id(parameter) in wanted
            }
            if rules:
                self._sites.append((module, rules))
        self._scratch: Tensor | None = None
        self._covered = {key for _, rules in self._sites for key in rules}

    def covers(self, target: Target) -> bool:
        """Whether some rule gives this parameter's gradient."""
        return id(target.parameter) in self._covered

    def bytes_per_datum(self, cells: int) -> int:
        """Bytes of the gradients of one datum: a block of fixed size, so none that grow."""
        return 0

    def accumulate(
        self, losses: Losses, batch: Batch, accumulators: Mapping[int, MomentAccumulator], first: int
    ) -> Tensor:
        """Add the cells of some consecutive data; see :class:`~gradvar.persample.engine.Engine`."""
        cells = len(next(iter(batch.values())))
        capture = _Capture(self._sites, cells, lambda key, calls: self._reduce(calls, accumulators[key], first))
        with _frozen(self.model), capture.hooks(), torch.enable_grad():
            values = losses(batch)
            if values.requires_grad:
                values.sum().backward()
            capture.flush()
        return values.detach()

    def _reduce(self, calls: list[Call], accumulator: MomentAccumulator, first: int) -> None:
        """Turn the calls of one parameter into moments, a block of data and rows at a time.

        An embedding reaches few rows of a large table. Where nothing else reaches it, only those rows are
        formed; where a decoder shares it, the decoder's part of all rows is formed in blocks, and the rows
        that the embedding reaches are then formed again with both parts.
        """
        layout = accumulator.layout
        per = layout.cells
        rows, columns = accumulator.sums.shape[1:]
        like = calls[0].dy
        data = len(like) // per
        block = _BLOCK_CPU if like.device.type == "cpu" else _BLOCK_GPU
        large = per * rows * columns > block
        gathers = [call for call in calls if call.rule is embedding_weight]
        dense = [call.rule(call.module, call.x, call.dy) for call in calls if call.rule is not embedding_weight]
        fills = dense + [call.rule(call.module, call.x, call.dy) for call in gathers]
        at_once = 1 if large else max(1, min(data, block // (per * rows * columns)))
        step = max(1, min(rows, block // (at_once * per * columns)))
        join = accumulator.open(first, data)
        for start in range(0, data, at_once):
            count = min(at_once, data - start)
            cells = slice(start * per, (start + count) * per)
            shape = (count, *layout.draws, -1, columns)
            reached = None
            if large and gathers:
                reached = torch.cat([call.x[cells].flatten() for call in gathers]).unique()
                before = join.before(reached)
            for row in range(0, rows, step) if dense or reached is None else ():
                part = slice(row, min(row + step, rows))
                out = self._lend(like, count * per, part.stop - row, columns)
                _fill(fills if reached is None else dense, cells, part, out)
                join.add(out.view(shape), start, part)
            if reached is not None:
                out = like.new_empty(per, len(reached), columns)
                _fill(fills, cells, reached, out)
                if dense:
                    join.replace(out.view(shape), start, reached, before)
                else:
                    join.add_sparse(out.view(shape), start, reached)
        join.close()

    def _lend(self, like: Tensor, *shape: int) -> Tensor:
        """Lend scratch memory; fresh memory would cost a page fault every 4 kB."""
        size = prod(shape)
        held = self._scratch
        if held is None or held.numel() < size or held.dtype != like.dtype or held.device != like.device:
            self._scratch = held = like.new_empty(size)
        return held[:size].view(shape)


def _fill(fills: list[Fill], cells: slice, rows: slice | Tensor, out: Tensor) -> None:
    """Sum the calls' gradients; the first one overwrites."""
    for index, fill in enumerate(fills):
        fill(cells, rows, out, index == 0)


class _Capture:
    """Collects the calls of every parameter, and hands them over once the last output gradient is there."""

    def __init__(
        self, sites: list[tuple[nn.Module, dict[int, Rule]]], cells: int, ready: Callable[[int, list[Call]], None]
    ) -> None:
        self._sites, self._cells, self._ready = sites, cells, ready
        self._pending: dict[int, int] = defaultdict(int)
        self._calls: dict[int, list[Call]] = defaultdict(list)

    @contextmanager
    def hooks(self) -> Iterator[None]:
        handles = []
        try:
            for module, rules in self._sites:
                handles.append(module.register_forward_hook(self._on_output(rules)))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _on_output(self, rules: dict[int, Rule]) -> Callable[[nn.Module, Any, Tensor], Tensor]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
            x = args[0].detach()
            if len(output) != self._cells:
                if len(output) != 1 or len(x) != 1:
                    raise GradvarError(
                        f"{type(module).__name__} returned shape {tuple(output.shape)}, which has not the "
                        f"{self._cells} cells in front; use --engine reference"
                    )
                x = x.expand(self._cells, *x.shape[1:])
                output = output.expand(self._cells, *output.shape[1:])
            if not output.requires_grad:
                output = output.detach().requires_grad_()
            for key in rules:
                self._pending[key] += 1

            def arrived(dy: Tensor) -> None:
                for key, rule in rules.items():
                    self._calls[key].append(Call(module, rule, x, dy))
                    self._pending[key] -= 1
                    if not self._pending[key]:
                        self._ready(key, self._calls.pop(key))

            output.register_hook(arrived)
            return output

        return hook

    def flush(self) -> None:
        """Hand over the parameters some of whose outputs the loss never reached."""
        for key in list(self._calls):
            self._ready(key, self._calls.pop(key))


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Switch off autograd's own parameter gradients."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in trainable:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
