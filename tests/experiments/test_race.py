"""The arithmetic of the race: p-values, Holm's correction, alignment and batch gain, targets, and what is resumed."""

import itertools
from dataclasses import replace
from math import inf
from pathlib import Path

import alignment
import arms
import convergence
import cost
import ledger
import numpy as np
import pytest
import regimes
import settings
import standing
import torch
import tuning
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize, stats

from gradvar import GradvarError
from gradvar.racing.times import Time

ROOT = Path(__file__).parents[2]


def setting(folder, **values):
    return settings.Setting(
        **{"train": folder, "valid": folder, "encoder": folder, "glue": folder, "work": folder, "figures": folder,
           "jobs": 0, "seeds": 2, "quick": False, **values}
    )  # fmt: skip


def test_holm_of_an_example_by_hand():
    assert standing.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_lies_between_the_p_values_and_bonferroni(p_values):
    corrected = standing.holm(p_values)
    for p, found in zip(p_values, corrected, strict=True):
        assert p <= found <= max(p, min(1, len(p_values) * p)) + 1e-12
    assert np.array_equal(np.argsort(p_values, kind="stable"), np.lexsort((p_values, corrected))) or len(
        set(p_values)
    ) < len(p_values)


def test_holm_keeps_the_family_wise_error():
    # 20,000 families of 5 true hypotheses: 5 % of them may be wrong anywhere; false alarm of this test 1e-6 (z = 4.9).
    families = np.random.default_rng(0).uniform(size=(20_000, 5))
    wrong = np.mean([min(standing.holm(list(family))) < 0.05 for family in families])
    assert wrong < 0.05 + 4.9 * np.sqrt(0.05 * 0.95 / 20_000)


KNOWN = [(Time(a, a), Time(b, b)) for a, b in ((80, 100), (85, 100), (95, 100), (90, 110))]
LATE = (Time(120, inf), Time(60, 60))


def test_known_times_are_compared_by_students_test():
    logs = np.log([0.8, 0.85, 0.95, 90 / 110])
    assert standing.p_of_times(KNOWN) == pytest.approx(stats.ttest_1samp(logs, 0).pvalue)
    assert standing.p_of_times([(b, a) for a, b in KNOWN]) == pytest.approx(standing.p_of_times(KNOWN))


def test_an_arm_that_never_gets_there_is_later_by_its_bounds():
    late = [LATE, (Time(120, inf), Time(70, 70)), (Time(90, 90), Time(65, 65))]
    lows = np.log([120 / 60, 120 / 70, 90 / 65])
    one_sided = stats.ttest_1samp(lows, 0, alternative="greater").pvalue
    assert standing.p_of_times(late) == pytest.approx(2 * one_sided)
    assert standing.p_of_times([LATE] * 5) == pytest.approx(2 * 0.5**5)  # all alike: signs alone
    never = (Time(120, inf), Time(120, inf))
    assert standing.p_of_times([*KNOWN, never]) == 1.0


def test_bounds_give_no_more_false_alarms_than_the_level():
    # 4,000 races of two like arms, of 6 pairs, each run cut off at a time that a third of them do not reach; a false
    # alarm of this test: 6e-5 (4 standard errors).
    rng, alarms = np.random.default_rng(3), 0
    for _ in range(4000):
        shared = rng.normal(0, 0.2, size=(6, 1))
        times = np.exp(shared + rng.normal(0, 0.2, size=(6, 2)))
        pairs = [[Time(t, t) if t < 1.13 else Time(1.13, inf) for t in pair] for pair in times]
        alarms += standing.p_of_times([tuple(pair) for pair in pairs]) < 0.05
    assert alarms / 4000 < 0.05 + 4 * np.sqrt(0.05 * 0.95 / 4000)


def test_a_run_that_diverged_ends_worse():
    ended = np.array([0.1, np.inf, 0.2, np.inf, np.nan])
    assert standing.p_of(ended) == pytest.approx(2 * 0.5**4)
    assert standing.mean_interval(ended[:2]) == (inf, -inf, inf)


def curve(*losses):
    return np.arange(1.0, len(losses) + 1), np.array(losses)


def test_an_arm_that_costs_more_is_later_by_as_much():
    uniform = {seed: curve(3.0, 2.0 + 0.01 * seed, 1.0) for seed in range(3)}
    found = standing.standing("scratch", "x", uniform, uniform, 1.5, (1.25, 1.2, 1.3))
    assert (found.steps.low, found.steps.high) == (1.0, 1.0)
    assert found.seconds.low == pytest.approx(1.25)
    assert found.ends == pytest.approx((1.2, 1.3))
    assert found.p_sooner == pytest.approx(2 * 0.5**3)
    assert found.loss == (0.0, 0.0, 0.0)
    assert found.p_better == 1.0
    unsure = standing.standing("scratch", "x", uniform, uniform, 1.5, (1.25, 0.9, 1.3))
    assert unsure.p_sooner == 1.0  # it is sooner at one cost and later at another


