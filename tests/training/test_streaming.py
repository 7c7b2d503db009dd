"""Training data that are streamed: the same sequences, in blocks, whatever the ranks; going on; in little memory."""

import gzip
import json
import lzma
import shutil
import subprocess
import sys
from itertools import chain, islice
from types import SimpleNamespace

import datasets
import numpy as np
import pandas
import pytest

from gradvar import checkpoints
from gradvar.errors import GradvarError
from gradvar.huggingface.corpus import load_corpus, stream_sequences
from gradvar.huggingface.reading import fingerprint, stream_rows
from gradvar.training.recipe import Masking
from gradvar.training.schedule import Schedule
from gradvar.training.sequences import Limits
from gradvar.training.streaming import Stream
from tests import cases
from tests.huggingface.test_reading import DOCUMENTS, ID_FILES, PACKED, SEQUENCES, TEXT_FILES
from tests.training import runs

LIMITS = Limits(60, 32)


def numbered(rows):
    """Sequences that hold their number."""
    return [{"input_ids": [cases.CLS, 5 + i % 50, 5 + i // 50, cases.SEP]} for i in range(rows)]


def number(ids):
    return int(ids[1]) - 5 + 50 * (int(ids[2]) - 5)


class Again:
    """Items one after another, without numbers."""

    def __init__(self, items):
        self.items = items

    def __iter__(self):
        return iter(self.items)


def stream(rows=23, block=7, batch=4, seed=0, accumulation=1, rank=0, world=1, start=0):
    made = Stream(Again(numbered(rows)), "train_dataset", LIMITS, block)
    return made.planned(batch, seed, accumulation, rank, world, lambda: start)


# ---- the texts


@pytest.mark.parametrize("ending", PACKED)
@pytest.mark.parametrize("name", TEXT_FILES)
def test_every_format_gives_the_documents_of_reading_it_whole(tmp_path, name, ending):
    path = tmp_path / (name + ending)
    path.write_bytes(PACKED[ending](TEXT_FILES[name]))
    if name.endswith(".parquet") and ending:
        with pytest.raises(GradvarError, match="compressed as a whole cannot be streamed; unpack it"):
            next(stream_rows(path))
        return
    assert [(field, tuple(document)) for field, document in stream_rows(path)] == [("text", x) for x in DOCUMENTS]


@pytest.mark.parametrize("name", ID_FILES)
def test_input_ids_are_taken_as_they_are(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(ID_FILES[name])
    assert list(stream_rows(path)) == [("input_ids", ids) for ids in SEQUENCES]
    found = stream_sequences(path, cases.tokenizer(), 8, pack=True)
    assert [tuple(ids.tolist()) for ids in found] == list(SEQUENCES)


@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("ending", PACKED)
def test_sequences_are_those_of_a_corpus(tmp_path, pack, ending):
    path = cases.write_text(tmp_path / "text.txt", documents=40)
    packed = tmp_path / f"text.txt{ending}"
    packed.write_bytes(PACKED[ending](path.read_bytes()))
    expected = load_corpus(path, cases.tokenizer(), 12, pack).sequences
    found = list(stream_sequences(packed, cases.tokenizer(), 12, pack))
    assert len(found) == len(expected) > 50
    assert all(np.array_equal(one, other) for one, other in zip(found, expected, strict=True))


def test_a_hub_data_set_is_read_to_its_end(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    rows = [{"text": f"w{i % 50}"} for i in range(10_050)]  # more than other commands take
    library = SimpleNamespace(load_dataset=lambda name, **options: iter(rows))
    monkeypatch.setitem(sys.modules, "datasets", library)
    assert sum(1 for _ in stream_rows("org/name")) == 10_050


BAD = {
    "zero.txt": (b"w1\n\nw2\0\n", "a zero byte in line 3"),
    "latin.txt": (b"w1 w2\n\n" * 2000 + b"\xe9\n", "is not UTF-8"),
    "broken.jsonl": (b'{"text": "w1"}\n{"text": \n', "line 2: not JSON"),
    "other.jsonl": (b'{"text": "w1"}\n{"other": 1}\n', "line 2: has no field 'text'"),
    "cut.txt.xz": (lzma.compress(b"w1 w2\n\n" * 9999)[:-20], "cannot be read after line"),
    "cut.txt.gz": (gzip.compress(b"w1 w2\n\n" * 9999)[:-20], "cannot be read after line"),
    "no.parquet": (b"w1", "is not a parquet file"),
    "text.csv": (b"w1", "unknown format '.csv'"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_read_is_told_when_it_is_reached(tmp_path, name):
    raw, words = BAD[name]
    path = tmp_path / name
    path.write_bytes(raw)
    with pytest.raises(GradvarError, match=words) as error:
        [tuple(document) for _, document in stream_rows(path)]
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)


def test_fingerprints(tmp_path):
    path = tmp_path / "text.txt"
    seen = set()
    for raw in (b"", b"a" * 200_000, b"b" + b"a" * 199_999, b"a" * 199_999 + b"b", b"a" * 200_001):
        path.write_bytes(raw)
        seen.add(fingerprint(path))
        assert fingerprint(path) == fingerprint(path)
    assert len(seen) == 5
    assert fingerprint("org/name") != fingerprint("org/other")


# ---- the order


@pytest.mark.parametrize(("rows", "block", "batch"), [(23, 7, 4), (23, 100, 5), (6, 6, 6), (5, 2, 8), (3, 1, 1)])
def test_each_epoch_holds_every_sequence_once_block_by_block(rows, block, batch):
    shown = [
        (int(epoch), int(row), number(ids))
        for step in islice(stream(rows, block, batch), 5 * rows)
        for ids, row, epoch in zip(step["ids"], step["row"], step["epoch"], strict=True)
    ][: 4 * rows]
    for epoch in range(4):
        part = shown[epoch * rows : (epoch + 1) * rows]
        assert {e for e, _, _ in part} == {epoch}
        assert all(row == held for _, row, held in part)
        for first in range(0, rows, block):
            blocked = [row for _, row, _ in part[first : first + block]]
            assert sorted(blocked) == list(range(first, min(first + block, rows)))


def test_blocks_epochs_and_seeds_have_orders_of_their_own():
    """Of blocks of 20: that two of the 6 agree by chance has a probability below 15/20!."""
    orders = []
    for seed in (0, 1):
        rows = [row for step in islice(stream(40, 20, 20, seed), 3) for row in [step["row"]]]
        orders += [tuple((row % 20).tolist()) for row in rows]
    assert len(set(orders)) == 6


@pytest.mark.parametrize(("accumulation", "world"), [(1, 1), (2, 1), (1, 2), (2, 2), (1, 4)])
@pytest.mark.parametrize("start", [0, 9])
def test_ranks_and_micro_batches_share_out_a_step_from_any_step_on(accumulation, world, start):
    alone = list(islice(stream(), start + 4))
    ranks = [iter(stream(accumulation=accumulation, rank=rank, world=world, start=start)) for rank in range(world)]
    for step in range(start, start + 4):
        parts = [next(rank) for _ in range(accumulation) for rank in ranks]
        for name in ("row", "epoch", "step"):
            assert list(chain.from_iterable(part[name].tolist() for part in parts)) == alone[step][name].tolist()
        assert alone[step]["step"].tolist() == [step] * 4


def test_what_is_no_stream():
    with pytest.raises(GradvarError, match="holds no sequence"):
        Stream(Again([]), "train_dataset", LIMITS)
    with pytest.raises(GradvarError, match="generator, which can be gone through only once"):
        Stream((x for x in numbered(3)), "train_dataset", LIMITS)
    with pytest.raises(GradvarError, match=r"sequence 0 of train_dataset has text; tokenise it"):
        Stream(Again([{"text": "w1"}]), "train_dataset", LIMITS)
    with pytest.raises(GradvarError, match="4 sequences a step cannot be shared among 3 processes"):
        stream(world=3)

    class Once(Again):
        def __iter__(self):
            found, self.items = self.items, []
            return iter(found)

    with pytest.raises(GradvarError, match="held no sequence when it was gone through again"):
        next(iter(Stream(Once(numbered(3)), "train_dataset", LIMITS).planned(2, 0, 1, 0, 1, int)))


# ---- the trainer, in scripts


def test_a_hub_like_stream_is_trained_on(tmp_path):
    """`datasets.IterableDataset`; two epochs of it, with workers or without, end in the same model."""
    data = datasets.Dataset.from_list(runs.data(16)).to_iterable_dataset()
    ends = []
    for workers in (0, 2):
        made = runs.trainer(
            tmp_path / str(workers), train=data, max_steps=4, save_strategy="no", dataloader_num_workers=workers
        )
        made.train()
        ends.append(made.joint.encoder.state_dict())
        assert "epoch" not in made.state.log_history[-1]
    assert runs.differences(*ends) == []


@pytest.mark.parametrize(
    ("masking", "more", "words"),
    [
        (Masking(weighting="token", mask_rate=0.3), {}, "masking.weighting 'token' and disjoint masks take data that"),
        (Masking(proposal="uniform/disjoint:2"), {}, "disjoint masks take data that are not streamed"),
        (Masking(proposal="frequency/pps"), {}, "the score 'frequency' takes data that are not streamed"),
        (Masking(), {"max_length": Schedule.of(6)}, "is shown as it comes: leave max_length out"),
        (Masking(), {"max_steps": -1, "num_train_epochs": 2}, "has no length; give max_steps, tokens or seconds"),
    ],
)
def test_what_a_stream_cannot_give_is_refused(tmp_path, masking, more, words):
    with pytest.raises(GradvarError, match=words):
        runs.trainer(tmp_path, masking, train=Again(runs.data(16)), **more)


# ---- a run


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = runs.make_place(tmp_path_factory.mktemp("place"))
    given = {"streaming": True, "block": 16}
    return runs.write_recipe(place, masking={"proposal": runs.DRAWN}, data=given, saving={"keep": 9})


@pytest.fixture(scope="module")
def done(place):
    assert runs.command(runs.words(place, place / "done")) == 0
    return place / "done"


def test_a_streamed_run_is_trained_and_judged(place, done):
    lines = runs.metrics(done)
    assert lines[-1]["step"] == 14
    assert lines[-1]["eval_loss"] < lines[0].get("eval_loss", np.inf)
    state = json.loads((checkpoints.last_whole(done) / checkpoints.STATE).read_text())
    assert state["recipe"]["data"]["streaming"] is True
    assert not list((place / "cache").glob("text-*/train.arrow"))


def test_it_goes_on_bit_for_bit_and_says_that_it_reads_again(place, done, tmp_path, capsys):
    shutil.copytree(done, tmp_path / "run")
    for checkpoint in checkpoints.whole(tmp_path / "run"):
        if checkpoints.step_of(checkpoint) > 8:  # in the third epoch
            shutil.rmtree(checkpoint)
    assert runs.command(runs.resuming(place, tmp_path / "run")) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "reading the stream again up to step 8, from where the run goes on; nothing is trained on twice" in said
    assert runs.differences(runs.everything(tmp_path / "run"), runs.everything(done)) == []


def test_a_budget_in_tokens(place, tmp_path):
    assert runs.command(runs.words(place, tmp_path / "run", "--tokens", "500")) == 0
    end = runs.metrics(tmp_path / "run")[-1]
    assert 500 <= end["tokens"] < 500 + 96
    rates = [line["learning_rate"] for line in runs.metrics(tmp_path / "run") if "learning_rate" in line]
    assert rates[0] > rates[-1]  # the schedule follows the tokens
    assert runs.command(runs.resuming(place, tmp_path / "run")) == 0  # it is finished


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["data.valid=null"], "'streaming' takes a held-out text of its own; give data.valid"),
        (["data.tokenizer.source=null"], "a text that is streamed trains no vocabulary"),
        (["data.train={place}/valid.txt"], "are the same text; hold out another one"),
        (["data.train={place}/none.txt"], "no data at"),
        (["data.train={place}/short.txt"], "train_dataset holds no sequence"),
        (["masking.proposal=uniform/disjoint:2"], "take data that are not streamed"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(place, tmp_path, capsys, given, words):
    (place / "short.txt").write_text("w1\n")
    assert runs.command(runs.words(place, tmp_path / "run", *(x.format(place=place) for x in given))) == 2
    said = capsys.readouterr().err
    assert words in said.splitlines()[-1]
    assert not (tmp_path / "run").exists()


def test_another_text_under_the_same_name_is_refused(place, done, tmp_path, capsys):
    shutil.copytree(done, tmp_path / "run")
    shutil.rmtree(checkpoints.last_whole(tmp_path / "run"))
    before = (place / "train.txt").read_bytes()
    (place / "train.txt").write_bytes(before + b"\n\nw1 w2\n")
    try:
        assert runs.command(runs.resuming(place, tmp_path / "run")) == 2
    finally:
        (place / "train.txt").write_bytes(before)
    assert "is another text than the run began with" in capsys.readouterr().err


GROWTH = """
import resource, sys
from itertools import islice
from gradvar.training.sequences import Limits
from gradvar.training.streaming import Stream
from gradvar.training.data import StreamedText
from gradvar.huggingface.checkpoint import tokenizer_of
from pathlib import Path

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

def go_through(path):
    text = StreamedText(path, tokenizer, 128, True)
    stream = Stream(text, "train_dataset", Limits(60, 128), 500).planned(8, 0, 1, 0, 1, int)
    return sum(len(step["row"]) for step in iter_epoch(stream))

def iter_epoch(stream):
    for step in stream:
        if int(step["epoch"][0]) > 0:
            return
        yield step

tokenizer = tokenizer_of(Path(sys.argv[1]))
go_through(sys.argv[2])  # what the libraries take
before = peak()
rows = go_through(sys.argv[3])
print(rows, peak() - before)
"""


def test_a_text_larger_than_the_memory_that_it_takes(tmp_path):
    """One document of 12 MB without a blank line, the hardest case: the process grows by less than 6 MB."""
    cases.save_checkpoint(tmp_path / "model")
    line = " ".join(f"w{i}" for i in range(10, 55)) + "\n"
    (tmp_path / "small.txt").write_text(line * 3000)
    (tmp_path / "large.txt").write_text(line * (12_000_000 // len(line)))
    words = [sys.executable, "-c", GROWTH, *(str(tmp_path / name) for name in ("model", "small.txt", "large.txt"))]
    rows, growth = map(int, subprocess.run(words, check=True, capture_output=True, text=True).stdout.split())
    assert rows > 20_000  # 12 MB of lines of 179 bytes and 45 tokens, 126 a row: 23,900
    assert growth * 1024 < 6_000_000


def test_a_parquet_file_is_read_group_by_group(tmp_path):
    path = tmp_path / "text.parquet"
    pandas.DataFrame({"text": [f"w{i % 50} w1" for i in range(2500)]}).to_parquet(path, row_group_size=500)
    assert [tuple(d) for _, d in stream_rows(path)] == [(f"w{i % 50} w1",) for i in range(2500)]
