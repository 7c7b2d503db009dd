"""What the studies of stages share: which stages there are, their masked LMs and MAPNets, and estimates as columns."""

from __future__ import annotations

import hashlib
import lzma
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import regimes
import settings

from gradvar import Estimate, GradvarError

if TYPE_CHECKING:
    from gradvar.fitting import Options
    from gradvar.huggingface.masked_lm import MaskedLM
    from gradvar.report.fit import Fit

SHORT = 16
"""Tokens of a sequence with ``--quick``."""
CHARACTERS = 6_000_000
"""Of a training text, from its beginning: enough for a MAPNet, and quickly read."""
MOST_EPOCHS = 8
"""Of a fit, where a text is short: each of them masks its sentences anew."""


def pick(it: settings.Setting, wanted: Mapping[str, Sequence[int]]) -> list[tuple[int, regimes.Stage]]:
    """Return the stages that there are, with the beginning of their training text; say which regimes are left out.

    Args:
        it: The setting; ``only`` may name regimes or stages.
        wanted: By regime, positions in `regimes.STAGES`.

    Returns:
        Position and stage, in order. With ``--quick`` their sequences are short, and *published*, whose head and MAPNet
        would have to be trained first, is there only if it is named.

    Raises:
        GradvarError: If there is none.
    """
    found: list[tuple[int, regimes.Stage]] = []
    for regime, positions in wanted.items():
        named = [name for name in it.only if regime_of(name) == regime]
        if it.only and not named:
            continue
        if it.quick and regime == "published" and not named:
            print(f"{regime} is left out of --quick; --only {regime} does it", flush=True)
            continue
        try:
            every = regimes.stages(it, regime)
        except GradvarError as error:
            print(f"{regime} is left out: {error}", flush=True)
            continue
        some = [(position, every[position]) for position in positions]
        found += [each for each in some if not named or regime in named or each[1].name in named]
    if not found:
        raise GradvarError(f"there is no stage{' of ' + ', '.join(it.only) if it.only else ''} in this experiment")
    most = SHORT if it.quick else max(stage.max_length for _, stage in found)
    return [
        (at, replace(stage, train=beginning(it, stage.train), max_length=min(stage.max_length, most)))
        for at, stage in found
    ]


def last_of(positions: Mapping[str, Sequence[int]]) -> dict[str, Sequence[int]]:
    """Return the last position of each regime alone."""
    return {regime: places[-1:] for regime, places in positions.items()}


def regime_of(name: str) -> str:
    """Return the regime of a stage."""
    return name.partition("@")[0]


def step_of(name: str) -> int:
    """Return the step of a stage."""
    return int(name.partition("@")[2])


def beginning(it: settings.Setting, text: Path) -> Path:
    """Return the first `CHARACTERS` of a text, up to the end of a document or line; the text itself if no longer."""
    with lzma.open(text, "rt", encoding="utf-8") if text.suffix == ".xz" else text.open(encoding="utf-8") as file:
        head = file.read(CHARACTERS + 1)
    if len(head) <= CHARACTERS:
        return text
    digest = hashlib.sha256(head.encode()).hexdigest()[:12]  # another text of the same name is another text
    path = it.work / "texts" / f"beginning-of-{digest}-{text.name.removesuffix('.xz')}"
    if not path.exists():
        ends = [at for at in (head.rfind("\n\n"), head.rfind("\n"), CHARACTERS) if at > 0]
        regimes.write(path, head[: ends[0]] + "\n")
    return path


def masked_lm(stage: regimes.Stage, text: Path, contexts: int) -> MaskedLM:
    """Load a stage with a text, under uniform masks."""
    from gradvar import MaskedLM

    return MaskedLM.from_checkpoint(
        stage.folder, text, max_length=stage.max_length, contexts=contexts, device=stage.device
    )


def fit(objective: MaskedLM, options: Options, seen: int, held_out: int, seed: int) -> Fit:
    """Fit a MAPNet.

    Args:
        objective: The masked LM.
        options: How; their epochs are not used.
        seen: Sentences that it sees: as many others or, of a short text, all of them in up to `MOST_EPOCHS` epochs.
        held_out: Sentences that judge it.
        seed: Of the fit.

    Returns:
        The fit.
    """
    from gradvar.fitting import fit_mapnet

    count = min(seen, len(objective) - held_out)
    options = replace(options, epochs=max(1, min(MOST_EPOCHS, round(seen / count))))
    return fit_mapnet(objective, options, sentences=count, held_out=held_out, seed=seed)


def columns(estimates: Mapping[str, Estimate]) -> dict[str, float | None]:
    """Return estimates as columns ``NAME``, ``NAME_low``, ``NAME_high``; None where something is not resolved."""
    found: dict[str, float | None] = {}
    for name, of in estimates.items():
        found |= {name: of.estimate, f"{name}_low": of.low, f"{name}_high": of.high}
    return found


def number(row: Mapping[str, str], name: str) -> float | None:
    """Return a number of a row of text; None where there is none."""
    return float(row[name]) if row.get(name) else None


def by_stage(rows: Sequence[dict[str, str]]) -> dict[str, list[dict[str, str]]]:
    """Sort rows into their stages, these by regime and step."""

    def place(stage: str) -> tuple[int, int]:
        return settings.NAMES.index(regime_of(stage)), step_of(stage)

    return {
        name: [row for row in rows if row["stage"] == name] for name in sorted({r["stage"] for r in rows}, key=place)
    }


def span(values: Sequence[float], digits: int = 1) -> str:
    """Write the lowest and the highest of some numbers, or the one that both are."""
    low, high = (f"{round(end, digits) + 0.0:.{digits}f}" for end in (min(values), max(values)))  # no minus zero
    return low if low == high else f"{low} to {high}"
