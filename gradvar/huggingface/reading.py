"""Files and hub data sets to documents or ready sequences, with every bad input named in one line."""

import gzip
import hashlib
import io
import json
import lzma
import os
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from gradvar.errors import GradvarError

HUB_DOCUMENTS = 10_000
_SUFFIXES = (".txt", ".jsonl", ".parquet")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Rows:
    """What a data source holds: documents to tokenise, or sequences to take as they are.

    Attributes:
        source: The name the user gave.
        sha256: Hash of the file's bytes; for a hub data set, of its documents.
        documents: Paragraphs of each document, or None where ``input_ids`` were given.
        sequences: Token ids of each sequence, or None where text was given.
    """

    source: str
    sha256: str
    documents: tuple[tuple[str, ...], ...] | None = None
    sequences: tuple[tuple[int, ...], ...] | None = None


def read_rows(source: str | Path) -> Rows:
    """Read a ``.txt``, ``.jsonl`` or ``.parquet`` file (or any of them as ``.xz`` or ``.gz``), or a hub data set.

    Args:
        source: A path; a name that is no path is looked up on the hub.

    Returns:
        The rows in file order; documents without text are left out.

    Raises:
        GradvarError: If there is no such file, or it cannot be read as what its name says.
    """
    path = Path(source)
    if os.path.isdir(path):  # unlike Path.is_dir, no error where the name is too long
        raise GradvarError(f"--data {source} is a folder; give one file, such as {path / 'text.txt'}")
    if not os.path.exists(path):
        return _read_hub(str(source))
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise GradvarError(f"--data {source} cannot be read: {error.strerror}") from error
    digest = hashlib.sha256(raw).hexdigest()
    raw, kind = _decompress(raw, path)
    if not raw:
        raise GradvarError(f"--data {source} is empty; give a file with text")
    if kind == ".txt":
        return Rows(str(source), digest, documents=_paragraphs(_decode(raw, path)))
    records = _json_records(_decode(raw, path), path) if kind == ".jsonl" else _parquet_records(raw, path)
    return _from_records(records, str(source), digest)


def _decompress(raw: bytes, path: Path) -> tuple[bytes, str]:
    """Return the plain bytes and the format's suffix."""
    name = path.name.lower()
    for ending, decompress in ((".xz", lzma.decompress), (".gz", gzip.decompress)):
        if name.endswith(ending):
            name = name.removesuffix(ending)
            try:
                raw = decompress(raw)
            except (lzma.LZMAError, OSError, EOFError, zlib.error) as error:
                raise GradvarError(f"{path} is not a whole {ending} file: {error}") from error
            break
    kind = Path(name).suffix
    if kind not in _SUFFIXES:
        raise GradvarError(f"{path}: unknown format '{kind}'; use {', '.join(_SUFFIXES)}, or one of them as .xz or .gz")
    return raw, kind


def _decode(raw: bytes, path: Path) -> str:
    if b"\0" in raw:
        raise GradvarError(f"{path} is binary, not text (a zero byte at offset {raw.index(0)}); give UTF-8 text")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise GradvarError(f"{path} is not UTF-8 (byte {error.start}); convert it, e.g. with iconv -t utf-8") from error


def _paragraphs(text: str) -> tuple[tuple[str, ...], ...]:
    """Split at blank lines into documents, and at line ends into paragraphs."""
    documents: list[tuple[str, ...]] = []
    current: list[str] = []
    for line in [*io.StringIO(text, newline=None), ""]:  # str.splitlines would also split at rare separators
        if line.strip():
            current.append(line.strip())
        elif current:
            documents.append(tuple(current))
            current = []
    return tuple(documents)


def _json_records(text: str, path: Path) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(io.StringIO(text), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            why = getattr(error, "msg", error)
            raise GradvarError(f"{path}, line {number}: not JSON ({why}); a .jsonl has one object a line") from error
        yield f"{path}, line {number}", record


def _parquet_records(raw: bytes, path: Path) -> Iterator[tuple[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(io.BytesIO(raw))
        columns = [c for c in ("input_ids", "text") if c in file.schema_arrow.names][:1]
        records = file.read(columns=columns).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise GradvarError(f"{path} is not a parquet file: {str(error).splitlines()[0]}") from error
    for number, record in enumerate(records, 1):
        yield f"{path}, row {number}", record


def _from_records(records: Iterator[tuple[str, Any]], source: str, digest: str) -> Rows:
    """Take ``input_ids`` where the first record has them, else ``text``."""
    documents: list[tuple[str, ...]] = []
    sequences: list[tuple[int, ...]] = []
    field = None
    for place, record in records:
        if field is None and isinstance(record, dict):
            field = next((f for f in ("input_ids", "text") if f in record), None)
        if not isinstance(record, dict) or field is None or field not in record:
            raise GradvarError(f"{place}: has no field '{field or 'text'}'; every row needs 'text', or 'input_ids'")
        value = record[field]
        if field == "text":
            if not isinstance(value, str):
                raise GradvarError(f"{place}: 'text' is {type(value).__name__}, not a string")
            if SURROGATE.search(value):
                raise GradvarError(f"{place}: 'text' holds half a surrogate pair, which is no character; remove it")
            if value.strip():
                documents.append(tuple(line.strip() for line in io.StringIO(value, newline=None) if line.strip()))
        else:
            if not isinstance(value, list) or not value or not all(type(i) is int for i in value):
                raise GradvarError(f"{place}: 'input_ids' must be a list of at least one integer")
            sequences.append(tuple(value))
    if field == "input_ids":
        return Rows(source, digest, sequences=tuple(sequences))
    return Rows(source, digest, documents=tuple(documents))


def _read_hub(name: str) -> Rows:
    """Read the first documents of the train split of a hub data set."""
    missing = f"no data at '{name}': no such file"
    if name.startswith((".", "~", "/")) or name.endswith((*_SUFFIXES, ".xz", ".gz")) or not _HUB_NAME.fullmatch(name):
        raise GradvarError(f"{missing}; give the path of a .txt, .jsonl or .parquet file")
    import datasets

    try:
        stream = datasets.load_dataset(name, split="train", streaming=True)
        records = [(f"{name}, row {n}", row) for n, row in enumerate(islice(stream, HUB_DOCUMENTS), 1)]
    except Exception as error:  # the library raises dozens of types here, all meaning "not to be had"
        raise GradvarError(f"{missing}, and the hub does not give it ({str(error).splitlines()[0]})") from error
    digest = hashlib.sha256(json.dumps([row for _, row in records], default=str).encode()).hexdigest()
    return _from_records(iter(records), name, digest)
