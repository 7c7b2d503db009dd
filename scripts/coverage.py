"""How often the 95 % intervals of a study hold the truth: the tables in docs/intervals.md.

Pre-stated. Compared: the nominal 95 % with the part of simulated studies whose interval holds the true value, for the
data and mask variance, the mask share, |mu|^2, the noise scale and the headroom. An interval without an upper end (a
noise scale that is only bounded from below) holds what is above its lower end; "not resolved" without an end is
counted apart. Studies of 64 sentences with 8 masks, 2,000 simulations a row, seed 0; standard error of a coverage
0.5 %. Widths are medians, relative to the truth.

Cells are `mu + s_n (a_n + e_nm)`: a Gaussian sentence effect and a Gaussian mask effect of so many equal directions
(the rank), and a lognormal scale `s_n` of the sentence with `E s^2 = 1`, log standard deviation sigma. The rows
"embedded checkpoint" draw sentences and masks with replacement from real cells: the gradients of every sentence of the
embedded text under 24 masks, a random sketch of 2,048 numbers each, on the embedded checkpoint and on one with random
weights. The rows "stopped" grow from 64 sentences by groups of 16 until every half-width is within the precision, or
to 512.

    python scripts/coverage.py --csv docs/intervals.csv           # resumable: rows that are there are not run again
    python scripts/coverage.py --csv docs/intervals.csv --table   # the table from the rows, in Markdown
"""

import argparse
import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import gradvar
from gradvar.decomposition.accumulator import moments_of
from gradvar.decomposition.components import Components
from gradvar.decomposition.estimate import Estimate
from gradvar.decomposition.precision import half_widths
from gradvar.decomposition.sketch import Sketch

SENTENCES, MASKS = 64, 8
QUANTITIES = ("data", "mask", "share", "signal", "noise_scale", "headroom")
FIELDS = (
    "row",
    "quantity",
    "simulations",
    "truth",
    "coverage",
    "standard_error",
    "one_sided",
    "missing",
    "width",
    "sentences",
)
POPULATION_MASKS, POPULATION_SIZE = 24, 2048


@dataclass(frozen=True)
class Row:
    """One line of the table: the components, how they are spread, and whether the study stops by itself."""

    name: str
    v_data: float = 1.0
    v_mask: float = 7.0
    signal: float = 0.15
    sigma: float = 0.0
    rank: int = 100
    dimension: int = 200
    population: str = ""
    precision: float = 0.0


ROWS = [
    Row("Gaussian"),
    Row("lognormal 0.5", sigma=0.5),
    Row("lognormal 0.8", sigma=0.8),
    Row("lognormal 1.0", sigma=1.0),
    Row("Gaussian, strong signal", signal=2.0),
    Row("Gaussian, rank 4", rank=4, dimension=20),
    Row("lognormal 0.8, rank 4", sigma=0.8, rank=4, dimension=20),
    Row("V_mask = 30 V_data, rank 4", v_mask=30, rank=4, dimension=20),
    Row("V_mask = 30 V_data, rank 4, lognormal 0.5", v_mask=30, rank=4, dimension=20, sigma=0.5),
    Row("weak signal", signal=0.02),
    Row("compressed sketch, lognormal 0.5", sigma=0.5, dimension=4000),
    Row("embedded checkpoint", population="trained"),
    Row("embedded checkpoint, random weights", population="random"),
    Row("stopped at 0.01, Gaussian", precision=0.01, rank=40, dimension=40),
    Row("stopped at 0.15, lognormal 0.5", precision=0.15, sigma=0.5, rank=40, dimension=40),
    Row("stopped at 0.35, lognormal 0.8", precision=0.35, sigma=0.8, rank=40, dimension=40),
    Row("stopped at 0.03, embedded checkpoint", population="trained", precision=0.03),
]


def simulated(row: Row, sentences: int, masks: int, rng: np.random.Generator) -> np.ndarray:
    """Draw ``[sentences, masks, dimension]`` cells."""
    scale = np.exp(row.sigma * rng.normal(size=(sentences, 1, 1)) - row.sigma**2)
    cells = np.zeros((sentences, masks, row.dimension))
    data = rng.normal(size=(sentences, 1, row.rank)) * np.sqrt(row.v_data / row.rank)
    mask = rng.normal(size=(sentences, masks, row.rank)) * np.sqrt(row.v_mask / row.rank)
    cells[..., : row.rank] = scale * (data + mask)
    return cells + np.sqrt(row.signal / row.dimension)


