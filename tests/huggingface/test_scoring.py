"""What is measured at single targets, against plain forward and backward passes."""

from collections import Counter
from collections.abc import Iterator
from itertools import combinations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor

from gradvar.errors import EngineError, GradvarError
from gradvar.huggingface.masked_lm import MaskedLM
from gradvar.huggingface.scoring import Scoring
from gradvar.masking.hashing import hash_key
from gradvar.masking.masks import Masks, Sentences
from tests import cases
from tests.masking.enumeration import RARE
from tests.persample.oracle import EXACT

QUANTITIES = ("loss", "logit", "last-layer", "gradient")
DATA = (0, 1, 2)  # padded: of 12, 9 and 11 tokens


def objective_of(kind: str = "bert", **options) -> MaskedLM:
    return cases.objective(kind, padded=True, sentences=3, **options)


def norm_of(loss: Tensor, parameters: list[Tensor]) -> float:
    found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True, materialize_grads=True)
    return float(torch.stack([g.norm() for g in found]).norm())


def contexts_of(objective: MaskedLM, row: Sentences) -> Iterator[tuple[int, Tensor, list[int]]]:
    """Context, corrupted ids and targets of every mask that a sentence is scored by."""
    positions, keys = objective.scoring._covering(row)
    for context in range(len(positions)):
        for targets, key in zip(positions[context], keys[context], strict=True):
            valid = torch.ones(1, len(targets), dtype=torch.bool)
            masks = Masks(targets.unsqueeze(0), valid, valid.double(), key.view(1))
            yield context, objective.corrupted(row, masks)["input_ids"], targets.tolist()


def measured_by_hand(objective: MaskedLM, model: torch.nn.Module, quantity) -> np.ndarray:
    """`[contexts, rows, positions]` root mean squares of `quantity(loss, logits)`, one pass a sentence and mask."""
    sentences = objective.sentences(DATA, 0)
    shape = objective.scoring.contexts, *sentences.ids.shape
    sums, times = np.zeros(shape), np.zeros(shape)
    for datum in DATA:
        row = objective.sentences([datum], 0)
        for context, ids, targets in contexts_of(objective, row):
            logits = model(input_ids=ids).logits[0]
            for i in targets:
                loss = F.cross_entropy(logits[i], row.ids[0, i])
                sums[context, datum, i] += quantity(loss) ** 2
                times[context, datum, i] += 1
    assert (times[:, sentences.maskable] >= 1).all()
    assert not times[:, ~sentences.maskable].any()
    return np.sqrt(sums / np.maximum(times, 1))


@pytest.mark.parametrize(
    ("kind", "tied"),
    [("bert", True), ("bert", False), ("modernbert", True), ("modernbert", False), ("deberta-v2", True)],
)
def test_gradients_are_those_of_a_backward_pass_a_position(kind, tied):
    """Of sentences of several lengths; DeBERTa by the reference engine."""
    objective = objective_of(kind, tied=tied)
    parameters = list(objective.model.parameters())
    expected = measured_by_hand(objective, objective.model, lambda loss: norm_of(loss, parameters))
    found = objective.scoring.at_targets("gradient", objective.sentences(DATA, 0))
    assert found.dtype == torch.float64
    np.testing.assert_allclose(found, expected, rtol=EXACT)
    assert objective.scoring._made[0][0].name == ("reference" if kind == "deberta-v2" else "onepass")


def untied(kind: str, model: torch.nn.Module) -> torch.nn.Module:
    """The same function with a decoder of its own."""
    other = cases.model(kind, tied=False)
    other.load_state_dict(model.state_dict())
    return other


@pytest.mark.parametrize("kind", cases.ARCHITECTURES)
def test_what_takes_no_gradient_is_a_gradient_at_the_decoder(kind):
    """`|p - y|` is that of the loss at the decoder's bias, `|p - y||h|` that at its own weights, tied or not."""
    objective = objective_of(kind)
    model = untied(kind, objective.model)
    decoder = model.get_output_embeddings()
    sentences = objective.sentences(DATA, 0)
    for name, quantity in {
        "loss": Tensor.item,
        "logit": lambda loss: norm_of(loss, [decoder.bias]),
        "last-layer": lambda loss: norm_of(loss, [decoder.weight]),
    }.items():
        expected = measured_by_hand(objective, model, quantity)
        np.testing.assert_allclose(objective.scoring.at_targets(name, sentences), expected, rtol=EXACT)


