"""`compare` on a small model: against explicit gradients, its table and JSON, what it refuses, and the command."""

import json
import math
import os
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas
import pytest
import torch

import gradvar
from gradvar import arms, comparing
from gradvar.cli import main
from gradvar.decomposition import ceilings
from gradvar.decomposition.estimate import Estimate
from gradvar.errors import GradvarError
from gradvar.huggingface.masked_lm import MaskedLM
from gradvar.masking.hashing import hash_key
from gradvar.masking.proposal import Proposal
from gradvar.masking.sets import Pool, Simple
from gradvar.persample.parameters import select
from gradvar.report.comparison import COMPARISON_SCHEMA, Comparison, Row
from gradvar.report.writer import COMPARISON_FILES
from tests import cases
from tests.persample import oracle

SENTENCES, MASKS, SEED, BATCH = 8, 6, 3, 16
MIDZUNO, PPS, PAIRS, HARD = "frequency/midzuno", "frequency/pps~0.1", "uniform/disjoint:2", "frequency^2/hard"
ASKED = (MIDZUNO, PPS, PAIRS, HARD, "frequency/pool:3", "uniform/simple@0.3", "oracle/pool:2~0.5")
SAMPLED = np.random.default_rng(SEED).permutation(12)[:SENTENCES].tolist()  # of the 12 in the corpus
SIZES = {"sentences": SENTENCES, "masks": MASKS, "seed": SEED, "batch": BATCH}


def masked_lm(**options) -> MaskedLM:
    """Sentences of 10 words, two of them targets."""
    return cases.objective("bert", **({"mask_rate": 0.2} | options))


@pytest.fixture(scope="module")
def objective() -> MaskedLM:
    return masked_lm()


@pytest.fixture(scope="module")
def done() -> list[tuple[int, int]]:
    return []


@pytest.fixture(scope="module")
def result(objective, done) -> Comparison:
    return gradvar.compare(objective, ASKED, **SIZES, progress=lambda *cells: done.append(cells))


@pytest.fixture(scope="module")
def whole_field() -> Comparison:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gradvar.arms._ROUNDS", 2)
        return gradvar.compare(masked_lm(), sentences=4, masks=4)


