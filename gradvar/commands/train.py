"""`gradvar train`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from gradvar.commands import common
from gradvar.console import speaks
from gradvar.errors import GradvarError

_SHOWN = ("loss", "loss_se", "perplexity", "accuracy")


def train(
    recipe: Annotated[Path | None, typer.Argument(help="YAML file, see recipes/.")] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[SECTION.KEY=VALUE]...", help="Values in place of the recipe's.")
    ] = None,
    data: Annotated[str | None, typer.Option(help="Text to train on: .txt, .jsonl, .parquet, or as .xz/.gz.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run.")] = None,
    proposal: Annotated[str | None, typer.Option(help="How masks are chosen: score/design, see compare.")] = None,
    steps: Annotated[int | None, typer.Option(help="Budget in steps, in place of the recipe's.")] = None,
    tokens: Annotated[int | None, typer.Option(help="Budget in tokens, in place of the recipe's.")] = None,
    seconds: Annotated[float | None, typer.Option(help="Budget in seconds, in place of the recipe's.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed, in place of the recipe's.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Folder of a run to go on with, bit for bit.")] = None,
    cache: Annotated[
        Path | None, typer.Option(help="Where tokenised text is kept. [default: ~/.cache/gradvar]")
    ] = None,
    cpu: Annotated[bool, typer.Option("--cpu", help="Use no GPU.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what it would take: parameters, memory, tokens, FLOPs, days.")
    ] = False,
    devices: Annotated[str, typer.Option(help="For --dry-run: like 8xH100, or 4x2.5e14 for FLOP/s.")] = "1xA100",
    utilisation: Annotated[float, typer.Option(help="For --dry-run: share of the FLOP/s that is reached.")] = 0.4,
) -> None:
    """Pretrain a masked LM under any proposal of masks, with the MAPNet that it may ask for.

    A recipe says everything; section.key=value and the options take the place of its values. The folder of the run
    holds checkpoints, metrics.jsonl and TensorBoard events; it stands for its last whole checkpoint in all commands.
    """
    short: dict[str, Any] = {
        "data.train": data,
        "masking.proposal": proposal,
        "training.steps": steps,
        "training.tokens": tokens,
        "training.seconds": seconds,
        "seed": seed,
    }
    given = {key: value for key, value in short.items() if value is not None}
    budgets = [key.removeprefix("training.") for key in given if key.startswith("training.")]
    if len(budgets) > 1:
        raise GradvarError(f"--{' and --'.join(budgets)}: give one budget")
    console = common.stderr()
    if resume is not None:
        if recipe is not None or out is not None or given or dry_run:
            raise GradvarError(
                "--resume takes nothing but the folder of a run, whose recipe it has; leave the rest out"
            )
        from gradvar.training import run

        _say(run.resume(resume, console, cache, cpu), resume)
        return
    if recipe is None:
        raise GradvarError("give a recipe, such as recipes/mapnet-bert-tiny.yaml, or --resume FOLDER")
    if dry_run and out is not None:
        raise GradvarError("--dry-run makes no folder; leave --out out")
    if not dry_run and out is None:
        raise GradvarError("give --out, the folder of the run; or --dry-run, which makes none")
    from gradvar.training.reading import read_recipe

    wanted = read_recipe(recipe, overrides or [], given)
    if out is None:
        from gradvar.training.devices import parse_devices
        from gradvar.training.dry_run import lines_of, plan

        found = plan(wanted, parse_devices(devices, wanted.training.bf16), utilisation)
        typer.echo("\n".join(lines_of(found, utilisation)))
        return
    from gradvar.training import run

    _say(run.start(wanted, out, console, cache, cpu), out)


def _say(ended: Any, out: Path) -> None:
    """Say how it ended."""
    if not speaks():
        if ended.signal:
            raise SystemExit(128 + ended.signal)
        return
    if ended.signal:
        typer.echo(f"interrupted at step {ended.steps:,}, saved in {ended.checkpoint}; go on with", err=True)
        typer.echo(f"gradvar train --resume {out}", err=True)
        raise SystemExit(128 + ended.signal)
    m = ended.metrics
    shown = {name: float("nan") if m[f"eval_{name}"] is None else m[f"eval_{name}"] for name in _SHOWN}
    typer.echo(
        f"held-out loss {shown['loss']:.4f} ± {shown['loss_se']:.4f} nats (standard error over sentences), "
        f"perplexity {shown['perplexity']:.1f}, accuracy {shown['accuracy']:.1%}, after {ended.steps:,} steps and "
        f"{ended.seconds:,.0f} s of training"
    )
    typer.echo(f"masks were drawn by {ended.drawn_by} at the end")
    if ended.watched:
        share = ended.watched / max(ended.seconds, 1e-9)
        typer.echo(f"watching the variance took {ended.watched:,.0f} s beside that, {share:.0%} of it")
    typer.echo(
        f"wrote {out}: {', '.join(sorted(path.name for path in out.iterdir()))}; last checkpoint {ended.checkpoint}"
    )
