import gzip
import hashlib
import io
import json
import lzma
import sys
from types import SimpleNamespace

import pandas
import pytest

from gradvar.errors import GradvarError
from gradvar.huggingface.reading import read_rows

TEXT = "w1 w2\nw3\n\n\nw4 w5 w6\n"
DOCUMENTS = (("w1 w2", "w3"), ("w4 w5 w6",))
SEQUENCES = ((2, 5, 3), (2, 6, 7, 3))
PACKED = {"": bytes, ".xz": lzma.compress, ".gz": gzip.compress}


def jsonl(*records):
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def parquet(**columns):
    buffer = io.BytesIO()
    pandas.DataFrame(columns).to_parquet(buffer)
    return buffer.getvalue()


TEXT_FILES = {
    "a.txt": TEXT.encode(),
    "a.jsonl": jsonl({"text": "w1 w2\nw3"}, {"text": "w4 w5 w6"}),
    "a.parquet": parquet(text=["w1 w2\nw3", "w4 w5 w6"]),
}
ID_FILES = {
    "a.jsonl": jsonl(*({"input_ids": list(ids), "text": "not used"} for ids in SEQUENCES)),
    "a.parquet": parquet(input_ids=[list(ids) for ids in SEQUENCES], text=["not", "used"]),
}


@pytest.mark.parametrize("ending", PACKED)
@pytest.mark.parametrize("name", TEXT_FILES)
def test_every_format_gives_the_same_documents(tmp_path, name, ending):
    path = tmp_path / (name + ending)
    path.write_bytes(PACKED[ending](TEXT_FILES[name]))
    rows = read_rows(path)
    assert (rows.documents, rows.sequences) == (DOCUMENTS, None)
    assert rows.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("ending", PACKED)
@pytest.mark.parametrize("name", ID_FILES)
def test_input_ids_go_before_text_and_are_taken_as_they_are(tmp_path, name, ending):
    path = tmp_path / (name + ending)
    path.write_bytes(PACKED[ending](ID_FILES[name]))
    rows = read_rows(path)
    assert (rows.documents, rows.sequences) == (None, SEQUENCES)


@pytest.mark.parametrize(
    ("name", "content"),
    {
        "A.TXT": TEXT.encode(),
        "mark.txt": b"\xef\xbb\xbf" + TEXT.encode(),
        "windows.txt": TEXT.replace("\n", "\r\n").encode(),
        "blanks.txt": b"\n  \n" + TEXT.replace("\n\n", "\n \t\n").encode() + b"\n\n",
        "blanks.jsonl": b"\n" + TEXT_FILES["a.jsonl"].replace(b"\n", b"\n\n") + jsonl({"text": " \n"}),
    }.items(),
)
def test_marks_line_ends_and_blanks_change_nothing(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert read_rows(tmp_path / name).documents == DOCUMENTS


BAD = [
    ("a.txt", b"", "empty"),
    ("a.txt.gz", gzip.compress(b"", mtime=0), "empty"),
    ("a.txt", b"w1\0w2", "binary zero byte offset 2 UTF-8"),
    ("a.txt", "w1 w2".encode("utf-16"), "binary"),
    ("a.txt", "café".encode("latin-1"), "not UTF-8 byte 3 iconv"),
    ("a.jsonl", b'{"text": "\xff"}', "not UTF-8 byte 10"),
    ("a.txt.xz", lzma.compress(TEXT.encode())[:-8], "not a whole .xz"),
    ("a.txt.xz", b"w1 w2", "not a whole .xz"),
    ("a.txt.gz", gzip.compress(TEXT.encode(), mtime=0)[:-8], "not a whole .gz"),
    ("a.txt.gz", gzip.compress(TEXT.encode(), mtime=0)[:-8] + bytes(8), "not a whole .gz"),
    ("a.txt.gz", b"w1 w2", "not a whole .gz"),
    ("a.csv", b"w1", "unknown format '.csv' .txt .jsonl .parquet .xz .gz"),
    ("a.gz", gzip.compress(b"w1", mtime=0), "unknown format ''"),
    ("a", b"w1", "unknown format ''"),
    ("a.jsonl", b'{"text": "w1"}\n{oops\n', "line 2 not JSON"),
    ("a.jsonl", b"[" * 100_000, "line 1 not JSON"),
    ("a.jsonl", b'{"text": ' + b"9" * 5000 + b"}", "line 1 not JSON"),
    ("a.jsonl", b'{"text": "w1"}\n\n{"body": "w1"}\n', "line 3 no field 'text'"),
    ("a.jsonl", b'{"input_ids": [2]}\n{"text": "w1"}\n', "line 2 no field 'input_ids'"),
    ("a.jsonl", b'["w1"]', "line 1 no field 'text' 'input_ids'"),
    ("a.jsonl", b'{"text": 3}', "line 1 'text' int not a string"),
    ("a.jsonl", b'{"text": null}', "line 1 'text' NoneType not a string"),
    ("a.jsonl", b'{"text": "\\ud800"}', "line 1 'text' surrogate"),
    ("a.jsonl", b'{"input_ids": []}', "line 1 'input_ids' list integer"),
    ("a.jsonl", b'{"input_ids": [1.5]}', "line 1 'input_ids' list integer"),
    ("a.jsonl", b'{"input_ids": [true]}', "line 1 'input_ids' list integer"),
    ("a.jsonl", b'{"input_ids": "w1"}', "line 1 'input_ids' list integer"),
    ("a.parquet", b"", "empty"),
    ("a.parquet", b"w1 w2", "not a parquet file"),
    ("a.parquet", parquet(text=["w1"])[:-8], "not a parquet file"),
    ("a.parquet", parquet(body=["w1"]), "row 1 no field 'text'"),
    ("a.parquet", parquet(text=["w1", None]), "row 2 'text' NoneType not a string"),
    ("a.parquet", parquet(text=[1, 2]), "row 1 'text' int not a string"),
    ("a.parquet", parquet(input_ids=[[1.0]]), "row 1 'input_ids' list integer"),
]


@pytest.mark.parametrize(("name", "content", "words"), BAD)
def test_a_bad_file_is_refused_in_one_line_that_names_the_cause(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    message = refusal(tmp_path / name)
    assert str(tmp_path / name) in message
    assert [word for word in words.split() if word not in message] == []


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("nowhere.txt", "no such file"),
        ("~/nowhere.txt", "no such file"),
        ("a text, not a path", "no such file"),
        ("w1 " * 2000, "no such file"),
        (".", "is a folder; give one file"),
    ],
)
def test_what_is_no_file_is_refused(tmp_path, monkeypatch, source, words):
    monkeypatch.chdir(tmp_path)
    assert words in refusal(source)


def test_a_name_that_is_no_path_is_a_hub_data_set(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    asked = []
    rows = [{"text": "w1 w2\nw3"}, {"text": "w4 w5 w6"}]
    library = SimpleNamespace(load_dataset=lambda name, **options: asked.append((name, options)) or iter(rows))
    monkeypatch.setitem(sys.modules, "datasets", library)
    found = read_rows("org/name")
    assert (found.source, found.documents) == ("org/name", DOCUMENTS)
    assert asked == [("org/name", {"split": "train", "streaming": True})]


def test_a_hub_that_does_not_answer_is_one_line(monkeypatch, tmp_path):
    def load_dataset(name, **options):
        raise ConnectionError("no route\nto host")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    assert "no data at 'org/name': no such file, and the hub does not give it (no route)" in refusal("org/name")


def refusal(source):
    with pytest.raises(GradvarError) as caught:
        read_rows(source)
    assert "\n" not in str(caught.value)
    return str(caught.value)
