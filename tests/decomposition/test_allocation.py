"""The variance of a batch, and the cheapest number of masks against brute force."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradvar.decomposition.accumulator import moments_of
from gradvar.decomposition.allocation import MOST_MASKS, Advice, advise, batch_variance
from gradvar.decomposition.components import Components
from gradvar.decomposition.estimate import unresolved
from gradvar.decomposition.moments import Moments

positive = st.floats(-3, 3).map(lambda x: 10.0**x)


def components(v_data: float, v_mask: float, data: int = 8, masks: int = 4) -> Components:
    """Moments whose every datum contributes exactly these components."""
    squares = np.full((data, 1), v_mask * (masks - 1))
    norms = np.full((data, masks), v_data + v_mask)
    between = (data - 1) * (v_data + v_mask / masks)
    means = np.full(data, v_data + v_mask / masks)
    moments = Moments((data, masks), squares, between, norms, 0.0, means, means, 1, np.zeros((data, 0, 0)))
    return Components(moments, ("data", "mask"))


def cost_of(v_data: float, v_mask: float, cost_sentence: float, cost_mask: float, masks: np.ndarray) -> np.ndarray:
    return (v_data + v_mask / masks) * (cost_sentence + masks * cost_mask)


def test_batch_variance_of_two_levels():
    assert batch_variance(components(2.0, 12.0), 10, (3,)).estimate == pytest.approx(2 / 10 + 12 / 30, rel=1e-12)


@pytest.mark.parametrize("v_data", [0.0, 0.5])
def test_batch_variance_of_a_small_or_no_data_variance(v_data):
    assert batch_variance(components(v_data, 12.0), 10, (3,)).estimate == pytest.approx(
        v_data / 10 + 12 / 30, rel=1e-12
    )


@pytest.mark.parametrize("v_data", [0.0, 1e-6])
def test_advice_goes_no_further_than_it_says(v_data):
    """Masks alone would be cheapest, thousands of them."""
    with np.errstate(all="raise"):
        assert advise(components(v_data, 12.0), 100.0, 1.0).masks_per_sentence == MOST_MASKS == 1024


def test_advice_just_below_its_bound():
    """`sqrt(1022.6^2)`: the better of 1022 and 1023; and of 1023 and 1024 for 1023.6."""
    for ideal in (1022.6, 1023.6):
        study = components(1.0, ideal**2)
        costs = cost_of(*study.values, 1.0, 1.0, np.arange(1, MOST_MASKS + 1))
        assert advise(study, 1.0, 1.0).masks_per_sentence == 1 + costs.argmin() == round(ideal)


def test_batch_variance_of_three_levels():
    vectors = torch.randn(20, 3, 4, 5, dtype=torch.float64) + torch.randn(20, 1, 1, 5, dtype=torch.float64)
    study = Components(moments_of(vectors), ("data", "mask", "dropout"))
    a, b, c = study.values
    found = batch_variance(study, 7, (2, 5))
    assert found.estimate == pytest.approx(a / 7 + b / 14 + c / 70, rel=1e-12)
    assert found.low < found.estimate < found.high


def test_batch_variance_needs_a_data_variance():
    found = batch_variance(components(-1.0, 12.0), 10, (3,))
    assert not found.resolved
    assert "data variance is estimated as negative" in found.reason


@settings(max_examples=100, deadline=None)
@given(positive, positive, st.one_of(st.just(0.0), positive), positive)
def test_advice_is_the_brute_force_optimum(v_data, v_mask, cost_sentence, cost_mask):
    """Neighbours can tie to rounding, so their costs are compared; estimates carry roundings of 1e-16 each."""
    study = components(v_data, v_mask)
    found = advise(study, cost_sentence, cost_mask)
    costs = cost_of(*study.values, cost_sentence, cost_mask, np.arange(1, MOST_MASKS + 1))
    assert 1 <= found.masks_per_sentence <= MOST_MASKS
    assert costs[found.masks_per_sentence - 1] <= costs.min() * (1 + 1e-12)
    assert found.variance_ratio_to_one_mask.estimate == pytest.approx(costs.min() / costs[0], rel=1e-9)
    assert found.variance_ratio_to_one_mask.estimate <= 1
    assert (found.cost_sentence, found.cost_mask) == (cost_sentence, cost_mask)


@pytest.mark.parametrize(("cost_sentence", "masks"), [(0.0, 1), (1.0, 3), (4.0, 6), (100.0, 30)])
def test_advice_is_the_square_root_rule(cost_sentence, masks):
    """`sqrt(9 c_s / (1 c_m))` where that is an integer."""
    assert advise(components(1.0, 9.0), cost_sentence, 1.0).masks_per_sentence == masks


def test_advice_needs_a_data_variance():
    found = advise(components(-1.0, 12.0), 1.0, 1.0)
    assert found.masks_per_sentence is None
    assert not found.variance_ratio_to_one_mask.resolved


def test_advice_is_for_two_levels():
    study = Components(moments_of(torch.randn(6, 2, 2, 3, dtype=torch.float64)), ("data", "mask", "dropout"))
    assert advise(study, 2.0, 3.0) == Advice(None, unresolved("advice is given for two levels"), 2.0, 3.0)


def test_advice_as_json():
    found = advise(components(1.0, 9.0), 4.0, 1.0)
    json = found.to_json()
    assert json.pop("variance_ratio_to_one_mask") == found.variance_ratio_to_one_mask.to_json()
    assert json == {"masks_per_sentence": 6, "cost_sentence": 4.0, "cost_mask": 1.0}
