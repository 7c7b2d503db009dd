import json
import os
import signal
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas
import pytest
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure

from gradvar.errors import GradvarError
from gradvar.huggingface.checkpoint import load_checkpoint
from gradvar.huggingface.masked_lm import MaskedLM
from gradvar.report import figures
from gradvar.report.result import Decomposition
from gradvar.report.writer import CELLS, FILES, check_writable, write_report
from gradvar.study import cell_table, decompose
from tests import cases

SENTENCES, MASKS = 6, 3
WITHOUT_CELLS = sorted(set(FILES) - {CELLS})


@dataclass(frozen=True)
class Study:
    checkpoint: Path
    result: Decomposition
    cells: dict


@pytest.fixture(scope="module", params=["bert", pytest.param("modernbert", marks=pytest.mark.full)])
def study(request, tmp_path_factory):
    return make_study(tmp_path_factory.mktemp("study"), request.param)


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    return make_study(tmp_path_factory.mktemp("study"), "bert").result


def make_study(folder, kind):
    """Study sentences of different lengths, weighted by their tokens, in float64."""
    checkpoint = cases.save_checkpoint(folder / "checkpoint", kind)
    text = cases.write_text(folder / "text.txt", documents=4, words=36)
    objective = MaskedLM.from_checkpoint(
        checkpoint, text, max_length=12, dtype="float64", weighting="token", mask_rate=0.3
    )
    result = decompose(objective, sentences=SENTENCES, masks=MASKS)
    return Study(checkpoint, result, cell_table(objective, result))


@pytest.fixture(scope="module")
def report(study, tmp_path_factory):
    return write_report(study.result, tmp_path_factory.mktemp("report") / "a" / "b", cells=study.cells)


def test_every_file_is_written(report):
    assert sorted(path.name for path in report.iterdir()) == sorted(FILES)
    assert [path.name for path in report.parent.iterdir()] == ["b"]
    for path in report.glob("*.png"):
        assert path.read_bytes().startswith(b"\x89PNG")
    for path in report.glob("*.svg"):
        assert ElementTree.parse(path).getroot().tag.endswith("svg")


def is_number(value):
    return isinstance(value, Real) and not isinstance(value, bool)


def check_value(value):
    """V of the schema: numbers in order, or null with the reason why; a bound may be known where the rest is not."""
    assert set(value) <= {"estimate", "low", "high", "reason"}
    parts = [value.get(name) for name in ("low", "estimate", "high")]
    assert all(part is None or is_number(part) for part in parts)
    known = [part for part in parts if part is not None]
    assert known == sorted(known)
    assert (len(known) == 3) != bool(value.get("reason"))


def check_layer(layer):
    assert set(layer) >= {"name", "group", "parameters", "shared_with", "components", "gradient_norm2"}
    assert layer["group"] in ("embedding", "attention", "mlp", "norm", "head", "other")
    assert layer["parameters"] > 0
    for value in (*layer["components"].values(), layer["gradient_norm2"]):
        check_value(value)


KEYS = {
    "components": {"data", "mask"},
    "shares": {"data", "mask"},
    "noise_scale": {"data", "mask", "total"},
    "headroom": {"importance", "position", "stratification"},
}


def refuse_constant(name):
    raise AssertionError(f"{name} in JSON")


def test_the_json_follows_the_schema(report):
    found = json.loads((report / "decomposition.json").read_text(), parse_constant=refuse_constant)
    assert found["schema"] == "gradvar/decomposition/v1"
    assert (found["levels"], found["proposal"]) == (["data", "mask"], "uniform/simple")
    for field, names in KEYS.items():
        assert set(found[field]) == names
        for value in found[field].values():
            check_value(value)
    check_value(found["gradient_norm2"])
    for layer in found["layers"]:
        check_layer(layer)
    advice = found["advice"]
    check_value(advice["variance_ratio_to_one_mask"])
    assert advice["masks_per_sentence"] is None or advice["masks_per_sentence"] >= 1
    assert min(advice["cost_sentence"], advice["cost_mask"]) > 0
    study = {"sentences": SENTENCES, "masks": MASKS, "mask_rate": 0.3, "max_length": 12, "seed": 0}
    study |= {"replacement": [0.8, 0.1, 0.1], "weighting": "token", "engine": "onepass", "dtype": "float64"}
    assert found["study"].items() >= study.items()
    provenance = found["provenance"]
    assert {"command", "versions", "device", "wall_seconds", "cells_per_second"} <= set(provenance)
    assert [len(provenance[name]) for name in ("checkpoint_sha256", "data_sha256")] == [64, 64]
    assert {"gradvar", "torch", "transformers"} <= set(provenance["versions"])


