"""The expected gradient of a training step, at the Trainer's own boundary, over all masks that a proposal can draw.

Targets become mask tokens, always, so that a cell is its set of targets. What is enumerated replaces the very last step
of a draw, the choice by hashes; scores, weights, calibration and losses are the trainer's own. Chances are brute force
(`masking/enumeration`), gradients of single targets plain autograd on the model.
"""

from collections.abc import Callable, Iterator
from itertools import combinations, combinations_with_replacement, pairwise, permutations
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import TrainingArguments

from gradvar.mapnet.online import candidates
from gradvar.masking import epochs, pps, sets
from gradvar.masking.conditional_poisson import ConditionalPoisson as Table
from gradvar.masking.masks import Sentences
from gradvar.masking.pps import PPS
from gradvar.masking.sets import ConditionalPoisson, Midzuno, Pool
from gradvar.training.order import Place
from gradvar.training.recipe import MapNetTraining, Masking
from gradvar.training.sequences import collate
from gradvar.training.trainer import MaskProposalTrainer
from tests import cases
from tests.masking import enumeration
from tests.masking.enumeration import Set

WORDS = ((5, 6, 7, 9), (7, 6, 5, 5, 8))  # T = 4 and 5, k = 2: 6 and 10 sets
RATE, K = 0.4, 2
VOCABULARY = 10
TEXT = [np.array([cases.CLS, *words, cases.SEP]) for words in WORDS]
SETS = [list(combinations(range(1, len(words) + 1), K)) for words in WORDS]
EXACT = 1e-10
"""Largest error of an expected gradient, relative to its largest coordinate."""
Gradients = dict[Set, np.ndarray]


def encoder(interactions: bool = True) -> nn.Module:
    """Without interactions attention mixes in nothing, so that no target sees what else is masked."""
    model = cases.model("bert", vocabulary=VOCABULARY, width=8, rate=0.0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not interactions and (".self.value." in name or ".attention.output.dense.weight" in name):
                parameter.zero_()
            elif ".attention." in name and "LayerNorm" not in name:
                parameter *= 4
    return model


def trainer_of(folder: Any, proposal: str, *, interactions: bool = True, masks: int | None = None, **more: Any) -> Any:
    """A trainer, with a MAPNet of random weights that has a scale and so a loss of its own."""
    arguments = {"per_device_train_batch_size": 2 * (masks or 1), "max_steps": 4, "save_strategy": "no"} | more
    made = MaskProposalTrainer(
        encoder(interactions),
        TrainingArguments(
            output_dir=str(folder), use_cpu=True, report_to="none", disable_tqdm=True, log_level="error", **arguments
        ),
        [{"input_ids": row} for row in TEXT],
        processing_class=cases.tokenizer(VOCABULARY - 5),
        masking=Masking(proposal=proposal, mask_rate=RATE, replacement=(100, 0, 0), masks=masks),
        mapnet=MapNetTraining(shape={"width": 4, "heads": 1, "window": 1}),
    )
    made.current_gradient_accumulation_steps = made.args.gradient_accumulation_steps  # as the training loop does
    if made.joint.mapnet is not None:
        generator = torch.Generator().manual_seed(2)
        for parameter in made.joint.mapnet.parameters():
            nn.init.normal_(parameter, std=0.5, generator=generator)
        made.joint.restore(made.joint.state() | {"scale": [0.5, 1.0]})
    return made


def calibrate(trainer: Any, exponent: float, epsilon: float) -> None:
    """Let the calibration choose."""
    moments = np.full(1 + len(candidates()), 2.0)
    moments[0], moments[1 + candidates().index((exponent, epsilon))] = 1.0, 0.5
    for _ in range(20):
        trainer.joint.learn({"moments": torch.from_numpy(moments), "looks": torch.tensor(1.0)})
    assert trainer.joint.calibration.chosen == (exponent, epsilon)


def inputs(rows: list[int], epoch: int = 0) -> dict[str, Tensor]:
    return collate([(Place(3, epoch, row), TEXT[row]) for row in rows])


def gradient_of(trainer: Any, batch: dict[str, Tensor]) -> np.ndarray:
    """What `training_step` leaves in the encoder's `.grad`."""
    trainer.joint.zero_grad()
    trainer.training_step(trainer.model, {name: x.clone() for name, x in batch.items()})
    parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in trainer.joint.encoder.parameters()]
    return torch.cat([part.flatten() for part in parts]).numpy().copy()


