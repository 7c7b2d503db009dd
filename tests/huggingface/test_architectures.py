"""What a study of each architecture comes to; its exactness is in `persample/test_exactness.py`."""

import numpy as np
import pytest
import torch

from gradvar import check_engine, decompose
from gradvar.errors import GradvarError
from tests import cases
from tests.persample import oracle

NOTICE = "the slow reference engine was used, as the one-pass engine cannot measure this: "


def study(objective, **options):
    return decompose(objective, sentences=8, masks=2, **options)


def numbers(result):
    """Every component of every layer and of the whole."""
    parts = [result, *result.layers]
    return np.array([part.components[level].estimate for part in parts for level in result.levels])


def checkpointed(model, **options):
    """Switch gradient checkpointing on; return a list that grows with every call of it."""
    calls = []
    model.gradient_checkpointing_enable(options)
    layers = [module for module in model.modules() if getattr(module, "gradient_checkpointing", False)]
    assert layers != []
    for layer in layers:
        inner = layer._gradient_checkpointing_func

        def counted(*args, inner=inner):
            calls.append(args)
            return inner(*args)

        layer._gradient_checkpointing_func = counted
    return calls


@pytest.mark.parametrize("kind", cases.ONE_PASS)
def test_one_pass_and_reference_agree(kind):
    objective = cases.objective(kind, padded=True)
    fast, slow = study(objective), study(objective, engine="reference")
    assert (fast.study["engine"], slow.study["engine"]) == ("onepass", "reference")
    assert fast.notices == slow.notices
    scale = numbers(slow).max()
    np.testing.assert_allclose(numbers(fast), numbers(slow), rtol=1e-9, atol=1e-12 * scale)


@pytest.mark.parametrize("padded", [False, True])
def test_deberta_is_measured_by_the_reference_engine_with_a_notice(padded):
    """Its relative positions have no dimension for the cells, and their broadcast cannot be expanded."""
    objective = cases.objective("deberta-v2", padded)
    found, asked = study(objective), study(objective, engine="reference")
    assert found.study["engine"] == "reference"
    assert found.notices[0].startswith(NOTICE)
    assert found.notices[0] in str(found).replace("\n", " ")
    assert found.notices[1:] == asked.notices
    assert np.array_equal(numbers(found), numbers(asked))
    assert check_engine(objective, engine="reference").error <= oracle.EXACT
    with pytest.raises(GradvarError, match="use --engine reference"):
        study(objective, engine="onepass")


@pytest.mark.parametrize("kind", [kind for kind in cases.ARCHITECTURES if kind != "albert"])
def test_gradient_checkpointing_sleeps_in_evaluation_mode(kind):
    objective = cases.objective(kind, padded=True)
    without = study(objective)
    calls = checkpointed(objective.model)
    assert np.array_equal(numbers(study(objective)), numbers(without))
    assert calls == []


def test_albert_has_no_gradient_checkpointing():
    with pytest.raises(ValueError, match="does not support"):
        checkpointed(cases.model("albert"))


def awake(reentrant):
    """A BERT that its user keeps in training mode, with dropout at zero, so that its checkpointing is awake."""
    objective = cases.objective("bert", padded=True)
    for module in objective.model.train().modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return objective, checkpointed(objective.model, use_reentrant=reentrant)


def test_gradient_checkpointing_that_is_awake_changes_nothing():
    without = study(cases.objective("bert", padded=True))
    objective, calls = awake(reentrant=False)
    found = study(objective)
    assert len(calls) > 0
    assert found.study["engine"] == "onepass"
    np.testing.assert_allclose(numbers(found), numbers(without), rtol=1e-12)
    assert check_engine(objective).error <= oracle.EXACT


@pytest.mark.parametrize("engine", ["auto", "onepass", "reference"])
def test_reentrant_gradient_checkpointing_is_refused_by_name(engine):
    objective, _ = awake(reentrant=True)
    with pytest.raises(GradvarError, match="reentrant gradient checkpointing; switch it off, or pass use_reentrant"):
        study(objective, engine=engine)
    with pytest.raises(GradvarError, match="reentrant gradient checkpointing"):
        check_engine(objective, engine=engine)
