"""`transformers.Trainer` for the joint model: data order, steps that are skipped or counted, exact checkpoints."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import TrainerControl, TrainerState
from transformers.trainer_utils import SaveStrategy

from gradvar import checkpoints
from gradvar.errors import GradvarError
from gradvar.huggingface.checkpoint import quiet
from gradvar.huggingface.corpus import Corpus
from gradvar.huggingface.masked_lm import MaskedLM
from gradvar.huggingface.vocabulary import Vocabulary
from gradvar.mapnet.network import MapNet
from gradvar.masking.sets import check_fits
from gradvar.masking.uniform import target_count
from gradvar.training.evaluation import MASK_RATE, evaluate
from gradvar.training.joint import JointModel, Tallies, evaluating
from gradvar.training.order import Order, Place, RankBatches
from gradvar.training.recipe import Evaluation, MapNetTraining, Masking

STATE = "gradvar_state.json"
"""What a checkpoint knows beside weights, optimizer, schedule and random numbers."""
_MOST_SKIPPED = 10  # steps in a row without a finite loss or gradient
_ENDLESS = 2**40  # steps, where the budget is in seconds
_SIGNALS = 65  # numbers of signals
_VIRTUAL = 10**6  # steps of a schedule over seconds
_LOOKED_AT = 256  # sequences that tell how long sequences are
_DISK = ("No space", "File too large", "write failed", "unexpected pos", "I/O error", "os error")
"""What torch and safetensors say where a disk is full."""


class MaskProposalTrainer(Trainer):
    """A :class:`transformers.Trainer` that draws masks by a proposal, and trains the MAPNet that it may ask for.

    Give it unmasked, tokenised sequences: it masks them itself, on the device, so it takes no collator. All of
    `TrainingArguments` that concern optimisation, logging, saving and evaluation hold; ``per_device_train_batch_size``
    counts cells (sentences times masks). Sequences of a step are a function of (seed, step), masks of (seed, step,
    epoch, row), so that ranks, workers and accumulation change nothing, and a resumed run goes on bit for bit.
    Checkpoints are written whole or not at all; their encoder loads with plain
    ``AutoModelForMaskedLM.from_pretrained``, the MAPNet lies beside it.

    A step whose loss or gradient is not finite, on whatever rank, is skipped on all and counted; ten in a row end the
    run with :class:`~gradvar.GradvarError`.

    Args:
        model: Hugging Face masked LM.
        args: Arguments of the Trainer.
        train_dataset: Sequences by number, each with ``input_ids``; ``attention_mask`` says what is padding.
        eval_dataset: Held-out sequences; None evaluates nothing.
        processing_class: The tokenizer.
        masking: How masks are chosen, or a proposal's text, such as ``mapnet/pps``.
        mapnet: How the MAPNet is trained.
        evaluation: How the held-out loss is measured.
        seconds: Budget in seconds of training, in place of ``max_steps`` and ``num_train_epochs``.
        optimizers: As the Trainer takes them.
        callbacks: As the Trainer takes them.

    Attributes:
        joint: The encoder and its MAPNet.
        order: Which sequences a step sees.
        tokens: Tokens that the encoder was shown.
        stop: Number of the signal that asked this process to end the run after the step under way; 0 for none.
        stopped: The one that the processes agreed on.

    Raises:
        GradvarError: If the masking is not possible, or a step takes more sequences than there are.
    """

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments,
        train_dataset: Any,
        eval_dataset: Any = None,
        *,
        processing_class: Any,
        masking: Masking | str = Masking(),
        mapnet: MapNetTraining = MapNetTraining(),
        evaluation: Evaluation = Evaluation(),
        seconds: float | None = None,
        optimizers: Any = (None, None),
        callbacks: list[TrainerCallback] | None = None,
    ) -> None:
        masking = Masking(proposal=masking) if isinstance(masking, str) else masking
        self._sequences = _Sequences(train_dataset)
        vocabulary = Vocabulary.of(processing_class)
        joint = JointModel(
            model,
            processing_class,
            masking,
            mapnet,
            seed=args.seed,
            max_length=self._sequences.longest,
            mean_targets=self._sequences.mean_targets(vocabulary, masking) if masking.weighting == "token" else None,
            token_counts=self._sequences.token_counts(vocabulary) if "frequency" in masking.proposal else None,
        )
        micro, masks = args.per_device_train_batch_size, joint.masks
        if micro % masks:
            raise GradvarError(
                f"{micro} cells at once on a device (the batch over processes and micro-batches) are no multiple of "
                f"the {masks} masks of a sentence; give another batch"
            )
        if joint.proposal.design.cells > 1:
            totals = self._sequences.totals(vocabulary)
            check_fits(joint.proposal.design.cells, totals, target_count(totals, joint.mask_rate))
        cells = micro * args.gradient_accumulation_steps * args.world_size
        self.order = Order(len(self._sequences), cells // masks, args.seed)
        self.seconds, self._elapsed = seconds, 0.0
        if seconds is not None:
            args.max_steps = _ENDLESS
        elif args.max_steps <= 0:
            args.max_steps = math.ceil(args.num_train_epochs * self.order.rows / self.order.batch)
        args.ignore_data_skip = True  # the sampler begins where the run is
        if args.torch_compile:
            _compile(model, args)
        self.joint = joint
        self.evaluation = evaluation
        self._skipped = self._in_a_row = 0
        self._meters: dict[str, float] = {}
        self.tokens = 0
        self._evaluated: tuple[int, dict[str, float]] = (-1, {})
        self._before, self._since = 0.0, time.monotonic()
        self.stop = self.stopped = 0
        self.extra_state: dict[str, Any] = {}
        self._staging: str | None = None
        self._held_out: tuple[Any, Corpus] | None = None
        super().__init__(
            model=joint,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            optimizers=optimizers,
            callbacks=[*(callbacks or []), _Steps(self)],
        )
        self.loss_is_scaled_for_ga = False
        self.label_names = []

    @property
    def run(self) -> Path:
        """The run's folder."""
        assert self.args.output_dir is not None
        return Path(self.args.output_dir)

    # ---- data

    def get_train_dataloader(self) -> DataLoader:  # type: ignore[type-arg]
        """Load the sequences of this rank, from the step that the run is at; without end."""
        args = self.args
        batches = RankBatches(
            self.order,
            args.gradient_accumulation_steps,
            args.process_index,
            args.world_size,
            lambda: self.state.global_step,
        )
        workers = args.dataloader_num_workers
        return DataLoader(
            self._sequences,
            batch_sampler=batches,
            collate_fn=collate,
            num_workers=workers,
            pin_memory=args.dataloader_pin_memory and args.device.type == "cuda",
            persistent_workers=False,
            prefetch_factor=args.dataloader_prefetch_factor if workers else None,
            generator=torch.Generator(),  # so that workers take nothing from the random numbers of dropout
        )

    # ---- optimisation

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Make the optimizer; the MAPNet's parameters have a learning rate and a weight decay of their own."""
        if self.optimizer is not None:
            return self.optimizer
        joint = self.joint
        decayed = set(self.get_decay_parameter_names(joint))
        kind, options = self.get_optimizer_cls_and_kwargs(self.args)
        groups = []
        for prefix, decay, rate in (
            ("encoder.", self.args.weight_decay, self.args.learning_rate),
            ("mapnet.", joint.options.weight_decay, joint.options.learning_rate),
        ):
            named = [(n, p) for n, p in joint.named_parameters() if n.startswith(prefix) and p.requires_grad]
            for own, value in ((True, decay), (False, 0.0)):
                chosen = [p for n, p in named if (n in decayed) == own]
                if chosen:
                    groups.append({"params": chosen, "weight_decay": value, "lr": rate})
        self.optimizer = kind(groups, **options)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Make the schedule; where the budget is in seconds, it follows the clock."""
        if self.seconds is None:
            return super().create_scheduler(num_training_steps, optimizer)
        if self.lr_scheduler is None:
            schedule: Any = super().create_scheduler(_VIRTUAL, optimizer)
            if not hasattr(schedule, "lr_lambdas"):
                raise GradvarError(f"the schedule '{self.args.lr_scheduler_type}' cannot follow a clock; take cosine")
            shapes = schedule.lr_lambdas

            def follow(shape: Any) -> Any:
                return lambda _: shape(round(min(1.0, self.progress) * _VIRTUAL))

            schedule.lr_lambdas = [follow(shape) for shape in shapes]
        return self.lr_scheduler

    @property
    def progress(self) -> float:
        """Share of the budget that is used."""
        if self.seconds is None:
            return self.state.global_step / self.state.max_steps
        return self._elapsed / self.seconds

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        """Clip the encoder's gradient, and by itself the MAPNet's: neither changes the other's step."""
        return self._clip(self.args.max_grad_norm)

    def _clip(self, most: float) -> Any:
        norm = self.accelerator.clip_grad_norm_(self.joint.encoder.parameters(), most)  # which unscales all of them
        if self.joint.mapnet is not None:
            self.joint.tallies["mapnet_norm"] = nn.utils.clip_grad_norm_(self.joint.mapnet.parameters(), most).double()
        return norm

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """Close a step before the optimizer's turn: agree on what it was, and drop it if it was not finite."""
        if grad_norm is None:
            grad_norm = self._clip(float("inf"))
        joint, first = self.joint, self.args.process_index == 0
        own = {
            "norm": grad_norm.detach().double(),
            "elapsed": torch.tensor(self._clock() if first else 0.0),  # of one clock
            "stop": F.one_hot(torch.tensor(self.stop), _SIGNALS).double(),
        }
        agreed = self._summed(joint.tallies | own)
        joint.tallies = {}
        self._elapsed = float(agreed["elapsed"])
        self.stopped = int(agreed["stop"][1:].argmax()) + 1 if bool(agreed["stop"][1:].any()) else 0
        if all(bool(x.isfinite().all()) for x in agreed.values()):
            self._in_a_row = 0
            joint.learn(agreed)
            self._meter(agreed)
            self.tokens += int(agreed["tokens"])
        else:
            self._drop_step()
        return grad_norm

    def _drop_step(self) -> None:
        for parameter in self.joint.parameters():
            parameter.grad = None  # which the optimizer passes over, its own state included
        self._skipped += 1
        self._in_a_row += 1
        if self._in_a_row >= _MOST_SKIPPED:
            last = checkpoints.last_whole(self.run)
            kept = f"{last} is whole" if last else "no checkpoint was written yet"
            raise GradvarError(
                f"{_MOST_SKIPPED} steps in a row gave no finite loss and gradient, up to step {self.state.global_step};"
                f" {kept}: lower the learning rate, or look at the data"
            )

    def _summed(self, tallies: Tallies) -> dict[str, Tensor]:
        """Add up what the ranks have, all of which name the same things."""
        names = sorted(tallies)
        sizes = [tallies[name].numel() for name in names]
        together = torch.cat([tallies[name].to(self.args.device, torch.float64).flatten() for name in names])
        if self.args.world_size > 1:
            dist.all_reduce(together)
        return dict(zip(names, together.split(sizes), strict=True))

    @property
    def elapsed(self) -> float:
        """Seconds of training up to the last step, of all sessions of the run; see :meth:`paused`."""
        return self._elapsed

    def _clock(self) -> float:
        """Seconds of training, of all sessions of the run: evaluation, checkpoints and looks at the variance apart."""
        return self._before + (time.monotonic() - self._since)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stop the clock for a while."""
        start = time.monotonic()
        try:
            yield
        finally:
            self._since += time.monotonic() - start

    def _meter(self, tallies: Mapping[str, Tensor]) -> None:
        for name in ("cells", "loss", "targets", "weight", "weight2", "mapnet_loss"):
            if name in tallies:
                self._meters[name] = self._meters.get(name, 0.0) + float(tallies[name])

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with what masks and MAPNet did since the last line."""
        if "loss" in logs:
            m, self._meters = self._meters, {}
            logs["loss"] = m["loss"] / m["cells"] if m else math.nan  # where all steps were skipped
            joint = self.joint
            if m:
                logs["ess"] = m["weight"] ** 2 / (m["targets"] * m["weight2"])
            if m and joint.mapnet is not None:
                logs["mapnet_loss"] = m.get("mapnet_loss", 0.0) / m["cells"]
            if joint.calibration is not None:
                logs["exponent"], logs["epsilon"] = joint.calibration.chosen
            logs["skipped_steps"] = self._skipped
        logs |= {"tokens": self.tokens, "seconds": round(self.elapsed, 3)}
        super().log(logs, start_time)

    # ---- evaluation

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Measure the held-out loss under fixed uniform masks of 15 %, whatever the training masks are.

        Args:
            eval_dataset: Other held-out sequences.
            ignore_keys: Of no account.
            metric_key_prefix: Prefix of the metrics' names.

        Returns:
            Loss with its standard error over sentences, perplexity, accuracy with its standard error.
        """
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if dataset is None:
            raise GradvarError("there is no held-out text to evaluate on; pass eval_dataset")
        start, spec = time.perf_counter(), self.evaluation
        with self.paused():
            quality = evaluate(self.studied(dataset, mask_rate=MASK_RATE), spec.sentences, spec.masks, spec.batch)
        metrics = quality.metrics(metric_key_prefix)
        metrics[f"{metric_key_prefix}_seconds"] = time.perf_counter() - start
        self._evaluated = (self.state.global_step, metrics)
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def last_evaluation(self) -> dict[str, float]:
        """Return the evaluation of the model as it is, which is made if there is none yet."""
        step, metrics = self._evaluated
        return metrics if step == self.state.global_step else self.evaluate()

    def studied(self, dataset: Any, **options: Any) -> MaskedLM:
        """Return the live encoder with other sequences, to be studied under uniform masks.

        Args:
            dataset: Sequences with ``input_ids``.
            **options: As :class:`~gradvar.MaskedLM` takes them.

        Returns:
            The objective; the encoder's mode is as it was.
        """
        if self._held_out is None or self._held_out[0] is not dataset:
            sequences = _Sequences(dataset)
            rows = tuple(sequences[i] for i in range(len(sequences)))
            self._held_out = (dataset, Corpus(rows, "held-out text", "", max(map(len, rows)), 0.0))
        with evaluating(self.joint):
            return MaskedLM(self.joint.encoder, self.processing_class, self._held_out[1], **options)

    # ---- checkpoints

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train; see :meth:`transformers.Trainer.train`.

        Args:
            resume_from_checkpoint: A checkpoint's folder, or True for the last whole one.
            *args: As the Trainer takes them.
            **kwargs: As the Trainer takes them.

        Returns:
            What the Trainer returns.

        Raises:
            GradvarError: If there is no whole checkpoint to go on from, or the run cannot go on.
        """
        if resume_from_checkpoint is True:
            last = checkpoints.last_whole(self.run)
            if last is None:
                raise GradvarError(f"{self.args.output_dir} holds no whole checkpoint to go on from; start anew")
            resume_from_checkpoint = str(last)
        self._since = time.monotonic()
        if self.args.world_size > 1:
            torch.manual_seed(self.args.seed + self.args.process_index)  # dropout of its own on every rank
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def go_to(self, checkpoint: Path) -> None:
        """Be where a checkpoint is, without training.

        Args:
            checkpoint: Its folder.
        """
        self._load_from_checkpoint(str(checkpoint))
        self.state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))

    def _get_output_dir(self, trial: Any) -> str:
        return self._staging or super()._get_output_dir(trial)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write a checkpoint whole or not at all; where it fails on one rank, it fails on all."""
        run, step = Path(super()._get_output_dir(trial)), self.state.global_step
        if self.state.best_global_step:
            self.state.best_model_checkpoint = str(checkpoints.folder_of(run, self.state.best_global_step))
        first = self.args.process_index == 0
        staging = checkpoints.staging_of(run)
        with self.paused():
            if first:
                problem = self._attempt(lambda: checkpoints.prepare(staging))
                self._together(problem, step)
            else:
                self._together(None, step)
            self._staging = str(staging)
            try:
                problem = self._attempt(lambda: self._write_checkpoint(model, trial, staging, step))
            finally:
                self._staging = None
            self._together(problem, step)
            if first:
                problem = self._attempt(lambda: checkpoints.publish(staging, run, step))
                if problem is None and self.args.save_total_limit:
                    best = self.state.best_model_checkpoint
                    checkpoints.keep_last(run, self.args.save_total_limit, Path(best) if best else None)
            self._together(problem, step)

    def _write_checkpoint(self, model: nn.Module, trial: Any, staging: Path, step: int) -> None:
        super()._save_checkpoint(model, trial)
        if self.args.process_index == 0:
            joint = self.joint.state()
            state = {
                "elapsed": self._elapsed,
                "tokens": self.tokens,
                "skipped": self._skipped,
                "in_a_row": self._in_a_row,
            }
            text = json.dumps(state | {"meters": self._meters, "joint": joint} | self.extra_state)
            (checkpoints.folder_of(staging, step) / STATE).write_text(text + "\n")

    @staticmethod
    def _attempt(work: Any) -> str | None:
        """Do something; return what went wrong with the disk, if anything."""
        try:
            work()
        except (OSError, GradvarError, safetensors.SafetensorError, RuntimeError) as error:
            if not isinstance(error, OSError | GradvarError) and not any(x in str(error) for x in _DISK):
                raise
            return str(getattr(error, "strerror", None) or error)
        return None

    def _together(self, problem: str | None, step: int) -> None:
        """End all ranks where one could not write."""
        problems = [problem]
        if self.args.world_size > 1:
            problems = [None] * self.args.world_size
            dist.all_gather_object(problems, problem)
        said = next((x for x in problems if x is not None), None)
        if said is None:
            return
        run = self.run
        if self.args.process_index == 0:
            checkpoints.discard(checkpoints.staging_of(run))
        last = checkpoints.last_whole(run)
        kept = f"{last.name} is whole" if last else "there is no earlier one"
        raise GradvarError(
            f"the checkpoint of step {step} cannot be written ({said}); {kept}: make room in {run}, then go on from it"
        )

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Write encoder, tokenizer and MAPNet as their own ``from_pretrained`` read them; nothing is pickled."""
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.run)
        encoder: Any = self.joint.encoder
        with quiet():
            encoder.save_pretrained(folder)
        tokenizer: Any = self.processing_class
        tokenizer.save_pretrained(folder)
        if self.joint.mapnet is not None:
            self.joint.mapnet.record = {"proposal": str(self.joint.proposal), "step": self.state.global_step}
            self.joint.mapnet.save_pretrained(folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Take encoder, MAPNet and all that is neither weight nor optimizer from a checkpoint."""
        folder, joint = Path(resume_from_checkpoint), self.joint
        if not checkpoints.is_whole(folder):
            raise GradvarError(f"{folder} is no whole checkpoint of a run; give another one")
        encoder: Any = joint.encoder
        with quiet():
            saved = type(encoder).from_pretrained(folder, local_files_only=True, dtype=next(encoder.parameters()).dtype)
        encoder.load_state_dict(saved.state_dict())
        state = json.loads((folder / STATE).read_text())
        if joint.mapnet is not None:
            joint.mapnet.load_state_dict(MapNet.from_pretrained(folder).state_dict())
        joint.restore(state["joint"])
        self._before = self._elapsed = float(state["elapsed"])
        self._skipped, self._in_a_row = int(state["skipped"]), int(state["in_a_row"])
        self._meters, self.tokens = dict(state["meters"]), int(state["tokens"])

    def _load_best_model(self) -> None:
        best = self.state.best_model_checkpoint
        assert best is not None
        self._load_from_checkpoint(best)


class _Steps(TrainerCallback):
    """Counts epochs by what was seen, and ends a run whose seconds are used up, or that was asked to stop."""

    def __init__(self, trainer: MaskProposalTrainer) -> None:
        self._trainer = trainer

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        trainer = self._trainer
        state.epoch = state.global_step * trainer.order.batch / trainer.order.rows
        if trainer.stopped or trainer.progress >= 1:
            control.should_training_stop = True
            control.should_save = args.save_strategy != SaveStrategy.NO


class _Sequences(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """Sequences of any data set as arrays of ids, by number or by place."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset.with_format("numpy") if hasattr(dataset, "with_format") else dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, row: int) -> np.ndarray:
        return self._ids(self._dataset[int(row)])

    def __getitems__(self, places: Sequence[Place]) -> list[tuple[Place, np.ndarray]]:
        return [(place, self[place.row]) for place in places]

    @staticmethod
    def _ids(item: Mapping[str, Any]) -> np.ndarray:
        ids = np.asarray(item["input_ids"], dtype=np.int64)
        if "attention_mask" in item:
            ids = ids[np.asarray(item["attention_mask"], dtype=bool)]
        return ids

    @property
    def longest(self) -> int:
        """Tokens of the longest of the first sequences, which tell what the others are like."""
        return max(len(self[i]) for i in range(min(len(self), _LOOKED_AT)))

    def mean_targets(self, vocabulary: Vocabulary, masking: Masking) -> float:
        """Mean number of targets of a cell; takes a pass over the data."""
        return float(target_count(self.totals(vocabulary), masking.mask_rate).double().mean())

    def totals(self, vocabulary: Vocabulary) -> Tensor:
        """``[rows]`` maskable positions of each; takes a pass over the data."""
        return torch.tensor([vocabulary.maskable_in(self[i]) for i in range(len(self))])

    def token_counts(self, vocabulary: Vocabulary) -> Tensor:
        """``[vocabulary]`` how often each ordinary token occurs; takes a pass over the data."""
        return vocabulary.counts_in([self[i] for i in range(len(self))])


def collate(sequences: list[tuple[Place, np.ndarray]]) -> dict[str, Tensor]:
    """Pad sequences to one length: ``ids`` ``[rows, positions]``, -1 where padded, and ``[rows]`` of their places."""
    places = [place for place, _ in sequences]
    ids = nn.utils.rnn.pad_sequence([torch.from_numpy(x) for _, x in sequences], batch_first=True, padding_value=-1)
    return {
        "ids": ids,
        "row": torch.tensor([place.row for place in places]),
        "epoch": torch.tensor([place.epoch for place in places]),
        "step": torch.tensor([place.step for place in places]),
    }


def _compile(model: nn.Module, args: TrainingArguments) -> None:
    """Compile the encoder alone: what draws masks is no static graph."""
    base: Any = model.base_model
    base.forward = torch.compile(base.forward, backend=args.torch_compile_backend or "inductor")
    args.torch_compile, args.torch_compile_backend, args.torch_compile_mode = False, None, None
    os.environ.pop("ACCELERATE_DYNAMO_BACKEND", None)
    os.environ.pop("ACCELERATE_DYNAMO_MODE", None)
