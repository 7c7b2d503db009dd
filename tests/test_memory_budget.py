import json
import subprocess
import sys
import time
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import gradvar.runner
from gradvar.errors import GradvarError
from gradvar.persample import memory
from gradvar.persample.memory import Rise, format_memory, parse_memory
from gradvar.study import decompose
from tests.cases import objective


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4GiB", 4 * 2**30),
        ("512MB", 512 * 2**20),
        ("512 mib", 512 * 2**20),
        ("1.5k", 1536),
        (" 2T ", 2 * 2**40),
        ("100", 100),
        ("100b", 100),
    ],
)
def test_amounts_of_memory(text, size):
    assert parse_memory(text) == size


@pytest.mark.parametrize(
    "text", ["", "0", "0GiB", "-1", "four", "4PiB", "4 4", "nan", "inf", "1e9", "GiB", "4.GiB", "0.5", "9" * 330 + "t"]
)
def test_what_is_no_amount_of_memory_is_refused(text):
    with pytest.raises(GradvarError, match=f"--memory '{text}' is not an amount of memory; write it like 4GiB"):
        parse_memory(text)


@given(st.integers(1, 1000), st.sampled_from("kMGt"))
def test_units_are_powers_of_1024(number, unit):
    assert parse_memory(f"{number}{unit}iB") == number * 1024 ** ("kMGt".index(unit) + 1)


def test_a_rise_is_what_was_held_at_the_most():
    with Rise(torch.device("cpu")) as rise:
        held = torch.ones(2**24, dtype=torch.float64)
        deadline = time.monotonic() + 60
        while rise.bytes < 2**26 and time.monotonic() < deadline:  # another thread looks, and may have to wait
            time.sleep(0.001)
        del held
    assert 2**26 <= rise.bytes < 2**28


def test_a_rise_that_nobody_saw_is_told_by_the_mark_where_it_is_a_new_one(monkeypatch):
    monkeypatch.setattr(Rise, "_look", lambda self: None)
    marks = iter([5 * 2**40, 7 * 2**40, 7 * 2**40, 7 * 2**40])
    monkeypatch.setattr(memory, "_high_water_mark", lambda: next(marks))
    monkeypatch.setattr(memory, "used_memory", lambda device: 4 * 2**40)
    with Rise(torch.device("cpu")) as first:
        pass
    with Rise(torch.device("cpu")) as second:
        pass
    assert (first.bytes, second.bytes) == (3 * 2**40, 0)


linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process its high-water mark")


@linux
def test_the_mark_is_what_the_process_held_at_the_most():
    before = memory._high_water_mark()
    held = torch.ones((before + 2**26) // 8, dtype=torch.float64)
    assert memory._high_water_mark() >= held.nbytes
    del held
    assert memory._high_water_mark() >= before + 2**26


@pytest.fixture
def used(monkeypatch):
    """Pretend that the process holds 1 GiB and gains from batches, so that the budget alone decides the chunks.

    What is left of a datum's bytes is what autograd keeps, which is the same in every run.
    """
    monkeypatch.setattr(gradvar.runner, "_CELLS_CPU", 64)
    monkeypatch.setattr(gradvar.runner, "used_memory", lambda device: 2**30)
    monkeypatch.setattr(gradvar.runner, "Rise", lambda device: nullcontext(SimpleNamespace(bytes=0)))


def study(beside, tables=True):
    """Run a study that may hold so many bytes beside the first GiB and its tables; return its result and its chunks."""
    masked_lm = objective(sentences=32)
    if tables:  # the mean, and 32 sketches; in so small a model every parameter is its own sketch
        beside += 33 * sum(p.numel() * p.element_size() for p in masked_lm.model.parameters())
    draw = masked_lm.draw
    sizes = []
    masked_lm.draw = lambda data, draws, seed: sizes.append(len(data)) or draw(data, draws, seed)
    return decompose(masked_lm, sentences=32, masks=4, memory=2**30 + beside), sizes


@pytest.mark.usefixtures("used")
def test_a_smaller_budget_gives_smaller_chunks_and_the_same_result():
    sizes = {}
    results = {}
    for beside in (2**30, 2**21, 2**20):
        results[beside], sizes[beside] = study(beside)
    largest = [max(chunks[3:]) for chunks in sizes.values()]  # the first chunk and its check have a size of their own
    assert largest == sorted(largest, reverse=True)
    assert largest[0] > largest[-1] >= 1
    first, *others = results.values()
    for other in others:
        assert other.components["data"].estimate == pytest.approx(first.components["data"].estimate, rel=1e-10)
        assert other.components["mask"].estimate == pytest.approx(first.components["mask"].estimate, rel=1e-10)
        np.testing.assert_allclose(other.losses, first.losses, rtol=1e-12)


@pytest.mark.usefixtures("used")
def test_a_budget_that_holds_no_sentence_is_refused_with_both_numbers():
    with pytest.raises(GradvarError) as caught:
        study(100_000)
    message = str(caught.value)
    assert "a sentence with its 4 cells takes" in message
    assert message.count(f"{format_memory(2**30)} in use, over --memory {format_memory(2**30 + 100_000)}") == 1
    assert "raise --memory, or lower --masks or --max-length" in message


@pytest.mark.usefixtures("used")
def test_a_budget_that_holds_no_means_is_refused_with_both_numbers():
    with pytest.raises(GradvarError) as caught:
        study(100_000, tables=False)
    message = str(caught.value)
    assert message.startswith("the mean gradient and the data's sketches take ")
    assert f"{format_memory(2**30)} in use, over --memory" in message
    assert message.endswith("; raise --memory, or select fewer --parameters")


STUDY = """
import json, sys
import matplotlib.pyplot, torch
from transformers import ModernBertForMaskedLM
import gradvar.cli
from gradvar.persample.memory import _high_water_mark, used_memory

budget = used_memory(torch.device("cpu")) + int(sys.argv[1]) * 2**20
sys.argv = ["gradvar", "decompose", "--sentences", "4", "--masks", "4", "--max-length", "512", "--memory", str(budget),
            "--out", sys.argv[2]]
try:
    gradvar.cli.main()
except SystemExit as end:
    assert not end.code
print(json.dumps([budget, _high_water_mark()]))
"""


@pytest.mark.full  # two processes of half a minute
@linux
def test_the_process_stays_within_two_budgets_and_comes_to_the_same_result(tmp_path):
    """The embedded checkpoint with 512 tokens: the smaller budget holds one sentence, the larger one two, as wanted.

    The whole process counts, its report included.
    """
    found = []
    for megabytes in ("320", "560"):
        out = tmp_path / megabytes
        run = subprocess.run([sys.executable, "-c", STUDY, megabytes, str(out)], capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        budget, peak = json.loads(run.stdout.splitlines()[-1])
        assert peak <= budget
        found.append(json.loads((out / "decomposition.json").read_text())["components"])
    for level in ("data", "mask"):
        small, large = (components[level]["estimate"] for components in found)
        assert small == pytest.approx(large, rel=1e-5)  # float32, in chunks of other sizes
