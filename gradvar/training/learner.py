"""A MAPNet that learns from the masks that it draws: its scores, its loss, and how far it is trusted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gradvar.huggingface.forward import embedding_shape, encoder_flops_per_token
from gradvar.mapnet.config import default_config
from gradvar.mapnet.losses import LOSSES
from gradvar.mapnet.network import MapNet
from gradvar.mapnet.online import OnlineCalibration, can_calibrate, second_moments
from gradvar.masking.designs import Design
from gradvar.masking.masks import Masks, Sentences, chosen_of
from gradvar.masking.pps import PPS
from gradvar.masking.proposal import Proposal
from gradvar.masking.scores import Power, Task, positive
from gradvar.masking.units import Successive
from gradvar.training.recipe import MapNetTraining

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


class Learner:
    """What the training of a MAPNet needs beside its parameters.

    Args:
        network: The MAPNet.
        encoder: The masked LM that it goes with.
        options: How it is trained.

    Attributes:
        score: The MAPNet as a score.
        calibration: Its online calibration; None where exponent and epsilon are given, or cannot be told.
    """

    def __init__(self, network: MapNet, encoder: nn.Module, options: MapNetTraining) -> None:
        self.options = options
        table: Any = encoder
        self.score = LiveMapNet(network, table.get_input_embeddings() if options.into_encoder else None)
        self.calibration: OnlineCalibration | None = None
        self._scale = np.zeros(2)  # discounted sums of the squared targets and of cells

    def serve(self, proposal: Proposal) -> None:
        """Take the proposal that its scores are for; where that gives neither exponent nor epsilon, they are settled.

        Args:
            proposal: As the recipe has it.
        """
        given = isinstance(proposal.score, Power) or getattr(proposal.design, "epsilon", 0.0) > 0
        self.calibration = None if given or not can_calibrate(proposal.design) else OnlineCalibration()

    def measures(self, step: int) -> bool:
        """Whether it learns at a step."""
        return step % self.options.every == 0

    def loss(
        self,
        design: Design,
        drawn_by: Design,
        sentences: Sentences,
        masks: Masks,
        scores: Tensor,
        norms: Tensor,
        cell_squares: Callable[[], Tensor],
        step: int,
    ) -> tuple[Tensor, Tallies]:
        """Compute its loss by the targets drawn, and what its scale and its calibration want to know.

        Args:
            design: Of the proposal.
            drawn_by: The design in use, which drew.
            sentences: ``[rows]`` of them.
            masks: ``[cells]`` of them, a multiple of ``rows``; those of a row together.
            scores: ``[rows, positions]`` that they were drawn by, before the calibration's exponent.
            norms: ``[cells, targets]`` targets of the MAPNet.
            cell_squares: Gives the ``[cells]`` squared norms of whole cells.
            step: Of the optimizer.

        Returns:
            The loss, a mean over cells; zero where it cannot be told yet.
        """
        said, self.score.said = self.score.said, None
        assert said is not None
        times = len(masks.keys) // len(sentences.ids)
        weights = _unbiased_weights(drawn_by, sentences, masks, scores)
        norms = norms.double() * masks.valid
        tallies = {"norm2": (weights * norms.square()).sum(), "norm_cells": norms.new_tensor(len(norms))}
        if self.calibration is not None and step % self._looks_every == 0:
            # A placebo is used like the scores that it was made of.
            raw = positive(said.detach().double().exp(), sentences, "mapnet")
            squares = norms.square() if isinstance(design, PPS) else cell_squares()
            tallies["moments"] = second_moments(design, sentences, raw, masks, squares)
            tallies["looks"] = norms.new_tensor(len(norms))
        scale = self._scale[0] / self._scale[1] if self._scale[1] else 0.0
        if not scale or not bool((norms > 0).any()):
            return said.sum() * 0.0, tallies  # the scale is known from the next step on
        observed = chosen_of(masks.positions, masks.valid, sentences.ids.shape[1])
        found = LOSSES[self.options.loss](
            said.repeat_interleave(times, dim=0),
            _on_positions(norms / scale**0.5, masks, observed),
            observed,
            sentences.maskable.repeat_interleave(times, dim=0),
            _on_positions(weights, masks, observed),
        )
        # The logarithm of a mean is no mean of micro-batches; its argument is.
        found = found.exp() if self.options.loss == "variance" else found
        tallies |= {"mapnet_loss": found.detach().double() * len(norms), "mapnet_cells": norms.new_tensor(len(norms))}
        return found, tallies

    @property
    def _looks_every(self) -> int:
        return self.options.every if self.options.target == "gradient" else self.options.calibrate_every

    def learn(self, tallies: Mapping[str, Tensor]) -> None:
        """Take what a whole step, of all ranks and micro-batches, said; see :meth:`loss`. What is not there is zero."""
        if float(tallies.get("norm_cells", 0.0)):
            self._scale = _MEMORY * self._scale + np.array([float(tallies["norm2"]), float(tallies["norm_cells"])])
        if self.calibration is not None and float(tallies.get("looks", 0.0)):
            self.calibration.look(tallies["moments"].numpy())

    def state(self) -> dict[str, Any]:
        """Return what it knows beside the network's parameters, as plain JSON."""
        found: dict[str, Any] = {"scale": self._scale.tolist()}
        return found | ({} if self.calibration is None else {"calibration": self.calibration.state()})

    def restore(self, state: Mapping[str, Any]) -> None:
        """Know what :meth:`state` said."""
        self._scale = np.array(state["scale"])
        if self.calibration is not None:
            self.calibration.restore(state["calibration"])


def new_mapnet(encoder: nn.Module, length: int, options: MapNetTraining, seed: int) -> MapNet:
    """Make a MAPNet of the shape that is asked for, or that a tenth of the encoder affords.

    Args:
        encoder: The masked LM, in evaluation mode.
        length: Longest sequence.
        options: Of its training, with its shape.
        seed: Of its first weights.

    Returns:
        The network, on the encoder's device.

    Raises:
        GradvarError: If no MAPNet can have this shape.
    """  # noqa: DOC502
    tokens, width = embedding_shape(encoder)
    flops = encoder_flops_per_token(encoder, length)
    config = default_config(tokens, width, flops, length, **options.shape)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MapNet(config).to(next(encoder.parameters()).device)


def _unbiased_weights(drawn_by: Design, sentences: Sentences, masks: Masks, scores: Tensor) -> Tensor:
    """``[cells, targets]`` weights by which sums over targets are unbiased for means over positions."""
    if not isinstance(drawn_by, Successive):
        return masks.weights
    times = len(masks.keys) // len(sentences.ids)
    pi = drawn_by.near_inclusion(sentences, scores).repeat_interleave(times, dim=0).gather(1, masks.positions)
    totals = sentences.totals.repeat_interleave(times).unsqueeze(1)
    return masks.valid / (totals * pi.masked_fill(~masks.valid, 1.0))


def _on_positions(values: Tensor, masks: Masks, observed: Tensor) -> Tensor:
    """Spread ``[cells, targets]`` over the ``[cells, positions]`` that they are at; zero elsewhere."""
    slots = torch.where(masks.valid, masks.positions, observed.shape[1])
    return values.new_zeros(len(values), observed.shape[1] + 1).scatter(1, slots, values)[:, :-1]