def test_an_engine_that_was_asked_for_is_not_replaced():
    objective = objective_of("deberta-v2", engine="onepass")
    with pytest.raises(EngineError):
        objective.scoring.at_targets("gradient", objective.sentences(DATA, 0))


def test_the_reference_engine_measures_the_same():
    one, other = (objective_of(engine=engine) for engine in ("onepass", "reference"))
    found, expected = (o.scoring.at_targets("gradient", o.sentences(DATA, 0)) for o in (one, other))
    torch.testing.assert_close(found, expected, rtol=EXACT, atol=0)


@pytest.mark.parametrize("error", [EXACT])
@pytest.mark.parametrize("kind", ["bert", "deberta-v2"])
def test_norms_of_sets_are_those_of_the_mean_loss(kind, error):
    """Three masks of each sentence, of different sizes, with their corruption."""
    objective = objective_of(kind, mask_rate=0.4)
    sentences = objective.sentences(DATA, 0)
    keys = hash_key(1, sentences.keys.unsqueeze(1), torch.arange(3))
    masks = objective.proposal.draw(sentences, objective.scores(sentences), keys, objective.scoring)
    found = objective.scoring.norms_of_sets(sentences)(masks.positions, masks.valid, masks.keys)
    batch, parameters = objective.corrupted(sentences, masks), list(objective.model.parameters())
    assert not masks.valid.all()
    for cell in range(9):
        row, length = cell // 3, int(sentences.attended[cell // 3].sum())
        targets = masks.positions[cell, masks.valid[cell]]
        logits = objective.model(input_ids=batch["input_ids"][cell : cell + 1, :length]).logits[0, targets]
        expected = norm_of(F.cross_entropy(logits, sentences.ids[row, targets]), parameters)
        assert float(found[cell]) == pytest.approx(expected, rel=error)


def one_sentence(total: int, k: int, contexts: int) -> tuple[MaskedLM, Sentences]:
    corpus = cases.corpus([total + 2])
    objective = MaskedLM(cases.model("bert"), cases.tokenizer(), corpus, mask_rate=k / total - 1e-9, contexts=contexts)
    return objective, objective.sentences([0], 0)


