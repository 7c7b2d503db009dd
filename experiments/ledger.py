"""Results that grow by finished units of work: `NAME.csv` has the numbers, `NAME.provenance.csv` where they come from.

A unit is what is done at one go, such as a training run. It is named by a few columns (its key), which both files
share. Units that are done are never done again, so an experiment that was killed goes on with the next one.
"""

from __future__ import annotations

import csv
import fcntl
import io
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from gradvar.provenance import versions

FACTS = ("data", "checkpoint", "seconds", "device", "command", "commit", "versions")
"""Columns of the provenance beside a unit's key: files of text and hash of the weights that were measured, seconds of
work (of the last attempt, where it went on with what another had left), the processor that did it (``cpu``, or the name
of a GPU), command, commit of this repository (``+`` where files differ from it), versions of the libraries."""


@dataclass(frozen=True)
class Found:
    """What a unit of work found.

    Attributes:
        rows: Numbers, a dict a row; the unit's key is added.
        data: Name of the text.
        checkpoint: What weights it is about: the first digits of their SHA-256, or how they were made.
    """

    rows: Sequence[Mapping[str, Any]]
    data: str = ""
    checkpoint: str = ""


@dataclass(frozen=True)
class Unit:
    """A piece of work.

    Attributes:
        key: What names it, by column.
        work: A function at the top level of a module, so that another process finds it.
        arguments: Of that function.
    """

    key: Mapping[str, Any]
    work: Callable[..., Found]
    arguments: tuple[Any, ...] = field(default=(), repr=False)


