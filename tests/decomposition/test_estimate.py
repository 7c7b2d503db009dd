"""A number with its interval, or the reason why there is none."""

import math

import pytest

from gradvar.decomposition.estimate import Estimate, unresolved

FULL = Estimate(0.25, -0.5, 1.5)
POINT = Estimate(0.25, reason="too few data")
BOUND = unresolved("too noisy", 12.34)
NOTHING = unresolved("identically zero")


@pytest.mark.parametrize(
    ("estimate", "json"),
    [
        (FULL, {"estimate": 0.25, "low": -0.5, "high": 1.5}),
        (POINT, {"estimate": 0.25, "low": None, "high": None, "reason": "too few data"}),
        (BOUND, {"estimate": None, "low": 12.34, "high": None, "reason": "too noisy"}),
        (NOTHING, {"estimate": None, "reason": "identically zero"}),
    ],
)
def test_json_holds_a_value_or_its_reason(estimate, json):
    assert estimate.to_json() == json


@pytest.mark.parametrize(
    ("estimate", "text"),
    [
        (FULL, "0.25 [-0.5, 1.5]"),
        (Estimate(1234.5, 1.0, 0.00012345), "1.23e+03 [1, 0.000123]"),
        (POINT, "0.25 (no interval)"),
        (Estimate(0.25, low=0.125, reason="no upper end"), "0.25 (no interval)"),
        (Estimate(0.25, high=0.5, reason="no lower end"), "0.25 (no interval)"),
        (BOUND, "not resolved (at least 12.3)"),
        (NOTHING, "not resolved"),
    ],
)
def test_text_has_three_digits(estimate, text):
    assert str(estimate) == text


def test_resolved_means_that_there_is_a_value():
    assert [e.resolved for e in (FULL, POINT, BOUND, NOTHING)] == [True, True, False, False]


def test_clip_cuts_what_is_there_and_keeps_the_reason():
    assert FULL.clip(0, 1) == Estimate(0.25, 0, 1)
    assert Estimate(-0.1, -0.5, -0.05).clip(0, 1) == Estimate(0, 0, 0)
    assert BOUND.clip(0, 1) == Estimate(None, 1, None, "too noisy")
    assert NOTHING.clip(0, 1) == NOTHING


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", ["estimate", "low", "high"])
def test_values_that_are_not_finite_are_refused(value, place):
    with pytest.raises(ValueError, match=r"^an estimate must be finite or None, not "):
        Estimate(**({"estimate": 1.0, "low": 0.0, "high": 2.0, "reason": "a reason is no excuse"} | {place: value}))


@pytest.mark.parametrize("place", ["estimate", "low", "high"])
def test_a_missing_value_needs_its_reason(place):
    with pytest.raises(ValueError, match=r"^a missing value needs its reason$"):
        Estimate(**({"estimate": 1.0, "low": 0.0, "high": 2.0} | {place: None}))
