r"""How the shares and the ceilings move with size, length and quality of a model, and what that says of BERT-base.

Pre-stated. Measured on held-out text, by `over_training.study` at 15 % masked: ModernBERTs of three sizes (tiny 2×128,
mini 4×256, small 4×512), trained as in *scratch* for the same 3.1 M tokens, at an eighth, a half and all of it; the
checkpoint that ships with gradvar and the published encoder (*adapted*, *published*, before the race) at 32, 64 and 128
tokens a sequence, the first at 256, too. Fitted by least squares, one equation for
each of four numbers, on the logarithm of parameters, the logarithm of the tokens of a sequence, and the held-out loss
less the unigram cross-entropy of the same text (what the model has learnt)::

    log(V_mask/V_data), log of the position ceiling, of the importance ceiling, of the stratification ceiling
        = a + b log(parameters) + c log(tokens) + d (unigram - loss)

Extrapolated to BERT-base (109 M parameters, 128 and 512 tokens, 4.5 to 5.5 nats below unigram) with prediction
intervals (95 %), and checked by leaving out each family of checkpoints (each size, adapted, published) in turn and
predicting it: how many of its points lie in their prediction intervals is reported beside the extrapolation, and an
equation that misses more than a quarter of them is called not to be trusted.

    python experiments/scaling.py --train TRAIN --valid VALID --glue GLUE
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ledger
import measuring
import numpy as np
import over_training
import regimes
from scipy import stats

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


def book(it: regimes.Setting) -> ledger.Ledger:
    """Return the numbers of this experiment."""
    return ledger.Ledger(it.figures / "scaling.csv")


def measure(it: regimes.Setting, family: str, stage: regimes.Stage) -> ledger.Found:
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

    Counts plus one; special tokens apart.
    """
    import gradvar
    from gradvar.huggingface.checkpoint import tokenizer_of

    tokenizer = tokenizer_of(stage.folder)
    special = list(tokenizer.all_special_ids)
    counts = []
    for text in (train, stage.valid):
        ids = np.concatenate([np.asarray(each) for each in gradvar.load_corpus(text, tokenizer, 128).sequences])
        counts.append(np.bincount(ids[~np.isin(ids, special)], minlength=len(tokenizer)).astype(float))
    frequencies = (counts[0] + 1) / (counts[0] + 1).sum()
    return float(-(counts[1] * np.log(frequencies)).sum() / counts[1].sum())


@dataclass(frozen=True)
class Fit:
    """An equation fitted by least squares.

    Attributes:
        beta: ``[4]`` coefficients.
        covariance: ``[4, 4]`` of the coefficients.
        spread: Standard deviation of a point about the equation.
        df: Degrees of freedom.
    """

    beta: np.ndarray
    covariance: np.ndarray
    spread: float
    df: int

    def predict(self, x: np.ndarray) -> tuple[float, float, float]:
        """Predict a new point, with its prediction interval (95 %), for ``[4]`` predictors."""
        middle = float(x @ self.beta)
        reach = float(stats.t.ppf(0.975, self.df) * np.sqrt(self.spread**2 + x @ self.covariance @ x))
        return middle, middle - reach, middle + reach


def fit(x: np.ndarray, y: np.ndarray) -> Fit:
    """Fit ``y = x beta`` by least squares.

    Args:
        x: ``[n, 4]`` predictors, of full rank.
        y: ``[n]``.

    Returns:
        The fit.
    """
    beta, *_ = np.linalg.lstsq(x, y, rcond=None)
    df = len(y) - x.shape[1]
    spread2 = float(((y - x @ beta) ** 2).sum() / df)
    return Fit(beta, spread2 * np.linalg.inv(x.T @ x), spread2**0.5, df)


def predictors(parameters: float, tokens: float, learnt: float) -> np.ndarray:
    """Return ``[4]`` one, log of the parameters, log of the tokens, nats below unigram."""
    return np.array([1.0, np.log(parameters), np.log(tokens), learnt])


def points(rows: Sequence[Mapping[str, str]], name: str) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Return predictors, logarithm of a number, and family of the rows where it is resolved and positive."""
    x, y, families = [], [], []
    for row in rows:
        value = float(row["mask"]) / float(row["data"]) if name == "ratio" else float(row[name] or "nan")
        if value > 0:
            learnt = float(row["unigram"]) - float(row["loss"])
            x.append(predictors(float(row["parameters"]), float(row["length"]), learnt))
            y.append(np.log(value))
            families.append(row["family"])
    return np.array(x), np.array(y), families


def checked(x: np.ndarray, y: np.ndarray, families: Sequence[str]) -> tuple[int, int]:
    """Predict each family from the others; return how many points lie in their intervals, and how many there are."""
    inside = total = 0
    for family in dict.fromkeys(families):
        out = np.array([each == family for each in families])
        if np.linalg.matrix_rank(x[~out]) < x.shape[1] or (~out).sum() <= x.shape[1]:
            continue
        others = fit(x[~out], y[~out])
        ends = [others.predict(each)[1:] for each in x[out]]
        inside += sum(low <= value <= high for (low, high), value in zip(ends, y[out], strict=True))
        total += int(out.sum())
    return inside, total


def extrapolated(it: regimes.Setting) -> list[dict[str, Any]]:
    """Return what the equations say of BERT-base: a row for each number, length and quality."""
    rows = book(it).rows()
    found = []
    for title, name in NUMBERS.items():
        x, y, families = points(rows, name)
        if len(y) < 8 or np.linalg.matrix_rank(x) < 4:
            continue
        equation, (inside, total) = fit(x, y), checked(x, y, families)
        for tokens in (128, 512):
            for learnt in LEARNT:
                value, low, high = np.exp(equation.predict(predictors(BASE, tokens, learnt)))
                ends = {"value": value, "low": low, "high": high, "inside": inside, "checked": total}
                found.append({"number": title, "tokens": tokens, "learnt": learnt, **ends})
    return found


def units(it: regimes.Setting) -> list[ledger.Unit]:
    """Return what is to be measured."""
    places = PLACES[-1:] if it.quick else PLACES
    wanted = [("tiny", regimes.stages(it, "scratch")[place]) for place in places]
    for size, values in ({} if it.quick else SIZES).items():
        if not it.only or size in it.only:
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
    it, drawing_only = regimes.setting(__doc__)
    if not drawing_only:
        ledger.run(book(it), units(it), it.jobs)
    for row in extrapolated(it):
        at = f"BERT-base, {row['tokens']} tokens, {row['learnt']} nats below unigram"
        ends = f"{row['value']:.3g} [{row['low']:.3g}, {row['high']:.3g}]"
        print(f"{at}: {row['number']} {ends}; families left out: {row['inside']} of {row['checked']} inside")


if __name__ == "__main__":
    regimes.cleanly(main)
