"""Studies that grow until they are precise enough: what they give, when they stop, and which bound they name."""

import pytest

import gradvar
from gradvar.decomposition.precision import half_widths
from tests import cases


def grow(precision, most=None, sentences=8, population=60, **options):
    """Run a study that may grow; return it with the data of every draw."""
    objective = cases.objective("bert", padded=True, sentences=population)
    draw, drawn = objective.draw, []
    objective.draw = lambda data, draws, seed: drawn.append(list(data)) or draw(data, draws, seed)
    result = gradvar.decompose(
        objective, sentences=sentences, masks=3, precision=precision, max_sentences=most, **options
    )
    return result, drawn


def fixed(sentences, population=60, **options):
    objective = cases.objective("bert", padded=True, sentences=population)
    return gradvar.decompose(objective, sentences=sentences, masks=3, **options)


def test_a_study_that_grew_is_the_study_of_that_size():
    """Sums in another order, hence rounding; every interval included."""
    grown, _ = grow(0.001, most=20)
    whole = fixed(20)
    assert grown.data.tolist() == whole.data.tolist()
    assert grown.losses == pytest.approx(whole.losses, rel=1e-12)
    for found, expected in zip((grown, *grown.layers), (whole, *whole.layers), strict=True):
        for level in ("data", "mask"):
            for end in ("estimate", "low", "high"):
                one, other = (getattr(part.components[level], end) for part in (found, expected))
                assert one == pytest.approx(other, rel=1e-8, abs=1e-12)
    assert grown.gradient_norm2.low == pytest.approx(whole.gradient_norm2.low, rel=1e-8)


def test_it_stops_at_the_first_look_that_is_precise_enough():
    precision = max(half_widths(fixed(24).statistics).values()) * 1.001
    result, _ = grow(precision)
    looks = range(8, len(result.data) + 1, 4)  # groups of a quarter of the first look, at least four
    widths = [max(half_widths(fixed(n).statistics).values()) for n in looks]
    assert len(result.data) in looks
    assert len(result.data) > 8
    assert widths[-1] <= precision < min(widths[:-1])
    assert result.study["sentences"] == len(result.data)
    assert result.study["ended"].endswith(f"every half-width is within --precision {precision:g}")
    assert result.study["ended"] in " ".join(repr(result).split())


def test_it_stops_at_the_bound_and_names_what_is_not_precise_enough():
    result, _ = grow(0.001, most=18)
    assert len(result.data) == 18
    widths = half_widths(result.statistics)
    worst = max(widths, key=widths.get)
    assert result.study["ended"] == (
        f"stopped at --max-sentences 18: the half-width of the {worst} is {widths[worst]:.2g}, over --precision 0.001"
    )
    assert (result.study["precision"], result.study["max_sentences"]) == (0.001, 18)


def test_by_default_it_may_take_all_sentences():
    result, drawn = grow(0.001, population=20)
    assert len(result.data) == 20
    assert "--max-sentences 20" in result.study["ended"]
    assert {datum for data in drawn for datum in data} == set(range(20))


def test_every_sentence_is_measured_once_and_checked_once():
    """The probe, the two of the first chunk for the check, and one for the timing are drawn beside."""
    _, drawn = grow(0.001, most=32)
    assert sum(map(len, drawn)) == 32 + 1 + 2 + 1


def test_a_fixed_study_says_nothing_of_bounds():
    assert not {"precision", "max_sentences", "ended"} & fixed(8).study.keys()
