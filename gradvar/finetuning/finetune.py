"""A checkpoint, tasks and seeds to a table of scores, seed by seed, so that what is done is not done again."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from gradvar.errors import GradvarError
from gradvar.finetuning.reading import TaskData, read_task
from gradvar.finetuning.tasks import TASKS, parse_tasks
from gradvar.finetuning.tuning import FinetuneSettings, Prepared, encode, steps_of, tune
from gradvar.huggingface.checkpoint import check_config, digest_of, locate, longest_sequence, tokenizer_of, weight_files
from gradvar.huggingface.classifier import load_classifier
from gradvar.provenance import command, versions
from gradvar.report.finetuned import Finetuned, TaskResult
from gradvar.training.folder import held, written

RESULTS = "results.json"
FILES = (RESULTS, "results.csv", "summary.txt")

LONGEST = 128
"""Tokens of an example, where nothing else is said and the model takes as many."""


def finetune(
    checkpoint: str | Path,
    tasks: str,
    data: str | Path,
    *,
    seeds: int = 5,
    settings: FinetuneSettings = FinetuneSettings(),
    out: str | Path | None = None,
    cpu: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
    say: Callable[[str], None] = lambda line: None,
) -> Finetuned:
    """Fine-tune a checkpoint on tasks of GLUE, and score it on their held-out examples.

    Args:
        checkpoint: A folder as ``save_pretrained`` writes it, a run's folder, or a hub name. Its encoder is taken; the
            head is fresh, with other first weights for each seed.
        tasks: Names with commas between; ``all`` for all.
        data: Folder of the tasks' files, or a hub data set; see :func:`~gradvar.finetuning.reading.read_task`.
        seeds: How many, from 0.
        settings: How.
        out: Folder of the results, written after each seed; what it holds of the same settings is not done again.
        cpu: Use no GPU.
        progress: Is told of steps done, of all tasks and seeds, and how many there are.
        say: Is told of each seed that is done.

    Returns:
        The scores: for each task, the median over seeds of the mean of its official metrics, with an interval.

    Raises:
        GradvarError: If something cannot be read, the folder holds something else, or training goes wrong.
    """
    if seeds < 1:
        raise GradvarError(f"--seeds {seeds}: give 1 or more")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise GradvarError("finetune runs in one process; start it without torchrun")
    if settings.bf16 and (cpu or not (torch.cuda.is_available() and torch.cuda.is_bf16_supported())):
        raise GradvarError("--bf16 needs a GPU that has bfloat16; leave it out")
    wanted, folder = parse_tasks(tasks), locate(checkpoint)
    check_config(folder)
    tokenizer = tokenizer_of(folder)
    model = load_classifier(folder, 2, seed=0)
    _check_tokenizer(folder, tokenizer, model)
    settings = _with_length(settings, longest_sequence(model, tokenizer))
    read = [read_task(task, str(data)) for task in wanted]
    known = {
        "checkpoint": str(folder),
        "checkpoint_sha256": digest_of(weight_files(folder)),
        "tokenizer_sha256": digest_of(_tokenizer_files(folder, tokenizer)),
    } | asdict(settings)
    made = {"command": command(), "versions": versions()}
    place = None if out is None else Path(out)
    steps = {task.task.name: steps_of(len(task.train.labels), settings) for task in read}

    with _kept(place) as keep:
        before = _before(place, known, read) or Finetuned((), known, made)
        result = replace(before, settings=known, asked=before.asked | {task.task.name: seeds for task in read})
        if before.tasks:
            keep(result)  # with what is missing now
        found = {task.task: task for task in before.tasks}
        todo = [(task, seed) for task in read for seed in result.todo(task.task.name)]
        total, done = sum(steps[task.task.name] for task, _ in todo), 0
        for number, (task, seed) in enumerate(todo):
            name = task.task.name
            if number == 0 or task is not todo[number - 1][0]:
                prepared = encode(task, tokenizer, settings.max_length or LONGEST)
            tell = partial(_tell, progress, done, total)
            one = tune(folder, tokenizer, prepared, settings, seed, cpu, tell)
            done += steps[name]
            found[name] = (found.get(name) or _begun(prepared)).having(one)
            result = replace(result, tasks=tuple(found.values()), provenance=made)
            keep(result)
            scores = ", ".join(f"{metric.replace('_', ' ')} {value:.1f}" for metric, value in one.metrics.items())
            say(f"{name}, seed {seed}: {scores} ({one.steps:,} steps, {one.seconds:,.0f} s)")
    return result


def _tell(progress: Callable[[int, int], None], before: int, total: int, done: int) -> None:
    progress(before + done, total)


def _check_tokenizer(folder: Path, tokenizer: Any, model: Any) -> None:
    """Refuse a tokenizer that cannot pad, or that has tokens which the model does not know."""
    if tokenizer.pad_token_id is None:
        raise GradvarError(f"the tokenizer in {folder} has no padding token; set its pad_token and save it there")
    known = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > known:
        raise GradvarError(
            f"the tokenizer in {folder} has {len(tokenizer)} tokens, the model {known}; "
            "give the checkpoint the tokenizer that it was trained with"
        )


def _tokenizer_files(folder: Path, tokenizer: Any) -> list[Path]:
    """List what a tokenizer was loaded from."""
    names = {*tokenizer.vocab_files_names.values(), "tokenizer_config.json", "special_tokens_map.json"}
    return [path for name in sorted(names) if (path := folder / name).is_file()]


def _with_length(settings: FinetuneSettings, longest: int) -> FinetuneSettings:
    """Settle the length of examples, for a model that takes so many tokens."""
    if settings.max_length is None:
        return replace(settings, max_length=min(LONGEST, longest))
    if settings.max_length > longest:
        raise GradvarError(
            f"--max-length {settings.max_length} is beyond the {longest} positions of the model; lower it"
        )
    return settings


def _begun(prepared: Prepared) -> TaskResult:
    data = prepared.data
    parts = (data.train, *data.dev.values())
    held_out = sum(len(part.labels) for part in parts[1:])
    broken, empty = (sum(counts) for counts in zip(*((part.broken, part.empty) for part in parts), strict=True))
    return TaskResult(data.task.name, len(data.train.labels), held_out, prepared.cut, broken, data.sha256, empty=empty)


def _before(out: Path | None, known: dict[str, Any], read: Sequence[TaskData]) -> Finetuned | None:
    """Read what earlier commands left, if it was made in the same way; the folder is to be held."""
    if out is None or not (path := out / RESULTS).exists():
        return None
    try:
        before = Finetuned.from_json(json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse))
        for task in before.tasks:
            if task.task not in TASKS or set(task.seeds[0].metrics) != TASKS[task.task].all_scores:
                raise ValueError(f"'{task.task}' with {', '.join(task.seeds[0].metrics)} is no task of GLUE")
        if foreign := sorted(before.asked.keys() - TASKS.keys()):
            raise ValueError(f"'{foreign[0]}' is no task of GLUE")
        if unsaid := [key for key in known if key not in before.settings]:
            raise ValueError(f"it does not say what its {unsaid[0].replace('_', ' ')} was")
    except (OSError, ValueError) as error:
        raise GradvarError(f"{path} cannot be gone on with ({error}); remove it, or give another folder") from error
    for key, value in known.items():
        if key != "checkpoint" and before.settings.get(key) != value:
            raise GradvarError(
                f"--out {out} holds results that were made otherwise ({key.replace('_', ' ')} "
                f"{before.settings.get(key)}, not {value}); give another folder"
            )
    found = {task.task: task for task in before.tasks}
    for data in read:
        if (name := data.task.name) in found and found[name].sha256 != data.sha256:
            raise GradvarError(f"--out {out} holds results of other {name} examples; give another folder")
    return before


def _refuse(constant: str) -> None:
    raise ValueError(f"it holds {constant}")


def _check_folder(out: Path) -> None:
    """Refuse a folder that is for something else."""
    if os.path.lexists(out) and not out.is_dir():
        raise GradvarError(f"--out {out} is a file; give a folder")
    there = out.iterdir() if out.is_dir() else ()
    foreign = sorted(path.name for path in there if path.name not in FILES and not path.name.startswith("."))
    if foreign:
        raise GradvarError(f"--out {out} holds '{foreign[0]}', which is no part of such results; give another folder")


@contextmanager
def _kept(out: Path | None) -> Iterator[Callable[[Finetuned], None]]:
    """Hold a folder of results.

    Yields:
        What writes them, each file whole or not at all.
    """
    if out is None:
        yield lambda _: None
        return
    _check_folder(out)

    def keep(result: Finetuned) -> None:
        text = json.dumps(result.to_json(), indent=2, allow_nan=False, ensure_ascii=False) + "\n"
        contents = (text, result.to_frame().to_csv(index=False), repr(result) + "\n")
        with written(out):
            for name, content in zip(FILES, contents, strict=True):
                partial_file = out / f".{name}"
                try:
                    partial_file.write_text(content, encoding="utf-8")
                    partial_file.replace(out / name)
                finally:
                    partial_file.unlink(missing_ok=True)

    missing = [path for path in (out.absolute(), *out.absolute().parents) if not os.path.exists(path)]
    with written(out):
        out.mkdir(parents=True, exist_ok=True)
    try:
        with held(out):
            yield keep
    finally:
        if not os.path.exists(out / RESULTS):
            for path in missing:
                with suppress(OSError):
                    path.rmdir()
