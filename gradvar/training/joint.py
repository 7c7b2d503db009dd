"""An encoder and a MAPNet in one module: score, draw, corrupt, and both losses, in one forward and backward."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from gradvar.errors import GradvarError
from gradvar.huggingface.forward import embedding_shape, encoder_flops_per_token
from gradvar.huggingface.masked_model import MaskedModel
from gradvar.huggingface.scoring import Scoring
from gradvar.mapnet.config import default_config
from gradvar.mapnet.losses import LOSSES
from gradvar.mapnet.network import MapNet
from gradvar.mapnet.online import OnlineCalibration, can_calibrate, second_moments
from gradvar.masking.corruption import Replacement
from gradvar.masking.designs import Design, mix
from gradvar.masking.epochs import EpochStratified
from gradvar.masking.hashing import hash_key
from gradvar.masking.masks import Masks, Sentences, chosen_of
from gradvar.masking.pps import PPS
from gradvar.masking.proposal import LATER, Proposal, parse_proposal
from gradvar.masking.scores import Permuted, Power, Score, Task, Uniform, plain, positive
from gradvar.masking.units import Successive, near_inclusion
from gradvar.training.recipe import MapNetTraining, Masking

_SENTENCE, _DRAW, _STRATIFIED = 50, 51, 52  # streams of hashes
_MEMORY = 0.99  # of the norms' scale, a step
Tallies = dict[str, Tensor]
"""Float64 sums over the cells of a step, by name: what ranks and micro-batches add up."""


class LiveMapNet:
    """A MAPNet in training as a score: it keeps what it said, with its graph, for the loss.

    Args:
        network: The MAPNet.
        embeddings: Gives the encoder's embeddings of ids, with a graph; None takes them without.
    """

    def __init__(self, network: MapNet, embeddings: Callable[[Tensor], Tensor] | None) -> None:
        self._network, self._embeddings = network, embeddings
        self.said: Tensor | None = None

    def __call__(self, sentences: Sentences, task: Task) -> Tensor:
        """Score; see :class:`~gradvar.masking.scores.Score`."""
        inputs = sentences.ids.clamp(min=0)
        if self._network.config.embeddings == "model":
            inputs = (self._embeddings or task.token_embeddings)(inputs)
        self.said = self._network(inputs, sentences.attended)
        return self.said.detach().double().exp()

    def __str__(self) -> str:
        """Name the score."""
        return "mapnet"


class JointModel(nn.Module):
    """A masked LM under any proposal, with the MAPNet that the proposal may ask for.

    One forward pass draws the masks of unmasked sentences and returns the weighted loss, whose expectation is that of
    uniform masks wherever the proposal declares itself unbiased. What is drawn is a hash of (seed, step, epoch, row,
    mask, position); under ``uniform/epoch-stratified`` of (seed, row, visit). MAPNet's loss is added to the gradient
    but not to the value; its targets are the norms ``|p - y|`` of the logits of that very pass, at the targets drawn,
    weighted by the inverse of their chance of being drawn.

    Args:
        encoder: Hugging Face masked LM.
        tokenizer: Its tokenizer.
        masking: How masks are chosen.
        mapnet: How the MAPNet is trained.
        seed: Of every draw, and of the MAPNet's first weights.
        max_length: Longest sequence; the MAPNet's default width depends on it.
        mean_targets: Mean number of targets of a cell, for ``weighting: token``.
        token_counts: ``[vocabulary]`` for the score ``frequency``.

    Attributes:
        encoder: The masked LM.
        mapnet: The MAPNet, or None.
        calibration: Its online calibration, or None where exponent and epsilon are given.

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
        max_length: int = 128,
        mean_targets: float | None = None,
        token_counts: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.masking, self.options, self.seed = masking, mapnet, seed
        sample = torch.tensor([[t for t in range(len(tokenizer)) if t not in tokenizer.all_special_ids][:3]])
        percent = tuple(p / 100 for p in masking.replacement)
        with evaluating(encoder):
            self.masked = MaskedModel(encoder, tokenizer, sample, Replacement(*percent))
        if token_counts is not None:
            self.masked.token_counts = token_counts
        self.mapnet: MapNet | None = None
        self._live: LiveMapNet | None = None
        known: dict[str, Score] = {}
        if masking.proposal.startswith("mapnet"):
            self.mapnet = _new_mapnet(encoder, max_length, mapnet, seed)
            table: Any = encoder
            embeddings = table.get_input_embeddings() if mapnet.into_encoder else None
            self._live = LiveMapNet(self.mapnet, embeddings)
            known = {"mapnet": self._live, "mapnet-permuted": Permuted(self._live)}
        self.proposal = parse_proposal(masking.proposal, known)
        self.mask_rate = self.proposal.mask_rate or masking.mask_rate
        self.masks = masks_of(masking, known)
        self._mean_targets = mean_targets
        if masking.weighting == "token" and mean_targets is None:
            raise GradvarError("masking.weighting 'token' takes the mean number of targets; pass mean_targets")
        self._scoring = Scoring(self.masked, masking.contexts)
        given = isinstance(self.proposal.score, Power) or getattr(self.proposal.design, "epsilon", 0.0) > 0
        calibrates = self.mapnet is not None and not given and can_calibrate(self.proposal.design)
        self.calibration = OnlineCalibration() if calibrates else None
        self._scale = np.zeros(2)  # discounted sums of the MAPNet's squared targets and of cells
        self.tallies: Tallies = {}

    def forward(self, ids: Tensor, row: Tensor, epoch: Tensor, step: Tensor) -> dict[str, Tensor]:
        """Draw masks and compute the loss.

        Args:
            ids: ``[rows, positions]`` int64 tokens of unmasked sentences; negative where padded.
            row: ``[rows]`` int64 numbers of the sentences in the data set.
            epoch: ``[rows]`` int64 how often they were seen before.
            step: ``[rows]`` int64 optimizer step, the same for all.

        Returns:
            ``loss``: the mean over cells of their weighted losses, in nats.

        Raises:
            GradvarError: If there is nothing to mask in a sentence, or weights overflow.
        """
        sentences = self.sentences(ids, row, epoch, step)
        if bool((empty := sentences.totals == 0).any()):
            raise GradvarError(
                f"sequence {int(row[empty][0])} of the training data holds only special tokens; nothing in it can be "
                "masked: leave it out"
            )
        masks, scores = self.draw(sentences, row, epoch)
        batch = self.masked.corrupted(sentences, masks)
        logits = self.masked.logits(batch)
        weights = masks.weights
        if self.masking.weighting == "token":
            assert self._mean_targets is not None
            weights = weights * masks.valid.sum(dim=1, keepdim=True) / self._mean_targets
        nll, norms = cross_entropy(logits, batch["target_ids"])
        losses = (nll * weights.to(nll.dtype)).sum(dim=1)
        loss = losses.mean()
        self._tally(cells=torch.ones_like(losses), loss=losses, targets=masks.valid)
        relative = masks.weights * masks.valid.sum(dim=1, keepdim=True)  # to uniform masks'
        self._tally(weight=relative, weight2=relative.square(), tokens=sentences.attended.double() * self.masks)
        if self.mapnet is not None:
            own = self._mapnet_loss(sentences, masks, scores, batch, logits.detach(), norms, int(step[0]))
            loss = loss + self.options.weight * (own - own.detach())
        return {"loss": loss}

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
        with evaluating(self.encoder) if self._live is None and design.takes_scores else nullcontext():
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

    def _mapnet_loss(
        self,
        sentences: Sentences,
        masks: Masks,
        scores: Tensor,
        batch: Mapping[str, Tensor],
        logits: Tensor,
        norms: Tensor,
        step: int,
    ) -> Tensor:
        """Compute MAPNet's loss by the targets drawn, and tally what its scale and its calibration want to know."""
        assert self._live is not None
        said, self._live.said = self._live.said, None
        assert said is not None
        if step % self.options.every:
            return said.sum() * 0.0  # DDP waits for a gradient of every parameter
        if self.options.target == "gradient":
            with evaluating(self.encoder):
                norms = self._scoring.fresh().at_masks("gradient", sentences, masks)
        weights = self._unbiased_weights(sentences, masks, scores)
        norms = norms.double() * masks.valid
        self._tally(norm2=weights * norms.square())
        looks = self.options.target == "gradient" or step % self.options.calibrate_every == 0
        if self.calibration is not None and looks:
            # A placebo is used like the scores that it was made of.
            raw = positive(said.detach().double().exp(), sentences, "mapnet")
            design = self.proposal.design
            squares = norms.square() if isinstance(design, PPS) else _squared_errors(logits, batch, masks)
            self._tally_all("moments", second_moments(design, sentences, raw, masks, squares))
        scale = self._scale[0] / self._scale[1] if self._scale[1] else 0.0
        if not scale:
            return said.sum() * 0.0  # the scale is known from the next step on
        length = sentences.ids.shape[1]
        observed = chosen_of(masks.positions, masks.valid, length)
        slots = torch.where(masks.valid, masks.positions, length)
        on_positions = (
            x.new_zeros(len(x), length + 1).scatter(1, slots, x)[:, :-1] for x in (norms / scale**0.5, weights)
        )
        targets, importance = on_positions
        rows = (x.repeat_interleave(self.masks, dim=0) for x in (said, sentences.maskable))
        log_scores, maskable = rows
        found = LOSSES[self.options.loss](log_scores, targets, observed, maskable, importance)
        # The logarithm of a mean is no mean of micro-batches; its argument is.
        found = found.exp() if self.options.loss == "variance" else found
        self._tally(mapnet_loss=found.detach() * len(observed))
        return found

    def _unbiased_weights(self, sentences: Sentences, masks: Masks, scores: Tensor) -> Tensor:
        """``[cells, targets]`` weights by which sums over targets are unbiased for means over positions."""
        design: Design = self.in_use[1].design
        if not isinstance(design, Successive):
            return masks.weights
        inclusion = mix(near_inclusion(sentences, scores), sentences, design.epsilon)
        pi = inclusion.repeat_interleave(self.masks, dim=0).gather(1, masks.positions)
        totals = sentences.totals.repeat_interleave(self.masks).unsqueeze(1)
        return masks.valid / (totals * pi.masked_fill(~masks.valid, 1.0))

    def _tally(self, **sums: Tensor) -> None:
        for name, x in sums.items():
            self._tally_all(name, x.detach().double().sum())

    def _tally_all(self, name: str, values: Tensor) -> None:
        self.tallies[name] = self.tallies[name] + values if name in self.tallies else values

    def learn(self, tallies: Mapping[str, Tensor]) -> None:
        """Take what a whole step, of all ranks and micro-batches, said of the MAPNet's scale and calibration.

        Args:
            tallies: Sums over the cells of the step.
        """
        if "norm2" in tallies:
            self._scale = _MEMORY * self._scale + np.array([float(tallies["norm2"]), float(tallies["cells"])])
        if self.calibration is not None and "moments" in tallies:
            self.calibration.look(tallies["moments"].cpu().numpy())

    def state(self) -> dict[str, Any]:
        """Return what it knows beside its parameters, as plain JSON."""
        found: dict[str, Any] = {"scale": self._scale.tolist()}
        return found | ({} if self.calibration is None else {"calibration": self.calibration.state()})

    def restore(self, state: Mapping[str, Any]) -> None:
        """Know what :meth:`state` said."""
        self._scale = np.array(state["scale"])
        if self.calibration is not None:
            self.calibration.restore(state["calibration"])


