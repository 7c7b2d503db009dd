"""`gradvar runs`."""

from pathlib import Path
from typing import Annotated

import typer

from gradvar import options
from gradvar.commands import common
from gradvar.errors import GradvarError


def runs(
    folders: Annotated[list[Path] | None, typer.Argument(metavar="RUN...", help="Folders of runs: runs/*.")] = None,
    baseline: Annotated[
        str | None,
        typer.Option(help="An arm, its proposal, or the folder of one of its runs. [default: uniform/simple]"),
    ] = None,
    target_loss: Annotated[
        list[float] | None,
        typer.Option(help="Held-out loss, in nats; again for more. [default: what all runs of the baseline reached]"),
    ] = None,
    out: options.Out = None,
    overwrite: options.Overwrite = False,
    as_json: options.AsJson = False,
) -> None:
    """Compare runs: held-out loss, and how long each arm takes to it beside the baseline, in steps and seconds.

    An arm is a set of runs that differ in their seed alone. Ratios of times are over paired seeds, with bootstrap
    intervals; a run that never gets to the loss counts with the bound that it gives.
    """
    if not folders:
        raise GradvarError("give the folders of runs, such as runs/*")
    common.check_out(out, overwrite)

    import gradvar
    from gradvar.report.runs_text import render_runs

    result = gradvar.compare_runs(folders, baseline=baseline, target_losses=target_loss or ())
    common.hand_over(result, render_runs, out, overwrite, as_json)
