"""The online calibration: its estimates by enumeration, and what it makes of scores that are useless, good, or bad."""

import json
from collections.abc import Callable

import numpy as np
import pytest
import torch

from gradvar.mapnet import calibration
from gradvar.mapnet.calibration import EPSILONS, EXPONENTS
from gradvar.mapnet.online import MEMORY, OnlineCalibration, can_calibrate, candidates, second_moments
from gradvar.masking.designs import Design
from gradvar.masking.epochs import EpochStratified
from gradvar.masking.masks import Masks
from gradvar.masking.pps import PPS, capped
from gradvar.masking.sets import ConditionalPoisson, Disjoint, Midzuno, Pool
from gradvar.masking.units import Hard
from tests.masking import enumeration
from tests.masking.enumeration import Chances, Set, batch, scores_of

SENTENCES = batch(("|aabcd|", 2), ("|abbcde|", 3))  # T = 5 and 6
SCORES = scores_of("mild", SENTENCES)
DRAWN = ("simple", "pps", "pps~0.3", "midzuno", "midzuno~0.3", "conditional-poisson", "conditional-poisson~0.3")
OF_SETS: dict[str, Design] = {
    "midzuno": Midzuno(),
    "conditional-poisson": ConditionalPoisson(),
    "conditional-poisson:1": ConditionalPoisson(alpha=1.0),
}


def chances_of(text: str, row: int, scores: torch.Tensor = SCORES) -> Chances:
    name, _, epsilon = text.partition("~")
    return enumeration.chances_of(name, float(epsilon or 0), SENTENCES, scores, row)


def norms2_of(row: int) -> torch.Tensor:
    """`[positions]` squared norms of a sentence's targets, which do not interact."""
    return torch.from_numpy(np.random.default_rng(row).lognormal(size=SENTENCES.ids.shape[1]))


def mask_of(text: str, chances: Chances, row: int, subset: Set) -> Masks:
    """One set, with the weights of its draw: `1/(T pi_i)`, or `p/(k q)`."""
    at, k, total = torch.tensor([subset]), int(SENTENCES.counts[row]), int(SENTENCES.totals[row])
    if text.startswith("pps"):
        pi = enumeration.inclusion_by(chances, SENTENCES.ids.shape[1])
        weights = 1 / (total * pi[at])
    else:
        weights = torch.full((1, k), 1 / (len(chances) * chances[subset] * k), dtype=torch.float64)
    return Masks(at, torch.ones_like(at, dtype=torch.bool), weights, torch.zeros(1, dtype=torch.int64))


def expected(design: Design, text: str, row: int, squares: Callable[[Set], torch.Tensor]) -> np.ndarray:
    """The estimates' mean over all masks of a draw."""
    chances, one = chances_of(text, row), SENTENCES.rows([row])
    found = [
        q * second_moments(design, one, SCORES[row : row + 1], mask_of(text, chances, row, subset), squares(subset))
        for subset, q in chances.items()
    ]
    return torch.stack(found).sum(dim=0).numpy()


def powers() -> list[torch.Tensor]:
    """Scores to the power of every candidate, uniform masks apart."""
    return [SCORES.pow(a) * SENTENCES.maskable for a, _ in candidates()]


@pytest.mark.parametrize("row", [0, 1])
@pytest.mark.parametrize("drawn", DRAWN)
def test_second_moments_of_positions_are_unbiased_whatever_drew(drawn, row):
    """`(k/T) mean_i f_i^2/pi_i`, with the `pi` of each candidate by bisection."""
    norms2 = norms2_of(row)
    found = expected(PPS(), drawn, row, lambda subset: norms2[list(subset)].unsqueeze(0))
    k, total = int(SENTENCES.counts[row]), int(SENTENCES.totals[row])
    exact = [norms2[SENTENCES.maskable[row]].mean().item()]
    for (_, epsilon), scores in zip(candidates(), powers(), strict=True):
        mine = enumeration.row_of(SENTENCES, scores, row)
        pi = np.array(enumeration.aimed_at(mine, epsilon))
        exact.append(k / total * (norms2[mine.places].numpy() / pi).mean())
    np.testing.assert_allclose(found, exact, rtol=1e-10)


