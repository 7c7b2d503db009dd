"""The folder of a run: made for it, held by one process, and taken back where nothing came of it."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from gradvar import checkpoints
from gradvar.errors import GradvarError
from gradvar.metrics import METRICS, read_metrics

RECIPE = "recipe.yaml"
BOARD = "tensorboard"
_LOCK = ".lock"


class _NotOursError(GradvarError):
    """What is in the folder is another process's, or a user's."""


def check_new(out: Path) -> None:
    """Refuse a folder in which there is something.

    Args:
        out: The folder of a run that is to begin.

    Raises:
        GradvarError: If there is.
    """  # noqa: DOC502
    if os.path.lexists(out) and not (out.is_dir() and not any(out.iterdir())):
        raise _there(out)


def check_not_begun(out: Path) -> None:
    """Refuse a folder in which there is another run; what is no part of a run, such as a cache, may be there.

    Args:
        out: The folder of a run that is to begin, held.

    Raises:
        GradvarError: If there is.
    """  # noqa: DOC502
    if checkpoints.whole(out) or any(os.path.lexists(out / name) for name in (RECIPE, METRICS)):
        raise _there(out)


def _there(out: Path) -> GradvarError:
    whole = checkpoints.last_whole(out) if out.is_dir() else None
    go_on = f"go on with gradvar train --resume {out}" if whole else "remove it"
    return _NotOursError(f"--out {out} is there already; {go_on}, or give another folder")


@contextmanager
def made(out: Path, first: bool) -> Iterator[None]:
    """Make a new run's folder for what the block does; take back what it made where that fails before the first log.

    Args:
        out: The folder.
        first: Whether it is to be made, by this process.

    Raises:
        GradvarError: If it cannot be.
    """  # noqa: DOC502
    missing = [path for path in (out.absolute(), *out.absolute().parents) if not os.path.exists(path)]
    try:
        if first:
            with written(out):
                out.mkdir(parents=True, exist_ok=True)
        yield
    except _NotOursError:
        raise
    except BaseException:
        begun = os.path.isdir(out) and (checkpoints.whole(out) or any(x["step"] for x in read_metrics(out)))
        if first and not begun:
            left = (RECIPE, METRICS, f".{METRICS}", BOARD, checkpoints.staging_of(out).name, _LOCK)
            for path in (out / name for name in left):
                if os.path.isdir(path):
                    shutil.rmtree(path, ignore_errors=True)
                elif os.path.exists(path):  # unlike those of Path, no errors where a name is too long
                    path.unlink()
            for path in missing:  # which other runs may be using by now
                with suppress(OSError):
                    path.rmdir()
        raise


@contextmanager
def held(out: Path) -> Iterator[None]:
    """Hold a run's folder, for two processes that write to it would spoil it.

    Args:
        out: The folder.

    Raises:
        GradvarError: If another process does.
    """  # noqa: DOC502
    path = out / _LOCK
    while True:
        with written(out):
            stream = path.open("w")
        with stream:
            _lock(stream, out)
            if not _is_at(path, stream):  # whoever held it let go, and took the file away, before it was locked here
                continue
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return


def _lock(stream: IO[str], out: Path) -> None:
    try:
        fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)  # not handed on to workers; gone with the process
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise _NotOursError(f"{out} is in use by another process; wait for it, or end it") from error
        # Some file systems have no locks.


def _is_at(path: Path, stream: IO[str]) -> bool:
    """Whether an open file is the one that has this path now."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(stream.fileno()))
    except FileNotFoundError:
        return False


@contextmanager
def written(out: Path) -> Iterator[None]:
    """Say in one line why a run's folder cannot be written.

    Args:
        out: The folder.

    Raises:
        GradvarError: If it cannot.
    """
    try:
        yield
    except OSError as error:
        raise GradvarError(f"--out {out} cannot be written ({error.strerror}); give another folder") from error
