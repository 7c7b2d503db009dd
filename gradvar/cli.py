"""The command line: parse, call, render. Nothing heavy is imported before it is needed."""

import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gradvar.errors import GradvarError

if TYPE_CHECKING:
    from collections.abc import Callable

    from gradvar.masking.corruption import Replacement

# Typer may bring a click of its own; this is the usage error of whichever it uses.
_UsageError: Any = typer.BadParameter.__base__

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; user errors are one line on stderr and exit code 2."""
    try:
        status = app(args=arguments, prog_name="gradvar", standalone_mode=False)
        if status == 130:  # what typer makes of Ctrl-C
            raise KeyboardInterrupt
    except (typer.Abort, KeyboardInterrupt):
        status = _fail("interrupted; nothing is left half-written", 130)
    except _UsageError as error:
        status = _fail(f"{error.format_message().rstrip('.')}; see gradvar --help", 2)
    except GradvarError as error:
        status = _fail(str(error), 2)
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and "memory" not in str(error):
            raise
        status = _fail("out of memory; lower --memory, --masks or --max-length", 2)
    sys.exit(status if isinstance(status, int) else 0)


def _fail(message: str, status: int) -> int:
    if _speaks():
        typer.echo(f"gradvar: {' '.join(message.split())}", err=True)
    return status


def _speaks() -> bool:
    """Whether this process talks to the user: of those that `torchrun` starts, only the first does."""
    return int(os.environ.get("RANK", "0")) == 0


def _version(value: bool) -> None:
    if value:
        from importlib.metadata import version

        typer.echo(f"gradvar {version('gradvar')}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Where the noise in a pretraining gradient comes from, and what would remove it."""


@app.command()
def decompose(
    checkpoint: Annotated[
        str | None, typer.Option(help="Folder (or hub name) of a masked LM. [default: embedded]")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help=".txt, .jsonl or .parquet (plain, .xz, .gz), or a hub data set. [default: embedded]"),
    ] = None,
    sentences: Annotated[int, typer.Option(help="Sentences sampled from the data.")] = 64,
    masks: Annotated[int, typer.Option(help="Masks of each sentence, at least 2.")] = 8,
    dropout: Annotated[
        int | None, typer.Option(help="Dropouts of each mask, at least 2: a third level. [default: dropout is off]")
    ] = None,
    precision: Annotated[
        float | None, typer.Option(help="Add sentences until half-widths are this part of a cell's variance.")
    ] = None,
    max_sentences: Annotated[int | None, typer.Option(help="Most sentences with --precision. [default: all]")] = None,
    mask_rate: Annotated[float, typer.Option(help="Share of the positions that are targets.")] = 0.15,
    max_length: Annotated[int, typer.Option(help="Tokens of a sentence, special tokens included.")] = 128,
    replacement: Annotated[str, typer.Option(help="Percent mask, random and kept tokens at targets.")] = "80,10,10",
    weighting: Annotated[str, typer.Option(help="sentence or token: what counts the same.")] = "sentence",
    engine: Annotated[str, typer.Option(help="auto, onepass, or reference (slow, any model).")] = "auto",
    dtype: Annotated[str, typer.Option(help="float32 or float64.")] = "float32",
    seed: Annotated[int, typer.Option(help="Seed of every random choice.")] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    memory: Annotated[
        str | None, typer.Option(help="Most memory to hold, like 4GiB. [default: most of the free]")
    ] = None,
    parameters: Annotated[
        str | None, typer.Option(metavar="REGEX", help="Study only parameters with such names.")
    ] = None,
    cost_sentence: Annotated[
        float | None, typer.Option(help="Cost of a new sentence, with --cost-mask. [default: timed]")
    ] = None,
    cost_mask: Annotated[float | None, typer.Option(help="Cost of another mask, same unit. [default: timed]")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the report.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a report in that folder.")] = False,
    save_cells: Annotated[bool, typer.Option("--save-cells", help="Write every cell to cells.parquet.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the JSON, and nothing else, on stdout.")] = False,
    no_pack: Annotated[bool, typer.Option("--no-pack", help="A line a sentence, instead of packed documents.")] = False,
    allow_random_head: Annotated[
        bool, typer.Option("--allow-random-head", help="Accept weights without MLM head.")
    ] = False,
) -> None:
    """Split the gradient variance of a masked LM into data, mask and (--dropout) dropout, layer by layer."""
    corruption = _replacement(replacement)
    _check_numbers(sentences, masks, dropout, mask_rate, max_length, seed)
    if save_cells and out is None:
        raise GradvarError("--save-cells needs --out, the folder to write to")
    if out is not None:
        from gradvar.report.writer import check_writable

        check_writable(out, overwrite)
    from rich.console import Console

    import gradvar.study
    from gradvar import ranks
    from gradvar.persample.memory import parse_memory

    budget = None if memory is None else parse_memory(memory)
    gradvar.study.check_request(engine, parameters, cost_sentence, cost_mask, precision, max_sentences, sentences)
    console = Console(stderr=True, quiet=not _speaks())
    with ranks.started():
        with _status(console, "loading the checkpoint and the data"):
            objective = gradvar.MaskedLM.from_checkpoint(
                gradvar.DEMO_CHECKPOINT if checkpoint is None else checkpoint,
                gradvar.DEMO_TEXT if data is None else data,
                max_length=max_length,
                pack=not no_pack,
                dtype=dtype,
                device=ranks.own_device(device),
                allow_random_head=allow_random_head,
                mask_rate=mask_rate,
                replacement=corruption,
                weighting=weighting,
                dropout=dropout is not None,
            )
        with _Progress(console) as progress:
            result = gradvar.decompose(
                objective,
                sentences=sentences,
                masks=masks if dropout is None else (masks, dropout),
                precision=precision,
                max_sentences=max_sentences,
                seed=seed,
                engine=engine,
                parameters=parameters,
                memory=budget,
                cost_sentence=cost_sentence,
                cost_mask=cost_mask,
                progress=progress,
            )
    if not _speaks():
        return
    folder = None
    if out is not None:
        from gradvar.study import cell_table

        cells = cell_table(objective, result) if save_cells else None
        folder = gradvar.write_report(result, out, overwrite=overwrite, cells=cells)
    if as_json:
        typer.echo(json.dumps(result.to_json(), indent=2, allow_nan=False, ensure_ascii=False))
        return
    from gradvar.report.text import render

    Console(highlight=False).print(render(result))
    if folder is not None:
        names = ", ".join(sorted(path.name for path in folder.iterdir()))
        typer.echo(f"\nwrote {out}: {names}")


