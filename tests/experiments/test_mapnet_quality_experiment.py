"""`experiments/mapnet_quality.py`: its rows are what a fit found, and its figure hangs on them alone."""

import ledger
import mapnet_figures as figures
import mapnet_quality as quality
import measuring
import pytest
import regimes
import settings

from gradvar.fitting import Options
from tests import cases


def test_rows_are_what_was_found(tmp_path):
    objective = cases.objective("bert", sentences=76, contexts=2)
    fit = measuring.fit(objective, Options(shape=(("width", 4),)), 136, 8, 0)
    assert (fit.study["sentences"], fit.study["epochs"]) == (68, 2)  # all that there are, twice
    book = ledger.Ledger(tmp_path / "quality.csv")
    book.add({"stage": "scratch@8", **quality.DEFAULT, "seed": 0}, ledger.Found([quality.row_of(fit)]), 1.0)
    (row,) = book.rows()
    found = {name: getattr(fit, name) for name in ("rank_correlation", "ceiling_share", "captured_share")}
    found |= {f"{name}_ceiling_share": share for name, share in fit.others.items()}
    for name, of in found.items():
        ends = (of.estimate, of.low, of.high)
        assert [row[name + end] for end in ("", "_low", "_high")] == ["" if x is None else f"{x:.8g}" for x in ends]
    assert float(row["flops_share"]) == pytest.approx(fit.flops_share)
    assert (row["width"], row["sentences"], row["held_out"], row["contexts"]) == ("4", "68", "8", "2")
    assert figures.is_default(row)


def test_choices_differ_from_the_default_in_one_thing():
    every = list(quality.choices(quick=False))
    assert len(every) == 7
    assert all(sum(choice[name] != usual for name, usual in quality.DEFAULT.items()) == 1 for choice in every)
    assert {name: ledger._text(value) for name, value in quality.DEFAULT.items()} == figures.DEFAULT


@pytest.mark.parametrize(
    ("quick", "seeds", "expected"), [(False, 8, 3 + 3 + 2 + 14), (False, 1, 3 + 14), (True, 8, 3 + 3)]
)
def test_units_are_of_every_stage_and_choices_of_two(tmp_path, quick, seeds, expected):
    it = settings.Setting(*[tmp_path] * 6, 1, seeds, quick)
    places = ((1, "scratch@1"), (4, "scratch@8"), (0, "adapted@0"))
    found = quality.units(it, [(at, regimes.Stage(name, *[tmp_path] * 3, 16)) for at, name in places])
    default = [unit.key for unit in found if quality.DEFAULT.items() <= unit.key.items()]
    assert len({tuple(unit.key.values()) for unit in found}) == len(found) == expected
    assert [unit.key for unit in found[: len(default)]] == default
    assert {key["stage"] for key in default} == {name for _, name in places}
    choices = {unit.key["stage"] for unit in found[len(default) :]}
    assert choices == ({"scratch@1"} if quick else {"scratch@8", "adapted@0"})


def test_widths_are_multiples_of_the_default():
    objective = cases.objective("bert", width=64)
    assert quality.width(objective, 0.5) * 4 == quality.width(objective, 1) * 2 == quality.width(objective, 2)


def row(stage, seed=0, share=(0.3, 0.4, 0.5), **choice):
    low, middle, high = ("", "", "") if share is None else map(str, share)
    found = {"stage": stage, **figures.DEFAULT, **choice, "seed": str(seed), "flops_share": "0.09"}
    for name in figures.SHOWN:
        found |= {name: middle, f"{name}_low": low, f"{name}_high": high}
    return found


ROWS = [
    row("adapted@0", share=(0.55, 0.6, 0.65)),
    row("adapted@0", target="loss", share=(0.61, 0.7, 0.8)),
    row("scratch@8", 0),
    row("scratch@8", 1, (-0.1, 0.3, 0.4)),
    row("scratch@8", target="gradient", share=(0.38, 0.5, 0.6)),
    row("scratch@8", loss="kl", share=(0.1, 0.2, 0.35)),
    row("scratch@8", size="0.5", share=(0.2, 0.35, 0.39)),
    row("scratch@8", size="2", share=None),
    row("scratch@1", share=(-0.2, 0.1, 0.3)),
    row("published@0", share=None),
]


def test_a_stage_is_judged_by_all_its_seeds():
    assert figures.approximates(ROWS) == {
        "scratch@1": "tells nothing of",
        "scratch@8": "tells nothing of",
        "adapted@0": "approximates",
    }
    assert figures.approximates(ROWS[2:3]) == {"scratch@8": "tells something of"}


def test_a_choice_differs_beyond_all_seeds_and_with_its_interval():
    assert figures.differing(ROWS[2:8]) == {"loss kl": "worse"}


def test_findings_tell_stages_together_and_what_is_not_resolved():
    lines = figures.findings(ROWS)
    assert "MAPNet tells nothing of the optimum at scratch@1, scratch@8" in lines
    assert "not resolved at published@0" in lines
    equal = [row("scratch@1", share=(-0.5, -0.3, -0.1)), row("scratch@1", loss="kl", share=(-1e-16, 1e-16, 1e-15))]
    assert figures.differing(equal) == {"loss kl": "better, by equal scores,"}
    assert figures.differing(ROWS[:2]) == {"target loss": "better"}
    assert figures.differing(ROWS[4:8]) == {}  # nothing to compare with


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawn")
    figures.draw(ROWS, folder)
    return folder


def test_the_figure_has_the_same_bytes_every_time(drawn, tmp_path):
    figures.draw(ROWS, tmp_path)
    for file in ("mapnet_quality.png", "mapnet_quality.svg"):
        assert (drawn / file).read_bytes() == (tmp_path / file).read_bytes()


def test_titles_say_what_was_found(drawn):
    shown = (drawn / "mapnet_quality.svg").read_text(encoding="utf-8")
    for title in (
        "10 to 60 % of what weights",
        "scratch@8: worse than the",
        "adapted@0: better than the",
    ):
        assert title in shown


@pytest.mark.parametrize("rows", [ROWS[:1], ROWS[4:6], ROWS[-1:]], ids=["a stage", "choices", "unresolved"])
def test_a_part_of_the_rows_is_drawn(rows, tmp_path, capsys):
    figures.draw(rows, tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    assert "FLOPs of the default: 9.0 % of the encoder's\n" in capsys.readouterr().out or rows == ROWS[4:6]


def test_without_numbers_nothing_is_drawn(tmp_path, capsys):
    figures.draw([], tmp_path)
    assert (list(tmp_path.iterdir()), "no numbers yet" in capsys.readouterr().out) == ([], True)
