"""Training data that are streamed: the same sequences, in blocks, whatever the ranks; going on; in little memory."""

import gzip
import json
import lzma
import pickle
import shutil
import subprocess
import sys
import tracemalloc
from itertools import chain, islice
from types import SimpleNamespace

import datasets
import numpy as np
import pandas
import pyarrow
import pytest

from gradvar import checkpoints
from gradvar.errors import GradvarError
from gradvar.huggingface.corpus import load_corpus, stream_sequences
from gradvar.huggingface.reading import fingerprint, stream_rows
from gradvar.training.order import PIECE
from gradvar.training.pieces import Frame
from gradvar.training.recipe import Masking
from gradvar.training.schedule import Schedule
from gradvar.training.sequences import Limits
from gradvar.training.streaming import Share, Stream
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


def stream(rows=23, block=7, batch=4, seed=0, start=0, **share):
    made = Stream(Again(numbered(rows)), "train_dataset", LIMITS, block)
    return made.planned(Share(batch, seed, **share), lambda: start)


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


LENGTHS = Schedule("steps", (0.0, 0.4, 0.7), (6, 8, 14))


def long(rows):
    """Sequences of 14 tokens, 12 of them words that tell the sequence and where in it they stand."""
    return [{"input_ids": [cases.CLS, *range(5 + 12 * row, 17 + 12 * row), cases.SEP]} for row in range(rows)]


def cut_stream(rows=9, block=4, batch=2, start=0, texts=None, **share):
    limits = Limits(5 + 12 * rows, 32, Frame((cases.CLS,), (cases.SEP,)), frozenset({cases.CLS, cases.SEP}))
    given = {"lengths": LENGTHS, "steps": 20} | share
    made = Stream(Again(texts or long(rows)), "train_dataset", limits, block)
    return made.planned(Share(batch, 0, **given), lambda: start)


def short(rows):
    """Those of `long` cut to 1 to 12 words."""
    return [{"input_ids": [*item["input_ids"][: 2 + i % 12], cases.SEP]} for i, item in enumerate(long(rows))]


@pytest.mark.parametrize("tokens", [None, 480])
def test_pieces_follow_the_schedule(tokens):
    """A step of 2 sequences of 14 tokens sees 4 pieces of 6, 2 of 8, 2 of 14; 480 tokens are 8 * 24 + 9 * 16 + ..."""
    steps = list(islice(cut_stream(tokens=tokens, shown=1), 22))
    shapes = [tuple(step["ids"].shape) for step in steps]
    firsts = (0, 8, 14) if tokens is None else (0, 8, 17)  # 192 of 480 are 0.4; 192 + 9 * 16 = 336 are 0.7
    assert shapes == [(4, 6)] * firsts[1] + [(2, 8)] * (firsts[2] - firsts[1]) + [(2, 14)] * (22 - firsts[2])
    twice = list(islice(cut_stream(tokens=tokens and 2 * tokens, shown=2), 22))
    assert [tuple(step["ids"].shape) for step in twice] == shapes
    for step in steps:
        assert len(set(step["row"].tolist())) == len(step["row"])  # pieces have masks of their own
        assert (step["ids"][:, 0] == cases.CLS).all()
        assert (step["ids"][:, -1] == cases.SEP).all()
        for ids, number in zip(step["ids"], step["row"], strict=True):
            row, start = int(number) % PIECE, int(number) // PIECE
            assert ids[1:-1].tolist() == list(range(5 + 12 * row + start, 5 + 12 * row + start + len(ids) - 2))


