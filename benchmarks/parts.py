"""Where a step of `onepass` goes: the reduction of every kind of parameter, and everything else.

    python benchmarks/parts.py --case mini:4x8x128 --threads 1

prints milliseconds a sentence, medians over rounds in which the ordinary step, a sentence at a time, takes turns
with `onepass` in the same process. *else* is the model's own forward and backward without its weight
gradients, and the hooks.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict
from typing import Any

import torch
from contenders import CONTENDERS
from engine import parse_case
from study import Case, Study

from gradvar.decomposition.accumulator import MomentAccumulator
from gradvar.persample import onepass
from gradvar.persample.onepass import OnePass


def timed(function: Any, into: dict[str, float], name: Any) -> Any:
    """Wrap a function so that its seconds add up; `name` may depend on its arguments."""

    def wrapped(*args: Any) -> Any:
        start = time.perf_counter()
        result = function(*args)
        into[name(*args) if callable(name) else name] += time.perf_counter() - start
        return result

    return wrapped


def kind(_: OnePass, calls: list[Any], accumulator: MomentAccumulator, __: int) -> str:
    """Name what is reduced: its rule and shape."""
    rows, columns = accumulator.tables.sums.shape
    return f"{calls[0][0].__name__} {rows} × {columns}"


def main() -> None:
    """Print the parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", default="mini:4x8x128", help="model:SENTENCESxMASKSxLENGTH")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    study = Study(Case(*parse_case(args.case)))
    seconds: dict[str, float] = defaultdict(float)
    OnePass._reduce = timed(OnePass._reduce, seconds, kind)  # type: ignore[method-assign]
    onepass.add_small = timed(onepass.add_small, seconds, "small parameters, added together")
    steps = {name: CONTENDERS[name][1](study) for name in ("onepass", "ordinary-1")}
    rounds: dict[str, list[float]] = defaultdict(list)
    for round_ in range(args.rounds + 1):
        for name, step in steps.items():
            seconds.clear()
            start = time.perf_counter()
            step()
            whole = time.perf_counter() - start
            if round_ == 0:
                continue
            rounds[name].append(whole)
            if name == "onepass":
                rounds["else"].append(whole - sum(seconds.values()))
                for part, taken in seconds.items():
                    rounds[part].append(taken)
    ratio = statistics.median(a / b for a, b in zip(rounds["onepass"], rounds["ordinary-1"], strict=True))
    print(f"onepass over ordinary-1: {ratio:.2f}\n\n| part | ms a sentence |\n|---|---|")
    for part, times in sorted(rounds.items(), key=lambda item: -statistics.median(item[1])):
        print(f"| {part} | {1e3 * statistics.median(times) / study.case.sentences:.1f} |")


if __name__ == "__main__":
    main()
