"""The real thing: every mask and corruption of a tiny BERT's sentences, against studies that draw some of them.

Four distinct sentences, each many times in the corpus, so that the same sentence under another index has masks
of its own. With `P` sentences in the population, `N` of them drawn without replacement and
`sigma^2 = mean_x |mu(x)|^2 - |mu|^2`, the sentences' sample variance has the expectation `sigma^2 P/(P-1)`, so

    E V_data^ = sigma^2 P/(P-1),    E V_mask^ = V_mask,
    E |g_..|^2 = |mu|^2 + (sigma^2 P/(P-1)) (1/N - 1/P) + V_mask/(N M),
    E |mu|^2^ = E |g_..|^2 - E MS_1/N = |mu|^2 - sigma^2/(P-1),   as   E MS_1 = sigma^2 P/(P-1) + V_mask/M.
"""

from collections import Counter
from dataclasses import dataclass
from itertools import combinations, product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats

from gradvar import runner
from gradvar.decomposition.accumulator import MomentAccumulator
from gradvar.decomposition.components import Components
from gradvar.decomposition.moments import total
from gradvar.huggingface.corpus import Corpus
from gradvar.huggingface.masked_lm import MaskedLM
from gradvar.measure import measure
from gradvar.persample.onepass import OnePass
from gradvar.persample.parameters import select
from tests import cases

WORDS = (5, 6, 7)
DISTINCT = ((5, 6, 7, 5), (6, 6, 5, 7), (7, 5, 5, 6, 7), (5, 7, 7, 6, 6))  # T = 4 and 5, so some cells are padded
COPIES = 20
RATE, TARGETS = 0.4, 2  # 0.4 * 4 + 0.5 = 2.1 and 0.4 * 5 + 0.5 = 2.5
Outcome = tuple[tuple[int, ...], tuple[int, ...]]  # corrupted ids without padding, target positions


@dataclass(frozen=True)
class Exact:
    """Everything that can happen: per distinct sentence, the outcomes with probability, loss and gradient."""

    outcomes: list[list[Outcome]]
    probability: list[np.ndarray]
    loss: list[np.ndarray]
    gradient: list[np.ndarray]

    def means(self) -> np.ndarray:
        """`[sentences, coordinates]` the `mu(x)`."""
        return np.array([p @ g for p, g in zip(self.probability, self.gradient, strict=True)])

    def spread(self) -> np.ndarray:
        """`[coordinates]` variance over the masks of a sentence, averaged over sentences."""
        pairs = zip(self.probability, self.gradient, self.means(), strict=True)
        return np.mean([p @ (g - m) ** 2 for p, g, m in pairs], axis=0)


def enumerate_outcomes(words: tuple[int, ...]) -> dict[Outcome, float]:
    """Probabilities of the corrupted sentences: uniform 2-subsets, each target masked, replaced or kept."""
    sentence = [cases.CLS, *words, cases.SEP]
    subsets = list(combinations(range(1, len(words) + 1), TARGETS))
    found: Counter[Outcome] = Counter()
    for subset, stands in product(subsets, product([cases.MASK, *WORDS], repeat=TARGETS)):
        corrupted, probability = list(sentence), 1 / len(subsets)
        for position, token in zip(subset, stands, strict=True):
            corrupted[position] = token
            probability *= 0.8 if token == cases.MASK else 0.1 / len(WORDS) + 0.1 * (token == sentence[position])
        found[tuple(corrupted), subset] += probability
    return dict(found)


def loss_and_gradient(model: torch.nn.Module, words: tuple[int, ...], outcome: Outcome) -> tuple[float, np.ndarray]:
    ids, positions = (torch.tensor(part) for part in outcome)
    original = torch.tensor([cases.CLS, *words, cases.SEP])
    loss = F.cross_entropy(model(input_ids=ids.unsqueeze(0)).logits[0, positions], original[positions])
    parameters = list(model.parameters())
    found = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
    return loss.item(), torch.cat([g.flatten() for g in found]).numpy()


@pytest.fixture(scope="module")
def objective() -> MaskedLM:
    rows = tuple(np.array([cases.CLS, *words, cases.SEP], dtype=np.int32) for words in DISTINCT) * COPIES
    model = cases.model("bert", vocabulary=8, width=8)
    return MaskedLM(model, cases.tokenizer(3), Corpus(rows, "enumerated", "0" * 64, 7, 1e-3), mask_rate=RATE)


@pytest.fixture(scope="module")
def exact(objective) -> Exact:
    tables = [enumerate_outcomes(words) for words in DISTINCT]
    pairs = [
        [loss_and_gradient(objective.model, w, o) for o in table] for w, table in zip(DISTINCT, tables, strict=True)
    ]
    return Exact(
        [list(table) for table in tables],
        [np.array(list(table.values())) for table in tables],
        [np.array([loss for loss, _ in found]) for found in pairs],
        [np.array([gradient for _, gradient in found]) for found in pairs],
    )