def test_only_seeds_of_both_arms_are_paired():
    own, uniform = {0: curve(2, 1), 1: curve(2, 0.5), 7: curve(9, 9)}, {0: curve(3, 2), 1: curve(3, 2), 2: curve(0, 0)}
    found = standing.standing("scratch", "x", own, uniform, 1.9, (1.0, 1.0, 1.0))
    assert found.pairs == 2
    assert found.loss[0] == pytest.approx(-1.25)
    assert standing.standing("scratch", "x", {0: own[0]}, uniform, 1.9, (1.0, 1.0, 1.0)) is None


def test_what_is_smaller_than_control_and_placebo_is_no_effect():
    late = {seed: curve(3.0, 2.0, 1.0) for seed in range(12)}

    def named(arm, factor):
        return standing.standing("scratch", arm, late, late, 1.5, (factor,) * 3)

    def twice(arm):  # as many steps again
        own = {seed: (2 * steps, losses) for seed, (steps, losses) in late.items()}
        return standing.standing("scratch", arm, own, late, 1.5, (1.0,) * 3)

    each = [named("x", 1.8), named("y", 2.5), named("z", 0.4), named("w", 0.6)]
    sorted_ = standing.verdicts(each)
    assert [[one.arm for one in sorted_[name]] for name in sorted_] == [["z", "w"], ["x", "y"], []]
    sorted_ = standing.verdicts([*each, twice(arms.CONTROL)])
    assert [[one.arm for one in sorted_[name]] for name in sorted_] == [["z"], ["y"], ["x", "w", arms.CONTROL]]


def test_arms_that_have_not_run_count_in_the_correction():
    assert standing.holm([0.01, 0.04]) == pytest.approx([0.02, 0.04])
    assert standing.holm([0.01, 0.04], 5) == pytest.approx([0.05, 0.16])
    assert standing.holm([0.01, 0.04], 5) == standing.holm([0.01, 0.04, 1, 1, 1])[:2]


def test_a_mapnet_that_is_not_in_use_costs_what_it_costs_unused(tmp_path):
    it = setting(tmp_path)
    seconds = {"uniform": 2.0, "mapnet, weighted sets": 3.0, cost.UNUSED: 2.2}
    for number, slower in enumerate((1.0, 2.0, 1.5)):
        rows = [{"arm": arm, "step_seconds": slower * own} for arm, own in seconds.items()]
        cost.book(it).add({"regime": "adapted", "round": number}, ledger.Found(rows), 1.0)
    for share, wanted in ((None, 1.5), (1.0, 1.5), (0.0, 1.1), (0.25, 1.2)):
        used = {} if share is None else {"mapnet, weighted sets": share}
        assert cost.ratios(it, "adapted", used)["mapnet, weighted sets"] == pytest.approx((wanted,) * 3)


def test_the_cost_of_a_step_is_the_median_of_blocks(tmp_path, monkeypatch):
    lines = [{"step": 8 * n, "seconds": s, "loss": 1.0} for n, s in enumerate((5.0, 6.0, 7.0, 17.0, 18.0), 1)]
    monkeypatch.setattr(cost, "read_metrics", lambda _: [*lines, {"step": 40, "eval_loss": 1.0, "seconds": 18.0}])
    assert cost.step_seconds(tmp_path) == pytest.approx(1 / 8)


def test_regimes_for_a_gpu_are_left_out_without_one(tmp_path):
    it = setting(tmp_path)
    assert "mini" not in arms.wanted(it)
    for change in ({"device": "cuda"}, {"quick": True}):
        assert "mini" in arms.wanted(replace(it, **change))
    assert arms.wanted(replace(it, only=("mini",))) == ["mini"]


CELLS = np.random.default_rng(1).normal(1.0, 2.0, size=(4, 3))  # a population of four cells' gradients


def test_moments_are_unbiased_over_all_pairs_of_groups():
    signal, noise = CELLS.mean(axis=0) @ CELLS.mean(axis=0), CELLS.var(axis=0).sum()
    each = [
        alignment._moments(g @ g.T, 1) for g in (CELLS[list(pair)] for pair in itertools.product(range(4), repeat=2))
    ]
    assert np.mean(each, axis=0) == pytest.approx([signal, noise], abs=1e-12)


