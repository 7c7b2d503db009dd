"""Tiny runs: a recipe with its text, the trainer in this process, processes that die on purpose, and what is left."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForMaskedLM, TrainingArguments
from transformers.trainer_pt_utils import safe_globals

from gradvar import checkpoints
from gradvar.cli import main
from gradvar.metrics import read_metrics
from gradvar.training.callbacks import MetricsFile
from gradvar.training.recipe import MapNetTraining, Masking
from gradvar.training.sequences import collate
from gradvar.training.trainer import MaskProposalTrainer
from tests import cases

SHAPE = {"width": 8, "heads": 2}
MAPNET = MapNetTraining(calibrate_every=1, shape=SHAPE, learning_rate=0.05)  # so that it says something soon
DRAWN = "mapnet^0.5/pps~0.1"  # by which the MAPNet draws from the first step on
ROWS = 30  # sequences: with 8 a step, 3.75 steps an epoch


# ---- the trainer, in this process


def data(rows: int = ROWS, seed: int = 0) -> list[dict[str, list[int]]]:
    """Sequences of several lengths."""
    lengths = [12 - (3 * i) % 5 for i in range(rows)]
    words = iter(_common(sum(lengths), seed))
    return [{"input_ids": [cases.CLS, *(5 + next(words) for _ in range(n - 2)), cases.SEP]} for n in lengths]


def encoder(rate: float = 0.1, dtype: torch.dtype = torch.float32) -> nn.Module:
    return cases.model("bert", rate=rate).to(dtype).train()


def trainer(
    out: Path,
    proposal: str | Masking = "uniform/simple",
    *,
    model: nn.Module | None = None,
    rate: float = 0.1,
    mask_rate: float = 0.3,
    train: Any = None,
    valid: Any = None,
    callbacks: Iterable[Any] = (),
    seconds: float | None = None,
    max_length: Any = None,
    block: int = 100,
    **arguments: Any,
) -> MaskProposalTrainer:
    """A trainer of 11 steps of 8 sequences that saves every 5 and logs every 3; `arguments` are the Trainer's."""
    given = {"per_device_train_batch_size": 8, "max_steps": 11, "save_steps": 5, "logging_steps": 3}
    given |= {"learning_rate": 1e-3, "use_cpu": True, "disable_tqdm": True, "report_to": "none", "log_level": "error"}
    return MaskProposalTrainer(
        encoder(rate) if model is None else model,
        TrainingArguments(output_dir=str(out), **given | arguments),
        data() if train is None else train,
        data(20, seed=1) if valid is None else valid,
        processing_class=cases.tokenizer(),
        masking=proposal if isinstance(proposal, Masking) else Masking(proposal=proposal, mask_rate=mask_rate),
        mapnet=MAPNET,
        callbacks=[MetricsFile(out), *callbacks],
        seconds=seconds,
        max_length=max_length,
        block=block,
    )


# ---- the command, by a recipe


def make_place(folder: Path) -> Path:
    """A folder with a tokenizer, some 30 training sequences, held-out text and a recipe of 14 steps."""
    cases.save_checkpoint(folder / "model")
    for seed, (name, documents) in enumerate((("train", 5), ("valid", 3))):
        text = (" ".join(f"w{i}" for i in _common(60, seed + 10 * document)) for document in range(documents))
        (folder / f"{name}.txt").write_text("\n\n".join(text) + "\n")
    return write_recipe(folder)


def _common(count: int, seed: int) -> list[int]:
    """Numbers below 55 of which small ones are much more frequent, so that a MAPNet has something to say."""
    return ((np.random.default_rng(seed).pareto(0.7, count)).astype(int) % 55).tolist()


def write_recipe(folder: Path, name: str = "recipe.yaml", **changes: Any) -> Path:
    """Write the tiny recipe with some sections changed; return the folder."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    sections: dict[str, Any] = {
        "data": {
            "train": str(folder / "train.txt"),
            "valid": str(folder / "valid.txt"),
            "max_length": 12,
            "tokenizer": {"source": str(folder / "model")},
        },
        "model": {"architecture": "bert", "config": sizes | {"max_position_embeddings": 32}},
        "masking": {"proposal": "uniform/simple", "mask_rate": 0.3},
        "mapnet": {"calibrate_every": 1, "shape": SHAPE, "learning_rate": 0.05},
        "training": {"steps": 14, "batch": 8, "learning_rate": 0.02},
        "evaluation": {"every": 5, "sentences": 12},
        "saving": {"every": 4, "log_every": 3, "loggers": []},
    }
    for section, values in changes.items():
        sections[section] = sections.get(section, {}) | values
    (folder / name).write_text(yaml.safe_dump(sections))
    return folder


def words(place: Path, out: Path, *more: str) -> list[str]:
    """The command line of a run by the recipe."""
    return ["train", str(place / "recipe.yaml"), "--out", str(out), "--cache", str(place / "cache"), "--cpu", *more]


def resuming(place: Path, out: Path) -> list[str]:
    return ["train", "--resume", str(out), "--cache", str(place / "cache"), "--cpu"]


def command(arguments: list[str]) -> int:
    """Run the command in this process; return its exit code."""
    try:
        main(arguments)
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def started(arguments: list[str], ranks: int = 1) -> "subprocess.Popen[str]":
    """Start the command as a process of its own, by torchrun where there are ranks, in a session of its own."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    return subprocess.Popen(
        [sys.executable, *launcher, "-m", "gradvar", *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def once(process: "subprocess.Popen[str]", run: Path, step: int) -> None:
    """Wait until a run has logged a step."""
    deadline = time.monotonic() + 60
    while not any(line["step"] >= step for line in read_metrics(run)):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.002)


