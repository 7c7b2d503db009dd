"""The three ceilings of a masked LM: what importance sampling, position weights and disjoint masks can remove."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch

from gradvar.decomposition import ceilings
from gradvar.decomposition.components import Components
from gradvar.decomposition.contributions import of_means
from gradvar.decomposition.estimate import Estimate, unresolved
from gradvar.masking.cells import Cells
from gradvar.masking.masks import Masks, Sentences, chosen_of
from gradvar.measure import Measurement

if TYPE_CHECKING:
    from gradvar.huggingface.masked_lm import MaskedLM

_AT_ONCE = 8  # sentences whose positions are measured between two reports of progress


def masks_of(objective: MaskedLM, sentences: Sentences, measured: Measurement, draws: int, seed: int) -> Masks:
    """Draw the masks of a study again."""
    keys = Cells(measured.data.tolist(), (draws,), seed).keys[:, 1].view(len(measured.data), -1)
    scores = objective.scores(sentences)
    return objective.proposal.draw(sentences, scores, keys.to(objective.device), objective.scoring)


def overlaps_of(masks: Masks, rows: int, length: int) -> np.ndarray:
    """``[rows, draws, draws]`` positions that the masks of a sentence have in common."""
    chosen = chosen_of(masks.positions, masks.valid, length).view(rows, -1, length).double()
    return (chosen @ chosen.mT).cpu().numpy()


def gradient_norms(
    objective: MaskedLM, sentences: Sentences, progress: Callable[[int], None] | None = None
) -> np.ndarray:
    """Measure the gradient norm of every position as a target: ``[contexts, rows, positions]``.

    Args:
        objective: The masked LM.
        sentences: Whose positions.
        progress: Called with the sentences done.

    Returns:
        The norms, of ``l_i`` and not of ``l_i/k``.
    """
    parts = []
    rows = len(sentences.ids)
    for start in range(0, rows, _AT_ONCE):
        some = list(range(start, min(start + _AT_ONCE, rows)))
        found = objective.scoring.at_targets("gradient", sentences.rows(some))
        parts.append(torch.nn.functional.pad(found, (0, sentences.ids.shape[1] - found.shape[2])))
        if progress:
            progress(some[-1] + 1)
    return torch.cat(parts, dim=1).cpu().numpy()


def headroom(
    whole: Components, sentences: Sentences, masks: Masks, norms: np.ndarray | None, weights: np.ndarray
) -> dict[str, Estimate]:
    """Estimate the three ceilings as parts of the mask variance, under uniform masks.

    Args:
        whole: Components of a study of two levels, with the inner products of its cells.
        sentences: Its sentences.
        masks: Its masks.
        norms: ``[contexts, sentences, positions]`` gradient norms of single targets; None leaves the second ceiling
            unresolved.
        weights: ``[sentences]`` what a sentence's loss is multiplied with.

    Returns:
        ``importance``, ``position`` and ``stratification``.
    """
    found = {"importance": whole.importance_headroom()}
    problem = found["importance"].reason if not found["importance"].resolved else None
    within = whole.contributions[:, 1]
    totals, counts = sentences.totals.cpu().numpy(), sentences.counts.cpu().numpy()

    def part_of(removed: np.ndarray) -> Estimate:
        return of_means(lambda m: m[0] / m[1], np.stack([removed, within], axis=1))

    if problem:
        found["position"] = found["stratification"] = unresolved(problem)
        return found
    if norms is None or len(norms) < 2:
        found["position"] = unresolved("it takes the gradients of all positions in two contexts at least: --contexts 2")
    else:
        maskable = sentences.maskable.cpu().numpy()
        found["position"] = part_of(weights**2 * ceilings.position(norms, maskable, counts))
    if whole.counts[1] < 3:
        found["stratification"] = unresolved("it takes the overlaps of 3 masks a sentence at least: --masks 3")
    else:
        overlaps = overlaps_of(masks, len(totals), sentences.ids.shape[1])
        found["stratification"] = part_of(ceilings.main_effects(whole.moments.inner, overlaps, totals, counts))
    return found
