"""Every design against the enumeration of all its sets. Its draws against the same probabilities: test_draws.py."""

import math
from functools import cache
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradvar.errors import GradvarError
from gradvar.masking.hashing import hash_key
from gradvar.masking.sets import ConditionalPoisson, Disjoint, Pool, check_fits
from tests.masking.enumeration import (
    DESIGNS,
    OTHERS,
    ROWS,
    SENTENCES,
    SET_SETTINGS,
    SETTINGS,
    Chances,
    Set,
    chances_of,
    design_of,
    gradients,
    inclusion_by,
    mean_gradient,
    moment,
    row_of,
    rows_for,
    scores_of,
    uniform,
)

KINDS = ("equal", "skewed")
UNWEIGHTED = [(name, epsilon) for name, epsilon in SETTINGS if DESIGNS[name][0].unbiased == "no model"]
POSITION = [(name, epsilon) for name, epsilon in SETTINGS if name.startswith("pps")]


@cache
def chances(name: str, epsilon: float, kind: str) -> dict[int, Chances]:
    scores = scores_of(kind)
    return {row: chances_of(name, epsilon, SENTENCES, scores, row) for row in rows_for(name)}


@cache
def log_weights(name: str, epsilon: float, kind: str) -> dict[int, dict[Set, float]]:
    """What the design says of every subset, all rows in one call: the shorter rows' subsets come again."""
    scores = scores_of(kind)
    subsets = [row_of(SENTENCES, scores, row).subsets for row in ROWS]
    width, most = max(map(len, subsets)), int(SENTENCES.counts.max())
    sets = [(each * width)[:width] for each in subsets]
    positions = torch.tensor([list(s) + [0] * (most - len(s)) for each in sets for s in each])
    valid = torch.tensor([[i < len(s) for i in range(most)] for each in sets for s in each])
    found = design_of(name, epsilon).log_weight(SENTENCES, scores, positions, valid).view(len(sets), width)
    assert found.dtype == torch.float64
    return {row: dict(zip(sets[row], found[row].tolist(), strict=True)) for row in ROWS}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("name", "epsilon"), SETTINGS)
def test_enumerated_chances_are_a_distribution_over_subsets(name, epsilon, kind):
    """Of the right size, of maskable positions: what all other tests build on."""
    for row, q in chances(name, epsilon, kind).items():
        assert set(q) <= set(row_of(SENTENCES, scores_of(kind), row).subsets)
        assert math.isclose(sum(q.values()), 1, abs_tol=1e-12)
        assert min(q.values()) >= 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("name", "epsilon"), SETTINGS)
def test_inclusion_probabilities(name, epsilon, kind):
    inclusion = design_of(name, epsilon).inclusion(SENTENCES, scores_of(kind))
    assert inclusion.dtype == torch.float64
    for row, q in chances(name, epsilon, kind).items():
        expected = inclusion_by(q, inclusion.shape[1])
        torch.testing.assert_close(inclusion[row], expected, rtol=0, atol=1e-10)
        assert math.isclose(inclusion[row].sum(), SENTENCES.counts[row], abs_tol=1e-10)
        assert not inclusion[row][~SENTENCES.maskable[row]].any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("name", "epsilon"), SET_SETTINGS)
def test_weights_are_p_over_q(name, epsilon, kind):
    for row, q in chances(name, epsilon, kind).items():
        for s, p in uniform(row_of(SENTENCES, scores_of(kind), row)).items():
            assert math.isclose(log_weights(name, epsilon, kind)[row][s], math.log(p / q[s]), abs_tol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("name", "epsilon"), SET_SETTINGS)
def test_set_designs_are_unbiased_for_interacting_targets(name, epsilon, kind):
    """And their variance is `E_p[w |g|^2] - |mu|^2`, over `(E|g|)^2 - |mu|^2`, by the weights that the design gives."""
    for row, q in chances(name, epsilon, kind).items():
        p = uniform(row_of(SENTENCES, scores_of(kind), row))
        w = {s: math.exp(x) for s, x in log_weights(name, epsilon, kind)[row].items()}
        g = gradients(p, seed=row)
        mu = mean_gradient(g, p)
        np.testing.assert_allclose(sum(q[s] * w[s] * g[s].mean(axis=0) for s in q), mu, rtol=0, atol=1e-10)
        variance = sum(q[s] * np.square(w[s] * g[s].mean(axis=0) - mu).sum() for s in q)
        second = moment(g, {s: p[s] * w[s] for s in p})
        assert math.isclose(variance, second - mu @ mu, rel_tol=1e-9, abs_tol=1e-10)
        least = sum(p[s] * np.linalg.norm(g[s].mean(axis=0)) for s in p) ** 2
        assert second >= least - 1e-10


