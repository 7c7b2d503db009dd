"""Fill docs/recipes.md: the recipes that ship, and what --dry-run says of the largest.

python scripts/recipes_page.py
"""

from pathlib import Path

from pages import fill

from gradvar.training.devices import parse_devices
from gradvar.training.dry_run import lines_of, plan
from gradvar.training.reading import read_recipe

ROOT = Path(__file__).parents[1]
UTILISATION = 0.4
SHOWN, DEVICES = "mapnet-bert-base.yaml", "8xH100"


def purpose(path: Path) -> str:
    """What the head of a recipe says it is for, up to the first stop."""
    head = " ".join(line.removeprefix("# ") for line in path.read_text().splitlines() if line.startswith("#"))
    return head.partition("For: ")[2].partition(". ")[0].partition("; ")[0].partition(": ")[0].rstrip(".")


def row(path: Path) -> str:
    """A row of the table."""
    recipe = read_recipe(path)
    if recipe.model.source is not None:
        cells = ["that of `model.source`", "its own", f"{recipe.training.steps:,} steps"]
    else:
        found = plan(recipe, parse_devices("1xH100", recipe.training.bf16), UTILISATION)
        cells = [found.architecture, f"{found.parameters / 1e6:.1f} M", f"{found.tokens / 1e6:,.0f} M"]
    return f"| {' | '.join([f'`{path.name}`', *cells, purpose(path)])} |"


def main() -> None:
    """Fill the page."""
    recipe = read_recipe(ROOT / "recipes" / SHOWN)
    lines = lines_of(plan(recipe, parse_devices(DEVICES, recipe.training.bf16), UTILISATION), UTILISATION)
    head = "| recipe | model | parameters | tokens, at most | for |\n|---|---|---|---|---|\n"
    rows = "\n".join(row(path) for path in sorted((ROOT / "recipes").glob("*.yaml")))
    fill(
        ROOT / "docs" / "recipes.md",
        {"recipes": head + rows, "dry-run": "```\n" + "\n".join(lines) + "\n```"},
    )


if __name__ == "__main__":
    main()
