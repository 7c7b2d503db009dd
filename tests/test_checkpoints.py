import json
import os
import shutil
from pathlib import Path

import pytest

from gradvar import checkpoints

FILES = {"model.safetensors": b"weights", "config.json": b"{}", "inner/empty.bin": b""}


def stage(run, step, files=FILES):
    """Write a checkpoint into the staging folder."""
    staging = checkpoints.staging_of(run)
    checkpoints.prepare(staging)
    for name, content in files.items():
        path = checkpoints.folder_of(staging, step) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return staging


def save(run, step, files=FILES):
    checkpoints.publish(stage(run, step, files), run, step)
    return checkpoints.folder_of(run, step)


def contents(folder):
    """All files but the marker."""
    found = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if name != checkpoints.MARKER}


def test_what_is_published_is_whole_and_what_was_written(tmp_path):
    folder = save(tmp_path, 3)
    assert checkpoints.is_whole(folder)
    assert contents(folder) == FILES
    assert os.listdir(tmp_path) == ["checkpoint-3"]


def test_the_marker_names_every_file_with_its_size(tmp_path):
    marker = json.loads((save(tmp_path, 3) / checkpoints.MARKER).read_text())
    assert marker == {"files": {name: len(content) for name, content in FILES.items()}}


def test_everything_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    done = []
    sync, rename = checkpoints._sync, Path.rename

    def note_rename(path, target):
        done.append("renamed")
        return rename(path, target)

    monkeypatch.setattr(checkpoints, "_sync", lambda path: (done.append(path.name), sync(path)))
    monkeypatch.setattr(Path, "rename", note_rename)
    save(tmp_path, 3)
    *synced, marker, folder, renamed, run = done
    assert sorted(synced) == sorted(Path(name).name for name in FILES)
    assert (marker, folder, renamed, run) == (checkpoints.MARKER, "checkpoint-3", "renamed", tmp_path.name)


def grow(folder):
    (folder / "config.json").write_bytes(b"{} ")


def mark(text):
    return lambda folder: (folder / checkpoints.MARKER).write_bytes(text)


