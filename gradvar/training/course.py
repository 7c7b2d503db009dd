"""The course of the training data through a run: which sequences each step sees, whether they have numbers or not."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import TrainingArguments

from gradvar.errors import GradvarError
from gradvar.huggingface.vocabulary import Vocabulary
from gradvar.masking.sets import check_fits
from gradvar.masking.uniform import target_count
from gradvar.training.joint import JointModel
from gradvar.training.order import RankBatches
from gradvar.training.phases import Phases, phases_of
from gradvar.training.schedule import Schedule
from gradvar.training.sequences import Limits, Sequences, collate, is_numbered, loader
from gradvar.training.streaming import Share, Stream


class Course:
    """The training data of a run, and their order once it is planned.

    Args:
        dataset: Sequences by number, or one after another.
        limits: Of the model.
        block: Sequences of a stream that are shuffled together.

    Attributes:
        longest: Tokens of the longest of the first sequences.
        order: Which sequences each step sees.

    Raises:
        GradvarError: If it is no data set.
    """

    order: Phases | Stream

    def __init__(self, dataset: Any, limits: Limits, block: int) -> None:
        name = "train_dataset"
        numbered = is_numbered(dataset)
        self._data = Sequences(dataset, name, limits) if numbered else Stream(dataset, name, limits, block)
        self.longest = self._data.longest
        self._totals: list[Tensor] = []
        self._counted: tuple[int, float, float | None] = (-1, 0.0, None)  # phase, mask rate, mean number of targets

    def token_counts(self, vocabulary: Vocabulary) -> Tensor:
        """``[vocabulary]`` how often each ordinary token occurs; takes a pass over the data."""
        return self._data.token_counts(vocabulary)

    def plan(
        self,
        args: TrainingArguments,
        joint: JointModel,
        tokens: int | None,
        max_length: Schedule | None,
        at: Callable[[], int],
    ) -> None:
        """Settle which sequences each step sees, and how many steps there are, where that is known beforehand.

        Args:
            args: Of the Trainer; they are told the number of steps.
            joint: The model.
            tokens: Budget in tokens, or None.
            max_length: Tokens of a sequence by the share of the budget; None for whole ones.
            at: Says at which step the run is.

        Raises:
            GradvarError: If a step cannot be shared out, or it is not known how many steps a stream is for.
        """
        micro, self._at = args.per_device_train_batch_size, at
        if micro % joint.masks:
            raise GradvarError(
                f"{micro} cells at once on a device (the batch over processes and micro-batches) are no multiple of "
                f"the {joint.masks} masks of a sentence; give another batch"
            )
        batch = micro * args.gradient_accumulation_steps * args.world_size // joint.masks
        if isinstance(self._data, Stream):
            if args.max_steps <= 0:
                raise GradvarError("train_dataset is a stream, which has no length; give max_steps, tokens or seconds")
            steps, places = args.max_steps, _places(args)
            self.order = self._data.planned(
                Share(batch, args.seed, *places, max_length, steps, tokens, joint.masks), at
            )
        else:
            if args.max_steps <= 0:
                args.max_steps = math.ceil(args.num_train_epochs * len(self._data) / batch)
            budget = {"steps": args.max_steps} if tokens is None else {"tokens": tokens}
            self.order = phases_of(self._data, max_length, batch, args.seed, shown=joint.masks, **budget)
            if tokens is not None:
                args.max_steps = self.order.steps
        if joint.masking.weighting == "token" or joint.proposal.design.cells > 1:
            self._totals = self._maskable(joint)

    def _maskable(self, joint: JointModel) -> list[Tensor]:
        """Count the maskable positions of all sequences or pieces, by phase; masks of a draw must fit in."""
        whole, cells = self._data.totals(joint.masked.vocabulary), joint.proposal.design.cells
        assert isinstance(self.order, Phases)
        found = [whole if part.units is None else torch.from_numpy(part.units.totals) for part in self.order.parts]
        for part in found if cells > 1 else ():
            check_fits(cells, part, target_count(part, max(joint.mask_rates.values)))
        return found

    def mean_targets(self, step: int, mask_rate: float) -> float | None:
        """Tell the mean number of targets of a cell in the phase of a step; None where nobody asked for it."""
        if not self._totals:
            return None
        assert isinstance(self.order, Phases)
        phase = self.order.phase(step)[0]
        if (phase, mask_rate) != self._counted[:2]:
            counts = target_count(self._totals[phase], mask_rate)
            self._counted = (phase, mask_rate, float(counts.double().mean()))
        return self._counted[2]

    def loader(self, args: TrainingArguments) -> DataLoader:  # type: ignore[type-arg]
        """Load the micro-batches of this rank, from the step that the run is at; without end."""
        workers = args.dataloader_num_workers
        options: dict[str, Any] = {"pin_memory": args.dataloader_pin_memory and args.device.type == "cuda"}
        if isinstance(self.order, Stream):
            workers = min(1, workers)  # each of several would read all of it
            options["batch_size"] = None
        else:
            batches = RankBatches(self.order, *_places(args), start=self._at)
            options |= {"batch_sampler": batches, "collate_fn": collate}
        if workers:
            options["prefetch_factor"] = args.dataloader_prefetch_factor
        return loader(self._data, workers, **options)


def _places(args: TrainingArguments) -> tuple[int, int, int]:
    """Micro-batches of a step, the number of this process, and how many there are."""
    return args.gradient_accumulation_steps, args.process_index, args.world_size