@pytest.mark.parametrize("row", [0, 1])
@pytest.mark.parametrize("drawn", [text for text in DRAWN if not text.startswith("pps")])
@pytest.mark.parametrize("kind", OF_SETS)
def test_second_moments_of_sets_are_unbiased_whatever_drew(kind, drawn, row):
    """`E_q' |w' e|^2` of every candidate, `e` of every set by itself: targets that interact."""
    sets = list(enumeration.row_of(SENTENCES, SCORES, row).subsets)
    squares = dict(zip(sets, np.random.default_rng(5).lognormal(size=len(sets)), strict=True))
    found = expected(OF_SETS[kind], drawn, row, lambda s: torch.tensor([squares[s]], dtype=torch.float64))
    exact = [np.mean(list(squares.values()))]
    for (_, epsilon), scores in zip(candidates(), powers(), strict=True):
        q = enumeration.chances_of(kind, epsilon, SENTENCES, scores, row)
        exact.append(sum(q[s] * (1 / (len(sets) * q[s])) ** 2 * squares[s] for s in sets))
    np.testing.assert_allclose(found, exact, rtol=1e-10)


def test_a_designs_own_epsilon_does_not_count():
    norms2 = norms2_of(0)

    def of(design: Design, squares: Callable[[Set], torch.Tensor]) -> np.ndarray:
        return expected(design, "simple", 0, squares)

    def single(subset: Set) -> torch.Tensor:
        return norms2[list(subset)].unsqueeze(0)

    np.testing.assert_array_equal(of(PPS(epsilon=0.2), single), of(PPS(), single))
    np.testing.assert_array_equal(
        of(Midzuno(epsilon=0.2), lambda s: single(s).sum(dim=1)), of(Midzuno(), lambda s: single(s).sum(dim=1))
    )


def test_several_masks_of_several_sentences_add_up():
    """The masks of a sentence together; surplus slots are of no account."""
    places = torch.tensor([[1, 3, 0], [2, 5, 0], [1, 4, 5], [2, 3, 6]])
    valid = torch.tensor([[True, True, False]] * 2 + [[True] * 3] * 2)
    weights = valid * torch.tensor([[0.5, 0.7, 9.0], [0.4, 0.1, 9.0], [0.2, 0.3, 0.6], [0.4, 0.5, 0.1]]).double()
    squares = torch.rand(4, 3, dtype=torch.float64)
    masks = Masks(places, valid, weights, torch.zeros(4, dtype=torch.int64))
    for design, each in ((PPS(), squares), (Midzuno(), squares.sum(dim=1))):
        parts = []
        for cell in range(4):
            row, k = cell // 2, int(valid[cell].sum())
            own = (x[cell : cell + 1, :k] for x in (places, valid, weights))
            mine = each[cell : cell + 1, :k] if each.ndim == 2 else each[cell : cell + 1]
            one = Masks(*own, masks.keys[:1])
            parts.append(second_moments(design, SENTENCES.rows([row]), SCORES[row : row + 1], one, mine))
        found = second_moments(design, SENTENCES, SCORES, masks, each)
        torch.testing.assert_close(found, torch.stack(parts).sum(dim=0), rtol=1e-12, atol=0)


def test_it_is_the_calibration_of_fit_mapnet_where_all_positions_are_seen():
    """Every position seen once, with the weight `1/T`: the very same numbers, of every candidate."""
    rng = np.random.default_rng(2)
    totals, counts = (5, 6), SENTENCES.counts.tolist()
    log_scores = [rng.normal(size=t) for t in totals]
    norms2 = [rng.lognormal(size=t) for t in totals]
    width = SENTENCES.ids.shape[1]
    scores, squares = (torch.zeros(2, width, dtype=torch.float64) for _ in range(2))
    for row in range(2):
        scores[row, SENTENCES.maskable[row]] = torch.from_numpy(np.exp(log_scores[row]))
        squares[row, SENTENCES.maskable[row]] = torch.from_numpy(norms2[row])
    everywhere = torch.arange(width).expand(2, -1)
    weights = SENTENCES.maskable / SENTENCES.totals.double().unsqueeze(1)
    masks = Masks(everywhere, SENTENCES.maskable, weights, torch.zeros(2, dtype=torch.int64))
    found = second_moments(PPS(), SENTENCES, scores, masks, squares)
    theirs = [
        calibration.second_moments(log_scores, norms2, counts, *pair).sum() for pair in ((0.0, 0.0), *candidates())
    ]
    np.testing.assert_allclose(found.numpy(), theirs, rtol=1e-12)


def test_candidates_are_those_of_fit_mapnet_and_uniform_masks_apart():
    assert candidates() == [(a, e) for a in EXPONENTS if a != 0 for e in EPSILONS]


@pytest.mark.parametrize(
    ("design", "can"),
    [
        *((design, True) for design in (PPS(), PPS("systematic"), Midzuno(), ConditionalPoisson())),
        *((design, False) for design in (Pool(), Hard(), Disjoint(), EpochStratified())),
    ],
    ids=str,
)
def test_what_can_be_calibrated(design, can):
    assert can_calibrate(design) == can