def population(kind: str, cache: Path) -> np.ndarray:
    """Sketch the gradient of every sentence of the embedded text under 24 masks: ``[sentences, masks, size]``."""
    file = cache / f"population-{kind}.npy"
    if file.exists():
        return np.load(file)
    objective = gradvar.MaskedLM.from_checkpoint(gradvar.DEMO_CHECKPOINT, gradvar.DEMO_TEXT)
    if kind == "random":
        torch.manual_seed(0)
        for module in objective.model.modules():
            if isinstance(module, torch.nn.Linear | torch.nn.Embedding):
                torch.nn.init.normal_(module.weight, std=0.02)
    parameters = list(objective.model.parameters())
    matrices = [p if p.ndim > 1 else p.unsqueeze(0) for p in parameters]
    sketches = [Sketch(*m.shape, i, m.dtype, "cpu") for i, m in enumerate(matrices)]
    rng = np.random.default_rng(0)
    # A sketch of sketches: a random place with a random sign for each number.
    places = [torch.from_numpy(rng.integers(0, POPULATION_SIZE, s.size)) for s in sketches]
    signs = [torch.from_numpy(rng.choice([-1.0, 1.0], s.size)).float() for s in sketches]
    cells = np.zeros((len(objective), POPULATION_MASKS, POPULATION_SIZE), dtype=np.float32)
    for sentence in range(len(objective)):
        batch = objective.draw([sentence], (POPULATION_MASKS,), 0)
        for mask in range(POPULATION_MASKS):
            loss = objective.losses({name: x[mask : mask + 1] for name, x in batch.items()}).sum()
            found = torch.zeros(POPULATION_SIZE)
            for gradient, sketch, place, sign in zip(
                torch.autograd.grad(loss, parameters), sketches, places, signs, strict=True
            ):
                matrix = gradient if gradient.ndim > 1 else gradient.unsqueeze(0)
                found.index_add_(0, place, sign * sketch.fold(sketch.project(matrix, slice(0, len(matrix)))))
            cells[sentence, mask] = found
        print(f"{kind}: {sentence + 1} of {len(objective)} sentences", end="\r", flush=True)
    cache.mkdir(parents=True, exist_ok=True)
    np.save(file, cells)
    return cells


def truth_of(cells: np.ndarray, row: Row) -> dict[str, float]:
    """Return the true values: known, or of a finite population; the headroom of a simulation from many cells."""
    norms = np.linalg.norm(cells, axis=-1)
    if row.population:
        means = cells.mean(axis=1)
        v_data = means.var(axis=0).sum()
        v_mask = cells.var(axis=1).sum(axis=-1).mean()
        signal = float((means.mean(axis=0) ** 2).sum())
        headroom = norms.var(axis=1).mean() / v_mask
    else:
        v_data, v_mask, signal = row.v_data, row.v_mask, row.signal
        headroom = norms.var(axis=1, ddof=1).mean() / cells.var(axis=1, ddof=1).sum(axis=-1).mean()
    return {
        "data": v_data,
        "mask": v_mask,
        "share": v_mask / (v_data + v_mask),
        "signal": signal,
        "noise_scale": (v_data + v_mask) / signal,
        "headroom": headroom,
    }


def estimates(found: Components) -> dict[str, Estimate]:
    """Return what a report holds of the whole gradient."""
    return {
        "data": found.component(0),
        "mask": found.component(1),
        "share": found.share(1),
        "signal": found.gradient_norm2(),
        "noise_scale": found.noise_scale(np.ones(2)),
        "headroom": found.importance_headroom(),
    }


