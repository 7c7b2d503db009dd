r"""What a step of BERT-base at the scale of the field costs on one GPU, under uniform masks and with a MAPNet.

Pre-stated. `recipes/mapnet-bert-base.yaml` (batch 256, bf16) with two micro-batches a step, at both of its lengths,
under ``uniform/simple`` and under its own ``mapnet/pps``: 12 steps of 128 tokens and 6 of 512, of which the first third
is left out, evaluation and saving apart. As in `cost.py`, the MAPNet is made to trust its scores from its first look
on. One run each, alone on the GPU: what a step takes there scatters little beside what is extrapolated in
docs/scaling.md.

    python experiments/base_cost.py --train TRAIN --valid VALID --encoder ENCODER --device cuda --jobs 1
"""

from __future__ import annotations

import shutil
from typing import Any

import cost
import ledger
import regimes

STEPS = {128: 12, 512: 6}
PROPOSALS = ("uniform/simple", "mapnet/pps")
_SMALL = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}


def book(it: regimes.Setting) -> ledger.Ledger:
    """Return the numbers of this experiment."""
    return ledger.Ledger(it.figures / "base_cost.csv")


def measure(it: regimes.Setting, proposal: str, length: int) -> ledger.Found:
    """Time one proposal at one length: one unit of work."""
    import torch

    from gradvar.training.reading import read_recipe

    cost.trust_at_once()
    steps = STEPS[length]
    before = steps // 3
    values: dict[str, Any] = {
        "data.train": str(it.valid),
        "data.valid_share": 0.2,
        "data.max_length": length,
        "data.tokenizer.source": str(it.encoder),
        "masking.proposal": proposal,
        "training.steps": steps,
        "training.max_length": None,
        "training.accumulation": 2,
        "training.workers": 0,
        "evaluation.every": None,
        "evaluation.sentences": 8,
        "saving.every": None,
        "saving.log_every": before,
        "saving.loggers": [],
    }
    if it.quick:
        values |= {"model.config": _SMALL, "training.batch": 4, "training.bf16": False, "data.max_length": 16}
    recipe = read_recipe(regimes.HERE.parent / "recipes" / "mapnet-bert-base.yaml", (), values)
    folder = it.work / "runs" / "base-cost"
    shutil.rmtree(folder, ignore_errors=True)
    regimes.trained(it, recipe, folder)
    seconds = cost.step_seconds(folder, before)
    shutil.rmtree(folder)
    memory = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_initialized() else None
    row = {"step_seconds": seconds, "tokens_per_second": recipe.training.batch * length / seconds, "peak_gib": memory}
    return ledger.Found([row], it.valid.name, "first weights")


def main() -> None:
    """Measure what is missing, and say what was found."""
    it, drawing_alone = regimes.setting(__doc__)
    if not drawing_alone:
        units = [
            ledger.Unit({"proposal": proposal, "length": length}, measure, (it, proposal, length))
            for length in STEPS
            for proposal in PROPOSALS
        ]
        ledger.run(book(it), units, it.jobs)
    for row in book(it).rows():
        print(f"{row['proposal']}, {row['length']} tokens: {float(row['step_seconds']):.3f} s a step")


if __name__ == "__main__":
    regimes.cleanly(main)
