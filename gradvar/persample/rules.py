"""What a module's parameter gradient is, cell by cell: one short function for each kind of parameter.

A rule sees one call of a module: its input ``x`` and the gradient ``dy`` at its output, both with the cells
in front. It returns a function that fills in any rows of any cells. Index legend: c cells, t positions (all
dimensions between the first and the last), o outputs, i inputs, v vocabulary rows.
"""

from collections.abc import Callable
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradvar.errors import GradvarError

Fill = Callable[[slice, slice | Tensor, Tensor, bool], None]
"""``fill(cells, rows, out, fresh)`` writes (``fresh``) or adds the gradient of some cells and rows to ``out``
``[c, rows, columns]``. The parameter is seen as a matrix ``[rows, columns]``, a vector as one row. Rows come
as a slice or as sorted indices; an embedding's indices hold all rows that occur in these cells."""

Rule = Callable[[nn.Module, Tensor, Tensor], Fill]


def linear_weight(module: nn.Module, x: Tensor, dy: Tensor) -> Fill:
    """Linear: ``dW[o, i] = sum_t dy[t, o] x[t, i]``."""
    x, dy = _flat(x), _flat(dy).transpose(1, 2)

    def fill(cells: slice, rows: slice | Tensor, out: Tensor, fresh: bool) -> None:
        torch.baddbmm(out, dy[cells, rows], x[cells], beta=0 if fresh else 1, out=out)

    return fill


def bias(module: nn.Module, x: Tensor, dy: Tensor) -> Fill:
    """Bias: ``db[o] = sum_t dy[t, o]``."""
    return _one_row(_flat(dy).sum(1, keepdim=True))


def layer_norm_weight(module: nn.Module, x: Tensor, dy: Tensor) -> Fill:
    """LayerNorm: ``dw[o] = sum_t dy[t, o] n[t, o]`` with ``n`` the normalised input."""
    assert isinstance(module, nn.LayerNorm)
    normalised = F.layer_norm(x, module.normalized_shape, eps=module.eps)
    return _one_row(_flat(normalised * dy).sum(1, keepdim=True))


def _flat(x: Tensor) -> Tensor:
    """See ``[c, ..., last]`` as ``[c, t, last]``."""
    return x.reshape(len(x), -1, x.shape[-1])


def _one_row(gradient: Tensor) -> Fill:
    """Fill from explicit gradients ``[c, 1, columns]``."""

    def fill(cells: slice, rows: slice | Tensor, out: Tensor, fresh: bool) -> None:
        if fresh:
            out.copy_(gradient[cells])
        else:
            out.add_(gradient[cells])

    return fill


def embedding_weight(module: nn.Module, x: Tensor, dy: Tensor) -> Fill:
    """Embedding: ``dE[v] = sum_{t: x[t] = v} dy[t]``, the padding row excepted."""
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


def rules_of(module: nn.Module) -> dict[str, Rule]:
    """Look up the rules of a module's own parameters.

    Args:
        module: Any module.

    Returns:
        Rule by local parameter name; empty where this kind of module has none.

    Raises:
        GradvarError: If the module is of a known kind with an option that its rule does not cover.
    """
    if isinstance(module, nn.Linear):
        return {"weight": linear_weight, "bias": bias}
    if isinstance(module, nn.LayerNorm):
        if len(module.normalized_shape) != 1:
            raise GradvarError(
                f"LayerNorm over {len(module.normalized_shape)} dimensions is not covered; use --engine reference"
            )
        return {"weight": layer_norm_weight, "bias": bias}
    if isinstance(module, nn.Embedding):
        if module.max_norm is not None or module.scale_grad_by_freq:
            raise GradvarError(
                "Embedding with max_norm or scale_grad_by_freq has no per-sample gradient: it mixes cells"
            )
        return {"weight": embedding_weight}
    return {}
