import gzip
import json
import lzma
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pandas
import pytest
import transformers

from gradvar.errors import GradvarError
from gradvar.huggingface.checkpoint import tokenizer_of
from gradvar.huggingface.corpus import load_corpus
from gradvar.training import data as training_data
from gradvar.training.data import prepare
from gradvar.training.recipe import Data
from gradvar.training.sequences import Limits, Sequences
from tests import cases

TOKENIZER = cases.tokenizer()
PACKED = {"": bytes, ".xz": lzma.compress, ".gz": gzip.compress}
ROWS = [[cases.CLS, 5 + i, 6 + i, cases.SEP][: 4 - i % 2] for i in range(40)]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Texts and a tokenizer."""
    folder = tmp_path_factory.mktemp("data")
    TOKENIZER.save_pretrained(folder / "tokenizer")
    cases.write_text(folder / "a.txt")
    cases.write_text(folder / "b.txt", documents=5, seed=1)
    cases.write_text(folder / "c.txt", documents=5, seed=2)
    (folder / "ids.jsonl").write_text(jsonl("input_ids", ROWS))
    return folder


@pytest.fixture
def ready(place, tmp_path):
    """Prepare data in the test's own cache."""

    def make(cache=None, checkpoint=None, **more):
        return prepare(spec(place, **more), cache or tmp_path / "cache", checkpoint)

    return make


def spec(place, **more):
    """A recipe's data: 30 documents, a ready tokenizer; a dict for the tokenizer trains one."""
    more = {"train": "a.txt", "max_length": 16, "tokenizer": {"source": "tokenizer"}} | more
    for name in ("train", "valid"):
        if more.get(name):
            more[name] = str(place / more[name])
    if source := more["tokenizer"].get("source"):
        more["tokenizer"] = {"source": str(place / source)}
    return Data(**more)


def jsonl(field, values):
    return "".join(json.dumps({field: value}) + "\n" for value in values)


def rows(dataset):
    return [list(row) for row in dataset["input_ids"]]


def everything(prepared):
    return rows(prepared.train), rows(prepared.valid), prepared.counts


def refusal(make, **more):
    with pytest.raises(GradvarError) as caught:
        make(**more)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def cached(folder):
    return sorted(os.listdir(folder))


# ---- what is made


@pytest.mark.parametrize("pack", [True, False])
def test_sequences_are_those_of_every_other_command(place, ready, pack):
    prepared = ready(valid="b.txt", pack=pack)
    for name, dataset in (("a.txt", prepared.train), ("b.txt", prepared.valid)):
        expected = load_corpus(place / name, TOKENIZER, 16, pack).sequences
        assert rows(dataset) == [row.tolist() for row in expected]


@pytest.mark.parametrize("ending", PACKED)
@pytest.mark.parametrize("kind", ["txt", "jsonl", "parquet"])
def test_every_format_gives_the_same_sequences(place, ready, tmp_path, kind, ending):
    documents = (place / "a.txt").read_text().split("\n\n")
    if kind == "jsonl":
        content = jsonl("text", documents).encode()
    elif kind == "parquet":
        content = pandas.DataFrame({"text": documents}).to_parquet()
    else:
        content = (place / "a.txt").read_bytes()
    (tmp_path / f"a.{kind}{ending}").write_bytes(PACKED[ending](content))
    assert everything(ready(train=tmp_path / f"a.{kind}{ending}")) == everything(ready())


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_input_ids_are_taken_as_they_are(ready, tmp_path, kind):
    path = tmp_path / f"ids.{kind}"
    if kind == "jsonl":
        path.write_text(jsonl("input_ids", ROWS))
    else:
        pandas.DataFrame({"input_ids": ROWS}).to_parquet(path)
    prepared = ready(train=path, valid_share=0.3)
    assert sorted(rows(prepared.train) + rows(prepared.valid)) == sorted(ROWS)
    assert [row for row in ROWS if row in rows(prepared.train)] == rows(prepared.train)  # in file order


