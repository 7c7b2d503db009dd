"""Documents to token sequences. A *sentence* in gradvar is one such sequence: one row of a training batch."""

import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from gradvar.errors import GradvarError
from gradvar.huggingface.reading import Rows, read_rows, stream_rows

_AT_ONCE = 50_000  # characters given to the tokenizer at once, which takes some 170 bytes for each
_LONGEST = 50_000  # characters of a paragraph that are tokenised together


@dataclass(frozen=True, repr=False)
class Corpus:
    """The population that sentences are sampled from.

    Attributes:
        sequences: A ``[length]`` int32 array of token ids for each sentence, special tokens included.
        source: Where the data came from, as the user named it.
        sha256: Hash of the data.
        max_length: Most tokens a sentence may have.
        seconds_per_sentence: Measured time to read and tokenise one sentence.
    """

    sequences: tuple[np.ndarray, ...]
    source: str
    sha256: str
    max_length: int
    seconds_per_sentence: float

    def __len__(self) -> int:
        """Count the sentences."""
        return len(self.sequences)

    def __repr__(self) -> str:
        """Name the source and the counts."""
        return f"Corpus({len(self):,} sentences of at most {self.max_length} tokens from {self.source})"


def load_corpus(source: str | Path, tokenizer: Any, max_length: int = 128, pack: bool = True) -> Corpus:
    """Read data (see :func:`~gradvar.huggingface.reading.read_rows`) into sequences of at most ``max_length`` tokens.

    Args:
        source: Path of a file, or name of a hub data set.
        tokenizer: A Hugging Face tokenizer with its special tokens.
        max_length: Tokens of a sequence, special tokens included.
        pack: Join the paragraphs of a document and cut them into sequences of exactly ``max_length``
            tokens, dropping a tail shorter than half of that. Otherwise a paragraph is a sequence, cut
            off at ``max_length``. Of a line of more than 50,000 characters, parts are tokenised one by one.
            Sequences without an ordinary token are dropped. Either way ``input_ids`` in the data are taken
            as they are.

    Returns:
        The corpus, in file order.

    Raises:
        GradvarError: If the data cannot be read or yields no sentence.
    """
    start = time.perf_counter()
    rows = read_rows(source)
    if rows.documents is None:
        sequences = ready(rows, tokenizer, max_length)
    else:
        sequences = list(tokenised(rows.documents, tokenizer, max_length, pack))
    if not sequences:
        if not rows.documents:
            raise GradvarError(f"{rows.source} holds no text; give a file with text")
        why = f"no document reaches {_shortest(max_length)} tokens" if pack else "no line holds a token"
        remedy = "lower --max-length, or use --no-pack (a line a sentence)" if pack else "give a file with text"
        raise GradvarError(f"{rows.source} yields no sentence: {why}; {remedy}")
    seconds = (time.perf_counter() - start) / len(sequences)
    return Corpus(tuple(sequences), rows.source, rows.sha256, max_length, seconds)


def _shortest(max_length: int) -> int:
    """Length of the shortest tail that is kept: half of the full length."""
    return -(-max_length // 2)


@dataclass
class Tally:
    """What became of a text.

    Attributes:
        documents: Documents.
        tokens: Their tokens, special ones apart.
        kept: Those that are in a sentence.
        unknown: Those that stand for something that the vocabulary does not have.
    """

    documents: int = 0
    tokens: int = 0
    kept: int = 0
    unknown: int = 0


def tokenised(
    documents: Iterable[Iterable[str]],
    tokenizer: Any,
    max_length: int,
    pack: bool,
    tally: Tally | None = None,
    option: str = "--max-length",
) -> Iterator[np.ndarray]:
    """Turn documents into sequences; see :func:`load_corpus`.

    Args:
        documents: Paragraphs of each; they are taken as they are needed.
        tokenizer: A Hugging Face tokenizer with its special tokens.
        max_length: Tokens of a sequence.
        pack: Join the paragraphs of a document.
        tally: It is told what became of the text.
        option: What the user calls ``max_length``.

    Yields:
        ``[length]`` int32 ids of a sequence.

    Raises:
        GradvarError: If there is no room beside the special tokens.
    """
    prefix, suffix = special_frame(tokenizer)
    room = max_length - len(prefix) - len(suffix)
    if room < 1:
        raise GradvarError(f"{option} {max_length} leaves no room beside {max_length - room} special tokens; raise it")
    tally = tally or Tally()
    least = max(1, _shortest(max_length) - len(prefix) - len(suffix) if pack else 1)
    special, unknown = set(tokenizer.all_special_ids), tokenizer.unk_token_id

    def bodies() -> Iterator[list[int]]:
        rest: list[int] = []  # of the document under way
        for tokens, begins in _tokenised(_parts(documents), tokenizer):
            if tokens is None:
                tally.documents += 1
                yield rest
                rest = []
                continue
            tally.tokens += len(tokens)
            tally.unknown += tokens.count(unknown)
            if not pack:
                if begins:
                    yield tokens[:room]
                continue
            rest += tokens
            whole = len(rest) - len(rest) % room
            yield from (rest[start : start + room] for start in range(0, whole, room))
            rest = rest[whole:]

    for body in bodies():
        # A line of nothing but unknown tokens has nothing to mask; no pretraining batch would hold it either.
        if len(body) >= least and not special.issuperset(body):
            tally.kept += len(body)
            yield np.array([*prefix, *body, *suffix], dtype=np.int32)


def _part_of(longest: int) -> re.Pattern[str]:
    """Match so many characters at the most: up to white space, where there is some in the second half of them."""
    return re.compile(rf"(?s).{{{longest // 2},{longest}}}(?!\S)|.{{1,{longest}}}")


_PART = _part_of(_LONGEST)


def _parts(documents: Iterable[Iterable[str]]) -> Iterator[tuple[str | None, bool]]:
    """Cut paragraphs that are very long.

    Yields:
        A part, and whether its paragraph begins with it; and None behind a document.
    """
    for document in documents:
        for paragraph in document:
            yield from ((part.group(), part.start() == 0) for part in _PART.finditer(paragraph))
        yield None, False


def _tokenised(parts: Iterable[tuple[str | None, bool]], tokenizer: Any) -> Iterator[tuple[list[int] | None, bool]]:
    """Tokenise parts of a text, many at once.

    Yields:
        The tokens of each.
    """
    for some in _batches(parts):
        text = [part for part, _ in some if part is not None]
        encoded = iter(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] if text else ())
        yield from ((None if part is None else next(encoded), begins) for part, begins in some)


