"""The shape of a MAPNet, what it costs, and a shape that costs little beside the encoder."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import inf
from typing import Any, Literal, get_args

from gradvar.errors import GradvarError

Embeddings = Literal["model", "own"]
"""What is read: the encoder's token embeddings, which get no gradient, or a table of the MAPNet's own."""

COOLEST = 0.125
"""Lowest temperature: log scores stay below 64 in size, whose exponentials fit float32."""
AFFORDABLE = 0.1
"""Share of the encoder's FLOPs that :func:`default_config` may spend."""
_DEEP, _SHALLOW = (256, 224, 192, 160, 128, 96, 64, 32), (256, 224, 192, 160, 128, 96, 64, 32, 16, 8, 4)
_SIZES = ("vocabulary", "input_width", "width", "layers", "heads", "feed_forward", "max_length")


@dataclass(frozen=True)
class MapNetConfig:
    """The shape of a MAPNet.

    Args:
        vocabulary: Tokens of the encoder that it goes with.
        input_width: Width of that encoder's token embeddings.
        embeddings: What it reads; see :data:`Embeddings`.
        width: Of its own hidden states, a multiple of ``heads``.
        layers: Transformer layers.
        heads: Attention heads a layer.
        feed_forward: Width of the hidden layer of each feed-forward block, as a multiple of ``width``.
        max_length: Longest sentence, special tokens included.
        temperature: Log scores are divided by it.

    Raises:
        GradvarError: If no network can have this shape.
    """

    vocabulary: int
    input_width: int
    embeddings: Embeddings = "model"
    width: int = 64
    layers: int = 2
    heads: int = 2
    feed_forward: int = 4
    max_length: int = 512
    temperature: float = 1.0

    def __post_init__(self) -> None:
        values: dict[str, Any] = asdict(self)
        for name in _SIZES:
            if type(values[name]) is not int or values[name] < 1:
                raise GradvarError(f"a MAPNet of {name} {values[name]!r} cannot be; give a whole number from 1 up")
        if self.embeddings not in get_args(Embeddings):
            raise GradvarError(
                f"a MAPNet has no embeddings '{self.embeddings}'; use {' or '.join(get_args(Embeddings))}"
            )
        if self.width % self.heads:
            raise GradvarError(
                f"a MAPNet's width of {self.width} cannot be shared among {self.heads} heads; give a multiple of them"
            )
        warmth = values["temperature"]
        if type(warmth) not in (int, float) or not COOLEST <= warmth < inf:
            raise GradvarError(f"a MAPNet's temperature cannot be {warmth!r}; give a number from {COOLEST} up")


def flops_per_token(config: MapNetConfig, length: int) -> float:
    """Count the FLOPs of a forward pass for each position of a sentence, a multiply-add as two.

    With width ``w``, ``d = input_width`` and ``m = feed_forward``, for sentences of ``length`` positions,
    ``[2 d w] + layers (8 w^2 + 4 length w + 4 m w^2) + 2 w``: the projection (none for ``own`` embeddings, a look-up);
    a layer's query, key, value and output, its scores and their sums, its feed-forward block; and the head. Norms,
    biases, softmax and GELU are left out.

    Args:
        config: The MAPNet's.
        length: Positions.

    Returns:
        FLOPs.
    """
    w = config.width
    entry = 2 * config.input_width * w if config.embeddings == "model" else 0
    layer = 8 * w**2 + 4 * length * w + 4 * config.feed_forward * w**2
    return float(entry + config.layers * layer + 2 * w)


def default_config(vocabulary: int, input_width: int, encoder_flops_per_token: float, max_length: int) -> MapNetConfig:
    """Pick the largest MAPNet that costs a tenth of the encoder's forward pass at most.

    Two layers as wide as can be, from 256 down to 32; else one layer, down to a width of 4. Wider ones are not tried: a
    score is cheap to learn beside a language, and what it is learnt from is small. Heads are 32 wide.

    Args:
        vocabulary: Tokens of the encoder.
        input_width: Width of its token embeddings, which the MAPNet reads.
        encoder_flops_per_token: Of the encoder's forward pass over ``max_length`` positions, a multiply-add as two.
        max_length: Longest sentence; attention is dearest there, so the promise holds for all.

    Returns:
        The configuration.

    Raises:
        GradvarError: If not even the smallest MAPNet is as cheap.
    """
    for layers, widths in ((2, _DEEP), (1, _SHALLOW)):
        for width in widths:
            heads = max(1, width // 32)
            config = MapNetConfig(
                vocabulary, input_width, width=width, layers=layers, heads=heads, max_length=max_length
            )
            if flops_per_token(config, max_length) <= AFFORDABLE * encoder_flops_per_token:
                return config
    raise GradvarError(
        f"no MAPNet is as cheap as a tenth of an encoder of {encoder_flops_per_token:,.0f} FLOPs a token; shorten "
        f"--max-length from {max_length}, or give the MAPNet's width and layers"
    )
