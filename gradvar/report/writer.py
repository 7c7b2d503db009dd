"""A report folder: written whole or not at all."""

from __future__ import annotations

import json
import os
import signal
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from gradvar.errors import GradvarError
from gradvar.mapnet.files import CONFIG, WEIGHTS
from gradvar.report.comparison import Comparison
from gradvar.report.comparison_figures import COMPARISON_FIGURES
from gradvar.report.comparison_text import comparison_summary
from gradvar.report.figures import FIGURES
from gradvar.report.fit import Fit
from gradvar.report.page import render_page
from gradvar.report.result import Decomposition
from gradvar.report.runs import RunComparison
from gradvar.report.runs_figures import RUNS_FIGURES
from gradvar.report.runs_text import runs_summary
from gradvar.report.text import summary
from gradvar.report.tokens import TokenScores
from gradvar.report.tokens_text import tokens_summary

CELLS = "cells.parquet"
Written = Decomposition | Comparison | TokenScores | Fit | RunComparison


def _files(json_name: str, table: str, figures: Iterable[str]) -> tuple[str, ...]:
    drawn = (f"{name}.{ending}" for name in figures for ending in ("png", "svg"))
    return json_name, table, "summary.txt", "report.html", *drawn


FILES = (*_files("decomposition.json", "layers.csv", FIGURES), CELLS)
COMPARISON_FILES = _files("comparison.json", "proposals.csv", COMPARISON_FIGURES)
TOKENS_FILES = _files("tokens.json", "tokens.csv", ())
FIT_FILES = ("fit.json", "curve.csv", "summary.txt", "curve.png", "curve.svg", CONFIG, WEIGHTS)
RUNS_FILES = _files("runs.json", "runs.csv", RUNS_FIGURES)
"""All that there can be; figures of what runs were not watched for are left out."""
_EVERY = (*FILES, *COMPARISON_FILES, *TOKENS_FILES, *FIT_FILES, *RUNS_FILES)


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
    try:
        if os.path.lexists(folder) and not folder.is_dir():
            raise GradvarError(f"--out {out} is a file; give a folder")
        present = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
        with tempfile.TemporaryDirectory(prefix=".gradvar-", dir=_home(folder)):
            pass
    except OSError as error:
        raise GradvarError(_unwritable(out, error)) from error
    if present and not overwrite:
        raise GradvarError(f"--out {out} is not empty; give another folder, or --overwrite to replace the report in it")
    if foreign := sorted(present - set(_EVERY)):
        raise GradvarError(f"--out {out} holds '{foreign[0]}', which is no part of a report; give another folder")
    return folder


def write_report(
    result: Written,
    out: str | Path,
    *,
    overwrite: bool = False,
    cells: Mapping[str, Sequence[Any]] | None = None,
) -> Path:
    """Write a report folder: JSON, CSV, text, figures and a page of all of it, and optionally the cells.

    Everything is written to a temporary folder first, whose files then take their places by renaming, which
    Ctrl-C does not interrupt.

    Args:
        result: A decomposition, a comparison, the scores of tokens, a fit or runs.
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
        with tempfile.TemporaryDirectory(prefix=".gradvar-", dir=_home(folder)) as temporary:
            partial = Path(temporary) / folder.name
            partial.mkdir()
            _write_files(result, partial, cells)
            _publish(partial, folder)
    except OSError as error:
        raise GradvarError(_unwritable(out, error)) from error
    return folder


def _home(folder: Path) -> Path:
    """Return the folder, or what exists of the path to it: the place where a temporary folder can be renamed from."""
    return next(path for path in (folder, *folder.parents) if path.exists())


def _unwritable(out: str | Path, error: OSError) -> str:
    return f"--out {out} cannot be written ({error.strerror or error}); give another folder"


def _publish(partial: Path, folder: Path) -> None:
    """Rename a whole report into place; a folder that exists stays the same one, as a mount point or link must."""
    with _uninterrupted():
        if not folder.exists():
            folder.parent.mkdir(parents=True, exist_ok=True)
            partial.rename(folder)
            return
        for name in dict.fromkeys(_EVERY):
            if (partial / name).exists():
                (partial / name).replace(folder / name)
            else:
                (folder / name).unlink(missing_ok=True)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Hold Ctrl-C back until the end of the block; only the main thread hears it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    handler = signal.signal(signal.SIGINT, lambda number, frame: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
    if came:
        signal.raise_signal(signal.SIGINT)


def _write_files(result: Written, folder: Path, cells: Mapping[str, Sequence[Any]] | None) -> None:
    figures: dict[str, Figure] = {}
    if isinstance(result, Decomposition):
        names, text = FILES, summary(result)
        figures = {name: result.plot(name) for name in FIGURES}
    elif isinstance(result, Comparison):
        names, text = COMPARISON_FILES, comparison_summary(result)
        figures = {name: result.plot(name) for name in COMPARISON_FIGURES}
    elif isinstance(result, Fit):
        names, text = FIT_FILES, repr(result)
        figures = {"curve": result.plot()}
        result.network.save_pretrained(folder)
    elif isinstance(result, RunComparison):
        names, text = RUNS_FILES, runs_summary(result)
        figures = {name: result.plot(name) for name in result.figures()}
    else:
        names, text = TOKENS_FILES, tokens_summary(result)
    data = json.dumps(result.to_json(), indent=2, allow_nan=False, ensure_ascii=False)
    (folder / names[0]).write_text(data + "\n", encoding="utf-8")
    result.to_frame().to_csv(folder / names[1], index=False)
    (folder / names[2]).write_text(text + "\n", encoding="utf-8")
    if not isinstance(result, Fit):
        (folder / "report.html").write_text(render_page(result), encoding="utf-8")
    for name, figure in figures.items():
        figure.savefig(folder / f"{name}.png", dpi=150)
        figure.savefig(folder / f"{name}.svg")
    if cells is not None:
        import pandas

        pandas.DataFrame(dict(cells)).to_parquet(folder / CELLS, index=False)
