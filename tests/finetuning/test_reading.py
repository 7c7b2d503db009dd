"""Task files and hub data sets are read alike, and what is wrong with one is told with its place."""

import gzip
import re

import datasets
import pytest

from gradvar.errors import GradvarError
from gradvar.finetuning.reading import read_task
from gradvar.finetuning.tasks import TASKS, parse_tasks
from tests.finetuning import files


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("xz", [False, True])
def test_the_official_columns(tmp_path, name, xz):
    task = TASKS[name]
    found = read_task(task, str(files.write(tmp_path, name, xz=xz)))
    for seed, examples in enumerate((found.train, *found.dev.values())):
        expected = files.examples(task, len(examples.labels), seed)
        assert list(zip(examples.texts, examples.labels, strict=True)) == expected
    assert list(found.dev) == list(task.dev)


def test_folders_as_glue_unpacks_them(tmp_path):
    flat, deep = files.write(tmp_path / "flat", "rte"), tmp_path / "deep" / "RTE"
    deep.mkdir(parents=True)
    for part in ("train", "dev"):
        deep.joinpath(f"{part}.tsv.gz").write_bytes(gzip.compress((flat / f"RTE.{part}.tsv").read_bytes()))
    one, other, inner = (read_task(TASKS["rte"], str(place)) for place in (flat, deep.parent, deep))
    assert one.sha256 == other.sha256 == inner.sha256


def test_cola_without_its_header(tmp_path):
    files.write(tmp_path / "with", "cola")
    files.write(tmp_path / "without", "cola")
    for path in (tmp_path / "without").iterdir():
        path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))
    one, other = (read_task(TASKS["cola"], str(tmp_path / name)) for name in ("with", "without"))
    assert one.sha256 == other.sha256


@pytest.mark.parametrize("name", TASKS)
def test_a_hub_data_set_gives_the_same_examples(tmp_path, monkeypatch, name):
    task = TASKS[name]
    local = read_task(task, str(files.write(tmp_path, name)))
    asked = []

    def load_dataset(source, configuration, split):
        asked.append((source, configuration, split))
        part = ["train", *task.hub_dev].index(split)
        examples = (local.train, *local.dev.values())[part]
        columns = dict(zip(task.hub_texts or task.texts, zip(*examples.texts, strict=True), strict=True))
        labels = [x if task.labels is None else int(x) for x in examples.labels]
        return datasets.Dataset.from_dict(columns | {"label": labels})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert read_task(task, "nyu-mll/glue").sha256 == local.sha256
    assert asked == [("nyu-mll/glue", name, split) for split in ("train", *task.hub_dev)]


def test_a_hub_that_does_not_answer(monkeypatch):
    def load_dataset(*_, **__):
        raise ConnectionError("no network\nat all")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(GradvarError, match=re.escape("the hub does not give it (no network)")):
        read_task(TASKS["rte"], "nyu-mll/glue")


def test_other_examples_have_another_hash(tmp_path):
    one = read_task(TASKS["sst2"], str(files.write(tmp_path / "one", "sst2")))
    other = read_task(TASKS["sst2"], str(files.write(tmp_path / "other", "sst2", dev=31)))
    assert one.sha256 != other.sha256


def test_rows_with_too_few_columns_are_counted(tmp_path):
    files.write(tmp_path, "qqp", train=300)
    with (tmp_path / "QQP.train.tsv").open("a") as stream:
        stream.write("17\t18\tonly half of a question\n")
    found = read_task(TASKS["qqp"], str(tmp_path))
    assert (len(found.train.labels), found.train.broken) == (300, 1)


def test_empty_texts_are_counted_and_kept(tmp_path):
    """Each held-out example is to be scored, by the rules of GLUE."""
    path = files.write(tmp_path, "rte", dev=300) / "RTE.dev.tsv"
    path.write_text(path.read_text() + "7\t \tw1 w2\tentailment\n")
    found = read_task(TASKS["rte"], str(tmp_path))
    assert (found.train.empty, found.dev["dev"].empty, len(found.dev["dev"].labels)) == (0, 1, 301)


