"""The MAPNet: a small transformer that reads the *unmasked* sentence and gives every position a log score.

Its size, its layers, the bound of its scores and the zero at its start are choices of this project. Its shape and cost
live in config.py, what it is fitted to in losses.py, its files in files.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradvar.errors import GradvarError
from gradvar.mapnet import files
from gradvar.mapnet.config import MapNetConfig

BOUND = 8.0
"""Log scores are softly kept between minus and plus this: scores of one sentence differ by ``e^16`` at most."""


class MapNet(nn.Module):
    """Log scores of positions, from the unmasked sentence.

    Linear projection of the encoder's embeddings (or an own table), plus learned positions, LayerNorm; pre-norm
    transformer layers with full attention and GELU; LayerNorm and a linear head that starts at zero, so that an
    unfitted MAPNet scores all positions alike. No dropout. Positions are counted along the tokens, so that padding
    changes nothing wherever it stands.

    Args:
        config: Its shape.
        record: How it was fitted, plain JSON; saved and restored with it.
    """

    def __init__(self, config: MapNetConfig, record: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.config = config
        self.record: dict[str, Any] = dict(record or {})
        width = config.width
        self.entry: nn.Module
        if config.embeddings == "model":
            self.entry = nn.Linear(config.input_width, width)
        else:
            self.entry = _table(config.vocabulary, width)
        self.positions = _table(config.max_length, width)
        # The scale of the embeddings differs from encoder to encoder; it says nothing about positions.
        self.entry_norm = nn.LayerNorm(width)
        self.layers = nn.ModuleList(_Layer(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, inputs: Tensor, attention: Tensor) -> Tensor:
        """Score positions: ``8 tanh(x/8) / temperature``, ``x`` the head's output.

        Args:
            inputs: ``[rows, positions, input_width]`` embeddings of the encoder, which get no gradient, or ``[rows,
                positions]`` ids where the embeddings are its own; anything where padded.
            attention: ``[rows, positions]`` bool, False where padded.

        Returns:
            ``[rows, positions]`` float32 log scores; zero where padded.

        Raises:
            GradvarError: If the inputs are not of the MAPNet's width, or too long for it.
        """
        own = self.config.embeddings == "own"
        shape = attention.shape if own else (*attention.shape, self.config.input_width)
        if inputs.shape != shape:
            raise GradvarError(
                f"the MAPNet reads {'ids' if own else 'embeddings'} of shape {list(shape)}, not {list(inputs.shape)}; "
                "give what its configuration's 'embeddings' says"
            )
        # The tokens are only counted where they may be too many: that waits for the device.
        longest = self.config.max_length
        if attention.shape[1] > longest and (length := int(attention.sum(dim=1).max())) > longest:
            raise GradvarError(_too_long(length, longest))
        if own:
            hidden = self.entry(inputs.masked_fill(~attention, 0))
        else:
            # Whatever stands in the padding is multiplied by zero in attention, which does not rid it of NaN.
            known = inputs.detach().masked_fill(~attention.unsqueeze(-1), 0.0)
            hidden = self.entry(known.to(self.head.weight.dtype))
        places = (attention.long().cumsum(dim=1) - 1).clamp(min=0)
        hidden = self.entry_norm(hidden + self.positions(places))
        for layer in self.layers:
            hidden = layer(hidden, attention[:, None, None, :])
        scores = self.head(self.norm(hidden)).squeeze(-1).float()
        return (BOUND * torch.tanh(scores / BOUND) / self.config.temperature).masked_fill(~attention, 0.0)

    def check_fits(self, vocabulary: int, input_width: int, max_length: int | None = None) -> None:
        """Refuse an encoder that this MAPNet does not go with.

        Args:
            vocabulary: Tokens of the encoder.
            input_width: Width of its token embeddings; of no account to a MAPNet with embeddings of its own.
            max_length: Longest sentence, if that is to be checked too.

        Raises:
            GradvarError: If one of them is not the MAPNet's.
        """
        config = self.config
        if vocabulary != config.vocabulary:
            raise GradvarError(
                f"the MAPNet is for a vocabulary of {config.vocabulary} tokens, the encoder has {vocabulary}; fit one "
                "to this encoder"
            )
        if config.embeddings == "model" and input_width != config.input_width:
            raise GradvarError(
                f"the MAPNet reads embeddings of width {config.input_width}, the encoder's are {input_width} wide; fit "
                "one to this encoder"
            )
        if max_length is not None and max_length > config.max_length:
            raise GradvarError(_too_long(max_length, config.max_length))

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the network to a folder; see :func:`gradvar.mapnet.files.write` for the files and the errors.

        Args:
            folder: It is made if it is not there; other files in it, such as the encoder's, stay.
        """
        files.write(Path(folder), asdict(self.config), self.record, self.state_dict())

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> MapNet:
        """Read a network as :meth:`save_pretrained` wrote it, bit for bit, onto the CPU.

        Args:
            folder: The folder.

        Returns:
            The network.

        Raises:
            GradvarError: If there is none, or if its files are damaged or do not belong together.
        """
        saved = files.read(Path(folder))
        try:
            config = MapNetConfig(**saved.config)
        except (TypeError, GradvarError) as error:
            raise GradvarError(f"{Path(folder) / files.CONFIG} describes no MAPNet ({error}); copy it again") from error
        with torch.device("meta"):
            network = cls(config, saved.record)
        files.check_weights(Path(folder), saved.weights, network.state_dict())
        network.load_state_dict(saved.weights, assign=True)
        return network


class _Layer(nn.Module):
    """A pre-norm transformer layer."""

    def __init__(self, config: MapNetConfig) -> None:
        super().__init__()
        width, inner = config.width, config.feed_forward * config.width
        self.heads = config.heads
        self.attention_norm, self.feed_forward_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query_key_value, self.output = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.widen, self.narrow = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, hidden: Tensor, seen: Tensor) -> Tensor:
        """Map ``[rows, positions, width]`` to the same; ``seen`` is ``[rows, 1, 1, positions]`` bool."""
        parts = self.query_key_value(self.attention_norm(hidden)).unflatten(-1, (3, self.heads, -1))
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=seen)
        hidden = hidden + self.output(mixed.transpose(1, 2).flatten(2))
        return hidden + self.narrow(F.gelu(self.widen(self.feed_forward_norm(hidden))))


def _table(rows: int, width: int) -> nn.Embedding:
    table = nn.Embedding(rows, width)
    nn.init.normal_(table.weight, std=0.02)
    return table


def _too_long(length: int, longest: int) -> str:
    return (
        f"a sentence of {length} tokens is too long for a MAPNet that reads {longest}; give --max-length {longest}, or "
        "fit one for longer sentences"
    )
