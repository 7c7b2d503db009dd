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
_WIDTHS = (256, 224, 192, 160, 128, 96, 64, 48, 32, 16, 8, 4)
_SIZES = ("vocabulary", "input_width", "width", "window", "layers", "heads", "feed_forward")


@dataclass(frozen=True)
class MapNetConfig:
    """The shape of a MAPNet.

    Args:
        vocabulary: Tokens of the encoder that it goes with.
        input_width: Width of that encoder's token embeddings.
        embeddings: What it reads; see :data:`Embeddings`.
        width: Of its own hidden states, a multiple of ``heads``.
        window: Neighbours on either side whose order is seen.
        layers: Layers of attention to the whole sentence.
        heads: Attention heads a layer.
        feed_forward: Width of the hidden layer of each feed-forward block, as a multiple of ``width``.
        temperature: Log scores are divided by it.

    Raises:
        GradvarError: If no network can have this shape.
    """

    vocabulary: int
    input_width: int
    embeddings: Embeddings = "model"
    width: int = 64
    window: int = 4
    layers: int = 1
    heads: int = 2
    feed_forward: int = 2
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

    @property
    def embedding_width(self) -> int:
        """Width of the embeddings that it reads: the encoder's, or, of its own, its ``width``."""
        return self.input_width if self.embeddings == "model" else self.width


def flops_per_token(config: MapNetConfig, length: int) -> float:
    """Count the FLOPs of a forward pass for each position of a sentence, a multiply-add as two.

    With width ``w``, ``d`` that of the embeddings, ``r = window`` and ``m = feed_forward``, for sentences of ``length``
    positions: ``[2 d w]`` for the tokens (none for ``own`` embeddings, a look-up, of ``d = w``); ``4 r w^2`` for the
    window; ``8 w^2 + 4 (length + 1) w + 4 m w^2`` a layer, for its query, key, value and output, its scores and their
    sums, its feed-forward block; ``2 w d`` for the context; and ``2 (2 w + 1) w + 2 w`` for the head. Norms, biases,
    softmax, GELU and the inner product of context and token are left out.

    Args:
        config: The MAPNet's.
        length: Positions.

    Returns:
        FLOPs.
    """
    w, d = config.width, config.embedding_width
    entry = 2 * d * w if config.embeddings == "model" else 0
    layer = 8 * w**2 + 4 * (length + 1) * w + 4 * config.feed_forward * w**2
    head = 2 * (2 * w + 1) * w + 2 * w
    return float(entry + 4 * config.window * w**2 + config.layers * layer + 2 * w * d + head)


def default_config(
    vocabulary: int, input_width: int, encoder_flops_per_token: float, max_length: int, **shape: Any
) -> MapNetConfig:
    """Pick the widest MAPNet, from 256 down to 4, that costs a tenth of the encoder's forward pass at most.

    Wider ones are not tried: they want more text than a fit reads.

    Args:
        vocabulary: Tokens of the encoder.
        input_width: Width of its token embeddings, which the MAPNet reads.
        encoder_flops_per_token: Of the encoder's forward pass over ``max_length`` positions, a multiply-add as two.
        max_length: Longest sentence; attention is dearest there, so the promise holds for all.
        **shape: Fields that are settled. With a ``width`` among them it costs what it costs. Heads are about 32 wide.

    Returns:
        The configuration.

    Raises:
        GradvarError: If not even the smallest MAPNet is as cheap, or no network can have this shape.
    """
    given: int = shape.get("heads") or 0
    widths = [shape["width"]] if "width" in shape else [width for width in _WIDTHS if not given or width % given == 0]
    if not widths:
        raise GradvarError(
            f"none of the widths that are tried can be shared among {given} heads; {_give_width(32 * given)}"
        )
    for width in widths:
        heads = given or next(n for n in range(max(1, width // 32), 0, -1) if width % n == 0)
        settled: dict[str, Any] = {"width": width, "heads": heads} | shape
        config = MapNetConfig(vocabulary, input_width, **settled)
        if "width" in shape or flops_per_token(config, max_length) <= AFFORDABLE * encoder_flops_per_token:
            return config
    raise GradvarError(
        f"no MAPNet is as cheap as a tenth of an encoder of {encoder_flops_per_token:,.0f} FLOPs a token; shorten "
        f"the sequences from {max_length} tokens, or {_give_width(widths[-1])}"
    )


def _give_width(width: int) -> str:
    """Say how a width is given, wherever the MAPNet is to be made."""
    return (
        f"give the MAPNet a width, such as mapnet.shape.width={width} in a recipe, MapNetTraining(shape={{'width': "
        f"{width}}}), or gradvar fit-mapnet --width {width}"
    )
