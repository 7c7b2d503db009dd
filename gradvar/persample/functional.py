"""The rule for everything without one: a module's call, differentiated again for each cell by `torch.func`."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap
from torch.utils._pytree import tree_flatten, tree_unflatten

from gradvar.persample.rules import Call, Fill, Rule, explicit


def tensors_of(tree: Any) -> tuple[list[Tensor], Any, list[int]]:
    """Take the floating-point tensors out of nested tuples, lists and dicts.

    Args:
        tree: What a module takes or returns.

    Returns:
        The tensors; what :func:`with_tensors` needs to put others in their places.
    """
    leaves, structure = tree_flatten(tree)
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    return [leaves[i] for i in places], (leaves, structure), places


def with_tensors(tensors: list[Tensor], rest: Any, places: list[int]) -> Any:
    """Put tensors back where :func:`tensors_of` took them from."""
    leaves, structure = rest
    leaves = list(leaves)
    for place, tensor in zip(places, tensors, strict=True):
        leaves[place] = tensor
    return tree_unflatten(leaves, structure)


def vjp_rule(name: str) -> Rule:
    """Make the rule of one parameter of any module: ``dp = (d output / d p)^T dy``, cell by cell.

    The module runs again on each cell's inputs, by `vmap` where it can and one by one where not. Inputs whose
    first dimension is the cells' are cut into cells; all others are the same for every cell. A parameter that
    other modules share varies in this one alone, as every one of them has a call of its own.

    Args:
        name: The parameter's name within the module, such as ``scale`` or ``out_proj.weight``.

    Returns:
        The rule.
    """

    def rule(call: Call) -> Fill:
        shared = call.module.get_parameter(name)
        own = call.module.named_parameters(recurse=uses_of_its_children(call.module), remove_duplicate=False)
        names = [other for other, p in own if p is shared]
        parameter = shared.detach()
        cells = len(next(dy for dy in call.dys if dy is not None))
        leaves, structure = tree_flatten((call.args, call.kwargs))
        cut = [i for i, x in enumerate(leaves) if isinstance(x, Tensor) and x.ndim and len(x) == cells]
        rows = parameter.shape[0] if parameter.ndim > 1 else 1

        def one_cell(inputs: tuple[Tensor, ...], dys: tuple[Tensor, ...]) -> Tensor:
            mine = list(leaves)
            for place, tensor in zip(cut, inputs, strict=True):
                mine[place] = tensor.unsqueeze(0)

            def outputs(value: Tensor) -> tuple[Tensor, ...]:
                args, kwargs = tree_unflatten(mine, structure)
                values = dict.fromkeys(names, value)
                found, _, _ = tensors_of(functional_call(call.module, values, args, kwargs, tie_weights=False))
                return tuple(y for y, dy in zip(found, call.dys, strict=True) if dy is not None)

            (gradient,) = vjp(outputs, parameter)[1](tuple(dy.unsqueeze(0) for dy in dys))
            return gradient

        def gradient(part: slice) -> Tensor:
            inputs = tuple(leaves[i][part] for i in cut)
            dys = tuple(dy[part] for dy in call.dys if dy is not None)
            with torch.no_grad(), warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="There is a performance drop")
                try:
                    found = vmap(one_cell)(inputs, dys)
                except RuntimeError:
                    count = part.stop - part.start
                    found = torch.stack(
                        [one_cell(tuple(x[c] for x in inputs), tuple(dy[c] for dy in dys)) for c in range(count)]
                    )
            return found.reshape(len(found), rows, -1)

        return explicit(gradient)

    return rule


def uses_of_its_children(module: nn.Module) -> bool:
    """Whether a module computes with its children's parameters itself, without calling them."""
    return isinstance(module, nn.MultiheadAttention)
