"""What a module's parameter gradient is, cell by cell: one short function for each kind of parameter.

A rule sees one call of a module: its inputs and the gradient at its output, both with the cells in front. It
returns a function that fills in any rows of any cells. Index legend: c cells, t positions (all dimensions
between the first and the last), o outputs, i inputs, v vocabulary rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradvar.errors import EngineError

Fill = Callable[[slice, slice | Tensor, Tensor, bool], None]
"""``fill(cells, rows, out, fresh)`` writes (``fresh``) or adds the gradient of some cells and rows to ``out``
``[c, rows, columns]``. The parameter is seen as a matrix ``[rows, columns]``, a vector as one row. Rows come
as a slice or as sorted indices; an embedding's indices hold all rows that occur in these cells."""


@dataclass(eq=False)
class Call:
    """One call of a module.

    Attributes:
        module: The module.
        x: ``[cells, ...]`` its first input.
        args: All its positional inputs, detached.
        kwargs: All its named inputs, detached.
        dys: Gradients of the summed loss at the tensors of its output, in their order; None where none came.
    """

    module: nn.Module
    x: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    dys: list[Tensor | None]

    @property
    def dy(self) -> Tensor:
        """Gradient at the output of a module that returns one tensor, ``[cells, ..., outputs]``."""
        dy = self.dys[0]
        assert dy is not None
        return dy


Rule = Callable[[Call], Fill]


@dataclass(eq=False)
class Products:
    """A fill that sums products over positions, whose factors may be put to other use.

    Attributes:
        dy: ``[cells, positions, rows]``.
        x: ``[cells, positions, columns]``.
    """

    dy: Tensor
    x: Tensor

    def __call__(self, cells: slice, rows: slice | Tensor, out: Tensor, fresh: bool) -> None:
        """Fill; see `Fill`."""
        dy, x = self.dy.transpose(1, 2)[cells, rows], self.x[cells]
        if fresh:
            torch.bmm(dy, x, out=out)
        else:
            out.baddbmm_(dy, x)


def linear_weight(call: Call) -> Products:
    """Linear: ``dW[o, i] = sum_t dy[t, o] x[t, i]``."""
    return Products(_flat(call.dy), _flat(call.x))


def bias(call: Call) -> Fill:
    """Bias of a Linear or a norm: ``db[o] = sum_t dy[t, o]``."""
    return _over_positions(call, call.dy)


def layer_norm_weight(call: Call) -> Fill:
    """LayerNorm: ``dw[o] = sum_t dy[t, o] n[t, o]`` with ``n`` the normalised input."""
    module = call.module
    assert isinstance(module, nn.LayerNorm)
    return _over_positions(call, F.layer_norm(call.x, module.normalized_shape, eps=module.eps) * call.dy)


def rms_norm_weight(call: Call) -> Fill:
    """RMSNorm: ``dw[o] = sum_t dy[t, o] n[t, o]`` with ``n`` the input over its root mean square."""
    module = call.module
    assert isinstance(module, nn.RMSNorm)
    return _over_positions(call, F.rms_norm(call.x, module.normalized_shape, eps=module.eps) * call.dy)


