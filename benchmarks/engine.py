"""What per-cell gradient statistics cost: engines and peers against the ordinary forward and backward.

Every contender lives in a process of its own (so peak memory is its own, capped) and takes turns with the ordinary
step, so that a noisy machine slows both alike. Quote the ratios: medians over rounds of a contender's time over that
of the ordinary step in the same round. `ordinary` takes all cells in one batch, `ordinary-1` a sentence's cells at a
time, as gradvar does on a CPU. What a study takes once, at its start and end, is told apart. A contender that fails
says why. Norms are compared with plain autograd's, so that a fast wrong answer shows as wrong. Rows are kept case by
case: a run that was stopped goes on.

    python benchmarks/engine.py --rows benchmarks/rows.json --out docs/benchmarks.md      # everything
    python benchmarks/engine.py --cases mini:8x8x128 --contenders ordinary,ordinary-1,onepass --rounds 20
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import os
import platform
import re
import resource
import statistics
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from table import markdown

CASES = (
    "tiny:8x8x128,mini:4x8x128,small:2x8x128,base:1x8x128,modernbert-small:2x8x128,"
    "tiny:2x8x512,mini:1x8x512,small:1x8x512"
)
CONTENDERS = (
    "ordinary,ordinary-1,onepass,loop,reference,hooks,opacus,opacus-ghost,opacus-ghost-untied,"
    "backpack,backpack-linear,backpack-linear-untied"
)
FAST = ("ordinary", "ordinary-1", "onepass")  # these run in every round, the others in a few
PACKAGES = ("torch", "transformers", "numpy", "opacus", "backpack-for-pytorch")
PRELOADED = (
    "transformers.models.bert.modeling_bert",
    "transformers.models.modernbert.modeling_modernbert",
    "opacus",
    "backpack.extensions",
)
CHECKED = 4  # cells whose norms plain autograd repeats
GIB = 2**30


def peak_rss() -> int:
    """Largest resident memory since :func:`forget_peak`, or since the start where the system cannot forget."""
    status = Path("/proc/self/status")
    if status.exists():
        return int(re.search(r"VmHWM:\s+(\d+)", status.read_text())[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def forget_peak() -> int:
    """Give freed memory back, and return the resident memory from which the peak rises."""
    import ctypes

    import psutil

    gc.collect()
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
    reset = Path("/proc/self/clear_refs")
    if reset.exists():
        reset.write_text("5")
    return psutil.Process().memory_info().rss


def first_step(name: str, case: tuple[Any, ...]) -> tuple[Any, dict[str, Any]]:
    """Build a contender and run it once: its memory by component, and the error of its norms."""
    import torch
    from contenders import CONTENDERS as MAKERS
    from study import Case, Study

    from gradvar.persample.memory import Footprint

    tied, make = MAKERS[name]
    study = Study(Case(*case), tied)
    cells = torch.linspace(0, study.case.cells - 1, CHECKED).long()
    # Before a peer's hooks are in the model; what a first call loads is not the step's, either.
    exact = study.exact_norm2(cells.tolist())
    at_once = 1 if name == "loop" else study.case.cells if name == "ordinary" else study.case.masks
    footprint = Footprint({p.untyped_storage().data_ptr() for p in study.model.parameters()})
    with footprint.measure():
        losses = study.losses(study.part(0, at_once))
    del losses
    step = make(study)
    before = forget_peak()
    outcome = step()
    peak = peak_rss()
    facts = {
        "weights_MiB": sum(p.nbytes for p in study.model.parameters()) / 2**20,
        "means_MiB": outcome.means / 2**20,
        "activations_MiB": footprint.total / 2**20 if name != "reference" else None,  # vmap keeps another graph
        "scratch_MiB": outcome.scratch / 2**20,
        "step_MiB": (peak - before) / 2**20,
        "peak_MiB": peak / 2**20,
        "error": None,
        "study_s": study.start_and_end() if name == "onepass" else None,
    }
    if outcome.norm2 is not None:
        norms = sum(exact[id(t.parameter)] for t in study.targets).sqrt()
        facts["error"] = float((outcome.norm2[cells].sqrt() / norms - 1).abs().max())
    return step, facts


def serve(pipe: Connection, threads: int, cap: float, name: str, case: tuple[Any, ...]) -> None:
    """Take turns on command: one step, answered by its seconds, of the clock and of the processors."""
    import warnings

    import torch

    from gradvar.persample.memory import keep_freed_memory

    keep_freed_memory()  # for all alike: else a step takes 80,000 page faults, or few, as its imports go
    warnings.filterwarnings("ignore")
    torch.set_num_threads(threads)
    resource.setrlimit(resource.RLIMIT_DATA, (int(cap * GIB), int(cap * GIB)))
    try:
        step, facts = first_step(name, case)
    except Exception as error:  # a peer may fail in any way; how, is what the table says
        said = " ".join(str(error).split())
        pipe.send({"failed": f"{type(error).__name__}: {said[:300]}"})
        return
    pipe.send(facts)
    while pipe.recv():
        clock, processors = time.perf_counter(), time.process_time()
        step()
        pipe.send((time.perf_counter() - clock, time.process_time() - processors))


class Contender:
    """A contender in a process of its own.

    Attributes:
        facts: What its first step showed; ``failed`` if it cannot run.
    """

    def __init__(self, name: str, case: tuple[Any, ...], args: argparse.Namespace) -> None:
        self.name, self._cap = name, args.cap
        context = multiprocessing.get_context("forkserver")  # spawning would import everything again for each
        context.set_forkserver_preload(["contenders", *PRELOADED])
        self._pipe, end = context.Pipe()
        self._process = context.Process(target=serve, args=(end, args.threads, args.cap, name, case), daemon=True)
        self._process.start()
        end.close()
        self.facts: dict[str, Any] = {}
        self.facts = self._receive() or self.facts

    @property
    def runs(self) -> bool:
        """Whether it can take a turn."""
        return "failed" not in self.facts

    def turn(self) -> tuple[float, float]:
        """Take one step: seconds of the clock, and of the processors."""
        self._pipe.send(True)
        turn = self._receive()
        if turn is None:
            raise RuntimeError(f"{self.name}: {self.facts['failed']}")
        return turn

    def stop(self) -> None:
        """End the process."""
        if self.runs:
            self._pipe.send(False)
        self._process.join()

    def _receive(self) -> Any:
        try:
            return self._pipe.recv()
        except EOFError:
            self.facts["failed"] = f"the process was killed; more than {self._cap:g} GiB, or than the machine has?"


def race(names: list[str], case: tuple[Any, ...], args: argparse.Namespace) -> list[dict[str, Any]]:
    """Let the contenders take turns, after each was looked at by itself.

    The fast ones take turns with each other. The others, which may need much memory, live one after the other, and
    each of their steps follows one of the ordinary step.
    """
    fast = {name: Contender(name, case, args) for name in names if name in FAST}
    times: dict[str, list[tuple[float, ...]]] = {name: [] for name in names}
    for round_ in range(-1, args.rounds):  # the first one warms up what every round is compared with
        if not fast["ordinary"].runs:
            break
        turns = {name: contender.turn() for name, contender in fast.items() if contender.runs}
        for name, turn in turns.items() if round_ >= 0 else ():
            times[name].append((*turn, *turns["ordinary"]))
    facts = {name: contender.facts for name, contender in fast.items()}
    for name in names:
        if name in FAST:
            continue
        contender = Contender(name, case, args)
        for _ in range(args.slow_rounds if contender.runs and fast["ordinary"].runs else 0):
            ordinary = fast["ordinary"].turn()
            try:
                times[name].append((*contender.turn(), *ordinary))
            except RuntimeError:  # it died; its facts say so
                break
        contender.stop()
        facts[name] = contender.facts
    for contender in fast.values():
        contender.stop()
    return [row(name, case, facts[name], times[name]) for name in names]


def row(name: str, case: tuple[Any, ...], facts: dict[str, Any], times: list[tuple[float, ...]]) -> dict[str, Any]:
    """Put together what is known of a contender."""
    model, sentences, masks, length = case
    found = {"model": model, "sentences": sentences, "masks": masks, "length": length, "contender": name, **facts}
    if times and "failed" not in facts:
        clock = [own / ordinary for own, _, ordinary, _ in times]
        found |= {
            "rounds": len(times),
            "median_s": statistics.median(own for own, *_ in times),
            "ratio": statistics.median(clock),
            "ratio_low": min(clock),
            "ratio_high": max(clock),
            "cpu_ratio": statistics.median(own / ordinary for _, own, _, ordinary in times),
        }
    return found


def machine(threads: int) -> dict[str, Any]:
    """Say what the rows were measured on, and with what."""
    import psutil

    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    return {
        "command": " ".join(["python", *sys.argv]),
        "python": platform.python_version(),
        "versions": versions,
        "cores": os.cpu_count(),
        "threads": threads,
        "memory_GiB": round(psutil.virtual_memory().total / GIB, 1),
        "processor": processor(),
    }


def processor() -> str:
    """Name the processor."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", info.read_text()) if info.exists() else None
    return found[1].strip() if found else platform.processor()


