"""The arms of the race: ways to choose masks, each a few values in place of a recipe's, and how a run becomes rows."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf, isfinite
from pathlib import Path
from typing import Any

import ledger
import regimes
import settings

from gradvar import GradvarError
from gradvar.metrics import read_metrics

BASELINE = "uniform"
PLACEBO = "placebo"
CONTROL = "uniform, next rate"
"""Uniform masks with the second best learning rate: what the choice of a rate alone can do."""
_MAPNET: dict[str, dict[str, Any]] = {
    "mapnet, weighted sets": {"masking.proposal": "mapnet/conditional-poisson"},
    "mapnet, weighted positions": {"masking.proposal": "mapnet/pps"},
    "mapnet, unweighted": {"masking.proposal": "mapnet/hard"},
    PLACEBO: {"masking.proposal": "mapnet-permuted/pps"},
}
_RATES: dict[str, dict[str, Any]] = {
    f"{rate} % masked": {"masking.mask_rate": rate / 100} for rate in (10, 20, 30, 40, 50)
}
ARMS: dict[str, dict[str, dict[str, Any]]] = {
    "adapted": {
        BASELINE: {},
        CONTROL: {},
        **_MAPNET,
        "oracle, weighted sets": {"masking.proposal": "oracle/pool:4"},
        "disjoint pairs": {"masking.proposal": "uniform/disjoint:2"},
        "two masks a sentence": {"masking.masks": 2},
        "epoch-stratified": {"masking.proposal": "uniform/epoch-stratified"},
        **_RATES,
    },
    "published": {
        BASELINE: {},
        CONTROL: {},
        **_MAPNET,
        "disjoint pairs": {"masking.proposal": "uniform/disjoint:2"},
        "epoch-stratified": {"masking.proposal": "uniform/epoch-stratified"},
        "30 % masked": _RATES["30 % masked"],
        "40 % masked": _RATES["40 % masked"],
    },
    "scratch": {
        BASELINE: {},
        CONTROL: {},
        **_MAPNET,
        "disjoint pairs": {"masking.proposal": "uniform/disjoint:2"},
        "30 % masked": _RATES["30 % masked"],
        "40 % masked": _RATES["40 % masked"],
    },
    "mini": {
        BASELINE: {},
        CONTROL: {},
        **{arm: changes for arm, changes in _MAPNET.items() if arm != "mapnet, weighted sets"},
        "30 % masked": _RATES["30 % masked"],
    },
}
"""What an arm changes in its regime's recipe. The arms with a MAPNet go on with the one that lies beside the checkpoint
in *adapted* (from its whole training) and in *published* (fitted beforehand, see `regimes.with_head`); in *scratch* and
in *mini* it begins with the encoder."""
ON_GPU = ("mini",)
"""Regimes that a processor takes days for: without ``--device cuda`` they are worked on where they are named."""
_DRAWN = ("exponent", "epsilon", "ess")


def race(it: settings.Setting, regime: str, arm: str, seed: int, values: Mapping[str, Any]) -> ledger.Found:
    """Train one run, or go on with it.

    Args:
        it: The setting.
        regime: Its regime.
        arm: Its arm.
        seed: Its seed.
        values: In place of the recipe's, beside the arm's own.

    Returns:
        A row for each look at the held-out loss, with the exponent, epsilon and effective sample size by which a MAPNet
        drew, and the part of the log's lines so far at which it was in use; a run that diverges ends with an infinite
        loss.
    """
    spec = recipe(it, regime, arm, seed, values)
    rate, place = spec.training.learning_rate, folder(it, regime, arm, seed, values)
    try:
        checkpoint = regimes.sha256_of(regimes.trained(it, spec, place))
    except GradvarError as error:
        if "no finite loss" not in str(error):
            raise
        checkpoint = "diverged"
    rows, drawn, used = [], {}, []
    for line in read_metrics(place):
        drawn |= {name: line[name] for name in _DRAWN if name in line}
        used += [line["exponent"] > 0] if "exponent" in line else []
        if "eval_loss" in line:
            told = {"tokens": line["tokens"], "train_seconds": line["seconds"], "learning_rate": rate}
            in_use = {"in_use": sum(used) / len(used)} if used else {}
            loss = {"loss": _number(line["eval_loss"]), "loss_se": _number(line["eval_loss_se"])}
            rows.append({"step": line["step"], **told, **loss, **drawn, **in_use})
    if checkpoint == "diverged":
        rows.append({"step": spec.training.steps, "learning_rate": rate, "loss": inf})
    return ledger.Found(rows, Path(spec.data.train).name, checkpoint)


def _number(value: float | None) -> float:
    return inf if value is None or not isfinite(value) else value


def wanted(it: settings.Setting, stages: bool = False) -> list[str]:
    """Return the regimes of the race that are to be worked on.

    Args:
        it: The setting.
        stages: Whether ``only`` may name stages, too.

    Raises:
        GradvarError: If ``only`` names what is no regime.
    """
    if not it.only:
        return [regime for regime in ARMS if it.quick or it.device != "cpu" or regime not in ON_GPU]
    named = [name.partition("@")[0] if stages else name for name in it.only]
    for name in named:
        if name not in ARMS:
            raise GradvarError(f"--only {name}: here it is one of {', '.join(ARMS)}")
    return [regime for regime in ARMS if regime in named]


def recipe(it: settings.Setting, regime: str, arm: str, seed: int, values: Mapping[str, Any]) -> Any:
    """Return the recipe of one run of an arm."""
    return regimes.recipe(it, regime, seed, {**ARMS[regime][arm], **values})


def folder(it: settings.Setting, regime: str, arm: str, seed: int, values: Mapping[str, Any]) -> Path:
    """Return the folder of one run of an arm, named by what is not the same in all of them."""
    training = recipe(it, regime, arm, seed, values).training
    words = arm.replace(",", "").replace("%", "percent").split()
    return it.work / "runs" / regime / "-".join([*words, str(seed), f"{training.learning_rate:g}", str(training.steps)])
