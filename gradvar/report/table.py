"""A table of a page."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """A table: its first column names the rows.

    Attributes:
        caption: What it shows.
        columns: Headings, with units.
        rows: Cells as text, the name first.
    """

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
