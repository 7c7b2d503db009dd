"""What drawing by a proposal costs beside the step that it is for: 64 sentences of 128 tokens at BERT mini.

    python benchmarks/drawing.py --threads 1

prints, for every design, the time to draw 64 masks with their weights, the scores given, as a part of an ordinary
forward and backward pass of that batch; what a MAPNet of the default size takes to score it; and what the oracle's
scores take by the one-pass engine beside one backward pass for every position. Medians over rounds in which all take
turns.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

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


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
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
        "MAPNet": lambda: torch.no_grad()(log_scores)(network, sentences, objective.scoring),
    }
    for name in DESIGNS:
        design = parse_proposal(f"uniform/{name}").design
        works[name] = partial(design.draw, sentences, scores, hash_key(0, sentences.keys).unsqueeze(1))
    rounds: dict[str, list[float]] = {name: [] for name in works}
    for round_ in range(args.rounds + 1):
        for name, work in works.items():
            taken = seconds(work)
            if round_:
                rounds[name].append(taken / (rounds["step"][-1] if name != "step" else 1.0))
    step = statistics.median(rounds["step"])
    print(f"BERT mini, 64 x 128 tokens, {args.threads} threads: a step takes {1e3 * step:.0f} ms\n")
    print("| what | of a step |\n|---|---|")
    for name in works:
        if name != "step":
            print(f"| {name} | {100 * statistics.median(rounds[name]):.2f} % |")
    ratios = []
    for row in range(args.rounds):
        scoring, sentence = objective.scoring.fresh(1), objective.sentences([row], 0)
        engine = seconds(partial(scoring.at_targets, "gradient", sentence))
        ratios.append(seconds(partial(one_backward_a_position, objective, row)) / engine)
    print(
        f"\nOracle scores: one backward pass a position takes {statistics.median(ratios):.2f} times the one-pass engine"
    )


if __name__ == "__main__":
    main()
