"""`experiments/proposals.py`: its rows are what `compare` found, and its figures hang on them alone."""

import re

import ledger
import proposals
import proposals_figures as figures
import pytest

import gradvar
from tests import cases


@pytest.fixture(scope="module")
def compared():
    asked = ["frequency/midzuno", "frequency/pps~0.1", "uniform/disjoint:2", "uniform/simple@0.3"]
    return gradvar.compare(cases.objective("bert", mask_rate=0.2), asked, sentences=4, masks=4)


def test_rows_are_what_was_found(compared, tmp_path):
    book = ledger.Ledger(tmp_path / "proposals.csv")
    book.add({"stage": "scratch@8"}, ledger.Found(proposals.rows_of(compared, {"sentences": 4})), 1.0)
    stage, *rows = book.rows()
    assert (stage["kind"], stage["sentences"], stage["proposal"]) == ("stage", "4", "")
    assert [row["proposal"] for row in rows] == [row.proposal for row in compared.proposals]
    missing = 0
    for written, row in zip(rows, compared.proposals, strict=True):
        assert written["unbiased"] == str(row.declared_unbiased)
        for name, estimate in row.estimates().items():
            for end, value in (("", estimate.estimate), ("_low", estimate.low), ("_high", estimate.high)):
                assert written[name + end] == ("" if value is None else f"{value:.8g}")
                missing += value is None
    assert missing > 8  # no largest weight has an interval
    about = {f"{name}_ceiling": of for name, of in compared.headroom.items()}
    about |= {"mask_variance": compared.variance["mask"], "gradient_norm2": compared.variance["gradient_norm2"]}
    for name, of in about.items():
        ends = (of.estimate, of.low, of.high)
        assert [stage[name + end] for end in ("", "_low", "_high")] == ["" if x is None else f"{x:.8g}" for x in ends]


def test_the_loss_is_that_of_uniform_masks():
    objective = cases.objective("bert")
    found = proposals.loss(objective, 8)
    assert found.low < found.estimate < found.high
    assert found == proposals.loss(objective, 8) != proposals.loss(objective, 6)
    assert proposals.loss(objective).estimate == pytest.approx(proposals.loss(objective, 12).estimate, rel=1e-12)


def test_everything_is_compared_once():
    every = proposals.field(6)
    assert len(set(every)) == len(every)
    assert {"uniform/disjoint:2", "uniform/disjoint:6", "oracle/pool:4", *proposals.FITTED} < set(every)
    assert [name for name in every if "@" in name] == [f"uniform/simple@0.{rate}" for rate in range(1, 6)]
    assert not any("disjoint" in name for name in proposals.field(1))


def arm(stage, proposal, ratio, gain=None, error=None):
    """A row: ratio and gains with their intervals."""
    score, _, design = proposal.partition("/")
    row = {"stage": stage, "kind": "proposal", "proposal": proposal, "score": score, "design": design}
    for name, ends in {"variance_ratio": ratio, "batch_gain_at_batch": gain, "efficiency_at_batch": error}.items():
        low, middle, high = ("", "", "") if ends is None else map(str, ends)
        row |= {name: middle, f"{name}_low": low, f"{name}_high": high}
    return row | {"efficiency_without_scoring": "1.01"}


def about(stage):
    return {"stage": stage, "kind": "stage", "loss": "5.25", "importance_ceiling": "0.02", "position_ceiling": "0.1"}


LESS, MORE, OPEN = (0.97, 0.98, 0.99), (1.01, 1.02, 1.03), (0.9, 0.98, 1.1)
ROWS = [
    about("adapted@4"),
    arm("adapted@4", "uniform/simple", (1, 1, 1), (1, 1, 1), (1, 1, 1)),
    arm("adapted@4", "oracle/midzuno", LESS, (0.1, 0.2, 0.3), (0.1, 0.2, 0.3)),
    arm("adapted@4", "oracle/pps~0.1", (0.85, 0.9, 0.95), None, None),
    arm("adapted@4", "mapnet/pps~0.1", (0.9, 0.92, 0.94), None, (1.02, 1.05, 1.08)),
    arm("adapted@4", "mapnet-permuted/pps~0.1", (0.91, 0.95, 1.2), None, (0.9, 1, 1.1)),
    arm("adapted@4", "uniform/disjoint:2", (0.8, 0.9, 0.95), (1.01, 1.1, 1.2), (1.01, 1.1, 1.2)),
    about("scratch@10"),
    arm("scratch@10", "oracle/midzuno", OPEN, (0.1, 0.2, 0.3), None),
    arm("scratch@10", "uniform/disjoint:2", (0.8, 0.9, 0.95), (1.01, 1.1, 1.2), None),
    about("scratch@2"),
    arm("scratch@2", "oracle/midzuno", MORE, (0.1, 0.2, 0.3), None),
    arm("scratch@2", "uniform/disjoint:2", (0.8, 0.9, 0.95), (0.99, 1.1, 1.2), None),
    arm("scratch@2", "uniform/simple@0.3", (0.5, 0.6, 5), (1.1, 1.2, 1.3), None),
]