def test_arrow_files_hold_any_number_of_rows(ready, tmp_path, monkeypatch):
    """Record batches are of a thousand; here of seven."""
    expected = everything(ready())
    monkeypatch.setattr(training_data, "_ROWS", 7)
    assert everything(ready(cache=tmp_path / "other")) == expected
    assert len(expected[0]) > 14
    assert len(expected[0]) % 7 != 0


def test_lengths_are_those_of_the_rows(ready):
    prepared = ready(pack=False)
    limits = Limits(len(prepared.tokenizer), 10**6)
    lengths = Sequences(prepared.train, "train_dataset", limits).lengths()
    assert lengths.dtype == np.int64
    assert lengths.tolist() == [len(row) for row in rows(prepared.train)]


# ---- held-out documents


def documents_of(place, count=200):
    """Documents of two paragraphs, each of a word of its own, 20 times."""
    letters = [f"{chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(count)]
    text = "\n\n".join("\n".join([" ".join([word] * 10)] * 2) for word in letters)
    (place / "words.txt").write_text(text)
    vocabulary = {token: index for index, token in enumerate(cases.SPECIAL + letters)}
    transformers.BertTokenizerFast(vocab=vocabulary).save_pretrained(place / "words")
    return {"train": "words.txt", "tokenizer": {"source": "words"}}


@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("share", [0.001, 0.02, 0.3, 0.999])
def test_no_document_is_on_both_sides(place, ready, pack, share):
    prepared = ready(**documents_of(place), valid_share=share, pack=pack, max_length=7)
    sides = [{token for row in rows(side) for token in row[1:-1]} for side in (prepared.train, prepared.valid)]
    assert not sides[0] & sides[1]
    assert len(sides[0] | sides[1]) == 200
    assert all(len(set(row[1:-1])) == 1 for side in (prepared.train, prepared.valid) for row in rows(side))
    assert [prepared.counts[name]["documents"] for name in ("train", "valid")] == [len(side) for side in sides]
    assert min(map(len, sides)) >= 1


def test_about_the_share_is_held_out_whatever_else_changes(place, ready):
    """Of 200 documents, 60 in the mean; 5 standard deviations are 32. The held-out of a smaller share stay so."""
    case = documents_of(place)
    held_out = {
        share: {row[1] for row in rows(ready(**case, valid_share=share, max_length=12).valid)}
        for share in (0.02, 0.3, 0.5)
    }
    assert abs(len(held_out[0.3]) - 60) <= 32
    assert held_out[0.02] < held_out[0.3] < held_out[0.5]
    assert {row[1] for row in rows(ready(**case, valid_share=0.3, max_length=22).valid)} == held_out[0.3]


@pytest.mark.parametrize("share", [0.001, 0.5, 0.999])
def test_of_two_documents_one_is_held_out(place, ready, share):
    prepared = ready(**documents_of(place, count=2), valid_share=share)
    assert [prepared.counts[name]["documents"] for name in ("train", "valid")] == [1, 1]


def test_a_vocabulary_is_trained_without_the_held_out_text(ready, tmp_path):
    """Each document has a letter that no other has, and a word that all have."""
    letters = [chr(0x4E00 + i) for i in range(40)]
    (tmp_path / "letters.txt").write_text("\n\n".join(" ".join(["w", *[letter] * 7]) for letter in letters))
    prepared = ready(train=tmp_path / "letters.txt", tokenizer={"vocabulary": 100}, valid_share=0.3, pack=False)
    known = [letter for letter in letters if letter in prepared.tokenizer.get_vocab()]
    train, valid = prepared.counts["train"], prepared.counts["valid"]
    assert len(known) == train["documents"] < 40
    assert (train["unknown"], valid["unknown"]) == (0, 7 * valid["documents"])


# ---- counts


SPECIAL = {cases.CLS, cases.SEP}


def test_counts_by_hand(ready, tmp_path):
    """Room for 6: documents of 7 (a tail of 1, dropped), of 8 and 3 (joined), and of 2 (kept: half of 8 are 4)."""
    lengths = [[7], [8, 3], [2]]
    text = "\n\n".join("\n".join(" ".join(["w1"] * n) for n in document) for document in lengths)
    (tmp_path / "train.txt").write_text(text.replace("w1", "♪", 2))
    prepared = ready(train=tmp_path / "train.txt", valid="b.txt", max_length=8)
    tally = {"documents": 3, "tokens": 20, "kept": 6 + 6 + 5 + 2, "unknown": 2, "sequences": 4}
    assert prepared.counts["train"] == tally
    line = "train: 3 documents, 20 tokens, 4 sequences; dropped 1 tokens (5.0%), unknown 10.00%"
    assert prepared.summary()[0] == line
    assert [text.partition(":")[0] for text in prepared.summary()] == ["train", "valid"]


@pytest.mark.parametrize("train", ["a.txt", "ids.jsonl"])
@pytest.mark.parametrize("pack", [True, False])
def test_counts_add_up(ready, train, pack):
    """Special tokens apart, whether the data came as text or as ids."""
    prepared = ready(train=train, valid_share=0.2, pack=pack)
    for name, dataset in (("train", prepared.train), ("valid", prepared.valid)):
        found = prepared.counts[name]
        body = [token for row in rows(dataset) for token in row if token not in SPECIAL]
        assert (found["sequences"], found["kept"]) == (len(dataset), len(body))
    total = Counter(prepared.counts["train"]) + Counter(prepared.counts["valid"])
    documents, tokens = (30, 30 * 60) if train == "a.txt" else (40, 20 * 2 + 20 * 2)
    assert (total["documents"], total["tokens"], total["unknown"]) == (documents, tokens, 0)


@pytest.mark.parametrize("how", ["text", "ids"])
def test_unknown_tokens_are_counted(place, ready, tmp_path, how):
    documents = [f"w1 ♪ w2 w3 ♪ w{i}" for i in range(10)]
    if how == "text":
        (tmp_path / "u.txt").write_text("\n\n".join(documents))
    else:
        framed = [TOKENIZER(document)["input_ids"] for document in documents]
        (tmp_path / "u.jsonl").write_text(jsonl("input_ids", framed))
    prepared = ready(train=next(tmp_path.glob("u.*")), valid_share=0.3, max_length=8)
    for found in prepared.counts.values():
        assert (found["unknown"], found["tokens"]) == (2 * found["documents"], 6 * found["documents"])
    assert all(line.endswith("unknown 33.33%") for line in prepared.summary())


# ---- the tokenizer


@pytest.mark.parametrize("lowercase", [True, False])
def test_a_trained_tokenizer_folds_case_if_it_should(ready, tmp_path, lowercase):
    (tmp_path / "case.txt").write_text("\n\n".join(" ".join(["Apple apple Été été"] * n) for n in range(1, 21)))
    prepared = ready(
        train=tmp_path / "case.txt",
        tokenizer={"vocabulary": 200, "lowercase": lowercase},
        max_length=6,
        valid_share=0.1,
    )
    expected = ["apple", "apple", "ete", "ete"] if lowercase else ["Apple", "apple", "Été", "été"]
    assert prepared.tokenizer.tokenize("Apple apple Été été") == expected
    assert prepared.tokenizer.convert_ids_to_tokens(prepared.train[0]["input_ids"]) == ["[CLS]", *expected, "[SEP]"]


@pytest.mark.parametrize("max_length", [16, 1000])
def test_a_trained_tokenizer_has_what_a_masked_lm_needs(ready, max_length):
    tokenizer = ready(tokenizer={"vocabulary": 100}, max_length=max_length, pack=False).tokenizer
    special = [getattr(tokenizer, f"{name}_token") for name in ("pad", "unk", "cls", "sep", "mask")]
    assert special == cases.SPECIAL
    assert tokenizer.model_max_length == max(512, max_length)
    assert len(tokenizer) <= 100
    assert tokenizer("w1")["input_ids"][0] == tokenizer.cls_token_id


@pytest.mark.parametrize("vocabulary", [100, 101, 110, 132, 200])
def test_a_trained_vocabulary_is_no_larger_than_was_asked_for(ready, tmp_path, vocabulary):
    """Of 64 letters, each begins and continues words: with special tokens they are 133; frequent ones come first."""
    letters = [chr(0x3B1 + i) for i in range(17)] + [chr(0x430 + i) for i in range(32)] + list("abcdefghijklmno")
    assert len(letters) == 64
    words = [" ".join([letter * 2] * (70 - i)) for i, letter in enumerate(letters)]
    (tmp_path / "letters.txt").write_text("\n".join(words))
    (tmp_path / "valid.txt").write_text("αα")
    more = {"train": tmp_path / "letters.txt", "valid": tmp_path / "valid.txt", "max_length": 80, "pack": False}
    prepared = ready(**more, tokenizer={"vocabulary": vocabulary, "lowercase": False})
    assert len(prepared.tokenizer) <= vocabulary
    known = [letter for letter in letters if letter in prepared.tokenizer.get_vocab()]
    assert known == letters[: min(64, (vocabulary - 5) // 2)]
    unknown = sum(70 - i for i in range(len(known), 64))
    assert prepared.counts["train"]["unknown"] == unknown


def test_what_is_trained_is_the_same_every_time(ready, tmp_path):
    one, other = (ready(cache=tmp_path / name, tokenizer={"vocabulary": 100}) for name in ("one", "other"))
    assert one.tokenizer.get_vocab() == other.tokenizer.get_vocab()
    assert everything(one) == everything(other)
    assert (one.folder.name, one.sha256) == (other.folder.name, other.sha256)


def test_a_tokenizer_is_the_recipes_or_the_checkpoints(place, ready):
    named, checkpoints = ready(checkpoint="nowhere"), ready(checkpoint=place / "tokenizer", tokenizer={})
    assert named.tokenizer.get_vocab() == checkpoints.tokenizer.get_vocab() == TOKENIZER.get_vocab()
    assert everything(named) == everything(checkpoints)


# ---- the cache


def test_what_is_made_is_not_made_again(ready, monkeypatch):
    for options in ({}, {"tokenizer": {"vocabulary": 100}}, {"train": "ids.jsonl"}, {"valid": "b.txt"}):
        expected = ready(**options)
        with monkeypatch.context() as patch:
            for name in ("read_rows", "tokenised", "train_tokenizer", "_write", "_make"):
                patch.setattr(training_data, name, None)
            found = ready(**options)
        assert everything(found) == everything(expected)
        assert (found.folder, found.sha256) == (expected.folder, expected.sha256)
        assert found.tokenizer.get_vocab() == expected.tokenizer.get_vocab()
    assert len(cached(expected.folder.parent)) == 4


def test_a_file_is_known_by_its_content(place, ready, tmp_path):
    shutil.copy(place / "a.txt", tmp_path / "copy.txt")
    assert ready(train=tmp_path / "copy.txt").folder == ready().folder
    (tmp_path / "copy.txt").write_text((place / "a.txt").read_text().replace("w1", "w2", 1))
    assert ready(train=tmp_path / "copy.txt").folder != ready().folder


TRAINED = {"vocabulary": 100}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({}, {"max_length": 15}),
        ({}, {"pack": False}),
        ({}, {"valid_share": 0.3}),
        ({}, {"train": "b.txt"}),
        ({}, {"valid": "b.txt"}),
        ({"valid": "c.txt"}, {"valid": "b.txt"}),
        ({"train": "a.txt", "valid": "b.txt"}, {"train": "b.txt", "valid": "a.txt"}),
        ({}, {"tokenizer": TRAINED}),
        ({"tokenizer": TRAINED}, {"tokenizer": {"vocabulary": 101}}),
        ({"tokenizer": TRAINED}, {"tokenizer": TRAINED | {"lowercase": False}}),
        ({"tokenizer": TRAINED}, {"tokenizer": TRAINED, "max_length": 15}),
    ],
)
def test_whatever_decides_the_content_has_a_folder_of_its_own(ready, one, other):
    mine, theirs = ready(**one), ready(**other)
    assert mine.folder != theirs.folder
    assert everything(ready(**one)) == everything(mine)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ({}, {"max_length": 15}, False),
        ({}, {"pack": False}, False),
        ({}, {"valid_share": 0.3}, False),
        ({"valid": "c.txt"}, {"valid": "b.txt"}, False),
        ({"train": "a.txt", "valid": "b.txt"}, {"train": "b.txt", "valid": "a.txt"}, False),
        ({}, {"tokenizer": TRAINED}, False),
        ({"train": "one.jsonl", "valid": "b.txt"}, {"train": "other.jsonl", "valid": "b.txt"}, False),
        ({"train": "a.txt"}, {"train": "packed.txt.gz"}, True),
        ({"tokenizer": TRAINED}, {"tokenizer": TRAINED | {"lowercase": False}}, True),  # of text in small letters
    ],
)
def test_the_hash_is_that_of_the_content(place, ready, one, other, same):
    """It tells sequences apart that are the same tokens cut elsewhere."""
    for name, sequences in (("one", [[5, 6], [7], [8]]), ("other", [[5], [6, 7], [8]])):
        (place / f"{name}.jsonl").write_text(jsonl("input_ids", sequences))
    (place / "packed.txt.gz").write_bytes(gzip.compress((place / "a.txt").read_bytes()))
    mine, theirs = ready(**one), ready(**other)
    assert mine.folder != theirs.folder
    assert (rows(mine.train) == rows(theirs.train) and rows(mine.valid) == rows(theirs.valid)) == same
    assert (mine.sha256 == theirs.sha256) == same


