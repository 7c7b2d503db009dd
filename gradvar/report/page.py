"""The report as one HTML file: tables, figures and shaded sentences, with nothing to load and no script to run."""

from __future__ import annotations

import base64
import io
import json
import re
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import jinja2
from markupsafe import Markup

from gradvar.report.comparison import Comparison
from gradvar.report.comparison_text import (
    ceiling_lines,
    comparison_headline,
    comparison_notes,
    error_rows,
    errors_caption,
    gain_rows,
    gains_caption,
    verdicts,
)
from gradvar.report.result import Decomposition
from gradvar.report.runs import RunComparison
from gradvar.report.runs_page import runs_view
from gradvar.report.table import Table
from gradvar.report.text import by_variance, findings, headline, layer_rows, level_rows, notes
from gradvar.report.tokens import DEEPEST, SCALES, ScoredSentence, TokenScores, agreement, printable
from gradvar.report.tokens_text import overall, sentence_heading, tokens_headline, value

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Text and background of the two colour schemes; shades are laid over the background.
COLOURS = {"light": ("#1b1b1b", "#ffffff"), "dark": ("#eceff1", "#14171a")}
_NAMED = 3  # highest tokens named under a shaded sentence
Shown = Decomposition | Comparison | TokenScores | RunComparison

_SHOWS = {
    "layers": "Variance of one cell's gradient by layer and level, with 95 % intervals.",
    "batch": "Variance of the batch gradient against the batch size, for several numbers of draws.",
    "cells": "Distribution of the gradient norms of the cells.",
    "mse": "Mean squared error of one draw by proposal, split in variance and squared bias, with the ceilings.",
    "gain": "Batch gain at equal cost by proposal, with 95 % intervals.",
    "loss": "Held-out loss against steps, tokens and seconds, a colour an arm.",
    "variance": "Mask and data variance of one cell's gradient through training, with 95 % intervals.",
    "mapnet": "Rank correlation, ceiling share, exponent and variance ratio of the MAPNets through training.",
}


@dataclass(frozen=True)
class Picture:
    """A figure of a page.

    Attributes:
        title: What it says.
        alt: What it shows, for who cannot see it.
        source: ``data:`` URI of the SVG.
    """

    title: str
    alt: str
    source: str


@dataclass(frozen=True)
class Token:
    """One token of a shaded sentence.

    Attributes:
        space: A space, where a word begins.
        text: The token.
        opacity: Of its shade; None where it cannot be masked.
        numbers: Its scores, in words.
    """

    space: str
    text: str
    opacity: str | None
    numbers: str


@dataclass(frozen=True)
class Shaded:
    """A sentence shaded by one score.

    Attributes:
        name: Of the score.
        label: Of the score, with its unit.
        tokens: The tokens.
        highest: The highest scores, in words.
    """

    name: str
    label: str
    tokens: tuple[Token, ...]
    highest: str


@dataclass(frozen=True)
class Block:
    """All of one sentence.

    Attributes:
        heading: Its name.
        shaded: The sentence by each score.
        agreement: How the scores rank its tokens, a line each.
        table: All numbers.
    """

    heading: str
    shaded: tuple[Shaded, ...]
    agreement: tuple[str, ...]
    table: Table


