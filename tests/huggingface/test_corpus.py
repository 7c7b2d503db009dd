import json
import re

import numpy as np
import pandas
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradvar.errors import GradvarError
from gradvar.huggingface import corpus
from gradvar.huggingface.corpus import load_corpus
from tests.cases import CLS, SEP, tokenizer, write_text

TOKENIZER = tokenizer()


def rows(path, max_length=10, pack=True):
    return [sequence.tolist() for sequence in load_corpus(path, TOKENIZER, max_length, pack).sequences]


def write_documents(path, lengths):
    """Documents of paragraphs of so many words; return the token ids of each document."""
    count = iter(range(10**6))
    words = [[[next(count) % 55 for _ in range(n)] for n in document] for document in lengths]
    paragraphs = [[" ".join(f"w{i}" for i in paragraph) for paragraph in document] for document in words]
    path.write_text("\n\n".join("\n".join(document) for document in paragraphs))
    return [[5 + i for paragraph in document for i in paragraph] for document in words]


@pytest.mark.parametrize(
    ("max_length", "words", "lengths"),
    [
        (10, [[8]], [10]),
        (10, [[16]], [10, 10]),
        (10, [[3]], [5]),  # a tail of half the length is kept
        (10, [[8, 3]], [10, 5]),
        (10, [[8, 2], [8]], [10, 10]),  # a shorter one is dropped, not joined to the next document
        (10, [[4, 4]], [10]),  # the paragraphs of a document are joined
        (10, [[4], [4]], [6, 6]),  # documents are not
        (7, [[7]], [7, 4]),
        (7, [[6]], [7]),
        (3, [[2]], [3, 3]),
    ],
)
def test_packing_by_hand(tmp_path, max_length, words, lengths):
    write_documents(tmp_path / "a.txt", words)
    assert [len(row) for row in rows(tmp_path / "a.txt", max_length)] == lengths


@settings(deadline=None, max_examples=60)
@given(
    lengths=st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=4), min_size=1, max_size=6),
    max_length=st.integers(3, 40),
)
def test_packing_keeps_every_token_but_short_tails(tmp_path_factory, lengths, max_length):
    path = tmp_path_factory.getbasetemp() / "packing.txt"
    documents = write_documents(path, lengths)
    room = max_length - 2
    bodies = [document[start : start + room] for document in documents for start in range(0, len(document), room)]
    expected = [[CLS, *body, SEP] for body in bodies if len(body) + 2 >= max_length / 2]
    if expected:
        assert rows(path, max_length) == expected
    else:
        with pytest.raises(GradvarError, match="no document reaches"):
            rows(path, max_length)


@settings(deadline=None, max_examples=30)
@given(
    lengths=st.lists(st.lists(st.integers(1, 20), min_size=1, max_size=4), min_size=1, max_size=4),
    max_length=st.integers(3, 20),
)
def test_without_packing_a_line_is_a_sequence(tmp_path_factory, lengths, max_length):
    path = tmp_path_factory.getbasetemp() / "lines.txt"
    write_documents(path, lengths)
    lines = [[5 + int(word[1:]) for word in line.split()] for line in path.read_text().splitlines() if line]
    assert rows(path, max_length, pack=False) == [[CLS, *line[: max_length - 2], SEP] for line in lines]


def test_every_format_gives_the_same_sequences(tmp_path):
    path = write_text(tmp_path / "a.txt", documents=5)
    expected = rows(path)
    texts = path.read_text().split("\n\n")
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    pandas.DataFrame({"text": texts}).to_parquet(tmp_path / "text.parquet")
    (tmp_path / "ids.jsonl").write_text("".join(json.dumps({"input_ids": row}) + "\n" for row in expected))
    pandas.DataFrame({"input_ids": expected}).to_parquet(tmp_path / "ids.parquet")
    for name in ("text.jsonl", "text.parquet", "ids.jsonl", "ids.parquet"):
        assert rows(tmp_path / name) == expected


@pytest.mark.parametrize("pack", [True, False])
def test_input_ids_are_not_packed_framed_or_cut(tmp_path, pack):
    given_ids = [[7], [CLS, 8, 9, SEP], [5] * 10]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"input_ids": ids}) + "\n" for ids in given_ids))
    assert rows(tmp_path / "a.jsonl", pack=pack) == given_ids


def test_a_corpus_says_what_it_is(tmp_path):
    path = write_text(tmp_path / "a.txt", documents=5)
    corpus = load_corpus(path, TOKENIZER, 10)
    assert all(sequence.dtype == np.int32 for sequence in corpus.sequences)
    assert corpus.seconds_per_sentence > 0
    assert repr(corpus) == f"Corpus({len(corpus)} sentences of at most 10 tokens from {path})"


