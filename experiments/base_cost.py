r"""What a step of BERT-base at the scale of the field costs on one GPU, under uniform masks and with a MAPNet.

Pre-stated. `recipes/mapnet-bert-base.yaml` (131,072 tokens a step, bf16) with four micro-batches a step, at both of its
lengths, under ``uniform/simple`` and under its own ``mapnet/pps``: 12 steps each, of which the first four are left out,
evaluation and saving apart. As in `cost.py`, the MAPNet is made to trust its scores from its first look on. One run
each, alone on the GPU: what a step takes there scatters little beside what is extrapolated in docs/scaling.md.

The steps of 128 tokens were measured while the same machine's cores tokenised a text, and so thrown away.

    python experiments/base_cost.py --train TRAIN --valid VALID --encoder ENCODER --device cuda --jobs 1
"""

from __future__ import annotations

import shutil
from typing import Any

import cost
import ledger
import regimes
import settings

from gradvar import GradvarError

LENGTHS = (128, 512)
STEPS, BEFORE, TOKENS = 12, 4, 131072
PROPOSALS = ("uniform/simple", "mapnet/pps")
_SMALL = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}


def book(it: settings.Setting) -> ledger.Ledger:
    """Return the numbers of this experiment."""
    return ledger.Ledger(it.figures / "base_cost.csv")


def measure(it: settings.Setting, proposal: str, length: int) -> ledger.Found:
    """Time one proposal at one length: one unit of work."""
    import torch

    from gradvar.training.reading import read_recipe

    values: dict[str, Any] = {
        "data.train": str(it.valid),
        "data.valid_share": 0.2,
        "data.max_length": length,
        "data.tokenizer.source": str(it.encoder),
        "masking.proposal": proposal,
        "training.steps": STEPS,
        "training.batch": TOKENS // length,
        "training.max_length": None,
        "training.accumulation": 4,
        "training.workers": 0,
        "evaluation.every": None,
        "evaluation.sentences": 8,
        "saving.every": None,
        "saving.log_every": BEFORE,
        "saving.loggers": [],
    }
    if it.quick:
        values |= {"model.config": _SMALL, "training.batch": 4, "training.bf16": False, "data.max_length": 16}
    recipe = read_recipe(regimes.HERE.parent / "recipes" / "mapnet-bert-base.yaml", (), values)
    folder = it.work / "runs" / "base-cost"
    if it.device == "cuda":
        torch.cuda.reset_peak_memory_stats()  # of what this process did before
    shutil.rmtree(folder, ignore_errors=True)
    with cost.trust_at_once():
        regimes.trained(it, recipe, folder)
    seconds = cost.step_seconds(folder)
    shutil.rmtree(folder)
    memory = torch.cuda.max_memory_allocated() / 2**30 if it.device == "cuda" else None
    tokens = recipe.training.batch * recipe.data.max_length
    row = {"step_seconds": seconds, "tokens_per_second": tokens / seconds, "peak_gib": memory}
    return ledger.Found([row], it.valid.name, "first weights")


def main() -> None:
    """Measure what is missing, and say what was found."""
    it, drawing_alone = settings.setting(__doc__)
    if it.device == "cpu" and not it.quick and not drawing_alone:
        raise GradvarError("a step of BERT-base takes a CPU minutes; give --device cuda, or --quick")
    if not drawing_alone:
        units = [
            ledger.Unit({"proposal": proposal, "length": length}, measure, (it, proposal, length))
            for length in LENGTHS
            for proposal in PROPOSALS
        ]
        ledger.run(book(it), units, it.jobs)
    for row in book(it).rows():
        print(f"{row['proposal']}, {row['length']} tokens: {float(row['step_seconds']):.3f} s a step")


if __name__ == "__main__":
    settings.cleanly(main)
