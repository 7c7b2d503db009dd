"""What is read from the numbers of the race: its findings, its winner, and what was foretold beside what came."""

import arms
import confirm
import convergence
import cost
import glue
import ledger
import numpy as np
import pytest
import settings
import standing
import tuning
import what_helps

from gradvar import GradvarError

REGIME = "mini"
FASTER = {"30 % masked": 1.6, "mapnet, unweighted": 0.9}
"""How many times sooner an arm is, in steps, than uniform masks; of others, once."""
COSTS = {"30 % masked": (1.2, 1.25, 1.3)}


def setting(folder):
    return settings.Setting(*[folder] * 6, jobs=0, seeds=None, quick=False)


def loss(step, faster=1.0, shift=0.0):
    return 10 - step * faster / 100 + shift


@pytest.fixture
def raced(tmp_path):
    """A race of five seeds; runs of a seed differ in nothing but their arm's speed, seeds in how far they are."""
    it = setting(tmp_path)
    for arm in arms.ARMS[REGIME]:
        if arm != arms.CONTROL:
            key = {"regime": REGIME, "arm": arm, "what": "rate", "seed": 200}
            for rate in tuning.GRIDS[REGIME]:
                rows = [{"step": 750, "loss": abs(rate - 1.06e-3)}]
                tuning.book(it).add({**key, "learning_rate": rate}, ledger.Found(rows), 1.0)
        for number in range(3):
            seconds = COSTS.get(arm, (1.0,) * 3)[number]
            key = {"regime": REGIME, "round": number}
            known = [row for row in cost.book(it).rows() if row["round"] == str(number)]
            rows = [*known, {"arm": arm, "step_seconds": seconds}]
            cost.book(it).add(key, ledger.Found([{k: v for k, v in row.items() if k not in key} for row in rows]), 1.0)
    for seed in tuning.TARGET_SEEDS:
        key = {"regime": REGIME, "arm": arms.BASELINE, "what": "target", "learning_rate": 1.06e-3, "seed": seed}
        rows = [{"step": step, "loss": loss(step)} for step in (0, 500, 1000)]
        tuning.book(it).add(key, ledger.Found(rows), 1.0)
    for arm in arms.ARMS[REGIME]:
        for seed in range(5):
            run(it, arm, seed, FASTER.get(arm, 1.0) * (1 + 0.001 * seed * (arm != arms.BASELINE)))
    return it


def run(it, arm, seed, faster):
    rate = tuning.tuned(it, REGIME, arm)
    rows = [{"step": step, "learning_rate": rate, "loss": loss(step, faster)} for step in range(0, 1001, 100)]
    convergence.book(it).add({"regime": REGIME, "arm": arm, "seed": seed}, ledger.Found(rows), 1.0)


def of(each, arm):
    return next(one for one in each if one.arm == arm)


def test_an_arm_stands_where_its_steps_and_its_cost_put_it(raced):
    assert tuning.target(raced, REGIME) == pytest.approx(loss(600))
    one = of(convergence.standings(raced, REGIME), "30 % masked")
    assert (one.pairs, one.bound) == (5, "")
    assert one.steps.low == pytest.approx(1 / 1.6, rel=3e-3)
    assert one.middle == pytest.approx(1.25 / 1.6, rel=3e-3)
    assert one.ends == pytest.approx((1.2 / 1.6, 1.3 / 1.6), rel=5e-3)
    control = of(convergence.standings(raced, REGIME, arms.CONTROL), "30 % masked")
    assert control.steps.low == pytest.approx(1 / 1.6, rel=3e-3)  # here the control does what uniform masks do
    assert "*mini*, 5 of 5 pairs: sooner: 30 % masked (0.78" in convergence.finding(raced)
    assert "3 arms not told apart" in convergence.finding(raced)


def test_a_run_of_another_rate_and_a_rate_that_is_not_known_are_told_apart(raced):
    rows = [{"step": step, "learning_rate": 9e-4, "loss": loss(step)} for step in (0, 1000)]
    convergence.book(raced).add({"regime": REGIME, "arm": arms.BASELINE, "seed": 5}, ledger.Found(rows), 1.0)
    with pytest.raises(GradvarError, match="mini, uniform, seed 5 was trained with another learning rate"):
        convergence.standings(raced, REGIME)
    tuning.book(raced).path.unlink()
    with pytest.raises(GradvarError, match=r"no learning rate of uniform; .*run experiments/tuning\.py first"):
        convergence.standings(raced, REGIME)


def test_bounds_point_the_way_that_is_known(raced):
    run(raced, "mapnet, unweighted", 0, 0.3)  # never gets there, so it is later at the least
    one = of(convergence.standings(raced, REGIME), "mapnet, unweighted")
    assert one.bound == ">"
    assert one.said.startswith("> 1.")
    assert one.said.endswith(", ∞]")
    run(raced, arms.BASELINE, 1, 0.3)  # in another pair uniform masks never do: nothing is known of the mean
    both = of(convergence.standings(raced, REGIME), "mapnet, unweighted")
    assert both.said == "not resolved"
    sooner = of(convergence.standings(raced, REGIME), "30 % masked")
    assert sooner.bound == "<"
    assert sooner.said.startswith("< 0.")
    foretold(raced)
    points = {point.arm: point for point in what_helps.both(raced, REGIME)}
    assert points["30 % masked"].bound == ">"
    assert points["30 % masked"].speed[0] == pytest.approx(1 / sooner.middle)
    assert points["30 % masked"].speed[2] == np.inf
    assert "mapnet, unweighted" not in points
    assert "mapnet, unweighted" in what_helps.left_out(raced, REGIME)