def parse_case(text: str) -> tuple[str, int, int, int]:
    """Parse ``model:SENTENCESxMASKSxLENGTH``."""
    model, _, sizes = text.partition(":")
    sentences, masks, length = (int(size) for size in sizes.split("x"))
    return model, sentences, masks, length


def line(row: dict[str, Any]) -> str:
    """Print a row as it comes."""
    head = f"{row['model']:<17} {row['length']:>4} {row['contender']:<23}"
    if "ratio" not in row:
        return f"{head} {row.get('failed', 'no rounds')[:120]}"
    error = "" if row["error"] is None else f"{row['error']:.0e}"
    return (
        f"{head} {row['median_s']:>8.3f} s {row['ratio']:>6.2f} ({row['ratio_low']:.2f}-{row['ratio_high']:.2f}) "
        f"cpu {row['cpu_ratio']:>5.2f}  step {row['step_MiB']:>6.0f} MiB  {error}"
    )


def main() -> None:
    """Race, and write rows and table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default=CASES, help="model:SENTENCESxMASKSxLENGTH, with commas between")
    parser.add_argument("--contenders", default=CONTENDERS)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=7, help="of ordinary, ordinary-1 and onepass")
    parser.add_argument("--slow-rounds", type=int, default=1, help="of all others")
    parser.add_argument("--cap", type=float, default=12, help="GiB that a contender may take")
    parser.add_argument("--rows", type=Path, help="rows as JSON; cases that are in it are not run again")
    parser.add_argument("--out", type=Path, help="write the table to this file, as markdown")
    args = parser.parse_args()
    names = args.contenders.split(",")
    if "ordinary" not in names:
        parser.error("the contenders must include 'ordinary', which the ratios refer to")
    found: dict[str, Any] = {"machine": machine(args.threads), "rows": []}
    if args.rows and args.rows.exists():
        found = json.loads(args.rows.read_text())
    done = {(r["model"], r["sentences"], r["masks"], r["length"]) for r in found["rows"]}
    for case in (parse_case(text) for text in args.cases.split(",")):
        if case in done:
            continue
        for each in race(names, case, args):
            print(line(each), flush=True)
            found["rows"].append(each)
        if args.rows:
            args.rows.write_text(json.dumps(found, indent=1) + "\n")
    if args.out:
        args.out.write_text(markdown(found))


if __name__ == "__main__":
    main()
