"""`gradvar compare`."""

from typing import Annotated

import typer

from gradvar import options
from gradvar.commands import common
from gradvar.console import Progress, status
from gradvar.errors import GradvarError


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
    max_length: options.MaxLength = None,
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
    chosen = common.settings(
        sentences=sentences,
        mask_rate=mask_rate,
        max_length=max_length,
        seed=seed,
        contexts=contexts,
        replacement=replacement,
        pack=not no_pack,
        dtype=dtype,
        device=device,
        allow_random_head=allow_random_head,
        weighting=weighting,
        mapnet=mapnet_dir,
        engine=engine,
    )
    common.check_out(out, overwrite)

    import gradvar

    budget = common.budget(memory)
    wanted = None if proposals is None else [text.strip() for text in proposals.split(",") if text.strip()]
    if wanted == []:
        raise GradvarError(f"--proposals '{proposals}' names none; leave it out for the default field")
    console = common.stderr()
    with status(console, "loading the checkpoint and the data"):
        objective = common.load(checkpoint, data, **chosen)
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

    common.hand_over(result, render_comparison, out, overwrite, as_json)
