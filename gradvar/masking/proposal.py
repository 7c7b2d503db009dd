"""A proposal is a score and a design: how masks are chosen. Its text form is the same everywhere.

``score[^exponent]/design[:argument][~epsilon][@mask-rate]``, such as ``uniform/simple``, ``logit^0.5/pps~0.1`` or
``uniform/disjoint:2@0.3``.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from math import isfinite
from typing import Any

from torch import Tensor

from gradvar.errors import GradvarError
from gradvar.masking.designs import Design, SetScores
from gradvar.masking.epochs import EpochStratified
from gradvar.masking.masks import Masks, Sentences
from gradvar.masking.pps import PPS
from gradvar.masking.scores import SCORES, Power, Score, Task, TokenTable, Uniform, plain, positive, set_scores
from gradvar.masking.sets import ConditionalPoisson, Disjoint, Midzuno, Pool, Simple
from gradvar.masking.units import Hard, Span, WholeWord

GRAMMAR = "score[^exponent]/design[:argument][~epsilon][@mask-rate], like logit^0.5/pps~0.1"
FILE = "file="
LATER = ("mapnet", "mapnet-permuted")
"""Scores that need a fitted network."""
_UNIFORM, _SIMPLE = Uniform(), Simple()
_MOST = 1000  # of candidates, masks or positions


@dataclass(frozen=True)
class Proposal:
    """A way to choose masks: any score with any design.

    Attributes:
        score: How much each position matters.
        design: How sets are drawn by it.
        mask_rate: Share of the positions that are targets; None takes the objective's.

    Examples:
        >>> import gradvar
        >>> str(gradvar.Proposal())
        'uniform/simple'
        >>> from gradvar.masking.sets import Disjoint
        >>> print(gradvar.Proposal(design=Disjoint(2), mask_rate=0.3))
        uniform/disjoint:2@0.3
    """

    score: Score = _UNIFORM
    design: Design = _SIMPLE
    mask_rate: float | None = None

    def __post_init__(self) -> None:
        if not self.design.takes_scores and self.score != _UNIFORM:
            name = _design_text(self.design)
            raise GradvarError(f"'{self.score}/{name}': {name.split(':')[0]} takes the uniform score only")

    def scores(self, sentences: Sentences, task: Task) -> Tensor:
        """Score sentences; see :func:`~gradvar.masking.scores.positive`.

        Nothing is measured where a pool goes by the scores of whole cells, and would not look at those of positions.
        """
        if isinstance(self.design, Pool) and set_scores(self.score, sentences, task) is not None:
            return sentences.maskable.double()
        return positive(self.score(sentences, task), sentences, str(self.score))

    def draw(self, sentences: Sentences, scores: Tensor, keys: Tensor, task: Task) -> Masks:
        """Draw masks by scores that :meth:`scores` gave; see :class:`~gradvar.masking.designs.Design`."""
        of_sets: SetScores | None = None
        if isinstance(self.design, Pool):
            of_sets = set_scores(self.score, sentences, task)
        masks = self.design.draw(sentences, scores, keys, of_sets)
        if not bool(masks.weights.isfinite().all()):
            raise GradvarError(overflow(self))
        return masks

    def __str__(self) -> str:
        """Write the proposal as :func:`parse_proposal` reads it."""
        rate = "" if self.mask_rate is None else f"@{plain(self.mask_rate)}"
        return f"{self.score}/{_design_text(self.design)}{rate}"


def overflow(proposal: Proposal) -> str:
    """Say that importance weights are too large, and what to do."""
    return f"the weights of {proposal} overflow; give a smaller exponent, or mix in uniform masks with ~0.1"


@dataclass(frozen=True)
class _Kind:
    """How a design is written: its class, the field that the argument sets, and how it is read."""

    make: Callable[..., Design]
    field: str | None = None
    read: Callable[[str], Any] = str
    wants: str = ""
    mixes: bool = True


def _count(least: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        value = int(text)
        if not least <= value <= _MOST:
            raise ValueError
        return value

    return read


def _number(text: str) -> float:
    value = float(text)
    if not isfinite(value):
        raise ValueError
    return value


def _method(text: str) -> str:
    if text not in ("conditional-poisson", "systematic"):
        raise ValueError
    return text


_DESIGNS: dict[str, _Kind] = {
    "simple": _Kind(Simple, mixes=False),
    "midzuno": _Kind(Midzuno),
    "conditional-poisson": _Kind(ConditionalPoisson, "alpha", _number, "a number"),
    "pool": _Kind(Pool, "candidates", _count(1), f"a number of candidates, 1 to {_MOST}"),
    "pps": _Kind(PPS, "method", _method, "conditional-poisson or systematic"),
    "disjoint": _Kind(Disjoint, "masks", _count(2), f"a number of masks, 2 to {_MOST}", mixes=False),
    "epoch-stratified": _Kind(EpochStratified, mixes=False),
    "hard": _Kind(Hard),
    "span": _Kind(Span, "length", _count(1), f"a number of positions, 1 to {_MOST}"),
    "whole-word": _Kind(WholeWord),
}


def parse_proposal(text: str, scores: Mapping[str, Score] | None = None) -> Proposal:
    """Read a proposal.

    Args:
        text: As the module's docstring says.
        scores: More scores by name, beside those of :data:`~gradvar.masking.scores.SCORES`.

    Returns:
        The proposal.

    Raises:
        GradvarError: If it is malformed or names what there is not; the message lists what there is.

    Examples:
        >>> import gradvar
        >>> proposal = gradvar.parse_proposal("logit^0.5/pps~0.1@0.2")
        >>> proposal.mask_rate, proposal.design.epsilon
        (0.2, 0.1)
        >>> str(proposal)
        'logit^0.5/pps~0.1@0.2'
        >>> gradvar.parse_proposal("logit/ppps")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        gradvar.errors.GradvarError: 'logit/ppps': there is no design 'ppps'; did you mean 'pps'? there are simple, ...
    """
    score_text, slash, rest = text.rpartition("/")
    if not slash or not score_text or not rest:
        raise GradvarError(f"'{text}' is no proposal; write {GRAMMAR}")
    rest, rate_text = _split(text, rest, "@", "mask rate")
    rest, epsilon_text = _split(text, rest, "~", "epsilon")
    name, argument = _split(text, rest, ":", "argument")
    rate = _between(text, "mask rate", rate_text)
    design = _design(text, name, argument, _between(text, "epsilon", epsilon_text, one=True))
    return Proposal(_score(text, score_text, scores or {}), design, rate)


def _split(text: str, part: str, mark: str, what: str) -> tuple[str, str | None]:
    front, found, back = part.partition(mark)
    if found and not back:
        raise GradvarError(f"'{text}': there is no {what} after '{mark}'; write {GRAMMAR}")
    return front, back if found else None


def _between(text: str, what: str, number: str | None, one: bool = False) -> float | None:
    if number is None:
        return None
    try:
        value = float(number)
    except ValueError:
        raise GradvarError(f"'{text}': the {what} '{number}' is not a number; write {GRAMMAR}") from None
    if not (0 < value < 1 or (one and value == 1)):
        raise GradvarError(f"'{text}': the {what} {number} is not between 0 and 1")
    return value


def _design(text: str, name: str, argument: str | None, epsilon: float | None) -> Design:
    kind = _DESIGNS.get(name)
    if kind is None:
        raise GradvarError(f"'{text}': there is no design '{name}'{nearest(name, _DESIGNS)}")
    options: dict[str, Any] = {}
    if argument is not None:
        if kind.field is None:
            raise GradvarError(f"'{text}': {name} takes no argument")
        try:
            options[kind.field] = kind.read(argument)
        except ValueError:
            raise GradvarError(f"'{text}': {name} takes {kind.wants}, not '{argument}'") from None
    if epsilon is not None:
        if not kind.mixes:
            raise GradvarError(f"'{text}': {name} is uniform already; leave ~{epsilon:g} out")
        options["epsilon"] = epsilon
    return kind.make(**options)


def _score(text: str, name: str, more: Mapping[str, Score]) -> Score:
    base, exponent = _powered(name)
    known = {**SCORES, **more}
    if base.startswith(FILE):
        score: Score = TokenTable(base.removeprefix(FILE))
    elif base in known:
        score = known[base]
    elif base in LATER:
        raise GradvarError(f"'{text}': {base} needs a fitted network; give --mapnet-dir (gradvar fit-mapnet makes one)")
    else:
        there = dict.fromkeys([*known, *LATER, f"{FILE}PATH"])  # each once
        raise GradvarError(f"'{text}': there is no score '{base}'{nearest(base, there)}")
    if exponent is None:
        return score
    try:
        power = _number(exponent)
    except ValueError:
        raise GradvarError(f"'{text}': the exponent '{exponent}' is not a number; write {GRAMMAR}") from None
    return Power(score, power)


def with_absolute_path(text: str) -> str:
    """Make the path of a score file in a proposal's text absolute."""
    score, slash, design = text.rpartition("/")
    base, exponent = _powered(score)
    if not base.startswith(FILE):
        return text
    power = "" if exponent is None else f"^{exponent}"
    return f"{FILE}{os.path.abspath(base.removeprefix(FILE))}{power}{slash}{design}"


