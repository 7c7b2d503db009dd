"""Two processes on one study, forked as torchrun would start them or started by it, against one process."""

import json
import os
import subprocess
import sys
from contextlib import redirect_stdout
from types import SimpleNamespace

import pytest

from gradvar import ranks
from gradvar.cli import main
from tests import cases
from tests.training import runs

STUDY = ["--sentences", "9", "--masks", "2", "--max-length", "12", "--dtype", "float64"]
GROWING = ["--precision", "0.001", "--max-sentences", "14", "--save-cells", "--json"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    cases.save_checkpoint(folder / "model")
    cases.write_text(folder / "text.txt")
    return folder


def forked(place, *options):
    def work():
        with (place / f"printed-{os.environ['RANK']}").open("w") as file, redirect_stdout(file):
            return runs.command(command_line(place, *options))

    codes = runs.forked(work, 2, place / "log")
    said = [(place / name).read_text() for name in ("log", "log1")]
    printed = [(place / f"printed-{rank}").read_text() for rank in range(2)]
    return SimpleNamespace(returncode=max(codes), stdout="".join(printed), stderr="".join(said))


def torchrun(place, *options):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "gradvar"]
    return subprocess.run([*command, *command_line(place, *options)], capture_output=True, text=True, timeout=240)


def command_line(place, *options):
    return ["decompose", "--checkpoint", str(place / "model"), "--data", str(place / "text.txt"), *STUDY, *options]


def numbers(value, path=""):
    """Every number of a result by its path, timings apart."""
    if isinstance(value, dict):
        value = value.items()
    elif isinstance(value, list):
        value = enumerate(value)
    else:
        return {path: value} if isinstance(value, int | float) else {}
    found = {}
    for name, part in value:
        if name not in ("provenance", "advice", "seconds"):
            found |= numbers(part, f"{path}/{name}")
    return found


STARTED = pytest.mark.parametrize("two_processes", [forked, pytest.param(torchrun, marks=pytest.mark.full)])


@pytest.mark.usefixtures("undrawn")
@STARTED
def test_two_processes_give_the_result_of_one(place, capsys, tmp_path, two_processes):
    """Of a study that grows, and so is shared out three times; sums in another order leave rounding, 1e-16 each."""
    found = two_processes(place, *GROWING, "--out", str(tmp_path / "two"))
    assert found.returncode == 0, found.stderr
    with pytest.raises(SystemExit) as ended:
        main(command_line(place, *GROWING, "--out", str(tmp_path / "one")))
    assert ended.value.code == 0
    one, two = json.loads(capsys.readouterr().out), json.loads(found.stdout)
    assert two["provenance"]["processes"] == 2
    assert one["study"] == two["study"]
    assert one["notices"] == two["notices"]
    expected = numbers(one)
    assert len(expected) > 100
    assert numbers(two) == pytest.approx(expected, rel=1e-6, abs=1e-12)
    assert {p.name for p in (tmp_path / "two").iterdir()} == {p.name for p in (tmp_path / "one").iterdir()}


@STARTED
def test_errors_are_one_line_of_one_process(place, two_processes):
    found = two_processes(place, "--memory", "1MiB")
    lines = [line for line in found.stderr.splitlines() if line.startswith("gradvar: ")]
    assert len(lines) == 1
    assert "raise --memory" in lines[0]
    assert found.stdout == ""
    assert found.returncode == (2 if two_processes is forked else 1)  # of the launcher, which has words of its own
    assert "Traceback" not in found.stderr.split("gradvar: ")[0]


@pytest.mark.parametrize(("world", "count"), [(1, 5), (2, 5), (3, 5), (4, 4), (7, 64)])
def test_shares_are_even_and_leave_nothing_out(world, count, monkeypatch):
    monkeypatch.setattr(ranks, "world", lambda: world)
    shares = []
    for rank in range(world):
        monkeypatch.setattr(ranks, "rank", lambda rank=rank: rank)
        shares.append(list(range(count))[ranks.share_of(count)])
    assert [i for share in shares for i in share] == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_each_process_takes_a_gpu_of_its_own(monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert ranks.own_device("cuda") == "cuda"
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert [ranks.own_device(name) for name in ("cuda", "cpu", "cuda:0")] == ["cuda:1", "cpu", "cuda:0"]