# ---- what it chooses

CANDIDATES = candidates()


def looks_of(**ratios: float) -> np.ndarray:
    """A look without noise: uniform masks one, all others two, but for the candidates that are named."""
    moments = np.full(1 + len(CANDIDATES), 2.0)
    moments[0] = 1
    for name, ratio in ratios.items():
        a, e = (float(part.replace("p", ".")) for part in name.strip("_").split("_"))
        moments[1 + CANDIDATES.index((a, e))] = ratio
    return moments


def after(*looks: np.ndarray) -> OnlineCalibration:
    made = OnlineCalibration()
    for look in looks:
        made.look(look)
    return made


def test_it_believes_nothing_at_first():
    """16 looks, however clear; and nothing at all before the first, or where all norms are zero."""
    clear = looks_of(_0p5_0p1=0.5)
    assert OnlineCalibration().chosen == (0.0, 0.0)
    assert after(*[clear] * 15).chosen == (0.0, 0.0)
    assert after(*[clear] * 16).chosen == (0.5, 0.1)
    assert after(*[np.zeros(1 + len(CANDIDATES))] * 20).chosen == (0.0, 0.0)


def test_the_lowest_upper_end_is_chosen_not_the_lowest_ratio():
    """0.5 for sure beats 0.4 on average, where the looks scatter from 0 to 0.8."""
    looks = [looks_of(_0p5_0p1=0.5, _1p0_0p0=x) for x in [0.0, 0.8] * 20]
    made = after(*looks)
    ratio, _ = made.ratios()
    assert ratio[CANDIDATES.index((1.0, 0.0))] < ratio[CANDIDATES.index((0.5, 0.1))]
    assert made.chosen == (0.5, 0.1)


def test_a_ratio_below_one_that_is_not_sure_is_not_used():
    """Looks of 0.9 -+ 0.8 give 0.9 with 2.5 standard errors of 0.18: not below one."""
    assert after(*[looks_of(_0p5_0p1=x) for x in [0.1, 1.7] * 60]).chosen == (0.0, 0.0)
    assert after(*[looks_of(_0p5_0p1=x) for x in [0.8, 1.0] * 60]).chosen == (0.5, 0.1)


def test_ratios_and_their_standard_errors():
    """By their definitions, of discounted looks."""
    rng = np.random.default_rng(1)
    looks = rng.lognormal(size=(50, 1 + len(CANDIDATES)))
    discount = (1 - 1 / MEMORY) ** np.arange(49, -1, -1)
    sums = discount @ looks
    ratio = sums[1:] / sums[0]
    error = np.sqrt((discount[:, None] ** 2 * (looks[:, 1:] - ratio * looks[:, :1]) ** 2).sum(axis=0)) / sums[0]
    found = after(*looks).ratios()
    np.testing.assert_allclose(found[0], ratio, rtol=1e-12)
    np.testing.assert_allclose(found[1], error, rtol=1e-9)


def test_its_state_goes_through_json_bit_for_bit():
    looks = np.random.default_rng(3).lognormal(size=(60, 1 + len(CANDIDATES))) / 3
    one = after(*looks[:40])
    other = OnlineCalibration()
    other.restore(json.loads(json.dumps(one.state(), allow_nan=False)))
    for look in looks[40:]:
        assert other.chosen == one.chosen
        assert all(np.array_equal(a, b) for a, b in zip(one.ratios(), other.ratios(), strict=True))
        one.look(look)
        other.look(look)
    assert other.state() == one.state()


def test_a_new_one_has_a_state_too():
    fresh = OnlineCalibration()
    fresh.restore(json.loads(json.dumps(OnlineCalibration().state(), allow_nan=False)))
    assert fresh.chosen == (0.0, 0.0)
    assert after(looks_of()).state() != fresh.state()


# ---- simulated trainings

SEEDS, LOOKS = 20, 400
SENTENCES_A_LOOK = 8
POPULATION, TOTAL, COUNT = 200, 20, 3


