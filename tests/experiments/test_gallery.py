"""Every picture in `figures/` has its numbers and where they come from, and is what `make figures` draws from them."""

import csv
import importlib.metadata
import re
import shutil
from pathlib import Path

import ledger
import pytest
import settings

import figures

ROOT = Path(__file__).parents[2]
FIGURES = ROOT / "figures"

PICTURES = {name: each for each in figures.EXPERIMENTS for name in each.pictures}
THERE = sorted(path.stem for path in FIGURES.glob("*.png"))
BOOKS = sorted(path for path in FIGURES.glob("*.csv") if not path.name.endswith(".provenance.csv"))


def rows(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def pinned():
    """Whether the libraries that draw are those of the constraints."""
    wanted = dict(re.findall(r"^([\w-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    return all(importlib.metadata.version(name) == wanted[name] for name in ("matplotlib", "numpy", "scipy"))


def test_a_picture_belongs_to_an_experiment_whose_numbers_are_there():
    for name in THERE:
        assert (FIGURES / f"{name}.svg").exists(), name
        assert f"![{name}]({name}.png)" in (FIGURES / figures.GALLERY).read_text(encoding="utf-8")
        assert Path(PICTURES[name].module.__file__).name in PICTURES[name].command
        assert any(name.startswith(book.name.split(".")[0]) for book in BOOKS), name


@pytest.mark.parametrize("path", BOOKS, ids=lambda path: path.name)
def test_every_row_names_a_unit_of_work_with_all_facts(path):
    stem = path.name.split(".")[0]
    facts = rows(FIGURES / f"{stem}.provenance.csv")
    key = [name for name in facts[0] if name not in ledger.FACTS]
    units = {tuple(row[name] for name in key) for row in facts}
    assert len(units) == len(facts)
    filled = [{name: row[name] for name in key if row[name]} for row in facts]
    assert all(any(unit.items() <= row.items() for unit in filled) for row in rows(path))
    for row in facts:
        assert all(row[name] for name in ("seconds", "device", "command", "commit", "versions"))
        assert row["command"].startswith("python experiments/")
        assert "/" not in row["command"].removeprefix("python experiments/")


def test_a_stage_has_the_same_weights_wherever_it_was_measured():
    weights = {}
    for path in FIGURES.glob("*.provenance.csv"):
        for row in rows(path):
            if row.get("stage"):
                weights.setdefault(row["stage"], set()).add(row["checkpoint"])
    assert weights
    assert {stage: found for stage, found in weights.items() if len(found) > 1} == {}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("figures")
    for path in FIGURES.glob("*.csv"):
        shutil.copy(path, folder)
    it = settings.setting("", ["--draw", "--figures", str(folder)])[0]
    for each in figures.EXPERIMENTS:
        each.module.draw(it)
    (folder / figures.GALLERY).write_text(figures.gallery(it), encoding="utf-8")
    return folder


def test_the_tables_of_the_pages_are_those_of_the_numbers(tmp_path):
    it = settings.setting("", ["--draw", "--figures", str(FIGURES)])[0]
    for page, parts in figures.tables.PAGES.items():
        if (ROOT / "docs" / page).exists():
            shutil.copy(ROOT / "docs" / page, tmp_path)
            figures.pages.fill(tmp_path / page, {name: write(it) for name, write in parts.items()})
            assert (tmp_path / page).read_text() == (ROOT / "docs" / page).read_text(), "run make figures"


@pytest.mark.skipif(not pinned(), reason="other versions of the drawing libraries than in constraints.txt")
def test_pictures_and_gallery_are_drawn_to_the_same_bytes(drawn):
    for path in drawn.iterdir():
        assert path.read_bytes() == (FIGURES / path.name).read_bytes(), path.name
    assert {path.name for path in drawn.iterdir()} == {path.name for path in FIGURES.iterdir()}
