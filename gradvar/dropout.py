"""Dropout as a level of randomness: while a block runs, its masks are hashes of a key that every cell brings.

Two calls with the same keys drop the same elements, whatever else is in the batch: one backward pass over many
cells, `vmap`, and autograd cell by cell all see the same model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from inspect import currentframe, signature
from math import prod, sqrt
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.overrides import TorchFunctionMode

from gradvar.errors import GradvarError
from gradvar.masking.hashing import hash_key

_STREAM = 5  # of hashes, apart from those of masks and noise
_UNKEYED = (
    F.alpha_dropout,
    F.dropout1d,
    F.dropout2d,
    F.dropout3d,
    F.feature_alpha_dropout,
    F.multi_head_attention_forward,
)
_BLOCK = 1 << 20  # elements that are hashed at a time: int64 is wide, and needs temporaries


@contextmanager
def keyed_dropout(model: nn.Module, keys: Tensor) -> Iterator[KeyedDropout]:
    """Run a model with dropout whose masks are a pure function of ``keys``.

    Inside the block the model is in training mode, batch normalisation excepted, so that its dropout is active;
    afterwards every module is as it was. An element of a dropout's input ``[cells, i, j, ...]`` is zero with the
    dropout's probability ``p``, else scaled by ``1/(1-p)``, by a hash of (key of the cell, number of the dropout's
    call, i, j, ...): not of the batch, and not of the width that it is padded to. `F.dropout` (which `nn.Dropout`
    calls) and `F.scaled_dot_product_attention` are replaced; other dropouts are refused.

    Args:
        model: The model to be called in the block.
        keys: ``[cells]`` int64, such as a column of :attr:`gradvar.Cells.keys`.

    Yields:
        Counts the calls of dropout.

    Raises:
        GradvarError: If the model checkpoints gradients, if a dropout's input has not the cells in front or is of a
            kind that is not replaced, or if anything else in the block drew random numbers.

    Examples:
        >>> import torch
        >>> import gradvar
        >>> model = torch.nn.Dropout(0.5)
        >>> keys = gradvar.Cells([0, 1], (2,), seed=0).keys[:, 1]
        >>> with gradvar.keyed_dropout(model, keys):
        ...     first = model(torch.ones(4, 6))
        >>> with gradvar.keyed_dropout(model, keys[2:]):
        ...     again = model(torch.ones(2, 6))
        >>> torch.equal(first[2:], again)  # the same masks, whatever else is in the batch
        True
    """
    modules = {module: module.training for module in model.modules()}
    if any(getattr(module, "gradient_checkpointing", False) for module in modules):
        raise GradvarError(
            "gradient checkpointing runs dropout a second time, without its keys; switch it off in the model"
        )
    before = _generators(keys.device)
    try:
        for module in modules:
            module.training = not isinstance(module, _NormBase)
        with KeyedDropout(model, keys) as mode:
            yield mode
    finally:
        for module, training in modules.items():
            module.training = training
    if not all(map(torch.equal, before, _generators(keys.device))):
        raise GradvarError(
            "the loss draws random numbers beside the model's dropout, such as LayerDrop's, and no key decides them; "
            "switch that off, or draw them in the objective's draw"
        )


def _generators(device: torch.device) -> list[Tensor]:
    """States of the generators that a model may draw from."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


class KeyedDropout(TorchFunctionMode):
    """Replaces the functions that draw dropout's masks; see :func:`keyed_dropout`.

    Args:
        model: Whose modules errors name.
        keys: ``[cells]`` int64.

    Attributes:
        calls: How many dropouts of positive probability have run.
    """

    def __init__(self, model: nn.Module, keys: Tensor) -> None:
        super().__init__()
        self.calls = 0
        self._names = {module: name for name, module in model.named_modules()}
        self._keys = keys

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Intercept a function of torch."""
        kwargs = kwargs or {}
        if func is F.dropout:
            return self._dropout(*args, **kwargs)
        if func is F.scaled_dot_product_attention:
            return self._attention(*args, **kwargs)
        if func in _UNKEYED and _draws(func, args, kwargs):
            raise GradvarError(
                f"'{self._caller()}' draws its dropout in {func.__name__}, where no key can reach it; use nn.Dropout "
                "or scaled_dot_product_attention, or set its rate to 0"
            )
        return func(*args, **kwargs)

    def _dropout(self, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:  # noqa: A002
        if not training or p == 0:
            return input
        factors = self._factors(input.shape, p, input)
        return input.mul_(factors) if inplace else input * factors

    def _attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        """Compute what the fused kernels do, whose masks cannot be set."""
        options: dict[str, Any] = {"is_causal": is_causal, "scale": scale, "enable_gqa": enable_gqa}
        if dropout_p == 0:
            return F.scaled_dot_product_attention(query, key, value, attn_mask, **options)
        if enable_gqa:
            key, value = (x.repeat_interleave(query.shape[-3] // x.shape[-3], dim=-3) for x in (key, value))
        scores = query @ key.mT * (1 / sqrt(query.shape[-1]) if scale is None else scale)
        if is_causal:
            attn_mask = scores.new_ones(scores.shape[-2:], dtype=torch.bool).tril()
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            scores = scores.masked_fill(~attn_mask, -torch.inf)
        elif attn_mask is not None:
            scores = scores + attn_mask
        blind = (scores == -torch.inf).all(dim=-1, keepdim=True)  # sees no key: zero, as the kernels have it
        weights = scores.masked_fill(blind, 0.0).softmax(dim=-1).masked_fill(blind, 0.0)
        return self._dropout(weights, dropout_p) @ value

    def _factors(self, shape: torch.Size, p: float, like: Tensor) -> Tensor:
        """``[cells, ...]`` 0 with probability ``p``, else ``1/(1-p)``."""
        cells = len(self._keys)
        if shape[:1] != (cells,):
            raise GradvarError(
                f"'{self._caller()}' drops elements of shape {tuple(shape)}, which has not the {cells} cells in front: "
                "they would share one mask; set that dropout's rate to 0"
            )
        call = torch.tensor(self.calls, device=like.device)
        self.calls += 1
        # A hash is below this number with probability p, as an integer from -2^63 up.
        threshold = min(round(p * 2**64) - 2**63, 2**63 - 1)
        coordinates = [torch.arange(n, device=like.device).view(n, *(1,) * i) for i, n in enumerate(shape[:0:-1])]
        at_once = max(1, _BLOCK // max(1, prod(shape[1:])))
        blocks = [
            hash_key(_STREAM, keys.view(-1, *(1,) * (len(shape) - 1)), call, *coordinates[::-1]) >= threshold
            for keys in self._keys.to(like.device).split(at_once)
        ]
        return torch.cat(blocks).to(like.dtype) * (1 / (1 - p) if p < 1 else 0.0)

    def _caller(self) -> str:
        """Name the innermost module that is running: the first on the stack that is one of the model's."""
        frame = currentframe()
        while frame is not None:
            module = frame.f_locals.get("self")
            if isinstance(module, nn.Module) and module in self._names:
                return self._names[module] or type(module).__name__
            frame = frame.f_back
        return "the loss"


def _draws(func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether a call of one of the other dropouts would draw a mask."""
    bound = signature(func).bind(*args, **kwargs)
    bound.apply_defaults()
    given = bound.arguments
    return bool(given["training"] and (given.get("p") or given.get("dropout_p")))