def gradients(objective: MaskedLM, proposal: str = "uniform/simple") -> np.ndarray:
    """`[sentences, masks, coordinates]` of the study's cells, a backward pass each; K masks of a draw together."""
    under = objective.under(proposal)
    together = under.proposal.design.cells
    draws = (MASKS // together, together) if together > 1 else (MASKS,)
    found = oracle.explicit(objective.losses, under.draw(SAMPLED, draws, SEED), select(objective.model))
    return torch.cat([g.flatten(1) for g in found], dim=1).view(SENTENCES, MASKS, -1).numpy()


def within(vectors: np.ndarray) -> float:
    return vectors.var(axis=1, ddof=1).sum(axis=-1).mean()


def between(vectors: np.ndarray) -> float:
    means = vectors.mean(axis=1)
    return means.var(axis=0, ddof=1).sum() - within(vectors) / vectors.shape[1]


def norm2(vectors: np.ndarray) -> float:
    """Of the expectation of data, unbiased."""
    return (vectors.mean(axis=0) ** 2).sum() - vectors.var(axis=0, ddof=1).sum() / len(vectors)


@pytest.fixture(scope="module")
def uniform(objective) -> np.ndarray:
    return gradients(objective)


def test_the_variances_and_ceilings_are_those_of_decompose(objective, result, uniform):
    assert result.variance["mask"].estimate == pytest.approx(within(uniform), rel=1e-9)
    assert result.variance["data"].estimate == pytest.approx(between(uniform), rel=1e-9)
    assert result.variance["gradient_norm2"].estimate == pytest.approx(norm2(uniform.mean(axis=1)), rel=1e-9)
    other = gradvar.decompose(objective, sentences=SENTENCES, masks=MASKS, seed=SEED, headroom=True)
    assert set(result.headroom) == {"importance", "position", "stratification"}
    for name, estimate in result.headroom.items():
        for end in ("estimate", "low", "high"):
            assert getattr(estimate, end) == pytest.approx(getattr(other.headroom[name], end), rel=1e-9)
    spread = np.linalg.norm(uniform, axis=-1).var(axis=1, ddof=1).mean()
    assert result.headroom["importance"].estimate == pytest.approx(spread / within(uniform), rel=1e-9)
    masks = objective.draw(SAMPLED, (MASKS,), SEED)["target_positions"].view(SENTENCES, MASKS, -1).tolist()
    common = np.array([[[len(set(a) & set(b)) for b in row] for a in row] for row in masks])
    inner, ones = uniform @ uniform.swapaxes(1, 2), np.ones(SENTENCES, dtype=int)
    main_effects = ceilings.main_effects(inner, common, 10 * ones, 2 * ones).mean()
    assert result.headroom["stratification"].estimate == pytest.approx(main_effects / within(uniform), rel=1e-9)


def test_weights_of_whole_sets_are_put_on_the_uniform_cells(objective, result, uniform):
    """`V + mean (w - 1)|g|^2` with `w = mean_all(s)/mean_S(s)`; scores are minus logarithms of the tokens' shares."""
    drawn = objective.draw(SAMPLED, (MASKS,), SEED)["target_positions"].view(SENTENCES, MASKS, -1).numpy()
    words = np.concatenate([s[1:-1] for s in objective.corpus.sequences])
    scores = np.log(len(words) / np.maximum(np.bincount(words, minlength=60), 1))
    weights = np.empty((SENTENCES, MASKS))
    for row, datum in enumerate(SAMPLED):
        mine = scores[objective.corpus.sequences[datum]]
        weights[row] = [mine[1:-1].mean() / mine[mask].mean() for mask in drawn[row]]
    second = ((weights - 1) * (uniform**2).sum(axis=-1)).mean()
    row = result[MIDZUNO]
    assert row.variance_ratio.estimate == pytest.approx(1 + second / within(uniform), rel=1e-9)
    assert (row.declared_unbiased, row.own_cells) == (True, False)


@pytest.mark.parametrize("proposal", [PPS, HARD, "uniform/simple@0.3"])
def test_proposals_with_a_bias_are_measured_on_cells_of_their_own(objective, result, uniform, proposal):
    other, row = gradients(objective, proposal), result[proposal]
    mask, data = within(uniform), between(uniform)
    variance, own_data = within(other), between(other)
    bias2 = norm2(other.mean(axis=1) - uniform.mean(axis=1))
    assert (row.declared_unbiased, row.own_cells) == (False, True)
    assert row.variance_ratio.estimate == pytest.approx(variance / mask, rel=1e-8)
    assert row.bias2_ratio.estimate == pytest.approx(bias2 / mask, rel=1e-8)
    assert row.mse_ratio.estimate == pytest.approx((variance + bias2) / mask, rel=1e-8)
    assert row.mse_ratio_at_batch.estimate == pytest.approx((variance + BATCH * bias2) / mask, rel=1e-8)
    gain = (mask + data) / (variance + own_data + bias2)
    assert row.efficiency.estimate * row.cost_ratio.estimate == pytest.approx(gain, rel=1e-8)


@pytest.mark.parametrize("proposal", [PPS, HARD, "uniform/simple@0.3"])
def test_the_alignment_is_of_the_moments_of_both(objective, uniform, monkeypatch, proposal):
    """What is handed on, as the gain of so few sentences is not resolved."""
    handed, merit = [], comparing.Merit
    monkeypatch.setattr(comparing, "Merit", lambda *arguments: handed.append(arguments) or merit(*arguments))
    gradvar.compare(objective, [proposal], **SIZES)
    other = gradients(objective, proposal)
    own, means = handed[0][:2], (uniform.mean(axis=1), other.mean(axis=1))
    for draws, cells, mean in zip(own, (uniform, other), means, strict=True):
        parts = draws.mask.mean(), draws.data.mean(), draws.signal.mean()
        assert parts == pytest.approx((within(cells), between(cells), norm2(mean)), rel=1e-8)
    assert own[1].bias.mean() == pytest.approx(norm2(means[1] - means[0]), rel=1e-8)


def test_disjoint_masks_are_measured_by_the_draw(objective, result, uniform):
    pairs = gradients(objective, PAIRS).reshape(SENTENCES, MASKS // 2, 2, -1)
    of_draw, of_one = within(pairs.mean(axis=2)), pairs.var(axis=2, ddof=1).sum(axis=-1).mean()
    row = result[PAIRS]
    assert row.variance_ratio.estimate == pytest.approx(2 * of_draw / within(uniform), rel=1e-8)
    assert result.disjoint.covariance.estimate == pytest.approx(of_draw - of_one / 2, rel=1e-8)
    assert result.disjoint.balance.estimate == pytest.approx(between(uniform) + of_draw - of_one / 2, rel=1e-8)
    gain = (within(uniform) + between(uniform)) / (of_draw + between(uniform))
    assert row.batch_gain_at_batch.estimate * row.cost_ratio.estimate == pytest.approx(gain, rel=1e-8)
    assert (row.declared_unbiased, row.own_cells) == (True, True)
    assert 1 <= result.disjoint.masks <= 5


def test_weights_spread_as_their_design_says(objective, result):
    """Against all 45 sets: the largest exactly, ESS `1/E_p w` within 4 standard errors of 64 masks a sentence."""
    under = objective.under(MIDZUNO)
    scores = under.scores(under.sentences(SAMPLED, SEED))[:, 1:-1].numpy()
    pairs = np.array([(i, j) for i in range(10) for j in range(i)])
    weights = scores.mean(axis=1, keepdims=True) / scores[:, pairs].mean(axis=2)
    error = np.sqrt(weights.var(axis=1).mean() / 64 / SENTENCES)
    assert abs(1 / result[MIDZUNO].ess.estimate - weights.mean()) < 4 * error
    assert result[MIDZUNO].max_weight.estimate == pytest.approx(weights.max(), rel=1e-9)
    for name in (PAIRS, HARD, "uniform/simple@0.3"):
        assert (result[name].ess.estimate, result[name].max_weight.estimate) == pytest.approx((1, 1), rel=1e-9)
    assert result["oracle/pool:2~0.5"].max_weight.estimate <= 2


def test_costs_are_of_drawing_passes_scoring_and_the_sentence(objective, monkeypatch):
    """With clocks that stand still: a pass takes 2 s, or 3 at another rate, a sentence 1 ms, scoring 4 s."""
    monkeypatch.setattr(
        "gradvar.arms.time_passes",
        lambda objectives, *_: np.array([[2.0 if o.mask_rate == 0.2 else 3.0] * 3 for o in objectives]),
    )
    monkeypatch.setattr(
        "gradvar.arms.time_drawing", lambda study, proposal, *_: np.full(3, 0.5 if proposal == Proposal() else 0.75)
    )
    monkeypatch.setattr("gradvar.arms.time_scoring", lambda *_: np.array([3.0, 5.0]))
    rows = gradvar.compare(objective, [MIDZUNO, PAIRS, "uniform/simple@0.3"], sentences=4, masks=4, batch=1).proposals
    for row, passes in zip(rows[1:], (2, 4, 3), strict=True):
        assert row.cost_ratio.estimate == pytest.approx((0.75 + passes + 0.001 + 4) / 2.501)
        assert row.cost_ratio_without_scoring.estimate == pytest.approx((0.75 + passes + 0.001) / 2.501)
        free = row.efficiency_at_batch.estimate * row.cost_ratio.estimate
        assert row.efficiency_without_scoring.estimate * row.cost_ratio_without_scoring.estimate == pytest.approx(free)
        # The clocks of draws and passes have no error, the one of scoring of 1 s has; t of one degree of freedom.
        reach = 12.706 / (0.75 + passes + 0.001 + 4)
        assert math.log(row.cost_ratio.high / row.cost_ratio.estimate) == pytest.approx(reach, rel=1e-4)
        assert row.cost_ratio_without_scoring.high == pytest.approx(row.cost_ratio_without_scoring.low)


def test_scoring_is_timed_once_a_score(objective, monkeypatch):
    timed = []
    monkeypatch.setattr("gradvar.arms.time_scoring", lambda _, p, passes: timed.append(str(p)) or np.array([1.0, 2.0]))
    asked = ["loss/midzuno", "loss^0.5/pps", "loss/pool:2", "loss/hard@0.3", "logit/pps"]
    oracle_pools = ["oracle/pool:2", "oracle/pool:3", "oracle^0.5/pool:3"]
    gradvar.compare(objective, [*asked, *oracle_pools], sentences=4, masks=4)
    assert timed == [asked[0], *asked[3:], *oracle_pools[:2]]


def test_a_scores_own_way_to_score_cells_is_paid_for(objective):
    """Its candidates are scored as they are drawn: three of every draw."""
    scored = []
    proposal = Proposal(WholeCells(lambda positions: scored.append(len(positions)) or 1.0 + positions[:, 0]), Pool(3))
    study = SimpleNamespace(objective=objective, measured=SimpleNamespace(data=np.arange(6)), seed=0)
    scores = objective.under(proposal).scores(objective.sentences(range(6), 0))
    assert (arms.time_drawing(study, proposal, scores) > 0).all()
    assert set(scored) == {18}


def test_the_oracles_pool_pays_a_pass_for_every_candidate(objective):
    study = SimpleNamespace(objective=objective, measured=SimpleNamespace(data=np.arange(6)), seed=0)
    passes = np.array([2.0, 3.0])
    for text, candidates in {"oracle/pool:3": 3, "oracle^0.5/pool:4~0.1": 4}.items():
        assert arms.time_scoring(study, objective.read(text), passes).tolist() == [candidates * x for x in passes]
    assert 0 < arms.time_scoring(study, objective.read("frequency/pool:3"), passes).max() < 1


def test_progress_grows_to_the_whole(result, done):
    cells, totals = np.array(done).T
    assert result.study["masks"] == MASKS
    assert (np.diff(cells) >= 0).all()
    assert set(totals) == {cells[-1]}


def assert_estimate(value: dict, name: str) -> None:
    assert set(value) <= {"estimate", "low", "high", "reason"}, name
    numbers = [value[end] for end in ("estimate", "low", "high") if value.get(end) is not None]
    assert all(isinstance(x, (int, float)) and math.isfinite(x) for x in numbers), name
    if len(numbers) < 3:
        assert value["reason"], name
    else:
        assert value["low"] <= value["estimate"] <= value["high"], name


TEXTS = ("proposal", "score", "design", "declared_unbiased", "own_cells")
ALIGNMENT = ("cosine", "batch_gain", "batch_gain_at_batch")
NUMBERS = [f.name for f in fields(Row) if f.name not in TEXTS]


def assert_schema(printed: dict) -> None:
    keys = ["schema", "headroom", "disjoint", "variance", "proposals", "study", "provenance", "notices"]
    assert list(printed) == keys
    assert printed["schema"] == COMPARISON_SCHEMA == "gradvar/comparison/v1"
    assert set(printed["headroom"]) == {"importance", "position", "stratification"}
    assert set(printed["variance"]) == {"data", "mask", "gradient_norm2"}
    assert set(printed["disjoint"]) == {"covariance", "balance", "masks_per_sentence"}
    advice = {name: printed["disjoint"][name] for name in ("covariance", "balance")}
    for name, value in (printed["headroom"] | printed["variance"] | advice).items():
        assert_estimate(value, name)
    for row in printed["proposals"]:
        assert list(row) == [*TEXTS, *(n for n in NUMBERS if n not in ALIGNMENT), "alignment"]
        assert list(row["alignment"]) == list(ALIGNMENT)
        for name in NUMBERS:
            assert_estimate(row["alignment"][name] if name in ALIGNMENT else row[name], f"{row['proposal']} {name}")


def test_the_json_follows_the_schema(result, whole_field):
    for comparison in (result, whole_field):
        assert_schema(json.loads(json.dumps(comparison.to_json(), allow_nan=False)))
    printed = result.to_json()
    expected = {**SIZES, "mask_rate": 0.2, "contexts": 2, "population": 12, "engine": "onepass", "dtype": "float64"}
    assert printed["study"].items() >= expected.items()
    assert printed["disjoint"]["masks_per_sentence"] == result.disjoint.masks


def test_rows_come_as_asked_for_behind_the_uniform_one_each_once(objective, result):
    assert [row.proposal for row in result.proposals] == ["uniform/simple", *ASKED]
    assert [(row.score, row.design) for row in result.proposals[1:3]] == [
        ("frequency", "midzuno"),
        ("frequency", "pps~0.1"),
    ]
    again = gradvar.compare(
        objective, ["uniform/simple", MIDZUNO, Proposal(), "frequency/midzuno"], sentences=4, masks=4
    )
    assert [row.proposal for row in again.proposals] == ["uniform/simple", MIDZUNO]
    assert again.disjoint.masks is None
    first = again["uniform/simple"]
    exact = {name: value.estimate for name, value in first.estimates().items()}
    assert {name for name, value in exact.items() if value == 0} == {"bias2_ratio"}
    assert set(exact.values()) == {0.0, 1.0}
    with pytest.raises(KeyError, match="oracle/pps"):
        again["oracle/pps"]


def test_the_whole_field_fits(whole_field):
    rows = [row.proposal for row in whole_field.proposals]
    assert rows == ["uniform/simple", *comparing.FIELD, "uniform/disjoint:2", "uniform/disjoint:5"]
    unbiased = {row.proposal for row in whole_field.proposals if row.declared_unbiased}
    disjoint = {"uniform/disjoint:2", "uniform/disjoint:5"}
    assert unbiased == {"uniform/simple", "oracle/midzuno", "oracle/conditional-poisson", "oracle/pool:4"} | disjoint
    own = {row.proposal for row in whole_field.proposals if row.own_cells}
    assert {"oracle/midzuno", "oracle/conditional-poisson", "oracle/pool:4"} == set(rows) - own


def test_where_disjoint_masks_do_not_fit_the_field_goes_without():
    objective = masked_lm(mask_rate=0.6)
    wanted, notices = comparing._field(objective, None)
    assert [str(p) for p in wanted] == list(comparing.FIELD)
    assert notices == ["two disjoint masks do not fit into every sentence, and are left out"]


def test_the_table_has_a_row_a_proposal(result):
    frame = result.to_frame()
    assert frame["proposal"].tolist() == ["uniform/simple", *ASKED]
    columns = {f"{name}{end}" for name in NUMBERS for end in ("", "_low", "_high")}
    assert set(frame.columns) == columns | {"proposal", "declared_unbiased", "unresolved"}
    for row, (_, found) in zip(result.proposals, frame.iterrows(), strict=True):
        for name, estimate in row.estimates().items():
            for end, value in (("", estimate.estimate), ("_low", estimate.low), ("_high", estimate.high)):
                assert found[f"{name}{end}"] == value or (value is None and pandas.isna(found[f"{name}{end}"]))
    assert "max_weight: a largest value has no interval" in frame["unresolved"][1]


def test_the_summary_names_everything_within_80_columns(result, whole_field):
    for comparison in (result, whole_field):
        text = repr(comparison)
        assert max(map(len, text.splitlines())) <= 80
        assert [row.proposal for row in comparison.proposals if row.proposal not in text] == []
        for words in ("importance sampling of whole masks", "weighting single positions", "disjoint masks", "bias²"):
            assert words in text
    for kind in ("mse", "gain"):
        assert result.plot(kind).axes


REFUSED = [
    ({}, {"sentences": 3}, "--sentences 3: a comparison needs at least 4"),
    ({}, {"masks": 3}, "--masks 3: a comparison needs at least 4"),
    ({}, {"batch": 0}, "--batch 0 is not a positive number of sentences"),
    ({"dropout": True, "rate": 0.1}, {}, "leave --proposal and --dropout out"),
    ({"proposal": "uniform/pps"}, {}, "leave --proposal and --dropout out"),
    ({"proposal": "uniform/disjoint:2"}, {}, "leave --proposal and --dropout out"),
    ({}, {"proposals": ["uniform/disjoint:99"]}, "99 disjoint masks do not fit take disjoint:5 at most"),
    ({}, {"proposals": ["uniform/disjoint:4@0.3"]}, "4 disjoint masks do not fit take disjoint:3 at most"),
    ({}, {"proposals": ["frequency/pool:9~0.1"]}, "pool:9~0.1 is measured on pools give --masks 9 or more"),
    ({}, {"proposals": ["oracle/pool:9~0.1"]}, "pool:9~0.1 is measured on pools give --masks 9 or more"),
    ({}, {"proposals": ["mapnet/pps"]}, "'mapnet/pps': mapnet needs a fitted network; give --mapnet-dir"),
    ({}, {"sentences": 13}, "asked for 13 sentences, but the data hold 12; lower --sentences"),
    ({}, {"engine": "steam"}, "--engine 'steam' is unknown"),
    ({}, {"parameters": "nothing"}, "--parameters 'nothing' matches no trainable parameter"),
]


@pytest.mark.parametrize(("built", "asked", "words"), REFUSED, ids=[f"{b} {a}" for b, a, _ in REFUSED])
def test_what_cannot_be_compared_is_refused(built, asked, words):
    options = {"proposals": [MIDZUNO], "sentences": 4, "masks": 4} | asked
    with pytest.raises(gradvar.GradvarError) as error:
        gradvar.compare(masked_lm(**built), **options)
    assert [word for word in words.split() if word not in str(error.value)] == []


def test_a_model_without_mask_variance_is_refused():
    objective = masked_lm(replacement=gradvar.Replacement(0, 0, 1))
    with torch.no_grad():  # the logits are the decoder's bias
        objective.model.get_output_embeddings().weight.zero_()
        objective.model.cls.predictions.decoder.bias.zero_()
    with pytest.raises(gradvar.GradvarError, match="the mask variance is zero, up to rounding; there is nothing"):
        gradvar.compare(objective, [MIDZUNO], parameters="position_embeddings", sentences=4, masks=4)


def test_masks_that_are_all_alike_are_refused():
    """All positions are targets, and none is corrupted at random: what is left of the variance is rounding."""
    objective = masked_lm(mask_rate=0.99, replacement=gradvar.Replacement(1, 0, 0))
    with pytest.raises(gradvar.GradvarError, match="the mask variance is zero, up to rounding; there is nothing"):
        gradvar.compare(objective, [MIDZUNO], sentences=4, masks=4)


@dataclass(frozen=True)
class Declared:
    """Uniform masks, or pairs of them, that are declared to be what they may not be."""

    unbiased: str
    cells: int
    takes_scores: bool = False

    def draw(self, sentences, scores, keys, of_sets=None):
        own = [hash_key(90 + cell, keys) for cell in range(self.cells)]
        return Simple().draw(sentences, scores, torch.stack(own, dim=2).flatten(1))

    def inclusion(self, sentences, scores):
        return Simple().inclusion(sentences, scores)


@pytest.mark.parametrize("cells", [1, 2])
@pytest.mark.parametrize("declared", ["every model", "no model"])
def test_a_design_of_ones_own_is_believed_what_it_declares(objective, declared, cells):
    """Its bias is measured if it declares one; K masks that are not disjoint give no advice about those that are."""
    found = gradvar.compare(objective, [Proposal(design=Declared(declared, cells))], sentences=4, masks=4)
    row = found.proposals[1]
    assert (row.declared_unbiased, row.own_cells) == (declared == "every model", True)
    assert (row.bias2_ratio.estimate == 0) == (declared == "every model")
    assert found.disjoint.masks is None


@pytest.mark.parametrize("proposal", ["frequency^16/conditional-poisson:16", "file^16/conditional-poisson:-16"])
def test_weights_that_overflow_are_refused_by_name(objective, tmp_path, proposal):
    table = tmp_path / "scores.tsv"
    table.write_text("*\t1e-30\nw1\t1\nw2\t1e-3\n")
    text = proposal.replace("file", f"file={table}")
    objective = masked_lm(mask_rate=0.5)
    with pytest.raises(gradvar.GradvarError) as error:
        gradvar.compare(objective, [text], sentences=8, masks=8)
    assert str(error.value).startswith(f"the weights of {text} overflow; give a smaller exponent")


def test_a_drawn_weight_that_overflows_is_refused_by_name(objective, monkeypatch):
    """Far rarer than a large one: what is drawn is likely."""
    monkeypatch.setattr("gradvar.masking.sets.Midzuno._log_weight", lambda *_: torch.full((8 * 2,), 800.0))
    with pytest.raises(gradvar.GradvarError, match="the weights of frequency/midzuno overflow; give a smaller"):
        objective.under(MIDZUNO).draw(range(8), (2,), 0)


def test_the_passes_timed_are_those_of_a_sentence_of_mean_length(monkeypatch):
    objective, timed = masked_lm(padded=True), []
    passes = arms.time_passes
    monkeypatch.setattr(
        "gradvar.arms.time_passes", lambda objs, data, seed: timed.append(data) or passes(objs, data, seed)
    )
    gradvar.compare(objective, [MIDZUNO], sentences=SENTENCES, masks=4, seed=SEED)
    lengths = sorted(len(objective.corpus.sequences[i]) for i in SAMPLED)
    assert len(objective.corpus.sequences[timed[0]]) == min(lengths, key=lambda n: abs(n - np.mean(lengths)))
    assert lengths[0] < lengths[-1]


def test_disjoint_masks_of_another_rate_have_a_bias(objective):
    row = gradvar.compare(objective, ["uniform/disjoint:2@0.5"], sentences=4, masks=4).proposals[1]
    assert not row.declared_unbiased


def test_disjoint_masks_of_another_rate_say_nothing_of_this_one(objective):
    """`V_data + Cov` and K* are of the study's rate, at which no disjoint masks were drawn."""
    found = gradvar.compare(objective, ["uniform/disjoint:2@0.5"], sentences=4, masks=4).disjoint
    assert (found.balance.resolved, found.masks) == (False, None)


def test_pools_may_be_larger_than_a_sentence_has_masks(objective):
    """The pairs of its cells are enough where there is no epsilon."""
    assert gradvar.compare(objective, ["frequency/pool:9"], sentences=4, masks=4).proposals[1].variance_ratio.resolved


class WholeCells:
    """A score of one's own that knows cells, by what was asked of it; single positions are all alike to it."""

    def __init__(self, scores):
        self.scores = scores

    def __call__(self, sentences, task):
        return sentences.maskable.double()

    def of_sets(self, sentences, task):
        return lambda positions, valid, keys: self.scores(positions * valid)

    def __str__(self):
        return "cells"


def test_a_pool_goes_by_a_scores_own_way_to_score_cells(objective, result, uniform):
    """Cells of an even first target are 9 times as likely: `E|g|^2/R + (1 - 1/R) E[|g_r|^2 s_r'/s_r]` over pairs."""

    def nine(positions):
        return 1.0 + 8 * (positions[:, 0] % 2 == 0)

    row = gradvar.compare(objective, [Proposal(WholeCells(nine), Pool(3))], **SIZES).proposals[1]
    first = objective.draw(SAMPLED, (MASKS,), SEED)["target_positions"].view(SENTENCES, MASKS, -1)[..., 0].numpy()
    scores, norms = 1.0 + 8 * (first % 2 == 0), np.square(uniform).sum(axis=-1)
    pairs = [(r, s) for r in range(MASKS) for s in range(MASKS) if r != s]
    second = np.mean([norms[:, r] * scores[:, s] / scores[:, r] for r, s in pairs], axis=0)
    change = (norms.mean(axis=1) / 3 + 2 / 3 * second - norms.mean(axis=1)).mean()
    assert row.variance_ratio.estimate == pytest.approx(1 + change / within(uniform), rel=1e-6)
    assert row.max_weight.estimate > 1.5
    alike = gradvar.compare(
        objective, [Proposal(WholeCells(lambda positions: 0.0 * positions[:, 0]), Pool(3))], **SIZES
    )
    assert alike.proposals[1].variance_ratio.estimate == pytest.approx(1)


def test_the_weights_of_a_pool_are_those_at_its_own_rate(objective):
    """At a rate of 0.9 a mask leaves out one position of ten, and pools have little to choose from."""
    few, many = gradvar.compare(
        objective, ["oracle/pool:3", "oracle/pool:3@0.9", "frequency/pool:9~0.1@0.5"], sentences=4, masks=4
    ).proposals[1:3]
    assert 1 < many.max_weight.estimate < few.max_weight.estimate


def test_position_weights_are_those_of_the_inclusion_probabilities(objective):
    """Of targets `k/(T pi)`, drawn with chances `pi/k`; the largest is of a position that need not have been drawn."""
    found = gradvar.compare(objective, [PPS], sentences=4, masks=4, seed=SEED).proposals[1]
    under = objective.under(PPS)
    sentences = under.sentences(SAMPLED[:4], SEED)
    inclusion = under.proposal.design.inclusion(sentences, under.scores(sentences))[:, 1:-1].numpy()
    weights = 0.2 / inclusion
    assert found.max_weight.estimate == pytest.approx(weights.max(), rel=1e-9)
    assert found.ess.estimate == pytest.approx(1 / (weights * inclusion * weights / 2).sum(axis=1).mean(), rel=1e-9)


def test_what_pays_by_the_error_alone_is_said_so(result):
    better = Estimate(1.3, 1.1, 1.5)
    unclear = Estimate(1.0, 0.9, 1.1)
    rows = [
        replace(row, batch_gain_at_batch=unclear, efficiency_at_batch=better if row.proposal == HARD else unclear)
        for row in result.proposals
    ]
    text = " ".join(repr(replace(result, proposals=tuple(rows))).split())
    assert "No proposal is clearly better aligned than uniform masks at equal cost." in text
    assert f"By mean squared error alone, alignment not telling: {HARD} (worth" in text
    title = replace(result, proposals=tuple(rows)).plot("gain").axes[0].get_title(loc="left")
    assert title == f"By mean squared error alone, {HARD} is worth 1.30 times the batch at equal cost"
    rows = [replace(row, batch_gain_at_batch=better) if row.proposal == PPS else row for row in rows]
    assert f"Best at equal cost: {PPS}, worth 1.3" in repr(replace(result, proposals=tuple(rows)))


def test_the_second_ceiling_is_of_the_parameters_that_are_studied(objective):
    """The decoder's bias has a fiftieth of the variance; the ceiling is a part of what there is."""
    found = gradvar.compare(objective, [], parameters="decoder.bias", sentences=4, masks=4).headroom["position"]
    assert found.estimate < 1


def test_sentences_of_several_lengths_can_be_compared():
    gradvar.compare(masked_lm(padded=True), ["loss/pps"], sentences=6, masks=4)


def test_token_weighting_weighs_what_can_be_removed_as_it_does_the_variance():
    """`sum_n w_n^2 ...` above and below, for sentences of several lengths."""
    options = {"padded": True, "mask_rate": 0.4}
    plain, token = (masked_lm(weighting=weighting, **options) for weighting in ("sentence", "token"))
    studies = [gradvar.decompose(o, sentences=SENTENCES, masks=4, seed=SEED, headroom=True) for o in (plain, token)]
    weights = token.weights_of(SAMPLED)
    assert np.ptp(weights) > 0.3
    within_sentences = studies[0].statistics.contributions[:, 1]
    sentences = plain.sentences(SAMPLED, SEED)
    norms = plain.scoring.at_targets("gradient", sentences).numpy()
    removed = ceilings.position(norms, sentences.maskable.numpy(), sentences.counts.numpy())
    for study, w in zip(studies, (np.ones(SENTENCES), weights), strict=True):
        expected = (w**2 * removed).sum() / (w**2 * within_sentences).sum()
        assert study.headroom["position"].estimate == pytest.approx(expected, rel=1e-9)
    row = gradvar.compare(token, [MIDZUNO], sentences=SENTENCES, masks=4, seed=SEED)
    assert row.headroom["position"].estimate == pytest.approx(studies[1].headroom["position"].estimate, rel=1e-9)


def test_a_single_context_leaves_the_second_ceiling_open():
    found = gradvar.compare(masked_lm(contexts=1), [], sentences=4, masks=4).headroom
    assert found["position"].reason.endswith("two contexts at least: --contexts 2")
    assert found["stratification"].resolved


# The command.


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    cases.save_checkpoint(folder / "bert")
    cases.write_text(folder / "text.txt", documents=4)
    (folder / "bad.tsv").write_text("w1\n")
    return folder


@pytest.fixture
def run(capsys, tmp_path, monkeypatch, place):
    """Run a command in an empty folder; return its exit code and what it printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("gradvar.arms._ROUNDS", 2)

    def call(name, *arguments, **options):
        given = {"checkpoint": place / "bert", "data": place / "text.txt", "max_length": 12, "sentences": 4, "masks": 4}
        given |= {"mask_rate": 0.2} | options
        words = [
            w for key, value in given.items() for w in (f"--{key.replace('_', '-')}", str(value).format(place=place))
        ]
        with pytest.raises(SystemExit) as stop:
            main([name, *words, *arguments])
        printed = capsys.readouterr()
        return stop.value.code, printed.out, printed.err

    return call


SOME = f" {MIDZUNO}, {PAIRS},uniform/simple@0.3 , "


def test_compare_prints_tables_and_writes_a_report(run):
    code, out, err = run("compare", proposals=SOME, out="report")
    assert code == 0
    assert os.listdir() == ["report"]
    assert sorted(os.listdir("report")) == sorted(COMPARISON_FILES)
    for words in (
        "4 ways to choose masks, from 4 sentences × 4 masks",
        MIDZUNO,
        PAIRS,
        "uniform/simple@0.3",
        "B = 256",
    ):
        assert words in out
    assert out.splitlines()[-1] == f"wrote report: {', '.join(sorted(COMPARISON_FILES))}"
    assert err.startswith("loading the checkpoint and the data\n")
    assert_schema(json.loads(Path("report/comparison.json").read_text()))
    frame = pandas.read_csv("report/proposals.csv")
    assert frame["proposal"].tolist() == ["uniform/simple", MIDZUNO, PAIRS, "uniform/simple@0.3"]


@pytest.mark.usefixtures("undrawn")
def test_json_is_all_there_is_on_stdout(run):
    code, out, err = run("compare", "--json", proposals=SOME, out="report", batch=8, seed=5, contexts=1)
    assert code == 0
    printed = json.loads(out)
    assert printed == json.loads(Path("report/comparison.json").read_text())
    assert printed["study"].items() >= {"batch": 8, "seed": 5, "contexts": 1, "masks": 4, "mask_rate": 0.2}.items()
    assert "cells" in err


def test_the_default_field_is_compared(run):
    code, out, _ = run("compare", "--json")
    assert code == 0
    rows = [row["proposal"] for row in json.loads(out)["proposals"]]
    assert rows == ["uniform/simple", *comparing.FIELD, "uniform/disjoint:2", "uniform/disjoint:5"]


def of_proposal(text: str, words: str, **more) -> tuple[str, dict, str]:
    return "compare", {"proposals": text, **more}, words


def decomposed(text: str, words: str, **more) -> tuple[str, dict, str]:
    return "decompose", {"proposal": text, **more}, words


BAD = [
    of_proposal("uniform", "'uniform' is no proposal; write score[^exponent]/design"),
    of_proposal("uniform/simple,uniform/midzumo", "there is no design 'midzumo'; did you mean 'midzuno'?"),
    of_proposal("lossy/pps", "there is no score 'lossy'; did you mean 'loss'?"),
    of_proposal("loss/disjoint:2", "disjoint takes the uniform score only"),
    of_proposal("loss/pps~2", "the epsilon 2 is not between 0 and 1"),
    of_proposal("loss/pps@1", "the mask rate 1 is not between 0 and 1"),
    of_proposal("uniform/disjoint:99", "99 disjoint masks do not fit"),
    of_proposal("uniform/pool:9~0.1", "give --masks 9 or more"),
    of_proposal("mapnet/pps", "mapnet needs a fitted network; give --mapnet-dir"),
    of_proposal("file=nowhere.tsv/pps", "the score file 'nowhere.tsv' cannot be read (No such file or directory)"),
    of_proposal("file={place}/bad.tsv/pps", "bad.tsv, line 1:"),
    of_proposal("uniform/hard", "--sentences 3: a comparison needs at least 4", sentences=3),
    of_proposal("uniform/hard", "--masks 3: a comparison needs at least 4", masks=3),
    of_proposal("uniform/hard", "--batch 0 is not a positive number of sentences", batch=0),
    of_proposal("uniform/hard", "--contexts 0: a score is measured in 1 context at least", contexts=0),
    of_proposal("uniform/hard", "no MAPNet nowhere", mapnet_dir="nowhere"),
    decomposed("uniform/disjoint:2", "--masks 5: under disjoint:2 a draw is 2 masks give a multiple of 2", masks=5),
    decomposed("uniform/disjoint:2", "--masks 2: two draws a sentence multiple of 2 from 4 up", masks=2),
    decomposed("uniform/disjoint:9", "9 disjoint masks do not fit"),
    decomposed("loss/simple", "'loss/simple': simple takes the uniform score only"),
    decomposed("nothing", "'nothing' is no proposal"),
    decomposed("loss/pps", "--headroom is what uniform masks leave to others; leave --proposal", flag="--headroom"),
]


@pytest.mark.parametrize(("command", "options", "words"), BAD, ids=[" ".join(map(str, o.values())) for _, o, _ in BAD])
def test_bad_input_gets_one_line_and_leaves_nothing(run, place, command, options, words):
    before = sorted(place.rglob("*"))
    flag = [options.pop("flag")] if "flag" in (options := dict(options)) else []
    code, out, err = run(command, *flag, **options, out="new/report")
    *progress, message = err.splitlines()
    assert (code, out) == (2, "")
    assert message.startswith("gradvar: ")
    assert [word for word in words.split() if word not in message] == []
    assert all(line.startswith("loading the checkpoint") or " cells, " in line for line in progress)
    assert os.listdir() == []
    assert sorted(place.rglob("*")) == before


def test_a_table_is_refused_before_anything_is_measured(tmp_path):
    path = tmp_path / "scores.tsv"
    path.write_text("w0\t1\n")
    done = []
    with pytest.raises(GradvarError, match="has no score for the token"):
        gradvar.compare(masked_lm(), [f"file={path}^0.5/pps"], **SIZES, progress=lambda *cells: done.append(cells))
    assert done == []


@pytest.mark.usefixtures("undrawn")
def test_decompose_takes_a_proposal(run):
    code, out, _ = run("decompose", "--json", "--save-cells", proposal="logit/midzuno", out="report")
    printed = json.loads(out)
    assert (code, printed["proposal"], printed["levels"]) == (0, "logit/midzuno", ["data", "mask"])
    assert printed["study"]["contexts"] == 2
    assert "draw" not in printed
    cells = pandas.read_parquet("report/cells.parquet")
    weights = np.array(cells["target_weights"].tolist())
    assert np.ptp(weights) > 0.01
    assert np.ptp(weights, axis=1) == pytest.approx(0)  # the weight of a set is that of its targets


@pytest.mark.usefixtures("undrawn")
def test_decompose_studies_draws_of_disjoint_masks(run, place):
    """Against a backward pass a cell: of draws the variances, of one mask `V`, of two of a draw `Cov`."""
    options = {"dtype": "float64", "seed": 4, "sentences": 6, "masks": 4}
    code, out, _ = run("decompose", "--json", "--save-cells", proposal=PAIRS, out="report", **options)
    printed = json.loads(out)
    assert (code, printed["levels"], printed["draw"]["masks"]) == (0, ["data", "mask"], 2)
    assert printed["study"].items() >= {"sentences": 6, "masks": 4}.items()
    objective = MaskedLM.from_checkpoint(
        place / "bert", place / "text.txt", max_length=12, dtype="float64", mask_rate=0.2, proposal=PAIRS
    )
    data = np.random.default_rng(4).permutation(len(objective))[:6].tolist()
    found = oracle.explicit(objective.losses, objective.draw(data, (2, 2), 4), select(objective.model))
    pairs = torch.cat([g.flatten(1) for g in found], dim=1).view(6, 2, 2, -1).numpy()
    inside = pairs.var(axis=2, ddof=1).sum(axis=-1).mean()
    of_draw = within(pairs.mean(axis=2))
    components = {name: value["estimate"] for name, value in printed["components"].items()}
    assert components == pytest.approx({"data": between(pairs.mean(axis=2)), "mask": of_draw}, rel=1e-8)
    assert printed["draw"]["covariance"]["estimate"] == pytest.approx(of_draw - inside / 2, rel=1e-8)
    assert printed["draw"]["variance_of_one"]["estimate"] == pytest.approx(of_draw + inside / 2, rel=1e-8)
    cells = pandas.read_parquet("report/cells.parquet")
    for _, draw in cells.groupby(["sentence", "group"]):
        first, second = map(set, draw["target_positions"])
        assert (len(first), len(second), first & second) == (2, 2, set())


def test_decompose_measures_all_ceilings_on_request(run):
    printed = json.loads(run("decompose", "--json", "--headroom")[1])
    for name, value in printed["headroom"].items():
        assert_estimate(value, name)
        assert value["estimate"] is not None
    free = json.loads(run("decompose", "--json")[1])["headroom"]
    assert free["importance"] == printed["headroom"]["importance"]
    assert {free[name]["reason"] for name in ("position", "stratification")} == {"--headroom measures it"}
