"""Models without numbers: made in no time whatever their size, and asked what a training of them would hold."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from gradvar.huggingface.checkpoint import locate, tokenizer_of
from gradvar.huggingface.forward import embedding_shape, encoder_flops_per_token, logits_at
from gradvar.mapnet.config import default_config
from gradvar.mapnet.network import MapNet
from gradvar.training.cross_entropy import cross_entropy
from gradvar.training.model import build_encoder
from gradvar.training.recipe import Recipe


class VocabularyOf:
    """What a model is told of a vocabulary that is not trained yet."""

    pad_token_id, cls_token_id, sep_token_id, bos_token_id, eos_token_id = 0, 2, 3, None, None
    model_max_length = 2**31

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        """Count its tokens."""
        return self._count


def on_meta(recipe: Recipe) -> nn.Module:
    """Make the encoder of a recipe without weights.

    Args:
        recipe: The recipe; of its text nothing is read.

    Returns:
        The encoder, on the meta device.

    Raises:
        GradvarError: If it cannot be.
    """  # noqa: DOC502
    source = recipe.data.tokenizer.source or recipe.model.source
    tokenizer: Any = VocabularyOf(recipe.data.tokenizer.vocabulary)
    if source is not None:
        tokenizer = tokenizer_of(
            locate(source, "data.tokenizer.source" if recipe.data.tokenizer.source else "model.source")
        )
    with nullcontext() if recipe.model.source else torch.device("meta"):
        model = build_encoder(recipe.model, tokenizer, recipe.data.max_length, recipe.seed)
    made: Any = model.to("meta")
    made.tie_weights()
    return made


def mapnet_of(recipe: Recipe, model: nn.Module, length: int) -> MapNet | None:
    """Make the MAPNet of a recipe without weights, beside an encoder that sees so many tokens; None without one."""
    if not recipe.masking.proposal.startswith("mapnet"):
        return None
    flops = encoder_flops_per_token(model, length)
    with torch.device("meta"):
        return MapNet(default_config(*embedding_shape(model), flops, length, **recipe.mapnet.shape))


@contextmanager
def fake(model: nn.Module) -> Iterator[nn.Module]:
    """Give a model of fake tensors, which know their sizes but hold nothing.

    Yields:
        The model.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    made: Any = copy.deepcopy(model)
    with FakeTensorMode(allow_non_fake_inputs=True):
        made.to_empty(device="cpu")
        made.tie_weights()
        yield made.train()


def saved_bytes(model: nn.Module, cells: int, length: int, targets: int, bf16: bool) -> float:
    """Count what autograd keeps for the backward pass of one micro-batch, the model's own weights apart.

    Args:
        model: A Hugging Face masked LM in training mode; in :class:`torch._subclasses.FakeTensorMode` nothing is
            computed.
        cells: At once.
        length: Tokens of each.
        targets: Of each.
        bf16: Mixed precision.

    Returns:
        Bytes, every storage once.
    """
    own = {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers())}
    sizes: dict[int, int] = {}
    held: list[Tensor] = []  # so that no storage takes the place of another

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            sizes[storage._cdata] = storage.nbytes()
            held.append(tensor)
        return tensor

    device = next(model.parameters()).device
    ids = torch.ones(cells, length, dtype=torch.int64, device=device)
    positions = torch.zeros(cells, targets, dtype=torch.int64, device=device)
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast(device.type, torch.bfloat16, enabled=bf16),
    ):
        logits = logits_at(model, positions, True, input_ids=ids, attention_mask=torch.ones_like(ids))
        nll, _ = cross_entropy(logits, positions)
        nll.mean()
    return float(sum(sizes.values()))