def foretold(it, **gains):
    for stage in ("mini@187", "mini@374"):
        rows = [
            {"arm": arm, "gain": middle, "gain_low": middle / 1.5, "gain_high": middle * 1.5}
            for arm in arms.ARMS[REGIME]
            if arm not in (arms.BASELINE, arms.CONTROL)
            for middle in [gains.get(arm, FASTER.get(arm, 1.0)) if arm != gains.get("unknown") else -1.0]
        ]
        what_helps.book(it).add({"regime": REGIME, "stage": stage}, ledger.Found(rows), 1.0)


def test_what_is_foretold_is_gain_over_cost_with_the_error_of_both(raced):
    foretold(raced)
    middle, low, high = what_helps.predicted(raced, REGIME)["30 % masked"]
    assert middle == pytest.approx(1.6 / 1.25)
    reach = 1.5 ** (1 / np.sqrt(2))  # the geometric mean of two stages, each within a factor of 1.5
    assert (low, high) == pytest.approx((1.6 / reach / 1.3, 1.6 * reach / 1.2))
    alone = what_helps.predicted(raced, REGIME, "mini@187")["30 % masked"]
    assert alone == pytest.approx((1.6 / 1.25, 1.6 / 1.5 / 1.3, 1.6 * 1.5 / 1.2))
    assert list(what_helps.of_stages(raced, REGIME)) == ["mini@187", "mini@374"]
    foretold(raced, unknown="placebo")
    assert "placebo" not in what_helps.predicted(raced, REGIME)
    assert what_helps.left_out(raced, REGIME) == ["placebo"]


def test_the_winner_is_soonest_for_certain_and_is_compared_at_equal_seconds(raced):
    assert confirm.winner(raced, REGIME) == "30 % masked"
    for seed in range(3):
        for arm, steps, end in ((arms.BASELINE, 1000, 3.0), ("30 % masked", 800, 2.9 - 0.01 * seed)):
            key = {"regime": REGIME, "arm": arm, "steps": steps, "seed": 20 + seed}
            confirm.book(raced).add(key, ledger.Found([{"loss": end, "train_seconds": steps / 500}]), 1.0)
    assert confirm.chosen(raced, REGIME) == ("30 % masked", 800)
    assert confirm.seconds(raced, REGIME) == pytest.approx((1.0, 0.96, 1.04))
    (one,) = confirm.compared(raced)
    assert (one.title, one.arm, one.clock) == ("mini", "30 % masked", pytest.approx(0.8))
    assert one.differences.tolist() == pytest.approx([-0.1, -0.11, -0.12])
    assert "*mini*: 30 % masked, -0.110 [-0.135, -0.085] nats over 3 pairs" in confirm.finding(raced)
    for seed in range(2):
        key = {"regime": REGIME, "arm": arms.CONTROL, "steps": 1000, "seed": 20 + seed}
        confirm.book(raced).add(key, ledger.Found([{"loss": 3.1, "train_seconds": 1.6}]), 1.0)
    assert confirm.chosen(raced, REGIME) == ("30 % masked", 800)
    assert confirm.seconds(raced, REGIME) == pytest.approx((1.0, 0.96, 1.04))
    other = confirm.compared(raced)[1]
    assert (other.title, other.clock) == ("mini, beside the control", pytest.approx(1.0))
    assert other.differences.tolist() == pytest.approx([-0.2, -0.21])


def test_scores_of_tasks_are_compared_in_pairs_and_corrected_for_all_that_was_planned(tmp_path):
    it = setting(tmp_path)
    assert glue.differences(it) == []
    for arm, points in (("uniform", 0.0), ("before", -9.0), ("30 % masked", 1.0)):
        for seed in range(1 if arm == "before" else 4):
            rows = [{"task": task, "score": 70 + points * (1 + 0.1 * seed) + seed} for task in glue.TASKS]
            glue.book(it).add({"arm": arm, "seed": seed}, ledger.Found(rows), 1.0)
    each = glue.differences(it)
    assert [(row["task"], row["arm"], row["pairs"]) for row in each] == [
        (task, "30 % masked", 4) for task in glue.TASKS
    ]
    assert each[0]["difference"] == pytest.approx(1.15)
    alone = standing.p_of(np.array([1.0, 1.1, 1.2, 1.3]))
    assert each[0]["p"] == pytest.approx(8 * alone)  # four arms on two tasks
    assert "over 4 pairs: 30 % masked on CoLA +1.1 [+0.9, +1.4];" in glue.finding(it)


def test_pairs_that_are_alike_but_for_rounding_are_judged_by_their_number():
    same = 0.1 + np.array([0, 1, -1, 2, -2, 1, 0, 1]) * 1e-7
    assert standing.p_of(same) == pytest.approx(2 * 0.5**8)
    assert standing.p_of(same - 0.1) == 1.0