@pytest.mark.parametrize("options", [{}, {"tokenizer": TRAINED}])
def test_another_version_of_the_tokenizers_that_gives_the_same_is_the_same_text(ready, monkeypatch, options):
    mine = ready(**options)
    monkeypatch.setattr(training_data, "version", lambda _: "99.0")
    theirs = ready(**options)
    assert theirs.folder != mine.folder
    assert everything(theirs) == everything(mine)
    assert theirs.sha256 == mine.sha256


def test_the_hash_does_not_know_how_arrow_lays_rows_out(ready, tmp_path, monkeypatch):
    mine = ready()
    monkeypatch.setattr(training_data, "_ROWS", 7)
    theirs = ready(cache=tmp_path / "other")
    assert (theirs.folder / "train.arrow").read_bytes() != (mine.folder / "train.arrow").read_bytes()
    assert theirs.sha256 == mine.sha256


def more_words(tokenizer):
    return cases.tokenizer(56)


def swapped_words(tokenizer):
    vocabulary = tokenizer.get_vocab()
    vocabulary["w3"], vocabulary["w4"] = vocabulary["w4"], vocabulary["w3"]
    return transformers.BertTokenizerFast(vocab=vocabulary, model_max_length=512)


def cased(tokenizer):
    return transformers.BertTokenizerFast(vocab=tokenizer.get_vocab(), do_lower_case=False, model_max_length=512)


