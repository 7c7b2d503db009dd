"""The summary of token scores for people: every sentence, its highest-scoring tokens, and how the scores agree."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.text import Text

from gradvar.report.text import WIDTH, plain_table, plain_text
from gradvar.report.tokens import SCALES, agreement, printable

if TYPE_CHECKING:
    from gradvar.report.tokens import ScoredSentence, TokenScores

_HIGHEST = 6  # tokens listed of each sentence
_BAR = 10  # columns of the longest bar
_LINES = 3  # of a sentence's text
_TOKEN = 20  # columns of a token


def tokens_summary(scores: TokenScores) -> str:
    """Render the scores as plain text of at most 80 columns."""
    return plain_text(render_tokens(scores))


def render_tokens(scores: TokenScores) -> RenderableType:
    """Build what a terminal shows."""
    source = scores.provenance.get("checkpoint")
    parts: list[RenderableType] = [Text(tokens_headline(scores), style="bold")]
    parts += [Text(str(source), style="dim")] if source else []
    for number, sentence in enumerate(scores.sentences, 1):
        parts += [Text(""), Text(sentence_heading(number, sentence), style="bold"), _excerpt(sentence)]
        parts += [_table(sentence, scores.names)]
    parts += [Text(""), *(Text(line) for line in overall(scores))]
    parts += [Text(f"note: {line}", style="yellow") for line in scores.notices]
    return Group(*parts)


def tokens_headline(scores: TokenScores) -> str:
    """Say what was scored, and in how many contexts every token was a target."""
    count, contexts = len(scores.sentences), scores.study["contexts"]
    seen = f"{count} sentence{'s' * (count > 1)} in {contexts} random context{'s' * (contexts > 1)}"
    return f"What each token does to the gradient: {seen}"


def sentence_heading(number: int, sentence: ScoredSentence) -> str:
    """Name a sentence."""
    count = int(sentence.maskable.sum())
    return f"Sentence {number}, {count} token{'s' * (count > 1)}"


def overall(scores: TokenScores) -> list[str]:
    """Say how the scores agree with the oracle over all sentences."""
    lines = agreement(scores.correlations())
    if lines and len(scores.sentences) > 1:
        return [f"On average over the {len(scores.sentences)} sentences:", *lines]
    return lines


def value(number: float) -> str:
    """Write a score with three significant digits."""
    return f"{number:.3g}"


def running_text(sentence: ScoredSentence) -> str:
    """Join what can be masked of a sentence to a text."""
    parts = (text for text, known in zip(sentence.texts, sentence.maskable, strict=True) if known)
    return printable("".join(parts)).strip()


def _excerpt(sentence: ScoredSentence) -> Text:
    text = Text(running_text(sentence), style="dim")
    lines = text.wrap(Console(width=WIDTH), WIDTH - 4, overflow="fold")
    shown = list(lines)[:_LINES]
    if len(lines) > _LINES:
        shown[-1].rstrip()
        shown[-1].append(" …")
    return Text("\n").join(shown)


def _table(sentence: ScoredSentence, names: tuple[str, ...]) -> RenderableType:
    """List the tokens that the first score puts highest."""
    first, *others = names
    largest = float(sentence.scores[first].max(initial=0.0, where=sentence.maskable))
    table = plain_table("token", "position", SCALES[first].heading, *(_column(name) for name in others))
    table.columns[0].overflow, table.columns[0].max_width = "ellipsis", _TOKEN
    for column in (table.columns[1], *table.columns[3:]):
        column.justify = "right"
    for position in sentence.highest(first, _HIGHEST):
        number = float(sentence.scores[first][position])
        bar = "█" * max(1, round(_BAR * number / largest)) if largest > 0 else ""
        rest = (value(float(sentence.scores[name][position])) for name in others)
        table.add_row(printable(sentence.tokens[position]), str(position), f"{value(number):8} {bar}", *rest)
    return table


def _column(name: str) -> str:
    """Head a column, with the unit where it is short."""
    return SCALES[name].heading if name == "loss" else SCALES[name].label