@pytest.mark.parametrize(
    ("name", "content", "max_length", "words"),
    [
        ("a.txt", "w1 w2", 10, "no document reaches 5 tokens; lower --max-length, or use --no-pack"),
        ("a.txt", " \n\n", 10, "holds no text"),
        ("a.jsonl", "\n", 10, "holds no text"),
        ("a.jsonl", '{"text": " "}', 10, "holds no text"),
        ("a.txt", "w1 w2", 2, "--max-length 2 leaves no room beside 2 special tokens"),
        (
            "a.jsonl",
            '{"input_ids": [5]}\n{"input_ids": [5, 60]}',
            10,
            "row 2: token id 60 is not in the tokenizer's 60",
        ),
        ("a.jsonl", '{"input_ids": [5, -1]}', 10, "row 1: token id -1 is not in"),
        ("a.jsonl", '{"input_ids": [99999999999999999999]}', 10, "token id 99999999999999999999 is not in"),
        ("a.jsonl", json.dumps({"input_ids": [5] * 11}), 10, "row 1: 11 tokens; pass --max-length 11"),
    ],
)
def test_what_yields_no_sentence_is_refused_in_one_line(tmp_path, name, content, max_length, words):
    (tmp_path / name).write_text(content)
    with pytest.raises(GradvarError) as caught:
        rows(tmp_path / name, max_length)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_short_line_is_refused_packed_and_taken_unpacked(tmp_path):
    (tmp_path / "a.txt").write_text("w1 w2\nw3\n")
    assert rows(tmp_path / "a.txt", pack=False) == [[CLS, 6, 7, SEP], [CLS, 8, SEP]]


def test_lines_without_an_ordinary_token_are_dropped(tmp_path):
    (tmp_path / "text.txt").write_text("w1 w2\n♪ ♪\nw3\n")
    assert rows(tmp_path / "text.txt", pack=False) == [[CLS, 6, 7, SEP], [CLS, 8, SEP]]


def test_only_line_ends_end_a_line(tmp_path):
    (tmp_path / "text.txt").write_bytes("w1\u2028w2\r\nw3 w4\rw5".encode())
    assert [len(row) - 2 for row in rows(tmp_path / "text.txt", pack=False)] == [2, 2, 1]


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.tuples(st.sampled_from(["w1", "w2", "w33", "zz"]), st.sampled_from([" ", "   ", "\t"])),
        min_size=1,
        max_size=60,
    ),
    st.integers(8, 40),
    st.integers(1, 60),
    st.booleans(),
)
def test_a_long_line_in_parts_has_the_tokens_of_the_whole(words, longest, at_once, pack):
    """Cut at white space, where there is some in time; a line has one sequence without packing, by its first part."""
    text = "".join(word + space for word, space in words).strip()
    whole = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus, "_PART", corpus._part_of(longest))
        patch.setattr(corpus, "_AT_ONCE", at_once)
        tally = corpus.Tally()
        found = list(corpus.tokenised([[text]], TOKENIZER, 6, pack, tally))
    bodies = [ids[1:-1].tolist() for ids in found]
    assert (tally.documents, tally.tokens) == (1, len(whole))
    if pack:
        cut = [whole[i : i + 4] for i in range(0, len(whole), 4)]
        assert bodies == [body for body in cut if any(token != TOKENIZER.unk_token_id for token in body)]
    else:
        surely = min(4, sum(word.end() <= longest // 2 for word in re.finditer(r"\S+", text)))  # each is a token
        assert len(bodies) <= 1
        for body in bodies or [[TOKENIZER.unk_token_id] * surely]:  # a sequence of nothing else is dropped
            assert len(body) >= surely
            assert body == whole[: len(body)]


def test_a_line_without_white_space_is_cut_anywhere():
    parts = list(corpus._parts([["x" * 120_001], ["y"]]))
    assert [(part and len(part), begins) for part, begins in parts] == [
        *((50_000, True), (50_000, False), (20_001, False), (None, False)),
        *((1, True), (None, False)),
    ]


def test_a_long_line_that_begins_with_a_short_word_is_a_whole_sequence():
    """Without packing, a line is its first part: which ends neither at the only white space, nor before it is full."""
    line = "w1 " + "w2" * 30_000 + " w3"
    part, *_ = corpus._parts([[line]])
    assert part == (line[:50_000], True)
