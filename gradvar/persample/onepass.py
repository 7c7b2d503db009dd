"""One forward and one backward over all cells: hooks catch what the gradients are made of and reduce it at once.

Autograd's own weight gradients are switched off; the same products are formed a few rows at a time for the
cells of one datum, turned into moments while they are in cache, and forgotten. Of large tables with few positions
only the sum over the cells is formed; small parameters wait until all can be reduced together.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import contextmanager
from itertools import pairwise
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from gradvar.decomposition.accumulator import MomentAccumulator, add_small, squares_of
from gradvar.errors import EngineError
from gradvar.persample.engine import Batch, Losses
from gradvar.persample.functional import tensors_of, uses_of_its_children, vjp_rule, with_tensors
from gradvar.persample.gram import gram_pays, squared_norms
from gradvar.persample.memory import keep_freed_memory
from gradvar.persample.parameters import Target
from gradvar.persample.rules import Call, Fill, Products, Rule, embedding_weight, rules_of

# Elements of a block: the cells of a few rows, small enough to stay in the caches of two cores.
_BLOCK_CPU = 1 << 20
_BLOCK_GPU = 1 << 26
# Products of fewer rows than this run well below a processor's rate, so wide layers get up to four such blocks.
_ROWS = 128
# Elements formed at a time of a datum's sum, where its cells are not: they fit the second caches of two cores.
_MEAN = 1 << 19
# Elements of small parameters that may wait to be reduced together.
_PUT_BY = 1 << 22

Site = tuple[str, nn.Module, dict[int, Rule]]
"""A module to watch, its name, and the rules of those of its parameters that are studied, by ``id(parameter)``."""


class OnePass:
    """Exact per-cell gradient moments at about the cost of an ordinary forward and backward.

    Linear, Embedding, LayerNorm, RMSNorm, Conv1d and Conv2d have rules of their own, shared parameters and
    modules called many times included. Any other module with parameters runs once more for each cell, by
    `torch.func`. Needs the cells, or 1, in front of every such module's output.

    Args:
        model: The model.
        targets: The parameters to study.
        unreached: Names of targets that the loss does not reach: no module runs again for them.
    """

    name = "onepass"

    def __init__(self, model: nn.Module, targets: list[Target], unreached: Set[str] = frozenset()) -> None:
        keep_freed_memory()
        self.model = model
        self._sites, self._again = _sites_of(model, targets, unreached)
        self._scratch: Tensor | None = None
        self._small: list[tuple[MomentAccumulator, Tensor]] = []  # what is added at the end, all together

    def bytes_per_datum(self, cells: int) -> int:
        """Bytes of the gradients of one datum, but for blocks whose size is bounded: of the modules that run again."""
        return max((2 * cells * p.numel() * p.element_size() for p in self._again), default=0)

    def accumulate(
        self, losses: Losses, batch: Batch, accumulators: Mapping[int, MomentAccumulator], first: int
    ) -> Tensor:
        """Add the cells of some consecutive data; see :class:`~gradvar.persample.engine.Engine`."""
        cells = len(next(iter(batch.values())))
        self._small.clear()  # of a call that failed
        capture = _Capture(self._sites, cells, lambda key, calls: self._reduce(calls, accumulators[key], first))
        with _frozen(self.model), capture.hooks(), torch.enable_grad():
            try:
                values = losses(batch)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                if "memory" in str(error):
                    raise
                said = str(error).splitlines()[0]
                raise EngineError(f"the model fails when it is watched ({said}); use --engine reference") from error
            if values.requires_grad:
                values.sum().backward()
            capture.flush()
        self._add_small(first)
        return values.detach()

    def _reduce(self, calls: list[tuple[Rule, Call]], accumulator: MomentAccumulator, first: int) -> None:
        """Turn the calls of one parameter into moments, a block of data and rows at a time.

        An embedding reaches few rows of a large table. Where nothing else reaches it, only those rows are
        formed; where a decoder shares it, the decoder's part of all rows is formed in blocks, and the rows
        that the embedding reaches are then formed again with both parts. Where inner products of its factors are
        cheaper, the decoder's cells are not formed at all. Small parameters are put by.
        """
        draws, per = accumulator.draws, prod(accumulator.draws)
        rows, columns = accumulator.tables.sums.shape
        like = next(dy for dy in calls[0][1].dys if dy is not None)
        data = len(like) // per
        block = _BLOCK_CPU if like.device.type == "cpu" else _BLOCK_GPU
        large = per * rows * columns > block
        gathers = [call for rule, call in calls if rule is embedding_weight]
        dense = [rule(call) for rule, call in calls if rule is not embedding_weight]
        fills = dense + [embedding_weight(call) for call in gathers]
        at_once = 1 if large else max(1, min(data, block // (per * rows * columns)))
        wide = at_once * per * columns
        step = max(1, min(rows, max(block // wide, min(_ROWS, 4 * block // wide))))
        if accumulator.sketch.whole and not large:
            out = like.new_empty(data * per, rows, columns)
            _fill(fills, slice(0, data * per), slice(0, rows), out)
            self._small.append((accumulator, out.view(data, *draws, rows, columns)))
            if sum(values.numel() for _, values in self._small) > _PUT_BY:
                self._add_small(first)
            return
        products = _products_for_gram(dense, draws) if large and not accumulator.pairs else None
        for start in range(0, data, at_once):
            count = min(at_once, data - start)
            cells = slice(start * per, (start + count) * per)
            shape = (count, *draws, -1, columns)
            reached = None
            if large and gathers:
                reached = torch.cat([call.x[cells].flatten() for call in gathers]).unique()
                before = accumulator.before(reached)
            by_gram = False
            if products is not None:
                one = Products(products.dy[cells], products.x[cells])
                by_gram = self._by_gram(one, accumulator, first + start, reached)
            nothing = by_gram or (reached is not None and not dense)
            for part, without in _parts(0 if nothing else rows, step, reached):
                out = self._lend(like, count * per, part.stop - part.start, columns)
                _fill(fills if reached is None else dense, cells, part, out)
                if products is None:
                    accumulator.add_rows(out.view(shape), first + start, part, without)
                else:
                    accumulator.add_cells(out.view(shape), first + start, without)
            if reached is not None:
                out = like.new_empty(per, len(reached), columns)
                _fill(fills, cells, reached, out)
                if dense:
                    accumulator.replace(out.view(shape), first + start, reached, before)
                else:
                    accumulator.add_sparse(out.view(shape), first + start, reached)

    def _by_gram(self, products: Products, accumulator: MomentAccumulator, datum: int, reached: Tensor | None) -> bool:
        """Add a datum's sum by one product over all its cells, and its squares by inner products of the factors.

        Args:
            products: Its factors.
            accumulator: What takes the values.
            datum: Its index.
            reached: Rows whose squares are left out.

        Returns:
            Whether the squares could be had in this way; the sum was added anyhow.
        """
        draws, dy, x = accumulator.draws, products.dy, products.x
        rows, columns = dy.shape[2], x.shape[2]
        flat, inputs = dy.flatten(0, 1), x.flatten(0, 1)
        of_total = torch.zeros((), dtype=torch.float64, device=dy.device)
        parts = _parts(rows, max(1, _MEAN // columns), reached) if accumulator.wants_totals else []
        for part, without in parts:
            total = torch.mm(flat[:, part].T, inputs, out=self._lend(dy, part.stop - part.start, columns))
            of_total += squares_of(total, without)
            accumulator.add_totals(total.unsqueeze(0), datum, part, without)
        levels = (draws[:level] for level in range(1 if accumulator.wants_totals else len(draws), len(draws) + 1))
        inner = [squared_norms(dy, x, prod(level), reached).view(level) for level in levels]
        return accumulator.add_squares([of_total, *inner], datum)

    def _add_small(self, first: int) -> None:
        """Add what was put by."""
        add_small(self._small, first)
        self._small.clear()

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


def _parts(rows: int, step: int, reached: Tensor | None) -> list[tuple[slice, Tensor | None]]:
    """Cut rows into parts; say which of some sorted rows lie in each, counted from its first."""
    bounds = [*range(0, rows, step), rows]
    parts = [slice(start, stop) for start, stop in pairwise(bounds)]
    if reached is None:
        return [(part, None) for part in parts]
    places = torch.searchsorted(reached, reached.new_tensor(bounds)).tolist()
    return [(part, reached[i:j] - part.start) for part, (i, j) in zip(parts, pairwise(places), strict=True)]


def _products_for_gram(dense: list[Fill], draws: tuple[int, ...]) -> Products | None:
    """Return the one sum of products that a parameter's gradient is, if inner products of its factors are cheaper."""
    if len(dense) != 1 or not isinstance(dense[0], Products) or dense[0].dy.device.type != "cpu":
        return None
    _, positions, rows = dense[0].dy.shape
    together = sum(positions * prod(draws[level:]) for level in range(1, len(draws) + 1))
    return dense[0] if gram_pays(together, rows, dense[0].x.shape[2]) else None


