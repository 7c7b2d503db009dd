"""Files and hub data sets to documents or ready sequences, with every bad input named in one line."""

import gzip
import hashlib
import io
import json
import lzma
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Any, Literal

from gradvar.errors import GradvarError
from gradvar.huggingface.checkpoint import quiet

HUB_DOCUMENTS = 10_000
_SUFFIXES = (".txt", ".jsonl", ".parquet")
_AT_ONCE = 1000  # rows of a parquet file
_ENDS = 65536  # bytes at either end of a file, of its fingerprint
_OPEN: dict[str, Callable[..., Any]] = {"": open, ".xz": lzma.open, ".gz": gzip.open}
DECOMPRESS: dict[str, Callable[[bytes], bytes]] = {"": bytes, ".xz": lzma.decompress, ".gz": gzip.decompress}
BROKEN = (lzma.LZMAError, OSError, EOFError, zlib.error)
Field = Literal["text", "input_ids"]
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
    if not _is_file(path):
        return _read_hub(str(source))
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise GradvarError(f"--data {source} cannot be read: {error.strerror}") from error
    digest = hashlib.sha256(raw).hexdigest()
    ending, kind = _format(path)
    try:
        raw = DECOMPRESS[ending](raw)
    except BROKEN as error:
        raise GradvarError(f"{path} is not a whole {ending} file: {error}") from error
    if not raw:
        raise GradvarError(f"--data {source} is empty; give a file with text")
    if kind == ".txt":
        text = io.StringIO(_decode(raw, path), newline=None)
        return Rows(str(source), digest, documents=tuple(map(tuple, _documents(text))))
    if kind == ".jsonl":
        return _collected(_json_records(io.StringIO(_decode(raw, path)), path), str(source), digest)
    return _collected(_parquet_records(io.BytesIO(raw), path), str(source), digest)


def stream_rows(source: str | Path) -> Iterator[tuple[Field, Iterable[Any]]]:
    """Read the same sources a little at a time, however large they are; of a hub data set all of it.

    Args:
        source: As :func:`read_rows` takes it; a ``.parquet`` may not be compressed as a whole.

    Yields:
        ``("text", paragraphs)`` a document, its paragraphs to be taken before the next document is, or ``("input_ids",
        ids)`` a sequence.

    Raises:
        GradvarError: If there is no such file, or when a part that cannot be read is reached.
    """  # noqa: DOC502
    path = Path(source)
    if not _is_file(path):
        yield from _values(_hub_records(str(source), None))
        return
    ending, kind = _streamed(path)
    if kind == ".txt":
        yield from (("text", document) for document in _documents(_lines(path, ending)))
    elif kind == ".jsonl":
        yield from _values(_json_records(_lines(path, ending), path))
    else:
        yield from _values(_parquet_records(path, path))