def test_tied_layers_name_each_other(report, study):
    layers = {layer["name"]: layer for layer in json.loads((report / "decomposition.json").read_text())["layers"]}
    name = "bert.embeddings.word_embeddings" if "bert.embeddings.word_embeddings" in layers else None
    name = name or "model.embeddings.tok_embeddings"
    assert [shared.endswith("decoder") for shared in layers[name]["shared_with"]] == [True]
    model = load_checkpoint(study.checkpoint).model
    assert sum(layer["parameters"] for layer in layers.values()) == sum(p.numel() for p in model.parameters())


def test_the_table_starts_with_the_total_of_its_layers(report):
    table = pandas.read_csv(report / "layers.csv")
    found = json.loads((report / "decomposition.json").read_text())
    assert table["layer"].tolist() == ["total", *(layer["name"] for layer in found["layers"])]
    for column in ("parameters", "variance_data", "variance_mask", "gradient_norm2"):
        assert table[column][0] == pytest.approx(table[column][1:].sum(), rel=1e-12)
    for level in ("data", "mask"):
        value = found["components"][level]
        row = table.loc[0, [f"variance_{level}", f"variance_{level}_low", f"variance_{level}_high"]]
        assert row.tolist() == pytest.approx([value["estimate"], value["low"], value["high"]], rel=1e-12)


def test_the_summary_is_what_the_result_says(report, study):
    text = (report / "summary.txt").read_text()
    assert text == repr(study.result) + "\n"
    assert max(map(len, text.splitlines())) <= 80


def test_anyone_can_recompute_the_result_from_the_cells(report, study):
    cells = pandas.read_parquet(report / CELLS)
    model = load_checkpoint(study.checkpoint, dtype="float64").model
    parameters = list(model.parameters())
    gradients = []
    for cell in cells.itertuples():
        ids, positions = np.array(cell.input_ids), np.array(cell.target_positions)
        assert ids[positions].tolist() == cell.target_ids.tolist()
        corrupted = np.array(cell.corrupted_ids)
        assert (np.delete(corrupted, positions) == np.delete(ids, positions)).all()
        logits = model(input_ids=torch.tensor(corrupted)[None]).logits[0, torch.tensor(positions)]
        loss = cell.weight * F.cross_entropy(logits, torch.tensor(cell.target_ids))
        found = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
        gradients.append(torch.cat([gradient.flatten() for gradient in found]))
        assert cell.loss == pytest.approx(loss.item(), rel=1e-9)
        assert cell.grad_norm2 == pytest.approx(gradients[-1].square().sum().item(), rel=1e-9)
    assert cells["mask"].tolist() == list(range(MASKS)) * SENTENCES
    assert cells["weight"].nunique() > 1
    g = torch.stack(gradients).view(SENTENCES, MASKS, -1)
    means = g.mean(dim=1)
    v_mask = (g - means.unsqueeze(1)).square().sum() / (SENTENCES * (MASKS - 1))
    between = (means - means.mean(dim=0)).square().sum() / (SENTENCES - 1)
    norm2 = means.mean(dim=0).square().sum() - between / SENTENCES
    reported = json.loads((report / "decomposition.json").read_text())
    assert reported["components"]["mask"]["estimate"] == pytest.approx(v_mask.item(), rel=1e-9)
    assert reported["components"]["data"]["estimate"] == pytest.approx((between - v_mask / MASKS).item(), rel=1e-9)
    assert reported["gradient_norm2"]["estimate"] == pytest.approx(norm2.item(), rel=1e-9, abs=1e-9 * between.item())


@pytest.fixture
def quick_figures(monkeypatch):
    """Empty figures: where the files go is what these tests are about."""
    for name in figures.FIGURES:
        monkeypatch.setitem(figures.FIGURES, name, lambda result: Figure(figsize=(1, 1)))


