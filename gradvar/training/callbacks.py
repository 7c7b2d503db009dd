"""What a run tells while it trains: `metrics.jsonl`, the terminal, and an end that was asked for."""

from __future__ import annotations

import json
import math
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainingArguments
from transformers.trainer_callback import TrainerControl, TrainerState
from transformers.trainer_utils import SaveStrategy

from gradvar import checkpoints
from gradvar.errors import GradvarError
from gradvar.metrics import METRICS, read_metrics

if TYPE_CHECKING:
    from rich.console import Console

    from gradvar.training.trainer import MaskProposalTrainer

_SAID_EVERY = 10.0  # seconds, where there is no terminal


class Steps(TrainerCallback):
    """Counts epochs by what was seen, and ends a run whose budget is used up, or that was asked to stop.

    Args:
        trainer: Whose run.
    """

    def __init__(self, trainer: MaskProposalTrainer) -> None:
        self._trainer, self._waits = trainer, False

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Wait for the first data."""
        self._waits = True

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Let the schedules go on; the clock begins when the first data are there, which a stream may read again."""
        if self._waits:
            self._trainer.start_clock()
            self._waits = False
        self._trainer.follow_schedules()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Say what is due."""
        trainer, order = self._trainer, self._trainer.course.order
        before, now = order.epochs(state.global_step - 1), order.epochs(state.global_step)
        state.epoch = now  # type: ignore[assignment]  # of a stream nobody knows
        ended = before is not None and now is not None and int(now) > int(before)
        if ended and not trainer.is_over:  # to the Trainer a run is one epoch, at whose end it acts itself
            control.should_log |= args.logging_strategy == "epoch"
            control.should_evaluate |= args.eval_strategy == "epoch"
            control.should_save |= args.save_strategy == "epoch"
        if trainer.in_a_row:  # checkpoints of steps that were skipped would push out those of steps that were not
            control.should_save = False
        if trainer.stopped or trainer.is_over:
            control.should_training_stop = True
            control.should_save |= args.save_strategy != SaveStrategy.NO


class MetricsFile(TrainerCallback):
    """Writes a line of JSON for everything that is logged; what a resumed run repeats is written once.

    Args:
        run: The run's folder.
    """

    def __init__(self, run: Path) -> None:
        self._path = run / METRICS

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Drop the lines behind the checkpoint that the run goes on from."""
        if state.is_world_process_zero:
            self.mend(state.global_step)

    def mend(self, step: int) -> None:
        """Keep the whole lines up to a step."""
        if not self._path.exists():
            return
        kept = [line for line in read_metrics(self._path.parent) if line["step"] <= step]
        partial = self._path.with_name(f".{METRICS}")
        partial.write_text("".join(json.dumps(line) + "\n" for line in kept))
        partial.replace(self._path)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """Write a line."""
        if not state.is_world_process_zero or not logs or "train_runtime" in logs:  # the Trainer's own last word
            return
        line = {"step": state.global_step} | {name: _plain(value) for name, value in logs.items()}
        with logging(self._path), self._path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line, allow_nan=False) + "\n")


@contextmanager
def logging(path: Path) -> Iterator[None]:
    """Say in one line why a log of a run cannot be written.

    Args:
        path: Of the log, in the run's folder.

    Raises:
        GradvarError: If it cannot.
    """
    try:
        yield
    except OSError as error:
        run = path.parent
        then = f"gradvar train --resume {run}" if checkpoints.last_whole(run) else "start anew in another folder"
        raise GradvarError(f"{path} cannot be written ({error.strerror}); make room, then {then}") from error


def _plain(value: Any) -> Any:
    """Make JSON of a value; what is no finite number is null."""
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Interrupted(BaseException):  # so that no library takes it for an error of its own
    """A signal came when the last checkpoint was written already."""


class Interruption(TrainerCallback):
    """Ends a run at SIGTERM or Ctrl-C after the step under way, with a checkpoint; a second one ends it at once.

    After the last step there is a checkpoint, and a signal raises :class:`Interrupted` wherever it comes.

    Args:
        trainer: Whose run.
    """

    def __init__(self, trainer: MaskProposalTrainer) -> None:
        self._trainer = trainer
        self._before: dict[int, Any] = {}
        self._saved = False

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Listen."""
        self.listen()

    def listen(self) -> None:
        """Listen, if it does not yet."""
        for number in (signal.SIGINT, signal.SIGTERM):
            if number not in self._before:
                self._before[number] = signal.signal(number, self._heard)

    def listen_after_saving(self) -> None:
        """Listen where all is saved already."""
        self._saved = True
        self.listen()

    def _heard(self, number: int, _: Any) -> None:
        self._trainer.stop = number
        self.silence()
        if self._saved:
            raise Interrupted

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Know that all is saved; end here, if a signal came in the meantime."""
        self._saved = True
        if self._trainer.stop and not self._trainer.stopped:
            raise Interrupted

    def silence(self) -> None:
        """Listen no longer."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}


@contextmanager
def unwinding() -> Iterator[Callable[[], None]]:
    """Let SIGTERM unwind what is half-made, as Ctrl-C does.

    Yields:
        What ends that before the block does.
    """

    def end(number: int, _: Any) -> None:
        raise SystemExit(128 + number)

    if os.environ.get("WORLD_SIZE", "1") != "1":  # a process that waits for the others would not hear it
        yield lambda: None
        return
    before = signal.signal(signal.SIGTERM, end)

    def restore() -> None:
        if signal.getsignal(signal.SIGTERM) is end:
            signal.signal(signal.SIGTERM, before)

    try:
        yield restore
    finally:
        restore()


class Terminal(TrainerCallback):
    """Shows progress: a bar on a terminal, a line now and then elsewhere.

    Args:
        trainer: Whose run.
        console: Where; silent on all ranks but the first.
    """

    def __init__(self, trainer: MaskProposalTrainer, console: Console) -> None:
        self._trainer, self._console = trainer, console
        self._bar: Any = None
        self._task: Any = None
        self._said = self._start = time.monotonic()
        self._start_tokens = 0
        self._latest: dict[str, float] = {}

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Begin."""
        self._said = self._start = time.monotonic()
        self._start_tokens = self._trainer.tokens
        if self._console.is_terminal and not self._console.quiet:
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            self._bar = Progress(
                TextColumn("training"),
                BarColumn(),
                TextColumn("{task.percentage:.0f} %  {task.fields[said]}"),
                TimeRemainingColumn(),
                TextColumn("left"),
                console=self._console,
                transient=True,
            )
            self._bar.start()
            self._task = self._bar.add_task("training", total=1.0, said="")

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Show where the run is."""
        done = min(1.0, self._trainer.progress)
        if self._bar is not None:
            self._bar.update(self._task, completed=done, said=self._line(state))
        elif time.monotonic() - self._said >= _SAID_EVERY or done >= 1:
            self._said = time.monotonic()
            self._console.print(f"{done:.0%}  {self._line(state)}", highlight=False)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """Remember the latest losses."""
        self._latest |= {name: x for name, x in (logs or {}).items() if name in ("loss", "eval_loss")}

    def _line(self, state: TrainerState) -> str:
        speed = (self._trainer.tokens - self._start_tokens) / max(time.monotonic() - self._start, 1e-9)
        parts = [f"step {state.global_step:,}", f"{speed:,.0f} tokens/s"]
        parts += [f"{name.replace('_', ' ')} {value:.3f}" for name, value in self._latest.items()]
        return ", ".join(parts)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """End."""
        self.close()

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