class Ledger:
    """The two files of an experiment.

    Args:
        path: Of the numbers, ``figures/NAME.csv``.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.provenance = path.with_suffix(".provenance.csv")

    def rows(self) -> list[dict[str, str]]:
        """Return the numbers, as text."""
        return _read(self.path)

    def done(self, key: Mapping[str, Any]) -> bool:
        """Whether a unit is done."""
        wanted = {name: _text(value) for name, value in key.items()}
        return any(all(row.get(name) == value for name, value in wanted.items()) for row in _read(self.provenance))

    def add(self, key: Mapping[str, Any], found: Found, seconds: float, device: str = "cpu") -> None:
        """Write down a finished unit: its numbers first, so that what the provenance names is always there."""
        facts = {
            "data": found.data,
            "checkpoint": found.checkpoint,
            "seconds": f"{seconds:.0f}",
            "device": device,
            "command": command(),
            "commit": commit(),
            "versions": ", ".join(f"{name} {value}" for name, value in versions().items()),
        }
        named = {name: _text(value) for name, value in key.items()}
        with _alone(self.path):
            kept = [row for row in self.rows() if any(row.get(name) != value for name, value in named.items())]
            _write(self.path, [*kept, *({**key, **row} for row in found.rows)])
            others = [row for row in _read(self.provenance) if _unit(row) != {x: y for x, y in named.items() if y}]
            _write(self.provenance, [*others, {**key, **facts}])

    def take(self, other: Ledger) -> int:
        """Take over what another ledger of the same experiment has done and this one has not; return how many units.

        A row is that of the unit that it agrees with in all columns that the unit fills, and in the most of them.
        """
        theirs = _read(other.provenance)
        keys = [_unit(unit) for unit in theirs]
        rows: list[list[dict[str, str]]] = [[] for _ in keys]
        for row in other.rows():
            own = [number for number, key in enumerate(keys) if key.items() <= row.items()]
            if own:  # not what was being written when the other was killed
                rows[max(own, key=lambda number: len(keys[number]))].append(row)
        with _alone(self.path):
            known = [_unit(unit) for unit in _read(self.provenance)]
            new = [number for number, key in enumerate(keys) if rows[number] and key not in known]
            if new:
                kept = [row for row in self.rows() if not any(keys[number].items() <= row.items() for number in new)]
                _write(self.path, [*kept, *(row for number in new for row in rows[number])])
                _write(self.provenance, [*_read(self.provenance), *(theirs[number] for number in new)])
        return len(new)


def run(ledger: Ledger, units: Iterable[Unit], jobs: int = 1) -> None:
    """Do what is not done yet, several units side by side, each in a process of one thread.

    Args:
        ledger: Where finished units are written down, one by one.
        units: In the order in which they are begun.
        jobs: Processes; 0 works in this one, which is sooner where units are small.

    Raises:
        SystemExit: If units failed; the others are done first.
    """
    commit()  # that which the work begins with, whatever is committed meanwhile
    units = list(units)
    left = [unit for unit in units if not ledger.done(unit.key)]
    print(f"{ledger.path.name}: {len(units) - len(left)} of {len(units)} units are done", flush=True)
    failed = []
    for number, (unit, done) in enumerate(_side_by_side(left, jobs) if jobs else map(_attempt, left), 1):
        name = ", ".join(f"{key} {value}" for key, value in unit.key.items())
        if isinstance(done, Exception):
            failed.append(f"{name}: {done}")
            print(f"failed: {failed[-1]}", file=sys.stderr, flush=True)
            continue
        ledger.add(unit.key, *done)
        print(f"{number} of {len(left)}: {name}, {done[1]:.0f} s", flush=True)
    if failed:
        raise SystemExit(f"{len(failed)} of {len(left)} units failed; the first: {failed[0]}")


_Done = tuple[Found, float, str] | Exception


def _side_by_side(units: Sequence[Unit], jobs: int) -> Iterator[tuple[Unit, _Done]]:
    os.environ["OMP_NUM_THREADS"] = "1"
    signal.signal(signal.SIGTERM, _stop)
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        running = {pool.submit(_in_process, unit): unit for unit in units}
        try:
            for future in as_completed(running):
                error = future.exception()  # such as that of a worker that was killed
                yield (running[future], error) if isinstance(error, Exception) else future.result()
        except BaseException:  # interrupted: nothing more is begun, and a training run saves a checkpoint
            for future in running:
                future.cancel()
            for child in multiprocessing.active_children():
                child.terminate()
            raise


def _stop(number: int, _: object) -> None:
    raise SystemExit(128 + number)


def _in_process(unit: Unit) -> tuple[Unit, _Done]:
    try:
        return _attempt(unit)
    except SystemExit:  # interrupted; the pool would have this process begin with the next unit
        os._exit(1)


def _attempt(unit: Unit) -> tuple[Unit, _Done]:
    import torch

    torch.set_num_threads(1)
    begun = time.perf_counter()
    try:
        found = unit.work(*unit.arguments)
    except Exception as error:  # of one unit; the others go on
        return unit, error
    seconds = time.perf_counter() - begun
    return unit, (found, seconds, torch.cuda.get_device_name() if torch.cuda.is_initialized() else "cpu")


def command() -> str:
    """Return the command line that runs, with files by their names alone."""
    parts = [word.rpartition("=") if word.startswith("--") else ("", "", word) for word in sys.argv[1:]]
    words = [f"{flag}{mark}{Path(value).name if os.sep in value else value}" for flag, mark, value in parts]
    return " ".join(["python", f"experiments/{Path(sys.argv[0]).name}", *words])


@cache
def commit() -> str:
    """Return the commit of this repository, with ``+`` where its code differs from it; empty outside of one."""
    here = Path(__file__).parent

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + "+" * bool(
            git("status", "--porcelain", "--", "..", ":!../figures")
        )
    except (OSError, subprocess.CalledProcessError):
        return ""


def _unit(facts: Mapping[str, str]) -> dict[str, str]:
    """Return the key of a unit from its row of provenance, as far as it is filled."""
    return {name: value for name, value in facts.items() if name not in FACTS and value}


def _text(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.8g}" if isinstance(value, float) else str(value)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Keep other processes from writing the same files: each reads them, adds to them and writes them anew."""
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _read(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write whole, or not at all."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _text(value) for name, value in row.items()} for row in rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text.getvalue(), encoding="utf-8")
    os.replace(temporary, path)