@pytest.mark.parametrize("name", ["cola", "stsb"])
def test_held_out_labels_that_are_alike(tmp_path, name):
    """Matthews' and the other correlations say nothing of them."""
    path = files.write(tmp_path, name, dev=12) / f"{TASKS[name].files}.dev.tsv"
    first, *rows = path.read_text().splitlines(keepends=True)
    path.write_text(first + rows[0] * 2)
    with pytest.raises(GradvarError, match=re.escape(f"{path}: all labels are alike, so there is nothing to learn")):
        read_task(TASKS[name], str(tmp_path))


def damaged(text, old, new):
    assert old in text
    return text.replace(old, new, 1)


SST2 = "sentence\tlabel\n"
BAD = {
    "label": ("sst2", lambda t: damaged(t, "\t1\n", "\tgood\n"), "line 3: the label 'good' is none of sst2's, which"),
    "test set": ("rte", lambda t: t.replace("\tentailment", "\t-1"), "is it the file of another task, or of a test"),
    "column": ("sst2", lambda t: damaged(t, "sentence\tlabel", "text\tlabel"), "no column 'sentence'; there are text"),
    "score": ("stsb", lambda t: damaged(t, "\t5.000\n", "\t5.001\n"), "'5.001' is no score of stsb (0 to 5)"),
    "words for scores": ("stsb", lambda t: damaged(t, "\t5.000\n", "\tfive\n"), "'five' is no score of stsb"),
    "commas": ("rte", lambda t: t.replace("\t", ","), "there is no column 'sentence1'"),
    "few columns": ("sst2", lambda t: t.replace("\t1\n", "\n"), "32 of its rows have too few columns"),
    "empty": ("sst2", lambda t: "", "is empty"),
    "header alone": ("sst2", lambda t: SST2, "holds 0 examples; give 2 at least"),
    "one label": ("sst2", lambda t: t.replace("\t1\n", "\t0\n"), "all labels are alike"),
    "no texts": (
        "rte",
        lambda t: re.sub(r"w\d+ ?", "", t),
        "64 of its rows have an empty text; is it the right column?",
    ),
    "binary": ("sst2", lambda t: t + "\udcff", "is not UTF-8"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_files(tmp_path, what):
    name, damage, message = BAD[what]
    path = files.write(tmp_path, name) / f"{TASKS[name].files}.train.tsv"
    path.write_bytes(damage(path.read_text()).encode("utf-8", "surrogateescape"))
    with pytest.raises(GradvarError, match=re.escape(message)) as error:
        read_task(TASKS[name], str(tmp_path))
    assert str(path) in str(error.value)


@pytest.mark.parametrize("ending", [".xz", ".gz"])
def test_a_broken_archive(tmp_path, ending):
    path = files.write(tmp_path, "sst2") / "SST-2.dev.tsv"
    path.rename(tmp_path / f"SST-2.dev.tsv{ending}")
    with pytest.raises(GradvarError, match="cannot be read"):
        read_task(TASKS["sst2"], str(tmp_path))


def test_a_missing_part_says_where_it_was_looked_for(tmp_path):
    (files.write(tmp_path, "mnli") / "MNLI.dev_mismatched.tsv").unlink()
    message = "has no dev_mismatched part of mnli: no MNLI.dev_mismatched.tsv or MNLI/dev_mismatched.tsv"
    with pytest.raises(GradvarError, match=re.escape(message)):
        read_task(TASKS["mnli"], str(tmp_path))


@pytest.mark.parametrize(("data", "message"), [("/no/such", "is no folder"), ("{file}", "is a file")])
def test_no_folder(tmp_path, data, message):
    (tmp_path / "file").write_text("")
    with pytest.raises(GradvarError, match=message):
        read_task(TASKS["rte"], data.format(file=tmp_path / "file"))


def test_lists_of_tasks():
    assert [task.name for task in parse_tasks("SST-2, CoLA")] == ["sst2", "cola"]
    assert parse_tasks("all") == tuple(TASKS.values())
    for text, message in (
        ("sst3", "did you mean 'sst2'"),
        ("", "there are cola"),
        ("rte,RTE", "names rte twice"),
    ):
        with pytest.raises(GradvarError, match=message):
            parse_tasks(text)