def conv_weight(call: Call) -> Fill:
    """Convolution: ``dW[o, i, k] = sum_t dy[o, t] x[i, stride t + dilation k]``, within each group of channels."""
    module, x, dy = call.module, call.x, call.dy
    assert isinstance(module, (nn.Conv1d, nn.Conv2d))
    kernel, stride, dilation = module.kernel_size, module.stride, module.dilation
    if isinstance(module.padding, str):
        reach = [d * (k - 1) if module.padding == "same" else 0 for d, k in zip(dilation, kernel, strict=True)]
        around = [(total // 2, total - total // 2) for total in reach]
    else:
        around = [(p, p) for p in module.padding]
    sides = list(chain.from_iterable(reversed(around)))  # the last dimension first, as F.pad wants it
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    line = (1,) * (2 - len(kernel))  # a Conv1d is a Conv2d over images of one line

    def gradient(cells: slice) -> Tensor:
        padded = F.pad(x[cells], sides, mode=mode)
        image = padded.unflatten(2, (*line, -1))
        patches = F.unfold(image, (*line, *kernel), (*line, *dilation), 0, (*line, *stride))
        by_group = patches.unflatten(1, (module.groups, -1))
        outer = dy[cells].flatten(2).unflatten(1, (module.groups, -1))
        return torch.matmul(outer, by_group.transpose(2, 3)).flatten(1, 2)

    return explicit(gradient)


def conv_bias(call: Call) -> Fill:
    """Bias of a convolution: ``db[o] = sum_t dy[o, t]``."""
    found = call.dy.flatten(2).sum(2).unsqueeze(1)
    return explicit(lambda cells: found[cells])


def embedding_weight(call: Call) -> Fill:
    """Embedding: ``dE[v] = sum_{t: x[t] = v} dy[t]``, the padding row excepted."""
    module, x, dy = call.module, call.x, call.dy
    assert isinstance(module, nn.Embedding)
    positions = x[0].numel()
    ids, order = x.flatten().sort()
    if module.padding_idx is not None:
        live = ids != module.padding_idx
        ids, order = ids[live], order[live]
    cell = order // positions

    @lru_cache(maxsize=1)
    def tokens_of(first: int, last: int) -> tuple[Tensor, Tensor, Tensor]:
        inside = (cell >= first) & (cell < last)
        return cell[inside] - first, ids[inside], dy.flatten(0, -2)[order[inside]]

    def fill(cells: slice, rows: slice | Tensor, out: Tensor, fresh: bool) -> None:
        if fresh:
            out.zero_()
        c, v, gradient = tokens_of(cells.start, cells.stop)
        if isinstance(rows, slice):
            start, stop = torch.searchsorted(v, v.new_tensor([rows.start, rows.stop])).tolist()
            c, index, gradient = c[start:stop], v[start:stop] - rows.start, gradient[start:stop]
        else:
            index = torch.searchsorted(rows, v)
        out.flatten(0, 1).index_add_(0, c * out.shape[1] + index, gradient)

    return fill


def _flat(x: Tensor) -> Tensor:
    """See ``[c, ..., last]`` as ``[c, t, last]``."""
    return x.reshape(len(x), -1, x.shape[-1])


def _over_positions(call: Call, products: Tensor) -> Fill:
    """Fill with sums over all positions; the parameter has the shape of the last dimensions."""
    shape = getattr(call.module, "normalized_shape", products.shape[-1:])
    rows = shape[0] if len(shape) > 1 else 1
    found = products.reshape(len(products), -1, prod(shape)).sum(1).view(len(products), rows, -1)
    return explicit(lambda cells: found[cells])


def explicit(gradient: Callable[[slice], Tensor]) -> Fill:
    """Fill from a function that gives the whole gradient ``[c, rows, columns]`` of some cells."""
    last = lru_cache(maxsize=1)(lambda first, stop: gradient(slice(first, stop)))

    def fill(cells: slice, rows: slice | Tensor, out: Tensor, fresh: bool) -> None:
        found = last(cells.start, cells.stop)[:, rows]
        if fresh:
            out.copy_(found)
        else:
            out.add_(found)

    return fill


_RULES: dict[type[nn.Module], dict[str, Rule]] = {
    nn.Linear: {"weight": linear_weight, "bias": bias},
    nn.LayerNorm: {"weight": layer_norm_weight, "bias": bias},
    nn.RMSNorm: {"weight": rms_norm_weight},
    nn.Conv1d: {"weight": conv_weight, "bias": conv_bias},
    nn.Conv2d: {"weight": conv_weight, "bias": conv_bias},
    nn.Embedding: {"weight": embedding_weight},
}


def rules_of(module: nn.Module) -> dict[str, Rule]:
    """Look up the rules of a module's own parameters.

    Args:
        module: Any module.

    Returns:
        Rule by local parameter name; empty where this kind of module has none.

    Raises:
        EngineError: If no cell of this module has a gradient of its own.
    """
    kind = next((kind for kind in _RULES if isinstance(module, kind)), None)
    # A subclass that computes something else, such as a scaled embedding, is like any other module.
    if kind is None or type(module).forward is not kind.forward:
        return {}
    if isinstance(module, nn.Embedding) and (module.max_norm is not None or module.scale_grad_by_freq):
        raise EngineError("Embedding with max_norm or scale_grad_by_freq has no per-sample gradient: it mixes cells")
    return _RULES[kind]