def render_page(result: Shown) -> str:
    """Render a result as one HTML file.

    Args:
        result: A decomposition, a comparison, token scores or runs.

    Returns:
        The page: semantic HTML with its style inside, no script and no reference to anything outside.
    """
    tokens = result if isinstance(result, TokenScores) else getattr(result, "tokens", None)
    view = _views(result)
    return _template().render(
        **{"details": []} | view,
        source=result.provenance.get("checkpoint"),
        pictures=[_picture(name, figure) for name, figure in _drawn(result).items()],
        blocks=[] if tokens is None else [_block(i, s, tokens) for i, s in enumerate(tokens.sentences, 1)],
        scales=[] if tokens is None else [(name, SCALES[name]) for name in tokens.names],
        contexts=None if tokens is None else tokens.study["contexts"],
        overall=[] if tokens is None else overall(tokens),
        made=_made(result),
        colours=COLOURS,
        deepest=DEEPEST,
        hues={name: " ".join(map(str, scale.colour)) for name, scale in SCALES.items()},
    )


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("gradvar", "report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"tight": _tight, "breaking": _breaking}
    return environment.get_template("page.html.jinja")


def _tight(text: str) -> str:
    """Keep a number with its sign."""
    return text.replace(" %", "\N{NO-BREAK SPACE}%").replace(" = ", "\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}")


def _breaking(text: str) -> Markup:
    """Let a long name break behind its marks."""
    return Markup("<wbr>").join(re.split(r"(?<=[./_])(?=\w)", text))


def _views(result: Shown) -> dict[str, Any]:
    """Say the result in the words of its summary: heading, sentences, tables and notes."""
    if isinstance(result, RunComparison):
        return runs_view(result)
    if isinstance(result, Decomposition):
        masks = [] if result.proposal == "uniform/simple" else [f"masks by {result.proposal}"]
        tables = [_levels(result), _layers(result)]
        return {
            "title": headline(result),
            "lead": [*masks, *findings(result)],
            "tables": tables,
            "notes": notes(result),
        }
    if isinstance(result, Comparison):
        lead = [ceiling_lines(result)[0], *verdicts(result)]
        return {
            "title": comparison_headline(result),
            "lead": lead,
            "tables": [_ceilings(result), _errors(result), _gains(result)],
            "notes": comparison_notes(result),
        }
    return {"title": tokens_headline(result), "lead": [], "tables": [], "notes": list(result.notices)}


def _levels(result: Decomposition) -> Table:
    caption = "Components of the variance by level of randomness, with 95 % intervals"
    columns = ("level", "variance (squared gradient units)", "share", f"noise scale ({result.unit}s)")
    return Table(caption, columns, tuple(level_rows(result)))


def _layers(result: Decomposition) -> Table:
    """List all layers: the summary's columns, and the variance of each level."""
    variances = tuple(f"{level} variance" for level in result.levels)
    rows = []
    for layer, (name, *shares) in zip(by_variance(result), layer_rows(result), strict=True):
        levels = (str(layer.components[level]) for level in result.levels)
        rows.append((name, f"{layer.parameters:,}", *shares, *levels))
    columns = ("layer", "parameters", "of\N{NO-BREAK SPACE}total", f"{result.levels[-1]} share", *variances)
    caption = f"All {len(rows)} layers, those with most variance first (variances in squared gradient units)"
    return Table(caption, columns, tuple(rows))


def _ceilings(result: Comparison) -> Table:
    _, caption, *lines = ceiling_lines(result)
    rows = tuple((what, part.strip()) for part, _, what in (line.partition(" by ") for line in lines))
    return Table(f"{caption} …", ("by", "can be removed [95 %]"), rows)


def _errors(result: Comparison) -> Table:
    return Table(
        " ".join(errors_caption(result)),
        ("proposal", "variance [95 %]", "bias²", "largest weight"),
        tuple(error_rows(result)),
    )


def _gains(result: Comparison) -> Table:
    batch = result.study["batch"]
    columns = (
        "proposal",
        "cost of a draw",
        "small batches [95 %]",
        f"B = {batch} [95 %]",
        f"by MSE, B = {batch} [95 %]",
    )
    return Table(gains_caption(result), columns, tuple(gain_rows(result)))


def _drawn(result: Shown) -> dict[str, Figure]:
    """Draw the figures for the page alone: what is taken from their titles leaves them another layout."""
    if isinstance(result, TokenScores):
        return {}
    if isinstance(result, RunComparison):
        return {name: result.plot(name) for name in result.figures()}
    from gradvar.report.comparison_figures import COMPARISON_FIGURES
    from gradvar.report.figures import FIGURES

    return {name: result.plot(name) for name in (FIGURES if isinstance(result, Decomposition) else COMPARISON_FIGURES)}


def _picture(name: str, figure: Figure) -> Picture:
    """Put a figure into a page: its letters are outlines, so it needs no font; its title becomes the caption."""
    import matplotlib

    titles = [figure.get_suptitle(), *(axes.get_title(loc="left") for axes in figure.axes)]
    if figure.get_suptitle():
        figure.suptitle("")
    for axes in figure.axes:
        axes.set_title("", loc="left")
    buffer = io.BytesIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata=nothing)
    title = " ".join(" ".join(titles).split())
    source = f"data:image/svg+xml;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
    return Picture(title, f"{_SHOWS[name]} {title}".strip(), source)


def _block(number: int, sentence: ScoredSentence, scores: TokenScores) -> Block:
    numbers = [_numbers(sentence, position, scores.names) for position in range(len(sentence.tokens))]
    columns = ("token", "position", *(SCALES[name].heading for name in scores.names))
    rows = tuple(
        (
            printable(token),
            str(position),
            *(value(float(sentence.scores[name][position])) for name in scores.names),
        )
        for position, token in enumerate(sentence.tokens)
        if sentence.maskable[position]
    )
    return Block(
        heading=sentence_heading(number, sentence),
        shaded=tuple(_shaded(sentence, name, numbers) for name in scores.names),
        agreement=tuple(agreement(sentence.correlations())),
        table=Table(f"Sentence {number}: all numbers", columns, rows),
    )


def _shaded(sentence: ScoredSentence, name: str, numbers: list[str]) -> Shaded:
    opacities = sentence.opacities(name)
    tokens = []
    for position, text in enumerate(sentence.texts):
        shown = printable(text)
        bare = shown.lstrip(" ")
        space = " " if len(bare) < len(shown) else ""
        maskable = bool(sentence.maskable[position])
        opacity = f"{opacities[position]:.4f}" if maskable else None
        tokens.append(Token(space, bare or "·", opacity, numbers[position]))
    best = (
        f"{printable(sentence.tokens[position])} {value(float(sentence.scores[name][position]))}"
        for position in sentence.highest(name, _NAMED)
    )
    return Shaded(name, SCALES[name].heading, tuple(tokens), ", ".join(best))


def _numbers(sentence: ScoredSentence, position: int, names: tuple[str, ...]) -> str:
    """Say what a token scored."""
    if not sentence.maskable[position]:
        return ""
    found = (f"{SCALES[name].label} {value(float(sentence.scores[name][position]))}" for name in names)
    return f"{printable(sentence.tokens[position])}, position {position}: {', '.join(found)}"


def _made(result: Shown) -> Table:
    """List what was asked for and what ran."""
    rows = [(name.replace("_", " "), _plain(x)) for name, x in (result.study | result.provenance).items()]
    return Table("What was asked for, and what ran", ("setting", "value"), tuple(rows))


def _plain(setting: Any) -> str:
    if isinstance(setting, dict):
        return ", ".join(f"{name} {x}" for name, x in setting.items())
    if isinstance(setting, list):
        return ", ".join(map(str, setting))
    if isinstance(setting, float):
        return f"{setting:.3g}"
    return setting if isinstance(setting, str) else json.dumps(setting)
