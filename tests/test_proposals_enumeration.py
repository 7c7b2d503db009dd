"""Proposals on a tiny BERT of which every mask is known: what they draw, what they expect, and what `compare` finds.

Targets become mask tokens, always, so that a cell is its set of targets; the model's targets interact, so that
weights of single positions cannot be exact. The exact values follow from `q(S)` by brute force (`masking/enumeration`)
and from autograd gradients `g_i(S)` of every target of every set.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import combinations, product
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from transformers import BertTokenizerFast

from gradvar import arms, comparing, runner
from gradvar.decomposition.merit import Draws
from gradvar.huggingface.corpus import Corpus
from gradvar.huggingface.masked_lm import MaskedLM
from gradvar.mapnet.config import MapNetConfig
from gradvar.mapnet.network import MapNet
from gradvar.masking.corruption import Replacement
from gradvar.masking.masks import Masks
from tests import cases
from tests.masking import enumeration
from tests.masking.enumeration import RARE, Chances, Set

VOCABULARY = [*cases.SPECIAL, "w0", "##a", "w1"]
SENTENCES = ((5, 6, 7, 5), (7, 6, 5, 5, 6))  # words of one and of two tokens; T = 4 and 5
RATE, K = 0.4, 2
ALWAYS_MASKED = Replacement(1, 0, 0)
TABLE = "w0\t0.4\n##a\t1.1\nw1\t2.5\n"

SCORES = ("uniform", "loss", "logit", "last-layer", "frequency", "oracle", "file", "file^2")
FITTED = ("mapnet", "mapnet-permuted")
SETS = ("midzuno", "midzuno~0.3", "conditional-poisson", "conditional-poisson:1", "conditional-poisson~0.3")
POSITIONS = ("pps", "pps~0.3", "pps:systematic")
OTHERS = ("hard", "hard~0.3", "span:2", "whole-word")
PAIRS = [("uniform", "simple"), *product(SCORES + FITTED, SETS + POSITIONS + OTHERS)]


def tokenizer() -> BertTokenizerFast:
    return BertTokenizerFast(vocab={token: i for i, token in enumerate(VOCABULARY)}, model_max_length=512)


def masked_lm(sentences, copies=1, **options) -> MaskedLM:
    rows = tuple(np.array([cases.CLS, *words, cases.SEP], dtype=np.int32) for words in sentences) * copies
    corpus = Corpus(rows, "enumerated", "0" * 64, 7, 1e-3)
    model = cases.model("bert", vocabulary=len(VOCABULARY), width=8)
    return MaskedLM(model, tokenizer(), corpus, mask_rate=RATE, replacement=ALWAYS_MASKED, **options)


@pytest.fixture(scope="module")
def objective() -> MaskedLM:
    """With a MAPNet of random weights, which scores every token differently."""
    torch.manual_seed(0)
    network = MapNet(MapNetConfig(len(VOCABULARY), 8, width=4, window=1, heads=1))
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return masked_lm(SENTENCES, mapnet=network)


@pytest.fixture(scope="module")
def propose(objective, tmp_path_factory):
    """The objective under `score/design`; `file` stands for a table of scores."""
    path = tmp_path_factory.mktemp("scores") / "table.tsv"
    path.write_text(TABLE)

    @cache
    def under(score: str, design: str) -> MaskedLM:
        return objective.under(f"{score.replace('file', f'file={path}')}/{design}")

    return under


def gradients_of(model: torch.nn.Module, words: tuple[int, ...], k: int = K) -> dict[Set, np.ndarray]:
    """`{S: [k, coordinates]}` autograd gradients of the losses at the targets, all of them masked."""
    original = torch.tensor([cases.CLS, *words, cases.SEP])
    parameters, found = list(model.parameters()), {}
    for subset in combinations(range(1, len(words) + 1), k):
        ids = original.clone()
        ids[list(subset)] = cases.MASK
        logits = model(input_ids=ids.unsqueeze(0)).logits[0]
        rows = []
        for i in subset:
            loss = F.cross_entropy(logits[i], original[i])
            parts = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True, materialize_grads=True)
            rows.append(torch.cat([g.flatten() for g in parts]).numpy())
        found[subset] = np.array(rows)
    return found


@pytest.fixture(scope="module")
def table(objective) -> list[dict[Set, np.ndarray]]:
    return [gradients_of(objective.model, words) for words in SENTENCES]


def chances_of(under: MaskedLM, row: int, design: str) -> Chances:
    """`q(S)` by brute force, of the sets that can be."""
    name, _, epsilon = design.partition("~")
    sentences = under.sentences(range(len(SENTENCES)), 0)
    chances = enumeration.chances_of(name, float(epsilon or 0), sentences, under.scores(sentences), row)
    return {subset: chance for subset, chance in chances.items() if chance > 1e-12}


def weights_of(design: str, chances: Chances, total: int) -> dict[Set, np.ndarray]:
    """`a_i(S)` by their definition: `p/(k q)` for sets, `1/(T pi_i)` for positions, `1/k` for other objectives."""
    number = len(list(combinations(range(total), K)))
    if design in (*SETS, "simple"):
        return {subset: np.full(K, 1 / (number * q * K)) for subset, q in chances.items()}
    if design in POSITIONS:
        pi = enumeration.inclusion_by(chances, total + 2).numpy()
        return {subset: 1 / (total * pi[list(subset)]) for subset in chances}
    return {subset: np.full(K, 1 / K) for subset in chances}


def cells_by_set(under: MaskedLM, masks: int, seed: int = 0) -> Iterator[tuple[dict[Set, int], dict]]:
    """For each sentence the first drawn cell of every set, and what was drawn."""
    batch = under.draw(range(len(SENTENCES)), (masks,), seed)
    for row in range(len(SENTENCES)):
        mine = {name: tensor[row * masks : (row + 1) * masks] for name, tensor in batch.items()}
        first: dict[Set, int] = {}
        for cell, positions in enumerate(mine["target_positions"].tolist()):
            first.setdefault(tuple(positions), cell)
        yield first, mine


def gradient(model: torch.nn.Module, value: torch.Tensor) -> np.ndarray:
    found = torch.autograd.grad(value, list(model.parameters()), allow_unused=True, materialize_grads=True)
    return torch.cat([g.flatten() for g in found]).numpy()


@pytest.mark.parametrize(("score", "design"), PAIRS)
def test_drawn_cells_have_the_enumerated_sets_and_weights_and_their_mean_gradient(propose, table, score, design):
    """`sum_S q(S) loss(cell of S)`, with the weights that were drawn, has the gradient of the enumeration, to 1e-10.

    A set with a chance of 0.003 or more is missing among 4,000 draws for one seed in 160,000.
    """
    under = propose(score, design)
    for row, (first, batch) in enumerate(cells_by_set(under, 4000)):
        chances = chances_of(under, row, design)
        assert set(first) <= set(chances)
        assert set(first) >= {subset for subset, q in chances.items() if q > 0.003}
        weights = weights_of(design, chances, len(SENTENCES[row]))
        for subset, cell in first.items():
            np.testing.assert_allclose(batch["target_weights"][cell], weights[subset], rtol=1e-9)
        losses = under.losses({name: tensor[list(first.values())] for name, tensor in batch.items()})
        q = torch.tensor([chances[subset] for subset in first], dtype=torch.float64)
        mean = gradient(under.model, q @ losses)
        expected = sum(chances[subset] * weights[subset] @ table[row][subset] for subset in first)
        if under.proposal.design.unbiased == "every model":
            expected = np.mean([g.mean(axis=0) for g in table[row].values()], axis=0)
        np.testing.assert_allclose(mean, expected, atol=1e-10 * np.abs(expected).max(), rtol=0)


def mean_gradients(under: MaskedLM, table: list, design: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """For each sentence the expected gradient by the enumeration, and that of uniform masks."""
    for row, gradients in enumerate(table):
        chances = chances_of(under, row, design)
        weights = weights_of(design, chances, len(SENTENCES[row]))
        uniform = np.mean([g.mean(axis=0) for g in gradients.values()], axis=0)
        yield sum(q * weights[subset] @ gradients[subset] for subset, q in chances.items()), uniform


@pytest.mark.parametrize(("score", "design"), PAIRS)
def test_the_bias_is_zero_where_it_is_said_to_be_and_only_there(propose, table, score, design):
    """Position weights are not exact as targets interact: the counterexample. Equal scores leave uniform masks."""
    under = propose(score, design)
    exact = under.proposal.design.unbiased == "every model"
    assert exact == (design in (*SETS, "simple"))
    alike = exact or (score == "uniform" and design not in ("span:2", "whole-word"))
    for found, uniform in mean_gradients(under, table, design):
        gap = np.linalg.norm(found - uniform) / np.linalg.norm(uniform)
        assert gap < 1e-10 if alike else gap > 1e-3


def study_of(under: MaskedLM, row: int, gradients: dict[Set, np.ndarray]) -> SimpleNamespace:
    """What `arms` knows of a study, with every set once as the cells of one sentence."""
    cells = np.array([g.mean(axis=0) for g in gradients.values()])
    norms = (cells**2).sum(axis=1)
    positions = torch.tensor(list(gradients))
    valid = torch.ones_like(positions, dtype=torch.bool)
    return SimpleNamespace(
        objective=under,
        whole=SimpleNamespace(moments=SimpleNamespace(cell_norm2=norms[None])),
        sentences=under.sentences(range(len(SENTENCES)), 0).rows([row]),
        masks=Masks(positions, valid, valid / K, positions[:, 0]),
        draws=Draws(np.array([norms.mean() - (cells.mean(axis=0) ** 2).sum()]), np.zeros(1), np.zeros(1), None),
    )


@pytest.mark.parametrize(("score", "design"), [p for p in PAIRS if p[1] in (*SETS, "simple")])
def test_the_variance_by_weights_is_the_enumerated_one(propose, table, score, design):
    """`V + E_p[(w - 1)|g|^2]` over uniform cells is `E_q |w g|^2 - |mu|^2`, over all of them exactly."""
    under = propose(score, design)
    for row, gradients in enumerate(table):
        study = study_of(under, row, gradients)
        scores = under.scores(under.sentences(range(len(SENTENCES)), 0))[row : row + 1]
        found = arms.reweighted(study, under.proposal, scores, None)
        chances = chances_of(under, row, design)
        weights = weights_of(design, chances, len(SENTENCES[row]))
        second = sum(q * np.square(weights[s] @ gradients[s]).sum() for s, q in chances.items())
        mu = np.mean([g.mean(axis=0) for g in gradients.values()], axis=0)
        assert found.mask[0] == pytest.approx(second - mu @ mu, rel=1e-10)


def pools(number: int, size: int, scores: np.ndarray, epsilon: float) -> Iterator[tuple[tuple[int, ...], np.ndarray]]:
    """Every pool of uniform sets, and the chances of its members."""
    for pool in product(range(number), repeat=size):
        mine = scores[list(pool)]
        yield pool, (1 - epsilon) * mine / mine.sum() + epsilon / size


@pytest.mark.parametrize("design", ["pool:1", "pool:2", "pool:3", "pool:3~0.2"])
@pytest.mark.parametrize("score", ["file", "oracle", "oracle^0.5", "loss"])
def test_a_pools_second_moment_is_estimated_without_bias(propose, table, score, design):
    """Over all 6^4 samples of 4 cells of the sentence with 4 positions, equally likely."""
    under, gradients = propose(score, design), table[0]
    study, kind = study_of(under, 0, gradients), under.proposal.design
    scores = arms.cell_scores(study, under.proposal, under.scores(under.sentences([0, 1], 0))[:1])[0]
    norms = study.whole.moments.cell_norm2[0]
    samples = np.array(list(product(range(len(norms)), repeat=4)))
    found = arms.pool_moment(norms[samples], scores[samples], kind).mean()
    moments = [
        (norms[list(pool)] / chances).sum() / kind.candidates**2
        for pool, chances in pools(len(norms), kind.candidates, scores, kind.epsilon)
    ]
    assert found == pytest.approx(np.mean(moments), rel=1e-10)


@pytest.mark.parametrize(("score", "masks"), [("file", 20_000), ("file^2", 20_000), ("oracle", 100)])
@pytest.mark.parametrize("design", ["pool:2", "pool:2~0.2"])
def test_pools_keep_sets_with_the_enumerated_weights(propose, table, score, masks, design):
    """Set and weight of each cell are those of one of the 36 pools, with their chances: chi-square, p > 1e-6."""
    under = propose(score, design)
    study = study_of(under, 0, table[0])
    scores = arms.cell_scores(study, under.proposal, under.scores(under.sentences([0, 1], 0))[:1])[0]
    subsets = list(table[0])
    expected: dict[tuple[Set, float], float] = {}
    for pool, chances in pools(len(subsets), 2, scores, under.proposal.design.epsilon):
        for member, chance in zip(pool, chances, strict=True):
            key = subsets[member], round(1 / (2 * chance * K), 7)
            expected[key] = expected.get(key, 0.0) + chance / len(subsets) ** 2
    for subset in subsets:  # so that the pool is unbiased
        found = sum(K * weight * chance for (s, weight), chance in expected.items() if s == subset)
        assert found == pytest.approx(1 / len(subsets), rel=1e-6)
    batch = under.draw([0], (masks,), 1)
    cells = zip(batch["target_positions"].tolist(), batch["target_weights"][:, 0].tolist(), strict=True)
    counts = dict.fromkeys(expected, 0)
    for positions, weight in cells:
        counts[tuple(positions), round(weight, 7)] += 1
    if masks > 1000:
        observed = np.array(list(counts.values()))
        assert stats.chisquare(observed, np.array(list(expected.values())) * masks).pvalue > RARE


@pytest.mark.parametrize("pair", [("file", "pps"), ("file", "midzuno~0.3"), ("frequency", "whole-word")])
def test_masks_of_a_masked_lm_have_the_chances_of_their_proposal(propose, pair):
    """Chi-square over 20,000 masks of each sentence: right draws fail for one seed in a million each."""
    under = propose(*pair)
    sentences = under.sentences([0, 1], 0)
    batch = under.draw([0, 1], (20_000,), 2)
    for row in range(len(sentences.ids)):
        chances = chances_of(under, row, pair[1])
        found = [tuple(p) for p in batch["target_positions"][row * 20_000 : (row + 1) * 20_000].tolist()]
        observed = np.array([found.count(subset) for subset in chances])
        assert observed.sum() == len(found)
        assert stats.chisquare(observed, 20_000 * np.array(list(chances.values()))).pvalue > RARE


def test_disjoint_masks_of_a_masked_lm_are_every_pair_alike(objective):
    """Each of the 6 and 30 ordered pairs with both weights 1/k; chi-square over 6,000 draws, p > 1e-6 each."""
    batch = objective.under("uniform/disjoint:2").draw([0, 1], (6000, 2), 0)
    assert (batch["target_weights"] == 1 / K).all()
    masks = [tuple(p) for p in batch["target_positions"].tolist()]
    drawn = list(zip(masks[::2], masks[1::2], strict=True))
    for row, words in enumerate(SENTENCES):
        subsets = list(combinations(range(1, len(words) + 1), K))
        counts = {(a, b): 0 for a, b in product(subsets, repeat=2) if not set(a) & set(b)}
        for pair in drawn[6000 * row : 6000 * (row + 1)]:
            counts[pair] += 1
        assert stats.chisquare(list(counts.values())).pvalue > RARE


ALIKE = ((5, 6, 7, 5, 6), (7, 6, 5, 5, 7), (5, 7, 7, 6, 5), (7, 7, 5, 6, 6))  # T = 5 each
COPIES, STUDIES, SAMPLED, MASKS = 500, 40, 16, 6
PPS = "file^-1/pps"
COMPARED = (PPS, "file/midzuno", "file/conditional-poisson:1", "file^2/pool:3", "uniform/disjoint:2")


@dataclass(frozen=True)
class Exact:
    """Over sentences: `V_mask` of uniform masks, and of a proposal's draw (K times), and the squared bias."""

    uniform: float
    variance: float
    bias2: float

    @property
    def variance_ratio(self) -> float:
        return self.variance / self.uniform

    @property
    def bias2_ratio(self) -> float:
        return self.bias2 / self.uniform


