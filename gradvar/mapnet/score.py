"""A MAPNet as a score: what it says of a sentence, to be used with any design."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gradvar.mapnet.network import MapNet, Reading
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
    """Run a network on sentences: ``[rows, positions]`` log scores; see :func:`read`."""
    return read(network, sentences, task).log_scores


def read(network: MapNet, sentences: Sentences, task: Task) -> Reading:
    """Run a network on sentences, with gradients for the network alone.

    Args:
        network: The network.
        sentences: What it reads.
        task: The objective, whose token embeddings it may read.

    Returns:
        Log scores and contexts.
    """
    ids = sentences.ids.clamp(min=0)
    inputs = ids if network.config.embeddings == "own" else task.token_embeddings(ids)
    return network.read(inputs, sentences.attended)


def table(network: MapNet, task: Task) -> Tensor:
    """Take the ``[vocabulary, embedding_width]`` embeddings that a network's contexts expect tokens by."""
    tokens = torch.arange(network.config.vocabulary, device=network.head.weight.device)
    return network.entry(tokens) if network.config.embeddings == "own" else task.token_embeddings(tokens)
