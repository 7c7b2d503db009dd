"""What a masked LM needs to know of its tokenizer: which tokens can be masked, and what stands where they were."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradvar.errors import GradvarError
from gradvar.huggingface.words import continuing, word_numbers
from gradvar.masking.corruption import Replacement, corrupt
from gradvar.masking.hashing import hash_key
from gradvar.masking.masks import Masks, Sentences
from gradvar.masking.uniform import target_count

_ACTION, _TOKEN = 1, 2  # streams of hashes, one a purpose


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """The tokens of a checkpoint.

    Attributes:
        ids: Ids by token.
        special: ``[tokens]`` bool: never a target, never a random replacement.
        continuing: ``[tokens]`` bool: goes on with the word of the token before.
        mask_id: Id of the mask token.
        pad_id: Id of what stands where a sentence is padded.
    """

    ids: Mapping[str, int]
    special: np.ndarray
    continuing: np.ndarray
    mask_id: int
    pad_id: int

    @classmethod
    def of(cls, tokenizer: Any) -> Vocabulary:
        """Take what is needed from a Hugging Face tokenizer.

        Args:
            tokenizer: The tokenizer.

        Returns:
            Its vocabulary.

        Raises:
            GradvarError: If it has no mask token.
        """
        if tokenizer.mask_token_id is None:
            raise GradvarError("the tokenizer has no mask token; a masked LM needs one")
        special = np.zeros(len(tokenizer), dtype=bool)
        special[tokenizer.all_special_ids] = True
        ids = tokenizer.get_vocab()
        return cls(ids, special, continuing(ids), int(tokenizer.mask_token_id), int(tokenizer.pad_token_id or 0))

    def maskable_in(self, sequence: np.ndarray) -> int:
        """Count the positions of a sentence that can be masked."""
        return int((~self.special[sequence]).sum())

    def counts_in(self, sequences: Sequence[np.ndarray]) -> Tensor:
        """Count the ordinary tokens of sentences: ``[tokens]`` float64."""
        counts = np.bincount(np.concatenate(sequences), minlength=len(self.special))
        return torch.from_numpy(np.where(self.special, 0, counts).astype(np.float64))

    def sentences(self, sequences: Sequence[np.ndarray], counts: Tensor, keys: Tensor) -> Sentences:
        """Pad sentences to one length, and mark what can be masked.

        Args:
            sequences: ``[length]`` ids of each.
            counts: ``[rows]`` targets of a mask.
            keys: ``[rows]`` hashes.

        Returns:
            The sentences, on the CPU.
        """
        rows = [torch.from_numpy(sequence.astype(np.int64)) for sequence in sequences]
        return self.marked(nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-1), counts, keys)

    def marked(self, ids: Tensor, counts: Tensor | float, keys: Tensor) -> Sentences:
        """Mark what can be masked in padded sentences, on their device.

        Args:
            ids: ``[rows, positions]`` tokens; negative where padded.
            counts: ``[rows]`` targets of a mask, or the mask rate that gives them.
            keys: ``[rows]`` hashes.

        Returns:
            The sentences.
        """
        known = ids.clamp(min=0)
        maskable = ~torch.from_numpy(self.special).to(ids.device)[known] & (ids >= 0)
        goes_on = torch.from_numpy(self.continuing).to(ids.device)[known]
        if isinstance(counts, float):
            counts = target_count(maskable.sum(dim=1), counts)
        return Sentences(ids, maskable, counts, word_numbers(goes_on, maskable), keys)

    def corrupted(self, sentences: Sentences, masks: Masks, replacement: Replacement) -> dict[str, Tensor]:
        """Put masks on sentences.

        Args:
            sentences: ``[rows]`` of them.
            masks: ``[cells]`` of them, a multiple of ``rows``; those of a row together.
            replacement: Probabilities of the corruptions.

        Returns:
            ``input_ids``, ``target_positions``, ``target_ids`` and, where something is padded, ``attention_mask``.
        """
        times = len(masks.keys) // len(sentences.ids)
        ids = sentences.ids.where(sentences.attended, self.pad_id).repeat_interleave(times, dim=0)
        key, targets = masks.keys.unsqueeze(1), masks.positions
        target_ids = ids.gather(1, targets)
        ordinary = torch.from_numpy(np.flatnonzero(~self.special)).to(ids.device)
        action, token = hash_key(_ACTION, key, targets), hash_key(_TOKEN, key, targets)
        stands = corrupt(target_ids, action, token, replacement, self.mask_id, ordinary)
        # Surplus slots point at position 0; writing its own token there would race with nothing only
        # if position 0 were no target, so they are sent to a column that is cut off again.
        slots = torch.where(masks.valid, targets, ids.shape[1])
        input_ids = F.pad(ids, (0, 1)).scatter(1, slots, stands)[:, :-1]
        batch = {"input_ids": input_ids, "target_positions": targets, "target_ids": target_ids}
        if not bool(sentences.attended.all()):
            batch["attention_mask"] = sentences.attended.long().repeat_interleave(times, dim=0)
        return batch
