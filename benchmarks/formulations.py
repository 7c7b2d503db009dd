"""Formulations of one Linear layer's moments: what each should cost, what it costs, how exact it is.

Predictions are FLOPs over a measured rate plus bytes over a measured bandwidth. One thread, time of the processor,
formulations in turn; medians. NOTES.md says what came of it.

    python benchmarks/formulations.py                 # the layers of BERT mini, small and base
    python benchmarks/formulations.py --crossover     # direct or norms by Gram over (positions, inputs, outputs)
    python benchmarks/formulations.py --precision     # errors where tokens share a mean
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from linear import BLOCK, FORMULATIONS, Sentence, centred, sentence


def cost(name: str, cells: int, positions: int, inputs: int, outputs: int) -> tuple[float, float]:
    """Count a formulation's FLOPs (of float64, twice) and the bytes that it reads and writes beside its products."""
    tokens, size = cells * positions, inputs * outputs
    one_product = 2.0 * tokens * size
    add = 4.0 * 6 * size  # mean - sums, its norm, the sum
    if name == "autograd":
        return one_product, 4.0 * 3 * size
    if name == "products":
        return one_product, 0.0
    if name.startswith("direct"):
        return one_product, 4.0 * (2 * cells + 2) * size + add  # norm, mean (read, write), its norm
    if name == "centred":
        return one_product, 4.0 * 5 * cells * size + add  # norm, mean, centring (twice), norm
    if name == "norms by gram":
        wide = 2.0 * (2.0 * tokens * positions * (inputs + outputs))
        return one_product + wide, 4.0 * 3 * tokens * outputs + 4.0 * 2 * size + add
    if name == "one read":
        return one_product + 2.0 * (cells + 1) ** 2 * size, 4.0 * 6 * cells * size + add
    if name.startswith("gram"):
        wide = 2.0 if "64" in name else 1.0
        return one_product + wide * tokens * (tokens + positions) * (inputs + outputs), add
    rank = min(tokens, inputs)
    rotation = 4.0 * rank**2 * max(tokens, inputs)
    return 2.0 * tokens * outputs * rank + one_product + rotation, 4.0 * 5 * cells * rank * outputs + add


def rates() -> tuple[float, float]:
    """Measure FLOPs a second of a product that fits the caches, and bytes a second of passes over a block."""
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    block = torch.randn(8, BLOCK // 8)
    product = timed({"product": lambda: a @ b, "norm": lambda: torch.linalg.vector_norm(block, dim=-1)}, 15)
    return 2 * 1024**3 / product["product"], 4 * BLOCK / product["norm"]


def timed(steps: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of the processor, the steps taking turns."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for round_ in range(rounds + 1):
        for name, step in steps.items():
            start = time.process_time()
            step()
            if round_:
                times[name].append(time.process_time() - start)
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def compare(names: list[str], sizes: tuple[int, int, int, int], rounds: int) -> dict[str, float]:
    """Time some formulations of one layer."""
    s = sentence(*sizes)
    steps = {name: (lambda make=FORMULATIONS[name]: make(s)) for name in names}
    return timed(steps, rounds)


LAYERS = {
    "mini, decoder": (8, 19, 256, 30_522),
    "mini, 256 → 1024": (8, 128, 256, 1024),
    "mini, 256 → 256": (8, 128, 256, 256),
    "small, decoder": (8, 19, 512, 30_522),
    "small, 2048 → 512": (8, 128, 2048, 512),
    "base, decoder": (4, 19, 768, 30_522),
    "base, 768 → 3072": (4, 128, 768, 3072),
}


def layers(rounds: int) -> None:
    """Print every formulation of some layers: predicted and measured, over the ordinary product's time."""
    flops, bandwidth = rates()
    print(f"products {flops / 1e9:.0f} GFLOP/s, passes over a block {bandwidth / 1e9:.0f} GB/s\n")
    print("| layer | formulation | GFLOP | MB | predicted ms | measured ms | over autograd |")
    print("|---" * 7 + "|")
    for layer, sizes in LAYERS.items():
        found = compare(list(FORMULATIONS), sizes, rounds)
        for name, seconds in found.items():
            count, moved = cost(name, *sizes)
            predicted = 1e3 * (count / flops + moved / bandwidth)
            columns = f"{count / 1e9:.2f} | {moved / 1e6:.0f} | {predicted:.1f} | {1e3 * seconds:.1f}"
            print(f"| {layer} | {name} | {columns} | {seconds / found['autograd']:.2f} |", flush=True)


def crossover(rounds: int) -> None:
    """Print where norms by Gram beat direct products, and where the counts say it should."""
    flops, bandwidth = rates()
    names = ["direct", "norms by gram"]
    print(
        "| positions | inputs | outputs | T(in+out)/(in·out) | "
        + " | ".join(f"{n} ms" for n in names)
        + " | best | predicted |"
    )
    print("|---" * (6 + len(names)) + "|")
    for inputs, outputs in (
        (256, 1024),
        (768, 768),
        (768, 3072),
        (128, 30_522),
        (256, 30_522),
        (512, 30_522),
        (768, 30_522),
    ):
        for positions in (5, 10, 19, 38, 77):
            sizes = (8, positions, inputs, outputs)
            found = compare(names, sizes, rounds)
            predicted = {n: cost(n, *sizes)[0] / flops + cost(n, *sizes)[1] / bandwidth for n in names}
            print(
                f"| {positions} | {inputs} | {outputs} | {positions * (inputs + outputs) / (inputs * outputs):.3f} | "
                + " | ".join(f"{1e3 * found[n]:.1f}" for n in names)
                + f" | {min(found, key=found.get)} | {min(predicted, key=predicted.get)} |",
                flush=True,
            )


def precision() -> None:
    """Print relative errors of the norms and of the squares within, in float32 against float64."""
    print("| what tokens share | formulation | cells' norms | within |\n|---|---|---|---|")
    for shared in (0.0, 10.0, 1000.0):
        s = sentence(8, 19, 256, 4096, shared)
        exact = centred(Sentence(s.x.double(), s.dy.double(), s.sums.double()))
        for name in ("direct", "centred", "norms by gram", "one read", "gram, float64", "gram, float32", "LQ"):
            found = FORMULATIONS[name](s)
            assert found is not None
            errors = [float((f / e - 1).abs().max()) for f, e in zip(found[:2], exact[:2], strict=True)]
            print(f"| {shared:g} × | {name} | {errors[0]:.0e} | {errors[1]:.0e} |")


def main() -> None:
    """Print one of the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--crossover", action="store_true")
    parser.add_argument("--precision", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.precision:
        precision()
    elif args.crossover:
        crossover(args.rounds)
    else:
        layers(args.rounds)


if __name__ == "__main__":
    main()