def _batches(parts: Iterable[tuple[str | None, bool]]) -> Iterator[list[tuple[str | None, bool]]]:
    """Put together as many as are tokenised at once.

    Yields:
        Some.
    """
    some: list[tuple[str | None, bool]] = []
    characters = 0
    for part in parts:
        some.append(part)
        characters += len(part[0] or "") + 1
        if characters >= _AT_ONCE:
            yield some
            some, characters = [], 0
    yield some


def special_frame(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Return the special tokens that this tokenizer puts before and after a text."""
    body = tokenizer("a", add_special_tokens=False)["input_ids"]
    framed = tokenizer("a")["input_ids"]
    for start in range(len(framed) - len(body) + 1):
        if framed[start : start + len(body)] == body:
            return framed[:start], framed[start + len(body) :]
    raise GradvarError("the tokenizer changes the text when it adds special tokens; gradvar cannot pack with it")


def ready(rows: Rows, tokenizer: Any, max_length: int, option: str = "--max-length") -> list[np.ndarray]:
    """Check sequences that came as ``input_ids``.

    Args:
        rows: The sequences.
        tokenizer: What they were made with.
        max_length: Most tokens of one.
        option: What the user calls it.

    Returns:
        ``[length]`` int32 ids of each.

    Raises:
        GradvarError: If one is too long, or holds what is no token.
    """  # noqa: DOC502
    assert rows.sequences is not None
    return list(checked(rows.sequences, rows.source, tokenizer, max_length, option))


def checked(
    sequences: Iterable[tuple[int, ...]], source: str, tokenizer: Any, max_length: int, option: str = "--max-length"
) -> Iterator[np.ndarray]:
    """Check sequences one by one; see :func:`ready`.

    Args:
        sequences: Their ids.
        source: Where they come from, for messages.
        tokenizer: What they were made with.
        max_length: Most tokens of one.
        option: What the user calls it.

    Yields:
        ``[length]`` int32 ids.

    Raises:
        GradvarError: If one is too long, or holds what is no token.
    """
    special = set(tokenizer.all_special_ids)
    for number, sequence in enumerate(sequences, 1):
        if len(sequence) > max_length:
            raise GradvarError(
                f"{source}, row {number}: {len(sequence)} tokens; pass {option} {len(sequence)} or cut it"
            )
        if min(sequence) < 0 or max(sequence) >= len(tokenizer):
            raise GradvarError(
                f"{source}, row {number}: token id {max(sequence) if min(sequence) >= 0 else min(sequence)} "
                f"is not in the tokenizer's {len(tokenizer)} tokens; were these ids made with another tokenizer?"
            )
        if special.issuperset(sequence):
            raise GradvarError(
                f"{source}, row {number}: only special tokens, of which none can be masked; leave the row out"
            )
        yield np.array(sequence, dtype=np.int32)


def stream_sequences(
    source: str | Path, tokenizer: Any, max_length: int, pack: bool, option: str = "--max-length"
) -> Iterator[np.ndarray]:
    """Turn a source of any size into sequences as they are asked for; the same ones as :func:`load_corpus`.

    Args:
        source: See :func:`~gradvar.huggingface.reading.stream_rows`.
        tokenizer: A Hugging Face tokenizer with its special tokens.
        max_length: Tokens of a sequence.
        pack: Join the paragraphs of a document.
        option: What the user calls ``max_length``.

    Returns:
        ``[length]`` int32 ids of each.

    Raises:
        GradvarError: When a part that cannot be read is reached.
    """  # noqa: DOC502
    rows = stream_rows(source)
    first = next(rows, None)
    if first is None:
        return iter(())
    values = (value for _, value in chain((first,), rows))
    if first[0] == "input_ids":
        return checked((tuple(ids) for ids in values), str(source), tokenizer, max_length, option)
    return tokenised(values, tokenizer, max_length, pack, option=option)
