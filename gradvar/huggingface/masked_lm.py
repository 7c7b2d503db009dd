"""The masked-LM objective: sentences at the outer level, masks with their corruption inside, dropout inside those."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import nullcontext
from math import prod
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradvar.dropout import keyed_dropout
from gradvar.errors import GradvarError
from gradvar.huggingface.checkpoint import load_checkpoint
from gradvar.huggingface.corpus import Corpus, load_corpus
from gradvar.huggingface.forward import heads_by_position, logits_at, prepared_masks
from gradvar.masking.cells import Cells
from gradvar.masking.corruption import Replacement, corrupt
from gradvar.masking.hashing import hash_key
from gradvar.masking.uniform import target_count, uniform_subset
from gradvar.objective import Batch

Weighting = Literal["sentence", "token"]
_POSITION, _ACTION, _TOKEN = 0, 1, 2  # streams of hashes, one a purpose


class MaskedLM:
    """Masked language modelling under uniform masks of fixed size.

    A cell is sentence ``x`` (``T`` maskable positions) with a set ``S`` of
    ``k = max(1, floor(mask_rate T + 1/2))`` targets, uniform over k-subsets, and its corruption. Its loss
    is ``w(x)/k sum_{i in S} -log p(x_i | corrupted x)`` with ``w = 1`` (``sentence``) or
    ``w = k(x) / mean k`` over the corpus (``token``). Special tokens are never targets and never random
    replacements. Dropout is off, or (``dropout``) a third level: each mask is then seen through several draws of
    the model's dropout, at the rates that the model has.

    Args:
        model: Hugging Face masked LM; it is put in evaluation mode.
        tokenizer: Its tokenizer, with a mask token.
        corpus: The population of sentences.
        mask_rate: Share of the maskable positions that become targets, in (0, 1).
        replacement: Probabilities of the corruptions.
        weighting: ``sentence`` gives every cell weight one; ``token`` weighs it by its targets.
        dropout: Make the model's dropout the innermost of three levels.

    Raises:
        GradvarError: If a value is out of range, a sentence has no maskable position, or ``dropout`` is asked for
            and the model has none, or one that all cells of a batch share.
    """

    checkpoint: str | None = None
    checkpoint_sha256: str | None = None

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        corpus: Corpus,
        *,
        mask_rate: float = 0.15,
        replacement: Replacement = Replacement(),
        weighting: Weighting = "sentence",
        dropout: bool = False,
    ) -> None:
        if not 0 < mask_rate < 1:
            raise GradvarError(f"--mask-rate {mask_rate} is not between 0 and 1")
        if weighting not in ("sentence", "token"):
            raise GradvarError(f"--weighting '{weighting}' is unknown; use sentence or token")
        if tokenizer.mask_token_id is None:
            raise GradvarError("the tokenizer has no mask token; a masked LM needs one")
        self.model = model.eval()
        self.levels: tuple[str, ...] = ("data", "mask", "dropout") if dropout else ("data", "mask")
        self.corpus = corpus
        self.mask_rate = mask_rate
        self.replacement = replacement
        self.weighting: Weighting = weighting
        self.mask_id = int(tokenizer.mask_token_id)
        self.pad_id = int(tokenizer.pad_token_id or 0)
        special = np.zeros(len(tokenizer), dtype=bool)
        special[tokenizer.all_special_ids] = True
        self._special = special
        maskable = np.array([int((~special[s]).sum()) for s in corpus.sequences])
        if (maskable == 0).any():
            raise GradvarError(
                f"sentence {int(np.argmax(maskable == 0))} of {corpus.source} holds only special tokens; "
                "nothing in it can be masked"
            )
        sample = torch.from_numpy(corpus.sequences[0].astype(np.int64)).unsqueeze(0)
        sample = sample.to(next(model.parameters()).device)
        self._gather_first = heads_by_position(model, sample)
        if dropout:
            _check_dropout(model, sample)
        self._counts = target_count(torch.from_numpy(maskable), mask_rate)
        mean = self._counts.double().mean()
        self._weights = self._counts / mean if weighting == "token" else torch.ones(len(corpus), dtype=torch.float64)

    @classmethod
    def from_checkpoint(
        cls,
        checkpoint: str | Path,
        data: str | Path,
        *,
        max_length: int = 128,
        pack: bool = True,
        dtype: str = "float32",
        device: str = "cpu",
        allow_random_head: bool = False,
        **options: Any,
    ) -> MaskedLM:
        """Load a checkpoint and a text.

        Args:
            checkpoint: A folder as ``save_pretrained`` writes it, or a hub name.
            data: A ``.txt``, ``.jsonl`` or ``.parquet`` file, plain or as ``.xz`` or ``.gz``, or a hub data set.
            max_length: Tokens of a sentence, special tokens included.
            pack: Join the paragraphs of a document and cut them to that length; otherwise a line a sentence.
            dtype: ``float32`` or ``float64``, whatever the checkpoint holds.
            device: ``cpu``, ``cuda`` or ``cuda:N``.
            allow_random_head: Accept a checkpoint without a masked-LM head.
            **options: ``mask_rate``, ``replacement``, ``weighting`` and ``dropout``.

        Returns:
            The objective.

        Raises:
            GradvarError: If the checkpoint or the data cannot be used.
        """
        loaded = load_checkpoint(checkpoint, dtype=dtype, device=device, allow_random_head=allow_random_head)
        if max_length > loaded.max_length:
            raise GradvarError(f"--max-length {max_length} is beyond the {loaded.max_length} positions of {checkpoint}")
        objective = cls(
            loaded.model, loaded.tokenizer, load_corpus(data, loaded.tokenizer, max_length, pack), **options
        )
        objective.checkpoint, objective.checkpoint_sha256 = str(checkpoint), loaded.sha256
        return objective

    def __len__(self) -> int:
        """Count the sentences of the corpus."""
        return len(self.corpus)

    def draw(self, data: Sequence[int], draws: tuple[int, ...], seed: int) -> Batch:
        """Draw the masks and corruptions of some sentences, and the keys of their dropout.

        Every choice is a hash of (seed, sentence, mask index, position), so it depends on nothing else:
        not on the chunk, the order, the padding or the device. A dropout's mask hashes (seed, sentence, mask index,
        dropout index, its number in the model's forward, element); see :func:`gradvar.keyed_dropout`.

        Args:
            data: ``[sentences]`` indices into the corpus.
            draws: ``(masks,)`` of each sentence, or ``(masks, dropouts)``, dropouts of each mask.
            seed: Seed of every choice.

        Returns:
            With ``cells = sentences * masks`` (``* dropouts``) rows, a sentence's masks and a mask's dropouts
            together: ``input_ids`` ``[cells, positions]`` corrupted, ``attention_mask`` of that shape where
            something is padded, ``target_positions``, ``target_ids`` and ``target_weights`` ``[cells, targets]``,
            whose surplus slots (fewer targets than the longest sentence) have weight zero; ``dropout`` ``[cells]``
            keys, where it is a level.
        """
        cells = Cells(data, draws, seed)
        device = next(self.model.parameters()).device
        rows = [torch.from_numpy(self.corpus.sequences[i].astype(np.int64)) for i in data]
        ids = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-1)
        padding = ids < 0
        ids = ids.masked_fill(padding, self.pad_id)
        maskable = ~torch.from_numpy(self._special)[ids] & ~padding

        def spread(x: Tensor) -> Tensor:
            return x.to(device).repeat_interleave(prod(draws), dim=0)

        ids, maskable, padding = spread(ids), spread(maskable), spread(padding)
        counts, weights = self._counts[cells.datum].to(device), self._weights[cells.datum].to(device)
        mask = cells.keys[:, 1:2].to(device)
        position = torch.arange(ids.shape[1], device=device)

        def stream(purpose: int, at: Tensor) -> Tensor:
            return hash_key(purpose, mask, at)

        targets, valid = uniform_subset(stream(_POSITION, position), maskable, counts)
        target_ids = ids.gather(1, targets)
        ordinary = torch.from_numpy(np.flatnonzero(~self._special)).to(device)
        corrupted = corrupt(
            target_ids, stream(_ACTION, targets), stream(_TOKEN, targets), self.replacement, self.mask_id, ordinary
        )
        # Surplus slots point at position 0; writing its own token there would race with nothing only
        # if position 0 were no target, so they are sent to a column that is cut off again.
        slots = torch.where(valid, targets, ids.shape[1])
        input_ids = F.pad(ids, (0, 1)).scatter(1, slots, corrupted)[:, :-1]
        batch = {
            "input_ids": input_ids,
            "target_positions": targets,
            "target_ids": target_ids,
            "target_weights": valid * (weights / counts).unsqueeze(1),
        }
        if bool(padding.any()):
            batch["attention_mask"] = (~padding).long()
        if "dropout" in self.levels:
            batch["dropout"] = cells.keys[:, 2].to(device)
        return batch

    def losses(self, batch: Batch) -> Tensor:
        """Run the model on corrupted cells, with logits at the targets only.

        Args:
            batch: As :meth:`draw` returns it.

        Returns:
            ``[cells]`` weighted mean cross-entropies, in nats.
        """
        inputs: dict[str, Any] = {name: batch[name] for name in ("input_ids", "attention_mask") if name in batch}
        kinds = [name for name in batch if name.startswith("attention_mask.")]
        if kinds:
            inputs["attention_mask"] = {name.removeprefix("attention_mask."): batch[name] for name in kinds}
        with keyed_dropout(self.model, batch["dropout"]) if "dropout" in batch else nullcontext():
            logits = logits_at(self.model, batch["target_positions"], self._gather_first, **inputs)
        targets = batch["target_ids"]
        nll = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)
        return (nll * batch["target_weights"].to(nll.dtype)).sum(dim=1)

    def for_vmap(self, batch: Batch) -> Batch:
        """Turn a batch into one with the same losses that runs under `torch.func.vmap`.

        Args:
            batch: As :meth:`draw` returns it.

        Returns:
            The same, with the attention masks that the model would build in place of the padding.
        """
        if "attention_mask" not in batch:
            return batch
        rest = {name: tensor for name, tensor in batch.items() if name != "attention_mask"}
        return rest | prepared_masks(self.model, batch["input_ids"], batch["attention_mask"])

    @property
    def seconds_per_datum(self) -> float:
        """Measured time to read and tokenise a sentence."""
        return self.corpus.seconds_per_sentence

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

    def describe(self) -> dict[str, dict[str, Any]]:
        """Return what a report says of this objective: its part of ``study`` and of ``provenance``."""
        r = self.replacement
        return {
            "study": {
                "mask_rate": self.mask_rate,
                "max_length": self.corpus.max_length,
                "replacement": [r.mask, r.random, r.keep],
                "weighting": self.weighting,
                "population": len(self.corpus),
            },
            "provenance": {
                "checkpoint": self.checkpoint,
                "checkpoint_sha256": self.checkpoint_sha256,
                "data": self.corpus.source,
                "data_sha256": self.corpus.sha256,
            },
        }

    def cell_table(self, data: Sequence[int], draws: tuple[int, ...], seed: int) -> dict[str, list[Any]]:
        """Return what each cell was, for `cells.parquet`: columns by name, a value a cell."""
        names = ("sentence", *self.levels[1:], "input_ids", "corrupted_ids", "target_positions", "target_ids", "weight")
        table: dict[str, list[Any]] = {name: [] for name in names}
        for sentence in data:
            original = self.corpus.sequences[sentence].tolist()
            batch = {name: tensor.cpu() for name, tensor in self.draw([sentence], draws, seed).items()}
            for cell, indices in enumerate(np.ndindex(*draws)):
                table["sentence"].append(int(sentence))
                for level, index in zip(self.levels[1:], indices, strict=True):
                    table[level].append(index)
                table["input_ids"].append(original)
                table["corrupted_ids"].append(batch["input_ids"][cell].tolist())
                table["target_positions"].append(batch["target_positions"][cell].tolist())
                table["target_ids"].append(batch["target_ids"][cell].tolist())
                table["weight"].append(float(self._weights[sentence]))
        return table


def _check_dropout(model: nn.Module, sample: Tensor) -> None:
    """Refuse a model whose dropout is no level of randomness: there is none, or cells share it."""
    pair = sample.expand(2, -1)
    with torch.no_grad(), keyed_dropout(model, torch.arange(2)) as dropout:
        model(input_ids=pair)
    if not dropout.calls:
        raise GradvarError(
            f"{type(model).__name__} has no dropout: every rate in its configuration is 0; leave --dropout out, or "
            "set its rates"
        )