def _powered(name: str) -> tuple[str, str | None]:
    """Split a score's text at the caret of its exponent, if it has one."""
    base, mark, exponent = name.rpartition("^")
    if not mark or (base.startswith(FILE) and not _is_number(exponent)):  # a path may hold a caret
        return name, None
    return base, exponent


def _is_number(text: str) -> bool:
    try:
        _number(text)
    except ValueError:
        return False
    return True


def nearest(name: str, names: Iterable[str]) -> str:
    """Suggest the nearest of some names, and list them all.

    Args:
        name: What was asked for.
        names: What there is.

    Returns:
        The end of a message.
    """
    names = list(names)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return (f"; did you mean '{close[0]}'?" if close else ";") + f" there are {', '.join(names)}"


def _design_text(design: Design) -> str:
    """Write a design as it is read; one of a user's own by its class."""
    for name, kind in _DESIGNS.items():
        if kind.make is type(design):
            values = {field.name: getattr(design, field.name) for field in fields(design)}  # type: ignore[arg-type]
            defaults = kind.make()
            argument = values.get(kind.field or "")
            given = kind.field and (argument != getattr(defaults, kind.field) or name in ("pool", "disjoint"))
            shown = f":{plain(argument)}" if isinstance(argument, float) else f":{argument}"
            epsilon = values.get("epsilon", 0.0)
            return f"{name}{shown if given else ''}{f'~{plain(epsilon)}' if epsilon else ''}"
    return getattr(design, "name", type(design).__name__)
