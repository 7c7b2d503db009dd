r"""How the shares and the ceilings move with size, length and quality of a model, and what that says of BERT-base.

Pre-stated. Measured on held-out text, by `over_training.study` at 15 % masked: ModernBERTs of three sizes (tiny 2×128,
mini 4×256, small 4×512), trained as in *scratch* for the same 3.1 M tokens, at an eighth, a half and all of it; the
checkpoint that ships with gradvar and the published encoder (*adapted*, *published*, before the race) at 32, 64 and 128
tokens a sequence, the first at 256, too. Fitted by least squares, one equation for
each of four numbers, on the logarithm of parameters, the logarithm of the tokens of a sequence, and the held-out loss
less the unigram cross-entropy of the same text (what the model has learnt)::

    log(V_mask/V_data), log of the position ceiling, of the importance ceiling, of the stratification ceiling
        = a + b log(parameters) + c log(tokens) + d (unigram - loss)

Extrapolated to BERT-base (109 M parameters, 128 and 512 tokens, 4.5 to 5.5 nats below unigram), which is beyond the
data in size, in quality (what was measured is 0.2 to 2.5 nats below unigram), and for 512 tokens in length. Checkpoints
of one family (a size, *adapted*, *published*) are no independent points, so the interval (95 %) comes from families:
each is left out in turn and foretold from the others; the root of the mean over families of the mean square of these
errors, with Student's quantile for one degree of freedom less than families, is the half-width. It is as honest as so
few families allow, and no more. Numbers that are not resolved or not positive have no logarithm and are left out; how
many is told.

    python experiments/scaling.py --train TRAIN --valid VALID --glue GLUE
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ledger
import measuring
import numpy as np
import over_training
import regimes
import settings
from scipy import stats

from gradvar import GradvarError

SIZES: dict[str, dict[str, Any]] = {
    "mini": {
        "model.config": {
            "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4,
            "max_position_embeddings": 512,
        },
        "training.learning_rate": 1.0e-3,
    },
    "small": {
        "model.config": {
            "hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 8,
            "max_position_embeddings": 512,
        },
        "training.learning_rate": 7.5e-4,
    },
}  # fmt: skip
PLACES = (1, 3, 4)
LENGTHS = {"adapted": (32, 64, 128, 256), "published": (32, 64, 128)}
NUMBERS = {
    "V_mask/V_data": "ratio",
    "position ceiling": "ceiling_position",
    "importance ceiling": "ceiling_importance",
    "stratification ceiling": "ceiling_stratification",
}
BASE = 109.5e6
LEARNT = (4.5, 5.0, 5.5)
"""Nats that BERT-base may be below the unigram cross-entropy at the end of training: an assumption, as is its range."""


def book(it: settings.Setting) -> ledger.Ledger:
    """Return the numbers of this experiment."""
    return ledger.Ledger(it.figures / "scaling.csv")


def measure(it: settings.Setting, family: str, stage: regimes.Stage) -> ledger.Found:
    """Study one checkpoint at one length.

    Args:
        it: The setting.
        family: ``tiny``, ``mini``, ``small``, ``adapted`` or ``published``.
        stage: The checkpoint, with the tokens of a sequence.

    Returns:
        One row.
    """
    few = over_training.Size(8, 8, 4, masks=4)
    size = few if it.quick else over_training.SIZES["published" if family in ("small", "published") else "adapted"]
    found = over_training.study(stage, over_training.RATE, size)
    row = {**found.rows[0], "unigram": unigram(stage, measuring.beginning(it, stage.train))}
    return replace(found, rows=[row])


def unigram(stage: regimes.Stage, train: Path) -> float:
    """Return the cross-entropy of the held-out tokens by their frequencies in a training text, in nats.

    Counts plus a tenth; special tokens apart.
    """
    import gradvar
    from gradvar.huggingface.checkpoint import tokenizer_of

    tokenizer = tokenizer_of(stage.folder)
    special = list(tokenizer.all_special_ids)
    counts = []
    for text in (train, stage.valid):
        ids = np.concatenate([np.asarray(each) for each in gradvar.load_corpus(text, tokenizer, 128).sequences])
        counts.append(np.bincount(ids[~np.isin(ids, special)], minlength=len(tokenizer)).astype(float))
    frequencies = (counts[0] + 0.1) / (counts[0] + 0.1).sum()
    return float(-(counts[1] * np.log(frequencies)).sum() / counts[1].sum())


def fit(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Fit ``y = x beta`` by least squares; return ``beta`` for ``[n, 4]`` predictors of full rank."""
    return np.linalg.lstsq(x, y, rcond=None)[0]


def predictors(parameters: float, tokens: float, learnt: float) -> np.ndarray:
    """Return ``[4]`` one, log of the parameters, log of the tokens, nats below unigram."""
    return np.array([1.0, np.log(parameters), np.log(tokens), learnt])


