"""The scores of single tokens: a frozen dataclass that knows how to be a table, shades, text and JSON."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import stats

if TYPE_CHECKING:
    from pandas import DataFrame

TOKENS_SCHEMA = "gradvar/tokens/v1"
DEEPEST = 0.6
"""Opacity of the largest score's shade: text on it keeps a contrast of 4.5 to 1 in both colour schemes."""


@dataclass(frozen=True)
class Scale:
    """What a score is to a reader.

    Attributes:
        label: Its name in text.
        unit: Its unit.
        meaning: What is measured, with the token as a target of masks.
        colour: Red, green and blue of its shades (Okabe and Ito's).
    """

    label: str
    unit: str
    meaning: str
    colour: tuple[int, int, int]

    @property
    def heading(self) -> str:
        """The name with its unit."""
        return f"{self.label} ({self.unit})"


SCALES = {
    "oracle": Scale("oracle", "gradient units", "norm of the gradient of the token's loss", (0, 114, 178)),
    "mapnet": Scale("MAPNet", "relative units", "what a fitted network says of the token", (0, 158, 115)),
    "loss": Scale("loss", "nats", "loss of the token, −log p", (213, 94, 0)),
    "logit": Scale("logit", "|p − y|", "norm of the loss's gradient at the logits", (204, 121, 167)),
}
"""Scores that tokens are shaded by, in the order in which they are shown."""
_ORACLE = "oracle"
_AGREEMENT = ((0.8, "almost as"), (0.5, "much as"), (0.2, "somewhat as"), (-0.2, "not as"), (-1.0, "contrary to how"))
_FEWEST = 3  # tokens that a rank correlation needs


@dataclass(frozen=True)
class ScoredSentence:
    """The tokens of one sentence and what they scored.

    Attributes:
        datum: Index in the population.
        tokens: As the vocabulary writes them, special tokens included.
        texts: As they stand in a text: with a space in front where a word begins.
        maskable: ``[tokens]`` bool; a token that is not has no score.
        scores: ``[tokens]`` float64 by name; zero where not maskable.
    """

    datum: int
    tokens: tuple[str, ...]
    texts: tuple[str, ...]
    maskable: np.ndarray = field(compare=False)
    scores: dict[str, np.ndarray] = field(compare=False)

    def opacities(self, score: str) -> np.ndarray:
        """Return how deeply to shade every token: ``0.6 s_i / max_j s_j``, and zero where nothing is scored."""
        values = np.where(self.maskable, self.scores[score], 0.0)
        largest = values.max(initial=0.0)
        return DEEPEST * values / largest if largest > 0 else np.zeros(len(values))

    def highest(self, score: str, most: int) -> list[int]:
        """Return the positions with the largest scores, the largest first."""
        values = np.where(self.maskable, self.scores[score], -np.inf)
        return np.argsort(-values, kind="stable")[: min(most, int(self.maskable.sum()))].tolist()

    def correlations(self) -> dict[str, float | None]:
        """Return Spearman's rank correlation of each other score with the oracle, or None where there is none."""
        oracle = self.scores.get(_ORACLE)
        if oracle is None:
            return {}
        return {
            name: _spearman(oracle[self.maskable], values[self.maskable])
            for name, values in self.scores.items()
            if name != _ORACLE
        }

    def to_json(self) -> dict[str, Any]:
        """Return the fields for JSON; null stands for the score of what cannot be masked."""
        return {
            "datum": self.datum,
            "tokens": list(self.tokens),
            "texts": list(self.texts),
            "maskable": self.maskable.tolist(),
            "scores": {name: self._known(values) for name, values in self.scores.items()},
            "rank_correlation": self.correlations(),
        }

    def _known(self, values: np.ndarray) -> list[float | None]:
        return [float(x) if known else None for x, known in zip(values, self.maskable, strict=True)]


@dataclass(frozen=True, repr=False)
class TokenScores:
    """Some sentences, and what each of their tokens scored.

    Attributes:
        sentences: The sentences, each with the same scores.
        study: What was asked for.
        provenance: What ran.
        notices: What a reader should know, one line each.
    """

    sentences: tuple[ScoredSentence, ...]
    study: dict[str, Any]
    provenance: dict[str, Any]
    notices: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the scores, in the order in which they are shown."""
        known = self.sentences[0].scores
        return tuple(name for name in SCALES if name in known)

    def correlations(self) -> dict[str, float | None]:
        """Return each score's rank correlation with the oracle: the mean of the sentences that have one."""
        each = [sentence.correlations() for sentence in self.sentences]
        found = {name: [value for r in each if (value := r[name]) is not None] for name in each[0]}
        return {name: float(np.mean(values)) if values else None for name, values in found.items()}

    def to_frame(self) -> DataFrame:
        """Return a pandas table: a row a token, a column a score; no number where a token cannot be masked."""
        import pandas

        rows = [
            {
                "sentence": number,
                "datum": sentence.datum,
                "position": position,
                "token": token,
                "maskable": bool(sentence.maskable[position]),
                **{
                    name: float(sentence.scores[name][position]) if sentence.maskable[position] else None
                    for name in self.names
                },
            }
            for number, sentence in enumerate(self.sentences, 1)
            for position, token in enumerate(sentence.tokens)
        ]
        return pandas.DataFrame(rows)

    def to_json(self) -> dict[str, Any]:
        """Return everything, in the schema ``gradvar/tokens/v1``."""
        return {
            "schema": TOKENS_SCHEMA,
            "scores": {name: {"unit": SCALES[name].unit, "meaning": SCALES[name].meaning} for name in self.names},
            "rank_correlation": self.correlations(),
            "sentences": [sentence.to_json() for sentence in self.sentences],
            "study": self.study,
            "provenance": self.provenance,
            "notices": list(self.notices),
        }

    def __repr__(self) -> str:
        """Render the summary as plain text."""
        from gradvar.report.tokens_text import tokens_summary

        return tokens_summary(self)


def agreement(correlations: dict[str, float | None]) -> list[str]:
    """Say in words how each score ranks tokens beside the oracle, one line each."""
    lines = []
    for name, value in sorted(correlations.items(), key=lambda item: list(SCALES).index(item[0])):
        label = SCALES[name].label
        if value is None:
            lines.append(f"{label}: no rank correlation with the oracle, for want of {_FEWEST} different tokens.")
        else:
            word = next(word for least, word in _AGREEMENT if value >= least or least == -1.0)
            lines.append(f"{label} ranks the tokens {word} the oracle does (Spearman {value:.3g}).")
    return lines


def printable(text: str) -> str:
    """Replace what neither a terminal nor a page should be given, such as control characters."""
    return "".join(c if c.isprintable() else " " if c.isspace() else "\N{REPLACEMENT CHARACTER}" for c in text)


def _spearman(first: np.ndarray, second: np.ndarray) -> float | None:
    if len(first) < _FEWEST or np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    ranks = np.stack([stats.rankdata(first), stats.rankdata(second)])
    return float(np.clip(np.corrcoef(ranks)[0, 1], -1.0, 1.0))
