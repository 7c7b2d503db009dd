"""The ledger of the experiments: what is done stays done, and numbers are never doubled or half there."""

import signal
import subprocess
import sys
from pathlib import Path

import ledger
import pytest

EXPERIMENTS = str(Path(__file__).parents[2] / "experiments")


@pytest.fixture
def book(tmp_path):
    return ledger.Ledger(tmp_path / "numbers.csv")


def found(*values):
    return ledger.Found([{"value": value} for value in values], "text.txt", "0123")


def work(log, name):
    with log.open("a") as file:
        file.write(name)
    return found(name)


def failing(kind):
    raise kind("out of luck")


def interrupted():
    """End like a training run that has caught the signal to save a checkpoint."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise SystemExit


def values(book):
    return [row["value"] for row in book.rows()]


def units(log, names):
    return [ledger.Unit({"name": name}, work, (log, name)) for name in names]


def test_a_unit_that_is_done_is_not_done_again(book, tmp_path, capsys):
    log = tmp_path / "log"
    ledger.run(book, units(log, "ab"), jobs=0)
    ledger.run(book, units(log, "abc"), jobs=0)
    assert sorted(log.read_text()) == sorted(values(book)) == ["a", "b", "c"]
    assert "2 of 3 units are done" in capsys.readouterr().out


def test_the_others_are_done_where_units_fail_and_those_alone_are_left(book, tmp_path, capsys):
    log = tmp_path / "log"
    bad = [ledger.Unit({"name": kind.__name__}, failing, (kind,)) for kind in (ValueError, OSError)]
    with pytest.raises(SystemExit, match=r"2 of 3 units failed; the first: name .*: out of luck"):
        ledger.run(book, [*bad, *units(log, "a")], jobs=0)
    assert values(book) == ["a"]
    assert not book.done(bad[0].key)
    ledger.run(book, units(log, ["ValueError", "a"]), jobs=0)
    assert log.read_text() == "aValueError"


def test_units_are_done_in_processes_of_their_own(book, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.syspath_prepend(EXPERIMENTS)
    bad = ledger.Unit({"name": "bad"}, failing, (ValueError,))
    usual = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit, match="1 of 2 units failed; the first: name bad: out of luck"):
            ledger.run(book, [bad, *units(tmp_path / "log", "a")])
    finally:
        signal.signal(signal.SIGTERM, usual)
    assert values(book) == ["a"]
    assert float(ledger._read(book.provenance)[0]["seconds"]) >= 0


def test_a_process_that_is_interrupted_begins_with_no_other_unit(book, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(EXPERIMENTS)
    usual = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit):
            ledger.run(book, [ledger.Unit({"name": "bad"}, interrupted), *units(tmp_path / "log", "abc")])
    finally:
        signal.signal(signal.SIGTERM, usual)
    assert not (tmp_path / "log").exists()


KEY = {"arm": 'mapnet, "weighted" sets', "rate": 1e-3, "size": 0.5, "seed": 1, "none": None}


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({}, True),
        ({"rate": 0.001}, True),
        ({"rate": 0.1 / 100}, True),  # but for rounding
        ({"rate": 2e-3}, False),
        ({"seed": 11}, False),
        ({"size": 1}, False),
        ({"arm": "mapnet"}, False),
        ({"none": "x"}, False),
    ],
)
def test_a_unit_is_known_by_its_key(book, change, same):
    book.add(KEY, found(0.25), 1.0)
    assert book.done({**KEY, **change}) == same
    book.add({**KEY, **change}, found(0.5), 1.0)
    assert values(book) == (["0.5"] if same else ["0.25", "0.5"])


def test_a_key_reads_as_it_was_written(book):
    book.add(KEY, found(1 / 3), 1.0)
    row = {"arm": KEY["arm"], "rate": "0.001", "size": "0.5", "seed": "1", "none": "", "value": "0.33333333"}
    assert book.rows() == [row]


def test_rows_of_a_unit_that_was_cut_off_between_the_files_are_replaced(book, monkeypatch):
    book.add({"seed": 0}, found(1, 2), 1.0)
    write = ledger._write

    def cut_off(path, rows):
        if path == book.provenance:
            raise KeyboardInterrupt
        write(path, rows)

    with monkeypatch.context() as patch:
        patch.setattr(ledger, "_write", cut_off)
        with pytest.raises(KeyboardInterrupt):
            book.add({"seed": 1}, found(3, 4), 1.0)
    assert values(book) == ["1", "2", "3", "4"]
    assert not book.done({"seed": 1})
    book.add({"seed": 1}, found(5), 1.0)
    assert values(book) == ["1", "2", "5"]
    assert book.done({"seed": 1})


def test_a_write_that_is_cut_off_leaves_what_was_there(book, monkeypatch):
    book.add({"seed": 0}, found(1), 1.0)
    before = book.path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(ledger.os, "replace", lambda *_: failing(OSError))
        with pytest.raises(OSError, match="out of luck"):
            book.add({"seed": 1}, found(2), 1.0)
    assert book.path.read_bytes() == before
    book.add({"seed": 1}, found(2), 1.0)  # over what was left of the other
    assert values(book) == ["1", "2"]
    assert {path.name for path in book.path.parent.iterdir()} == {"numbers.csv", "numbers.provenance.csv"}


def test_units_with_other_columns_go_together(book):
    book.add({"seed": 0}, ledger.Found([{"a": 1}]), 1.0)
    book.add({"seed": 1}, ledger.Found([{"b": None}, {"b": True}]), 1.0)
    assert [(row["a"], row["b"]) for row in book.rows()] == [("1", ""), ("", ""), ("", "True")]


def test_the_provenance_names_files_without_their_places(book, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/home/me/experiments/race.py", "--train", "/data/text.txt", "--jobs=2"])
    book.add({"seed": 0}, found(1), 12.4)
    row = ledger._read(book.provenance)[0]
    assert row["command"] == "python experiments/race.py --train text.txt --jobs=2"
    assert (row["seed"], row["data"], row["checkpoint"], row["seconds"]) == ("0", "text.txt", "0123", "12")
    assert row["versions"].startswith("python ")
    monkeypatch.setattr(sys, "argv", ["race.py", "--train=/data/texts/", "--draw"])
    assert ledger.command() == "python experiments/race.py --train=texts --draw"


def test_a_unit_that_was_done_twice_is_there_once(book):
    for value, key in ((1, {"seed": 0}), (2, {"seed": 0, "arm": "x"}), (3, {"seed": 0})):
        book.add(key, ledger.Found([{"a": value}]), float(value))
    assert sorted(row["seconds"] for row in ledger._read(book.provenance)) == ["2", "3"]


def test_what_another_machine_has_done_is_taken_over_once(book, tmp_path):
    other = ledger.Ledger(tmp_path / "elsewhere" / "numbers.csv")
    for one, name, value, device in ((book, "a", 1, "cpu"), (other, "a", 2, "H100"), (other, "b", 3, "H100")):
        one.add({"name": name}, found(value), 1.0, device)
    assert [book.take(other), book.take(other)] == [1, 0]
    assert [(row["name"], row["value"]) for row in book.rows()] == [("a", "1"), ("b", "3")]
    assert [(row["name"], row["device"]) for row in ledger._read(book.provenance)] == [("a", "cpu"), ("b", "H100")]
    assert ledger.Ledger(tmp_path / "new" / "numbers.csv").take(other) == 2


def test_what_is_half_written_is_taken_over_once_or_not_at_all(book, tmp_path):
    other = ledger.Ledger(tmp_path / "elsewhere" / "numbers.csv")
    for one in (book, other):
        one.add({"name": "a"}, found(1), 1.0)
    book.provenance.unlink()  # killed between the two
    assert book.take(other) == 1
    assert values(book) == ["1"]
    other.add({"name": "b"}, found(2), 1.0)
    other.path.unlink()
    assert book.take(other) == 0


def test_a_folder_without_a_ledger_is_refused_in_one_line(tmp_path):
    script = [sys.executable, f"{EXPERIMENTS}/gather.py"]
    done = subprocess.run([*script, str(tmp_path)], capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "holds no NAME.provenance.csv" in done.stderr
    ledger.Ledger(tmp_path / "there" / "numbers.csv").add({"name": "a"}, found(1), 1.0)
    done = subprocess.run([*script, tmp_path / "there", "--figures", tmp_path], capture_output=True, text=True)
    assert done.stdout == "numbers.csv: 1 units taken over\n"
    assert values(ledger.Ledger(tmp_path / "numbers.csv")) == ["1"]


def test_rows_that_say_more_than_their_unit_are_taken_over_with_it(book, tmp_path):
    other = ledger.Ledger(tmp_path / "elsewhere" / "numbers.csv")
    other.add({"part": "measured", "batch": 1}, found(1), 1.0)
    other.add({"part": "predicted"}, ledger.Found([{"batch": 1, "value": 2}, {"batch": "", "value": 3}]), 1.0)
    assert book.take(other) == 2
    assert book.rows() == other.rows()
