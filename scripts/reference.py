"""Tables of the pages that the source decides: options of the commands, and keys of a recipe.

    python scripts/reference.py

fills them in between their markers; `tests/test_site.py` fails where a page and the source disagree.
"""

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pages
from pydantic import BaseModel
from typer.models import ArgumentInfo

from gradvar.cli import app

DOCS = Path(__file__).parents[1] / "docs"
_DEFAULT = re.compile(r"\s*\[default: (.*)\]$")


def commands() -> dict[str, Callable[..., None]]:
    """Return the functions of the commands by the commands' names."""
    return {one.callback.__name__.replace("_", "-"): one.callback for one in app.registered_commands if one.callback}


def options_of(command: Callable[..., None]) -> str:
    """Make the table of a command's arguments and options.

    Args:
        command: Its function, whose annotations are typer's.

    Returns:
        Markdown.
    """
    hints = get_type_hints(command, include_extras=True)
    rows = [_row(name, hints[name], one.default) for name, one in inspect.signature(command).parameters.items()]
    return "\n".join(["| option | default | |", "|---|---|---|", *rows])


def _row(name: str, hint: Any, default: Any) -> str:
    kind, info = get_args(hint)
    said = _DEFAULT.search(info.help)
    if isinstance(info, ArgumentInfo):
        name, default = info.metavar or name.upper(), ""
    else:
        own = [
            one for one in (info.default, *(info.param_decls or ())) if str(one).startswith("--")
        ]  # typer's first argument
        name = own[0] if own else f"--{name.replace('_', '-')}"
        flag = kind is bool
        name += "" if flag else f" {info.metavar or _kind(kind)}"
        default = said[1] if said else "" if flag or default is None else f"`{_plain(default)}`"
    cells = (f"`{name}`", default, _DEFAULT.sub("", info.help))
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _kind(kind: Any) -> str:
    """Name what an option takes."""
    inner = next((one for one in get_args(kind) if one is not type(None)), kind)
    return {int: "N", float: "X", Path: "PATH"}.get(next(iter(get_args(inner)), inner), "TEXT")


def keys_of(section: Any, prefix: str) -> str:
    """Make the table of a section's keys.

    Args:
        section: A section of a recipe, a pydantic model.
        prefix: What stands before its keys.

    Returns:
        Markdown.
    """
    meanings = attributes_of(section)
    rows = []
    for name, field in section.model_fields.items():
        if isinstance(field.default, BaseModel):
            continue  # a section inside, which has its own table
        default = "" if field.default is None else f"`{_plain(field.default)}`"
        rows.append(f"| `{prefix}{name}` | {default} | {meanings[name]} |")
    return "\n".join(["| key | default | |", "|---|---|---|", *rows])


def _plain(value: Any) -> str:
    """Write a default as YAML has it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{', '.join(map(_plain, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def attributes_of(section: Any) -> dict[str, str]:
    """Return what the docstring says of each attribute, as Markdown."""
    listed = inspect.cleandoc(section.__doc__).partition("Attributes:\n")[2]
    found = re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", listed, flags=re.MULTILINE)
    return {name: _markdown(" ".join(text.split())) for name, text in found}


def _markdown(text: str) -> str:
    """Write a docstring's words as Markdown, and Python's None as YAML's null."""
    return re.sub(r"\bNone\b", "null", re.sub(r":\w+:`~?([\w.]+)`", r"`\1`", text).replace("``", "`"))


def tables() -> dict[Path, dict[str, str]]:
    """Return all tables by the page and the name of their place in it."""
    from gradvar.training import recipe

    found = {DOCS / "commands" / f"{name}.md": {"options": options_of(one)} for name, one in commands().items()}
    fields = recipe.Recipe.model_fields
    sections = {name: keys_of(field.annotation, f"{name}.") for name, field in fields.items() if name != "seed"}
    sections["tokenizer"] = keys_of(recipe.Tokenizer, "data.tokenizer.")
    found[DOCS / "reference" / "recipe.md"] = sections
    return found


if __name__ == "__main__":
    for page, filled in tables().items():
        pages.fill(page, filled)
