"""A `transformers.Trainer` whose checkpoints are whole or not there, and are gone on from bit for bit."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import safetensors
import torch
import torch.distributed as dist
from torch import nn
from transformers import Trainer
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.trainer_callback import TrainerState

from gradvar import checkpoints
from gradvar.checkpoints import STATE
from gradvar.errors import GradvarError
from gradvar.huggingface.checkpoint import quiet
from gradvar.mapnet.network import MapNet
from gradvar.training.joint import JointModel
from gradvar.training.sharding import Shards, alike, gathered, shared_out

_DISK = ("No space", "File too large", "write failed", "unexpected pos", "iostream error", "I/O error", "os error")
"""What torch and safetensors say where a disk is full."""


class WholeCheckpoints(Trainer, ABC):
    """Writes checkpoints of a joint model under another name, syncs and renames them.

    Subclasses say what a run knows beside the model by ``run_state`` and ``restore_run``.

    Attributes:
        joint: The model.
        shards: Its parameters, where they are shared out; checkpoints are the same.
    """

    joint: JointModel
    shards: Shards | None = None
    _staging: str | None = None
    _gathered: dict[str, Any] | None = None

    @abstractmethod
    def run_state(self) -> dict[str, Any]:
        """Return what the run knows beside the model, as plain JSON."""

    @abstractmethod
    def restore_run(self, state: dict[str, Any]) -> None:
        """Know what :meth:`run_state` said."""

    @abstractmethod
    def paused(self) -> AbstractContextManager[None]:
        """Stop the run's clock for a while."""

    def whole(self, device: torch.device | str | None) -> AbstractContextManager[None]:
        """Let the joint model be whole for a while; see :meth:`~gradvar.training.sharding.Shards.whole`."""
        return nullcontext() if self.shards is None else self.shards.whole(device)

    @property
    def run(self) -> Path:
        """The run's folder."""
        assert self.args.output_dir is not None
        return Path(self.args.output_dir)

    def go_to(self, checkpoint: Path) -> None:
        """Be where a checkpoint is, without training.

        Args:
            checkpoint: Its folder.
        """
        self._load_from_checkpoint(str(checkpoint))
        first, local = self.state.is_world_process_zero, self.state.is_local_process_zero
        self.state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
        self.state.is_world_process_zero, self.state.is_local_process_zero = first, local

    def _get_output_dir(self, trial: Any) -> str:
        return self._staging or super()._get_output_dir(trial)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write a checkpoint whole or not at all; where it fails on one rank, it fails on all."""
        run, step = Path(super()._get_output_dir(trial)), self.state.global_step
        staging, first = checkpoints.staging_of(run), self.args.process_index == 0
        with self.paused():
            self._together(lambda: checkpoints.prepare(staging), first, step)
            self._staging = str(staging)
            try:
                self._together(lambda: self._write(model, trial, run, step), True, step)
            finally:
                self._staging = None
            self._together(lambda: self._publish(staging, run, step), first, step)

    def _write(self, model: nn.Module, trial: Any, run: Path, step: int) -> None:
        optimizer: Any = self.optimizer
        if self.shards is not None:  # before anything is written: a rank whose disk is full takes part no more
            self._gathered = gathered(optimizer, self.args.should_save)
        with self.whole("cpu" if self.args.should_save else None):
            super()._save_checkpoint(model, trial)
        self._gathered = None
        if self.state.best_global_step:  # of which the Trainer knows the place where it was written
            self.state.best_model_checkpoint = str(checkpoints.folder_of(run, self.state.best_global_step))
        if self.args.process_index == 0:
            folder = checkpoints.folder_of(checkpoints.staging_of(run), step)
            self.state.save_to_json(str(folder / TRAINER_STATE_NAME))
            text = json.dumps(self.run_state() | {"joint": self.joint.state()})
            (folder / STATE).write_text(text + "\n")

    def _publish(self, staging: Path, run: Path, step: int) -> None:
        checkpoints.publish(staging, run, step)
        if self.args.save_total_limit:
            best = self.state.best_model_checkpoint
            checkpoints.keep_last(run, self.args.save_total_limit, Path(best) if best else None)

    def _together(self, work: Callable[[], None], mine: bool, step: int) -> None:
        """Do something, if it is this rank's; end all ranks where the disk refused it to one."""
        problem = None
        try:
            if mine:
                work()
        except (OSError, GradvarError, safetensors.SafetensorError, RuntimeError) as error:
            if not isinstance(error, OSError | GradvarError) and not any(x in str(error) for x in _DISK):
                raise
            refused = isinstance(error, OSError | GradvarError)
            problem = str(getattr(error, "strerror", None) or error) if refused else "the disk takes no more"
        problems = [problem]
        if self.args.world_size > 1:
            problems = [None] * self.args.world_size
            dist.all_gather_object(problems, problem)
        said = next((x for x in problems if x is not None), None)
        if said is None:
            return
        if self.args.process_index == 0:
            checkpoints.discard(checkpoints.staging_of(self.run))
        last = checkpoints.last_whole(self.run)
        kept = f"{last.name} is whole" if last else "there is no earlier one"
        then = "go on from it" if last else "start anew in another folder"
        raise GradvarError(
            f"the checkpoint of step {step} cannot be written ({said}); {kept}: make room in {self.run}, then {then}"
        )

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write encoder, tokenizer and MAPNet; where they are shared out, all processes are to call it."""
        with self.whole("cpu" if self.args.should_save else None):
            super().save_model(output_dir, _internal_call)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Write encoder, tokenizer and MAPNet as their own ``from_pretrained`` read them; nothing is pickled."""
        if not self.args.should_save:
            return
        folder, joint = Path(output_dir or self.run), self.joint
        encoder: Any = joint.encoder
        tokenizer: Any = self.processing_class
        with quiet():
            encoder.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        if joint.mapnet is not None:
            step = self.state.global_step
            joint.mapnet.record = {"proposal": str(joint.proposal), "in_use": joint.in_words, "step": step}
            joint.mapnet.save_pretrained(folder)

    def _load_weights(self, folder: Path) -> dict[str, Any]:
        """Take encoder and MAPNet, and what they know beside, from a checkpoint; return what the run knew."""
        joint = self.joint
        if not checkpoints.is_whole(folder):
            raise GradvarError(f"{folder} is no whole checkpoint of a run; give another one")
        encoder: Any = joint.encoder
        with quiet():
            saved = type(encoder).from_pretrained(folder, local_files_only=True, dtype=next(encoder.parameters()).dtype)
        encoder.load_state_dict(alike(saved.state_dict(), encoder.state_dict()))
        if joint.mapnet is not None:
            network = MapNet.from_pretrained(folder)
            joint.mapnet.load_state_dict(alike(network.state_dict(), joint.mapnet.state_dict()))
        state: dict[str, Any] = json.loads((folder / STATE).read_text())
        joint.restore(state["joint"])
        return state

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        self.restore_run(self._load_weights(Path(resume_from_checkpoint)))

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.shards is None:
            super()._save_optimizer_and_scheduler(output_dir)
        elif self.args.should_save:
            schedule: Any = self.lr_scheduler
            torch.save(self._gathered, Path(output_dir) / OPTIMIZER_NAME)
            torch.save(schedule.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if self.shards is None:
            super()._load_optimizer_and_scheduler(checkpoint)
        elif checkpoint is not None and (Path(checkpoint) / OPTIMIZER_NAME).is_file():
            optimizer: Any = self.optimizer
            schedule: Any = self.lr_scheduler
            # Mapped from the disk: the whole of it would not fit where a share of it does.
            state = torch.load(Path(checkpoint) / OPTIMIZER_NAME, map_location="cpu", weights_only=True, mmap=True)
            optimizer.load_state_dict(shared_out(state, optimizer))
            schedule.load_state_dict(torch.load(Path(checkpoint) / SCHEDULER_NAME, weights_only=True))

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write a model card of the encoder; see :meth:`transformers.Trainer.create_model_card`."""
        joint, self.model = self.model, self.joint.encoder
        try:
            super().create_model_card(*args, **kwargs)
        finally:
            self.model = joint

    def _load_best_model(self) -> None:
        best = self.state.best_model_checkpoint
        assert best is not None
        self._load_weights(Path(best))