def shorter(tokenizer):
    """It takes part in how long a sequence may be."""
    tokenizer.model_max_length = 20
    return tokenizer


def other_mask(tokenizer):
    """Which token masks is said beside the vocabulary."""
    tokenizer.mask_token = "w0"
    return tokenizer


def test_the_hash_knows_what_the_numbers_mean(ready, tmp_path):
    """The same sequences of ids, made for other words or another mask token."""
    options = {"train": "ids.jsonl"}
    hashes = {ready(**options).sha256}
    for change in (swapped_words, other_mask):
        change(cases.tokenizer()).save_pretrained(tmp_path / change.__name__)
        hashes.add(ready(**options, tokenizer={"source": tmp_path / change.__name__}).sha256)
    assert len(hashes) == 3


@pytest.mark.parametrize("change", [more_words, swapped_words, cased, shorter, other_mask])
def test_another_tokenizer_has_a_folder_of_its_own(ready, tmp_path, change):
    other = change(cases.tokenizer())
    other.save_pretrained(tmp_path / "other")
    mine, theirs = ready(), ready(tokenizer={"source": tmp_path / "other"})
    assert mine.folder != theirs.folder
    for wanted, found in ((TOKENIZER, mine.tokenizer), (other, theirs.tokenizer)):
        assert found.get_vocab() == wanted.get_vocab()
        assert (found.model_max_length, found.mask_token) == (wanted.model_max_length, wanted.mask_token)