class Simulated:
    """A text of 200 sentences of T = 20 with lognormal norms, noisy by exp(0.7 N), that masks of the choice observe.

    `tables[kind]` has `[sentences, positions, 1 + candidates]` terms `(k/T)/pi` and `pi` for scores that are the norms
    ("good"), their inverses ("bad"), or nothing to do with them ("useless"): by `second_moments` itself, which is
    linear in the norms.
    """

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.norms = rng.lognormal(0, 0.8, (POPULATION, TOTAL))
        useless = rng.lognormal(0, 0.8, (POPULATION, TOTAL))
        self.inverse = {
            "good": self._tables(self.norms),
            "bad": self._tables(1 / self.norms),
            "useless": self._tables(useless),
        }

    @staticmethod
    def _tables(scores: np.ndarray) -> np.ndarray:
        """`[sentences, positions, 1 + candidates]` of `k/(T pi)`."""
        every = batch(*[(f"|{'a' * TOTAL}|", COUNT)] * POPULATION)
        padded = torch.zeros(POPULATION, TOTAL + 2, dtype=torch.float64)
        padded[:, 1:-1] = torch.from_numpy(scores)
        found = [np.ones((POPULATION, TOTAL))]
        for a, e in CANDIDATES:
            pi = (1 - e) * capped(padded**a, every)[:, 1:-1].numpy() + e * COUNT / TOTAL
            found.append(COUNT / TOTAL / pi)
        return np.stack(found, axis=-1)

    def ratios(self, kind: str) -> np.ndarray:
        """`[candidates]` true second moments over uniform masks'."""
        moments = np.einsum("rt,rtc->c", self.norms**2, self.inverse[kind])
        return moments[1:] / moments[0]

    def look(self, kind: str, chosen: tuple[float, float], rng: np.random.Generator) -> np.ndarray:
        """One step: sentences, masks of the candidate in use (each position by itself), norms with noise."""
        in_use = 0 if chosen[0] == 0 else 1 + CANDIDATES.index(chosen)
        rows = rng.integers(0, POPULATION, SENTENCES_A_LOOK)
        inverse = self.inverse[kind][rows]
        pi = COUNT / TOTAL / inverse[..., in_use]
        observed = rng.random(pi.shape) < pi
        noisy2 = (self.norms[rows] * rng.lognormal(-0.49, 0.7, pi.shape)) ** 2  # of the right mean square
        weights = observed / (TOTAL * pi)
        return np.einsum("rt,rtc->c", weights * noisy2, inverse)

    def train(self, kinds: list[str], seed: int) -> list[tuple[float, float]]:
        """What is in use after each look."""
        rng, made, used = np.random.default_rng(seed), OnlineCalibration(), []
        for kind in kinds:
            made.look(self.look(kind, made.chosen, rng))
            used.append(made.chosen)
        return used

    def true_ratio(self, kind: str, chosen: tuple[float, float]) -> float:
        return 1.0 if chosen[0] == 0 else float(self.ratios(kind)[CANDIDATES.index(chosen)])


@pytest.fixture(scope="module")
def simulated() -> Simulated:
    return Simulated()


def test_the_simulation_is_of_second_moments(simulated):
    """Its tables are those that `second_moments` reckons with, here at one position of one sentence."""
    one = batch((f"|{'a' * TOTAL}|", COUNT))
    scores = torch.zeros(1, TOTAL + 2, dtype=torch.float64)
    scores[0, 1:-1] = torch.from_numpy(simulated.norms[4])
    at = torch.tensor([[8]])
    mask = Masks(at, at > 0, torch.ones(1, 1, dtype=torch.float64), at[0])
    found = second_moments(PPS(), one, scores, mask, torch.ones(1, 1, dtype=torch.float64))
    np.testing.assert_allclose(found.numpy(), simulated.inverse["good"][4, 7], rtol=1e-12)
    assert simulated.ratios("useless").min() > 1
    assert simulated.ratios("good").min() < 0.7 < 1 < simulated.ratios("bad").min()


def test_useless_scores_stay_unused(simulated):
    """Uniform masks at 95 % of the 20 x 400 looks at least (found: 99.8 %)."""
    used = [chosen for seed in range(SEEDS) for chosen in simulated.train(["useless"] * LOOKS, seed)]
    assert np.mean([chosen[0] == 0 for chosen in used]) > 0.95


def test_good_scores_are_found_and_bad_ones_given_up(simulated):
    """Good ones within twice the memory in each of 20 trainings (found: at the 16th look), never worse than uniform.

    Masks worse than uniform are in use for no more looks than the memory, 64 (found: 5 to 47), of 400 after the turn.
    """
    for seed in range(SEEDS):
        used = simulated.train(["good"] * LOOKS + ["bad"] * LOOKS, seed)
        gains = [simulated.true_ratio("good", chosen) for chosen in used[:LOOKS]]
        harm = [simulated.true_ratio("bad", chosen) for chosen in used[LOOKS:]]
        assert max(gains) == 1
        assert max(gains[2 * MEMORY :]) < 0.7
        assert 0 < sum(ratio > 1 for ratio in harm) <= MEMORY
        assert harm[-1] == 1
