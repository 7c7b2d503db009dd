"""The folder of a run: one process holds it, whenever another leaves it, and takes back only what is its own."""

import fcntl

import pytest

from gradvar.errors import GradvarError
from gradvar.training.folder import check_not_begun, held, made
from tests.training import runs


def refused(out):
    """Whether another process, which is forked from this one, is told that a folder is in use."""

    def hold():
        try:
            with held(out):
                return 1
        except GradvarError as error:
            return 0 if "is in use by another process" in str(error) else 2

    return runs.forked(hold) == [0]


def leaving(monkeypatch, leave):
    """Let another holder leave a folder between the opening of its lock file and the lock; returns the locks taken."""
    lock, taken = fcntl.lockf, []

    def lockf(stream, how):
        if not taken:
            leave()
        taken.append(how)
        return lock(stream, how)

    monkeypatch.setattr(fcntl, "lockf", lockf)
    return taken


@pytest.mark.parametrize("then", ["nothing", "a file of the next"])
def test_a_folder_is_held_by_the_lock_file_that_is_there(tmp_path, monkeypatch, then):
    """Not by that of a holder who has left, and has taken it away: the next to come would make one of its own."""
    path = tmp_path / ".lock"
    path.touch()  # the holder's

    def leave():
        path.unlink()
        if then != "nothing":
            path.touch()

    taken = leaving(monkeypatch, leave)
    with held(tmp_path):
        assert refused(tmp_path)
        assert len(taken) == 2
    assert not path.exists()


def test_a_folder_is_held_once_and_let_go(tmp_path):
    with held(tmp_path):
        assert refused(tmp_path)
        assert (tmp_path / ".lock").exists()
    assert not refused(tmp_path)


def test_what_came_in_the_meantime_is_left_alone(tmp_path):
    """A recipe that somebody put there while this process prepared its data, before a step was logged."""
    out = tmp_path / "run"

    def begin():
        with made(out, True):
            (out / "recipe.yaml").touch()
            with held(out):
                check_not_begun(out)

    with pytest.raises(GradvarError, match="is there already; remove it, or give another folder"):
        begin()
    assert [path.name for path in out.iterdir()] == ["recipe.yaml"]


def test_what_another_process_made_is_left_to_it(tmp_path):
    """Two runs begin in one folder at once: the second one is told, and takes nothing back that is the first one's."""
    out = tmp_path / "run"

    def second():
        try:
            with made(out, True), held(out):
                return 1
        except GradvarError as error:
            return 0 if "is in use by another process" in str(error) else 2

    with made(out, True), held(out):
        (out / "recipe.yaml").touch()
        assert runs.forked(second) == [0]
        assert sorted(path.name for path in out.iterdir()) == [".lock", "recipe.yaml"]
        assert refused(out)