def test_the_same_bytes_read_as_another_format_have_a_folder_of_their_own(place, ready, tmp_path):
    texts = [f"w{i} w1 w2 w3" for i in range(30)]
    (tmp_path / "a.jsonl").write_text(jsonl("text", texts))
    (tmp_path / "a.txt").write_text(jsonl("text", texts))
    records, lines = (ready(train=tmp_path / name, valid="b.txt", pack=False) for name in ("a.jsonl", "a.txt"))
    assert records.counts["train"]["unknown"] == 0
    assert lines.counts["train"]["documents"] == 1
    assert records.folder != lines.folder


# ---- whole or not at all


def interrupted(*_, **__):
    raise KeyboardInterrupt


def after(calls, ours, fail=interrupted):
    """Let so many calls go through, then fail."""
    left = [calls]

    def call(*args, **kwargs):
        left[0] -= 1
        return ours(*args, **kwargs) if left[0] >= 0 else fail()

    return call


def yields_some(documents, tokenizer, max_length, pack, tally, option):
    yield np.array([cases.CLS, 5, cases.SEP], dtype=np.int32)
    interrupted()


POINTS = {
    "vocabulary": (training_data, "train_tokenizer", 0),
    "tokenizer": (transformers.PreTrainedTokenizerBase, "save_pretrained", 0),
    "first text": (training_data, "_write", 0),
    "second text": (training_data, "_write", 1),
    "counts": (Path, "write_text", 0),
    "renaming": (Path, "rename", 0),
}