# ---- processes that are forked from this one: quick to start, and to be broken as a test likes


def forked(work: Callable[[], Any], ranks: int = 1, log: Path | None = None, seconds: int = 100) -> list[int]:
    """Do something in processes of their own, one a rank, joined as torchrun joins them; return their exit codes."""
    port = _free_port()
    pids = []
    for rank in range(ranks):
        with warnings.catch_warnings(action="ignore"):
            pid = os.fork()
        if pid == 0:
            _work(work, rank, ranks, port, log, seconds)
        pids.append(pid)
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


def _work(work: Callable[[], Any], rank: int, ranks: int, port: int, log: Path | None, seconds: int) -> None:
    code = 70
    try:
        signal.alarm(seconds)
        sys.stdout = sys.stderr = open(f"{log or os.devnull}{'' if rank == 0 or log is None else rank}", "w")  # noqa: SIM115
        if ranks > 1:
            own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
            own |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            os.environ.update({name: str(value) for name, value in own.items()})
        AcceleratorState._reset_state(reset_partial_state=True)
        code = work() or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def dying(place: str, call: int, work: Callable[[], Any]) -> Callable[[], Any]:
    """Do something until a function, named `module:attribute`, is called for the nth time: then kill -9 this process.

    To be forked.
    """
    return broken(place, call, lambda: os.kill(os.getpid(), signal.SIGKILL), work)


def broken(place: str, call: int, instead: Callable[[], Any], work: Callable[[], Any]) -> Callable[[], Any]:
    """Do something, and something else instead of the nth call of a function. To be forked."""

    def start() -> Any:
        owner, name = resolve(place)
        original, calls = getattr(owner, name), iter(range(1, 10**9))

        def counted(*arguments: Any, **options: Any) -> Any:
            return instead() if next(calls) == call else original(*arguments, **options)

        setattr(owner, name, counted)
        return work()

    return start


def resolve(place: str) -> tuple[Any, str]:
    """Find the owner of `module:attribute.attribute`, and the last name."""
    module, _, path = place.partition(":")
    *parents, name = path.split(".")
    owner: Any = __import__(module, fromlist=["_"])
    for parent in parents:
        owner = getattr(owner, parent)
    return owner, name


# ---- what is left of a run


def everything(run: Path) -> dict[str, Any]:
    """All that a run left: the last checkpoint, tensor by tensor, and its metrics, timings apart."""
    folder = checkpoints.last_whole(run)
    assert folder is not None
    found: dict[str, Any] = {"name": folder.name, "metrics": metrics(run)}
    for path in sorted(folder.iterdir()):
        if path.suffix == ".safetensors":
            found[path.name] = load_file(path)
        elif path.suffix in (".pt", ".pth"):
            with safe_globals():
                found[path.name] = torch.load(path, weights_only=True)
        elif path.suffix == ".json" and path.name not in (checkpoints.MARKER, "mapnet.json"):
            found[path.name] = json.loads(path.read_text())
    for timing in ("elapsed", "log_history", "total_flos"):
        found["gradvar_state.json"].pop(timing, None)
        found["trainer_state.json"].pop(timing, None)
    return found


def metrics(run: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if k not in ("seconds", "eval_seconds")} for line in read_metrics(run)]


def draws(run: Path, proposal: str) -> list[torch.Tensor]:
    """What the next step of a run would draw, were it on this module's data."""
    folder = checkpoints.last_whole(run)
    assert folder is not None
    made = trainer(run, proposal, model=AutoModelForMaskedLM.from_pretrained(folder))
    made._load_from_checkpoint(str(folder))
    places = made.course.order.at(int(folder.name.rpartition("-")[2]))
    inputs = collate([(place, np.array(made.train_dataset[place.row]["input_ids"])) for place in places])
    sentences = made.joint.sentences(**inputs)
    masks, scores = made.joint.draw(sentences, inputs["row"], inputs["epoch"])
    batch = made.joint.masked.corrupted(sentences, masks)
    return [masks.positions, masks.weights, scores, batch["input_ids"]]


def differences(one: Any, other: Any, path: str = "") -> list[str]:
    """Where two nested values differ by as much as a bit."""
    if isinstance(one, torch.Tensor) or isinstance(other, torch.Tensor):
        same = type(one) is type(other) and one.dtype == other.dtype and torch.equal(one, other)
        return [] if same else [path]
    if isinstance(one, np.ndarray):
        return [] if np.array_equal(one, other) else [path]
    if isinstance(one, dict) and isinstance(other, dict):
        return [x for key in {**one, **other} for x in differences(one.get(key), other.get(key), f"{path}/{key}")]
    if isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
        return [x for i, (a, b) in enumerate(zip(one, other, strict=True)) for x in differences(a, b, f"{path}/{i}")]
    return [] if type(one) is type(other) and one == other else [f"{path}: {one!r} {other!r}"[:200]]


def random_numbers() -> list[Any]:
    """The states of all generators that a training step may take from."""
    return [random.getstate(), np.random.get_state(), torch.get_rng_state()]