def exact_of(under: MaskedLM, proposal: str, tables: list[dict[Set, np.ndarray]], population: int) -> Exact:
    """By enumeration: of sets, of the pools of three sets, or of the pairs of disjoint sets.

    The bias is that of a sample without replacement: `|b|^2 - sigma_b^2/(P - 1)`, as for `|mu|^2`.
    """
    uniform, variance, bias = [], [], []
    sentences = under.sentences(range(len(ALIKE)), 0)
    scores = under.scores(sentences)
    name = proposal.partition("/")[2]
    for row, gradients in enumerate(tables):
        cells = {subset: g.mean(axis=0) for subset, g in gradients.items()}
        mu, norms = np.mean(list(cells.values()), axis=0), np.array([g @ g for g in cells.values()])
        times, drawn_mean = 1, mu
        if name == "pool:3":
            sums = np.array([float(scores[row, list(subset)].sum()) for subset in cells])
            every = [(norms[list(p)] / c).sum() / 9 for p, c in pools(len(cells), 3, sums, 0.0)]
            second = np.mean(every)
        elif name == "disjoint:2":
            pairs = [(cells[a] + cells[b]) / 2 for a in cells for b in cells if not set(a) & set(b)]
            times, second = 2, np.mean([g @ g for g in pairs])
        else:
            q = enumeration.chances_of(name, 0.0, sentences, scores, row)
            weights = weights_of(name, q, len(ALIKE[row]))
            drawn_gradients = {subset: weights[subset] @ gradients[subset] for subset in cells}
            drawn_mean = sum(q[subset] * g for subset, g in drawn_gradients.items())
            second = sum(q[subset] * g @ g for subset, g in drawn_gradients.items())
        uniform.append(norms.mean() - mu @ mu)
        variance.append(times * (second - drawn_mean @ drawn_mean))
        bias.append(drawn_mean - mu)
    mean = np.mean(bias, axis=0)
    spread = np.mean([b @ b for b in bias]) - mean @ mean
    return Exact(np.mean(uniform), np.mean(variance), mean @ mean - spread / (population - 1))


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """For each proposal what is exact, and 40 studies' estimates of it; costs and the second ceiling left out."""
    path = tmp_path_factory.mktemp("scores") / "table.tsv"
    path.write_text(TABLE)
    lm = masked_lm(ALIKE, COPIES, contexts=1)
    with torch.no_grad():  # so that targets interact
        for name, parameter in lm.model.named_parameters():
            parameter *= 10 if ".attention." in name and "LayerNorm" not in name else 1
    tables = [gradients_of(lm.model, words) for words in ALIKE]
    texts = [text.replace("file", f"file={path}") for text in COMPARED]
    exact = [exact_of(lm.under(full), text, tables, len(lm)) for full, text in zip(texts, COMPARED, strict=True)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arms, "_ROUNDS", 2)
        patch.setattr(runner, "_CELLS_CPU", SAMPLED * MASKS)
        patch.setattr(comparing, "gradient_norms", lambda *arguments: None)
        studies = [comparing.compare(lm, texts, sentences=SAMPLED, masks=MASKS, seed=seed) for seed in range(STUDIES)]
    return {
        text: (known, [(study.variance["mask"].estimate, study[full]) for study in studies])
        for text, full, known in zip(COMPARED, texts, exact, strict=True)
    }


