"""`gradvar decompose`."""

from typing import Annotated

import typer

from gradvar import options
from gradvar.commands import common
from gradvar.console import Progress, speaks, status
from gradvar.errors import GradvarError


def decompose(
    checkpoint: options.Checkpoint = None,
    data: options.Data = None,
    sentences: options.Sentences = 64,
    masks: Annotated[int, typer.Option(help="Masks of each sentence, at least 2.")] = 8,
    dropout: Annotated[
        int | None, typer.Option(help="Dropouts of each mask, at least 2: a third level. [default: dropout is off]")
    ] = None,
    proposal: Annotated[
        str, typer.Option(help="How masks are chosen: score/design, see gradvar compare.")
    ] = common.UNIFORM,
    headroom: Annotated[
        bool, typer.Option("--headroom", help="Measure what position weights and disjoint masks could remove, too.")
    ] = False,
    precision: Annotated[
        float | None, typer.Option(help="Add sentences until half-widths are this part of a cell's variance.")
    ] = None,
    max_sentences: Annotated[int | None, typer.Option(help="Most sentences with --precision. [default: all]")] = None,
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
    chosen = common.settings(
        sentences=sentences,
        mask_rate=mask_rate,
        max_length=max_length,
        seed=seed,
        contexts=contexts,
        replacement=replacement,
        pack=not no_pack,
        dtype=dtype,
        allow_random_head=allow_random_head,
        weighting=weighting,
        dropout=dropout is not None,
        proposal=proposal,
        mapnet=mapnet_dir,
        engine=engine,
    )
    if save_cells and out is None:
        raise GradvarError("--save-cells needs --out, the folder to write to")
    common.check_out(out, overwrite)

    import gradvar.study
    from gradvar import ranks

    budget = common.budget(memory)
    gradvar.study.check_request(engine, parameters, cost_sentence, cost_mask, precision, max_sentences, sentences)
    console = common.stderr()
    with ranks.started():
        with status(console, "loading the checkpoint and the data"):
            objective = common.load(checkpoint, data, device=ranks.own_device(device), **chosen)
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

    common.hand_over(result, render, out, overwrite, as_json, cells)
