"""What a run logged, `metrics.jsonl`: a line of JSON each time. Needs no model library to be read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

METRICS = "metrics.jsonl"


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """Read the lines of a run; one that was cut off, or is none of its lines, is left out."""
    path = run / METRICS
    return parse_metrics(path.read_text(encoding="utf-8", errors="replace"))[0] if path.exists() else []


def parse_metrics(text: str) -> tuple[list[dict[str, Any]], int]:
    """Parse the lines of a run.

    Args:
        text: Of the file.

    Returns:
        The lines; and how many were none, but for a last one that was cut off, as that of a killed run may be.
    """
    found, broken = [], 0
    texts = text.splitlines()
    for number, each in enumerate(texts, 1):
        try:
            line = json.loads(each)
        except (ValueError, RecursionError):
            line = None
        if isinstance(line, dict) and type(line.get("step")) is int:
            found.append(line)
        elif each.strip() and (number < len(texts) or text.endswith("\n")):
            broken += 1
    return found, broken