def within(errors: list[float]) -> bool:
    """Whether a mean is zero, within 4 standard errors: right estimators fail for one seed in 3,600 (t_39)."""
    return abs(np.mean(errors)) < 4 * np.std(errors, ddof=1) / np.sqrt(len(errors))


@pytest.mark.full  # 40 studies
@pytest.mark.parametrize("proposal", COMPARED)
def test_compare_meets_the_exact_variance_ratio(compared, proposal):
    """`(ratio - exact) V_mask^` has mean zero, as numerator and denominator are unbiased."""
    exact, found = compared[proposal]
    assert abs(exact.variance_ratio - 1) > 0.02
    assert within([mask * (row.variance_ratio.estimate - exact.variance_ratio) for mask, row in found])


@pytest.mark.full  # 40 studies
def test_compare_meets_the_exact_bias_of_position_weights(compared):
    exact, found = compared[PPS]
    assert exact.bias2_ratio > 0.01
    assert within([mask * (row.bias2_ratio.estimate - exact.bias2_ratio) for mask, row in found])


@pytest.mark.full  # 40 studies
def test_the_interval_of_the_bias_covers_it(compared):
    """30 of 40 at least. From 16 sentences we ask for 90 % in place of 95: such intervals fail for one seed in 680."""
    exact, found = compared[PPS]
    intervals = [row.bias2_ratio for _, row in found]
    assert sum(e.low <= exact.bias2_ratio <= e.high for e in intervals) >= 30


@pytest.mark.full  # 40 studies
@pytest.mark.parametrize("proposal", COMPARED[1:])
def test_no_bias_is_looked_for_where_there_is_none_by_design(compared, proposal):
    exact, found = compared[proposal]
    assert abs(exact.bias2) < 1e-20
    assert {(row.declared_unbiased, row.bias2_ratio.estimate) for _, row in found} == {(True, 0.0)}