def masks_of(masking: Masking, known: Mapping[str, Score] | None = None) -> int:
    """Count the masks of a sentence in one step.

    Args:
        masking: How masks are chosen.
        known: Scores by name, as :func:`~gradvar.masking.proposal.parse_proposal` takes them.

    Returns:
        Masks.

    Raises:
        GradvarError: If they are no multiple of those of one draw.
    """
    together = parse_proposal(masking.proposal, known or dict.fromkeys(LATER, Uniform())).design.cells
    masks = masking.masks or together
    if masks % together:
        raise GradvarError(
            f"masking.masks {masks} is no multiple of the {together} masks of one draw of {masking.proposal}"
        )
    return masks


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


class _CrossEntropy(torch.autograd.Function):
    """Cross-entropies, and the norms of their gradients at the logits, of one table of probabilities."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        log_p = logits.log_softmax(dim=-1)
        nll = -log_p.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
        p = log_p.exp_()
        own = (-nll).exp()
        norms = (torch.linalg.vector_norm(p, dim=-1).square() - 2 * own + 1).clamp(min=0).sqrt()
        ctx.save_for_backward(p, targets)
        ctx.mark_non_differentiable(norms)
        return nll, norms

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor, None]:
        p, targets = ctx.saved_tensors
        scaled = p * gradient.unsqueeze(-1)
        return scaled.scatter_add_(-1, targets.unsqueeze(-1), -gradient.unsqueeze(-1)), None


def cross_entropy(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Compute cross-entropies, and the norms ``|p - y|`` of their gradients at the logits, which cost nothing more.

    Args:
        logits: ``[cells, targets, vocabulary]``; half precision becomes float32.
        targets: ``[cells, targets]`` int64.

    Returns:
        ``[cells, targets]`` cross-entropies in nats, and norms without a graph.
    """
    logits = logits if logits.dtype == torch.float64 else logits.float()
    found: tuple[Tensor, Tensor] = _CrossEntropy.apply(logits, targets)  # type: ignore[no-untyped-call]
    return found


def _squared_errors(logits: Tensor, batch: Mapping[str, Tensor], masks: Masks) -> Tensor:
    """``[cells]`` squared norms of the mean over a cell's targets of ``p - y``."""
    errors = logits.double().softmax(dim=-1)
    target = batch["target_ids"].unsqueeze(-1)
    errors.scatter_add_(-1, target, torch.full_like(target, -1.0, dtype=errors.dtype))
    counts = masks.valid.sum(dim=1, keepdim=True)
    return (errors * masks.valid.unsqueeze(-1)).sum(dim=1).div(counts).square().sum(dim=1)


def _new_mapnet(encoder: nn.Module, length: int, options: MapNetTraining, seed: int) -> MapNet:
    tokens, width = embedding_shape(encoder)
    with evaluating(encoder):
        flops = encoder_flops_per_token(encoder, length)
    try:
        config = default_config(tokens, width, flops, length, **options.shape)
    except TypeError as error:
        raise GradvarError(f"mapnet.shape {options.shape} is no shape of a MAPNet ({error}); correct it") from None
    device = next(encoder.parameters()).device
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MapNet(config).to(device)


def _stream(number: int, like: Tensor) -> Tensor:
    return torch.full_like(like, number)