def study(draw: Callable[[int], np.ndarray], row: Row) -> Components:
    """Run one study, of fixed size or until it is precise enough."""
    cells = torch.from_numpy(draw(512 if row.precision else SENTENCES))
    size = SENTENCES
    while True:
        found = Components(moments_of(cells[:size]), ("data", "mask"))
        if not row.precision or size == len(cells) or max(half_widths(found).values()) <= row.precision:
            return found
        size = min(size + SENTENCES // 4, len(cells))


def run(row: Row, simulations: int, cache: Path) -> list[dict[str, object]]:
    """Simulate one row of the table."""
    rng = np.random.default_rng(0)
    if row.population:
        real = population(row.population, cache)
        truth = truth_of(real.astype(np.float64), row)

        def draw(sentences: int) -> np.ndarray:
            chosen = rng.integers(0, len(real), (sentences, 1))
            return real[chosen, rng.integers(0, real.shape[1], (sentences, MASKS))]
    else:
        truth = truth_of(simulated(row, 20_000 if row.dimension < 1000 else 2000, 16, np.random.default_rng(1)), row)

        def draw(sentences: int) -> np.ndarray:
            return simulated(row, sentences, MASKS, rng)

    held: dict[str, list[float]] = {name: [] for name in QUANTITIES}
    widths: dict[str, list[float]] = {name: [] for name in QUANTITIES}
    one_sided, missing = dict.fromkeys(QUANTITIES, 0), dict.fromkeys(QUANTITIES, 0)
    sizes = []
    for _ in range(simulations):
        found = study(draw, row)
        sizes.append(found.counts[0])
        for name, estimate in estimates(found).items():
            if estimate.low is None:
                missing[name] += 1
                continue
            one_sided[name] += estimate.high is None
            high = np.inf if estimate.high is None else estimate.high
            held[name].append(estimate.low <= truth[name] <= high)
            widths[name].append((high - estimate.low) / truth[name])
    rows = []
    for name in QUANTITIES:
        coverage = float(np.mean(held[name])) if held[name] else float("nan")
        rows.append(
            {
                "row": row.name,
                "quantity": name,
                "simulations": simulations,
                "truth": f"{truth[name]:.4g}",
                "coverage": f"{coverage:.4f}",
                "standard_error": f"{np.sqrt(coverage * (1 - coverage) / max(1, len(held[name]))):.4f}",
                "one_sided": one_sided[name],
                "missing": missing[name],
                "width": f"{np.median(widths[name]) if widths[name] else float('nan'):.3f}",
                "sentences": f"{np.mean(sizes):.0f}",
            }
        )
    return rows


def table(file: Path) -> str:
    """Format the rows as Markdown: coverage in per cent, and the median width in brackets."""
    with file.open() as stream:
        rows = list(csv.DictReader(stream))
    heads = ("study", "data", "mask", "mask share", "\\|μ\\|²", "noise scale", "headroom", "sentences")
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for name in dict.fromkeys(row["row"] for row in rows):
        mine = {row["quantity"]: row for row in rows if row["row"] == name}
        values = []
        for quantity in QUANTITIES:
            found = mine[quantity]
            width = "∞" if found["width"] == "inf" else f"{float(found['width']):.2g}"
            text = f"{100 * float(found['coverage']):.1f} ({width})"
            for mark, words in (("one_sided", "one-sided"), ("missing", "not resolved")):
                if part := 100 * int(found[mark]) / int(found["simulations"]):
                    text += f"; {part:.0f} % {words}" if part >= 0.5 else f"; < 1 % {words}"
            values.append(text)
        lines.append(f"| {name} | " + " | ".join(values) + f" | {mine['data']['sentences']} |")
    return "\n".join(lines)


def main() -> None:
    """Simulate the rows that are not in the file yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", type=Path, required=True)
    parser.add_argument("--simulations", type=int, default=2000)
    parser.add_argument("--only", help="names of rows, separated by semicolons")
    parser.add_argument("--cache", type=Path, default=Path("build/coverage"), help="folder for the real cells")
    parser.add_argument("--table", action="store_true", help="print the table and stop")
    args = parser.parse_args()
    if args.table:
        print(table(args.csv))
        return
    torch.set_num_threads(1)
    done = set()
    if args.csv.exists():
        with args.csv.open() as stream:
            done = {row["row"] for row in csv.DictReader(stream)}
    else:
        with args.csv.open("w", newline="") as stream:
            csv.DictWriter(stream, FIELDS).writeheader()
    for row in ROWS:
        if row.name in done or (args.only and row.name not in args.only.split(";")):
            continue
        found = run(row, args.simulations, args.cache)
        with args.csv.open("a", newline="") as stream:
            csv.DictWriter(stream, FIELDS).writerows(found)
        print(row.name, *(f"{r['quantity']} {r['coverage']}" for r in found), flush=True)


if __name__ == "__main__":
    main()
