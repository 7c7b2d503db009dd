"""What a result should say of the run that made it."""

from __future__ import annotations

import platform
import re
import sys
from importlib.metadata import PackageNotFoundError, version


def versions() -> dict[str, str]:
    """Return the versions that can change a result."""
    found = {"python": platform.python_version()}
    for package in ("gradvar", "torch", "transformers", "tokenizers", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def command() -> str:
    """Return the command line that runs."""
    program = "gradvar" if re.search(r"gradvar(/__main__\.py)?$", sys.argv[0]) else sys.argv[0]
    return " ".join([program, *sys.argv[1:]])