def test_a_folder_that_is_not_empty_is_left_alone(result, tmp_path):
    (tmp_path / "summary.txt").write_text("mine")
    with pytest.raises(GradvarError, match="is not empty; give another folder, or --overwrite"):
        write_report(result, tmp_path)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("summary.txt", "mine")]


@pytest.mark.usefixtures("quick_figures")
def test_overwrite_replaces_a_report_whole(result, tmp_path):
    write_report(result, tmp_path / "out", cells={"sentence": [0]})
    (tmp_path / "out" / "summary.txt").write_text("old")
    write_report(result, tmp_path / "out", overwrite=True)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == WITHOUT_CELLS
    assert (tmp_path / "out" / "summary.txt").read_text() != "old"
    assert os.listdir(tmp_path) == ["out"]


def test_overwrite_refuses_what_is_no_part_of_a_report(result, tmp_path):
    (tmp_path / "summary.txt").write_text("old")
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(GradvarError, match=r"holds 'thesis\.tex', which is no part of a report"):
        write_report(result, tmp_path, overwrite=True)
    assert sorted(os.listdir(tmp_path)) == ["summary.txt", "thesis.tex"]


@pytest.mark.usefixtures("quick_figures")
def test_an_empty_folder_is_filled_and_stays_the_same_one(result, tmp_path, monkeypatch):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to("disk")
    monkeypatch.chdir(tmp_path / "disk")
    write_report(result, tmp_path / "link")
    write_report(result, ".", overwrite=True)
    assert sorted(os.listdir(".")) == WITHOUT_CELLS
    assert (tmp_path / "link").is_symlink()


@pytest.mark.usefixtures("quick_figures")
@pytest.mark.parametrize(
    "failure", [RuntimeError("broken"), KeyboardInterrupt(), OSError(28, "No space left on device")]
)
@pytest.mark.parametrize("there", [None, "empty", "report"])
def test_a_failure_in_the_middle_leaves_everything_as_it_was(result, tmp_path, monkeypatch, failure, there):
    def fail(result):
        raise failure

    out = tmp_path / "deep" / "out" if there is None else tmp_path / "out"
    if there:
        out.mkdir()
    if there == "report":
        (out / "summary.txt").write_text("old")
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setitem(figures.FIGURES, "cells", fail)
    expected = GradvarError if isinstance(failure, OSError) else type(failure)
    with pytest.raises(expected, match=r"cannot be written \(No space left" if expected is GradvarError else None):
        write_report(result, out, overwrite=True)
    assert sorted(tmp_path.rglob("*")) == before
    assert there != "report" or (out / "summary.txt").read_text() == "old"


@pytest.mark.parametrize(
    ("out", "words"),
    [
        ("file", "is a file; give a folder"),
        ("dangling", "is a file; give a folder"),
        ("file/out", r"cannot be written \(Not a directory\)"),
        ("x" * 300, r"cannot be written \(File name too long\)"),
    ],
)
def test_what_can_be_no_folder_is_refused_before_any_work(tmp_path, out, words):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "dangling").symlink_to("nowhere")
    with pytest.raises(GradvarError, match=words):
        check_writable(tmp_path / out, overwrite=True)
    assert sorted(os.listdir(tmp_path)) == ["dangling", "file"]


def test_a_place_that_takes_no_files_is_refused_before_any_work(tmp_path, monkeypatch):
    def refuse(*arguments):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.mkdtemp", refuse)
    with pytest.raises(GradvarError, match=r"cannot be written \(Permission denied\); give another folder"):
        check_writable(tmp_path / "out")


def test_the_check_leaves_nothing_behind(tmp_path):
    assert check_writable(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    assert os.listdir(tmp_path) == []


@pytest.mark.usefixtures("undrawn")
def test_an_interruption_waits_until_the_report_is_whole(study, tmp_path, monkeypatch):
    write_report(study.result, tmp_path, overwrite=True)
    replace = Path.replace

    def interrupted(source, target):
        signal.raise_signal(signal.SIGINT)
        return replace(source, target)

    before = {path.name: path.stat().st_ino for path in tmp_path.iterdir()}
    monkeypatch.setattr(Path, "replace", interrupted)
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            write_report(study.result, tmp_path, overwrite=True)
    finally:
        signal.signal(signal.SIGINT, handler)
    after = {path.name: path.stat().st_ino for path in tmp_path.iterdir()}
    assert after.keys() == before.keys()
    assert all(after[name] != before[name] for name in before)
