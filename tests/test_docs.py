"""docs/objectives.md is true: its code runs as it stands, and what it measures is what an autograd loop measures."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

import gradvar
from gradvar.decomposition.accumulator import moments_of
from gradvar.decomposition.components import Components

PAGE = Path(__file__).parents[1] / "docs" / "objectives.md"


@pytest.fixture(scope="module")
def page():
    """What the page's code leaves behind, all of its blocks run in one module."""
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    assert len(blocks) == 3
    names: dict = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    return names


def gradient(objective, cell):
    """The whole gradient of a batch of one cell, by plain autograd."""
    found = torch.autograd.grad(objective.losses(cell).sum(), list(objective.model.parameters()))
    return torch.cat([part.flatten() for part in found])


STUDIES = [("classifier", (6,)), ("denoiser", (4, 3))]


@pytest.mark.parametrize("engine", ["onepass", "reference"])
@pytest.mark.parametrize(("name", "draws"), STUDIES)
def test_engines_are_exact(page, name, draws, engine):
    check = gradvar.check_engine(page[name], data=3, draws=3, engine=engine)
    assert check.engine == engine
    assert len(check.errors) == 4
    assert check.error < 1e-9


@pytest.mark.parametrize("engine", ["onepass", "reference"])
@pytest.mark.parametrize(("name", "draws"), STUDIES)
def test_components_are_those_of_an_autograd_loop(page, name, draws, engine):
    """Every cell is drawn and differentiated alone, so that nothing of a batch can help."""
    objective, data, seed = page[name], 16, 3
    order = np.random.default_rng(seed).permutation(len(objective))[:data].tolist()
    batches = [objective.draw([datum], draws, seed) for datum in order]
    rows = [
        gradient(objective, {key: x[cell : cell + 1] for key, x in batch.items()})
        for batch in batches
        for cell in range(np.prod(draws))
    ]
    expected = Components(moments_of(torch.stack(rows).view(data, *draws, -1)), objective.levels)
    found = gradvar.decompose(objective, sentences=data, masks=draws, seed=seed, engine=engine)
    assert found.levels == objective.levels
    for level, value in zip(objective.levels, expected.values, strict=True):
        assert found.components[level].estimate == pytest.approx(value, rel=1e-9)
    assert found.gradient_norm2.estimate == pytest.approx(expected.norm2, rel=1e-9)
    assert found.components[objective.levels[-1]].estimate > 0


def test_the_tests_that_the_theory_names_are_there():
    root = PAGE.parents[1]
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", (root / "docs" / "theory.md").read_text(encoding="utf-8"))
    assert len(named) > 10
    for path, test in named:
        assert (root / path).is_file(), path
        assert not test or f"def {test}(" in (root / path).read_text(encoding="utf-8"), f"{path}::{test}"