def gradients_of(model: nn.Module) -> list[Gradients]:
    """For each sentence `{S: [k, coordinates]}` gradients of the losses at the targets, by plain autograd."""
    parameters, found = list(model.parameters()), []
    for row, subsets in zip(TEXT, SETS, strict=True):
        original, mine = torch.from_numpy(row), {}
        for subset in subsets:
            ids = original.clone()
            ids[list(subset)] = cases.MASK
            logits = model(input_ids=ids.unsqueeze(0)).logits[0]
            rows = []
            for i in subset:
                nll = F.cross_entropy(logits[i], original[i])
                parts = torch.autograd.grad(
                    nll, parameters, retain_graph=True, allow_unused=True, materialize_grads=True
                )
                rows.append(torch.cat([part.flatten() for part in parts]).numpy())
            mine[subset] = np.array(rows)
        found.append(mine)
    return found


@pytest.fixture(scope="module")
def table() -> list[Gradients]:
    return gradients_of(encoder())


def uniform(table: list[Gradients], rows: list[int]) -> np.ndarray:
    """The expected gradient of uniform masks: over sentences, over sets, over targets."""
    return np.mean([np.mean([g.mean(axis=0) for g in table[row].values()], axis=0) for row in rows], axis=0)


def gap(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def coupled(*chances: dict[Set, float]) -> Iterator[tuple[list[Set], float]]:
    """Some joint chances of two sentences' sets: a mean of sums takes no more than each one's own chances.

    Both unit intervals, cut by the chances, laid on each other: 15 pairs in place of 60.
    """
    ends = [np.cumsum(list(q.values())) for q in chances]
    cuts = np.unique(np.concatenate([[0.0], *(end[:-1] for end in ends), [1.0]]))
    for low, high in pairwise(cuts):
        middle = (low + high) / 2
        yield [list(q)[int((end[:-1] < middle).sum())] for q, end in zip(chances, ends, strict=True)], high - low


class Enumerated:
    """Takes the place of the last step of the draw: every sentence gets the set that `now` has for it.

    What is drawn by goes on record: the sentences, and the scores that the design was given.
    """

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.now: list[Set] = [subsets[0] for subsets in SETS]
        self.sentences: Sentences
        self.scores: Tensor
        for design in (Midzuno, ConditionalPoisson, PPS):
            patch.setattr(design, "draw", self._recording(design.draw))
        for design in (Midzuno, ConditionalPoisson):
            patch.setattr(design, "_draw", lambda own, *_: (self._positions(), torch.ones(len(self.now), K) > 0))
        patch.setattr(sets, "mixed", lambda keys, epsilon: torch.zeros(keys.numel(), 1, dtype=torch.bool))
        patch.setattr(Table, "sample", lambda own, keys: self._chosen().unsqueeze(1))
        patch.setattr(pps, "_systematic", lambda *_: self._chosen())

    def _recording(self, draw: Callable[..., Any]) -> Callable[..., Any]:
        def recorded(design: Any, sentences: Sentences, scores: Tensor, *more: Any) -> Any:
            self.sentences, self.scores = sentences, scores
            return draw(design, sentences, scores, *more)

        return recorded

    def _positions(self) -> Tensor:
        return torch.tensor(self.now)

    def _chosen(self) -> Tensor:
        return torch.zeros(self.sentences.ids.shape, dtype=torch.bool).scatter(1, self._positions(), True)

    def expectation(self, trainer: Any) -> tuple[np.ndarray, list[dict[Set, float]]]:
        """Of the gradient of a batch of both sentences; and the chances of their sets, by brute force."""
        batch = inputs([0, 1])
        gradient_of(trainer, batch)  # for the scores
        design = str(trainer.joint.in_use[1]).rpartition("/")[2]
        name, _, epsilon = design.partition("~")
        chances = [
            enumeration.chances_of(name, float(epsilon or 0), self.sentences, self.scores, row) for row in range(2)
        ]
        total = 0.0
        for self.now, chance in coupled(*chances):
            total = total + chance * gradient_of(trainer, batch)
        return total, chances


@pytest.fixture
def enumerated(monkeypatch) -> Enumerated:
    return Enumerated(monkeypatch)


SET_PROPOSALS = (
    "frequency/midzuno",
    "logit/midzuno~0.3",
    "loss^2/midzuno",
    "logit/conditional-poisson",
    "frequency^-1/conditional-poisson:1~0.2",
    "mapnet^2/midzuno~0.1",
    "mapnet/conditional-poisson:-0.5~0.3",
    "mapnet-permuted^0.5/conditional-poisson",
)
CALIBRATED = ("mapnet/midzuno", "mapnet/conditional-poisson", "mapnet-permuted/midzuno")


def unequal(chances: list[dict[Set, float]]) -> bool:
    return all(max(q.values()) > 1.02 * min(q.values()) for q in chances)


@pytest.mark.parametrize("proposal", SET_PROPOSALS)
def test_designs_of_sets_expect_the_uniform_gradient(tmp_path, enumerated, table, proposal):
    found, chances = enumerated.expectation(trainer_of(tmp_path, proposal))
    assert unequal(chances)
    assert gap(found, uniform(table, [0, 1])) < EXACT


@pytest.mark.parametrize(("exponent", "epsilon"), [(1.0, 0.0), (0.5, 0.2)])
@pytest.mark.parametrize("proposal", CALIBRATED)
def test_so_they_do_with_the_calibrations_exponent_and_epsilon(
    tmp_path, enumerated, table, proposal, exponent, epsilon
):
    trainer = trainer_of(tmp_path, proposal)
    calibrate(trainer, exponent, epsilon)
    found, chances = enumerated.expectation(trainer)
    assert unequal(chances)
    assert gap(found, uniform(table, [0, 1])) < EXACT


@pytest.mark.parametrize("proposal", SET_PROPOSALS)
def test_with_weights_of_one_they_would_not(tmp_path, enumerated, table, proposal, monkeypatch):
    """The same expectation with `1/k` in place of the weights, so that it is known to tell."""
    monkeypatch.setattr(
        sets.SetDesign, "log_weight", lambda own, s, x, positions, v: torch.zeros(len(positions)).double()
    )
    found, _ = enumerated.expectation(trainer_of(tmp_path, proposal))
    assert gap(found, uniform(table, [0, 1])) > 1e-4


def by_positions(table: list[Gradients], chances: list[dict[Set, float]]) -> np.ndarray:
    """`E sum_{i in S} g_i(S)/(T pi_i)` with the inclusion probabilities of the chances themselves."""
    found = []
    for gradients, q, words in zip(table, chances, WORDS, strict=True):
        pi = enumeration.inclusion_by(q, len(words) + 2).numpy()
        found.append(sum(q[s] * (1 / (len(words) * pi[list(s)])) @ g for s, g in gradients.items()))
    return np.mean(found, axis=0)


PPS_PROPOSALS = ("frequency/pps", "logit^4/pps~0.1", "mapnet^2/pps~0.1", "loss^2/pps:systematic")


@pytest.mark.parametrize("proposal", PPS_PROPOSALS)
def test_weights_of_positions_expect_what_their_inclusion_says(tmp_path, enumerated, table, proposal):
    """Not the uniform gradient, as targets interact."""
    found, chances = enumerated.expectation(trainer_of(tmp_path, proposal))
    assert unequal(chances)
    assert gap(found, by_positions(table, chances)) < EXACT
    assert gap(found, uniform(table, [0, 1])) > 1e-4


@pytest.mark.parametrize("proposal", PPS_PROPOSALS)
def test_they_expect_the_uniform_gradient_where_targets_do_not_interact(tmp_path, enumerated, proposal):
    found, chances = enumerated.expectation(trainer_of(tmp_path, proposal, interactions=False))
    assert unequal(chances)
    assert gap(found, uniform(gradients_of(encoder(interactions=False)), [0, 1])) < EXACT


def test_calibrated_weights_of_positions(tmp_path, enumerated, table):
    trainer = trainer_of(tmp_path, "mapnet/pps")
    calibrate(trainer, 1.0, 0.05)
    found, chances = enumerated.expectation(trainer)
    assert unequal(chances)
    assert gap(found, by_positions(table, chances)) < EXACT


# ---- the pool: every pair of candidates, and either kept


def kept(patch: pytest.MonkeyPatch, pair: list[Set], which: int) -> None:
    """Candidates of one sentence, and which is kept: a toss just inside its part of the unit interval."""
    positions = torch.tensor(pair)
    patch.setattr(sets, "uniform_masks", lambda sentences, keys: (positions, torch.ones(2, K) > 0))
    patch.setattr(sets, "unit_interval", lambda key: torch.tensor([[1e-9, 1 - 1e-9][which]], dtype=torch.float64))


def pool_chances(scores: list[float], epsilon: float) -> list[float]:
    return [(1 - epsilon) * s / sum(scores) + epsilon / len(scores) for s in scores]


@pytest.mark.parametrize("proposal", ["logit/pool:2", "frequency^2/pool:2~0.2", "mapnet^2/pool:2", "oracle/pool:2"])
def test_a_pool_expects_the_uniform_gradient(tmp_path, table, proposal, monkeypatch):
    """Over the pairs of candidates of the first sentence; the oracle's are scored by their own gradients."""
    trainer, batch = trainer_of(tmp_path, proposal), inputs([0])
    joint = trainer.joint
    sentences = joint.sentences(**batch)
    _, scores = joint.draw(sentences, batch["row"], batch["epoch"])
    assert isinstance(joint.proposal.design, Pool)
    if proposal.startswith("oracle"):
        size = {s: float(np.linalg.norm(g.mean(axis=0))) for s, g in table[0].items()}
    else:
        size = {s: float(scores[0, list(s)].sum()) for s in SETS[0]}
    assert max(size.values()) > 1.02 * min(size.values())
    total = 0.0
    for pair in combinations_with_replacement(SETS[0], 2):
        orders = len(set(pair)) / 36  # one pair and the same the other way round
        for which, chance in enumerate(pool_chances([size[s] for s in pair], joint.proposal.design.epsilon)):
            kept(monkeypatch, list(pair), which)
            total = total + orders * chance * gradient_of(trainer, batch)
    assert gap(total, uniform(table, [0])) < EXACT


# ---- orders of positions: every permutation, a row each


def every_order(patch: pytest.MonkeyPatch, module: Any, row: int) -> int:
    """Let the rows of a batch go through the positions in all orders, one each."""
    orders = list(permutations(range(len(WORDS[row]))))
    patch.setattr(module, "position_order", lambda keys, length: torch.tensor([[0, *order, 0] for order in orders]))
    return len(orders)


@pytest.mark.parametrize("row", [0, 1])
def test_disjoint_masks_expect_the_uniform_gradient(tmp_path, table, row, monkeypatch):
    trainer = trainer_of(tmp_path, "uniform/disjoint:2", masks=2)
    copies = every_order(monkeypatch, sets, row)
    assert gap(gradient_of(trainer, inputs([row] * copies)), uniform(table, [row])) < EXACT


@pytest.mark.parametrize("row", [0, 1])
def test_every_visit_of_a_cycle_expects_the_uniform_gradient(tmp_path, table, row, monkeypatch):
    """And so does the cycle; but in one order of the positions neither does."""
    trainer = trainer_of(tmp_path, "uniform/epoch-stratified")
    expected, visits = uniform(table, [row]), -(-len(WORDS[row]) // K)
    single = gradient_of(trainer, inputs([row]))
    assert gap(single, expected) > 1e-2
    copies = every_order(monkeypatch, epochs, row)
    for visit in range(visits):
        assert gap(gradient_of(trainer, inputs([row] * copies, epoch=visit)), expected) < EXACT


def test_a_cycle_of_a_model_without_interactions_is_the_uniform_gradient_itself(tmp_path):
    """T = 4, k = 2: the two visits' mean, whatever the order; that is what the stratification is for."""
    trainer = trainer_of(tmp_path, "uniform/epoch-stratified", interactions=False)
    visits = [gradient_of(trainer, inputs([0], epoch=visit)) for visit in (4, 5)]
    expected = uniform(gradients_of(encoder(interactions=False)), [0])
    assert gap(visits[0], expected) > 1e-2
    assert gap(np.mean(visits, axis=0), expected) < EXACT


# ---- micro-batches


def test_accumulated_gradients_are_those_of_the_whole_batch(tmp_path):
    """Two micro-batches of a sentence each, of different lengths, and both at once."""
    gradients = []
    for micro, steps in ((1, 2), (2, 1)):
        trainer = trainer_of(
            tmp_path, "logit/midzuno", per_device_train_batch_size=micro, gradient_accumulation_steps=steps
        )
        trainer.joint.zero_grad()
        for rows in ([[0], [1]], [[0, 1]])[steps == 1]:
            trainer.training_step(trainer.model, inputs(rows))
        parts = [p.grad.flatten() for p in trainer.joint.encoder.parameters() if p.grad is not None]
        gradients.append(torch.cat(parts).numpy())
    assert gap(*gradients) < EXACT
