"""Losses of positions that were drawn unequally: with importance weights they are, on average, those of all positions.

Over all pairs of four maskable positions, with the chances of each design by brute force, and all outcomes of the
norms' noise.
"""

from functools import partial

import numpy as np
import pytest
import torch

from gradvar.mapnet.losses import LOSSES, kl, log_regression, variance
from tests.mapnet.test_losses import (
    GEOMETRIC_MEAN,
    PLACES,
    ROOT_MEAN_SQUARE,
    F,
    assert_close_to,
    best_scores,
    outcomes,
    shares,
)
from tests.masking.enumeration import Chances, Row, inclusion_by, midzuno, products, successive

ROW = Row(PLACES, 2, [2.0, 0.3, 0.5, 1.2], [0, 1, 2, 3])
DESIGNS: dict[str, Chances] = {
    "midzuno": midzuno(ROW),
    "conditional-poisson": products(ROW, dict(zip(PLACES, ROW.scores, strict=True))),
    "hard": successive(ROW, [[place] for place in PLACES]),
}
LOG_SCORES = torch.tensor([50.0, 0.4, -1.2, 0.7, 50.0, 0.1], dtype=torch.float64)  # 50: not maskable, of no account
designs = pytest.mark.parametrize("design", DESIGNS)
every_loss = pytest.mark.parametrize("name", LOSSES)


def weights_of(observed: torch.Tensor, design: str) -> torch.Tensor:
    """`1/(T pi_i)` at observed positions, not a number elsewhere."""
    pi = inclusion_by(DESIGNS[design], 6).expand(len(observed), 6)
    return torch.where(observed, 1 / (4 * pi), torch.nan)


def chances_by_row(observed: torch.Tensor, design: str) -> torch.Tensor:
    """`[rows]` of all outcomes of two observed positions, whose noise is equally likely."""
    sets = (tuple(row.nonzero().flatten().tolist()) for row in observed)
    q = torch.tensor([DESIGNS[design][subset] for subset in sets], dtype=torch.float64)
    return q / q.sum()


def expectation(loss, design: str, weighted: bool = True) -> torch.Tensor:
    """Of the loss of a single row, over what is drawn of it and its noise."""
    targets, observed, maskable = outcomes(2)
    weights = weights_of(observed, design) if weighted else None
    rows = []
    for r in range(len(targets)):
        own = None if weights is None else weights[r, None]
        rows.append(loss(LOG_SCORES[None], targets[r, None], observed[r, None], maskable[r, None], own))
    return chances_by_row(observed, design) @ torch.stack(rows)


def whole(loss) -> torch.Tensor:
    """The mean loss of single rows where every position is observed."""
    parts = outcomes(4)
    rows = [loss(LOG_SCORES[None], *(x[r, None] for x in parts)) for r in range(len(parts[0]))]
    return torch.stack(rows).mean()


def second_moment(*observations: torch.Tensor, **options: float) -> torch.Tensor:
    return variance(*observations, **options).exp()


MEANS = {
    "variance": second_moment,
    "variance~0.2": partial(second_moment, epsilon=0.2),
    "variance capped": partial(second_moment, cap=1.5),
    "log-regression": log_regression,
}


@designs
@pytest.mark.parametrize("name", MEANS)
def test_the_mean_is_that_of_all_positions(design, name):
    loss = MEANS[name]
    torch.testing.assert_close(expectation(loss, design), whole(loss), rtol=1e-12, atol=0)


@designs
@pytest.mark.parametrize("name", MEANS)
def test_without_weights_it_is_not(design, name):
    """The counterexample: the weights are needed."""
    loss = MEANS[name]
    assert abs(expectation(loss, design, weighted=False) / whole(loss) - 1) > 1e-2


def least(loss, design: str, weighted: bool) -> torch.Tensor:
    """Scores that the mean loss over all outcomes is least at, with their chances in the weights of the rows."""
    targets, observed, maskable = outcomes(2)
    weights = weights_of(observed, design) if weighted else observed / observed.sum(dim=1, keepdim=True).double()
    weights = weights * chances_by_row(observed, design).unsqueeze(1) * len(targets)
    return best_scores(lambda *x: loss(*x, weights), targets, observed, maskable)


@designs
def test_the_best_scores_are_the_same_whatever_the_draws(design):
    assert_close_to(shares(least(variance, design, True)), shares(ROOT_MEAN_SQUARE))
    assert_close_to(least(log_regression, design, True), GEOMETRIC_MEAN)


@designs
def test_the_best_scores_without_weights_are_drawn_to_what_is_drawn(design):
    """Of the second moment; a regression finds each position's mean however often it sees it."""
    assert (shares(least(variance, design, False)) / shares(ROOT_MEAN_SQUARE) - 1).abs().max() > 1e-2
    assert_close_to(least(log_regression, design, False), GEOMETRIC_MEAN)


@designs
def test_kl_is_of_weighted_shares(design):
    """`sum p log(p/q)` of `p ~ w t` and `q ~ w s`; without noise it is least, and zero, at the norms."""
    targets, observed, maskable = outcomes(2)
    weights = weights_of(observed, design)
    w, t, s = (x[:, PLACES].nan_to_num().numpy() for x in (weights, targets, LOG_SCORES.exp().expand_as(targets)))
    p, q = (w * x / (w * x).sum(axis=1, keepdims=True) for x in (t, s))
    expected = np.where(w > 0, p * np.log(np.where(w > 0, p, 1) / np.where(w > 0, q, 1)), 0).sum(axis=1).mean()
    found = kl(LOG_SCORES.expand_as(targets), targets, observed, maskable, weights)
    assert found.item() == pytest.approx(expected, rel=1e-12)
    exact, seen, maskable = outcomes(2, noisy=False)
    table = torch.zeros(6, dtype=torch.float64)
    table[PLACES] = F.log()
    at_the_norms = kl(table.expand_as(exact), exact, seen, maskable, weights_of(seen, design))
    assert at_the_norms.item() == pytest.approx(0, abs=1e-15)


@every_loss
@pytest.mark.parametrize("observed", [1, 2, 3, 4])
def test_no_weights_are_equal_weights(name, observed):
    targets, seen, maskable = outcomes(observed)
    scores = [LOG_SCORES.expand_as(targets).clone().requires_grad_() for _ in range(2)]
    equal = torch.where(seen, seen.double() / observed, torch.nan)
    found = [LOSSES[name](s, targets, seen, maskable, w) for s, w in zip(scores, (None, equal), strict=True)]
    torch.testing.assert_close(*found, rtol=1e-14, atol=0)
    gradients = [torch.autograd.grad(x, s)[0] for x, s in zip(found, scores, strict=True)]
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-16)


@every_loss
def test_rows_that_say_nothing_are_left_out_with_their_weights(name):
    """Without an observed position, or with an observed one that is not maskable."""
    targets, seen, maskable = outcomes(2)
    weights = weights_of(seen, "midzuno")
    value = LOSSES[name](LOG_SCORES.expand_as(targets), targets, seen, maskable, weights)
    more = torch.zeros(2, 6, dtype=torch.bool)
    more[1, 0] = True
    found = LOSSES[name](
        LOG_SCORES.expand(len(targets) + 2, 6),
        torch.cat([targets, torch.full((2, 6), 3.0, dtype=torch.float64)]),
        torch.cat([seen, more]),
        torch.cat([maskable, maskable[:2]]),
        torch.cat([weights, torch.full((2, 6), 7.0, dtype=torch.float64)]),
    )
    assert found.item() == pytest.approx(value.item(), rel=1e-14)
