"""What a MAPNet is worth, by formulas written out once more, on norms that are known and on a tiny BERT's."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats

from gradvar.huggingface.masked_lm import MaskedLM
from gradvar.judging import Judge
from gradvar.mapnet.calibration import Calibration, Candidate
from gradvar.mapnet.network import Reading
from gradvar.mapnet.score import MapNetScore
from gradvar.masking.hashing import hash_key
from tests import cases

DATA = [7, 2, 11, 0, 5, 9, 4, 1, 10, 3, 8, 6]
TOTALS = [(10, 7, 9, 6, 8)[i % 5] for i in DATA]  # maskable positions, behind a [CLS]
COUNTS = [max(1, int(0.3 * total + 0.5)) for total in TOTALS]
TRIED = Candidate(0.5, 0.2, 0.9, 0.8, 1.0)
CALIBRATION = Calibration(**vars(TRIED), fell_back=False, tried=TRIED, sentences=6)
NOTHING = "what can be removed is not clearly positive; hold out more sentences, in more contexts"


@pytest.fixture(scope="module")
def objective():
    return cases.objective(padded=True, contexts=3)


@pytest.fixture
def norms(monkeypatch) -> np.ndarray:
    """Known norms, small ones, in place of measured ones; elsewhere than at maskable positions they are absurd."""
    rng = np.random.default_rng(0)
    found = 1e-6 * rng.lognormal(sigma=0.5, size=(12, 12)) * rng.lognormal(sigma=0.2, size=(3, 12, 12))
    for row, total in enumerate(TOTALS):
        found[:, row, 0] = found[:, row, total + 1 :] = 1e4
    monkeypatch.setattr("gradvar.judging.gradient_norms", lambda *_: found)
    return found


def network(log_scores: np.ndarray) -> MapNetScore:
    said = Reading(torch.from_numpy(log_scores), torch.zeros(()))
    return MapNetScore(SimpleNamespace(config=SimpleNamespace(embeddings="own"), read=lambda ids, attention: said))


def logs_like(norms: np.ndarray) -> np.ndarray:
    return 0.4 * np.log(norms[0] + 1e-9) + np.random.default_rng(1).normal(scale=0.2, size=norms[0].shape)


def own(values: np.ndarray) -> list[np.ndarray]:
    """`[..., T]` of each sentence's maskable positions."""
    return [values[..., row, 1 : total + 1] for row, total in enumerate(TOTALS)]


def removed(scores: np.ndarray, squares: np.ndarray, epsilon: float = 0.0) -> np.ndarray:
    """`[mean_i f_i^2 - (mean_i s_i)(mean_i f_i^2/s_i)]/k`, where no inclusion probability is cut at one."""
    found = []
    for s, f2, k in zip(own(scores), own(squares), COUNTS, strict=True):
        assert k * s.max() <= s.sum()
        mixed = (1 - epsilon) * s + epsilon * s.mean()
        found.append((f2.mean() - s.mean() * (f2 / mixed).mean()) / k)
    return np.array(found)


def oracle(norms: np.ndarray) -> np.ndarray:
    """Scores by two contexts, judged by the third."""
    squares, turns = norms**2, ((0, 1, 2), (0, 2, 1), (1, 2, 0))
    return np.mean([removed(np.sqrt((squares[a] + squares[b]) / 2), squares[c], 0.1) for a, b, c in turns], axis=0)


def ceiling(norms: np.ndarray) -> np.ndarray:
    """`[mean_i f_i^2 - (mean_i f_i)^2]/k`, the second term less its bias by a jackknife over three contexts."""
    found = []
    for f2, k in zip(own(norms**2), COUNTS, strict=True):
        less = [np.sqrt((f2.sum(axis=0) - f2[c]) / 2).mean() ** 2 for c in range(3)]
        found.append((f2.mean() - 3 * np.sqrt(f2.mean(axis=0)).mean() ** 2 + 2 * np.mean(less)) / k)
    return np.array(found)


def test_shares_are_of_what_can_be_removed(objective, norms):
    """Of the ceiling, by all sentences or, if calibrated, the odd ones; captured: of what the oracle removes."""
    logs, squares = logs_like(norms), (norms**2).mean(axis=0)
    judge, net = Judge(objective, DATA, 0), network(logs)
    raw, mixed = (removed(np.exp(logs), squares, epsilon).sum() for epsilon in (0.0, 0.1))
    assert judge.ceiling_share(net).estimate == pytest.approx(raw / ceiling(norms).sum(), rel=1e-9)
    assert judge.captured_share(net).estimate == pytest.approx(mixed / oracle(norms).sum(), rel=1e-9)
    odd = removed(np.exp(0.5 * logs), squares, 0.2)[1::2].sum() / ceiling(norms)[1::2].sum()
    assert judge.calibrated_ceiling_share(net, CALIBRATION).estimate == pytest.approx(odd, rel=1e-9)


