"""Fill docs/finetuning.md with results of `gradvar finetune`, whose commands the page has.

python scripts/finetuning_page.py TITLE=FOLDER TITLE=FOLDER
"""

import json
import sys
from pathlib import Path

import numpy as np
from pages import fill

from gradvar.report.finetuned import Finetuned, TaskResult

PAGE = Path(__file__).parents[1] / "docs" / "finetuning.md"


def row(title: str, task: TaskResult) -> str:
    """A row of the table."""
    median, seeds = task.median, ", ".join(f"{seed.score:.1f}" for seed in task.seeds)
    minutes = np.median([seed.seconds for seed in task.seeds]) / 60
    cells = (
        title,
        task.task,
        f"{median.estimate:.1f}" + ("" if median.low is None else f" [{median.low:.1f}, {median.high:.1f}]"),
        "" if median.confidence is None else f"{median.confidence:.0%}",
        seeds,
        f"± {task.sampling_error:.1f}",
        f"{minutes:.1f} min",
    )
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Fill the page."""
    given = dict(argument.split("=", 1) for argument in sys.argv[1:])
    results = {
        title: Finetuned.from_json(json.loads((Path(folder) / "results.json").read_text()))
        for title, folder in given.items()
    }
    head = ["| encoder | task | median of seeds | confidence | each seed | dev | time of a seed |", f"|{'---|' * 7}"]
    rows = [row(title, task) for title, result in results.items() for task in result.tasks]
    fill(PAGE, {"finetuned": "\n".join([*head, *rows])})


if __name__ == "__main__":
    main()
