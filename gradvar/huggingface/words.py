"""Which tokens go on with the word of the token before: what whole-word masking needs to know of a vocabulary."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

_CONTINUES = ("##",)  # WordPiece marks what goes on
_BEGINS = ("\u0120", "\u2581")  # byte-level BPE and SentencePiece mark what begins


def continuing(vocabulary: Mapping[str, int]) -> np.ndarray:
    """Tell which tokens go on with a word.

    Args:
        vocabulary: Ids of the tokens.

    Returns:
        ``[tokens]`` bool by id; all False where the vocabulary marks neither beginnings nor what goes on.
    """
    found = np.zeros(max(vocabulary.values()) + 1, dtype=bool)
    goes_on = [i for token, i in vocabulary.items() if token.startswith(_CONTINUES)]
    begins = [i for token, i in vocabulary.items() if token.startswith(_BEGINS)]
    if len(goes_on) > len(begins):  # byte-level vocabularies hold a few tokens of number signs
        found[goes_on] = True
    elif begins:
        found[list(vocabulary.values())] = True
        found[begins] = False
    return found


def word_numbers(goes_on: Tensor, maskable: Tensor) -> Tensor:
    """Number the words of sentences.

    Args:
        goes_on: ``[rows, positions]`` bool: the token goes on with the word of the one before.
        maskable: ``[rows, positions]`` bool; what is not maskable is a word of its own.

    Returns:
        ``[rows, positions]`` int64, ascending from 0.
    """
    before = torch.nn.functional.pad(maskable, (1, 0))[:, :-1]
    begins = ~(goes_on & maskable & before)
    return begins.long().cumsum(dim=1) - 1
