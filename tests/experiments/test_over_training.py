"""The experiment over training: what a share means for speed, where its numbers go, and its figures."""

import over_training
import over_training_figures as figures
import pytest
import regimes

from gradvar import Estimate
from tests import cases

ALL = Estimate(1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("share", "ceiling", "expected"),
    [
        (Estimate(0.8, 0.8, 0.8), Estimate(0.5, 0.5, 0.5), (1 / 0.6, 1 / 0.6, 1 / 0.6)),
        (Estimate(0.8, 0.75, 0.9), ALL, (5, 4, 10)),
        (Estimate(0.5, 0.2, 0.8), Estimate(0.4, 0.0, 0.8), (1.25, 1, 1 / (1 - 0.2 - (0.12**2 + 0.2**2) ** 0.5))),
        (Estimate(0.8, 0.7, 1.0), ALL, (5, 1 / 0.3, None)),
        (Estimate(0.5, 0.4, 0.6), Estimate(-0.1, -0.2, 0.2), (1, 1, 1 / 0.9)),
        (Estimate(None, reason="negative"), ALL, (None, None, None)),
    ],
)
def test_what_is_left_without_a_part_of_the_mask_variance(share, ceiling, expected):
    found = over_training.without(share, ceiling)
    for value, wanted in zip((found.estimate, found.low, found.high), expected, strict=True):
        assert value == (None if wanted is None else pytest.approx(wanted, abs=0.011))


def test_a_study_has_its_totals_and_its_layers(tmp_path):
    text = cases.write_text(tmp_path / "text.txt")
    folder = cases.save_checkpoint(tmp_path / "checkpoint")
    stage = regimes.Stage("scratch@0", folder, text, text, 16)
    book, size = over_training.Book(tmp_path / "over_training.csv"), over_training.Size(5, 4, 4, masks=3)
    for rate in (15, 40):
        book.add({"stage": stage.name, "mask_rate": rate}, over_training.study(stage, rate, size), 1.0)
    usual, other = book.rows()
    assert (usual["sentences"], usual["ceiling_sentences"], other["sentences"]) == ("5", "4", "4")
    assert usual["ceiling_stratification"]
    assert not other["ceiling_importance"]
    layers = [row for row in book.layers.rows() if row["mask_rate"] == "15"]
    assert sum(float(row["mask"]) for row in layers) == pytest.approx(float(usual["mask"]), rel=1e-6)
    assert sum(int(row["parameters"]) for row in layers) == int(usual["parameters"])
    assert book.done({"stage": stage.name, "mask_rate": 40})
    assert not book.done({"stage": stage.name, "mask_rate": 20})


def numbers(stages: int, rates: tuple[int, ...]):
    """Rows of totals and layers; a noise scale has a lower end alone."""

    def estimate(name, value):
        return {name: f"{value:.4g}", f"{name}_low": f"{0.9 * value:.4g}", f"{name}_high": f"{1.05 * value:.4g}"}

    totals, layers = [], []
    for step in range(stages):
        for rate in rates:
            key = {"stage": f"scratch@{100 * step}", "mask_rate": str(rate)}
            row = key | estimate("data", 2 + step) | estimate("mask", 8) | estimate("share", 8 / (10 + step))
            totals.append(row | estimate("norm2", 0.1) | estimate("factor_all", 4) | {"noise_total_low": "90"})
            for name in figures._CEILINGS if rate == 15 else ():
                totals[-1] |= estimate(f"ceiling_{name}", 0.3) | estimate(f"factor_{name}", 1.3)
            layers += [
                key | {"layer": name} | estimate("mask", part) | estimate("share", 0.7)
                for name, part in (("large", 7.99), ("small", 0.01))
            ]
    return totals, layers


@pytest.mark.full  # `test_gallery.py` draws those of the real numbers
@pytest.mark.parametrize(("stages", "rates", "pictures"), [(1, (15,), 3), (3, (15, 30), 4)])
def test_figures_have_the_same_bytes_every_time(tmp_path, stages, rates, pictures):
    made = []
    for name in ("one", "two"):
        figures.draw(*numbers(stages, rates), tmp_path / name)
        made.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()})
    assert made[0] == made[1]
    assert len(made[0]) == 2 * pictures


def test_sentences_say_what_the_numbers_say():
    totals, layers = numbers(5, (15,))
    assert "5 of 5 stages of scratch, falling from 80 % to 57 %" in figures.shares_sentence({"scratch": totals})
    best = figures.ceilings_sentence({"scratch": totals})
    assert best.endswith("5 of 5 stages of scratch (importance sampling, position weights, disjoint masks)")
    alone = {**totals[0], "stage": "scratch@900", "mask_rate": "10"}  # two rates, but not at one stage
    assert "over_training_rates" not in figures.sentences([*totals, alone], layers)
    assert "large (100 %) in scratch@400" in figures.layers_sentence({"scratch": layers})


def test_without_numbers_nothing_is_drawn(tmp_path, capsys):
    figures.draw([], [], tmp_path)
    assert "nothing to draw" in capsys.readouterr().out
