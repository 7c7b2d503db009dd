"""Draw every figure from the numbers in `figures/`, write the gallery and the tables of the pages: no model, seconds.

python experiments/figures.py
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import confirm
import convergence
import glue
import mapnet_figures
import mapnet_quality
import over_training
import over_training_figures
import proposals
import proposals_figures
import settings
import tables
import theorem
import theorem_figure
import what_helps

sys.path.append(str(Path(__file__).parents[1] / "scripts"))
import pages

GALLERY = "README.md"
_HEAD = """# Figures

What the experiments measured: numbers (`NAME.csv`), where they come from (`NAME.provenance.csv`: a row for each unit of
work, with command, commit, versions, text, hash of the weights, processor, seconds), and the pictures drawn from them
by `make figures`, as PNG and SVG. The verdicts are in [docs/results.md](../docs/results.md).
"""


@dataclass(frozen=True)
class Experiment:
    """A script with its pictures.

    Attributes:
        module: The script, with a function `draw`.
        pictures: Names of the pictures, each with what gives the sentence that it shows.
    """

    module: ModuleType
    pictures: dict[str, Callable[[settings.Setting], str]]

    @property
    def command(self) -> str:
        """The command that measures."""
        doc = self.module.__doc__ or ""
        return next(line.strip() for line in doc.splitlines() if line.strip().startswith("python experiments/"))


def _theorem(it: settings.Setting) -> str:
    return theorem_figure.headline(theorem.book(it).rows())


def _over_training(name: str) -> Callable[[settings.Setting], str]:
    def finding(it: settings.Setting) -> str:
        book = over_training.book(it)
        return f"{over_training_figures.sentences(book.rows(), book.layers.rows())[name]}."

    return finding


def _proposals(say: Callable[[proposals_figures.Rows], str]) -> Callable[[settings.Setting], str]:
    return lambda it: f"{say(proposals.book(it).rows())}."


def _mapnet(it: settings.Setting) -> str:
    return "; ".join(mapnet_figures.findings(mapnet_quality.book(it).rows())) + "."


_PROPOSALS = {
    "proposals": _proposals(proposals_figures.less_variance),
    "proposals_cost": _proposals(proposals_figures.at_equal_cost),
}

EXPERIMENTS = (
    Experiment(theorem, {"theorem": _theorem}),
    Experiment(over_training, {name: _over_training(name) for name in over_training_figures.PICTURES}),
    Experiment(proposals, _PROPOSALS),
    Experiment(mapnet_quality, {"mapnet_quality": _mapnet}),
    Experiment(convergence, {"convergence": convergence.finding}),
    Experiment(confirm, {"confirm": confirm.finding}),
    Experiment(glue, {"glue": glue.finding}),
    Experiment(what_helps, {"what_helps": what_helps.finding}),
)


def gallery(it: settings.Setting) -> str:
    """Write the gallery of the pictures that are there."""
    parts = [_HEAD]
    for each in EXPERIMENTS:
        for name, finding in each.pictures.items():
            if (it.figures / f"{name}.png").exists():
                parts.append(f"## {name}\n\n{finding(it)}\n\n![{name}]({name}.png)\n\n    {each.command}\n")
    return "\n".join(parts)


def main() -> None:
    """Draw all, and write the gallery."""
    here = Path(__file__).parent.parent
    it = settings.setting(__doc__, ["--draw", "--figures", str(here / "figures")])[0]
    for each in EXPERIMENTS:
        each.module.draw(it)
    (it.figures / GALLERY).write_text(gallery(it), encoding="utf-8")
    for page, parts in tables.PAGES.items():
        if (here / "docs" / page).exists():
            pages.fill(here / "docs" / page, {name: write(it) for name, write in parts.items()})
    print(f"wrote {it.figures}: {', '.join(sorted(path.name for path in it.figures.glob('*.png')))}, {GALLERY}")


if __name__ == "__main__":
    settings.cleanly(main)
