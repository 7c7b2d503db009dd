"""Makes the reports from the embedded checkpoint and text and opens them in a headless Chromium, at two widths.

    python scripts/screenshots.py --out out/screenshots

Every page is opened with scripts switched off, in light and dark, and unfolded. The run fails if a page asks for
anything but itself, or is wider than the window (tables and figures scroll inside their own containers). The browser is
playwright's own, or else a Chromium or Chrome on the path; CHROMIUM=/path names another.
"""

import argparse
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from gradvar import DEMO_TEXT
from gradvar.cli import main as gradvar_command

SMALL = ["--max-length", "48", "--overwrite"]
COMMANDS = {
    "decompose": ["--sentences", "12", "--masks", "4", "--headroom"],
    "compare": ["--sentences", "6", "--masks", "4", "--proposals", "oracle/pps~0.1,loss^0.25/pps,uniform/disjoint:2"],
    "tokens": ["--sentences", "2", "--contexts", "2"],
}
RECIPE = Path(__file__).parents[1] / "recipes" / "mapnet-modernbert-tiny.yaml"
TINY = ["--steps", "12", "training.batch=8", "evaluation.every=3", "evaluation.sentences=16", "saving.loggers=[]"]
TINY += ["data.tokenizer.vocabulary=500", "data.max_length=32", "watch.every=12", "watch.sentences=8"]
PROPOSALS = {"uniform": "uniform/simple", "mapnet": "mapnet/pps~0.1"}
WIDTHS = {"desktop": 1280, "phone": 390}
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def make_reports(folder: Path) -> dict[str, Path]:
    """Run the commands; return the pages."""
    for name, arguments in COMMANDS.items():
        command([name, *arguments, *SMALL, "--out", str(folder / name)])
    runs = [train(folder / "trained" / f"{name}-{seed}", name, seed) for seed in (0, 1) for name in PROPOSALS]
    command(["runs", *map(str, runs), "--overwrite", "--out", str(folder / "runs")])
    return pages_in(folder)


def pages_in(folder: Path) -> dict[str, Path]:
    """Return the pages by command."""
    return {name: folder / name / "report.html" for name in (*COMMANDS, "runs")}


def train(out: Path, name: str, seed: int) -> Path:
    """Train a tiny run on the embedded text, unless it is there already."""
    if not out.exists():
        given = ["--data", str(DEMO_TEXT), "--seed", str(seed), "--proposal", PROPOSALS[name], "--out", str(out)]
        command(["train", str(RECIPE), *TINY, *given, "--cpu", "--cache", str(out.parents[1] / "cache")])
    return out


def command(arguments: list[str]) -> None:
    """Run one command."""
    try:
        gradvar_command(arguments)
    except SystemExit as done:
        if done.code:
            raise


def start(playwright: Any) -> Any:
    """Start whichever Chromium there is."""
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
    own = Path(playwright.chromium.executable_path)
    if not own.exists() and not found:
        sys.exit("screenshots: no Chromium here; run 'playwright install chromium', or set CHROMIUM=/path/to/chromium")
    quiet = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
    chosen = {} if own.exists() and "CHROMIUM" not in os.environ else {"executable_path": found}
    return playwright.chromium.launch(args=quiet, **chosen)


def shoot(browser: Any, page_file: Path, scheme: str, width: int, target: Path) -> list[str]:
    """Take one picture of a whole page; return what is wrong with it."""
    problems = []
    address = page_file.resolve().as_uri()
    context = browser.new_context(
        viewport={"width": width, "height": 900},
        device_scale_factor=2 if width < 600 else 1,
        color_scheme=scheme,
        java_script_enabled=False,
    )
    page = context.new_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(address)
    problems += [f"asks for {url[:80]}" for url in asked if url != address and not url.startswith("data:")]
    wide = page.evaluate("document.documentElement.scrollWidth")
    if wide > width:
        problems.append(f"is {wide} pixels wide in a window of {width}")
    page.evaluate("document.querySelectorAll('details').forEach(part => part.open = true)")
    page.screenshot(path=target, full_page=True)
    context.close()
    return problems


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out/screenshots"))
    parser.add_argument("--pages", type=Path, help="folder of reports made before, by command")
    arguments = parser.parse_args()
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        sys.exit("screenshots: playwright is missing; pip install '.[screenshots]'")
    arguments.out.mkdir(parents=True, exist_ok=True)
    pages = make_reports(arguments.out / "reports") if arguments.pages is None else pages_in(arguments.pages)
    problems = []
    with sync_playwright() as playwright:
        browser = start(playwright)
        for name, file in pages.items():
            for size, width in WIDTHS.items():
                for scheme in ("light", "dark"):
                    target = arguments.out / f"{name}-{size}-{scheme}.png"
                    found = shoot(browser, file, scheme, width, target)
                    problems += [f"{name}, {size}, {scheme}: the page {problem}" for problem in found]
        browser.close()
    print(f"{len(pages) * len(WIDTHS) * 2} pictures in {arguments.out}")
    if problems:
        sys.exit("\n".join(problems))


if __name__ == "__main__":
    main()
