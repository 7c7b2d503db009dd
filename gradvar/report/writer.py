"""A report folder: written whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gradvar.errors import GradvarError
from gradvar.report.figures import FIGURES
from gradvar.report.result import Decomposition
from gradvar.report.text import summary

CELLS = "cells.parquet"
FILES = (
    "decomposition.json",
    "layers.csv",
    "summary.txt",
    *(f"{name}.{ending}" for name in FIGURES for ending in ("png", "svg")),
    CELLS,
)


def check_writable(out: str | Path, overwrite: bool = False) -> Path:
    """Check, before any work is done, that a report can be written.

    Args:
        out: The folder; it may not exist yet.
        overwrite: Accept a folder that holds a report, and nothing but a report.

    Returns:
        The folder's absolute path.

    Raises:
        GradvarError: If it is a file, is not empty, or cannot be created.
    """
    folder = Path(out).absolute()
    if folder.exists() and not folder.is_dir():
        raise GradvarError(f"--out {out} is a file; give a folder")
    present = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if present and not overwrite:
        raise GradvarError(f"--out {out} is not empty; give another folder, or --overwrite to replace the report in it")
    if foreign := sorted(present - set(FILES)):
        raise GradvarError(f"--out {out} holds '{foreign[0]}', which is no part of a report; give another folder")
    parent = folder.parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise GradvarError(f"--out {out}: {parent} is not a folder that can be written to; give another folder")
    return folder


def write_report(
    result: Decomposition,
    out: str | Path,
    *,
    overwrite: bool = False,
    cells: Mapping[str, Sequence[Any]] | None = None,
) -> Path:
    """Write a report folder: JSON, CSV, text and figures, and optionally the cells.

    Everything is written to a temporary folder beside it, which is then renamed.

    Args:
        result: The decomposition.
        out: The folder.
        overwrite: Replace a report that is there.
        cells: Columns of ``cells.parquet``, a value a cell.

    Returns:
        The folder.

    Raises:
        GradvarError: If the folder cannot be written.
    """
    folder = check_writable(out, overwrite)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError as error:
        raise GradvarError(f"--out {out} cannot be created: {error.strerror}") from error
    try:
        _write_files(result, partial, cells)
        partial.chmod(0o755)
        if folder.exists():
            retired = Path(tempfile.mkdtemp(prefix=f".{folder.name}-old-", dir=folder.parent))
            folder.rename(retired / folder.name)
            partial.rename(folder)
            shutil.rmtree(retired)
        else:
            partial.rename(folder)
    except OSError as error:
        raise GradvarError(f"--out {out} cannot be written: {error.strerror}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _write_files(result: Decomposition, folder: Path, cells: Mapping[str, Sequence[Any]] | None) -> None:
    text = json.dumps(result.to_json(), indent=2, allow_nan=False, ensure_ascii=False)
    (folder / "decomposition.json").write_text(text + "\n", encoding="utf-8")
    result.to_frame().to_csv(folder / "layers.csv", index=False)
    (folder / "summary.txt").write_text(summary(result) + "\n", encoding="utf-8")
    for name in FIGURES:
        figure = result.plot(name)
        figure.savefig(folder / f"{name}.png", dpi=150)
        figure.savefig(folder / f"{name}.svg")
    if cells is not None:
        import pandas

        pandas.DataFrame(dict(cells)).to_parquet(folder / CELLS, index=False)
