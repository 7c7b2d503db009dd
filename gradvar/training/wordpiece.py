"""A WordPiece vocabulary of a text: the same one from the same text, with no more tokens than are asked for."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Iterable
from itertools import accumulate
from typing import Any

from gradvar.huggingface.reading import Rows
from gradvar.training.recipe import Data

LONGEST = 512
"""Tokens that a trained tokenizer says it takes, at least."""
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_ALPHABET, _FEWEST_LETTERS = 1000, 64  # characters that a trained vocabulary spells with, a sixteenth of it between


def train_tokenizer(rows: Rows, data: Data) -> Any:
    """Train a WordPiece vocabulary on documents.

    It has no more tokens than are asked for. After the special ones come the most frequent letters, as many as a
    sixteenth of the vocabulary but 64 at least and 1000 at most, each once more where it continues words; where these
    do not fit, the rarest of them are left out. Words with letters that are left out are unknown.

    Args:
        rows: The training text.
        data: Its size and whether it folds case.

    Returns:
        A Hugging Face tokenizer.
    """
    from tokenizers import BertWordPieceTokenizer
    from transformers import BertTokenizerFast  # type: ignore[attr-defined]

    assert rows.documents is not None
    spec = data.tokenizer
    pieces = BertWordPieceTokenizer(lowercase=spec.lowercase)
    text = [paragraph for document in rows.documents for paragraph in document]
    most = min(_ALPHABET, max(_FEWEST_LETTERS, spec.vocabulary // 16))
    alphabet, inner = _alphabet(text, pieces, most, spec.vocabulary - len(_SPECIAL))
    # Named as first tokens, or else the trainer numbers what continues a word by the order of a randomised hash table.
    pieces.train_from_iterator(
        iter(text),
        vocab_size=spec.vocabulary,
        min_frequency=2,
        show_progress=False,
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        special_tokens=[*_SPECIAL, *alphabet, *(f"##{letter}" for letter in inner)],
    )
    pieces = BertWordPieceTokenizer(vocab=pieces.get_vocab(), lowercase=spec.lowercase)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "tokenizer.json")
        pieces.save(path)
        longest = max(LONGEST, data.max_length)
        return BertTokenizerFast(tokenizer_file=path, do_lower_case=spec.lowercase, model_max_length=longest)


def _alphabet(text: Iterable[str], pieces: Any, most: int, room: int) -> tuple[list[str], list[str]]:
    """Find the most frequent characters, in order, and those of them that continue a word: `room` in all at most."""
    normalizer, splitter = pieces._tokenizer.normalizer, pieces._tokenizer.pre_tokenizer
    spaced = Counter(word for paragraph in text for word in paragraph.split())
    letters: Counter[str] = Counter()
    continuing: set[str] = set()
    for some, count in spaced.items():
        for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(some)):
            continuing.update(word[1:])
            for letter in word:
                letters[letter] += count
    ranked = sorted(letters, key=lambda letter: (-letters[letter], letter))[:most]
    taken = accumulate(1 + (letter in continuing) for letter in ranked)
    kept = sorted(letter for letter, tokens in zip(ranked, taken, strict=True) if tokens <= room)
    return kept, [letter for letter in kept if letter in continuing]