def _sites_of(model: nn.Module, targets: list[Target], unreached: Set[str]) -> tuple[list[Site], list[nn.Parameter]]:
    """Find the modules to watch, and the parameters for whose sake a module runs again.

    A parameter that a rule covers somewhere inside a module is left to it there: heads often own a second name of
    their decoder's bias.
    """
    wanted = {id(target.parameter): target for target in targets}
    sites: list[Site] = []
    covering: dict[int, set[nn.Module]] = defaultdict(set)
    inside: set[nn.Module] = set()  # of modules that do not call their children
    for module in model.modules():
        if uses_of_its_children(module):
            inside.update(child for child in module.modules() if child is not module)
    for path, module in model.named_modules():
        if module in inside:
            continue
        named = ((rule, getattr(module, name, None)) for name, rule in rules_of(module).items())
        rules = {id(p): rule for rule, p in named if p is not None and id(p) in wanted}
        for key in rules:
            covering[key].add(module)
        if rules:
            sites.append((path, module, rules))
    again = []
    for path, module in model.named_modules():
        if module in inside:
            continue
        rules = {}
        parts = set(module.modules())
        for name, parameter in module.named_parameters(recurse=uses_of_its_children(module)):
            target = wanted.get(id(parameter))
            if target is None or target.name in unreached:
                continue
            if parts.isdisjoint(covering[id(parameter)]):
                rules[id(parameter)] = vjp_rule(name)
                again.append(parameter)
        if rules:
            sites.append((path, module, rules))
    return sites, again


