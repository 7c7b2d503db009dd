"""When a study is precise enough: half-widths, by their definition, and what has none."""

from math import inf

import pytest
import torch

from gradvar.decomposition.accumulator import moments_of
from gradvar.decomposition.components import Components
from gradvar.decomposition.precision import half_widths


def study_of(vectors):
    return Components(moments_of(vectors), ("data", "mask"))


def test_half_widths_are_relative_to_the_variance_of_a_cell():
    torch.manual_seed(0)
    study = study_of(torch.randn(30, 1, 5).double() + torch.randn(30, 4, 5).double())
    whole = study.values.sum()
    widths = half_widths(study)
    assert set(widths) == {"data variance", "data share", "mask variance", "mask share"}
    for level, name in enumerate(("data", "mask")):
        component, share = study.component(level), study.share(level)
        assert widths[f"{name} variance"] == pytest.approx((component.high - component.low) / 2 / whole)
        assert widths[f"{name} share"] == pytest.approx((share.high - share.low) / 2)


def test_a_share_that_is_not_resolved_is_left_to_its_component():
    v = torch.randn(30, 1, 5).double()
    assert set(half_widths(study_of(torch.cat([v, -v], dim=1)))) == {"data variance", "mask variance"}


def test_without_an_interval_nothing_is_precise():
    torch.manual_seed(0)
    widths = half_widths(study_of(torch.randn(3, 4, 5).double() + 3 * torch.randn(3, 1, 5).double()))
    assert widths["data variance"] == widths["mask variance"] == inf


def test_a_gradient_of_zero_has_no_variance_to_measure_precision_by():
    assert half_widths(study_of(torch.zeros(8, 2, 5).double())) == {"data variance": inf, "mask variance": inf}


def test_a_share_without_an_interval_is_not_precise_either():
    """Two data give a share, but no interval of it."""
    torch.manual_seed(0)
    widths = half_widths(study_of(torch.randn(2, 4, 5).double() + 3 * torch.randn(2, 1, 5).double()))
    assert widths == dict.fromkeys(("data variance", "data share", "mask variance", "mask share"), inf)