def fingerprint(source: str | Path) -> str:
    """Tell a source from others without reading all of it: by its size, its first and its last 64 KiB.

    Args:
        source: A path, or the name of a hub data set, which stands for itself.

    Returns:
        A hash; it is blind to changes between the ends of a file that leave its size as it is.

    Raises:
        GradvarError: If a file is not there or cannot be read.
    """
    if not _is_file(Path(source)):
        _check_hub_name(str(source))
        return hashlib.sha256(str(source).encode()).hexdigest()
    digest = hashlib.sha256()
    try:
        with open(source, "rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            for start in (0, max(0, size - _ENDS)):
                stream.seek(start)
                digest.update(stream.read(_ENDS))
    except OSError as error:
        raise GradvarError(f"--data {source} cannot be read: {error.strerror}") from error
    digest.update(str(size).encode())
    return digest.hexdigest()


def _is_file(path: Path) -> bool:
    """Whether it is there; unlike those of Path, no errors where the name is too long."""
    if os.path.isdir(path):
        raise GradvarError(f"--data {path} is a folder; give one file, such as {path / 'text.txt'}")
    return os.path.exists(path)


def _format(path: Path) -> tuple[str, str]:
    """Return how a file is compressed, and what it is then."""
    name = path.name.lower()
    ending = next((ending for ending in (".xz", ".gz") if name.endswith(ending)), "")
    kind = Path(name.removesuffix(ending)).suffix
    if kind not in _SUFFIXES:
        raise GradvarError(f"{path}: unknown format '{kind}'; use {', '.join(_SUFFIXES)}, or one of them as .xz or .gz")
    return ending, kind


def check_streamed(source: str | Path) -> None:
    """Refuse a file that cannot be streamed, by its name.

    Args:
        source: See :func:`stream_rows`.

    Raises:
        GradvarError: If it cannot.
    """  # noqa: DOC502
    if _is_file(Path(source)):
        _streamed(Path(source))


def _streamed(path: Path) -> tuple[str, str]:
    ending, kind = _format(path)
    if ending and kind == ".parquet":
        raise GradvarError(f"{path}: a .parquet that is compressed as a whole cannot be streamed; unpack it")
    return ending, kind


def _lines(path: Path, ending: str) -> Iterator[str]:
    """Read a text.

    Yields:
        Its lines.
    """
    number = 0
    try:
        with _OPEN[ending](path, "rt", encoding="utf-8-sig", newline=None) as stream:
            for number, line in enumerate(stream, 1):
                if "\0" in line:
                    raise GradvarError(f"{path} is binary, not text (a zero byte in line {number}); give UTF-8 text")
                yield line
    except UnicodeDecodeError as error:
        raise GradvarError(
            f"{path} is not UTF-8 (after line {number}); convert it, e.g. with iconv -t utf-8"
        ) from error
    except BROKEN as error:
        raise GradvarError(f"{path} cannot be read after line {number}: {error}") from error


def _decode(raw: bytes, path: Path) -> str:
    if b"\0" in raw:
        raise GradvarError(f"{path} is binary, not text (a zero byte at offset {raw.index(0)}); give UTF-8 text")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise GradvarError(f"{path} is not UTF-8 (byte {error.start}); convert it, e.g. with iconv -t utf-8") from error


def _documents(lines: Iterable[str]) -> Iterator[Iterator[str]]:
    """Split at blank lines into documents.

    Yields:
        The lines of each, which are its paragraphs.
    """
    for text, document in groupby(lines, key=lambda line: bool(line.strip())):
        if text:
            yield (line.strip() for line in document)


def _json_records(lines: Iterable[str], path: Path) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            why = getattr(error, "msg", error)
            raise GradvarError(f"{path}, line {number}: not JSON ({why}); a .jsonl has one object a line") from error
        yield f"{path}, line {number}", record


def _parquet_records(source: Any, path: Path) -> Iterator[tuple[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        file = pyarrow.parquet.ParquetFile(source)
        columns = [c for c in ("input_ids", "text") if c in file.schema_arrow.names][:1]
        for batch in file.iter_batches(batch_size=_AT_ONCE, columns=columns):
            for record in batch.to_pylist():
                number += 1
                yield f"{path}, row {number}", record
    except (pyarrow.ArrowException, OSError) as error:
        raise GradvarError(f"{path} is not a parquet file: {str(error).splitlines()[0]}") from error


def _values(records: Iterator[tuple[str, Any]]) -> Iterator[tuple[Field, tuple[Any, ...]]]:
    """Take ``input_ids`` where the first record has them, else ``text``.

    Yields:
        Which of the two, and the value: paragraphs or ids.
    """
    field: Field | None = None
    for place, record in records:
        if field is None and isinstance(record, dict):
            field = "input_ids" if "input_ids" in record else "text" if "text" in record else None
        if not isinstance(record, dict) or field is None or field not in record:
            raise GradvarError(f"{place}: has no field '{field or 'text'}'; every row needs 'text', or 'input_ids'")
        value = record[field]
        if field == "text":
            if not isinstance(value, str):
                raise GradvarError(f"{place}: 'text' is {type(value).__name__}, not a string")
            if SURROGATE.search(value):
                raise GradvarError(f"{place}: 'text' holds half a surrogate pair, which is no character; remove it")
            if value.strip():
                yield field, tuple(line.strip() for line in io.StringIO(value, newline=None) if line.strip())
        else:
            if not isinstance(value, list) or not value or not all(type(i) is int for i in value):
                raise GradvarError(f"{place}: 'input_ids' must be a list of at least one integer")
            yield field, tuple(value)


def _collected(records: Iterator[tuple[str, Any]], source: str, digest: str) -> Rows:
    found = list(_values(records))
    values = tuple(value for _, value in found)
    if found and found[0][0] == "input_ids":
        return Rows(source, digest, sequences=values)
    return Rows(source, digest, documents=values)


def _hub_records(name: str, most: int | None) -> Iterator[tuple[str, Any]]:
    """Read the train split of a hub data set.

    Yields:
        A place for messages, and the row.
    """
    _check_hub_name(name)
    import datasets

    try:
        with quiet():
            stream = datasets.load_dataset(name, split="train", streaming=True)
        for number, row in enumerate(islice(stream, most), 1):
            yield f"{name}, row {number}", row
    except GradvarError:
        raise
    except Exception as error:  # the library raises dozens of types here, all meaning "not to be had"
        why = str(error).splitlines()[0]
        raise GradvarError(f"no data at '{name}': no such file, and the hub does not give it ({why})") from error


def _check_hub_name(name: str) -> None:
    if name.startswith((".", "~", "/")) or name.endswith((*_SUFFIXES, ".xz", ".gz")) or not _HUB_NAME.fullmatch(name):
        raise GradvarError(f"no data at '{name}': no such file; give the path of a .txt, .jsonl or .parquet file")


def _read_hub(name: str) -> Rows:
    """Read the first documents."""
    records = list(_hub_records(name, HUB_DOCUMENTS))
    digest = hashlib.sha256(json.dumps([row for _, row in records], default=str).encode()).hexdigest()
    return _collected(iter(records), name, digest)
