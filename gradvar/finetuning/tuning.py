"""One fine-tuning: a checkpoint, a task and a seed to its official metrics."""

from __future__ import annotations

import inspect
import math
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import DataCollatorWithPadding, PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from gradvar.errors import GradvarError
from gradvar.finetuning.metrics import sampling_error, score_of
from gradvar.finetuning.reading import Examples, TaskData
from gradvar.huggingface.classifier import load_classifier
from gradvar.report.finetuned import SeedResult


@dataclass(frozen=True)
class FinetuneSettings:
    """How is fine-tuned.

    Attributes:
        epochs: Passes over the training examples.
        batch: Examples of a step.
        learning_rate: Peak, of AdamW; it rises for a tenth of the steps and falls linearly to 0.
        weight_decay: Of matrices.
        max_length: Tokens of an example, both texts and special tokens together; longer texts are cut. None: 128, or
            what the model takes.
        bf16: Compute in bfloat16 where autocast holds it safe; needs a GPU.

    Raises:
        GradvarError: If a number is impossible.
    """

    epochs: float = 3.0
    batch: int = 32
    learning_rate: float = 5e-5
    weight_decay: float = 0.01
    max_length: int | None = None
    bf16: bool = False

    def __post_init__(self) -> None:
        for name, least in (("epochs", 0), ("batch", 0), ("learning_rate", 0), ("max_length", 7)):
            value = getattr(self, name)
            if value is not None and not least < value < float("inf"):
                raise GradvarError(f"--{name.replace('_', '-')} {value} is impossible; give more than {least}")
        if not 0 <= self.weight_decay < float("inf"):
            raise GradvarError(f"--weight-decay {self.weight_decay} is impossible; give 0 or more")


Encoded = list[dict[str, Any]]


def steps_of(examples: int, settings: FinetuneSettings) -> int:
    """Count the steps of one fine-tuning."""
    return max(1, math.ceil(settings.epochs * math.ceil(examples / settings.batch)))


@dataclass(frozen=True)
class Prepared:
    """A task in tokens.

    Attributes:
        data: In texts.
        train: Training examples.
        dev: Held-out ones by part.
        cut: Share of the training examples that were cut.
    """

    data: TaskData
    train: Encoded
    dev: Mapping[str, Encoded]
    cut: float


def encode(data: TaskData, tokenizer: Any, max_length: int) -> Prepared:
    """Tokenise a task.

    Args:
        data: The task.
        tokenizer: Of the checkpoint.
        max_length: Tokens of an example.

    Returns:
        The task in tokens.
    """

    def encoded(examples: Examples) -> tuple[Encoded, int]:
        columns = [list(column) for column in zip(*examples.texts, strict=True)]
        found = tokenizer(*columns, verbose=False)
        long = sum(len(ids) > max_length for ids in found["input_ids"])
        if long:
            found = tokenizer(*columns, truncation=True, max_length=max_length, verbose=False)
        labels: list[Any] = list(examples.labels)
        if data.task.labels is not None:
            labels = [int(label) for label in labels]
        return [{name: found[name][i] for name in found} | {"labels": label} for i, label in enumerate(labels)], long

    train, long = encoded(data.train)
    return Prepared(data, train, {part: encoded(x)[0] for part, x in data.dev.items()}, long / len(train))


def tune(
    folder: Path,
    tokenizer: Any,
    prepared: Prepared,
    settings: FinetuneSettings,
    seed: int,
    cpu: bool = False,
    progress: Callable[[int], None] = lambda done: None,
) -> SeedResult:
    """Fine-tune once.

    Args:
        folder: Of the checkpoint.
        tokenizer: Its tokenizer.
        prepared: The task.
        settings: How.
        seed: Of the head's first weights, the order of the examples and dropout.
        cpu: Use no GPU.
        progress: Is told of steps done.

    Returns:
        What it scores on the held-out examples after the last step.

    Raises:
        GradvarError: If the loss is not finite, which ends training there.
    """
    start, task = time.perf_counter(), prepared.data.task
    model = load_classifier(folder, None if task.labels is None else len(task.labels), seed)
    taken = set(inspect.signature(model.forward).parameters)
    if getattr(model.config, "type_vocab_size", 2) < 2:  # it knows no second text
        taken.discard("token_type_ids")

    def taken_from(examples: Encoded) -> Any:
        return [{name: x for name, x in example.items() if name in taken} for example in examples]

    with tempfile.TemporaryDirectory() as nowhere:
        trainer = _Watched(
            model=model,
            args=_arguments(settings, seed, cpu, nowhere),
            train_dataset=taken_from(prepared.train),
            data_collator=DataCollatorWithPadding(tokenizer),
            processing_class=tokenizer,
            callbacks=[_Told(progress)],
        )
        trainer.remove_callback(PrinterCallback)
        try:
            loss = trainer.train().training_loss
        except FloatingPointError:
            raise GradvarError(f"{task.name}, seed {seed}: the loss is not finite; lower --learning-rate") from None
        metrics: dict[str, float] = {}
        errors = []
        for part, examples in prepared.dev.items():
            found = trainer.predict(taken_from(examples))
            labels, logits = np.asarray(found.label_ids), np.asarray(_logits(found.predictions))
            if not np.isfinite(logits).all():
                raise GradvarError(f"{task.name}, seed {seed}: predictions are not finite; lower --learning-rate")
            predictions = _predictions(logits, task.labels is None)
            scores = score_of(task.metrics, labels, predictions)
            metrics |= dict(zip(task.scores(part), scores.values(), strict=True))
            errors.append(sampling_error(task.metrics, labels, predictions, seed))
    error = float(np.sqrt(np.sum(np.square(errors))) / len(errors))
    return SeedResult(seed, metrics, error, float(loss), trainer.state.global_step, time.perf_counter() - start)


def _arguments(settings: FinetuneSettings, seed: int, cpu: bool, nowhere: str) -> TrainingArguments:
    """Say how to train, with nothing saved and nothing printed."""
    args = TrainingArguments(
        output_dir=nowhere,
        seed=seed,
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.batch,
        per_device_eval_batch_size=max(settings.batch, 64),
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        lr_scheduler_type="linear",
        warmup_steps=0.1,
        use_cpu=cpu or not torch.cuda.is_available(),
        bf16=settings.bf16,
        save_strategy="no",
        logging_strategy="no",
        logging_nan_inf_filter=False,  # so that a loss that is not finite is seen
        report_to="none",
        disable_tqdm=True,
        log_level="error",
    )
    args._n_gpu = min(args.n_gpu, 1)  # DataParallel would make a batch of one a device
    return args


def _logits(predictions: Any) -> Any:
    """Take the logits from what some models return beside hidden states."""
    return predictions[0] if isinstance(predictions, tuple) else predictions


def _predictions(logits: np.ndarray, regression: bool) -> np.ndarray:
    return logits.reshape(-1).astype(np.float64) if regression else logits.argmax(axis=-1)


class _Watched(Trainer):
    """Ends at the first loss that is not finite."""

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Do one."""
        loss = super().training_step(*args, **kwargs)
        if not torch.isfinite(loss):
            raise FloatingPointError
        return loss


class _Told(TrainerCallback):
    """Tells of progress."""

    def __init__(self, progress: Callable[[int], None]) -> None:
        self._progress = progress

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Tell."""
        self._progress(state.global_step)