def exact(mu, own, noise, own_noise, cells, groups=6, unbiased=False):
    """Inner products as they are on average."""
    eye = np.eye(groups)
    return alignment.Grams(
        mu @ mu + eye * noise / cells, own @ mu + 0 * eye, own @ own + eye * own_noise / cells, cells, unbiased
    )


MU = np.array([1.0, -2.0, 0.5])


@pytest.mark.parametrize("own", [MU, 3.0 * MU, np.array([1.5, -1.0, 0.7])])
def test_the_batch_of_uniform_masks_grown_by_the_gain_is_aimed_as_well(own):
    noise, own_noise, batch = 400.0, 300.0, 16
    gain = alignment.batch_gain(exact(MU, own, noise, own_noise, 32), batch).estimate
    efficiency = (own @ MU) ** 2 / (MU @ MU * (own @ own + own_noise / batch))
    wanted = optimize.brentq(lambda size: 1 / (1 + noise / (MU @ MU) / size) - efficiency, 1e-6, 1e6)
    assert gain == pytest.approx(wanted / batch)


def test_scale_is_of_no_account_and_an_unbiased_arm_needs_no_signal():
    one, ten = (alignment.batch_gain(exact(MU, s * MU, 400.0, s * s * 300.0, 32), 16).estimate for s in (1, 10))
    assert one == pytest.approx(ten)
    assert one == pytest.approx(400 / 300)
    unbiased = exact(0 * MU, 0 * MU, 400.0, 300.0, 32, unbiased=True)
    assert alignment.batch_gain(unbiased, 16).estimate == pytest.approx(400 / 300)
    assert alignment.batch_gain(exact(0 * MU, 0 * MU, 400.0, 300.0, 32), 16).estimate is None


def test_the_interval_of_a_gain_holds_it():
    # 400 studies of 24 groups; the jackknife's interval should hold the truth in 95 %, here within 3.5 errors: 4e-4.
    rng, hits = np.random.default_rng(2), 0
    for _ in range(400):
        shared = rng.normal(0, 2.0, size=(24, 1, 40))  # what an arm and uniform masks have in common: the sentences
        g, h = (shared + rng.normal(0, s, size=(24, 8, 40)) for s in (3.0, 2.4))
        g, h = g.mean(axis=1), h.mean(axis=1)
        found = alignment.batch_gain(alignment.Grams(g @ g.T, h @ g.T, h @ h.T, 8, True), 16)
        truth = (4.0 + 9.0 / 8) / (4.0 + 2.4**2 / 8)
        hits += found.low <= truth <= found.high
    assert hits / 400 > 0.95 - 3.5 * np.sqrt(0.95 * 0.05 / 400)


def test_the_target_is_the_loss_at_three_fifths_of_uniform_runs(tmp_path):
    it = setting(tmp_path)
    book = tuning.book(it)
    key = {"regime": "scratch", "arm": "uniform"}
    for rate in tuning.GRIDS["scratch"]:
        rows = [{"step": 10, "loss": abs(rate - 1.5e-3)}]
        book.add({**key, "what": "rate", "learning_rate": rate, "seed": 200}, ledger.Found(rows), 1.0)
    for rate, seed, end in ((1.5e-3, 200, 1.0), (1.06e-3, 201, 9.0), (1.5e-3, 201, 2.0)):
        rows = [{"step": step, "loss": 11.0 - step + end} for step in range(0, 11, 5)]
        assert tuning.target(it, "scratch") is None
        book.add({**key, "what": "target", "learning_rate": rate, "seed": seed}, ledger.Found(rows), 1.0)
    assert tuning.target(it, "scratch") == pytest.approx(11.0 - 6.0 + 1.5)


def test_a_grid_goes_on_once_where_its_best_rate_is_at_an_end(tmp_path):
    it = setting(tmp_path)
    book, low, middle, high = tuning.book(it), *tuning.GRIDS["scratch"]

    def tell(rate, loss, arm="uniform"):
        key = {"regime": "scratch", "arm": arm, "what": "rate", "learning_rate": rate, "seed": 200}
        book.add(key, ledger.Found([{"step": 1, "loss": 9.0}, {"step": 2, "loss": loss}]), 1.0)

    for rate, loss in ((low, 3.0), (middle, 2.0), (high, 1.0)):
        assert tuning.tuned(it, "scratch", "uniform") is None
        tell(rate, loss)
    assert tuning.tuned(it, "scratch", "uniform") is None
    tell(low / 2, 4.0)  # more rates on the other side change nothing
    assert tuning._beyond(tuning._ends(it, "scratch", "uniform"), (low, middle, high)) == high * high / middle
    tell(high * high / middle, inf)  # it diverged
    assert tuning.tuned(it, "scratch", "uniform") == high
    assert tuning.tuned(it, "scratch", arms.CONTROL) == middle


