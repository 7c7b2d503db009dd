"""What the commands share: the checks before anything is loaded, the loading, and what becomes of a result."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from gradvar.console import speaks
from gradvar.errors import GradvarError

if TYPE_CHECKING:
    from gradvar.huggingface.masked_lm import MaskedLM
    from gradvar.masking.corruption import Replacement

UNIFORM = "uniform/simple"


def settings(
    *,
    sentences: int,
    mask_rate: float,
    max_length: int | None,
    seed: int,
    contexts: int,
    replacement: str,
    **others: Any,
) -> dict[str, Any]:
    """Refuse impossible numbers before anything is loaded; return what a checkpoint and its text are loaded with.

    Args:
        sentences: Sentences of a study.
        mask_rate: Share of the positions that are targets.
        max_length: Tokens of a sentence, or None.
        seed: Seed.
        contexts: Contexts of a score.
        replacement: Three percentages.
        **others: More that :meth:`~gradvar.MaskedLM.from_checkpoint` takes, as it is.

    Returns:
        Its arguments.

    Raises:
        GradvarError: If a number is impossible.
    """
    if sentences < 2:
        raise GradvarError(f"--sentences {sentences}: the data variance needs at least 2 sentences")
    if not 0 < mask_rate < 1:
        raise GradvarError(f"--mask-rate {mask_rate} is not between 0 and 1")
    if max_length is not None and max_length < 1:
        raise GradvarError(f"--max-length {max_length} is not a positive number of tokens")
    if seed < 0:
        raise GradvarError(f"--seed {seed} is negative; give 0 or more")
    if contexts < 1:
        raise GradvarError(f"--contexts {contexts}: a score is measured in 1 context at least")
    known = {"mask_rate": mask_rate, "max_length": max_length, "contexts": contexts}
    return known | {"replacement": _replacement(replacement), **others}


def _replacement(text: str) -> "Replacement":
    """Parse percentages."""
    try:
        mask, random, keep = (float(part) / 100 for part in text.split(","))
    except ValueError:
        raise GradvarError(f"--replacement '{text}' is not three percentages, like 80,10,10") from None
    from gradvar.masking.corruption import Replacement

    return Replacement(mask, random, keep)


def load(checkpoint: str | None, data: str | None, **chosen: Any) -> "MaskedLM":
    """Load a checkpoint and a text, or the embedded ones."""
    import gradvar

    return gradvar.MaskedLM.from_checkpoint(
        gradvar.DEMO_CHECKPOINT if checkpoint is None else checkpoint,
        gradvar.DEMO_TEXT if data is None else data,
        **chosen,
    )


def stderr() -> Any:
    """Return a console that only one of several processes speaks on."""
    from rich.console import Console

    return Console(stderr=True, quiet=not speaks())


def budget(memory: str | None) -> int | None:
    """Parse an amount of memory, if there is one."""
    from gradvar.persample.memory import parse_memory

    return None if memory is None else parse_memory(memory)


def check_out(out: Path | None, overwrite: bool) -> None:
    """Check, before any work is done, that a report can be written."""
    if out is not None:
        from gradvar.report.writer import check_writable

        check_writable(out, overwrite)


def hand_over(
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
    print_result(result, render, as_json)
    if folder is not None and not as_json:
        names = ", ".join(sorted(path.name for path in folder.iterdir()))
        typer.echo(f"\nwrote {out}: {names}")


def print_result(result: Any, render: Any, as_json: bool) -> None:
    """Print a result: as JSON alone, or for people."""
    if as_json:
        typer.echo(json.dumps(result.to_json(), indent=2, allow_nan=False, ensure_ascii=False))
        return
    from rich.console import Console

    Console(highlight=False).print(render(result))
