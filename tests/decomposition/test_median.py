"""The interval of a median holds it as often as it says: counted over all ways values can fall about it."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradvar.decomposition.median import median_of


@pytest.mark.parametrize("n", range(2, 13))
def test_confidence_by_enumeration(n):
    """Each value is below the true median (0) or above it, independently, with chance 1/2."""
    held = 0
    magnitudes = np.arange(1.0, n + 1)
    for signs in product((-1.0, 1.0), repeat=n):
        found = median_of(magnitudes * np.array(signs))
        held += found.low <= 0 <= found.high
    assert held / 2**n == pytest.approx(found.confidence, abs=1e-12)
    assert found.confidence >= 0.95 or n < 6


def test_known_confidences():
    confidences = {n: median_of(np.arange(float(n))).confidence for n in (2, 3, 5, 6)}
    assert confidences == {2: 0.5, 3: 0.75, 5: 0.9375, 6: 0.96875}
    nine = median_of(np.arange(9.0))  # 1 - 2 (1 + 9)/512
    assert (nine.low, nine.high, nine.confidence) == (1.0, 7.0, 1 - 20 / 512)


def test_one_value_has_no_interval():
    found = median_of(np.array([3.0]))
    assert (found.estimate, found.low, found.high, found.confidence) == (3.0, None, None, None)


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=40))
def test_ends_are_values_about_the_median_and_turn_with_the_sign(values):
    found, turned = median_of(np.array(values)), median_of(-np.array(values))
    assert found.low <= found.estimate <= found.high
    assert {found.low, found.high} <= set(values)
    assert (turned.low, turned.high) == (-found.high, -found.low)