def test_runs_with_another_rate_than_the_tuned_one_are_refused(tmp_path):
    it = setting(tmp_path)
    for rate, loss in zip(tuning.GRIDS["adapted"], (2.0, 1.0, 3.0), strict=True):
        key = {"regime": "adapted", "arm": "uniform", "what": "rate", "learning_rate": rate, "seed": 200}
        tuning.book(it).add(key, ledger.Found([{"step": 2, "loss": loss}]), 1.0)
    for seed, rate in ((0, tuning.GRIDS["adapted"][1]), (1, tuning.GRIDS["adapted"][2])):
        row = {"step": 5, "loss": 1.0, "learning_rate": rate}
        convergence.book(it).add({"regime": "adapted", "arm": "uniform", "seed": seed}, ledger.Found([row]), 1.0)
        if seed == 0:
            assert convergence.curves(it, "adapted")["uniform"][0][1].tolist() == [1.0]
    with pytest.raises(GradvarError, match="uniform, seed 1 was trained with another learning rate"):
        convergence.curves(it, "adapted")


def test_the_spread_of_a_pair_is_pooled_over_the_arms_that_get_there(tmp_path):
    it = setting(tmp_path)
    uniform, thirty, disjoint = "uniform", "30 % masked", "disjoint pairs"
    for arm in (uniform, thirty, disjoint):
        for rate, loss in zip(tuning.GRIDS["scratch"], (2.0, 1.0, 3.0), strict=True):
            key = {"regime": "scratch", "arm": arm, "what": "rate", "learning_rate": rate, "seed": 200}
            tuning.book(it).add(key, ledger.Found([{"step": 2, "loss": loss}]), 1.0)
    key = {"regime": "scratch", "arm": uniform, "what": "target", "learning_rate": tuning.GRIDS["scratch"][1]}
    line = [{"step": 0, "loss": 10.0}, {"step": 60, "loss": 4.0}, {"step": 100, "loss": 0.0}]
    for seed in tuning.TARGET_SEEDS:
        tuning.book(it).add({**key, "seed": seed}, ledger.Found(line), 1.0)
    assert tuning.target(it, "scratch") == pytest.approx(4.0)
    times = {uniform: (50, 60, 40, 50), thirty: (40, 40, 44, 30), disjoint: (50, 60, 40, None)}
    for arm, each in times.items():
        for seed, time in enumerate(each):
            rows = [{"step": step, "loss": loss} for step, loss in ((0, 10.0), (time or 100, 4.0 if time else 4.5))]
            found = ledger.Found([{**row, "learning_rate": tuning.GRIDS["scratch"][1]} for row in rows])
            convergence.book(it).add({"regime": "scratch", "arm": arm, "seed": seed}, found, 1.0)
    logs = np.log(np.array(times[thirty]) / times[uniform])
    assert convergence.spread(it, "scratch") == (pytest.approx(logs.std(ddof=1)), 1)
    assert convergence.spread(it, "mini")[1] == 0


def test_a_name_that_there_is_none_of_is_refused():
    with pytest.raises(GradvarError, match="--only scrach: it is none of scratch, mini, adapted"):
        settings.setting("", ["--quick", "--only", "scrach"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(GradvarError, match="torch sees 0 CUDA devices"):
        settings.setting("", ["--quick", "--device", "cuda"])


def test_every_arm_is_a_recipe_and_has_a_folder_of_its_own(tmp_path):
    it = setting(tmp_path, train=ROOT / "README.md", valid=ROOT / "README.md", quick=True)
    for regime, each in arms.ARMS.items():
        if regime == "published":
            continue  # its recipe begins with a training
        folders = {arms.folder(it, regime, arm, 0, {}) for arm in each}
        assert len(folders) == len(each)


def test_the_sentences_of_film_reviews_are_those_that_are_no_part_of_others(tmp_path):
    rows = ["a fine film", "fine", "a fine film", "a film", "it 's a fine film , really"]
    (tmp_path / "SST-2.train.tsv").write_text("sentence\tlabel\n" + "".join(f"{row} \t1\n" for row in rows))
    assert regimes._sentences(tmp_path / "SST-2.train.tsv") == ["a film", "it 's a fine film , really"]