@pytest.mark.parametrize("killed", [False, True], ids=["interrupted", "killed"])
@pytest.mark.parametrize("point", [*POINTS, "half a text"])
def test_what_was_not_finished_is_never_taken_for_whole(ready, tmp_path, monkeypatch, point, killed):
    """A process that is killed removes nothing."""
    options = {"tokenizer": TRAINED} if point == "vocabulary" else {}
    expected = ready(cache=tmp_path / "other", **options).summary()
    cache = tmp_path / "cache"
    with monkeypatch.context() as patch:
        if point == "half a text":
            patch.setattr(training_data, "tokenised", yields_some)
        else:
            owner, name, calls = POINTS[point]
            patch.setattr(owner, name, after(calls, getattr(owner, name)))
        if killed:
            patch.setattr(training_data.shutil, "rmtree", lambda *_, **__: None)
        with pytest.raises(KeyboardInterrupt):
            ready(**options)
    left = cached(cache)
    assert [name for name in left if not name.startswith(".")] == []
    assert bool(left) == killed
    prepared = ready(**options)
    assert prepared.summary() == expected
    assert cached(cache) == sorted([*left, prepared.folder.name])


def no_space():
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("point", ["first text", "second text", "counts", "renaming"])
def test_a_full_disk_is_told_in_one_line_and_leaves_nothing(ready, tmp_path, monkeypatch, point):
    owner, name, calls = POINTS[point]
    monkeypatch.setattr(owner, name, after(calls, getattr(owner, name), no_space))
    message = refusal(ready)
    assert message == f"the cache {tmp_path / 'cache'} cannot be written (No space left on device); give --cache"
    assert cached(tmp_path / "cache") == []


