"""Texts of a user's own in place of a corpus, and tokens as people read them."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gradvar.errors import GradvarError
from gradvar.huggingface.checkpoint import locate, tokenizer_of
from gradvar.huggingface.corpus import Corpus, special_frame
from gradvar.huggingface.masked_lm import MaskedLM
from gradvar.huggingface.reading import SURROGATE


def from_texts(
    checkpoint: str | Path,
    texts: Sequence[str],
    *,
    max_length: int | None = None,
    dtype: str = "float32",
    device: str = "cpu",
    allow_random_head: bool = False,
    **options: Any,
) -> tuple[MaskedLM, tuple[str, ...]]:
    """Load a checkpoint with texts as its whole population, a sentence each.

    Args:
        checkpoint: A folder as ``save_pretrained`` writes it, or a hub name.
        texts: The texts.
        max_length: Tokens of a sentence, special tokens included; the rest is cut off. None: see
            :meth:`MaskedLM.from_checkpoint`.
        dtype: ``float32`` or ``float64``.
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        allow_random_head: Accept a checkpoint without a masked-LM head.
        **options: As :meth:`MaskedLM.from_checkpoint` takes them.

    Returns:
        The objective, and what a reader should know: which texts were cut.

    Raises:
        GradvarError: If the checkpoint cannot be used, or there is nothing to mask in a text.

    Examples:
        >>> import gradvar
        >>> texts = ["She went into the garden.", "It rained."]
        >>> objective, notices = gradvar.from_texts(gradvar.DEMO_CHECKPOINT, texts)
        >>> [len(sequence) for sequence in objective.corpus.sequences]
        [8, 6]
    """  # noqa: DOC502
    found: list[tuple[str, ...]] = []

    def read(tokenizer: Any, length: int) -> Corpus:
        corpus, notices = text_corpus(texts, tokenizer, length)
        found.append(notices)
        return corpus

    _check_texts(texts)
    objective = MaskedLM.load(
        checkpoint,
        read,
        max_length=max_length,
        dtype=dtype,
        device=device,
        allow_random_head=allow_random_head,
        **options,
    )
    return objective, found[0]


def with_texts(objective: MaskedLM, texts: Sequence[str], tokenizer: Any = None) -> tuple[MaskedLM, tuple[str, ...]]:
    """Put texts in the place of an objective's population; its model, masks and fitted network stay.

    Args:
        objective: The masked LM.
        texts: The texts, a sentence each; cut at the length limit of the objective's corpus.
        tokenizer: The objective's tokenizer; None loads it from the checkpoint again.

    Returns:
        The objective of the texts, and what a reader should know.

    Raises:
        GradvarError: If there is nothing to mask in a text, or no tokenizer.
    """
    _check_texts(texts)
    if tokenizer is None:
        if objective.checkpoint is None:
            raise GradvarError("this objective came without a checkpoint's folder; pass tokenizer=")
        tokenizer = tokenizer_of(locate(objective.checkpoint))
    corpus, notices = text_corpus(texts, tokenizer, objective.corpus.max_length)
    kept: Any = {"weighting": objective.weighting, "replacement": objective.replacement}
    other = MaskedLM(
        objective.model,
        tokenizer,
        corpus,
        mask_rate=objective.mask_rate,
        contexts=objective.scoring.contexts,
        engine=objective.scoring.engine,
        **kept,
    )
    other.known_scores = dict(objective.known_scores)
    other.checkpoint, other.checkpoint_sha256 = objective.checkpoint, objective.checkpoint_sha256
    return other, notices


def text_corpus(texts: Sequence[str], tokenizer: Any, max_length: int) -> tuple[Corpus, tuple[str, ...]]:
    """Tokenise texts, a sentence each.

    Args:
        texts: The texts.
        tokenizer: A Hugging Face tokenizer with its special tokens.
        max_length: Tokens of a sentence, special tokens included.

    Returns:
        The corpus, and a notice for each text that was cut.

    Raises:
        GradvarError: If there is nothing to mask in a text, or no room for it.
    """
    _check_texts(texts)
    special = set(tokenizer.all_special_ids)
    prefix, suffix = special_frame(tokenizer)
    room = max_length - len(prefix) - len(suffix)
    if room < 1:
        raise GradvarError(
            f"--max-length {max_length} leaves no room beside {max_length - room} special tokens; raise it"
        )
    start = time.perf_counter()
    sequences, notices = [], []
    for text in texts:
        body = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        if special.issuperset(body):
            why = "holds only tokens that the checkpoint does not know" if body else "has no token"
            raise GradvarError(f"the text {_quoted(text)} {why}; nothing in it can be masked")
        if len(body) > room:
            notices.append(
                f"the text {_quoted(text)} has {len(body)} tokens; the first {room} were taken, see --max-length"
            )
            if special.issuperset(body[:room]):
                raise GradvarError(
                    f"the first {room} tokens of the text {_quoted(text)} are unknown to the checkpoint; nothing in "
                    "them can be masked"
                )
        sequences.append(np.array([*prefix, *body[:room], *suffix], dtype=np.int32))
    seconds = (time.perf_counter() - start) / len(texts)
    digest = hashlib.sha256("\0".join(texts).encode()).hexdigest()
    source = f"{len(texts)} text{'s' * (len(texts) > 1)} given"
    return Corpus(tuple(sequences), source, digest, max_length, seconds), tuple(notices)


def readable(vocabulary: Collection[str]) -> Callable[[str], str]:
    """Learn from a vocabulary's marks how to write a token as it stands in a text.

    Args:
        vocabulary: All tokens.

    Returns:
        A function from a token to its text, with a space in front where a word begins.
    """
    if any(token.startswith("\u2581") for token in vocabulary):  # SentencePiece
        return lambda token: token.replace("\u2581", " ")
    if any(token.startswith("\u0120") for token in vocabulary):  # byte-level BPE
        from transformers.convert_slow_tokenizer import bytes_to_unicode

        number = {letter: byte for byte, letter in bytes_to_unicode().items()}

        def decoded(token: str) -> str:
            if not number.keys() >= set(token):
                return token
            return bytes(number[letter] for letter in token).decode(errors="replace")

        return decoded
    return lambda token: token[2:] if token.startswith("##") and len(token) > 2 else f" {token}"  # WordPiece, words


def _check_texts(texts: Sequence[str]) -> None:
    for text in texts:
        if not text.strip():
            raise GradvarError("--text is empty; give a text, or leave it out for the embedded one")
        if SURROGATE.search(text):
            raise GradvarError("--text holds half a surrogate pair or bytes that are no UTF-8; remove them")
    if not texts:
        raise GradvarError("there is no text; give one at least")


def _quoted(text: str, most: int = 30) -> str:
    short = " ".join(text.split())
    return f"'{short}'" if len(short) <= most else f"'{short[: most - 1]}…'"
