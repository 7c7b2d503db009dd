"""Every experiment runs from end to end at the smallest scale, on what ships with gradvar, and goes on where it was."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = re.search(r"EXPERIMENTS := (.*)", (ROOT / "Makefile").read_text()).group(1).split()


def run(name, *options):
    return subprocess.run(
        [sys.executable, ROOT / "experiments" / f"{name}.py", *options], capture_output=True, text=True, cwd=ROOT
    )


@pytest.mark.full
def test_all_run_draw_and_go_on(tmp_path):
    for name in SCRIPTS:
        done = run(name, "--quick", "--work", str(tmp_path))
        assert done.returncode == 0, f"{name}: {done.stderr}"
    figures = tmp_path / "quick" / "figures"
    assert {path.stem for path in figures.glob("*.png")} >= {"theorem", "over_training", "proposals", "convergence"}
    again = run("convergence", "--quick", "--work", str(tmp_path))
    done, units = map(int, re.search(r"(\d+) of (\d+) units are done", again.stdout).groups())
    assert done == units > 0


@pytest.mark.parametrize("options", [("--valid", "README.md"), ("--train", "nowhere.txt", "--valid", "README.md")])
def test_a_text_that_is_not_there_is_told_in_one_line(options):
    done = run("cost", *options)
    assert done.returncode == 2
    assert re.fullmatch(r"cost\.py: --train .*: give a file of text, or --quick\n", done.stderr)
