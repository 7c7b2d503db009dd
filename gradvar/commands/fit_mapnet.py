"""`gradvar fit-mapnet`."""

from typing import Annotated

import typer

from gradvar import options
from gradvar.commands import common
from gradvar.console import Progress, status
from gradvar.errors import GradvarError


def fit_mapnet(
    checkpoint: options.Checkpoint = None,
    data: options.Data = None,
    out: options.Out = None,
    sentences: Annotated[int | None, typer.Option(help="Sentences to fit to. [default: all that are left]")] = None,
    held_out: Annotated[int, typer.Option(help="Sentences that judge the fit by their true gradients.")] = 32,
    contexts: Annotated[int, typer.Option(help="Contexts of the held-out gradients, 2 or more.")] = 4,
    target: Annotated[str, typer.Option(help="gradient, logit, last-layer or loss: what is learnt.")] = "logit",
    loss: Annotated[str, typer.Option(help="variance, kl or log-regression.")] = "variance",
    language: Annotated[float, typer.Option(help="Weight of the language loss that is added; 0 for none.")] = 0.3,
    epochs: Annotated[int, typer.Option(help="Passes over the sentences, in fresh contexts.")] = 8,
    learning_rate: Annotated[float, typer.Option(help="Of AdamW.")] = 4e-3,
    embeddings: Annotated[str | None, typer.Option(help="What it reads: model or own. [default: model]")] = None,
    width: Annotated[int | None, typer.Option(help="Of the network. [default: by the encoder's cost]")] = None,
    window: Annotated[int | None, typer.Option(help="Neighbours on either side seen in order. [default: 4]")] = None,
    layers: Annotated[int | None, typer.Option(help="Of attention to the whole sentence. [default: 1]")] = None,
    heads: Annotated[int | None, typer.Option(help="Of the network. [default: 32 wide each]")] = None,
    temperature: Annotated[float | None, typer.Option(help="Divides the log scores. [default: 1]")] = None,
    epsilon: Annotated[float, typer.Option(help="Uniform part in the variance loss.")] = 0.0,
    weight_cap: Annotated[float | None, typer.Option(help="Cap of the weights in the variance loss.")] = None,
    mask_rate: options.MaskRate = 0.15,
    max_length: options.MaxLength = None,
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

    It learns from what the model makes of masks, in forward passes only (but with --target gradient), and beside that
    to tell tokens from their surroundings, without which it learns little more than which tokens are hard.
    It is judged on held-out sentences: rank correlation with the gradient norms, the share of the variance removed by
    the oracle that it captures, and the share of what position weights can remove at best.
    """
    chosen = common.settings(
        sentences=2,
        mask_rate=mask_rate,
        max_length=max_length,
        seed=seed,
        contexts=contexts,
        replacement=replacement,
        pack=not no_pack,
        dtype=dtype,
        device=device,
        allow_random_head=allow_random_head,
        engine=engine,
    )
    if out is None:
        raise GradvarError("--out is missing: the folder for the fitted network")
    common.check_out(out, overwrite)

    from gradvar.fitting import Options
    from gradvar.fitting import fit_mapnet as fit
    from gradvar.report.fit import render_fit

    given = {
        "embeddings": embeddings,
        "width": width,
        "window": window,
        "layers": layers,
        "heads": heads,
        "temperature": temperature,
    }
    shape = tuple((name, value) for name, value in given.items() if value is not None)
    how = Options(target, loss, language, epochs, learning_rate, epsilon=epsilon, weight_cap=weight_cap, shape=shape)
    console = common.stderr()
    with status(console, "loading the checkpoint and the data"):
        objective = common.load(checkpoint, data, **chosen)
    with Progress(console) as progress:
        result = fit(objective, how, sentences=sentences, held_out=held_out, seed=seed, progress=progress)
    common.hand_over(result, render_fit, out, overwrite, as_json)
