"""`gradvar finetune`."""

from pathlib import Path
from typing import Annotated

import typer

from gradvar import options
from gradvar.commands import common
from gradvar.console import Progress
from gradvar.errors import GradvarError


def finetune(
    checkpoint: Annotated[
        str | None, typer.Option(help="Folder (or hub name) of a masked LM, or of a run. [default: embedded]")
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(help="cola, sst2, mrpc, stsb, qqp, mnli, qnli, rte, wnli; several with commas; or all."),
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="Folder with SST-2.train.tsv or SST-2/train.tsv and so on, or a hub data set.")
    ] = None,
    seeds: Annotated[int, typer.Option(help="How many, each with a head and an order of its own.")] = 5,
    out: Annotated[Path | None, typer.Option(help="Folder for the results; what is in it is not done again.")] = None,
    epochs: Annotated[float, typer.Option(help="Passes over the training examples.")] = 3.0,
    batch: Annotated[int, typer.Option(help="Examples of a step.")] = 32,
    learning_rate: Annotated[float, typer.Option(help="Peak; small models like 3e-4.")] = 5e-5,
    weight_decay: Annotated[float, typer.Option(help="Of matrices.")] = 0.01,
    max_length: Annotated[
        int | None, typer.Option(help="Tokens of an example; the rest is cut. [default: 128, or what the model takes]")
    ] = None,
    bf16: Annotated[bool, typer.Option("--bf16", help="Compute in bfloat16 where it is safe; needs a GPU.")] = False,
    cpu: Annotated[bool, typer.Option("--cpu", help="Use no GPU.")] = False,
    as_json: options.AsJson = False,
) -> None:
    """Fine-tune a checkpoint on GLUE tasks, several seeds each: official metrics, medians and intervals.

    The folder of the results is written after each seed. The same command goes on where it was interrupted, and with
    more --seeds or another --task it adds to what is there.
    """
    if task is None:
        raise GradvarError("--task is missing, such as --task sst2,cola, or --task all")
    if data is None:
        raise GradvarError("--data is missing: the folder of the task's files, or a hub data set such as nyu-mll/glue")
    import gradvar
    from gradvar.finetuning.finetune import finetune as run
    from gradvar.finetuning.tuning import FinetuneSettings
    from gradvar.report.finetuned import render_finetuned
    from gradvar.training.callbacks import unwinding

    settings = FinetuneSettings(epochs, batch, learning_rate, weight_decay, max_length, bf16)
    where = gradvar.DEMO_CHECKPOINT if checkpoint is None else checkpoint
    console = common.stderr()

    def say(line: str) -> None:
        console.print(line, highlight=False, soft_wrap=True)

    with unwinding(), Progress(console, "steps") as progress:
        result = run(where, task, data, seeds=seeds, settings=settings, out=out, cpu=cpu, progress=progress, say=say)
    common.print_result(result, render_finetuned, as_json)
    if out is not None and not as_json:
        typer.echo(f"\nwrote {out}: {', '.join(sorted(path.name for path in out.iterdir()))}")
