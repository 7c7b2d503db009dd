"""Running any `AutoModelForMaskedLM` with logits at the target positions only."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from gradvar.errors import GradvarError


@contextmanager
def _gathering(encoder: nn.Module, positions: Tensor) -> Iterator[None]:
    """Let the encoder hand its head only the hidden states at ``positions``."""

    def gather(module: nn.Module, args: Any, output: Any) -> Any:
        hidden = output[0]
        rows = torch.arange(len(hidden), device=hidden.device).unsqueeze(1)
        output.last_hidden_state = hidden[rows, positions]
        return output

    handle = encoder.register_forward_hook(gather)
    try:
        yield
    finally:
        handle.remove()


def logits_at(model: nn.Module, positions: Tensor, gather_first: bool, **inputs: Any) -> Tensor:
    """Compute the logits at the given positions and, if it can be, nowhere else.

    The hidden states are gathered where the encoder hands them to the head, so the head's own code
    runs, on ``targets`` rows a cell rather than on all positions: at 15 % masks and a vocabulary of
    30,522 this is where most of a small model's time goes.

    Args:
        model: A Hugging Face masked LM; ``model.base_model`` is its encoder.
        positions: ``[cells, targets]`` int64.
        gather_first: Gather before the head; otherwise after it. :func:`heads_by_position` says whether it may.
        **inputs: ``input_ids`` ``[cells, positions]`` and, where something is padded, ``attention_mask``.

    Returns:
        ``[cells, targets, vocabulary]``.
    """
    if gather_first:
        with _gathering(cast(nn.Module, model.base_model), positions):
            return model(**inputs).logits
    logits = model(**inputs).logits
    return logits.gather(1, positions.unsqueeze(-1).expand(-1, -1, logits.shape[-1]))


def heads_by_position(model: nn.Module, input_ids: Tensor) -> bool:
    """Whether the head treats every position by itself, and so may be given some of them only.

    Args:
        model: A Hugging Face masked LM without active dropout.
        input_ids: ``[cells, positions]`` to try it on.

    Returns:
        Whether the logits are the same either way, up to rounding.

    Raises:
        GradvarError: If the model has no gradient from ``input_ids`` alone, or no logits for each position.
    """
    positions = torch.arange(0, input_ids.shape[1], 2, device=input_ids.device).expand(len(input_ids), -1)
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        with torch.enable_grad():
            everywhere = logits_at(model, positions, False, input_ids=input_ids)
            torch.autograd.grad(everywhere.sum(), weights, allow_unused=True)
    except Exception as error:  # a model may fail in any way where it is given too little
        said = str(error).split("\n")[0] or type(error).__name__
        raise GradvarError(
            f"{type(model).__name__} has no gradient from input_ids alone ({said}); it cannot be studied as a masked LM"
        ) from error
    if everywhere.shape[:2] != positions.shape:
        raise GradvarError(f"{type(model).__name__} gives no logits for each position; it is no masked LM")
    everywhere = everywhere.detach()
    with torch.no_grad():
        try:
            there = logits_at(model, positions, True, input_ids=input_ids)
        except (RuntimeError, AttributeError, TypeError, IndexError):
            return False
    if there.shape != everywhere.shape:
        return False
    everywhere, there = everywhere.nan_to_num(), there.nan_to_num()  # broken weights are reported later, by name
    return torch.allclose(there, everywhere, rtol=1e-4, atol=1e-5 * float(everywhere.abs().max()))


def prepared_masks(model: nn.Module, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
    """Build the attention masks that a model builds itself, where it takes them ready-made.

    `torch.func.vmap` forbids the look at the values that building them takes. Models with layers of several
    kinds (full and sliding attention) want one for each kind.

    Args:
        model: A Hugging Face masked LM.
        input_ids: ``[cells, positions]``.
        attention_mask: ``[cells, positions]``, 1 where there is a token.

    Returns:
        ``attention_mask`` ``[cells, 1, positions, positions]``, or ``attention_mask.KIND`` for each kind.
    """
    from transformers.masking_utils import create_bidirectional_mask, create_bidirectional_sliding_window_mask

    config: Any = model.config
    like = next(model.parameters()).new_empty(*input_ids.shape, 1)

    def built(make: Any) -> Tensor:
        mask = make(config=config, inputs_embeds=like, attention_mask=attention_mask, allow_is_bidirectional_skip=False)
        return mask.expand(len(input_ids), 1, *mask.shape[-2:])

    if "sliding_attention" not in (getattr(config, "layer_types", None) or ()):
        return {"attention_mask": built(create_bidirectional_mask)}
    return {
        "attention_mask.full_attention": built(create_bidirectional_mask),
        "attention_mask.sliding_attention": built(create_bidirectional_sliding_window_mask),
    }


def embedding_shape(model: nn.Module) -> tuple[int, int]:
    """Tokens of a model's embedding table, and its width."""
    table: Any = model
    tokens, width = table.get_input_embeddings().weight.shape
    return int(tokens), int(width)


def encoder_flops_per_token(model: nn.Module, length: int) -> float:
    """Count the FLOPs of an encoder's forward pass for a position, a multiply-add as two.

    Two for each weight of a Linear and each position it is called with, shared layers as often as they are, and ``4
    length width`` a layer for attention.

    Args:
        model: A Hugging Face masked LM.
        length: Positions of a sentence.

    Returns:
        FLOPs, without the head.
    """
    encoder: Any = model.base_model
    products = 0

    def count(module: nn.Module, arguments: Any) -> None:
        nonlocal products
        products += arguments[0].numel() * cast(nn.Linear, module).out_features

    linear = [module for module in encoder.modules() if isinstance(module, nn.Linear)]
    handles = [module.register_forward_pre_hook(count) for module in linear]
    try:
        with torch.no_grad():
            ids = torch.ones(1, length, dtype=torch.int64, device=next(model.parameters()).device)
            try:
                encoder(input_ids=ids)
            except RuntimeError:  # without a mask some look at the ids, of which there are none without weights
                products = 0
                encoder(input_ids=ids, attention_mask=ids)
    finally:
        for handle in handles:
            handle.remove()
    config: Any = model.config
    return 2.0 * products / length + 4.0 * length * config.hidden_size * config.num_hidden_layers
