"""What a step really takes beside what --dry-run says: the growth of the process at its peak, on a CPU.

MALLOC_ARENA_MAX=1 OMP_NUM_THREADS=1 python benchmarks/dry_run.py recipes/mapnet-bert-mini.yaml training.batch=64
"""

import resource
import sys

import psutil
import torch

from gradvar.huggingface.forward import logits_at
from gradvar.masking.uniform import target_count
from gradvar.training.cross_entropy import cross_entropy
from gradvar.training.devices import parse_devices
from gradvar.training.dry_run import plan
from gradvar.training.model import build_encoder
from gradvar.training.reading import read_recipe
from gradvar.training.weightless import VocabularyOf

STEPS = 3


def main() -> None:
    """Take some steps under uniform masks of whole sequences, and say what they took."""
    uniform = ["masking.proposal=uniform/simple", "training.max_length=null"]
    recipe = read_recipe(sys.argv[1], [*sys.argv[2:], *uniform])
    said = sum(plan(recipe, parse_devices("1x1e12", False), 1.0).memory.values())
    cells, length, vocabulary = recipe.training.batch, recipe.data.max_length, recipe.data.tokenizer.vocabulary
    targets = int(target_count(torch.tensor([length - 2]), 0.15))
    before = psutil.Process().memory_info().rss
    model = build_encoder(recipe.model, VocabularyOf(vocabulary), length, seed=0)
    optimizer = torch.optim.AdamW(model.parameters())
    ids, positions = torch.randint(5, vocabulary, (cells, length)), torch.arange(targets).repeat(cells, 1)
    for _ in range(STEPS):
        logits = logits_at(model, positions, True, input_ids=ids, attention_mask=torch.ones_like(ids))
        cross_entropy(logits, ids[:, :targets])[0].mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    print(f"{said / 2**20:,.0f} MiB said, {grown / 2**20:,.0f} MiB taken at the peak: {grown / said:.2f} times")


if __name__ == "__main__":
    main()
