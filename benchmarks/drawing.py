"""What drawing by a proposal costs beside the step that it is for: 64 sentences of 128 tokens at BERT mini.

    python benchmarks/drawing.py --threads 1 --out docs/drawing.md

writes, for every design, the time to draw 64 masks with their weights, the scores given, as a part of an ordinary
forward and backward pass of that batch; what a MAPNet of the default size takes to score it; and what one backward pass
for every position takes beside the one-pass engine's oracle scores. Medians over rounds in which all take turns, with
the range.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from study import Case, Study

from gradvar.huggingface.forward import encoder_flops_per_token
from gradvar.huggingface.masked_lm import MaskedLM
from gradvar.mapnet.config import default_config
from gradvar.mapnet.network import MapNet
from gradvar.mapnet.score import log_scores
from gradvar.masking.hashing import hash_key
from gradvar.masking.proposal import parse_proposal
from gradvar.persample.check import autograd_gradients

DESIGNS = (
    "simple", "midzuno", "midzuno~0.1", "conditional-poisson", "conditional-poisson~0.1", "pool:4", "pps", "pps~0.1",
    "pps:systematic", "disjoint:2", "hard", "span", "whole-word",
)  # fmt: skip


def seconds(work: Callable[[], object]) -> float:
    """Time one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def one_backward_a_position(objective: MaskedLM, row: int) -> None:
    """Score the positions of a sentence by a forward and backward pass for each."""
    sentence = objective.sentences([row], 0)
    batch, positions = objective.scoring.fresh(1)._cover(sentence)
    weight = torch.ones(1, 1)
    for mask in range(len(batch["input_ids"])):
        for target in range(positions.shape[-1]):
            cell = {name: x[mask : mask + 1] for name, x in batch.items()}
            for name in ("target_positions", "target_ids"):
                cell[name] = cell[name][:, target : target + 1]
            found = autograd_gradients(objective.losses, cell | {"target_weights": weight}, objective.model)
            torch.stack([gradient.norm() for gradient in found.values()]).norm()


def spread(values: list[float], unit: str, scale: float = 1.0) -> str:
    """Write a median with its range."""
    low, middle, high = (scale * x for x in (min(values), statistics.median(values), max(values)))
    return f"{middle:.2f}{unit} ({low:.2f} to {high:.2f})"


def main() -> None:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    study = Study(Case("mini", 64, 1, 128))
    objective = study.objective
    sentences = objective.sentences(range(64), 0)
    scores = torch.rand(sentences.ids.shape, dtype=torch.float64).add(0.1) * sentences.maskable
    table = objective.model.get_input_embeddings().weight
    network = MapNet(default_config(*table.shape, encoder_flops_per_token(objective.model, 128), 128))
    works: dict[str, Callable[[], object]] = {
        "step": lambda: autograd_gradients(objective.losses, study.batch, objective.model),
        "scoring by a MAPNet": lambda: torch.no_grad()(log_scores)(network, sentences, objective.scoring),
    }
    for name in DESIGNS:
        design = parse_proposal(f"uniform/{name}").design
        works[f"`{name}`"] = partial(design.draw, sentences, scores, hash_key(0, sentences.keys).unsqueeze(1))
    rounds: dict[str, list[float]] = {name: [] for name in works}
    for round_ in range(args.rounds + 1):
        for name, work in works.items():
            taken = seconds(work)
            if round_:
                rounds[name].append(taken / (rounds["step"][-1] if name != "step" else 1.0))
    ratios = []
    for row in range(args.rounds):
        scoring, sentence = objective.scoring.fresh(1), objective.sentences([row], 0)
        engine = seconds(partial(scoring.at_targets, "gradient", sentence))
        ratios.append(seconds(partial(one_backward_a_position, objective, row)) / engine)
    lines = [
        "# What drawing costs",
        "",
        f"Written by `python benchmarks/drawing.py --threads {args.threads} --out docs/drawing.md`:",
        "BERT mini, 64 sentences of 128 tokens,",
        f"torch {torch.__version__}. A forward and backward pass of that batch takes "
        f"{1e3 * statistics.median(rounds['step']):.0f} ms. Scores are given, and weights are drawn with the masks;",
        f"medians of {args.rounds} rounds, with the range.",
        "",
        "| what | of a step |",
        "|---|---|",
        *(f"| {name} | {spread(rounds[name], ' %', 100)} |" for name in works if name != "step"),
        "",
        f"The oracle's scores: one backward pass for every position takes {spread(ratios, '')} times what the one-pass",
        "engine takes, each over the same sentence.",
    ]
    args.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
