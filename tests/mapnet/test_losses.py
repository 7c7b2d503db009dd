"""What each loss is least at, found by optimising a free table of log scores over everything that can be observed."""

from functools import partial
from itertools import combinations, product
from math import log

import numpy as np
import pytest
import torch

from gradvar.errors import GradvarError
from gradvar.mapnet.losses import LOSSES, kl, language, log_regression, variance

# Four maskable positions, whose norms are f (1 - d) or f (1 + d) with equal chances, and two that are not maskable.
F = torch.tensor([0.2, 1.0, 3.0, 0.7], dtype=torch.float64)
D = torch.tensor([0.9, 0.1, 0.5, 0.7], dtype=torch.float64)
ROOT_MEAN_SQUARE, GEOMETRIC_MEAN = F * (1 + D**2).sqrt(), F * (1 - D**2).sqrt()
PLACES = [1, 2, 3, 5]
every_loss = pytest.mark.parametrize("name", LOSSES)


def outcomes(observed: int, noisy: bool = True) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`(targets, observed, maskable)` of all equally likely outcomes, a row each; not-a-number where not observed."""
    signs = list(product([-1.0, 1.0], repeat=4)) if noisy else [(0.0,) * 4]
    rows = list(product(signs, combinations(range(4), observed)))
    targets = torch.full((len(rows), 6), torch.nan, dtype=torch.float64)
    for row, (sign, subset) in enumerate(rows):
        for i in subset:
            targets[row, PLACES[i]] = F[i] * (1 + sign[i] * D[i])
    maskable = torch.zeros(len(rows), 6, dtype=torch.bool)
    maskable[:, PLACES] = True
    return targets, ~targets.isnan(), maskable


def shares(scores: torch.Tensor) -> torch.Tensor:
    return scores / scores.sum()


def best_scores(loss, *observations: torch.Tensor) -> torch.Tensor:
    """Scores of the maskable positions that the loss is least at; the same table for every row."""
    table = torch.zeros(6, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [table], max_iter=500, tolerance_grad=1e-12, tolerance_change=1e-16, line_search_fn="strong_wolfe"
    )

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        value = loss(table.expand_as(observations[0]), *observations)
        value.backward()
        return value

    optimiser.step(closure)
    return table.detach()[PLACES].exp()


def assert_close_to(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("observed", [1, 2, 3, 4])
def test_log_regression_finds_the_geometric_mean(observed):
    assert_close_to(best_scores(log_regression, *outcomes(observed)), GEOMETRIC_MEAN)


@pytest.mark.parametrize("observed", [2, 3, 4])
def test_kl_finds_norms_without_noise(observed):
    observations = outcomes(observed, noisy=False)
    found = best_scores(kl, *observations)
    assert_close_to(shares(found), shares(F))
    table = torch.zeros(6, dtype=torch.float64)
    table[PLACES] = F.log()
    assert kl(table.expand_as(observations[0]), *observations).item() == pytest.approx(0, abs=1e-15)


def test_kl_of_noisy_norms_finds_their_mean_shares():
    targets, observed, maskable = outcomes(4)
    mean_shares = (targets / targets.nansum(dim=1, keepdim=True))[:, PLACES].mean(dim=0)
    assert_close_to(shares(best_scores(kl, targets, observed, maskable)), mean_shares)


@pytest.mark.parametrize("observed", [1, 2, 3, 4])
def test_variance_finds_the_root_mean_square(observed):
    assert_close_to(shares(best_scores(variance, *outcomes(observed))), shares(ROOT_MEAN_SQUARE))


def test_variance_finds_it_through_the_mixture():
    """With an epsilon that the smallest position can bear, the mixture is what becomes proportional."""
    scores = shares(best_scores(partial(variance, epsilon=0.1), *outcomes(2)))
    assert_close_to(0.9 * scores + 0.1 / 4, shares(ROOT_MEAN_SQUARE))


@pytest.mark.parametrize("observed", [1, 2, 3, 4])
def test_variance_is_unbiased_for_the_second_moment(observed):
    """`exp` of the loss of one row, averaged over all that can be observed of it; of all rows at once, the same."""
    scores = torch.tensor([0.4, 0.3, 2.0, 1.1], dtype=torch.float64)
    table = torch.full((6,), 50.0, dtype=torch.float64)  # what is not maskable must not count
    table[PLACES] = scores.log()
    targets, seen, maskable = outcomes(observed)
    rows = [
        variance(table[None], *(part[row, None] for part in (targets, seen, maskable))).exp()
        for row in range(len(targets))
    ]
    expected = scores.mean() * (ROOT_MEAN_SQUARE**2 / scores).mean()
    assert_close_to(torch.stack(rows).mean(), expected)
    assert_close_to(variance(table.expand_as(targets), targets, seen, maskable).exp(), expected)


@pytest.mark.parametrize(("epsilon", "cap"), [(0.0, None), (0.3, None), (0.0, 1.5), (0.3, 1.5), (0.0, 1.0)])
def test_epsilon_and_cap(epsilon, cap):
    scores, norms2 = np.array([0.4, 0.3, 2.0, 1.1]), (F**2).numpy()
    table = torch.zeros(6, dtype=torch.float64)
    table[PLACES] = torch.from_numpy(scores).log()
    inclusion = (1 - epsilon) * scores / scores.mean() + epsilon
    weights = np.minimum(1 / inclusion, cap or np.inf)
    observations = outcomes(4, noisy=False)
    found = variance(table.expand_as(observations[0]), *observations, epsilon=epsilon, cap=cap)
    assert found.item() == pytest.approx(log((norms2 * weights).mean()), rel=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epsilon": 1.0}, "the variance loss cannot mix with epsilon 1; give a number from 0 to below 1"),
        ({"epsilon": -0.1}, "the variance loss cannot mix with epsilon -0.1; give a number from 0 to below 1"),
        ({"cap": 0.9}, "the variance loss cannot cap weights at 0.9; give a number from 1 up"),
        ({"cap": float("nan")}, "the variance loss cannot cap weights at nan; give a number from 1 up"),
    ],
)
def test_options_out_of_range(options, message):
    observations = outcomes(2)
    with pytest.raises(GradvarError) as error:
        variance(torch.zeros_like(observations[0]), *observations, **options)
    assert str(error.value) == message


def value_and_gradient(loss, targets, observed=None, maskable=None, dtype=torch.float64):
    """At scores that differ."""
    targets = torch.tensor(targets, dtype=torch.float64)
    log_scores = torch.linspace(-1, 2, targets.numel(), dtype=dtype).view_as(targets).requires_grad_()
    everything = torch.ones_like(targets, dtype=torch.bool)
    observed = everything if observed is None else torch.tensor(observed, dtype=torch.bool)
    value = loss(log_scores, targets, observed, everything if maskable is None else torch.tensor(maskable))
    assert value.dtype == dtype
    (gradient,) = torch.autograd.grad(value, log_scores)
    return value.item(), gradient


@pytest.mark.parametrize(("loss", "rows_too"), [(kl, True), (variance, False)])
@pytest.mark.parametrize("scale", [1e-60, 7.0, 1e60])
def test_steps_are_blind_to_the_scale_of_norms(loss, rows_too, scale):
    """Float32 scores, norms whose squares it could not hold; all rows at once, or one of them."""
    targets = [[0.3, 2.0, 1.0], [5.0, 4.0, 0.1]]
    _, gradient = value_and_gradient(loss, targets, dtype=torch.float32)
    for factors in ([scale, scale], [1, scale])[: 1 + rows_too]:
        scaled = [[factor * t for t in row] for factor, row in zip(factors, targets, strict=True)]
        _, found = value_and_gradient(loss, scaled, dtype=torch.float32)
        torch.testing.assert_close(found, gradient, rtol=0, atol=1e-4)


def test_log_regression_is_not():
    assert value_and_gradient(log_regression, [[1.0, 1.0]])[0] == pytest.approx((1 + 4) / 2)
    assert value_and_gradient(log_regression, [[np.e, np.e]])[0] == pytest.approx((4 + 1) / 2)


@every_loss
def test_rows_that_say_nothing_are_left_out(name):
    """Without an observed position, with one that is not maskable, or with no maskable position at all."""
    value, gradient = value_and_gradient(LOSSES[name], [[0.3, 2.0]] * 2)
    shown = [[0.3, 2.0], [0.3, 2.0], [1.0, np.nan], [1.0, 9.0], [1.0, 9.0]]
    observed = [[True, True], [True, True], [False, False], [False, True], [True, True]]
    maskable = [[True, True], [True, True], [True, True], [True, False], [False, False]]

    def with_the_same_scores(log_scores, *observations):
        return LOSSES[name](log_scores * 3, *observations)  # 10 scores over [-1, 2], of which the first 4 over [-1, 0]

    def shifted(log_scores, *observations):
        return with_the_same_scores(log_scores + 1 - 1 / 3, *observations)

    found, found_gradient = value_and_gradient(shifted, shown, observed, maskable)
    assert found == pytest.approx(value, rel=1e-12)
    torch.testing.assert_close(found_gradient[:2] / 3, gradient)
    assert (found_gradient[2:] == 0).all()


@every_loss
def test_norms_of_zero_are_no_harm(name):
    """Left out of the regression; no share, and no second moment. A row of zeros teaches nothing anywhere."""
    value, gradient = value_and_gradient(LOSSES[name], [[0.0, 0.3, 2.0], [0.0, 0.0, 0.0]])
    s = np.exp([-1.0, -0.4, 0.2])
    p = np.array([0.3, 2.0]) / 2.3
    expected = {
        "log-regression": ((-0.4 - log(0.3)) ** 2 + (0.2 - log(2.0)) ** 2) / 2,
        "kl": (p * np.log(p / (s[1:] / s.sum()))).sum(),
        "variance": log(s.mean() * (0.09 / s[1] + 4.0 / s[2]) / 3 / 2),
    }
    assert value == pytest.approx(expected[name], rel=1e-12)
    assert gradient.isfinite().all()
    assert (gradient[1] == 0).all()


@every_loss
def test_equal_scores(name):
    targets, observed, maskable = outcomes(3)
    log_scores = torch.zeros_like(targets).requires_grad_()
    value = LOSSES[name](log_scores, targets, observed, maskable)
    value.backward()
    assert value.isfinite()
    assert log_scores.grad.isfinite().all()
    if name == "variance":
        assert value.item() == pytest.approx(log((ROOT_MEAN_SQUARE**2).mean()), rel=1e-12)


def test_a_single_observed_position_teaches_kl_nothing():
    value, gradient = value_and_gradient(kl, [[3.0, np.nan, np.nan]], [[True, False, False]])
    assert value == 0
    assert (gradient == 0).all()


@every_loss
@pytest.mark.parametrize(
    ("target", "observed", "cause"),
    [(1.0, False, "no norm in the batch was observed"), (0.0, True, "every norm in the batch is zero")]
)  # fmt: skip
def test_a_batch_that_says_nothing(name, target, observed, cause):
    with pytest.raises(GradvarError) as error:
        value_and_gradient(LOSSES[name], [[target] * 3] * 2, [[observed] * 3] * 2)
    assert str(error.value) == f"nothing to fit a MAPNet to: {cause}; give rows with observed norms"


def test_the_losses_by_name():
    assert dict(LOSSES) == {"log-regression": log_regression, "kl": kl, "variance": variance}


def test_language_is_least_at_the_frequencies():
    """A free context, seen with tokens 0, 2, 2 of a table of unit vectors: it expects them a third and two thirds."""
    context = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    ids, observed = torch.tensor([[0, 2, 1], [2, -100, 1]]), torch.tensor([[True, True, False], [True, False, False]])
    table = torch.eye(3, dtype=torch.float64)

    def loss(at: torch.Tensor) -> torch.Tensor:
        return language(at.expand(2, 3, 3), table, ids, observed)

    assert loss(context).item() == pytest.approx(log(3), rel=1e-12)
    third = torch.tensor([1.0, 1e-12, 2.0], dtype=torch.float64).log()
    assert loss(third).item() == pytest.approx(-log(1 / 3) / 3 - 2 * log(2 / 3) / 3, rel=1e-9)
    (gradient,) = torch.autograd.grad(loss(context), [context])
    torch.testing.assert_close(gradient, torch.tensor([0.0, 1 / 3, -1 / 3], dtype=torch.float64))


def test_language_of_nothing_is_zero():
    contexts = torch.ones(1, 2, 3, requires_grad=True)
    value = language(contexts, torch.ones(5, 3), torch.full((1, 2), -1), torch.zeros(1, 2, dtype=torch.bool))
    value.backward()
    assert value == 0
    assert (contexts.grad == 0).all()


def test_language_takes_a_table_of_another_precision():
    value = language(torch.zeros(1, 1, 3), torch.ones(5, 3).double(), torch.zeros(1, 1).long(), torch.ones(1, 1) > 0)
    assert value.dtype == torch.float32
