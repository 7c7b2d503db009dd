"""The 80/10/10 corruption."""

import math

import pytest
import torch
from scipy import stats

from gradvar.errors import GradvarError
from gradvar.masking.corruption import Replacement, corrupt
from gradvar.masking.hashing import hash_key
from gradvar.masking.uniform import target_count
from tests import cases

MASK, ORIGINAL = 4, 99
ORDINARY = torch.tensor([5, 6, 8, 11])  # the original is not among them, so every outcome can be told


def corrupted(replacement: Replacement, cells: int = 50_000) -> torch.Tensor:
    action, token = (hash_key(purpose, torch.arange(cells).unsqueeze(1)) for purpose in (1, 2))
    return corrupt(torch.full((cells, 1), ORIGINAL), action, token, replacement, MASK, ORDINARY).flatten()


@pytest.mark.parametrize("parts", [(0.8, 0.1, 0.1), (0.5, 0.3, 0.2)])
def test_frequencies_are_the_probabilities(parts):
    """Chi-square over mask, keep and each random token; right draws fail for one seed in a million."""
    out = corrupted(Replacement(*parts))
    mask, random, keep = parts
    ids = [MASK, ORIGINAL, *ORDINARY.tolist()]
    counts = torch.tensor([int((out == i).sum()) for i in ids])
    assert counts.sum() == len(out)
    expected = torch.tensor([mask, keep, *[random / len(ORDINARY)] * len(ORDINARY)], dtype=torch.float64) * len(out)
    assert stats.chisquare(counts.numpy(), expected.numpy()).pvalue > 1e-6


@pytest.mark.parametrize(
    ("parts", "ids"), [((1, 0, 0), {MASK}), ((0, 1, 0), set(ORDINARY.tolist())), ((0, 0, 1), {ORIGINAL})]
)
def test_a_single_replacement_is_the_only_one(parts, ids):
    assert set(corrupted(Replacement(*parts), 1000).tolist()) == ids


def test_random_tokens_of_a_masked_lm_are_never_special():
    """All 55 words occur in 12 * 200 * 3 targets: the chance that one is missed is 55 (54/55)^7200 < 1e-50."""
    objective = cases.objective(replacement=Replacement(0, 1, 0))
    batch = objective.draw(range(12), (200,), 0)
    stood = batch["input_ids"].gather(1, batch["target_positions"])
    assert set(stood.flatten().tolist()) == set(range(5, 60))


def test_only_targets_are_corrupted_and_special_tokens_are_no_targets():
    objective = cases.objective(padded=True, replacement=Replacement(1, 0, 0))
    batch = objective.draw(range(12), (20,), 0)
    for row, ids in enumerate(batch["input_ids"].view(12, 20, -1)):
        original = torch.from_numpy(objective.corpus.sequences[row]).long()
        ids = ids[:, : len(original)]
        masked = ids == cases.MASK
        assert (masked.sum(dim=1) == target_count(torch.tensor(len(original) - 2), 0.3)).all()
        assert torch.equal(torch.where(masked, original, ids), original.expand_as(ids))
        assert not masked[:, [0, -1]].any()


@pytest.mark.parametrize(
    "parts", [(0.8, 0.1, 0.2), (0.8, 0.1, 0.0), (1.1, -0.1, 0.0), (-0.1, 0.1, 1.0), (math.nan, 0.5, 0.5), (80, 10, 10)]
)
def test_parts_that_are_no_probabilities_are_refused(parts):
    with pytest.raises(GradvarError, match="three probabilities"):
        Replacement(*parts)
