"""Checkpoints of a run: written under another name, synced, renamed; whole or not there. Knows no trainer."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

PREFIX = "checkpoint-"
MARKER = "complete.json"
"""Written last, with the sizes of all other files: where some of them were lost, the checkpoint is no whole one."""
STATE = "gradvar_state.json"
"""What a checkpoint knows beside weights, optimizer, schedule and random numbers."""


def folder_of(run: Path, step: int) -> Path:
    """Return where the checkpoint of a step lies."""
    return run / f"{PREFIX}{step}"


def step_of(checkpoint: Path) -> int:
    """Return the step of a checkpoint."""
    return int(checkpoint.name.removeprefix(PREFIX))


def trained_length(checkpoint: Path) -> int | None:
    """Return the tokens of a sequence that a checkpoint was trained with; None where it is not known."""
    try:
        return int(json.loads((checkpoint / STATE).read_text())["max_length"])
    except (OSError, ValueError, LookupError, TypeError):
        return None


def staging_of(run: Path) -> Path:
    """Return the folder in which a checkpoint is written before it takes its place, the same for all ranks."""
    return run / ".saving"


def prepare(staging: Path) -> None:
    """Make the staging folder anew, without what an interrupted attempt left."""
    for left in (staging, *staging.parent.glob(f".{PREFIX}*")):
        shutil.rmtree(left, ignore_errors=True)
    staging.mkdir(parents=True)


def discard(staging: Path) -> None:
    """Remove the staging folder."""
    shutil.rmtree(staging, ignore_errors=True)


def publish(staging: Path, run: Path, step: int) -> None:
    """Sync a checkpoint in the staging folder to the disk, mark it whole, and rename it into place.

    Args:
        staging: Where it was written.
        run: The run's folder.
        step: Of the checkpoint.
    """
    partial, place = folder_of(staging, step), folder_of(run, step)
    seal(partial)
    if place.exists():  # of the same step, from before a resume; it goes with the staging folder
        place.rename(staging / "before")
    partial.rename(place)
    _sync(run)
    discard(staging)


def seal(folder: Path) -> None:
    """Sync all files of a folder to the disk, and mark it whole."""
    sizes = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        _sync(path)
        sizes[str(path.relative_to(folder))] = path.stat().st_size
    (folder / MARKER).write_text(json.dumps({"files": sizes}, indent=1) + "\n")
    _sync(folder / MARKER)
    _sync(folder)


def is_whole(folder: Path) -> bool:
    """Whether a checkpoint has its marker, and all files that it names in their sizes."""
    try:
        sizes = json.loads((folder / MARKER).read_text())["files"]
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return False


def whole(run: Path) -> list[Path]:
    """List the whole checkpoints of a run, by step."""
    named = [path for path in run.glob(f"{PREFIX}*") if path.name.removeprefix(PREFIX).isdecimal()]
    return sorted((path for path in named if path.name.isascii() and is_whole(path)), key=step_of)


def last_whole(run: Path) -> Path | None:
    """Find the last whole checkpoint of a run."""
    found = whole(run)
    return found[-1] if found else None


def keep_last(run: Path, count: int, also: Path | None = None) -> None:
    """Remove all but the last whole checkpoints.

    Args:
        run: The run's folder.
        count: How many stay.
        also: One that stays as well.
    """
    for path in whole(run)[:-count]:
        if path != also:
            remove(path)


def remove(folder: Path) -> None:
    """Remove a checkpoint so that none of it is ever taken for a whole one."""
    removed = folder.with_name(f".{folder.name}")
    if removed.exists():
        shutil.rmtree(removed, ignore_errors=True)
    folder.rename(removed)
    shutil.rmtree(removed, ignore_errors=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
