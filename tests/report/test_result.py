"""The result as a table, text and figures."""

import numpy as np
import pytest
from matplotlib.figure import Figure

import gradvar
from gradvar.report import figures
from tests import cases


@pytest.fixture(scope="module")
def result():
    return gradvar.decompose(cases.objective("modernbert", padded=True), sentences=12, masks=3)


@pytest.fixture(scope="module")
def unresolved():
    """Two masks of 1 target each in few sentences: neither the data variance nor the signal is resolved."""
    objective = cases.objective("bert", sentences=4, mask_rate=0.1)
    for seed in range(50):
        found = gradvar.decompose(objective, sentences=4, masks=2, seed=seed)
        if found.components["data"].estimate < 0:
            return found
    raise AssertionError("no seed gave a negative estimate")


def test_layers_add_up_to_the_total(result):
    for level in ("data", "mask"):
        parts = sum(layer.components[level].estimate for layer in result.layers)
        assert parts == pytest.approx(result.components[level].estimate, rel=1e-9)
    assert result.parameters == sum(p.numel() for p in cases.model("modernbert").parameters())


def test_tied_layers_name_each_other(result):
    by_name = {layer.name: layer for layer in result.layers}
    assert by_name["model.embeddings.tok_embeddings"].shared_with == ("decoder",)
    assert by_name["decoder"].parameters == 60  # its bias alone; the weight is the embedding's


def test_frame_has_the_total_first_and_a_row_a_layer(result):
    frame = result.to_frame()
    assert list(frame["layer"]) == ["total", *(layer.name for layer in result.layers)]
    row = frame.iloc[0]
    assert row["variance_mask_low"] < row["variance_mask"] < row["variance_mask_high"]
    assert row["share_data"] + row["share_mask"] == pytest.approx(1)


def test_text_says_what_was_measured_within_80_columns(result):
    text = repr(result)
    assert max(map(len, text.splitlines())) <= 80
    assert "12 sentences × 3 masks" in text
    assert str(result.components["mask"]) in text
    assert "best at equal cost" in text


def test_text_gives_the_reason_for_every_value_that_is_missing(unresolved):
    text = " ".join(repr(unresolved).split())
    assert "data variance is estimated as negative" in text


@pytest.mark.parametrize("kind", ["layers", "batch", "cells"])
def test_figures_draw_with_labels_and_a_title(result, unresolved, kind, tmp_path):
    for found in (result, unresolved):
        figure = found.plot(kind)
        assert isinstance(figure, Figure)
        (axes,) = figure.axes
        assert axes.get_xlabel()
        assert axes.get_title(loc="left")
        figure.savefig(tmp_path / f"{kind}.svg")
        assert (tmp_path / f"{kind}.svg").stat().st_size > 1000


def test_layers_figure_shows_every_component(result):
    lines = result.plot("layers").axes[0].lines
    points = [line for line in lines if line.get_marker() in ("o", "<")]
    assert len(points) == 2 * len(result.layers)


def test_many_layers_are_joined_by_block_and_group(result, monkeypatch):
    monkeypatch.setattr(figures, "_MOST_ROWS", 5)
    names = [label.get_text() for label in result.plot("layers").axes[0].get_yticklabels()]
    assert "block 1 attention" in names
    assert "embedding" in names
    assert len(names) == len(set(names)) < len(result.layers)


def test_noise_scales_are_components_over_the_signal():
    """Constant features give a clear signal, so that the noise scale is resolved."""
    objective = cases.objective("bert", sentences=40)
    found = gradvar.decompose(objective, sentences=40, masks=3, parameters="decoder.bias")
    scales = {name: scale.estimate for name, scale in found.noise_scale.items()}
    for level in ("data", "mask"):
        ratio = found.components[level].estimate / found.gradient_norm2.estimate
        assert scales[level] == pytest.approx(ratio)
        assert found.noise_scale[level].low < ratio < found.noise_scale[level].high
    assert scales["data"] + scales["mask"] == pytest.approx(scales["total"])


def test_variance_of_a_batch(result):
    data, mask = result.components["data"].estimate, result.components["mask"].estimate
    assert result.variance(8, 2).estimate == pytest.approx(data / 8 + mask / 16)
    assert result.variance(1).estimate == pytest.approx(data + mask)


def test_results_are_frozen(result):
    with pytest.raises(AttributeError):
        result.proposal = "other"
    assert np.isfinite(result.losses).all()


def test_variances_without_an_interval_and_single_layers_say_why():
    few = gradvar.decompose(cases.objective(), sentences=3, masks=2)
    assert "data variance, mask variance" in repr(few)
    table = few.to_frame()
    assert table["unresolved"].str.contains("variance_mask: an interval needs at least 4 draws of data").all()
    for layer in few.layers:
        assert layer.components["mask"].low is None