class _Capture:
    """Collects the calls of every parameter, and hands them over once the last output gradient is there."""

    def __init__(self, sites: list[Site], cells: int, ready: Callable[[int, list[tuple[Rule, Call]]], None]) -> None:
        self._sites, self._cells, self._ready = sites, cells, ready
        self._pending: dict[int, int] = defaultdict(int)
        self._calls: dict[int, list[tuple[Rule, Call]]] = defaultdict(list)
        self._busy = False  # a rule that runs its module again must not be watched while it does

    @contextmanager
    def hooks(self) -> Iterator[None]:
        handles = []
        try:
            for path, module, rules in self._sites:
                handles.append(module.register_forward_hook(self._on_output(path, rules), with_kwargs=True))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _on_output(self, path: str, rules: dict[int, Rule]) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            if self._busy:
                return output
            tensors, rest, places = tensors_of(output)
            args, kwargs = tuple(map(_detached, args)), {name: _detached(x) for name, x in kwargs.items()}
            x = args[0] if args else next(iter(kwargs.values()), None)
            watched = [i for i, y in enumerate(tensors) if _leading(y) == self._cells]
            if not watched:
                if {_leading(y) for y in tensors} != {1} or not isinstance(x, Tensor) or _leading(x) != 1:
                    shape = tuple(tensors[0].shape) if tensors else ()
                    raise EngineError(
                        f"module '{path}' ({type(module).__name__}) returned shape {shape}, which has not the "
                        f"{self._cells} cells in front; use --engine reference"
                    )
                x = _expand(x, self._cells)
                args, kwargs = ((x, *args[1:]), kwargs) if args else ((), {**kwargs, next(iter(kwargs)): x})
                tensors = [_expand(y, self._cells) for y in tensors]
                watched = list(range(len(tensors)))
            call = Call(module, x, args, kwargs, [None] * len(tensors))
            for key in rules:
                self._pending[key] += len(watched)
            for index in watched:
                tensors[index], source = _watchable(module, tensors[index])
                source.register_hook(self._arrival(rules, call, index, tensors[index].shape))
            return with_tensors(tensors, rest, places)

        return hook

    def _arrival(self, rules: dict[int, Rule], call: Call, index: int, shape: torch.Size) -> Callable[[Tensor], None]:
        def arrived(dy: Tensor) -> None:
            first = not any(known is not None for known in call.dys)
            call.dys[index] = dy.reshape(shape)
            for key, rule in rules.items():
                if first:
                    self._calls[key].append((rule, call))
                self._pending[key] -= 1
                if not self._pending[key]:
                    self._hand_over(key)

        return arrived

    def _hand_over(self, key: int) -> None:
        self._busy = True
        self._ready(key, self._calls.pop(key))
        self._busy = False

    def flush(self) -> None:
        """Hand over the parameters some of whose outputs the loss never reached."""
        for key in list(self._calls):
            self._hand_over(key)


def _detached(x: Any) -> Any:
    """Detach a tensor, or those in nested containers."""
    if isinstance(x, Tensor):
        return x.detach()
    if x is None or isinstance(x, (bool, int, float, str)):  # spares the slow walk what most modules are given
        return x
    return tree_map(lambda leaf: leaf.detach() if isinstance(leaf, Tensor) else leaf, x)


def _expand(x: Tensor, cells: int) -> Tensor:
    """Give every cell its own row of what is the same for all, such as the position ids."""
    return x.expand(cells, *x.shape[1:])


def _watchable(module: nn.Module, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return an output that the model may change in place, and the tensor whose gradient is then still its own.

    Autograd drops the hooks of a view that is changed in place, and lets no leaf be changed at all.
    """
    if not y.requires_grad:
        y = y.detach().requires_grad_().clone()
    elif y._base is not None:
        if rules_of(module) and y._base.numel() == y.numel():
            return y, y._base  # a Linear's matrix product, seen in the shape of its input: no copy is needed
        y = y.clone()
    return y, y


def _leading(x: Any) -> int:
    """Size of the first dimension; 0 if there is none."""
    return len(x) if isinstance(x, Tensor) and x.ndim else 0


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
