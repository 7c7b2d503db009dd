"""docs/proposals.md is true: its code runs as it stands, and its design is as unbiased as it says."""

import re
from pathlib import Path

import pytest
import torch

PAGE = Path(__file__).parents[1] / "docs" / "proposals.md"


@pytest.fixture(scope="module")
def page():
    """What the page's code leaves behind, all of its blocks run in one module."""
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    assert len(blocks) == 2
    names: dict = {"__name__": "page"}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    return names


def test_the_score_and_the_design_are_measured(page):
    assert [row.proposal for row in page["result"].proposals] == ["uniform/simple", "late/midzuno", "loss^0.5/pps~0.1"]
    assert page["result"]["late/midzuno"].declared_unbiased
    assert page["study"].proposal == "late/better"
    assert page["study"].components["mask"].estimate > 0


def test_the_design_of_the_page_is_unbiased(page):
    """Weights of 2^15 draws have mean one, within 5 standard errors: right ones fail for one seed in a million."""
    sentences = page["objective"].sentences([0], 0)
    keys = torch.arange(2**15).view(1, -1) * 7919
    scores = page["Late"]()(sentences, None)
    weights = page["Better"]().draw(sentences, scores, keys).weights.sum(dim=1)
    assert weights.unique().numel() > 1
    assert abs(float(weights.mean()) - 1) < 5 * float(weights.std()) / len(weights) ** 0.5
