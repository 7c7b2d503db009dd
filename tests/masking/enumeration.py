"""Sentences that the tests of the designs share, and what every design should do to them, by brute force."""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations, groupby, pairwise, permutations

import numpy as np
import torch
from torch import Tensor

from gradvar.masking import conditional_poisson
from gradvar.masking.designs import Design
from gradvar.masking.hashing import hash_key
from gradvar.masking.masks import Masks, Sentences
from gradvar.masking.pps import PPS
from gradvar.masking.sets import ConditionalPoisson, Disjoint, Midzuno, Pool, Simple
from gradvar.masking.units import Hard, Span, WholeWord

Set = tuple[int, ...]
Chances = dict[Set, float]

RARE = 1e-6  # a p-value below it fails: right draws do so for one seed in a million

# Name, design, and whether it mixes with uniform masks. The pool and disjoint masks have tests of their own.
DESIGNS: dict[str, tuple[Design, bool]] = {
    "simple": (Simple(), False),
    "midzuno": (Midzuno(), True),
    "conditional-poisson": (ConditionalPoisson(), True),
    "conditional-poisson:1": (ConditionalPoisson(alpha=1.0), True),
    "conditional-poisson:-0.3": (ConditionalPoisson(alpha=-0.3), True),
    "pps": (PPS(), True),
    "pps:systematic": (PPS("systematic"), True),
    "hard": (Hard(), True),
    "whole-word": (WholeWord(), True),
    "span:2": (Span(length=2), True),
    "span:3": (Span(), True),
}
OTHERS: dict[str, Design] = {"pool:3": Pool(3), "disjoint:2": Disjoint(2)}
SETTINGS = [(name, epsilon) for name, (_, mixes) in DESIGNS.items() for epsilon in ((0.0, 0.3) if mixes else (0.0,))]
SET_SETTINGS = [x for x in SETTINGS if DESIGNS[x[0]][0].unbiased == "every model"]


def design_of(name: str, epsilon: float) -> Design:
    return replace(DESIGNS[name][0], epsilon=epsilon) if epsilon else DESIGNS[name][0]


def batch(*rows: tuple[str, int]) -> Sentences:
    """Sentences as texts, with their number of targets: letters are maskable, equal neighbours one word, `.` pads."""
    width = max(len(text) for text, _ in rows)
    texts = [text.ljust(width, ".") for text, _ in rows]
    begins = [[i == 0 or not c.isalpha() or c != text[i - 1] for i, c in enumerate(text)] for text in texts]
    return Sentences(
        ids=torch.tensor([[-1 if c == "." else ord(c) for c in text] for text in texts]),
        maskable=torch.tensor([[c.isalpha() for c in text] for text in texts]),
        counts=torch.tensor([k for _, k in rows]),
        words=torch.tensor(begins).long().cumsum(dim=1) - 1,
        keys=hash_key(7, torch.arange(len(rows))),
    )


# T = 8, 5, 1, 3, 6, 5 and 6. Nothing but the first row can be too large for permutations.
SENTENCES = batch(
    ("|aab|cddde|", 3), ("|abb|cc|", 2), ("|a|", 1), ("aab|", 3), ("|abbccd|", 1), ("|ab|||||cdd", 4), ("|aa|bcdd|", 3)
)
ROWS = range(len(SENTENCES.counts))
CHOICES = (0, 1, 4, 5, 6)  # rows with more than one subset
SMALL = (1, 2, 3, 4, 5, 6)  # rows of which all permutations are enumerated


def rows_for(name: str) -> tuple[int, ...]:
    return SMALL if name == "pps:systematic" else tuple(ROWS)


def scores_of(kind: str, sentences: Sentences = SENTENCES, seed: int = 3) -> Tensor:
    """Scores with mean (nearly) one: equal ones, mildly unequal ones, or skewed ones, one of them floored."""
    raw = np.random.default_rng(seed).lognormal(0, {"equal": 0, "mild": 0.5, "skewed": 1.2}[kind], sentences.ids.shape)
    scores = torch.from_numpy(raw) * sentences.maskable
    scores /= scores.sum(dim=1, keepdim=True) / sentences.totals.unsqueeze(1)
    if kind == "skewed":
        for row in range(len(scores)):
            if sentences.totals[row] > 1:
                scores[row, sentences.maskable[row].nonzero()[1]] = 1e-6
    return scores


@dataclass(frozen=True)
class Row:
    """A sentence as the formulas below see it, its maskable positions alone."""

    places: list[int]
    k: int
    scores: list[float]
    words: list[int]

    @property
    def subsets(self) -> list[Set]:
        return list(combinations(self.places, self.k))

    def score(self, place: int) -> float:
        return self.scores[self.places.index(place)]


def row_of(sentences: Sentences, scores: Tensor, row: int) -> Row:
    places = sentences.maskable[row].nonzero().flatten().tolist()
    return Row(places, int(sentences.counts[row]), scores[row, places].tolist(), sentences.words[row, places].tolist())


def uniform(row: Row) -> Chances:
    return dict.fromkeys(row.subsets, 1 / math.comb(len(row.places), row.k))


def midzuno(row: Row) -> Chances:
    """One position in proportion to its score, then a uniform subset of the others."""
    chances = defaultdict(float)
    for first, score in zip(row.places, row.scores, strict=True):
        others = [place for place in row.places if place != first]
        rest = list(combinations(others, row.k - 1))
        for others in rest:
            chances[tuple(sorted((first, *others)))] += score / sum(row.scores) / len(rest)
    return dict(chances)


