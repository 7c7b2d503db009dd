"""Text to what a run reads: a tokenizer, and sequences in Arrow files that are made once and mapped thereafter."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from gradvar import checkpoints
from gradvar.errors import GradvarError
from gradvar.huggingface.checkpoint import locate, tokenizer_of
from gradvar.huggingface.corpus import Tally, ready, stream_sequences, tokenised
from gradvar.huggingface.reading import Rows, check_streamed, fingerprint, read_rows
from gradvar.masking.hashing import hash_key, unit_interval
from gradvar.training.recipe import Data
from gradvar.training.wordpiece import LONGEST, train_tokenizer

if TYPE_CHECKING:
    import datasets

_FORMAT = 4  # of the cache; another one is made anew
_SPLIT = 40  # stream of hashes
_ROWS = 1000  # sequences of an Arrow record batch
_COUNTS = "counts.json"


@dataclass(frozen=True)
class Prepared:
    """What a run reads.

    Attributes:
        folder: Where it lies.
        tokenizer: Hugging Face tokenizer.
        train: Training sequences, memory-mapped, with a column ``input_ids``; or a stream of them.
        valid: Held-out sequences.
        counts: What became of either text: a :class:`~gradvar.huggingface.corpus.Tally` and ``sequences``, by split.
        sha256: Of the sequences and the vocabulary, however they came about.
    """

    folder: Path
    tokenizer: Any
    train: datasets.Dataset | StreamedText
    valid: datasets.Dataset
    counts: dict[str, dict[str, int]]
    sha256: str

    def summary(self) -> list[str]:
        """Say what there is, a line a split."""
        lines = [] if "train" in self.counts else ["train: read as it is needed, over and over"]
        for name, found in self.counts.items():
            tokens, dropped = found["tokens"], found["tokens"] - found["kept"]
            lines.append(
                f"{name}: {found['documents']:,} documents, {tokens:,} tokens, {found['sequences']:,} sequences; "
                f"dropped {dropped:,} tokens ({dropped / max(1, tokens):.1%}), "
                f"unknown {found['unknown'] / max(1, tokens):.2%}"
            )
        return lines


@dataclass(frozen=True)
class StreamedText:
    """A text as sequences, read and tokenised anew each time that it is gone through.

    Attributes:
        source: File or hub data set.
        tokenizer: Hugging Face tokenizer.
        max_length: Tokens of a sequence.
        pack: Join the paragraphs of a document.
    """

    source: str
    tokenizer: Any
    max_length: int
    pack: bool

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        """Go through it.

        Yields:
            ``input_ids``: ``[length]`` int32.

        Raises:
            GradvarError: If there is none.
        """  # noqa: DOC502
        found = False
        for ids in stream_sequences(self.source, self.tokenizer, self.max_length, self.pack, "data.max_length"):
            found = True
            yield {"input_ids": ids}
        if not found:
            raise _nothing_in(self.source, self.max_length, self.pack)


def prepare(data: Data, cache: Path, checkpoint: str | None = None, last: Path | None = None) -> Prepared:
    """Tokenise the text of a recipe, or find it tokenised.

    Args:
        data: The text, and how it becomes sequences.
        cache: Folder of all that was ever tokenised; each text has a folder of its own in it, named by a hash of
            everything that decides the content.
        checkpoint: Folder or hub name of the encoder, whose tokenizer is taken where the recipe names none.
        last: Checkpoint of a run that goes on, which has the tokenizer wherever it once came from.

    Returns:
        The sequences.

    Raises:
        GradvarError: If there is no text, too little of it, or no tokenizer.
    """
    if data.train is None:
        raise GradvarError("there is no text to train on; give --data FILE, or data.train in the recipe")
    source = data.tokenizer.source or checkpoint
    tokenizer = (
        None
        if source is None
        else tokenizer_of(last or locate(source, "data.tokenizer.source" if data.tokenizer.source else "model.source"))
    )
    if data.streaming:
        check_streamed(data.train)
    named = [name for name in (data.train, data.valid) if name is not None]
    digests = [(fingerprint if data.streaming else _digest)(name) for name in named]
    if data.valid is not None and digests[0] == digests[1]:
        raise GradvarError(
            f"{data.train} and {data.valid} are the same text; hold out another one, or leave data.valid away"
        )
    decides = {
        "format": _FORMAT,
        "data": [_digest(name) for name in named[1:]] if data.streaming else digests,
        "kinds": [_kind(name) for name in (named[1:] if data.streaming else named)],
        "split": "held out alone" if data.streaming else None if data.valid else ["by content", data.valid_share],
        "max_length": data.max_length,
        "pack": data.pack,
        "tokenizer": _spec(data) if tokenizer is None else _fingerprint(tokenizer),
        "tokenizers": version("tokenizers"),
    }
    sha256 = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()
    folder = cache / f"text-{sha256[:16]}"
    if not checkpoints.is_whole(folder):
        _make(data, tokenizer, folder)
    prepared = _load(folder)
    if not data.streaming:
        return prepared
    train = StreamedText(data.train, prepared.tokenizer, data.max_length, data.pack)
    sha256 = hashlib.sha256(f"{_FORMAT} {digests[0]} {prepared.sha256}".encode()).hexdigest()
    return replace(prepared, train=train, sha256=sha256)


def _make(data: Data, tokenizer: Any, folder: Path) -> None:
    """Write a folder of sequences under a temporary name, and rename it."""
    if data.streaming:
        assert data.valid is not None
        assert tokenizer is not None
        splits = {"valid": _whole(data.valid, tokenizer, data.max_length)}
    else:
        splits = dict(zip(("train", "valid"), _splits(data, tokenizer), strict=True))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=".text-", dir=folder.parent))
    except OSError as error:
        raise GradvarError(f"the cache {folder.parent} cannot be written ({error.strerror}); give --cache") from error
    try:
        if tokenizer is None:
            tokenizer = train_tokenizer(splits["train"], data)
        tokenizer.save_pretrained(partial / "tokenizer")
        counts, content = {}, [_vocabulary(tokenizer)]
        for name, rows in splits.items():
            counts[name], digest = _write(rows, tokenizer, data, partial / f"{name}.arrow")
            content.append(digest)
        made = {"counts": counts, "sha256": hashlib.sha256("".join(content).encode()).hexdigest()}
        (partial / _COUNTS).write_text(json.dumps(made, indent=1) + "\n")
        checkpoints.seal(partial)
        if folder.exists():  # of another process, or broken
            if checkpoints.is_whole(folder):
                return
            shutil.rmtree(folder)
        partial.rename(folder)
    except OSError as error:
        if checkpoints.is_whole(folder):
            return  # another process was faster
        raise GradvarError(f"the cache {folder.parent} cannot be written ({error.strerror}); give --cache") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _load(folder: Path) -> Prepared:
    import datasets

    from gradvar.huggingface.checkpoint import quiet

    made = json.loads((folder / _COUNTS).read_text())
    with quiet():
        splits = {name: datasets.Dataset.from_file(str(folder / f"{name}.arrow")) for name in made["counts"]}
    tokenizer, valid = tokenizer_of(folder / "tokenizer"), splits["valid"]
    return Prepared(folder, tokenizer, splits.get("train", valid), valid, made["counts"], made["sha256"])


def _whole(source: str, tokenizer: Any, max_length: int) -> Rows:
    """Read a text."""
    rows = read_rows(source)
    if rows.sequences is not None:
        if tokenizer is None:
            raise GradvarError(
                f"{rows.source} holds input_ids, which need the tokenizer that made them; give data.tokenizer.source"
            )
        ready(rows, tokenizer, max_length, "data.max_length")  # with the rows' numbers in the file
    return rows


def _splits(data: Data, tokenizer: Any) -> tuple[Rows, Rows]:
    """Read both texts, or hold out documents of one: which ones is a hash of what they say."""
    assert data.train is not None
    texts = [_whole(name, tokenizer, data.max_length) for name in (data.train, data.valid) if name is not None]
    whole = texts[0]
    if len(texts) == 2:
        return whole, texts[1]
    documents = whole.documents if whole.sequences is None else whole.sequences
    assert documents is not None
    contents = [_content(document) for document in documents]
    if (different := len(set(contents))) < 2:
        raise GradvarError(
            f"{data.train} holds {different} document{'s' * (different != 1)}, of which none can be held out;"
            " put blank lines between documents, or give data.valid"
        )
    tosses = unit_interval(hash_key(_SPLIT, torch.tensor(contents))).numpy()  # the same for what is there twice
    held_out = tosses < data.valid_share
    if held_out.all() or not held_out.any():
        held_out = tosses == tosses.min()

    def part(wanted: np.ndarray) -> Rows:
        some: Any = tuple(document for document, own in zip(documents, wanted, strict=True) if own)
        if whole.sequences is None:
            return Rows(whole.source, whole.sha256, documents=some)
        return Rows(whole.source, whole.sha256, sequences=some)

    return part(~held_out), part(held_out)


def _content(document: Sequence[Any]) -> int:
    """Hash what a document, of paragraphs or of tokens, says: to an int64."""
    said = json.dumps([x if isinstance(x, str) else int(x) for x in document])
    return int.from_bytes(hashlib.sha256(said.encode()).digest()[:8], "little", signed=True)


def _write(rows: Rows, tokenizer: Any, data: Data, path: Path) -> tuple[dict[str, int], str]:
    """Write sequences as an Arrow stream; return what became of the text, and a hash of the sequences."""
    tally = Tally()
    sequences: Iterable[np.ndarray]
    if rows.documents is None:
        sequences = ready(rows, tokenizer, data.max_length, "data.max_length")
        frame = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
        tokens = sum(token not in frame for row in rows.sequences or () for token in row)
        unknown = sum((row.count(tokenizer.unk_token_id) for row in rows.sequences or ()), 0)
        tally = Tally(len(rows.sequences or ()), tokens, tokens, unknown)
    else:
        sequences = tokenised(rows.documents, tokenizer, data.max_length, data.pack, tally, "data.max_length")
    count, digest = _write_arrow(sequences, path)
    if count == 0:
        raise _nothing_in(rows.source, data.max_length, data.pack, " of this part")
    return {**asdict(tally), "sequences": count}, digest


def _nothing_in(source: str, max_length: int, pack: bool, part: str = "") -> GradvarError:
    if not pack:
        return GradvarError(f"{source} yields no sequence: no line{part} holds a token; give more text")
    return GradvarError(
        f"{source} yields no sequence: no document{part} reaches half of {max_length} tokens; give more text, lower "
        "data.max_length, or set data.pack to false (a line a sequence)"
    )


def _write_arrow(sequences: Iterable[np.ndarray], path: Path) -> tuple[int, str]:
    """Write sequences; return how many, and a hash that knows where each ends but nothing of Arrow."""
    import pyarrow as pa

    schema = pa.schema([("input_ids", pa.list_(pa.int32()))])
    count, digest = 0, hashlib.sha256()
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        some: list[np.ndarray] = []

        def flush() -> None:
            if some:
                writer.write_batch(pa.record_batch([pa.array(some, pa.list_(pa.int32()))], schema=schema))
                some.clear()

        for sequence in sequences:
            some.append(sequence)
            digest.update(np.asarray(len(sequence), "<i4").tobytes() + np.asarray(sequence, "<i4").tobytes())
            count += 1
            if len(some) == _ROWS:
                flush()
        flush()
    return count, digest.hexdigest()


def _digest(source: str) -> str:
    """Hash a text without reading more of it than must be."""
    if os.path.isfile(source):
        try:
            with open(source, "rb") as stream:
                return hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as error:
            raise GradvarError(f"data {source} cannot be read: {error.strerror}") from error
    return read_rows(source).sha256  # a hub data set, or an error that says what is wrong


def _kind(source: str) -> str:
    """Say as what a text is read."""
    path = Path(source.lower().removesuffix(".xz").removesuffix(".gz"))
    return path.suffix if os.path.isfile(source) else "hub"


def _spec(data: Data) -> dict[str, Any]:
    spec = data.tokenizer
    return {"vocabulary": spec.vocabulary, "lowercase": spec.lowercase, "longest": max(LONGEST, data.max_length)}


def _fingerprint(tokenizer: Any) -> str:
    """Hash what a tokenizer does."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    text = backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    beside = json.dumps([_special(tokenizer), int(tokenizer.model_max_length)], sort_keys=True)
    return hashlib.sha256((text + beside).encode()).hexdigest()


def _vocabulary(tokenizer: Any) -> str:
    """Hash what a tokenizer's numbers mean, which versions of a package write alike."""
    text = json.dumps([tokenizer.get_vocab(), _special(tokenizer)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _special(tokenizer: Any) -> dict[str, str]:
    return {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
