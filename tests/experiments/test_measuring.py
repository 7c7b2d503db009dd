"""What the studies of stages share."""

import lzma

import arms
import measuring
import pytest
import regimes
import scaling
import settings

from gradvar import Estimate, GradvarError

WANTED = {"scratch": (1, 4), "adapted": (0,), "published": (0,)}


def setting(folder, only=(), quick=False):
    return settings.Setting(*[folder] * 6, 1, 1, quick, tuple(only))


@pytest.fixture
def text(tmp_path, monkeypatch):
    path = tmp_path / "text.txt"
    path.write_text("one two\n\nthree\n")

    def stages(_, regime):
        if regime == "published":
            raise GradvarError("the encoder is not there")
        return [regimes.Stage(f"{regime}@{step}", path, path, path, 64) for step in (0, 1, 2, 4, 8)]

    monkeypatch.setattr(regimes, "stages", stages)
    return path


def picked(it):
    return [(at, stage.name, stage.max_length) for at, stage in measuring.pick(it, WANTED)]


def test_a_regime_that_is_not_there_is_left_out_with_a_line(tmp_path, text, capsys):
    assert picked(setting(tmp_path)) == [(1, "scratch@1", 64), (4, "scratch@8", 64), (0, "adapted@0", 64)]
    assert capsys.readouterr().out == "published is left out: the encoder is not there\n"
    assert measuring.pick(setting(tmp_path), WANTED)[0][1].train == text


@pytest.mark.parametrize(
    ("only", "names"),
    [
        (["adapted"], ["adapted@0"]),
        (["scratch@8"], ["scratch@8"]),
        (["scratch@8", "adapted"], ["scratch@8", "adapted@0"]),
    ],
)
def test_what_is_named_alone_is_worked_on(tmp_path, text, only, names):
    assert [name for _, name, _ in picked(setting(tmp_path, only))] == names


@pytest.mark.parametrize("only", ["published", "scratch@3"])
def test_where_nothing_is_left_it_is_said(tmp_path, text, only):
    with pytest.raises(GradvarError, match=f"there is no stage of {only} in this experiment"):
        measuring.pick(setting(tmp_path, [only]), WANTED)


def test_everything_is_short_when_quick(tmp_path, text, capsys):
    assert {length for *_, length in picked(setting(tmp_path, quick=True))} == {measuring.SHORT}
    assert "published is left out of --quick" in capsys.readouterr().out


def test_a_long_text_is_cut_at_a_document(tmp_path, monkeypatch):
    path = tmp_path / "long.txt.xz"
    with lzma.open(path, "wt", encoding="utf-8") as file:
        file.write("one\ntwo\n\nthree\n\nfour five\n")
    for most, kept in ((18, "one\ntwo\n\nthree\n"), (10, "one\ntwo\n"), (6, "one\n"), (2, "on\n")):
        monkeypatch.setattr(measuring, "CHARACTERS", most)
        cut = measuring.beginning(setting(tmp_path), path)  # by another name, though the text is the same file
        assert cut.name.endswith("-long.txt")
        assert cut.read_text() == kept
    monkeypatch.setattr(measuring, "CHARACTERS", 26)
    assert measuring.beginning(setting(tmp_path), path) == path


def test_what_is_not_resolved_is_no_number():
    found = measuring.columns({"a": Estimate(1.0, 0.5, 2.0), "b": Estimate(None, 3.0, reason="few")})
    assert found == {"a": 1.0, "a_low": 0.5, "a_high": 2.0, "b": None, "b_low": 3.0, "b_high": None}
    assert [measuring.number({"a": "1.5", "b": ""}, name) for name in "abc"] == [1.5, None, None]


def test_stages_come_by_regime_and_step():
    names = ["published@0", "scratch@1000", "adapted@5", "scratch@200"]
    assert list(measuring.by_stage([{"stage": name} for name in names])) == [
        "scratch@200",
        "scratch@1000",
        "adapted@5",
        "published@0",
    ]


def test_spans_have_no_minus_zero():
    assert [measuring.span(x) for x in ([1.0], [2.0, 1.0], [-0.01, 0.01])] == ["1.0", "1.0 to 2.0", "0.0"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--only", "uniform"], "--only uniform: it is none of"),
        (["--jobs", "-1"], "--jobs -1: give 0 or more"),
        (["--seeds", "0"], "--seeds 0: give 1 or more"),
    ],
)
def test_a_command_line_that_makes_no_sense_is_refused(words, told):
    with pytest.raises(GradvarError, match=told):
        settings.setting("", ["--quick", *words])


def test_where_regimes_race_a_stage_is_refused_and_where_stages_are_measured_it_counts(tmp_path):
    it = settings.Setting(*[tmp_path] * 6, 1, None, True, ("adapted@25", "scratch"))
    with pytest.raises(GradvarError, match="--only adapted@25: here it is one of adapted, published, scratch, mini"):
        arms.wanted(it)
    assert arms.wanted(it, stages=True) == ["adapted", "scratch"]
    with pytest.raises(GradvarError, match="--only adapted@25: here it is one of scratch, scratch-mini"):
        scaling.units(it)
