"""Which stages of training can be studied: those of the regimes whose files are there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import regimes

from gradvar import GradvarError

_SHORT = 24  # tokens of a sequence, to see that it runs


def there(it: regimes.Setting, wanted: Mapping[str, Iterable[int]]) -> list[regimes.Stage]:
    """Return stages of reference runs, which are trained if need be; say what is left out, and why.

    Args:
        it: The setting; where its ``only`` names regimes or stages, the others are left alone.
        wanted: Places in :data:`regimes.STAGES`, by regime.

    Returns:
        The stages that are there.
    """
    found = []
    for regime, places in wanted.items():
        if it.only and not any(name.partition("@")[0] == regime for name in it.only):
            continue
        try:
            every = regimes.stages(it, regime)
        except GradvarError as error:
            print(f"left out: {regime}: {error}", flush=True)
            continue
        found += [every[place] for place in places]
    if it.quick:
        found = [replace(stage, max_length=_SHORT) for stage in found]
    return [stage for stage in found if not it.only or {stage.name, regime_of(stage.name)} & set(it.only)]


def regime_of(name: str) -> str:
    """Return the regime of a stage."""
    return name.partition("@")[0]


def step_of(name: str) -> int:
    """Return the step of a stage."""
    return int(name.partition("@")[2])
