"""Text to what a run reads: a tokenizer, and sequences in Arrow files that are made once and mapped thereafter."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from gradvar.errors import GradvarError
from gradvar.huggingface.checkpoint import locate, tokenizer_of
from gradvar.huggingface.corpus import Corpus, Tally, ready, tokenised
from gradvar.huggingface.reading import Rows, read_rows
from gradvar.masking.hashing import hash_key, unit_interval
from gradvar.training.recipe import Data

if TYPE_CHECKING:
    import datasets

_FORMAT = 1  # of the cache; another one is made anew
_SPLIT = 40  # stream of hashes
_ROWS = 1000  # sequences of an Arrow record batch
_LONGEST = 512  # tokens that a trained tokenizer says it takes, at least
_DONE = "counts.json"


@dataclass(frozen=True)
class Prepared:
    """What a run reads.

    Attributes:
        folder: Where it lies.
        tokenizer: Hugging Face tokenizer.
        train: Training sequences, memory-mapped; a column ``input_ids``.
        valid: Held-out sequences.
        counts: What became of either text: a :class:`~gradvar.huggingface.corpus.Tally` and ``sequences``, by split.
        sha256: Of everything that decides the content.
    """

    folder: Path
    tokenizer: Any
    train: datasets.Dataset
    valid: datasets.Dataset
    counts: dict[str, dict[str, int]]
    sha256: str

    @cached_property
    def held_out(self) -> Corpus:
        """The held-out sequences as a corpus that can be studied."""
        sequences = tuple(np.asarray(x, dtype=np.int32) for x in self.valid.with_format("numpy")["input_ids"])
        longest = max(len(sequence) for sequence in sequences)
        return Corpus(sequences, "held-out text", self.sha256, longest, 0.0)

    def summary(self) -> list[str]:
        """Say what there is, a line a split."""
        lines = []
        for name, found in self.counts.items():
            tokens, dropped = found["tokens"], found["tokens"] - found["kept"]
            lines.append(
                f"{name}: {found['documents']:,} documents, {tokens:,} tokens, {found['sequences']:,} sequences; "
                f"dropped {dropped:,} tokens ({dropped / max(1, tokens):.1%}), "
                f"unknown {found['unknown'] / max(1, tokens):.2%}"
            )
        return lines


def prepare(data: Data, cache: Path, checkpoint: str | None = None) -> Prepared:
    """Tokenise the text of a recipe, or find it tokenised.

    Args:
        data: The text, and how it becomes sequences.
        cache: Folder of all that was ever tokenised; each text has a folder of its own in it, named by a hash of
            everything that decides the content.
        checkpoint: Folder or hub name of the encoder, whose tokenizer is taken where the recipe names none.

    Returns:
        The sequences.

    Raises:
        GradvarError: If there is no text, too little of it, or no tokenizer.
    """
    if data.train is None:
        raise GradvarError("there is no text to train on; give --data FILE, or data.train in the recipe")
    source = data.tokenizer.source or checkpoint
    tokenizer = None if source is None else tokenizer_of(locate(source))
    digests = [_digest(name) for name in (data.train, data.valid) if name is not None]
    decides = {
        "format": _FORMAT,
        "data": digests,
        "split": None if data.valid else data.valid_share,
        "max_length": data.max_length,
        "pack": data.pack,
        "tokenizer": _spec(data) if tokenizer is None else _fingerprint(tokenizer),
        "tokenizers": version("tokenizers"),
    }
    sha256 = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()
    folder = cache / f"text-{sha256[:16]}"
    if not (folder / _DONE).is_file():
        _make(data, tokenizer, folder)
    return _load(folder, sha256)


def _make(data: Data, tokenizer: Any, folder: Path) -> None:
    """Write a folder of sequences under a temporary name, and rename it."""
    train, valid = _splits(data)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=".text-", dir=folder.parent))
    except OSError as error:
        raise GradvarError(f"the cache {folder.parent} cannot be written ({error.strerror}); give --cache") from error
    try:
        if tokenizer is None:
            tokenizer = train_tokenizer(train, data)
        tokenizer.save_pretrained(partial / "tokenizer")
        counts = {}
        for name, rows in (("train", train), ("valid", valid)):
            counts[name] = _write(rows, tokenizer, data, partial / f"{name}.arrow")
        (partial / _DONE).write_text(json.dumps(counts, indent=1) + "\n")
        if folder.exists():  # of another process, or broken
            if (folder / _DONE).is_file():
                return
            shutil.rmtree(folder)
        partial.rename(folder)
    except OSError as error:
        if (folder / _DONE).is_file():
            return  # another process was faster
        raise GradvarError(f"the cache {folder.parent} cannot be written ({error.strerror}); give --cache") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _load(folder: Path, sha256: str) -> Prepared:
    import datasets

    from gradvar.huggingface.checkpoint import quiet

    with quiet():
        train, valid = (datasets.Dataset.from_file(str(folder / f"{name}.arrow")) for name in ("train", "valid"))
    counts = json.loads((folder / _DONE).read_text())
    return Prepared(folder, tokenizer_of(folder / "tokenizer"), train, valid, counts, sha256)


def _splits(data: Data) -> tuple[Rows, Rows]:
    """Read both texts, or hold out documents of one: which ones is a hash of their number."""
    assert data.train is not None
    whole = read_rows(data.train)
    if data.valid is not None:
        return whole, read_rows(data.valid)
    documents = whole.documents if whole.sequences is None else whole.sequences
    assert documents is not None
    if len(documents) < 2:
        raise GradvarError(
            f"{data.train} holds {len(documents)} document{'s' * (len(documents) != 1)}, of which none can be held out;"
            " put blank lines between documents, or give data.valid"
        )
    tosses = unit_interval(hash_key(_SPLIT, torch.arange(len(documents)))).numpy()
    held_out = tosses < data.valid_share
    if held_out.all() or not held_out.any():
        held_out = tosses == tosses.min()

    def part(wanted: np.ndarray) -> Rows:
        some: Any = tuple(document for document, own in zip(documents, wanted, strict=True) if own)
        if whole.sequences is None:
            return Rows(whole.source, whole.sha256, documents=some)
        return Rows(whole.source, whole.sha256, sequences=some)

    return part(~held_out), part(held_out)


def train_tokenizer(rows: Rows, data: Data) -> Any:
    """Train a WordPiece vocabulary on documents.

    Args:
        rows: The training text.
        data: Its size and whether it folds case.

    Returns:
        A Hugging Face tokenizer.

    Raises:
        GradvarError: If the text came as ``input_ids``.
    """
    from tokenizers import BertWordPieceTokenizer
    from transformers import BertTokenizerFast  # type: ignore[attr-defined]

    if rows.documents is None:
        raise GradvarError(
            f"{rows.source} holds input_ids, which need the tokenizer that made them; give data.tokenizer.source"
        )
    spec = data.tokenizer
    pieces = BertWordPieceTokenizer(lowercase=spec.lowercase)
    text = (paragraph for document in rows.documents for paragraph in document)
    pieces.train_from_iterator(text, vocab_size=spec.vocabulary, min_frequency=2, show_progress=False)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "tokenizer.json")
        pieces.save(path)
        longest = max(_LONGEST, data.max_length)
        return BertTokenizerFast(tokenizer_file=path, do_lower_case=spec.lowercase, model_max_length=longest)


def _write(rows: Rows, tokenizer: Any, data: Data, path: Path) -> dict[str, int]:
    """Write sequences as an Arrow stream; return what became of the text."""
    tally = Tally()
    sequences: Iterable[np.ndarray]
    if rows.documents is None:
        sequences = ready(rows, tokenizer, data.max_length)
        tokens = sum(map(len, sequences))
        tally = Tally(len(rows.sequences or ()), tokens, tokens)
    else:
        sequences = tokenised(rows.documents, tokenizer, data.max_length, data.pack, tally)
    count = _write_arrow(sequences, path)
    if count == 0:
        raise GradvarError(
            f"{rows.source} yields no sequence: no document of this part reaches half of {data.max_length} tokens; "
            "give more text, lower data.max_length, or set data.pack to false (a line a sequence)"
        )
    return {**asdict(tally), "sequences": count}


def _write_arrow(sequences: Iterable[np.ndarray], path: Path) -> int:
    import pyarrow as pa

    schema = pa.schema([("input_ids", pa.list_(pa.int32()))])
    count = 0
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        some: list[np.ndarray] = []

        def flush() -> None:
            if some:
                writer.write_batch(pa.record_batch([pa.array(some, pa.list_(pa.int32()))], schema=schema))
                some.clear()

        for sequence in sequences:
            some.append(sequence)
            count += 1
            if len(some) == _ROWS:
                flush()
        flush()
    return count


def lengths_of(dataset: datasets.Dataset) -> np.ndarray:
    """Count the tokens of each sequence: ``[rows]`` int64."""
    import pyarrow.compute as pc

    return np.asarray(pc.list_value_length(dataset.data.column("input_ids"))).astype(np.int64)


def _digest(source: str) -> str:
    """Hash a text without reading more of it than must be."""
    if os.path.isfile(source):
        with open(source, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    return read_rows(source).sha256  # a hub data set, or an error that says what is wrong


def _spec(data: Data) -> dict[str, Any]:
    spec = data.tokenizer
    return {"vocabulary": spec.vocabulary, "lowercase": spec.lowercase, "longest": max(_LONGEST, data.max_length)}


def _fingerprint(tokenizer: Any) -> str:
    """Hash what a tokenizer does."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    text = backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