def products(row: Row, odds: dict[int, float]) -> Chances:
    """Conditional Poisson; a position with infinite odds is in every subset."""
    certain = {place for place in row.places if math.isinf(odds[place])}
    found = {
        subset: math.prod(odds[i] for i in subset if i not in certain) if certain <= set(subset) else 0.0
        for subset in row.subsets
    }
    total = sum(found.values())
    return {subset: product / total for subset, product in found.items()}


def successive(row: Row, units: list[list[int]]) -> Chances:
    """Units one after another in proportion to their mean scores, the last one cut."""
    rates = [sum(row.score(i) for i in unit) / len(unit) for unit in units]
    chances = defaultdict(float)

    def go_on(left: list[int], chosen: list[int], chance: float) -> None:
        if len(chosen) >= row.k:
            chances[tuple(sorted(chosen[: row.k]))] += chance
            return
        total = sum(rates[unit] for unit in left)
        for unit in left:
            go_on([other for other in left if other != unit], chosen + units[unit], chance * rates[unit] / total)

    go_on(list(range(len(units))), [], 1.0)
    return dict(chances)


def spans(row: Row, length: int) -> Chances:
    """Over all offsets: the first run lacks `offset` positions."""
    chances = defaultdict(float)
    for offset in range(length):
        cuts = [0, *range(length - offset, len(row.places), length), len(row.places)]
        units = [row.places[a:b] for a, b in pairwise(cuts)]
        for subset, chance in successive(row, units).items():
            chances[subset] += chance / length
    return dict(chances)


def capped_by_bisection(scores: Sequence[float], k: int) -> list[float]:
    """`min(1, c s)`, with `c` halved in."""
    low, high = -800.0, 800.0
    for _ in range(100):
        middle = (low + high) / 2
        few = sum(min(1.0, math.exp(middle) * s) for s in scores) < k
        low, high = (middle, high) if few else (low, middle)
    return [min(1.0, math.exp(high) * s) for s in scores]


def aimed_at(row: Row, epsilon: float) -> list[float]:
    """Inclusion probabilities in proportion to size, capped and mixed."""
    share = row.k / len(row.places)
    return [(1 - epsilon) * pi + epsilon * share for pi in capped_by_bisection(row.scores, row.k)]


def systematic(row: Row, inclusion: list[float]) -> Chances:
    """All permutations, and all starts: between two places where a running sum has its fraction, nothing changes."""
    chances = defaultdict(float)
    orders = list(permutations(range(len(row.places))))
    for order in orders:
        ends = np.cumsum([0.0] + [inclusion[i] for i in order])
        cuts = sorted([0.0, 1.0, *(ends % 1)])
        for a, b in pairwise(cuts):
            if b - a > 1e-13:
                passed = np.diff(np.ceil(ends - (a + b) / 2)) > 0
                chosen = (row.places[i] for i, chosen in zip(order, passed, strict=True) if chosen)
                chances[tuple(sorted(chosen))] += (b - a) / len(orders)
    return dict(chances)


def mixture(chances: Chances, row: Row, epsilon: float) -> Chances:
    return {s: (1 - epsilon) * chances.get(s, 0.0) + epsilon * p for s, p in uniform(row).items()}


def chances_of(name: str, epsilon: float, sentences: Sentences, scores: Tensor, index: int) -> Chances:
    """Probabilities of all subsets of a row; from the module under test come only the odds that `pps` settles on."""
    row = row_of(sentences, scores, index)
    if name == "pps:systematic":
        return systematic(row, aimed_at(row, epsilon))
    if name == "pps":
        target = torch.zeros_like(scores[:1])
        target[0, row.places] = torch.tensor(aimed_at(row, epsilon), dtype=torch.float64)
        one = sentences.rows([index])
        log_odds = conditional_poisson.log_odds_for(target, one.maskable, one.counts, steps=2)[0]
        return products(row, {place: math.exp(log_odds[place]) for place in row.places})
    family, _, argument = name.partition(":")
    if family == "simple":
        chances = uniform(row)
    elif family == "midzuno":
        chances = midzuno(row)
    elif family == "conditional-poisson":
        alpha = float(argument or 1 / row.k)
        chances = products(row, {place: row.score(place) ** alpha for place in row.places})
    elif family == "hard":
        chances = successive(row, [[place] for place in row.places])
    elif family == "whole-word":
        numbered = groupby(zip(row.words, row.places, strict=True), key=lambda pair: pair[0])
        chances = successive(row, [[place for _, place in members] for _, members in numbered])
    else:
        chances = spans(row, int(argument))
    return mixture(chances, row, epsilon)


def inclusion_by(chances: Chances, length: int) -> Tensor:
    """`[length]` probabilities that a position is in the subset."""
    pi = torch.zeros(length, dtype=torch.float64)
    for subset, chance in chances.items():
        pi[list(subset)] += chance
    return pi


def drawn(masks: Masks) -> list[Set]:
    """The targets of every cell."""
    return [tuple(p[v].tolist()) for p, v in zip(masks.positions, masks.valid, strict=True)]


def codes(masks: Masks) -> Tensor:
    """`[cells]` the targets of a cell as the bits of a number."""
    return ((1 << masks.positions) * masks.valid).sum(dim=1)


def code(subset: Set) -> int:
    return sum(1 << place for place in subset)


def gradients(sets, dimensions=3, seed=0):
    """`{set: [targets, dimensions]}` gradients of the targets' losses, each depending on the whole set."""
    rng = np.random.default_rng(seed)
    return {s: rng.normal(size=(len(s), dimensions)) + 0.5 for s in sets}


def mean_gradient(g, p):
    return sum(p[s] * g[s].mean(axis=0) for s in p)


def moment(g, weights):
    """`sum_S weight |g(S)|^2`, `g(S)` the mean over the targets."""
    return sum(weight * np.square(g[s].mean(axis=0)).sum() for s, weight in weights.items())