@pytest.mark.parametrize(("total", "k"), [(6, 2), (5, 2), (7, 3), (8, 8), (3, 1)])
def test_every_position_is_a_target_in_every_context(total, k):
    """Once, but for those that fill the last mask, `ceil(T/k) k - T` of them."""
    objective, sentence = one_sentence(total, k, contexts=50)
    for masks in objective.scoring._covering(sentence)[0].tolist():
        assert len(masks) == -(-total // k)
        assert all(len(set(mask)) == k and mask == sorted(mask) for mask in masks)
        times = Counter(position for mask in masks for position in mask)
        assert set(times) == set(range(1, total + 1))
        assert sorted(times.values()) == [1] * (2 * total - k * len(masks)) + [2] * (k * len(masks) - total)


@pytest.mark.parametrize(("total", "k"), [(6, 2), (5, 2), (7, 3)])
def test_given_a_position_the_others_of_its_mask_are_uniform(total, k):
    """Each of a context's masks, the last included, over 6,000 contexts: chi-square, p > 1e-6 each."""
    objective, sentence = one_sentence(total, k, contexts=6000)
    positions = objective.scoring._covering(sentence)[0]
    for number in range(positions.shape[1]):
        found = Counter(tuple(mask) for mask in positions[:, number].tolist())
        for i in range(1, total + 1):
            having = [found[s] for s in combinations(range(1, total + 1), k) if i in s]
            assert stats.chisquare(having).pvalue > RARE


def test_contexts_are_independent_of_the_masks_that_are_drawn():
    """First mask of the first context against the first drawn one: 15 x 15 pairs over 3,375 sentences, p > 1e-6."""
    corpus = cases.corpus([8] * 3375)
    objective = MaskedLM(cases.model("bert"), cases.tokenizer(), corpus, mask_rate=0.33, contexts=1)
    drawn = objective.draw(range(3375), (1,), 0)["target_positions"].tolist()
    sentences = objective.sentences(range(3375), 0)
    pairs = Counter()
    for row, mask in enumerate(drawn):
        positions, _ = objective.scoring._covering(sentences.rows([row]))
        pairs[tuple(positions[0, 0].tolist()), tuple(mask)] += 1
    subsets = list(combinations(range(1, 7), 2))
    assert stats.chisquare([pairs[a, b] for a in subsets for b in subsets]).pvalue > RARE


@pytest.mark.parametrize("quantity", QUANTITIES)
def test_what_is_known_is_not_measured_again_and_does_not_change(quantity):
    """Whatever was asked for before, in whichever order, and beside whatever longer sentence."""
    objective = objective_of()
    sentences = objective.sentences(DATA, 0)
    found = objective.scoring.at_targets(quantity, sentences)
    other = objective_of().scoring
    for name in QUANTITIES:
        other.at_targets(name, objective.sentences([2, 1], 0))
    torch.testing.assert_close(other.at_targets(quantity, sentences), found, rtol=EXACT, atol=0)
    turned = objective.scoring.at_targets(quantity, sentences.rows([2, 0]))
    assert torch.equal(turned, found[:, [2, 0]])
    with torch.no_grad():
        next(iter(objective.model.parameters())).mul_(1.5)
    assert torch.equal(objective.scoring.at_targets(quantity, sentences), found)
    assert not torch.allclose(objective.scoring.fresh().at_targets(quantity, sentences), found)


def test_seeds_contexts_and_counts_have_values_of_their_own():
    """A mask rate of its own has other contexts, although the sentence's key is the same."""
    objective = objective_of(contexts=2)
    first = objective.scoring.at_targets("loss", objective.sentences(DATA, 0))
    assert not torch.allclose(first[0], first[1])
    assert not torch.allclose(objective.scoring.at_targets("loss", objective.sentences(DATA, 1)), first)
    more = objective.under("uniform/simple@0.6")
    found = more.scoring.at_targets("loss", more.sentences(DATA, 0))
    expected = cases.objective(padded=True, sentences=3, mask_rate=0.6).scoring
    torch.testing.assert_close(found, expected.at_targets("loss", more.sentences(DATA, 0)), rtol=EXACT, atol=0)
    assert not torch.allclose(found, first)


def test_a_score_is_measured_once_whatever_is_drawn(monkeypatch):
    objective = objective_of(proposal="oracle/midzuno")
    asked, norms = [], Scoring._norms
    monkeypatch.setattr(Scoring, "_norms", lambda *args: (asked.append(1), norms(*args))[1])
    objective.draw(DATA, (2,), 0)
    assert len(asked) == 3
    batch = objective.draw(DATA, (5,), 0)
    objective.under("oracle^2/pps").draw(DATA, (3,), 0)
    assert len(asked) == 3
    fewer = objective_of(proposal="oracle/midzuno").draw(DATA, (2,), 0)
    some = torch.tensor([0, 1, 5, 6, 10, 11])
    torch.testing.assert_close(batch["target_weights"][some], fewer["target_weights"], rtol=EXACT, atol=0)


@pytest.mark.parametrize("proposal", ["loss/pps", "oracle^0.5/midzuno"])
def test_short_sentences_can_be_scored_after_a_long_one(proposal):
    """As every study does that looks at one sentence first."""
    objective = objective_of(proposal=proposal)
    objective.draw([0], (2,), 0)
    assert len(objective.draw([0, 1], (2,), 0)["input_ids"]) == 4


def test_a_gradient_that_is_not_finite_is_reported():
    objective = objective_of()
    with torch.no_grad():
        objective.model.get_output_embeddings().bias[7] = torch.inf
    with pytest.raises(GradvarError, match="a gradient is not finite while scores are measured; try --dtype float64"):
        objective.scoring.at_targets("gradient", objective.sentences(DATA, 0))


def test_a_model_that_names_no_decoder_is_refused(monkeypatch):
    objective = objective_of()
    monkeypatch.setattr(objective.model, "get_output_embeddings", lambda: None)
    with pytest.raises(GradvarError, match="BertForMaskedLM names no output embeddings"):
        objective.scoring.at_targets("last-layer", objective.sentences(DATA, 0))
    assert (objective.scoring.at_targets("loss", objective.sentences(DATA, 0)) > 0).any()


def test_what_else_a_score_may_ask_for():
    objective = objective_of()
    ids = torch.tensor([[7, 8], [9, 7]])
    table = objective.model.get_input_embeddings().weight
    assert torch.equal(objective.scoring.token_embeddings(ids), table[ids])
    assert not objective.scoring.token_embeddings(ids).requires_grad
    words = np.concatenate([s[1:-1] for s in objective.corpus.sequences])
    assert objective.scoring.token_counts().tolist() == np.bincount(words, minlength=60).tolist()
    assert objective.scoring.vocabulary()["w2"] == 7
