"""Scores: how much each position matters, by the sentence alone. What is drawn with them is the designs' business.

A score is any callable ``(sentences, task) -> [rows, positions]`` with a name; ``task`` is the objective, which knows
the model. Scores are made positive by :func:`positive`, the same way for all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Literal, Protocol

import torch
from torch import Tensor

from gradvar.errors import GradvarError, NotFiniteError
from gradvar.masking.designs import STEEPEST, SetScores
from gradvar.masking.hashing import hash_key, shift_right
from gradvar.masking.masks import Sentences

FLOOR = 1e-6  # of a sentence's mean score: no position is impossible
_PLACEBO = 19  # stream of hashes

Quantity = Literal["loss", "logit", "last-layer", "gradient"]
"""What is measured at a target ``i`` of a corrupted sentence: the loss ``-log p(x_i)``; ``|p - y|``, the norm of its
gradient at the logits; ``|p - y||h|`` with the hidden state that the decoder sees, its gradient at the decoder's own
weights; the norm of its gradient at all parameters studied."""


class Task(Protocol):
    """What a score may ask of the objective."""

    def at_targets(self, quantity: Quantity, sentences: Sentences) -> Tensor:
        """Measure every position as a target, in random contexts.

        Args:
            quantity: What to measure.
            sentences: Whose positions.

        Returns:
            ``[contexts, rows, positions]`` float64; zero where not maskable.
        """
        ...

    def norms_of_sets(self, sentences: Sentences) -> SetScores:
        """Return a function that measures gradient norms of whole cells of some sentences."""
        ...

    def token_embeddings(self, ids: Tensor) -> Tensor:
        """Look tokens up in the model's own table: ``[rows, positions, width]``, without gradients."""
        ...

    def token_counts(self) -> Tensor:
        """Count the tokens of the corpus: ``[vocabulary]`` float64."""
        ...

    def vocabulary(self) -> Mapping[str, int]:
        """Map tokens to ids."""
        ...


class Score(Protocol):
    """Gives every position of a sentence a number, from the unmasked sentence."""

    def __call__(self, sentences: Sentences, task: Task) -> Tensor:
        """Return ``[rows, positions]``, not negative where maskable; anything elsewhere."""
        ...


@dataclass(frozen=True)
class Uniform:
    """One for every position."""

    def __call__(self, sentences: Sentences, task: Task) -> Tensor:
        """Score; see :class:`Score`."""
        return sentences.maskable.double()

    def __str__(self) -> str:
        """Name the score."""
        return "uniform"


@dataclass(frozen=True)
class AtTargets:
    """Root mean square over random contexts of something measured at each position while it is a target.

    ``s_i = sqrt(mean_c q_ic^2)``; with ``gradient`` the oracle ``f_i``, to which optimal inclusion probabilities are
    proportional.

    Args:
        quantity: What is measured; see :data:`Quantity`.
    """

    quantity: Quantity

    def __call__(self, sentences: Sentences, task: Task) -> Tensor:
        """Score; see :class:`Score`."""
        return task.at_targets(self.quantity, sentences).square().mean(dim=0).sqrt()

    def of_sets(self, sentences: Sentences, task: Task) -> SetScores | None:
        """Return the true norms of whole cells, if the score is the oracle."""
        return task.norms_of_sets(sentences) if self.quantity == "gradient" else None

    def __str__(self) -> str:
        """Name the score."""
        return "oracle" if self.quantity == "gradient" else self.quantity


@dataclass(frozen=True)
class Frequency:
    """Rarity of the token: ``-log`` of its relative frequency in the corpus, which is a unigram model's loss."""

    def __call__(self, sentences: Sentences, task: Task) -> Tensor:
        """Score; see :class:`Score`."""
        counts = task.token_counts().to(sentences.ids.device)
        return (counts.sum() / counts.clamp(min=1)).log()[sentences.ids]

    def __str__(self) -> str:
        """Name the score."""
        return "frequency"


