"""Folders of runs that nobody trained: a recipe, and curves that are known in full."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from gradvar import checkpoints

SECTIONS: dict[str, Any] = {
    "data": {"train": "/texts/train.txt", "valid": "/texts/valid.txt", "max_length": 16},
    "model": {"architecture": "bert"},
    "training": {"steps": 400},
    "evaluation": {"every": 100},
}
TOKENS, SECONDS = 1000, 0.5  # of a step


def write_run(
    folder: Path,
    losses: Sequence[float | None] = (6.0, 5.0, 4.5, 4.25),
    seed: int = 0,
    seconds: float = SECONDS,
    looks: Iterable[Mapping[str, Any]] = (),
    recipe: bool = True,
    **changes: Any,
) -> Path:
    """Write a run that is evaluated every 100 steps; `changes` are values by `section__key`, or whole sections."""
    folder.mkdir(parents=True)
    sections = {name: dict(values) for name, values in SECTIONS.items()} | {"seed": seed}
    for name, value in changes.items():
        section, _, key = name.partition("__")
        sections[section] = sections.get(section, {}) | ({key: value} if key else value)
    if recipe:
        head = f"# gradvar train recipe.yaml --out {folder.name}\n# python 3.11, torch 2.9\n"
        (folder / "recipe.yaml").write_text(head + yaml.safe_dump(sections))
    tokens = TOKENS * sections["training"].get("batch", 32) // 32
    lines: list[dict[str, Any]] = [{"step": 50, "loss": 7.0, "tokens": 50 * tokens, "seconds": 50 * seconds}, *looks]
    lines += [
        {"step": step, "eval_loss": loss, "eval_loss_se": 0.1, "tokens": step * tokens, "seconds": step * seconds}
        for step, loss in zip(range(100, 100 * len(losses) + 1, 100), losses, strict=True)
    ]
    write_lines(folder, lines)
    return folder


def hashed(folder: Path, text: str) -> Path:
    """Give a run a checkpoint that tells the hash of its text."""
    place = checkpoints.folder_of(folder, 1)
    place.mkdir()
    (place / checkpoints.STATE).write_text(json.dumps({"data_sha256": text}))
    checkpoints.seal(place)
    return folder


def write_lines(folder: Path, lines: Iterable[Any]) -> None:
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def look(step: int, **values: float) -> dict[str, float]:
    """A look at the variance; each value has its interval, 10 % to either side."""
    named = {name.replace("__", "/"): value for name, value in values.items()}
    ends = (("", 1.0), ("_low", 0.9), ("_high", 1.1))
    return {"step": step} | {f"{name}{end}": factor * x for name, x in named.items() for end, factor in ends}


def write_arms(place: Path, seeds: Iterable[int] = (0, 1)) -> list[Path]:
    """Two arms, of which `mapnet/pps` takes half the steps and 1.5 times the seconds to 5 nats, give or take."""
    runs = []
    for seed in seeds:
        jitter = 0.02 * seed
        slow = [7.0, 6.0 + jitter, 5.0 + jitter, 4.8]
        fast = [6.0 + jitter, 4.9 - jitter, 4.6, 4.4]
        runs.append(write_run(place / f"uniform-{seed}", slow, seed))
        looks = [
            look(0, variance__mask=100.0, variance__data=10.0, mapnet__rank_correlation=0.01),
            look(
                400,
                variance__mask=300.0,
                variance__data=30.0,
                mapnet__rank_correlation=0.4,
                mapnet__placebo_rank_correlation=0.01,
                mapnet__ceiling_share=0.2,
                proposal__variance_ratio=0.95,
            ),
            {"step": 60, "loss": 6.9, "exponent": 0.5, "epsilon": 0.1},
        ]
        runs.append(
            write_run(place / f"mapnet-{seed}", fast, seed, 3 * SECONDS, looks, masking={"proposal": "mapnet/pps"})
        )
    return runs