DAMAGES = {
    "lost marker": lambda folder: (folder / checkpoints.MARKER).unlink(),
    "lost file": lambda folder: (folder / "config.json").unlink(),
    "lost empty file": lambda folder: (folder / "inner/empty.bin").unlink(),
    "lost folder": lambda folder: shutil.rmtree(folder / "inner"),
    "cut file": lambda folder: os.truncate(folder / "model.safetensors", 6),
    "grown file": grow,
    "empty marker": mark(b""),
    "cut marker": lambda folder: os.truncate(folder / checkpoints.MARKER, 20),
    "list for a marker": mark(b"[]"),
    "nothing for a marker": mark(b"null"),
    "list of files": mark(b'{"files": ["config.json"]}'),
    "other marker": mark(b'{"sizes": {}}'),
    "binary marker": mark(b"\xff\x00"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_not_whole_and_the_one_before_is_taken(tmp_path, damage):
    before, damaged = save(tmp_path, 3), save(tmp_path, 7)
    assert checkpoints.last_whole(tmp_path) == damaged
    DAMAGES[damage](damaged)
    assert not checkpoints.is_whole(damaged)
    assert checkpoints.whole(tmp_path) == [before]
    assert checkpoints.last_whole(tmp_path) == before


def test_checkpoints_come_by_step_not_by_name(tmp_path):
    for step in (100, 9, 20, 1000):
        save(tmp_path, step)
    assert [path.name for path in checkpoints.whole(tmp_path)] == [f"checkpoint-{step}" for step in (9, 20, 100, 1000)]
    assert checkpoints.last_whole(tmp_path) == tmp_path / "checkpoint-1000"


@pytest.mark.parametrize(
    "name",
    ["checkpoint-", "checkpoint-best", "checkpoint-9a", "checkpoint--9", "checkpoint-²", "checkpoint-9.5", "other-9"],
)
def test_other_names_are_no_checkpoints(tmp_path, name):
    """Though their content is whole."""
    own = save(tmp_path, 3)
    shutil.copytree(own, tmp_path / name)
    assert checkpoints.whole(tmp_path) == [own]
    checkpoints.keep_last(tmp_path, 1)
    assert (tmp_path / name).is_dir()


def test_foreign_files_and_folders_are_left_alone(tmp_path):
    """One that another Trainer wrote has no marker."""
    (tmp_path / "checkpoint-9").mkdir()
    (tmp_path / "checkpoint-9" / "model.safetensors").touch()
    (tmp_path / "checkpoint-8").touch()
    own = save(tmp_path, 3)
    assert checkpoints.whole(tmp_path) == [own]
    checkpoints.keep_last(tmp_path, 1)
    assert sorted(os.listdir(tmp_path)) == ["checkpoint-3", "checkpoint-8", "checkpoint-9"]


def test_a_folder_without_checkpoints_has_no_last_one(tmp_path):
    assert checkpoints.last_whole(tmp_path) is None
    assert checkpoints.last_whole(tmp_path / "nowhere") is None


@pytest.mark.parametrize(
    ("count", "also", "left"),
    [
        (1, None, [20]),
        (2, None, [10, 20]),
        (3, None, [9, 10, 20]),
        (9, None, [9, 10, 20]),
        (1, 9, [9, 20]),
        (2, 20, [10, 20]),
    ],
)
def test_the_last_ones_are_kept_and_one_more_if_asked_for(tmp_path, count, also, left):
    for step in (9, 20, 10):
        save(tmp_path, step)
    checkpoints.keep_last(tmp_path, count, None if also is None else checkpoints.folder_of(tmp_path, also))
    assert sorted(os.listdir(tmp_path)) == sorted(f"checkpoint-{step}" for step in left)


def test_a_broken_one_counts_for_none_of_the_kept(tmp_path):
    for step in (9, 10, 20):
        save(tmp_path, step)
    os.truncate(tmp_path / "checkpoint-20" / "model.safetensors", 1)
    checkpoints.keep_last(tmp_path, 2)
    assert [path.name for path in checkpoints.whole(tmp_path)] == ["checkpoint-9", "checkpoint-10"]


def test_a_removal_that_is_interrupted_leaves_no_whole_one(tmp_path, monkeypatch):
    folder = save(tmp_path, 3)
    monkeypatch.setattr(shutil, "rmtree", interrupted)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.remove(folder)
    assert checkpoints.last_whole(tmp_path) is None
    assert [path.name for path in tmp_path.iterdir()] == [".checkpoint-3"]
    monkeypatch.undo()
    checkpoints.prepare(checkpoints.staging_of(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == [".saving"]


def test_a_checkpoint_takes_the_place_of_one_of_the_same_step(tmp_path):
    """Even of a broken one, as an earlier session may have left it."""
    save(tmp_path, 3)
    anew = FILES | {"model.safetensors": b"others"}
    assert contents(save(tmp_path, 3, anew)) == anew
    (tmp_path / "checkpoint-3" / checkpoints.MARKER).unlink()
    assert contents(save(tmp_path, 3)) == FILES
    assert checkpoints.is_whole(tmp_path / "checkpoint-3")


def interrupted(*_, **__):
    raise KeyboardInterrupt


def interrupt(monkeypatch, owner, name, calls):
    """Let so many calls go through."""
    ours, left = getattr(owner, name), [calls]

    def call(*args, **kwargs):
        left[0] -= 1
        return ours(*args, **kwargs) if left[0] >= 0 else interrupted()

    monkeypatch.setattr(owner, name, call)


# A publication syncs three files, the marker and the folder, renames, syncs the run's folder, and removes the staging
# folder; one that replaces another first removes that.
BEFORE = [(os, "fsync", calls) for calls in range(5)] + [(Path, "write_text", 0), (Path, "rename", 0)]
AFTER = [(os, "fsync", 5), (shutil, "rmtree", 0)]


def ids(case):
    return f"{case[1]}-{case[2]}"


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("case", BEFORE + AFTER, ids=ids)
def test_an_interrupted_publication_leaves_the_checkpoint_before_whole(tmp_path, monkeypatch, case, there):
    before = save(tmp_path, 3)
    if there:
        save(tmp_path, 7, {"model.safetensors": b"of another session"})
    staging = stage(tmp_path, 7)
    with monkeypatch.context() as patch:
        interrupt(patch, *case)
        with pytest.raises(KeyboardInterrupt):
            checkpoints.publish(staging, tmp_path, 7)
    assert contents(before) == FILES
    assert checkpoints.is_whole(before)
    for path in checkpoints.whole(tmp_path)[1:]:
        assert contents(path) in (FILES, {"model.safetensors": b"of another session"})
    assert contents(save(tmp_path, 7)) == FILES
    assert [path.name for path in checkpoints.whole(tmp_path)] == ["checkpoint-3", "checkpoint-7"]
    assert sorted(os.listdir(tmp_path)) == ["checkpoint-3", "checkpoint-7"]


@pytest.mark.parametrize("case", BEFORE, ids=ids)
def test_what_is_not_yet_published_is_not_there(tmp_path, monkeypatch, case):
    staging = stage(tmp_path, 7)
    interrupt(monkeypatch, *case)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.publish(staging, tmp_path, 7)
    assert checkpoints.last_whole(tmp_path) is None


@pytest.mark.parametrize("case", AFTER, ids=ids)
def test_what_is_published_stays_whatever_comes_after(tmp_path, monkeypatch, case):
    staging = stage(tmp_path, 7)
    interrupt(monkeypatch, *case)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.publish(staging, tmp_path, 7)
    assert contents(checkpoints.last_whole(tmp_path)) == FILES


def test_a_disk_that_is_full_is_told_and_nothing_is_there(tmp_path, monkeypatch):
    staging = stage(tmp_path, 7)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoints.publish(staging, tmp_path, 7)
    assert checkpoints.last_whole(tmp_path) is None


def test_the_staging_folder_begins_empty(tmp_path):
    staging = stage(tmp_path, 3)
    stage(tmp_path, 7)
    assert os.listdir(staging) == ["checkpoint-7"]
    checkpoints.discard(staging)
    assert os.listdir(tmp_path) == []
