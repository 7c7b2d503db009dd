"""An encoder and a MAPNet in one module: score, draw, corrupt, and both losses, in one forward and backward."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from gradvar.errors import GradvarError, NotFiniteError
from gradvar.huggingface.masked_model import MaskedModel
from gradvar.huggingface.scoring import Scoring
from gradvar.mapnet.network import MapNet
from gradvar.mapnet.online import OnlineCalibration, candidates
from gradvar.masking.corruption import Replacement
from gradvar.masking.epochs import EpochStratified
from gradvar.masking.hashing import hash_key
from gradvar.masking.masks import Masks, Sentences
from gradvar.masking.proposal import Proposal, parse_proposal
from gradvar.masking.scores import Permuted, Score, plain, positive
from gradvar.training.cross_entropy import cross_entropy, squared_errors
from gradvar.training.learner import Learner, Tallies, new_mapnet
from gradvar.training.recipe import MapNetTraining, Masking, masks_of
from gradvar.training.schedule import Schedule

_SENTENCE, _DRAW, _STRATIFIED = 50, 51, 52  # streams of hashes


class JointModel(nn.Module):
    """A masked LM under any proposal, with the MAPNet that the proposal may ask for.

    One forward pass draws the masks of unmasked sentences and returns the weighted loss, whose expectation is that of
    uniform masks wherever the proposal declares itself unbiased. What is drawn is a hash of (seed, step, epoch, row,
    mask, position); under ``uniform/epoch-stratified`` of (seed, row, visit). MAPNet's loss is added to the gradient
    but not to the value; its targets are the norms ``|p - y|`` of the logits of that very pass, at the targets drawn,
    weighted by the inverse of their chance of being drawn. After a backward pass :meth:`learn` takes
    :meth:`take_tallies`, without which the MAPNet learns nothing.

    Args:
        encoder: Hugging Face masked LM.
        tokenizer: Its tokenizer.
        masking: How masks are chosen.
        mapnet: How the MAPNet is trained.
        seed: Of every draw, and of the MAPNet's first weights.
        network: A MAPNet to go on with; None makes one.
        max_length: Longest sequence; a new MAPNet's width depends on it.
        token_counts: ``[vocabulary]`` for the score ``frequency``.

    Attributes:
        encoder: The masked LM.
        mapnet: The MAPNet, or None.
        proposal: As it was asked for.
        token_counts: As given.
        mask_rates: The mask rate by the share of the budget that is used.
        mask_rate: The one in use, at first that of the beginning; to be set as a run goes on.
        mean_targets: Mean number of targets of a cell, to be set for ``weighting: token``.
        tallies: What the passes since the last step added up.

    Raises:
        GradvarError: If the masking is not possible.
    """

    accepts_loss_kwargs = False  # the loss is a mean over cells, which the Trainer divides by the micro-batches

    def __init__(
        self,
        encoder: nn.Module,
        tokenizer: Any,
        masking: Masking = Masking(),
        mapnet: MapNetTraining = MapNetTraining(),
        *,
        seed: int = 0,
        network: MapNet | None = None,
        max_length: int = 128,
        token_counts: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.masking, self.options, self.seed = masking, mapnet, seed
        sample = torch.tensor([[t for t in range(len(tokenizer)) if t not in tokenizer.all_special_ids][:3]])
        percent = tuple(p / 100 for p in masking.replacement)
        self.mapnet: MapNet | None = None
        self._learner: Learner | None = None
        known: dict[str, Score] = {}
        with evaluating(encoder):
            self.masked = MaskedModel(encoder, tokenizer, sample, Replacement(*percent))
            if masking.proposal.startswith("mapnet"):
                self.mapnet = network or new_mapnet(encoder, max_length, mapnet, seed)
                self._learner = Learner(self.mapnet, encoder, mapnet)
                known = {"mapnet": self._learner.score, "mapnet-permuted": Permuted(self._learner.score)}
        self.token_counts = token_counts
        if token_counts is not None:
            self.masked.token_counts = token_counts
        self.proposal = parse_proposal(masking.proposal, known)
        if self._learner is not None:
            self._learner.serve(self.proposal)
        self.mask_rates = Schedule.of(self.proposal.mask_rate or masking.mask_rate)
        self.mask_rate = self.mask_rates.at(0.0)
        self.masks = masks_of(masking)
        self.mean_targets: float | None = None
        self._scoring = Scoring(self.masked, masking.contexts)
        self.tallies: Tallies = {}

    @property
    def calibration(self) -> OnlineCalibration | None:
        """The MAPNet's online calibration; None where exponent and epsilon are given, or there is no MAPNet."""
        return None if self._learner is None else self._learner.calibration

    def forward(self, ids: Tensor, row: Tensor, epoch: Tensor, step: Tensor) -> dict[str, Tensor]:
        """Draw masks and compute the loss.

        Args:
            ids: ``[rows, positions]`` int64 tokens of unmasked sentences; negative where padded.
            row: ``[rows]`` int64 numbers of the sentences in the data set.
            epoch: ``[rows]`` int64 how often they were seen before.
            step: ``[rows]`` int64 optimizer step, the same for all.

        Returns:
            ``loss``: the mean over cells of their weighted losses, in nats; not a number where something measured for
            it is not finite.

        Raises:
            GradvarError: If there is nothing to mask in a sentence, or weights overflow.
        """
        sentences = self.sentences(ids, row, epoch, step)
        if bool((empty := sentences.totals == 0).any()):
            raise GradvarError(
                f"sequence {int(row[empty][0])} of the training data holds only special tokens; nothing in it can be "
                "masked: leave it out"
            )
        try:
            return {"loss": self._loss(sentences, row, epoch, int(step[0]))}
        except NotFiniteError:  # which the Trainer treats like a loss that is not
            nothing = self._nothing(sentences)
            self._tally({"loss": nothing.detach().double() * torch.nan})
            return {"loss": nothing * torch.nan}

    def _nothing(self, sentences: Sentences) -> Tensor:
        """A number that reaches what any step's loss reaches, by the same layers: other ranks may be in theirs."""
        padding = {} if bool(sentences.attended.all()) else {"attention_mask": sentences.attended.long()}
        ids = sentences.ids.clamp(min=0)
        first = torch.zeros_like(ids[:, :1])
        nothing = self.masked.logits({"input_ids": ids, "target_positions": first, **padding}).sum()
        beside = [] if self.mapnet is None else [p.sum() for p in self.mapnet.parameters()]
        return torch.stack([nothing, *beside]).sum()

    def _loss(self, sentences: Sentences, row: Tensor, epoch: Tensor, step: int) -> Tensor:
        masks, scores = self.draw(sentences, row, epoch)
        batch = self.masked.corrupted(sentences, masks)
        logits = self.masked.logits(batch)
        weights = masks.weights
        if self.masking.weighting == "token":
            if self.mean_targets is None:
                raise GradvarError("masking.weighting 'token' takes the mean number of targets; set mean_targets")
            weights = weights * masks.valid.sum(dim=1, keepdim=True) / self.mean_targets
        nll, norms = cross_entropy(logits, batch["target_ids"])
        losses = (nll * weights.to(nll.dtype)).sum(dim=1)
        loss: Tensor = losses.mean()
        relative = masks.weights * masks.valid.sum(dim=1, keepdim=True)  # to uniform masks'
        tallies: Tallies = {
            "cells": torch.ones_like(losses),
            "loss": losses,
            "targets": masks.valid,
            "weight": relative,
        }
        tallies |= {"weight2": relative.square(), "tokens": sentences.attended.double() * self.masks}
        self._tally({name: x.detach().double().sum() for name, x in tallies.items()})
        if self._learner is not None:
            own = self._mapnet_loss(self._learner, sentences, masks, scores, batch, logits.detach(), norms, step)
            loss = loss + self.options.weight * (own - own.detach())
        return loss

    def _mapnet_loss(
        self,
        learner: Learner,
        sentences: Sentences,
        masks: Masks,
        scores: Tensor,
        batch: Mapping[str, Tensor],
        logits: Tensor,
        norms: Tensor,
        step: int,
    ) -> Tensor:
        if not learner.measures(step):
            assert learner.score.said is not None
            return learner.score.said.sum() * 0.0  # DDP waits for a gradient of every parameter
        if self.options.target == "gradient":
            with measuring(self.encoder):
                norms = self._scoring.at_masks("gradient", sentences, masks)
        own, tallies = learner.loss(
            self.proposal.design,
            self.in_use[1].design,
            sentences,
            masks,
            scores,
            norms,
            lambda: squared_errors(logits, batch, masks),
            step,
        )
        self._tally(tallies)
        return own

    def sentences(self, ids: Tensor, row: Tensor, epoch: Tensor, step: Tensor) -> Sentences:
        """Return sentences as a proposal sees them; see :meth:`forward`."""
        keys = hash_key(self.seed, _stream(_SENTENCE, row), step, epoch, row)
        return self.masked.vocabulary.marked(ids, self.mask_rate, keys)

    def draw(self, sentences: Sentences, row: Tensor, epoch: Tensor) -> tuple[Masks, Tensor]:
        """Draw the masks of sentences, and return the scores that they were drawn by, before the calibration.

        Args:
            sentences: As :meth:`sentences` gives them.
            row: See :meth:`forward`.
            epoch: See :meth:`forward`.

        Returns:
            ``rows * masks`` masks, a sentence's together, and ``[rows, positions]`` scores.
        """
        design = self.proposal.design
        draws = torch.arange(self.masks // design.cells, device=row.device)
        if isinstance(design, EpochStratified):
            keys = hash_key(self.seed, _stream(_STRATIFIED, row), row)
            return design.visit(sentences, keys, epoch.unsqueeze(1) * len(draws) + draws), sentences.maskable.double()
        keys = hash_key(_DRAW, sentences.keys.unsqueeze(1), draws)
        task = self._scoring.fresh()  # of other masks than the last step's
        with measuring(self.encoder) if self._learner is None and design.takes_scores else nullcontext():
            scores = self.proposal.scores(sentences, task)
            exponent, used = self.in_use
            drawn = scores if exponent == 1 else positive(scores**exponent, sentences, str(self.proposal.score))
            return used.draw(sentences, drawn, keys, task), scores

    @property
    def in_use(self) -> tuple[float, Proposal]:
        """Exponent of the scores, and the proposal that they are for: those of the calibration, if there is one."""
        if self.calibration is None:
            return 1.0, self.proposal
        exponent, epsilon = self.calibration.chosen
        if exponent == 0:
            return 1.0, Proposal(mask_rate=self.proposal.mask_rate)
        design: Any = self.proposal.design
        return exponent, replace(self.proposal, design=replace(design, epsilon=epsilon))

    @property
    def in_words(self) -> str:
        """The proposal in use, as text that other commands read."""
        exponent, used = self.in_use
        score, _, design = str(used).rpartition("/")
        power = "" if exponent == 1 else f"^{plain(exponent)}"
        return f"{score}{power}/{design}"

    def _tally(self, sums: Mapping[str, Tensor]) -> None:
        for name, x in sums.items():
            self.tallies[name] = self.tallies[name] + x if name in self.tallies else x

    def take_tallies(self) -> Tallies:
        """Return what was added up since the last step, always of the same names and sizes, and begin anew."""
        sizes = dict.fromkeys(("cells", "loss", "targets", "weight", "weight2", "tokens"), 1)
        if self._learner is not None:
            sizes |= dict.fromkeys(("norm2", "norm_cells", "mapnet_loss", "mapnet_cells", "looks"), 1)
            sizes["moments"] = 1 + len(candidates())
        taken, self.tallies = self.tallies, {}
        nothing = torch.zeros((), dtype=torch.float64, device=self.masked.device)
        return {name: taken.get(name, nothing).expand(size) for name, size in sizes.items()}

    def learn(self, tallies: Mapping[str, Tensor]) -> None:
        """Take what a whole step, of all ranks and micro-batches, said of the MAPNet.

        Args:
            tallies: Sums of :meth:`take_tallies`.
        """
        if self._learner is not None:
            self._learner.learn(tallies)

    def state(self) -> dict[str, Any]:
        """Return what it knows beside its parameters, as plain JSON."""
        return {} if self._learner is None else self._learner.state()

    def restore(self, state: Mapping[str, Any]) -> None:
        """Know what :meth:`state` said."""
        if self._learner is not None:
            self._learner.restore(state)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module in evaluation mode, and each of its parts back in its own mode afterwards."""
    training = [part for part in module.modules() if part.training]
    for part in training:
        part.training = False
    try:
        yield
    finally:
        for part in training:
            part.training = True


@contextmanager
def measuring(encoder: nn.Module) -> Iterator[None]:
    """Let scores and gradients be measured: without dropout, and in full precision whatever the training's is."""
    with evaluating(encoder), torch.autocast(next(encoder.parameters()).device.type, enabled=False):
        yield


def _stream(number: int, like: Tensor) -> Tensor:
    return torch.full_like(like, number)