def test_an_arm_pays_where_it_does_at_all_stages_of_a_regime():
    assert figures.paying(ROWS) == {
        "scratch": [],
        "adapted": [("mapnet/pps~0.1", False), ("uniform/disjoint:2", True)],
    }


def test_findings_count_the_stages_with_less_variance():
    lines = figures.findings(ROWS)
    part = "% of the mask variance"
    assert f"oracle/midzuno: less variance at 1 of 3 stages; it removes -2.0 to 2.0 {part}" in lines
    assert f"oracle/pps~0.1: less variance at 1 of 1 stages; it removes 10.0 {part}" in lines
    assert "mapnet/pps~0.1: less than its placebo at 1 of 1 stages" in lines
    assert "oracle/pool:4: not measured" in lines
    assert f"ceiling of importance: 2.0 {part}" in lines
    assert "scratch: at equal cost no arm beats uniform masks at all stages" in lines


def test_headlines_count_cases_and_name_what_pays():
    assert "true norms in weights of positions in 1 of 1 cases, by 10.0 %" in figures.less_variance(ROWS)
    assert "mapnet/pps~0.1, uniform/disjoint:2 (adapted, 1 stage) beat uniform" in figures.at_equal_cost(ROWS)
    assert "no arm beats" in figures.at_equal_cost([row for row in ROWS if row["stage"].startswith("scratch")])


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    return draw_of(ROWS, tmp_path_factory.mktemp("drawn"))


def draw_of(rows, folder):
    figures.draw(rows, folder)
    return folder


FILES = ["proposals.png", "proposals.svg", "proposals_cost.png", "proposals_cost.svg"]


@pytest.mark.full  # `test_gallery.py` draws those of the real numbers
def test_figures_have_the_same_bytes_every_time(drawn, tmp_path):
    figures.draw(ROWS, tmp_path)
    assert sorted(path.name for path in drawn.iterdir()) == FILES
    assert [(drawn / file).read_bytes() == (tmp_path / file).read_bytes() for file in FILES] == [True] * 4


def title_of(figure):
    """All of its words: a title is broken into lines."""
    return " ".join(re.findall(r"<text[^>]*>([^<]*)</text>", figure.read_text(encoding="utf-8")))


def test_titles_say_what_was_found(drawn):
    shown = title_of(drawn / "proposals.svg")
    assert "true norms in exact weights in 1 of 3 cases, by 2.0 %" in shown
    assert "a MAPNet in weights of positions in 1 of 1 cases, by 8.0 %" in shown
    assert "At equal cost mapnet/pps~0.1, uniform/disjoint:2 (adapted, 1 stage) beat" in title_of(
        drawn / "proposals_cost.svg"
    )


@pytest.mark.parametrize("rows", [ROWS[:3], ROWS[-2:]], ids=["an arm", "no stage"])
def test_a_part_of_the_rows_is_drawn(rows, tmp_path):
    figures.draw(rows, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == FILES
    beaten = "uniform/simple@0.3 (scratch, 1 stage) beats" if rows == ROWS[-2:] else "no arm beats"
    assert f"At equal cost {beaten} uniform masks" in title_of(tmp_path / "proposals_cost.svg")


def test_without_numbers_nothing_is_drawn(tmp_path, capsys):
    figures.draw([], tmp_path)
    assert (list(tmp_path.iterdir()), "no numbers yet" in capsys.readouterr().out) == ([], True)