def lose(name):
    return lambda folder: (folder / name).unlink()


def cut(name):
    return lambda folder: os.truncate(folder / name, (folder / name).stat().st_size // 2)


DAMAGES = {
    "no counts": lose("counts.json"),
    "cut counts": cut("counts.json"),
    "no text": lose("train.arrow"),
    "cut text": cut("train.arrow"),
    "no tokenizer": lambda folder: shutil.rmtree(folder / "tokenizer"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_made_anew(ready, damage):
    prepared = ready()
    expected = everything(prepared)
    DAMAGES[damage](prepared.folder)
    assert everything(ready()) == expected
    assert cached(prepared.folder.parent) == [prepared.folder.name]


@pytest.mark.parametrize("point", ["first text", "renaming"])
def test_the_faster_of_two_wins_and_the_other_takes_what_it_made(ready, monkeypatch, point):
    """The other one begins and ends while this one is at work."""
    owner, name, _ = POINTS[point]
    ours, others = getattr(owner, name), []

    def overtaken(*args, **kwargs):
        monkeypatch.setattr(owner, name, ours)
        others.append(ready())
        return ours(*args, **kwargs)

    monkeypatch.setattr(owner, name, overtaken)
    mine = ready()
    assert len(others) == 1
    assert mine.folder == others[0].folder
    assert everything(mine) == everything(others[0])
    assert cached(mine.folder.parent) == [mine.folder.name]


OTHER = """
import sys
from pathlib import Path
from gradvar.training.data import Data, prepare
print("ready", flush=True)
sys.stdin.readline()
print(prepare(Data.model_validate_json(sys.argv[1]), Path(sys.argv[2])).folder)
"""


@pytest.mark.full
def test_two_processes_at_once_make_one_folder(place, ready, tmp_path):
    command = [sys.executable, "-c", OTHER, spec(place).model_dump_json(), str(tmp_path / "cache")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "ready\n"
        other.stdin.write("go\n")
        other.stdin.flush()
        mine = ready()
        theirs = other.stdout.read().strip()
    assert (other.returncode, theirs) == (0, str(mine.folder))
    assert cached(mine.folder.parent) == [mine.folder.name]
    assert everything(mine) == everything(ready(cache=tmp_path / "other"))


# ---- the border between training and validation


@pytest.mark.parametrize("how", ["text", "ids"])
def test_a_document_that_is_there_twice_is_on_one_side(place, ready, how):
    """Copies lie far apart, and in any order."""
    own = [[5 + i, 6 + i, 7 + i] for i in range(40)]
    documents = own + own[::-1]
    if how == "text":
        text = "\n\n".join(" ".join(f"w{token}" for token in document) for document in documents)
        (place / "twice.txt").write_text(text)
    else:
        (place / "twice.jsonl").write_text(jsonl("input_ids", documents))
    name = "twice.txt" if how == "text" else "twice.jsonl"
    prepared = ready(train=name, valid_share=0.4, max_length=5)
    train, valid = ({tuple(row) for row in rows(part)} for part in (prepared.train, prepared.valid))
    assert not train & valid
    assert len(train) + len(valid) == 40
    assert len(prepared.train) == 2 * len(train)


def test_text_that_is_held_out_of_itself_is_told(place, ready):
    shutil.copy(place / "a.txt", place / "same.txt")
    assert "same.txt are the same text; hold out another one" in refusal(ready, valid="same.txt")


def test_copies_of_one_document_cannot_be_held_out(place, ready):
    (place / "copies.txt").write_text("w1 w2 w3 w4 w5 w6 w7 w8\n\n" * 9)
    assert "holds 1 document, of which none can be held out" in refusal(ready, train="copies.txt")


# ---- what is refused


def test_no_text_is_told(ready):
    assert "there is no text to train on; give --data FILE, or data.train in the recipe" in refusal(ready, train=None)


BAD = {
    "empty.txt": "",
    "blank.txt": "\n \n",
    "one.txt": "w1 w2 w3 w4 w5 w6 w7 w8",
    "short.txt": "w1\n\nw2\n\nw3\n",
    "odd.txt": "♪\n\n♪ ♪\n",
    "long.jsonl": jsonl("input_ids", [*ROWS, [5] * 17]),
    "high.jsonl": jsonl("input_ids", [*ROWS, [60]]),
}


@pytest.mark.parametrize(
    ("options", "words", "absent"),
    [
        ({"train": "nowhere.txt"}, "no such file", ""),
        ({"valid": "nowhere.txt"}, "nowhere.txt': no such file", ""),
        ({"train": "tokenizer"}, "is a folder; give one file", ""),
        ({"train": "empty.txt"}, "empty.txt is empty", ""),
        ({"train": "blank.txt"}, "blank.txt holds 0 documents", ""),
        (
            {"train": "one.txt"},
            "holds 1 document, of which none can be held out; put blank lines between",
            "",
        ),
        ({"train": "short.txt"}, "no document of this part reaches half of 16 tokens; give more text, lower", ""),
        ({"valid": "short.txt"}, "short.txt yields no sequence: no document of this part reaches half of 16", ""),
        ({"train": "odd.txt", "pack": False}, "odd.txt yields no sequence", "set data.pack to false"),
        ({"train": "ids.jsonl", "tokenizer": TRAINED}, "holds input_ids, which need the tokenizer that made", ""),
        ({"valid": "ids.jsonl", "tokenizer": TRAINED}, "holds input_ids, which need the tokenizer that made", ""),
        # Of the file, not of the part that is not held out; and the recipe's name for the length.
        ({"train": "long.jsonl", "valid_share": 0.5}, "row 41: 17 tokens", ""),
        ({"train": "high.jsonl", "valid_share": 0.5}, "row 41: token id 60 is not in the tokenizer's 60 tokens", ""),
        ({"train": "long.jsonl"}, "data.max_length", "--max-length"),
        ({"tokenizer": {"source": "a.txt"}}, "a.txt is a file", "--checkpoint"),
        ({"tokenizer": {"source": "nowhere"}}, "nowhere': no such folder", ""),
        ({"tokenizer": {"source": "."}}, "has no tokenizer; save it there", ""),
    ],
)
def test_what_cannot_be_prepared_is_told_and_leaves_nothing(place, ready, tmp_path, options, words, absent):
    for name, content in BAD.items():
        (place / name).write_text(content)
    message = refusal(ready, **options)
    assert words in message
    assert absent not in message or not absent
    assert not (tmp_path / "cache").exists() or cached(tmp_path / "cache") == []


def test_a_cache_that_is_no_folder_is_told(place, ready):
    assert "a.txt cannot be written (File exists); give --cache" in refusal(ready, cache=place / "a.txt")


def test_a_text_that_cannot_be_read_is_told(ready, monkeypatch):
    """A root user may read every file, so that the disk fails here."""

    def fails(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(training_data.hashlib, "file_digest", fails)
    assert "a.txt cannot be read" in refusal(ready)


def test_a_saved_tokenizer_does_not_say_how_it_was_loaded(tmp_path):
    tokenizer_of(cases.save_checkpoint(tmp_path / "model")).save_pretrained(tmp_path / "saved")
    assert {"is_local", "local_files_only"}.isdisjoint(
        json.loads((tmp_path / "saved/tokenizer_config.json").read_text())
    )