@pytest.mark.parametrize("epsilon", [0.05, 0.3, 1.0])
@pytest.mark.parametrize("name", [name for name, _ in SET_SETTINGS if DESIGNS[name][1]])
def test_epsilon_bounds_the_weights_of_sets(name, epsilon):
    for weights in log_weights(name, epsilon, "skewed").values():
        assert max(weights.values()) <= -math.log(epsilon) + 1e-12
        if epsilon == 1:
            assert max(map(abs, weights.values())) <= 1e-12  # a uniform design


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("name", "epsilon"), SET_SETTINGS)
def test_the_spread_of_the_weights_of_sets(name, epsilon, kind):
    """The largest is that of all subsets; `E_q w^2` is exact for conditional Poisson, and else within 4 errors."""
    design, scores, draws = design_of(name, epsilon), scores_of(kind), 2000
    keys = hash_key(5, torch.arange(len(ROWS)).unsqueeze(1), torch.arange(draws))
    square, largest = design.mean_square(SENTENCES, scores, keys), design.largest(SENTENCES, scores)
    for row, logs in log_weights(name, epsilon, kind).items():
        weights = np.exp(list(logs.values()))
        assert math.isclose(largest[row], weights.max(), rel_tol=1e-9)
        exact = name.startswith("conditional") and not epsilon
        within = 1e-9 * weights.mean() if exact else 4 * weights.std() / math.sqrt(draws) + 1e-9
        assert abs(square[row] - weights.mean()) < within


def test_the_weights_that_epsilon_bounds_were_larger():
    for name in ("midzuno", "conditional-poisson:1"):
        assert max(max(w.values()) for w in log_weights(name, 0.0, "skewed").values()) > math.log(1 / 0.3)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1), st.floats(-1.5, 1.5))
def test_no_distribution_over_sets_beats_the_headroom(seed, exponent):
    """`sum p^2/q |g|^2 >= (E|g|)^2`, with equality at `q ~ p|g|`: the ceiling of all set designs."""
    rng = np.random.default_rng(seed)
    p, g = rng.dirichlet(np.ones(20)), rng.lognormal(size=20)
    least = (p @ g) ** 2
    best = p * g / (p @ g)
    assert math.isclose(np.sum(p**2 / best * g**2), least, rel_tol=1e-12)
    for q in (rng.dirichlet(np.ones(20)) + 1e-9, p * g**exponent):
        assert np.sum(p**2 / (q / q.sum()) * g**2) >= least * (1 - 1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("name", "epsilon"), POSITION)
def test_horvitz_thompson_is_unbiased_where_targets_do_not_interact_and_only_there(name, epsilon, kind):
    """`g(S) = (1/k) sum_{i in S} v_i` is exact; with interacting gradients there is a bias wherever `q` is not `p`."""
    design, scores = design_of(name, epsilon), scores_of(kind)
    assert design.unbiased == "models whose targets do not interact"
    biases = []
    for row, q in chances(name, epsilon, kind).items():
        each = row_of(SENTENCES, scores, row)
        pi, p = design.inclusion(SENTENCES, scores)[row].numpy(), uniform(each)
        alone = np.random.default_rng(row).normal(size=(len(pi), 3))
        apart = {s: alone[list(s)] for s in p}
        together = gradients(p, seed=row)
        biases.append(0.0)
        for g in (apart, together):
            estimated = sum(
                chance * (g[s] / (len(each.places) * pi[list(s)])[:, None]).sum(0) for s, chance in q.items()
            )
            bias = np.abs(estimated - mean_gradient(g, p)).max()
            if g is apart:
                assert bias < 1e-10
            else:
                biases[-1] = bias
    varied = [row for row, q in chances(name, epsilon, kind).items() if 1 < SENTENCES.counts[row] < len(q)]
    biased = [biases[list(rows_for(name)).index(row)] for row in varied]
    if kind == "skewed":
        assert min(biased) > 1e-3
    elif name == "pps":
        assert max(biases) < 1e-10  # equal odds are simple random sampling


@pytest.mark.parametrize(("name", "epsilon"), UNWEIGHTED)
def test_designs_without_weights_follow_another_objective(name, epsilon):
    """By what they declare, and by the exact bias wherever there is more than one set; positions alone are enough."""
    assert design_of(name, epsilon).unbiased == "no model"
    for row, q in chances(name, epsilon, "skewed").items():
        p = uniform(row_of(SENTENCES, scores_of("skewed"), row))
        if len(p) > 1:
            alone = np.random.default_rng(row).normal(size=(SENTENCES.ids.shape[1], 3))
            g = {s: alone[list(s)] for s in p}
            assert np.abs(mean_gradient(g, q) - mean_gradient(g, p)).max() > 1e-3


