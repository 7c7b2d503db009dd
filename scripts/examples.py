"""Runs the commands that the pages show, and puts what they print below them.

    python scripts/examples.py docs/quickstart.md docs/commands/runs.md
    python scripts/examples.py docs/commands/*.md --glue DIR        # DIR holds the files that `finetune` reads

A block of a page that begins with ```console holds commands after `$ `, a line each (a backslash at its end goes on),
and below each what it printed on stdout. Those of a page run in order, in an empty folder but for `text.txt`, the
embedded text, `recipes` and `glue`. What a command says of its progress, on stderr, is left out.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import gradvar

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```console\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)
COMMAND = re.compile(r"^\$ ((?:.*\\\n)*.*)\n", flags=re.MULTILINE)


def commands_of(block: str) -> list[str]:
    """List the commands of a block."""
    return [re.sub(r"\s*\\\n\s*", " ", command) for command in COMMAND.findall(block)]


def output_of(command: str, scratch: Path) -> str:
    """Run a command; return what it printed."""
    print(f"$ {command}", file=sys.stderr, flush=True)
    prelude = f'gradvar() {{ "{sys.executable}" -m gradvar "$@"; }}; '
    environment = os.environ | {"COLUMNS": "96", "PYTHONPATH": str(ROOT), "NO_COLOR": "1"}
    ran = subprocess.run(
        ["bash", "-c", prelude + command], cwd=scratch, env=environment, stdout=subprocess.PIPE, text=True
    )
    if ran.returncode:
        sys.exit(f"'{command}' ended with {ran.returncode}")
    said = ran.stdout.replace(f"{ROOT}/", "")  # where the embedded checkpoint is
    return "".join(f"{line.rstrip()}\n" for line in said.rstrip().splitlines())


def filled(page: str, scratch: Path) -> str:
    """Run the blocks of a page; return it with what they printed."""

    def again(block: re.Match[str]) -> str:
        written = [f"$ {command}\n" for command in COMMAND.findall(block[1])]
        said = [output_of(command, scratch) for command in commands_of(block[1])]
        parts = [line + output for line, output in zip(written, said, strict=True)]
        return f"```console\n{chr(10).join(parts)}```"

    return BLOCK.sub(again, page)


def main() -> None:
    """Go through the pages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="+", type=Path)
    parser.add_argument("--glue", type=Path, help="Folder with RTE.train.tsv and RTE.dev.tsv.")
    given = parser.parse_args()
    for path in given.pages:
        with tempfile.TemporaryDirectory() as scratch:
            shutil.copy(gradvar.DEMO_TEXT, Path(scratch, "text.txt"))
            Path(scratch, "recipes").symlink_to(ROOT / "recipes")
            if given.glue is not None:
                Path(scratch, "glue").symlink_to(given.glue.resolve())
            path.write_text(filled(path.read_text(encoding="utf-8"), Path(scratch)), encoding="utf-8")


if __name__ == "__main__":
    main()