def _check_numbers(
    sentences: int, masks: int, dropout: int | None, mask_rate: float, max_length: int, seed: int
) -> None:
    """Refuse impossible numbers before anything is loaded."""
    if sentences < 2:
        raise GradvarError(f"--sentences {sentences}: the data variance needs at least 2 sentences")
    if masks < 2:
        raise GradvarError(f"--masks {masks}: the mask variance is not identifiable with fewer than 2 masks a sentence")
    if dropout is not None and dropout < 2:
        raise GradvarError(f"--dropout {dropout}: the dropout variance is not identifiable with fewer than 2 a mask")
    if not 0 < mask_rate < 1:
        raise GradvarError(f"--mask-rate {mask_rate} is not between 0 and 1")
    if max_length < 1:
        raise GradvarError(f"--max-length {max_length} is not a positive number of tokens")
    if seed < 0:
        raise GradvarError(f"--seed {seed} is negative; give 0 or more")


def _replacement(text: str) -> "Replacement":
    """Parse percentages."""
    try:
        mask, random, keep = (float(part) / 100 for part in text.split(","))
    except ValueError:
        raise GradvarError(f"--replacement '{text}' is not three percentages, like 80,10,10") from None
    from gradvar.masking.corruption import Replacement

    return Replacement(mask, random, keep)


def _status(console: Any, text: str) -> Any:
    """Show a spinner on a terminal, a line elsewhere."""
    if console.is_terminal:
        return console.status(text)
    from contextlib import nullcontext

    console.print(text)
    return nullcontext()


class _Progress:
    """Cells done, cells a second and time left: a bar on a terminal, a line every ten seconds elsewhere."""

    def __init__(self, console: Any) -> None:
        self._console = console
        self._bar: Any = None
        self._task: Any = None
        self._start = self._said = time.monotonic()

    def __enter__(self) -> "Callable[[int, int], None]":
        self._start = self._said = time.monotonic()
        if self._console.is_terminal:
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            self._bar = Progress(
                TextColumn("cells"),
                BarColumn(),
                TextColumn("{task.completed:.0f}/{task.total:.0f}  {task.fields[speed]} cells/s"),
                TimeRemainingColumn(),
                TextColumn("left"),
                console=self._console,
                transient=True,
            )
            self._bar.start()
        return self._update

    def _update(self, done: int, total: int) -> None:
        now = time.monotonic()
        speed = done / max(now - self._start, 1e-9)
        if self._bar is not None:
            if self._task is None:
                self._task = self._bar.add_task("cells", total=total, speed="")
            self._bar.update(self._task, completed=done, speed=f"{speed:.0f}")
        elif now - self._said >= 10 or done == total:
            self._said = now
            left = (total - done) / speed
            self._console.print(f"{done}/{total} cells, {speed:.0f} cells/s, {left:.0f} s left", highlight=False)

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.stop()
