"""A MAPNet as a score: what it says of a sentence, to be used with any design."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gradvar.mapnet.network import MapNet
from gradvar.masking.masks import Sentences
from gradvar.masking.scores import Task


@dataclass(frozen=True, eq=False)
class MapNetScore:
    """The scores of a fitted network.

    Args:
        network: The network, on the encoder's device.
    """

    network: MapNet

    def __call__(self, sentences: Sentences, task: Task) -> Tensor:
        """Score; see :class:`~gradvar.masking.scores.Score`."""
        with torch.no_grad():
            return log_scores(self.network, sentences, task).double().exp()

    def __str__(self) -> str:
        """Name the score."""
        return "mapnet"


def log_scores(network: MapNet, sentences: Sentences, task: Task) -> Tensor:
    """Run a network on sentences: ``[rows, positions]`` log scores, with gradients for the network alone.

    Args:
        network: The network.
        sentences: What it reads.
        task: The objective, whose token embeddings it may read.

    Returns:
        The log scores.
    """
    ids = sentences.ids.clamp(min=0)
    inputs = ids if network.config.embeddings == "own" else task.token_embeddings(ids)
    return network(inputs, sentences.attended)