@dataclass(frozen=True)
class TokenTable:
    """Scores by token, from a file of lines ``token<TAB>score``; the token ``*`` stands for all that are not listed.

    Args:
        path: The file.
    """

    path: str
    _read_once: dict[str, tuple[Mapping[str, int], Tensor]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __call__(self, sentences: Sentences, task: Task) -> Tensor:
        """Score; see :class:`Score`."""
        known, table = self._read_once.get("table", ({}, None))
        if table is None or known is not task.vocabulary():
            table = self._read(task.vocabulary())
            self._read_once["table"] = (task.vocabulary(), table)
        table = table.to(sentences.ids.device)
        found = table[sentences.ids]
        missing = found.isnan() & sentences.maskable
        if bool(missing.any()):
            ids = task.vocabulary()
            token = next(name for name, i in ids.items() if i == int(sentences.ids[missing][0]))
            raise GradvarError(f"{self.path} has no score for the token '{token}'; add it, or a line '*<TAB>score'")
        return found

    def _read(self, vocabulary: Mapping[str, int]) -> Tensor:
        table = torch.full((max(vocabulary.values()) + 1,), torch.nan, dtype=torch.float64)
        listed: dict[str, float] = {}
        try:
            text = Path(self.path).read_text(encoding="utf-8")
        except OSError as error:
            raise GradvarError(f"the score file '{self.path}' cannot be read ({error.strerror})") from error
        except UnicodeDecodeError as error:
            raise GradvarError(f"{self.path} is not UTF-8 text; save it as UTF-8") from error
        for number, line in enumerate(text.split("\n"), 1):
            if not line.strip():
                continue
            token, tab, score = line.removesuffix("\r").partition("\t")
            value = _number(score) if tab else None
            if value is None:
                raise GradvarError(
                    f"{self.path}, line {number}: not 'token<TAB>score'; one token and one number a line"
                )
            if not 0 <= value < float("inf"):
                raise GradvarError(f"{self.path}, line {number}: the score {score} is not a number from 0 up")
            if token != "*" and token not in vocabulary:
                raise GradvarError(f"{self.path}, line {number}: '{token}' is no token of the checkpoint")
            listed[token] = value
        if "*" in listed:
            table.fill_(listed.pop("*"))
        for token, value in listed.items():
            table[vocabulary[token]] = value
        return table

    def __str__(self) -> str:
        """Name the score."""
        return f"file={self.path}"


@dataclass(frozen=True)
class Permuted:
    """A placebo: another score with its values dealt out anew among the positions of each sentence.

    Args:
        score: The other one.
    """

    score: Score

    def __call__(self, sentences: Sentences, task: Task) -> Tensor:
        """Score; see :class:`Score`."""
        values = self.score(sentences, task).double()
        last = torch.iinfo(torch.int64).max
        position = torch.arange(values.shape[1], device=values.device)
        order = shift_right(hash_key(_PLACEBO, sentences.keys.unsqueeze(1), position), 1)
        dealt = order.masked_fill(~sentences.maskable, last).argsort(dim=1, stable=True)
        places = position.expand_as(order).masked_fill(~sentences.maskable, len(position)).argsort(dim=1, stable=True)
        return torch.zeros_like(values).scatter(1, places, values.gather(1, dealt))

    def __str__(self) -> str:
        """Name the score."""
        return f"{self.score}-permuted"


@dataclass(frozen=True)
class Power:
    """Another score to some power: an exponent below one draws closer to uniform.

    Args:
        score: The other one.
        exponent: Of size 16 at most.

    Raises:
        GradvarError: If it is larger.
    """

    score: Score
    exponent: float

    def __post_init__(self) -> None:
        if not abs(self.exponent) <= STEEPEST:
            raise GradvarError(
                f"a score cannot be raised to the power {self.exponent:g}; give -{STEEPEST:g} to {STEEPEST:g}"
            )

    def __call__(self, sentences: Sentences, task: Task) -> Tensor:
        """Score; see :class:`Score`."""
        return positive(self.score(sentences, task), sentences, str(self.score)) ** self.exponent

    def of_sets(self, sentences: Sentences, task: Task) -> SetScores | None:
        """Return the other score's of whole cells to that power, if it has any."""
        inner = set_scores(self.score, sentences, task)
        return None if inner is None else lambda *sets: inner(*sets) ** self.exponent

    def __str__(self) -> str:
        """Name the score."""
        return f"{self.score}^{plain(self.exponent)}"


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def plain(number: float) -> str:
    """Write a number so that reading it gives the same: in few digits where they do."""
    short = f"{number:g}"
    return short if float(short) == number else repr(number)


SCORES: dict[str, Score] = {
    "uniform": Uniform(),
    "oracle": AtTargets("gradient"),
    "logit": AtTargets("logit"),
    "last-layer": AtTargets("last-layer"),
    "loss": AtTargets("loss"),
    "frequency": Frequency(),
}
"""The scores that need nothing but the objective, by name."""


def set_scores(score: Score, sentences: Sentences, task: Task) -> SetScores | None:
    """Return a score's own way to score whole cells, where it has one."""
    own = getattr(score, "of_sets", None)
    return None if own is None else own(sentences, task)


def positive(scores: Tensor, sentences: Sentences, name: str) -> Tensor:
    """Check scores and make them fit for drawing.

    They are divided by the sentence's mean and raised to at least a millionth of it, so that every position can be
    drawn; where all are zero, all become one. Designs do not depend on their scale.

    Args:
        scores: ``[rows, positions]``.
        sentences: The rows.
        name: Of the score, for the message.

    Returns:
        ``[rows, positions]`` float64, positive where maskable and zero elsewhere.

    Raises:
        GradvarError: If a score is negative or, as :class:`~gradvar.errors.NotFiniteError`, not finite.
    """  # noqa: DOC502
    scores = scores.double().masked_fill(~sentences.maskable, 0.0)
    wrong = ~scores.isfinite() | (scores < 0)
    if bool(wrong.any()):
        row, position = (int(i) for i in wrong.nonzero()[0])
        value = float(scores[row, position])
        kind = GradvarError if isfinite(value) else NotFiniteError
        raise kind(
            f"the score '{name}' gives {value:g} to position {position} of a sentence; scores must be finite and not "
            "negative"
        )
    largest = scores.amax(dim=1, keepdim=True)
    scaled = torch.where(largest > 0, scores / largest.clamp(min=torch.finfo(torch.float64).tiny), 1.0)
    scaled = scaled * sentences.maskable
    mean = scaled.sum(dim=1, keepdim=True) / sentences.totals.unsqueeze(1)
    return (scaled / mean).clamp(min=FLOOR) * sentences.maskable


def is_measured(score: Score) -> bool:
    """Whether a score is measured by passes of the model's, whatever its power or its places."""
    return isinstance(_base(score), AtTargets)


def is_counted(score: Score) -> bool:
    """Whether a score takes the counts of all tokens, whatever its power or its places."""
    return isinstance(_base(score), Frequency)


def _base(score: Score) -> Score:
    while isinstance(score, Power | Permuted):
        score = score.score
    return score
