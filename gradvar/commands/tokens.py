"""`gradvar tokens`."""

from typing import Annotated

import typer

from gradvar import options
from gradvar.commands import common
from gradvar.console import Progress, status
from gradvar.errors import GradvarError


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
    max_length: options.MaxLength = None,
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
    chosen = common.settings(
        sentences=max(sentences, 2),
        mask_rate=mask_rate,
        max_length=max_length,
        seed=seed,
        contexts=contexts,
        replacement=replacement,
        dtype=dtype,
        device=device,
        allow_random_head=allow_random_head,
        mapnet=mapnet_dir,
        engine=engine,
    )
    common.check_out(out, overwrite)

    import gradvar
    from gradvar.runner import check_engine_name

    check_engine_name(engine)
    console = common.stderr()
    notices: tuple[str, ...] = ()
    with status(console, "loading the checkpoint and the data"):
        if text:
            place = gradvar.DEMO_CHECKPOINT if checkpoint is None else checkpoint
            objective, notices = gradvar.from_texts(place, text, **chosen)
        else:
            objective = common.load(checkpoint, data, pack=not no_pack, **chosen)
    with Progress(console) as progress:
        which = list(range(len(text))) if text else sentences
        result = gradvar.score_tokens(objective, which, seed=seed, notices=notices, progress=progress)
    from gradvar.report.tokens_text import render_tokens

    common.hand_over(result, render_tokens, out, overwrite, as_json)