def points(rows: Sequence[Mapping[str, str]], name: str) -> tuple[np.ndarray, np.ndarray, list[str], int]:
    """Return predictors, logarithm of a number and family of rows, and how many have no logarithm and are left out."""
    x, y, families = [], [], []
    for row in rows:
        value = float(row["mask"]) / float(row["data"]) if name == "ratio" else float(row[name] or "nan")
        if value > 0:
            learnt = float(row["unigram"]) - float(row["loss"])
            x.append(predictors(float(row["parameters"]), float(row["length"]), learnt))
            y.append(np.log(value))
            families.append(row["family"])
    return np.array(x), np.array(y), families, len(rows) - len(y)


def error_of_families(x: np.ndarray, y: np.ndarray, families: Sequence[str]) -> tuple[float, int]:
    """Foretell each family from the others.

    Args:
        x: ``[n, 4]`` predictors.
        y: ``[n]`` what they foretell.
        families: ``[n]`` names.

    Returns:
        Root of the mean over families of their mean square errors, and of how many families; those without which the
        equation has no solution are not among them.
    """
    squares = []
    for family in dict.fromkeys(families):
        out = np.array([each == family for each in families])
        if np.linalg.matrix_rank(x[~out]) == x.shape[1]:
            squares.append(float(((y[out] - x[out] @ fit(x[~out], y[~out])) ** 2).mean()))
    return float(np.sqrt(np.mean(squares))) if squares else np.inf, len(squares)


def pairs_needed(spread: float, effect: float, power: float = 0.8, level: float = 0.05) -> int:
    """Return how many pairs of runs a paired t-test needs.

    Args:
        spread: Standard deviation of the logarithm of the ratio of one pair.
        effect: Logarithm of the ratio that is to be seen.
        power: Probability of seeing it.
        level: Of the two-sided test.

    Returns:
        The smallest number of at least two whose power, from the noncentral t distribution, is enough.
    """
    pairs = 2
    while _power(pairs, spread, effect, level) < power:
        pairs += 1
    return pairs


def _power(pairs: int, spread: float, effect: float, level: float) -> float:
    critical, shift = stats.t.ppf(1 - level / 2, pairs - 1), abs(effect) / spread * np.sqrt(pairs)
    return float(stats.nct.sf(critical, pairs - 1, shift) + stats.nct.cdf(-critical, pairs - 1, shift))


def extrapolated(it: settings.Setting) -> list[dict[str, Any]]:
    """Return what the equations say of BERT-base: a row for each number, length and quality."""
    rows = book(it).rows()
    found = []
    for title, name in NUMBERS.items():
        x, y, families, dropped = points(rows, name)
        if len(y) < 8 or np.linalg.matrix_rank(x) < 4:
            continue
        beta, (error, count) = fit(x, y), error_of_families(x, y, families)
        reach = float(stats.t.ppf(0.975, count - 1)) * error if count > 1 else np.inf
        for tokens in (128, 512):
            for learnt in LEARNT:
                middle = float(predictors(BASE, tokens, learnt) @ beta)
                value, low, high = np.exp([middle, middle - reach, middle + reach]).tolist()
                told = {"number": title, "tokens": tokens, "learnt": learnt, "points": len(y), "dropped": dropped}
                most = np.inf if name == "ratio" else 1.0  # a ceiling is a part of the mask variance
                found.append({**told, "families": count, "value": value, "low": low, "high": high, "most": most})
    return found


def units(it: settings.Setting) -> list[ledger.Unit]:
    """Return what is to be measured."""
    named = ("scratch", *(f"scratch-{size}" for size in SIZES), *LENGTHS)
    for name in it.only:
        if name not in named:
            raise GradvarError(f"--only {name}: here it is one of {', '.join(named)}")
    places = PLACES[-1:] if it.quick else PLACES
    wanted = []
    if not it.only or "scratch" in it.only:
        wanted += [("tiny", regimes.stages(it, "scratch")[place]) for place in places]
    for size, values in ({} if it.quick else SIZES).items():
        if not it.only or f"scratch-{size}" in it.only:
            wanted += [(size, regimes.stages(it, "scratch", size, values)[place]) for place in places]
    for regime, lengths in LENGTHS.items():
        if it.quick or (it.only and regime not in it.only):
            continue
        first = regimes.stages(it, regime)[0]
        wanted += [(regime, replace(first, max_length=length)) for length in lengths]
    return [
        ledger.Unit({"family": family, "stage": stage.name, "length": stage.max_length}, measure, (it, family, stage))
        for family, stage in wanted
    ]


def main() -> None:
    """Measure what is missing, and say what it means for BERT-base."""
    it, drawing_only = settings.setting(__doc__)
    if not drawing_only:
        ledger.run(book(it), units(it), it.jobs)
    for row in extrapolated(it):
        at = f"BERT-base, {row['tokens']} tokens, {row['learnt']} nats below unigram"
        ends = f"{row['value']:.3g} [{row['low']:.3g}, {row['high']:.3g}]"
        print(f"{at}: {row['number']} {ends}, from {row['points']} checkpoints of {row['families']} families")


if __name__ == "__main__":
    settings.cleanly(main)
