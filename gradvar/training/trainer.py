"""`transformers.Trainer` for the joint model: the order of the data; steps that are agreed on, skipped, counted."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import TrainerCallback, TrainingArguments
from transformers.trainer_utils import SaveStrategy, TrainOutput

from gradvar import checkpoints
from gradvar.errors import GradvarError
from gradvar.huggingface.vocabulary import Vocabulary
from gradvar.mapnet.network import MapNet
from gradvar.masking.scores import is_counted
from gradvar.training.arguments import adapted
from gradvar.training.callbacks import Steps
from gradvar.training.clock import VIRTUAL, Clock, follow
from gradvar.training.course import Course
from gradvar.training.evaluation import MASK_RATE, evaluate
from gradvar.training.held_out import HeldOut
from gradvar.training.joint import JointModel
from gradvar.training.learner import Tallies
from gradvar.training.optimizers import check_given, forget, groups, is_known
from gradvar.training.recipe import Evaluation, MapNetTraining, Masking, masks_of, proposal_of
from gradvar.training.saving import WholeCheckpoints
from gradvar.training.schedule import Schedule, check_lengths
from gradvar.training.sequences import Limits, Sequences, is_numbered
from gradvar.training.sharding import Shards, Wrapped, asked_for, check_shardable, full
from gradvar.training.streaming import BLOCK

_MOST_SKIPPED = 10  # steps in a row without a finite loss or gradient
_SIGNALS = 65  # numbers of signals
_METERS = ("cells", "loss", "targets", "weight", "weight2", "mapnet_loss", "mapnet_cells")


class MaskProposalTrainer(WholeCheckpoints):
    """A :class:`transformers.Trainer` that draws masks by a proposal, and trains the MAPNet that it may ask for.

    Give it unmasked, tokenised sequences: it masks them itself, on the device, so it takes no collator. What
    `TrainingArguments` say of optimisation, logging, saving and evaluation holds, and what cannot hold is refused by
    name; ``per_device_train_batch_size`` counts cells (sentences times masks). Sequences of a step are a function of
    (seed, step), masks of (seed, step, epoch, row), so that workers change nothing, and ranks and accumulation nothing
    but rounding, where there is no dropout; on as many ranks as before a resumed run goes on bit for bit. Checkpoints
    are written whole or not at all; their encoder loads with plain ``AutoModelForMaskedLM.from_pretrained``, the MAPNet
    lies beside it.

    A step whose loss or gradient is not finite, on whatever rank, is skipped on all and counted; ten in a row end the
    run with :class:`~gradvar.GradvarError`.

    Args:
        model: Hugging Face masked LM.
        args: Arguments of the Trainer.
        train_dataset: Sequences by number, or one after another (see :class:`~gradvar.training.streaming.Stream`), each
            with ``input_ids``; ``attention_mask`` says what is padding.
        eval_dataset: Held-out sequences; None evaluates nothing.
        processing_class: The tokenizer.
        masking: How masks are chosen, or a proposal's text, such as ``mapnet/pps``.
        mapnet: How the MAPNet is trained.
        network: A MAPNet to go on with; None makes one, if the proposal asks for it.
        evaluation: How many held-out sentences, by which masks.
        seconds: Budget in seconds of training, in place of ``max_steps`` and ``num_train_epochs``.
        tokens: Budget in tokens that the model is shown, each mask anew, in their place.
        max_length: Tokens of a sequence by the share of the budget that is used; longer ones are cut into pieces, of
            which a step sees as many more. None shows whole sequences.
        block: Sequences that are shuffled together, where they come one after another.
        optimizers: As the Trainer takes them; an optimizer gets the MAPNet's parameters in a group of their own.
        callbacks: As the Trainer takes them.

    Attributes:
        joint: The encoder and its MAPNet.
        course: Which sequences each step sees.
        held_out: Makes objectives of held-out sequences.
        elapsed: Seconds of training up to the last step, of all sessions of the run; see :meth:`paused`.
        in_a_row: Steps up to this one that were skipped.
        tokens: Tokens that the encoder was shown.
        stop: Number of the signal that asked this process to end the run after the step under way; 0 for none.
        stopped: The one that the processes agreed on.
        extra_state: Plain JSON that checkpoints keep.

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
        network: MapNet | None = None,
        evaluation: Evaluation = Evaluation(),
        seconds: float | None = None,
        tokens: int | None = None,
        max_length: Schedule | None = None,
        block: int = BLOCK,
        optimizers: Any = (None, None),
        callbacks: list[TrainerCallback] | None = None,
    ) -> None:
        if processing_class is None:
            raise GradvarError("processing_class is None; give the tokenizer, which says what the mask token is")
        given, sharding = args, asked_for(args)
        self._most_tokens = None if is_numbered(train_dataset) else tokens  # otherwise it is known how many steps
        args = adapted(args, model, seconds, self._most_tokens)
        masking = _masking(masking)
        check_lengths(max_length, seconds)
        if isinstance(eval_dataset, dict):
            raise GradvarError("eval_dataset is a dict; give one data set, and call evaluate with the others")
        limits = Limits.of(model, processing_class)
        self.course = Course(train_dataset, limits, block)
        if eval_dataset is not None:
            Sequences(eval_dataset, "eval_dataset", limits)  # refuses what is none
        self.joint = joint = self._joint(model, args, processing_class, masking, mapnet, network)
        self.course.plan(args, joint, tokens, max_length, lambda: self.state.global_step)
        self.seconds, self.elapsed, self._clock = seconds, 0.0, Clock()
        self.evaluation = evaluation
        self._evaluated: tuple[int, dict[str, float]] = (-1, {})
        self.held_out = HeldOut(joint, processing_class, limits)
        self.tokens = self._skipped = self.in_a_row = 0
        self._meters: dict[str, float] = {}
        self.stop = self.stopped = 0
        self.extra_state: dict[str, Any] = {}
        check_given(optimizers[0], optimizers[1], joint.mapnet)
        if sharding is not None:
            check_shardable(joint, given, optimizers[0])
        super().__init__(
            model=joint,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            optimizers=optimizers,
            callbacks=[Steps(self), *(callbacks or [])],
        )
        if sharding is not None:
            self.shards = Shards(joint, self.args.device, sharding)
        self.loss_is_scaled_for_ga = False
        self.label_names = []
        self.follow_schedules()

    def _joint(
        self,
        model: nn.Module,
        args: TrainingArguments,
        tokenizer: Any,
        masking: Masking,
        mapnet: MapNetTraining,
        network: MapNet | None,
    ) -> JointModel:
        """Make the joint model, with what it wants to know of all sequences."""
        rare = is_counted(proposal_of(masking).score)
        return JointModel(
            model,
            tokenizer,
            masking,
            mapnet,
            seed=args.seed,
            network=network,
            max_length=self.course.longest,
            token_counts=self.course.token_counts(Vocabulary.of(tokenizer)) if rare else None,
        )

    def follow_schedules(self) -> None:
        """Draw from here on by the mask rate that belongs to this part of the budget."""
        joint = self.joint
        joint.mask_rate = joint.mask_rates.at(self.progress)
        joint.mean_targets = self.course.mean_targets(self.state.global_step, joint.mask_rate)

    # ---- data

    def get_train_dataloader(self) -> DataLoader:  # type: ignore[type-arg]
        """Load the sequences of this rank, from the step that the run is at; without end."""
        return self.course.loader(self.args)

    # ---- optimisation

    def _wrap_model(self, model: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
        if self.shards is None:
            return super()._wrap_model(model, *args, **kwargs)
        return model if isinstance(model, Wrapped) else Wrapped(model, self.accelerator.autocast)

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """Train; see :meth:`transformers.Trainer.train`.

        Args:
            resume_from_checkpoint: A checkpoint's folder, or True for the last whole one; a run that is finished stays
                as it is.
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
                raise GradvarError(f"{self.run} holds no whole checkpoint to go on from; give another output_dir")
            resume_from_checkpoint = str(last)
        if resume_from_checkpoint:
            self.go_to(Path(resume_from_checkpoint))
            if self.is_over:
                return TrainOutput(self.state.global_step, math.nan, {})
        self._check_alone(self.state.global_step if resume_from_checkpoint else 0)
        self._clock.start()
        if self.args.world_size > 1:
            torch.manual_seed(self.args.seed + self.args.process_index)  # dropout of its own on every rank
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def _check_alone(self, step: int) -> None:
        """Refuse a folder with checkpoints of another training, beyond the step at which this one begins."""
        later = [c for c in checkpoints.whole(self.run) if checkpoints.step_of(c) > step]
        if later and self.args.save_strategy != SaveStrategy.NO:
            raise GradvarError(
                f"{later[-1]} is of a later step than {step}, where this training begins; go on from it "
                "(resume_from_checkpoint=True), remove it, or give another output_dir"
            )

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Make the optimizer; the MAPNet's parameters have a learning rate and a weight decay of their own."""
        joint, decayed = self.joint, self.get_decay_parameter_names(self.joint)
        if self.optimizer is None:
            kind, options = self.get_optimizer_cls_and_kwargs(self.args)
            first = groups(joint, "encoder.", decayed, self.args.weight_decay, self.args.learning_rate)
            self.optimizer = kind(first, **options)
        if joint.mapnet is not None and not is_known(self.optimizer, joint.mapnet):
            own = joint.options
            for group in groups(joint, "mapnet.", decayed, own.weight_decay, own.learning_rate):
                self.optimizer.add_param_group(group)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Make the schedule; where the number of steps is not known, it follows the share of the budget."""
        if self.seconds is None and self._most_tokens is None:
            return super().create_scheduler(num_training_steps, optimizer)
        if self.lr_scheduler is None:
            schedule = super().create_scheduler(VIRTUAL, optimizer)
            follow(schedule, str(self.args.lr_scheduler_type), lambda: self.progress)
        return self.lr_scheduler

    @property
    def progress(self) -> float:
        """Share of the budget that is used."""
        if self.seconds is not None:
            return self.elapsed / self.seconds
        if self._most_tokens is not None:
            return self.tokens / self._most_tokens
        return self.state.global_step / self.args.max_steps

    @property
    def is_over(self) -> bool:
        """Whether the budget is used."""
        return self.progress >= 1

    def start_clock(self) -> None:
        """Count the seconds of this session from here on."""
        self._clock.start()

    def paused(self) -> AbstractContextManager[None]:
        """Stop the clock for a while."""
        return self._clock.paused()

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        """Clip the encoder's gradient, and by itself the MAPNet's: neither changes the other's step."""
        return self._clip(self.args.max_grad_norm)

    def _clip(self, most: float) -> Any:
        norm = full(self.accelerator.clip_grad_norm_(self.joint.encoder.parameters(), most))
        self._mapnet_norm = 0.0 * norm
        if self.joint.mapnet is not None:
            self._mapnet_norm = full(nn.utils.clip_grad_norm_(self.joint.mapnet.parameters(), most))
        return norm

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """Close a step before the optimizer's turn: agree on what it was, and drop it if it was not finite."""
        if grad_norm is None:
            grad_norm = self._clip(float("inf"))
        joint, first = self.joint, self.args.process_index == 0
        agreed = self._summed(
            joint.take_tallies()
            | {
                "norms": torch.stack([grad_norm.detach(), self._mapnet_norm.detach()]),
                "elapsed": torch.tensor([self._clock.seconds if first else 0.0]),  # of one clock
                "stop": F.one_hot(torch.tensor(self.stop), _SIGNALS),
            }
        )
        self.elapsed = float(agreed["elapsed"])
        self.stopped = int(agreed["stop"][1:].argmax()) + 1 if bool(agreed["stop"][1:].any()) else 0
        if all(bool(x.isfinite().all()) for x in agreed.values()):
            self.in_a_row = 0
            joint.learn(agreed)
            self._meters = {x: self._meters.get(x, 0.0) + float(agreed[x]) for x in _METERS if x in agreed}
            self.tokens += int(agreed["tokens"])
            if joint.mapnet is not None and not float(agreed["mapnet_cells"]):
                forget(joint.mapnet)  # a gradient of zero would still move it, by momentum and weight decay
        else:
            self._drop_step()
        return grad_norm

    def _drop_step(self) -> None:
        forget(self.joint)
        self._skipped += 1
        self.in_a_row += 1
        if self.in_a_row >= _MOST_SKIPPED:
            last = checkpoints.last_whole(self.run)
            kept = f"{last} is whole" if last else "no checkpoint was written yet"
            raise GradvarError(
                f"{_MOST_SKIPPED} steps in a row gave no finite loss and gradient, up to step {self.state.global_step};"
                f" {kept}: lower the learning rate, or look at the data"
            )

    def _summed(self, tallies: Mapping[str, Tensor]) -> Tallies:
        """Add up what the ranks have, all of which name the same things."""
        names = sorted(tallies)
        sizes = [tallies[name].numel() for name in names]
        together = torch.cat([tallies[name].to(self.args.device, torch.float64).flatten() for name in names])
        if self.args.world_size > 1:
            dist.all_reduce(together)
        # On the CPU: what reads them, number by number, would wait for a GPU each time.
        return dict(zip(names, together.cpu().split(sizes), strict=True))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with what masks and MAPNet did since the last line."""
        if "loss" in logs:
            m, self._meters = self._meters, {}
            logs["loss"] = m["loss"] / m["cells"] if m else math.nan  # where all steps were skipped
            if m:
                logs["ess"] = m["weight"] ** 2 / (m["targets"] * m["weight2"])
            if m.get("mapnet_cells"):
                logs["mapnet_loss"] = m["mapnet_loss"] / m["mapnet_cells"]
            if self.joint.calibration is not None:
                logs["exponent"], logs["epsilon"] = self.joint.calibration.chosen
            logs["skipped_steps"] = self._skipped
            if not self.joint.mask_rates.constant:
                logs["mask_rate"] = self.joint.mask_rate
        logs |= {"tokens": self.tokens, "seconds": round(self.elapsed, 3)}
        super().log(logs, start_time)

    # ---- evaluation

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Measure the held-out loss under fixed uniform masks of 15 %, whatever the training masks are.

        Args:
            eval_dataset: Other held-out sequences, of which ``evaluation.sentences`` are taken, always the same.
            ignore_keys: Of no account.
            metric_key_prefix: Prefix of the metrics' names.

        Returns:
            Loss with its standard error over sentences, perplexity, accuracy with its standard error.
        """
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if dataset is None:
            raise GradvarError("there is no held-out text to evaluate on; pass eval_dataset")
        start, spec = time.perf_counter(), self.evaluation
        with self.paused(), self.whole(self.args.device):
            objective = self.held_out.studied(dataset, mask_rate=MASK_RATE)
            quality = evaluate(objective, spec.sentences, spec.masks, self.args.per_device_eval_batch_size)
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

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse: what masks are predicted under is not said by unmasked sequences."""
        raise GradvarError(
            "predict: these sequences are unmasked; use evaluate, or trainer.joint.encoder with masks of your own"
        )

    # ---- checkpoints

    def run_state(self) -> dict[str, Any]:
        """Return what the run knows beside the model, as plain JSON."""
        state: dict[str, Any] = {"elapsed": self.elapsed, "tokens": self.tokens, "meters": self._meters}
        state |= {"skipped": self._skipped, "in_a_row": self.in_a_row, "drawn_by": self.joint.in_words}
        return state | {"max_length": self.course.longest, "progress": self.progress} | self.extra_state

    def restore_run(self, state: dict[str, Any]) -> None:
        """Know what :meth:`run_state` said."""
        self.elapsed = float(state["elapsed"])
        self._clock.go_on_from(self.elapsed)
        self._skipped, self.in_a_row = int(state["skipped"]), int(state["in_a_row"])
        self._meters, self.tokens = dict(state["meters"]), int(state["tokens"])

    def _load_best_model(self) -> None:
        super()._load_best_model()
        self._evaluated = (-1, {})  # it was another model's


def _masking(masking: Masking | str) -> Masking:
    """Read a proposal's text."""
    if isinstance(masking, Masking):
        return masking
    masks_of(Masking.model_construct(proposal=masking))  # refuses it in one line
    return Masking(proposal=masking)