@pytest.mark.parametrize("length", [3, 6, 8, 14, 32])
@pytest.mark.parametrize("texts", [long(12), short(12)], ids=["long", "short"])
def test_each_epoch_holds_every_piece_once_block_by_block(length, texts):
    """A tail of less than half a piece is left out, unless it is all there is of a text."""
    shown = [
        (int(epoch), int(number), [token for token in ids.tolist() if token >= 5])
        for step in islice(cut_stream(rows=12, texts=texts, lengths=Schedule.of(length)), 150)
        for number, epoch, ids in zip(step["row"], step["epoch"], step["ids"], strict=True)
    ]
    room = length - 2
    for epoch in range(2):
        for block in range(3):
            expected = []
            for row in range(4 * block, 4 * block + 4):
                words = texts[row]["input_ids"][1:-1]
                least = min(len(words), max(1, -(-length // 2) - 2))
                pieces = ((start, words[start : start + room]) for start in range(0, len(words), room))
                expected += [(epoch, row + PIECE * start, some) for start, some in pieces if len(some) >= least]
            part, shown = shown[: len(expected)], shown[len(expected) :]
            assert sorted(part) == sorted(expected)


@pytest.mark.parametrize(("accumulation", "world"), [(2, 1), (1, 2)])
@pytest.mark.parametrize("start", [0, 7, 8, 15])
@pytest.mark.parametrize("tokens", [None, 480])
def test_ranks_share_out_pieces_from_any_step_on(accumulation, world, start, tokens):
    given = {"tokens": tokens, "texts": short(9)}
    alone = list(islice(cut_stream(**given), 22))
    given |= {"accumulation": accumulation, "world": world, "start": start}
    ranks = [iter(cut_stream(rank=rank, **given)) for rank in range(world)]
    for step in range(start, 22):
        parts = [next(rank) for _ in range(accumulation) for rank in ranks]
        for name in ("row", "epoch", "step"):
            assert list(chain.from_iterable(part[name].tolist() for part in parts)) == alone[step][name].tolist()


def test_pieces_that_cannot_be():
    with pytest.raises(GradvarError, match="max_length 2 leaves no room beside 2 special tokens"):
        cut_stream(lengths=Schedule("steps", (0.0, 0.9), (6, 2)))
    bare = Again([{"input_ids": [cases.CLS, cases.SEP]}] * 3)
    limits = Limits(60, 32, Frame((cases.CLS,), (cases.SEP,)), frozenset({cases.CLS, cases.SEP}))
    share = Share(1, 0, lengths=Schedule.of(4))
    with pytest.raises(GradvarError, match="train_dataset holds only special tokens, of which none can be masked"):
        next(iter(Stream(bare, "train_dataset", limits, 2).planned(share, int)))


def test_one_block_is_in_memory():
    """Of sequences of 512 tokens in 5 blocks of 400; a second one would make it 2 and more."""
    block = 400 * 512 * 8
    texts = Again([{"input_ids": np.full(512, 5)} for _ in range(2000)])
    made = Stream(texts, "train_dataset", Limits(60, 512), 400).planned(Share(8, 0), int)
    tracemalloc.start()
    try:
        assert sum(len(step["row"]) for step in islice(made, 250)) == 2000
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert block < most < 1.8 * block


def test_a_loading_process_begins_where_the_run_is():
    """Where processes are spawned (macOS, Windows, Python 3.14) a stream is pickled; where the run is, is not."""
    at = 0
    made = Stream(Again(numbered(23)), "train_dataset", LIMITS, 7).planned(Share(4, 0), lambda: at)
    at = 5
    there = pickle.loads(pickle.dumps(made))
    at = 6
    assert next(iter(there))["step"].tolist() == [5] * 4
    assert next(iter(made))["step"].tolist() == [6] * 4


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
        next(iter(Stream(Once(numbered(3)), "train_dataset", LIMITS).planned(Share(2, 0), int)))


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
        (Masking(), {"max_length": Schedule("linear", (0.0, 1.0), (6, 12))}, "max_length goes by steps, like {steps"),
        (Masking(), {"max_length": Schedule("steps", (0.0, 0.5), (6, 12)), "seconds": 9.0}, "not in seconds"),
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


SCHEDULES = ["training.max_length={steps: {0: 4, 0.4: 6, 0.8: 12}}", "masking.mask_rate={linear: {0: 0.5, 1: 0.2}}"]


@pytest.mark.parametrize("budget", [pytest.param("--steps 14", marks=pytest.mark.full), "--tokens 1400"])
def test_the_length_of_a_stream_is_scheduled_and_goes_on(place, tmp_path, budget):
    """From a checkpoint in the second phase, with workers or without: the same sequences, and the same parameters."""
    whole, workers = tmp_path / "whole", tmp_path / "workers"
    more = [*budget.split(), *SCHEDULES]
    assert runs.command(runs.words(place, whole, *more)) == 0
    assert runs.command(runs.words(place, workers, *more, "training.workers=2")) == 0
    end = runs.metrics(whole)[-1]
    assert end["step"] == 14 if "--steps" in budget else 1400 <= end["tokens"] < 1400 + 96
    differ = runs.differences(runs.everything(whole), runs.everything(workers))
    assert differ == ["/gradvar_state.json/recipe/training/workers: 0 2"]
    shutil.copytree(whole, tmp_path / "run")
    for checkpoint in checkpoints.whole(tmp_path / "run"):
        if checkpoints.step_of(checkpoint) > 8:
            shutil.rmtree(checkpoint)
    assert runs.command(runs.resuming(place, tmp_path / "run")) == 0
    assert runs.differences(runs.everything(tmp_path / "run"), runs.everything(whole)) == []


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
        (["data.train={place}/text.parquet.gz"], "compressed as a whole cannot be streamed; unpack it"),
        (["data.train={place}/short.txt"], "short.txt yields no sequence: no document reaches half of 12 tokens"),
        (["masking.proposal=uniform/disjoint:2"], "masking.proposal uniform/disjoint:2 takes a pass over all text"),
        (
            ["masking.proposal=frequency^0.5/pps"],
            "masking.proposal frequency^0.5/pps takes a pass over all text beforehand",
        ),
        (["masking.proposal=uniform/simple", "masking.weighting=token"], "masking.weighting 'token' takes a pass over"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(place, tmp_path, capsys, given, words):
    (place / "short.txt").write_text("w1\n")
    (place / "text.parquet.gz").touch()
    assert runs.command(runs.words(place, tmp_path / "run", *(x.format(place=place) for x in given))) == 2
    said = capsys.readouterr().err
    assert words in said.splitlines()[-1]
    assert not (tmp_path / "run").exists()


def test_the_held_out_text_of_a_stream_may_be_any_file(place, done, tmp_path):
    """It is not streamed itself."""
    text = (place / "valid.txt").read_text()
    pandas.DataFrame({"text": text.split("\n\n")}).to_parquet(tmp_path / "valid.parquet")
    packed = tmp_path / "valid.parquet.gz"
    packed.write_bytes(gzip.compress((tmp_path / "valid.parquet").read_bytes()))
    assert runs.command(runs.words(place, tmp_path / "run", f"data.valid={packed}")) == 0
    assert runs.metrics(tmp_path / "run")[-1]["eval_loss"] == runs.metrics(done)[-1]["eval_loss"]


def test_a_dry_run_refuses_what_the_run_would(place, capsys):
    assert runs.command(["train", str(place / "recipe.yaml"), "--dry-run", "masking.proposal=uniform/disjoint:2"]) == 2
    assert "masking.proposal uniform/disjoint:2 takes a pass over all text beforehand" in capsys.readouterr().err


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
    (place / "train.txt").rename(place / "away.txt")
    try:
        assert runs.command(runs.resuming(place, tmp_path / "run")) == 2
    finally:
        (place / "away.txt").rename(place / "train.txt")
    assert f"no data at '{place / 'train.txt'}': no such file" in capsys.readouterr().err


GROWTH = """
import sys
from pathlib import Path
import torch
from gradvar.persample.memory import Rise
from gradvar.training.sequences import Limits
from gradvar.training.streaming import Share, Stream
from gradvar.training.data import StreamedText
from gradvar.huggingface.checkpoint import tokenizer_of

def go_through(path):
    text = StreamedText(path, tokenizer, 128, True)
    return sum(len(step["row"]) for step in epoch_of(Stream(text, "train_dataset", Limits(60, 128), 500)))

def epoch_of(stream):
    for step in stream.planned(Share(8, 0), int):
        if int(step["epoch"][0]) > 0:
            return
        yield step

tokenizer = tokenizer_of(Path(sys.argv[1]))
go_through(sys.argv[2])  # what the libraries take
for path in sys.argv[3:]:
    with Rise(torch.device("cpu")) as rise:
        rows = go_through(path)
    print(rows, rise.bytes)
"""


@pytest.mark.full
def test_texts_larger_than_the_memory_that_they_take(tmp_path):
    """Of a document of 4 MB, less than 4 MB more are in use at any time.

    Of one line of 1 MB 20 MB at the most, whatever its length, and the line itself; not 170 bytes for each character.
    """
    cases.save_checkpoint(tmp_path / "model")
    line = " ".join(f"w{i}" for i in range(10, 55))  # 179 bytes, 45 tokens
    for name, size, between in (("small", 300_000, "\n"), ("lines", 4_000_000, "\n"), ("line", 1_000_000, " ")):
        (tmp_path / f"{name}.txt").write_text(between.join([line] * (size // 180)))
    names = ("model", "small.txt", "lines.txt", "line.txt")
    words = [sys.executable, "-c", GROWTH, *(str(tmp_path / name) for name in names)]
    said = subprocess.run(words, check=True, capture_output=True, text=True).stdout.splitlines()
    (rows, many), (in_one, single) = (map(int, each.split()) for each in said)
    assert (rows, in_one) == (7936, 1984)  # all of it: 126 tokens a row, of 22,222 and 5,555 lines
    assert many < 4_000_000
    assert single < 20_000_000


def test_a_parquet_file_is_read_little_by_little(tmp_path):
    """20 MB in one row group: Arrow itself counts less than 5 MB at any time."""
    path, text = tmp_path / "text.parquet", " ".join(f"w{i}" for i in range(10, 55)) * 4
    rows = pandas.DataFrame({"text": [f"{i} {text}" for i in range(20_000_000 // len(text))]})
    rows.to_parquet(path, row_group_size=len(rows), compression=None, use_dictionary=False)
    assert path.stat().st_size > 20_000_000
    before, pool = pyarrow.default_memory_pool(), pyarrow.system_memory_pool()  # whose mark nobody else sets
    pyarrow.set_memory_pool(pool)
    try:
        assert sum(1 for _ in stream_rows(path)) == len(rows)
    finally:
        pyarrow.set_memory_pool(before)
    assert 0 < pool.max_memory() < 5_000_000
