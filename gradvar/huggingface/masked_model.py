"""A masked LM with its vocabulary: puts masks on sentences and runs the cells. Which sentences is not its business."""

from __future__ import annotations

import re
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradvar.dropout import keyed_dropout
from gradvar.huggingface.forward import heads_by_position, logits_at, prepared_masks
from gradvar.huggingface.vocabulary import Vocabulary
from gradvar.masking.corruption import Replacement
from gradvar.masking.masks import Masks, Sentences
from gradvar.objective import Batch


class MaskedModel:
    """A masked LM on cells: sentences with masks.

    Args:
        model: Hugging Face masked LM, whose dropout is off while its head is tried.
        tokenizer: Its tokenizer, with a mask token.
        sample: ``[1, positions]`` ids to try its head on.
        replacement: Probabilities of the corruptions.

    Raises:
        GradvarError: If the model has no logits for each position, or the tokenizer no mask token.
    """

    token_counts: Tensor
    """``[vocabulary]`` float64: how often the text has each ordinary token."""

    def __init__(
        self, model: nn.Module, tokenizer: Any, sample: Tensor, replacement: Replacement = Replacement()
    ) -> None:
        self.model = model
        self.replacement = replacement
        self.vocabulary = Vocabulary.of(tokenizer)
        self.gather_first = heads_by_position(model, sample.to(self.device))

    def corrupted(self, sentences: Sentences, masks: Masks) -> dict[str, Tensor]:
        """Put masks on sentences; see :meth:`~gradvar.huggingface.vocabulary.Vocabulary.corrupted`."""
        return self.vocabulary.corrupted(sentences, masks, self.replacement)

    def losses(self, batch: Batch) -> Tensor:
        """Run the model on corrupted cells, with logits at the targets only.

        Args:
            batch: As :meth:`corrupted` makes it, with ``target_weights`` ``[cells, targets]``.

        Returns:
            ``[cells]`` weighted mean cross-entropies, in nats.
        """
        with keyed_dropout(self.model, batch["dropout"]) if "dropout" in batch else nullcontext():
            logits = self.logits(batch)
        nll = self.target_losses(logits, batch)
        return (nll * batch["target_weights"].to(nll.dtype)).sum(dim=1)

    def target_losses(self, logits: Tensor, batch: Batch) -> Tensor:
        """Compute the ``[cells, targets]`` cross-entropies of targets, in nats; anything in surplus slots."""
        targets = batch["target_ids"]
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)

    def logits(self, batch: Batch) -> Tensor:
        """Run the model on corrupted cells: ``[cells, targets, vocabulary]``."""
        inputs: dict[str, Any] = {name: batch[name] for name in ("input_ids", "attention_mask") if name in batch}
        kinds = [name for name in batch if name.startswith("attention_mask.")]
        if kinds:
            inputs["attention_mask"] = {name.removeprefix("attention_mask."): batch[name] for name in kinds}
        return logits_at(self.model, batch["target_positions"], self.gather_first, **inputs)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    def for_vmap(self, batch: Batch) -> Batch:
        """Turn a batch into one with the same losses that runs under `torch.func.vmap`.

        Args:
            batch: As :meth:`losses` takes it.

        Returns:
            The same, with the attention masks that the model would build in place of the padding.
        """
        if "attention_mask" not in batch:
            return batch
        rest = {name: tensor for name, tensor in batch.items() if name != "attention_mask"}
        return rest | prepared_masks(self.model, batch["input_ids"], batch["attention_mask"])

    def layer_group(self, layer: str) -> str:
        """Name the group of a module: embedding, attention, mlp, norm, head or other."""
        module = self.model.get_submodule(layer)
        if isinstance(module, nn.Embedding):
            return "embedding"
        if not layer.startswith(f"{self.model.base_model_prefix}."):
            return "head"
        if "norm" in type(module).__name__.lower():
            return "norm"
        if re.search(r"attn|attention", layer):
            return "attention"
        if re.search(r"mlp|ffn|intermediate|output", layer):
            return "mlp"
        return "embedding" if "embed" in layer else "other"
