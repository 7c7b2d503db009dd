"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

Checkpoint = Annotated[str | None, typer.Option(help="Folder (or hub name) of a masked LM. [default: embedded]")]
Data = Annotated[
    str | None, typer.Option(help=".txt, .jsonl or .parquet (plain, .xz, .gz), or a hub data set. [default: embedded]")
]
Sentences = Annotated[int, typer.Option(help="Sentences sampled from the data.")]
MaskRate = Annotated[float, typer.Option(help="Share of the positions that are targets.")]
MaxLength = Annotated[
    int | None,
    typer.Option(help="Tokens of a sentence, special tokens included. [default: what gradvar train used, or 128]"),
]
Replaced = Annotated[str, typer.Option("--replacement", help="Percent mask, random and kept tokens at targets.")]
Weighting = Annotated[str, typer.Option(help="sentence or token: what counts the same.")]
Contexts = Annotated[int, typer.Option(help="Random contexts in which a score sees every position.")]
MapnetDir = Annotated[
    str | None, typer.Option(help="Folder of a fitted MAPNet, for the scores mapnet and its placebo.")
]
Engine = Annotated[str, typer.Option(help="auto, onepass, or reference (slow, any model).")]
Dtype = Annotated[str, typer.Option(help="float32 or float64.")]
Seed = Annotated[int, typer.Option(help="Seed of every random choice.")]
Device = Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")]
Memory = Annotated[str | None, typer.Option(help="Most memory to hold, like 4GiB. [default: most of the free]")]
Parameters = Annotated[str | None, typer.Option(metavar="REGEX", help="Study only parameters with such names.")]
Out = Annotated[Path | None, typer.Option(help="Folder for the report.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a report in that folder.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the JSON, and nothing else, on stdout.")]
NoPack = Annotated[bool, typer.Option("--no-pack", help="A line a sentence, instead of packed documents.")]
AllowRandomHead = Annotated[bool, typer.Option("--allow-random-head", help="Accept weights without MLM head.")]