def outcome_counts(objective: MaskedLM, masks: int) -> list[Counter[Outcome]]:
    """How often each outcome was drawn, by distinct sentence, over all sentences with so many masks each."""
    batch = objective.draw(range(len(objective)), (masks,), seed=0)
    drawn = torch.cat([batch["input_ids"], batch["target_positions"]], dim=1).view(len(objective), masks, -1)
    counts = []
    for index, words in enumerate(DISTINCT):
        rows, times = drawn[index :: len(DISTINCT)].flatten(0, 1).unique(dim=0, return_counts=True)
        cells = zip(rows.tolist(), times.tolist(), strict=True)
        counts.append(Counter({(tuple(r[: len(words) + 2]), tuple(r[-TARGETS:])): n for r, n in cells}))
    return counts


def test_the_enumeration_is_complete(exact):
    assert [len(outcomes) for outcomes in exact.outcomes] == [6 * 16, 6 * 16, 10 * 16, 10 * 16]
    assert [p.sum() for p in exact.probability] == pytest.approx([1] * len(DISTINCT), abs=1e-12)


def test_outcomes_are_drawn_with_their_probabilities(objective, exact):
    """Chi-square for each sentence over 60,000 cells, the rarest outcome expected 7 times.

    An outcome outside the enumeration fails at once: a special token as a target or as a random replacement,
    or another number of targets. Right draws fail for four seeds in a million.
    """
    for counts, outcomes, probability in zip(
        outcome_counts(objective, 3000), exact.outcomes, exact.probability, strict=True
    ):
        assert set(counts) <= set(outcomes)
        observed = np.array([counts[outcome] for outcome in outcomes])
        assert stats.chisquare(observed, probability * observed.sum()).pvalue > 1e-6


def test_the_mean_of_drawn_gradients_is_mu(objective, exact):
    """All sentences with 60 masks: only masks are random, each coordinate's variance is known exactly.

    6 standard errors in each of 1,920 coordinates: right draws fail for 4 seeds in a million, in the
    normal approximation. Coordinates that never vary must agree to 1e-12.
    """
    masks = 60
    counts = (len(objective), masks)
    targets = select(objective.model)
    sums = {id(t.parameter): MomentAccumulator(*t.shape, counts, torch.float64) for t in targets}
    OnePass(objective.model, targets).accumulate(
        objective.losses, objective.draw(range(len(objective)), (masks,), seed=1), sums, 0
    )
    mean = np.concatenate([sums[id(p)].tables.sums.flatten().numpy() for p in objective.model.parameters()])
    error = np.sqrt(exact.spread() / (len(objective) * masks))
    assert (np.abs(mean / len(objective) - exact.means().mean(axis=0)) <= 6 * error + 1e-12).all()


def test_every_drawn_cell_is_an_enumerated_one(objective, exact):
    """Loss and squared norm of each cell of a study, found in the table; 1e-9 is the engine's promise."""
    measured = measure(objective, (16, 3), seed=5)
    norms = total(list(measured.moments.values())).cell_norm2
    batch = objective.draw(measured.data.tolist(), (3,), 5)
    for cell, datum in enumerate(measured.data.repeat(3)):
        sentence = datum % len(DISTINCT)
        ids = tuple(batch["input_ids"][cell, : len(DISTINCT[sentence]) + 2].tolist())
        index = exact.outcomes[sentence].index((ids, tuple(batch["target_positions"][cell].tolist())))
        gradient = exact.gradient[sentence][index]
        assert norms.flat[cell] == pytest.approx(gradient @ gradient, rel=1e-9)
        assert measured.losses.flat[cell] == pytest.approx(exact.loss[sentence][index], rel=1e-9)


def test_studies_meet_the_exact_components(objective, exact, monkeypatch):
    """Within 4 standard errors over 80 studies: right estimators fail for one seed in 1,700 (4 values, t_79)."""
    monkeypatch.setattr(runner, "_CELLS_CPU", 120)  # two chunks behind the first one's two sentences
    means, population = exact.means(), len(objective)
    mu = means.mean(axis=0)
    sigma2 = ((means - mu) ** 2).sum(axis=1).mean()
    loss = np.mean([p @ loss for p, loss in zip(exact.probability, exact.loss, strict=True)])
    expected = [
        sigma2 * population / (population - 1),
        exact.spread().sum(),
        mu @ mu - sigma2 / (population - 1),
        loss,
    ]
    found = []
    for seed in range(80):
        measured = measure(objective, (40, 6), seed=seed)
        study = Components(total(list(measured.moments.values())), objective.levels)
        found.append([*study.values, study.norm2, measured.losses.mean()])
    error = np.std(found, axis=0, ddof=1) / np.sqrt(len(found))
    assert (np.abs(np.mean(found, axis=0) - expected) < 4 * error).all()
