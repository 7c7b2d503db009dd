"""The small MAPNets that these tests share."""

import torch

from gradvar.mapnet.config import MapNetConfig
from gradvar.mapnet.network import MapNet

VOCABULARY, INPUT_WIDTH = 50, 12
EMBEDDINGS = ("model", "own")


def config(embeddings: str = "model", **changes: object) -> MapNetConfig:
    sizes = {"width": 8, "window": 2, "layers": 2, "heads": 2}
    return MapNetConfig(VOCABULARY, INPUT_WIDTH, embeddings, **(sizes | changes))


def fitted(embeddings: str = "model", **changes: object) -> MapNet:
    """A MAPNet all of whose parameters are random, the head's included, as after a fit."""
    torch.manual_seed(3)
    network = MapNet(config(embeddings, **changes), record={"loss": "kl", "exponent": 0.5, "data": {"sha256": "ab"}})
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return network


def inputs(embeddings: str, rows: int = 3, length: int = 7, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    if embeddings == "own":
        return torch.randint(0, VOCABULARY, (rows, length), generator=generator)
    return torch.randn(rows, length, INPUT_WIDTH, generator=generator)


def everything(rows: int = 3, length: int = 7) -> torch.Tensor:
    """Attention without padding."""
    return torch.ones(rows, length, dtype=torch.bool)