def test_words_and_spans_stay_together_although_scores_are_equal():
    """Positions with equal scores are simple random sampling; units of several are not."""
    assert all(np.ptp(list(q.values())) < 1e-12 for q in chances("hard", 0.0, "equal").values())
    for name in ("whole-word", "span:2", "span:3"):
        assert np.ptp(list(chances(name, 0.0, "equal")[0].values())) > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_what_designs_declare(kind):
    """Only uniform designs refuse scores; what takes them draws otherwise when they are not equal."""
    for name, epsilon in SETTINGS:
        design = design_of(name, epsilon)
        assert design.cells == 1
        assert design.takes_scores == (name != "simple")
        if design.takes_scores and kind == "skewed":
            p = uniform(row_of(SENTENCES, scores_of(kind), 6))
            assert max(abs(chance - p[s]) for s, chance in chances(name, epsilon, kind)[6].items()) > 1e-3
    assert [OTHERS[name].takes_scores for name in ("pool:3", "disjoint:2")] == [True, False]
    assert [Pool(3).cells, Disjoint(3).cells] == [1, 3]
    assert {Pool.unbiased, Disjoint.unbiased} == {"every model"}


# Disjoint masks.


@pytest.mark.parametrize(("masks", "rows", "room"), [(2, [0, 1, 4, 6], 2), (3, [4], 6), (6, [4], 6)])
def test_disjoint_masks_that_fit_are_allowed(masks, rows, room):
    some = SENTENCES.rows(rows)
    check_fits(masks, some.totals, some.counts)
    assert Disjoint(masks).draw(some, scores_of("equal")[rows], some.keys.unsqueeze(1)).valid.any()
    assert int((some.totals // some.counts).min()) == room


def test_disjoint_masks_that_do_not_fit_are_refused():
    """The message names the worst sentence, and what would fit."""
    some = SENTENCES.rows([0, 5, 1])
    expected = (
        "3 disjoint masks do not fit into a sentence of 5 maskable positions with 4 targets each; "
        "no two do, so take longer sentences"
    )
    for act in (
        lambda: check_fits(3, some.totals, some.counts),
        lambda: Disjoint(3).draw(some, scores_of("equal")[[0, 5, 1]], some.keys.unsqueeze(1)),
    ):
        with pytest.raises(GradvarError) as error:
            act()
        assert str(error.value) == expected


def test_each_disjoint_mask_includes_as_simple_random_sampling_does():
    some = SENTENCES.rows([0, 1, 4])
    inclusion = Disjoint(2).inclusion(some, scores_of("skewed")[[0, 1, 4]])
    for index, row in enumerate((0, 1, 4)):
        expected = inclusion_by(uniform(row_of(SENTENCES, scores_of("equal"), row)), inclusion.shape[1])
        torch.testing.assert_close(inclusion[index], expected, rtol=0, atol=1e-12)


def test_weights_that_are_exact_for_every_model_are_those_of_the_set():
    """As many random models as there are weights `a_i(S)` leave one solution, `p(S)/(k q(S))`, whatever `q`."""
    rng = np.random.default_rng(0)
    subsets, k = list(combinations(range(5), 2)), 2
    q = rng.dirichlet(np.ones(len(subsets)))
    models = rng.normal(size=(len(subsets) * k, len(subsets), k))  # a number g_i(S) for each member of each set
    means = models.mean(axis=(1, 2))
    found = np.linalg.solve((models * q[:, None]).reshape(len(models), -1), means).reshape(-1, k)
    expected = 1 / (len(subsets) * k * q)
    np.testing.assert_allclose(found, np.stack([expected] * k, axis=1), rtol=1e-9)


@pytest.mark.parametrize("alpha", [None, 1.0])
def test_the_effective_sample_size_of_conditional_poisson(alpha):
    """`(E_q w)^2 / E_q w^2 = C(T,k)^2 / (e_k(o) e_k(1/o))`, the polynomials by all sets."""
    row, scores = SENTENCES.rows([0]), scores_of("skewed")[:1]
    own, k = row.maskable[0].nonzero().flatten().tolist(), int(row.counts)
    odds = scores[0, own].numpy() ** (1 / k if alpha is None else alpha)
    sets = list(combinations(range(len(own)), k))
    products = np.array([odds[list(subset)].prod() for subset in sets])
    positions = torch.tensor([[own[i] for i in subset] for subset in sets])
    valid = torch.ones_like(positions, dtype=torch.bool)
    weights = ConditionalPoisson(alpha=alpha).log_weight(row, scores, positions, valid).exp().numpy()
    q = products / products.sum()
    size = (q @ weights) ** 2 / (q @ weights**2)
    assert size == pytest.approx(len(sets) ** 2 / (products.sum() * (1 / products).sum()), rel=1e-9)
