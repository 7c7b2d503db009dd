"""The command line: its commands, and what becomes of errors. Nothing heavy is imported before it is needed."""

import sys
from typing import Annotated, Any

import typer

from gradvar.commands.compare import compare
from gradvar.commands.decompose import decompose
from gradvar.commands.finetune import finetune
from gradvar.commands.fit_mapnet import fit_mapnet
from gradvar.commands.runs import runs
from gradvar.commands.tokens import tokens
from gradvar.commands.train import train
from gradvar.console import speaks
from gradvar.errors import GradvarError

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
        lower = "--memory, --masks, --batch or --max-length (training.batch, data.max_length)"
        status = _fail(f"out of memory; lower {lower}", 2)
    sys.exit(status if isinstance(status, int) else 0)


def _fail(message: str, status: int) -> int:
    if speaks():
        typer.echo(f"gradvar: {' '.join(message.split())}", err=True)
    return status


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


for command in (decompose, compare, tokens, fit_mapnet, train, runs, finetune):
    app.command()(command)
