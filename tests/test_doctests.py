"""Examples in docstrings run as they stand, and print what they say."""

import doctest
import importlib
from pathlib import Path

import pytest

import gradvar

ROOT = Path(gradvar.__file__).parent
MODULES = [
    ".".join(path.relative_to(ROOT.parent).with_suffix("").parts)
    for path in sorted(ROOT.rglob("*.py"))
    if ">>> " in path.read_text(encoding="utf-8")
]


def examples():
    """Find the docstrings that have examples, in all modules that have some."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    for name in MODULES:
        for test in finder.find(importlib.import_module(name)):
            if test.examples:
                yield pytest.param(test, id=test.name)


FOUND = list(examples())


@pytest.mark.parametrize("test", FOUND)
def test_an_example_prints_what_it_says(test):
    said = []
    failed, tried = doctest.DocTestRunner().run(test, out=said.append)
    assert tried
    assert not failed, "".join(said)


def test_the_main_names_have_examples():
    have = {test.id.rpartition(".")[2] for test in FOUND}
    assert {"decompose", "compare", "from_checkpoint", "parse_proposal", "Proposal", "Estimate", "Schedule"} <= have
