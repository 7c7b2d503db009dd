"""What ships: the embedded checkpoint has learned context, on text that it has never seen."""

from pathlib import Path

import numpy as np
import pytest
import torch

import gradvar


@pytest.fixture(scope="module")
def objective():
    return gradvar.MaskedLM.from_checkpoint(gradvar.DEMO_CHECKPOINT, gradvar.DEMO_TEXT)


def test_held_out_loss_is_far_below_the_unigram_entropy(objective):
    """At least 0.7 nat below the best unigram model there is: the one fitted to the very tokens it is tested on."""
    losses, targets = [], []
    with torch.no_grad():
        for start in range(0, 96, 16):
            batch = objective.draw(range(start, start + 16), (1,), seed=1)
            losses.append(objective.losses(batch))
            targets.append(batch["target_ids"][batch["target_weights"] > 0])
    ids = torch.cat(targets).numpy()
    every = np.concatenate(objective.corpus.sequences)
    every = every[~np.isin(every, [0, 1, 2, 3, 4])]
    frequency = np.bincount(every, minlength=8192) / len(every)
    unigram = -np.log(frequency[ids]).mean()
    model = float(torch.cat(losses).mean())
    assert model < unigram - 0.7, (model, unigram)


def test_size_of_what_ships():
    files = [gradvar.DEMO_TEXT, *gradvar.DEMO_CHECKPOINT.iterdir()]
    assert sum(Path(file).stat().st_size for file in files) < 5e6


def test_the_demo_finds_mostly_mask_noise(objective):
    result = gradvar.decompose(objective, sentences=8, masks=3)
    assert result.shares["mask"].low > 0.5
    assert result.gradient_norm2.estimate is not None
    assert {layer.group for layer in result.layers} == {"embedding", "norm", "attention", "mlp", "head"}