def test_the_norms_are_those_of_the_sentences_in_contexts_by_the_seed(objective):
    done = []
    judge = Judge(objective, DATA, 5, done.append)
    norms = objective.scoring.at_targets("gradient", objective.sentences(DATA, 5)).numpy()
    logs = 0.1 * logs_like(norms)
    share = removed(np.exp(logs), (norms**2).mean(axis=0)).sum() / ceiling(norms).sum()
    assert judge.ceiling_share(network(logs)).estimate == pytest.approx(share, rel=1e-6)
    assert done == [8, 12]


def test_a_calibration_trusts_scores_that_are_right(objective, norms):
    truth = np.log((norms**2).mean(axis=0)) / 2
    right, wrong = (Judge(objective, DATA, 0).calibrate(network(sign * truth)) for sign in (1, -1))
    assert (right.exponent, right.epsilon, wrong.exponent) == (1, 0, 0)


def test_the_others_are_measured_in_contexts_of_their_own(objective, norms, monkeypatch):
    """Roots of mean squares over contexts; one that is zero counts as a millionth of its sentence's mean."""
    measure, asked = objective.scoring.at_targets, {}

    def at_targets(quantity, sentences):
        asked[quantity] = sentences
        found = measure(quantity, sentences)
        found[:, 1, 3] = 0
        return found

    monkeypatch.setattr(objective.scoring, "at_targets", at_targets)
    judge = Judge(objective, DATA, 0)
    found = {name: share.estimate for name, share in judge.others().items()}
    expected = {"oracle": oracle(norms).sum() / ceiling(norms).sum()}
    for name, quantity, power in (("logit", "logit", 1), ("last-layer", "last-layer", 1), ("loss^0.25", "loss", 0.25)):
        scores = np.sqrt((at_targets(quantity, asked[quantity]).numpy() ** 2).mean(axis=0))
        scores[1, 3] = 1e-6 * own(scores)[1].mean()
        expected[name] = removed(scores**power, (norms**2).mean(axis=0), 0.1).sum() / ceiling(norms).sum()
        assert torch.equal(asked[quantity].ids, judge.sentences.ids)
        assert not (asked[quantity].keys == judge.sentences.keys).any()
    assert found == pytest.approx(expected, rel=1e-5)


def test_the_rank_correlation_is_a_mean_over_sentences_and_none_where_all_is_alike(objective, norms):
    """All scores of three sentences are alike, and all norms of a fourth."""
    norms[:, 5], logs = 2.0, logs_like(norms)
    logs[:3] = 1.0
    pairs = list(zip(own(logs), own((norms**2).mean(axis=0)), strict=True))
    expected = sum(stats.spearmanr(*pairs[row]).statistic for row in (3, 4, *range(6, 12))) / 12
    judge = Judge(objective, DATA, 0)
    assert judge.rank_correlation(network(logs)).estimate == pytest.approx(expected, rel=1e-9)
    assert judge.rank_correlation(network(np.ones_like(logs))).estimate == 0


@pytest.mark.parametrize("target", ["logit", "gradient"])
def test_the_rank_correlation_of_a_target_is_that_of_its_size_in_other_contexts(objective, norms, target):
    judge = Judge(objective, DATA, seed=0)
    elsewhere = replace(judge.sentences, keys=hash_key(24, judge.sentences.keys))
    sizes = own((objective.scoring.at_targets(target, elsewhere).numpy() ** 2).mean(axis=0))
    expected = np.mean(
        [stats.spearmanr(s, (f**2).mean(axis=0)).statistic for s, f in zip(sizes, own(norms), strict=True)]
    )
    assert judge.target_rank_correlation(target).estimate == pytest.approx(expected, rel=1e-9)


def test_true_norms_in_other_contexts_are_like_those_of_these_but_not_the_same(objective):
    found = Judge(objective, DATA, seed=0).target_rank_correlation("gradient")
    assert 0 < found.low < found.high < 0.99


def test_a_share_of_what_a_single_sentence_has_is_not_resolved(objective, norms):
    norms[:, 1:] = 1e-6
    assert ceiling(norms).mean() > 1e-15
    assert Judge(objective, DATA, 0).ceiling_share(network(logs_like(norms))).reason == NOTHING


@pytest.mark.parametrize(("length", "differ"), [(12, (1, 1, 1)), (3, (3, 12, 1)), (3, (3, 1, 1))])
def test_a_share_of_nothing_is_not_resolved(monkeypatch, length, differ):
    """If all norms are alike, or one position is maskable; ten times, as rounding errors may be of either sign."""
    text, rng = cases.corpus([length] * 12), np.random.default_rng(0)
    objective = MaskedLM(cases.model("bert"), cases.tokenizer(), text, mask_rate=0.3, contexts=3)
    net = network(rng.normal(size=(12, length)))
    for some in rng.lognormal(size=(10, *differ)):
        monkeypatch.setattr("gradvar.judging.gradient_norms", lambda *_, x=some: x * np.ones((3, 12, length)))
        judge = Judge(objective, DATA, 0)
        shares = [judge.ceiling_share(net), judge.captured_share(net), judge.calibrated_ceiling_share(net, CALIBRATION)]
        shares += judge.others().values()
        assert [share.estimate for share in shares] == [None] * 7
        assert {share.reason for share in shares} == {NOTHING}
        assert judge.rank_correlation(net).estimate == 0
