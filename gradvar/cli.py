"""The command line: parse, call, render. Nothing heavy is imported before it is needed."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gradvar import options
from gradvar.console import Progress, speaks, status
from gradvar.errors import GradvarError

if TYPE_CHECKING:
    from gradvar.huggingface.masked_lm import MaskedLM
    from gradvar.masking.corruption import Replacement

# Typer may bring a click of its own; this is the usage error of whichever it uses.
_UsageError: Any = typer.BadParameter.__base__

_UNIFORM = "uniform/simple"

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


@app.command()
def decompose(
    checkpoint: options.Checkpoint = None,
    data: options.Data = None,
    sentences: options.Sentences = 64,
    masks: Annotated[int, typer.Option(help="Masks of each sentence, at least 2.")] = 8,
    dropout: Annotated[
        int | None, typer.Option(help="Dropouts of each mask, at least 2: a third level. [default: dropout is off]")
    ] = None,
    proposal: Annotated[str, typer.Option(help="How masks are chosen: score/design, see gradvar compare.")] = _UNIFORM,
    headroom: Annotated[
        bool, typer.Option("--headroom", help="Measure what position weights and disjoint masks could remove, too.")
    ] = False,
    precision: Annotated[
        float | None, typer.Option(help="Add sentences until half-widths are this part of a cell's variance.")
    ] = None,
    max_sentences: Annotated[int | None, typer.Option(help="Most sentences with --precision. [default: all]")] = None,
    mask_rate: options.MaskRate = 0.15,
    max_length: options.MaxLength = 128,
    replacement: options.Replaced = "80,10,10",
    weighting: options.Weighting = "sentence",
    contexts: options.Contexts = 2,
    mapnet_dir: options.MapnetDir = None,
    engine: options.Engine = "auto",
    dtype: options.Dtype = "float32",
    seed: options.Seed = 0,
    device: options.Device = "cpu",
    memory: options.Memory = None,
    parameters: options.Parameters = None,
    cost_sentence: Annotated[
        float | None, typer.Option(help="Cost of a new sentence, with --cost-mask. [default: timed]")
    ] = None,
    cost_mask: Annotated[float | None, typer.Option(help="Cost of another mask, same unit. [default: timed]")] = None,
    out: options.Out = None,
    overwrite: options.Overwrite = False,
    save_cells: Annotated[bool, typer.Option("--save-cells", help="Write every cell to cells.parquet.")] = False,
    as_json: options.AsJson = False,
    no_pack: options.NoPack = False,
    allow_random_head: options.AllowRandomHead = False,
) -> None:
    """Split the gradient variance of a masked LM into data, mask and (--dropout) dropout, layer by layer."""
    if dropout is not None and dropout < 2:
        raise GradvarError(f"--dropout {dropout}: the dropout variance is not identifiable with fewer than 2 a mask")
    if masks < 2:
        raise GradvarError(f"--masks {masks}: the mask variance is not identifiable with fewer than 2 masks a sentence")
    _check_numbers(sentences, mask_rate, max_length, seed, contexts)
    corruption = _replacement(replacement)
    if save_cells and out is None:
        raise GradvarError("--save-cells needs --out, the folder to write to")
    _check_out(out, overwrite)

    import gradvar.study
    from gradvar import ranks

    budget = _budget(memory)
    gradvar.study.check_request(engine, parameters, cost_sentence, cost_mask, precision, max_sentences, sentences)
    console = _console()
    with ranks.started():
        with status(console, "loading the checkpoint and the data"):
            objective = _objective(
                checkpoint,
                data,
                mapnet_dir,
                proposal,
                max_length=max_length,
                pack=not no_pack,
                dtype=dtype,
                device=ranks.own_device(device),
                allow_random_head=allow_random_head,
                mask_rate=mask_rate,
                replacement=corruption,
                weighting=weighting,
                dropout=dropout is not None,
                contexts=contexts,
                engine=engine,
            )
        with Progress(console) as progress:
            result = gradvar.decompose(
                objective,
                sentences=sentences,
                masks=masks if dropout is None else (masks, dropout),
                headroom=headroom,
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
    if not speaks():
        return
    cells = None
    if save_cells:
        from gradvar.study import cell_table

        cells = cell_table(objective, result)
    from gradvar.report.text import render

    _hand_over(result, render, out, overwrite, as_json, cells)


@app.command()
def compare(
    checkpoint: options.Checkpoint = None,
    data: options.Data = None,
    proposals: Annotated[
        str | None, typer.Option(help="Proposals, with commas between. [default: a field of all kinds]")
    ] = None,
    sentences: options.Sentences = 32,
    masks: Annotated[int, typer.Option(help="Masks of each sentence, at least 4.")] = 8,
    batch: Annotated[int, typer.Option(help="Sentences of the batch in which bias is weighed against variance.")] = 256,
    mask_rate: options.MaskRate = 0.15,
    max_length: options.MaxLength = 128,
    replacement: options.Replaced = "80,10,10",
    weighting: options.Weighting = "sentence",
    contexts: options.Contexts = 2,
    mapnet_dir: options.MapnetDir = None,
    engine: options.Engine = "auto",
    dtype: options.Dtype = "float32",
    seed: options.Seed = 0,
    device: options.Device = "cpu",
    memory: options.Memory = None,
    parameters: options.Parameters = None,
    out: options.Out = None,
    overwrite: options.Overwrite = False,
    as_json: options.AsJson = False,
    no_pack: options.NoPack = False,
    allow_random_head: options.AllowRandomHead = False,
) -> None:
    """Compare ways to choose masks: variance, bias and cost side by side, and what the best could reach.

    A proposal is score[^exponent]/design[:argument][~epsilon][@mask-rate], like logit^0.5/pps~0.1. Scores: uniform,
    oracle, logit, last-layer, loss, frequency, mapnet, mapnet-permuted, file=PATH. Designs: simple, midzuno,
    conditional-poisson[:alpha], pool:R, pps[:systematic], disjoint:K, and without weights hard, span[:length],
    whole-word.
    """
    _check_numbers(sentences, mask_rate, max_length, seed, contexts)
    corruption = _replacement(replacement)
    _check_out(out, overwrite)

    import gradvar

    budget = _budget(memory)
    wanted = None if proposals is None else [text.strip() for text in proposals.split(",") if text.strip()]
    console = _console()
    with status(console, "loading the checkpoint and the data"):
        objective = _objective(
            checkpoint,
            data,
            mapnet_dir,
            _UNIFORM,
            max_length=max_length,
            pack=not no_pack,
            dtype=dtype,
            device=device,
            allow_random_head=allow_random_head,
            mask_rate=mask_rate,
            replacement=corruption,
            weighting=weighting,
            contexts=contexts,
            engine=engine,
        )
    with Progress(console) as progress:
        result = gradvar.compare(
            objective,
            wanted,
            sentences=sentences,
            masks=masks,
            batch=batch,
            seed=seed,
            engine=engine,
            parameters=parameters,
            memory=budget,
            progress=progress,
        )
    from gradvar.report.comparison_text import render_comparison

    _hand_over(result, render_comparison, out, overwrite, as_json)


@app.command()
def tokens(
    checkpoint: options.Checkpoint = None,
    text: Annotated[
        list[str] | None, typer.Option(help="A sentence of your own; again for more. [default: sentences of --data]")
    ] = None,
    data: options.Data = None,
    sentences: options.Sentences = 4,
    contexts: options.Contexts = 4,
    mapnet_dir: options.MapnetDir = None,
    mask_rate: options.MaskRate = 0.15,
    max_length: options.MaxLength = 128,
    replacement: options.Replaced = "80,10,10",
    engine: options.Engine = "auto",
    dtype: options.Dtype = "float32",
    seed: options.Seed = 0,
    device: options.Device = "cpu",
    out: options.Out = None,
    overwrite: options.Overwrite = False,
    as_json: options.AsJson = False,
    no_pack: options.NoPack = False,
    allow_random_head: options.AllowRandomHead = False,
) -> None:
    """Show what each token does to the gradient: sentences shaded by oracle, MAPNet, loss and logits."""
    if text and data is not None:
        raise GradvarError("--text and --data: give one of the two")
    if sentences < 1:
        raise GradvarError(f"--sentences {sentences}: at least 1 is needed")
    _check_numbers(max(sentences, 2), mask_rate, max_length, seed, contexts)
    corruption = _replacement(replacement)
    _check_out(out, overwrite)

    import gradvar
    from gradvar.runner import check_engine_name

    check_engine_name(engine)
    console = _console()
    loading: dict[str, Any] = {"max_length": max_length, "dtype": dtype, "device": device}
    loading |= {"allow_random_head": allow_random_head, "contexts": contexts, "engine": engine}
    loading |= {"mask_rate": mask_rate, "replacement": corruption}
    notices: tuple[str, ...] = ()
    with status(console, "loading the checkpoint and the data"):
        if text:
            place = gradvar.DEMO_CHECKPOINT if checkpoint is None else checkpoint
            objective, notices = gradvar.from_texts(place, text, mapnet=mapnet_dir, **loading)
        else:
            objective = _objective(checkpoint, data, mapnet_dir, _UNIFORM, pack=not no_pack, **loading)
    with Progress(console) as progress:
        chosen = list(range(len(text))) if text else sentences
        result = gradvar.score_tokens(objective, chosen, seed=seed, notices=notices, progress=progress)
    from gradvar.report.tokens_text import render_tokens

    _hand_over(result, render_tokens, out, overwrite, as_json)


def _hand_over(
    result: Any,
    render: Any,
    out: Path | None,
    overwrite: bool,
    as_json: bool,
    cells: Any = None,
) -> None:
    """Write the report, and print the result: as JSON alone, or for people."""
    folder = None
    if out is not None:
        from gradvar.report.writer import write_report

        folder = write_report(result, out, overwrite=overwrite, cells=cells)
    if as_json:
        typer.echo(json.dumps(result.to_json(), indent=2, allow_nan=False, ensure_ascii=False))
        return
    from rich.console import Console

    Console(highlight=False).print(render(result))
    if folder is not None:
        names = ", ".join(sorted(path.name for path in folder.iterdir()))
        typer.echo(f"\nwrote {out}: {names}")


def _objective(
    checkpoint: str | None, data: str | None, mapnet_dir: str | None, proposal: str, **settings: Any
) -> "MaskedLM":
    """Load a checkpoint and a text, or the embedded ones."""
    import gradvar

    return gradvar.MaskedLM.from_checkpoint(
        gradvar.DEMO_CHECKPOINT if checkpoint is None else checkpoint,
        gradvar.DEMO_TEXT if data is None else data,
        proposal=proposal,
        mapnet=mapnet_dir,
        **settings,
    )


def _console() -> Any:
    from rich.console import Console

    return Console(stderr=True, quiet=not speaks())


def _budget(memory: str | None) -> int | None:
    from gradvar.persample.memory import parse_memory

    return None if memory is None else parse_memory(memory)


def _check_out(out: Path | None, overwrite: bool) -> None:
    if out is not None:
        from gradvar.report.writer import check_writable

        check_writable(out, overwrite)


def _check_numbers(sentences: int, mask_rate: float, max_length: int, seed: int, contexts: int) -> None:
    """Refuse impossible numbers before anything is loaded."""
    if sentences < 2:
        raise GradvarError(f"--sentences {sentences}: the data variance needs at least 2 sentences")
    if not 0 < mask_rate < 1:
        raise GradvarError(f"--mask-rate {mask_rate} is not between 0 and 1")
    if max_length < 1:
        raise GradvarError(f"--max-length {max_length} is not a positive number of tokens")
    if seed < 0:
        raise GradvarError(f"--seed {seed} is negative; give 0 or more")
    if contexts < 1:
        raise GradvarError(f"--contexts {contexts}: a score is measured in 1 context at least")


def _replacement(text: str) -> "Replacement":
    """Parse percentages."""
    try:
        mask, random, keep = (float(part) / 100 for part in text.split(","))
    except ValueError:
        raise GradvarError(f"--replacement '{text}' is not three percentages, like 80,10,10") from None
    from gradvar.masking.corruption import Replacement

    return Replacement(mask, random, keep)


@app.command()
def fit_mapnet(
    checkpoint: options.Checkpoint = None,
    data: options.Data = None,
    out: options.Out = None,
    sentences: Annotated[int | None, typer.Option(help="Sentences to fit to. [default: all that are left]")] = None,
    held_out: Annotated[int, typer.Option(help="Sentences that judge the fit by their true gradients.")] = 32,
    contexts: Annotated[int, typer.Option(help="Contexts of the held-out gradients, 2 or more.")] = 4,
    target: Annotated[str, typer.Option(help="gradient, logit, last-layer or loss: what is learnt.")] = "logit",
    loss: Annotated[str, typer.Option(help="variance, kl or log-regression.")] = "variance",
    epochs: Annotated[int, typer.Option(help="Passes over the sentences, in fresh contexts.")] = 8,
    learning_rate: Annotated[float, typer.Option(help="Of AdamW.")] = 1e-3,
    embeddings: Annotated[str | None, typer.Option(help="What it reads: model or own. [default: model]")] = None,
    layers: Annotated[int | None, typer.Option(help="Of the network. [default: by the encoder's cost]")] = None,
    width: Annotated[int | None, typer.Option(help="Of the network. [default: by the encoder's cost]")] = None,
    heads: Annotated[int | None, typer.Option(help="Of the network. [default: 32 wide each]")] = None,
    temperature: Annotated[float | None, typer.Option(help="Divides the log scores. [default: 1]")] = None,
    epsilon: Annotated[float, typer.Option(help="Uniform part in the variance loss.")] = 0.0,
    weight_cap: Annotated[float | None, typer.Option(help="Cap of the weights in the variance loss.")] = None,
    mask_rate: options.MaskRate = 0.15,
    max_length: options.MaxLength = 128,
    replacement: options.Replaced = "80,10,10",
    engine: options.Engine = "auto",
    dtype: options.Dtype = "float32",
    seed: options.Seed = 0,
    device: options.Device = "cpu",
    overwrite: options.Overwrite = False,
    as_json: options.AsJson = False,
    no_pack: options.NoPack = False,
    allow_random_head: options.AllowRandomHead = False,
) -> None:
    """Fit a MAPNet to a frozen masked LM: a small network that scores positions from the unmasked sentence.

    It is judged on held-out sentences: rank correlation with the gradient norms, the share of the variance removed by
    the oracle that it captures, and the share of what position weights can remove at best.
    """
    _check_numbers(2, mask_rate, max_length, seed, contexts)
    corruption = _replacement(replacement)
    if out is None:
        raise GradvarError("--out is missing: the folder for the fitted network")
    _check_out(out, overwrite)

    from gradvar.fitting import Options, fit_mapnet
    from gradvar.report.fit import render_fit

    given = {"embeddings": embeddings, "layers": layers, "width": width, "heads": heads, "temperature": temperature}
    shape = tuple((name, value) for name, value in given.items() if value is not None)
    chosen = Options(target, loss, epochs, learning_rate, epsilon=epsilon, weight_cap=weight_cap, shape=shape)
    console = _console()
    with status(console, "loading the checkpoint and the data"):
        objective = _objective(
            checkpoint,
            data,
            None,
            _UNIFORM,
            max_length=max_length,
            pack=not no_pack,
            dtype=dtype,
            device=device,
            allow_random_head=allow_random_head,
            mask_rate=mask_rate,
            replacement=corruption,
            contexts=contexts,
            engine=engine,
        )
    with Progress(console) as progress:
        result = fit_mapnet(objective, chosen, sentences=sentences, held_out=held_out, seed=seed, progress=progress)
    _hand_over(result, render_fit, out, overwrite, as_json)
