"""The arms of the race: ways to choose masks, each a few values in place of a recipe's, and how a run becomes rows."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ledger
import regimes

from gradvar import checkpoints
from gradvar.metrics import read_metrics

BASELINE = "uniform"
_MAPNET: dict[str, dict[str, Any]] = {
    "mapnet, weighted sets": {"masking.proposal": "mapnet/conditional-poisson"},
    "mapnet, weighted positions": {"masking.proposal": "mapnet/pps"},
    "mapnet, unweighted": {"masking.proposal": "mapnet/hard"},
    "placebo": {"masking.proposal": "mapnet-permuted/pps"},
}
_RATES: dict[str, dict[str, Any]] = {
    f"{rate} % masked": {"masking.mask_rate": rate / 100} for rate in (10, 20, 30, 40, 50)
}
ARMS: dict[str, dict[str, dict[str, Any]]] = {
    "adapted": {
        "uniform": {},
        **_MAPNET,
        "oracle, weighted sets": {"masking.proposal": "oracle/pool:4"},
        "disjoint pairs": {"masking.proposal": "uniform/disjoint:2"},
        "two masks a sentence": {"masking.masks": 2},
        "epoch-stratified": {"masking.proposal": "uniform/epoch-stratified"},
        **_RATES,
    },
    "published": {
        "uniform": {},
        "mapnet, weighted positions": _MAPNET["mapnet, weighted positions"],
        "30 % masked": _RATES["30 % masked"],
        "epoch-stratified": {"masking.proposal": "uniform/epoch-stratified"},
    },
    "scratch": {
        "uniform": {},
        **_MAPNET,
        "disjoint pairs": {"masking.proposal": "uniform/disjoint:2"},
        "30 % masked": _RATES["30 % masked"],
        "40 % masked": _RATES["40 % masked"],
    },
}
"""What an arm changes in its regime's recipe."""


def race(it: regimes.Setting, regime: str, arm: str, seed: int, values: Mapping[str, Any]) -> ledger.Found:
    """Train one run, or go on with it.

    Args:
        it: The setting.
        regime: Its regime.
        arm: Its arm.
        seed: Its seed.
        values: In place of the recipe's, beside the arm's own.

    Returns:
        A row for each look at the held-out loss.
    """
    wanted = recipe(it, regime, arm, seed, values)
    rate, place = wanted.training.learning_rate, folder(it, regime, arm, seed, values)
    last = regimes.trained(it, wanted, place)
    for heavy in place.glob("checkpoint-*/optimizer.pt"):  # a finished run goes nowhere from here
        heavy.unlink()
    rows = [
        {
            "step": line["step"],
            "tokens": line["tokens"],
            "train_seconds": line["seconds"],
            "learning_rate": rate,
            "loss": line["eval_loss"],
            "loss_se": line["eval_loss_se"],
        }
        for line in read_metrics(place)
        if "eval_loss" in line
    ]
    return ledger.Found(rows, Path(wanted.data.train).name, sha256_of(last))


def recipe(it: regimes.Setting, regime: str, arm: str, seed: int, values: Mapping[str, Any]) -> Any:
    """Return the recipe of one run of an arm."""
    return regimes.recipe(it, regime, seed, {**ARMS[regime][arm], **values})


def folder(it: regimes.Setting, regime: str, arm: str, seed: int, values: Mapping[str, Any]) -> Path:
    """Return the folder of one run of an arm, named by what is not the same in all of them."""
    training = recipe(it, regime, arm, seed, values).training
    words = arm.replace(",", "").replace("%", "percent").split()
    return it.work / "runs" / regime / "-".join([*words, str(seed), f"{training.learning_rate:g}", str(training.steps)])


def sha256_of(checkpoint: Path) -> str:
    """Return the first digits of the hash of the weights of a checkpoint, or of a run's last one."""
    last = checkpoints.last_whole(checkpoint) or checkpoint
    return hashlib.sha256((last / "model.safetensors").read_bytes()).hexdigest()[:12]
