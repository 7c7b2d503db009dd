"""Shared set-up: one thread a process, no network, and the small models and texts of `cases.py`."""

import gc
import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
from matplotlib.figure import Figure

torch.set_num_threads(1)


@pytest.hookimpl(trylast=True)
def pytest_collection_finish():
    """Modules and tests stay: the garbage collector need not look at them again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture
def undrawn(monkeypatch):
    """Leave pictures empty, which take most of the time of a report: for tests that are about something else in it."""
    empty = b'<svg xmlns="http://www.w3.org/2000/svg"/>'

    def save(_, target, **__):
        (target.write if hasattr(target, "write") else Path(target).write_bytes)(empty)

    monkeypatch.setattr(Figure, "savefig", save)
