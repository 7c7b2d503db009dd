"""The MAPNet: a small network that reads the *unmasked* sentence and gives every position a log score.

A gradient is large where the surroundings do not give the token away, and it takes a language model, if a poor one, to
tell. So contexts, which never read their own token, are kept apart from tokens, and the score is of the two together.
All of this is a choice of this project. The network's shape and cost live in config.py, what it is fitted to in
losses.py, its files in files.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradvar.errors import GradvarError
from gradvar.mapnet import files
from gradvar.mapnet.config import MapNetConfig

BOUND = 8.0
"""Log scores are softly kept between minus and plus this: scores of one sentence differ by ``e^16`` at most."""


class Reading(NamedTuple):
    """What a MAPNet makes of sentences.

    Attributes:
        log_scores: ``[rows, positions]`` float32; zero where padded.
        contexts: ``[rows, positions, embedding_width]``, ``c_i``: what its surroundings say of a token. They do not
            depend on the token itself.
    """

    log_scores: Tensor
    contexts: Tensor


class MapNet(nn.Module):
    """Log scores of positions, from the unmasked sentence.

    Tokens are a linear projection of the encoder's embeddings ``e`` (or an own table), with LayerNorm. A context starts
    from the ``window`` tokens on either side, one linear layer of them; every layer adds attention to the tokens
    elsewhere in the sentence, or to none, and a feed-forward block with GELU. Neither sees the position's own token.
    LayerNorm and a linear layer make the context vector ``c_i`` of it. The head, of one hidden layer, reads context,
    token and their agreement ``<c_i, e_i>``; it starts at zero, so that an unfitted MAPNet scores all positions alike.
    No dropout, and no positions: sentences may be of any length.

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
            self.entry = nn.Embedding(config.vocabulary, width)
            nn.init.normal_(self.entry.weight, std=0.02)
        # The scale of the embeddings differs from encoder to encoder; it says nothing about positions.
        self.entry_norm = nn.LayerNorm(width)
        self.window = nn.Linear(2 * config.window * width, width)
        self.layers = nn.ModuleList(_Layer(config) for _ in range(config.layers))
        self.context_norm, self.context = nn.LayerNorm(width), nn.Linear(width, config.embedding_width)
        self.hidden, self.head = nn.Linear(2 * width + 1, width), nn.Linear(width, 1)
        for last in (self.context, self.head):
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def forward(self, inputs: Tensor, attention: Tensor) -> Tensor:
        """Score positions: ``8 tanh(x/8) / temperature``, ``x`` the head's output.

        Args:
            inputs: ``[rows, positions, input_width]`` embeddings of the encoder, detached unless they are to get a
                gradient, or ``[rows, positions]`` ids where the embeddings are its own; anything where padded.
            attention: ``[rows, positions]`` bool, False where padded.

        Returns:
            ``[rows, positions]`` float32 log scores; zero where padded.

        Raises:
            GradvarError: If the inputs are not of the MAPNet's width.
        """  # noqa: DOC502
        return self.read(inputs, attention).log_scores

    def read(self, inputs: Tensor, attention: Tensor) -> Reading:
        """Score positions, and say what the context of each is; see :meth:`forward`.

        Args:
            inputs: See :meth:`forward`.
            attention: See :meth:`forward`.

        Returns:
            Both.

        Raises:
            GradvarError: If the inputs are not of the MAPNet's width.
        """
        own = self.config.embeddings == "own"
        shape = attention.shape if own else (*attention.shape, self.config.input_width)
        if inputs.shape != shape:
            raise GradvarError(
                f"the MAPNet reads {'ids' if own else 'embeddings'} of shape {list(shape)}, not {list(inputs.shape)}; "
                "give what its configuration's 'embeddings' says"
            )
        padded = ~attention.unsqueeze(-1)
        if own:
            embedded = tokens = self.entry(inputs.masked_fill(~attention, 0))
        else:
            # Whatever stands in the padding is multiplied by zero, which does not rid it of NaN.
            embedded = inputs.masked_fill(padded, 0.0).to(self.head.weight.dtype)
            tokens = self.entry(embedded)
        tokens = self.entry_norm(tokens).masked_fill(padded, 0.0)
        context = self.window(_neighbours(tokens, self.config.window))
        # Others alone may be attended to, or a key and value of zero: a token without others has that at least.
        others = attention.unsqueeze(1) & ~torch.eye(attention.shape[1], dtype=torch.bool, device=attention.device)
        others = F.pad(others, (0, 1), value=True).unsqueeze(1)
        for layer in self.layers:
            context = layer(context, tokens, others)
        context = self.context_norm(context)
        contexts = self.context(context)
        agreement = (contexts * embedded).sum(dim=-1, keepdim=True)
        scores = self.head(F.gelu(self.hidden(torch.cat([context, tokens, agreement], dim=-1)))).squeeze(-1).float()
        bounded = BOUND * torch.tanh(scores / BOUND) / self.config.temperature
        return Reading(bounded.masked_fill(~attention, 0.0), contexts)

    def check_fits(self, vocabulary: int, input_width: int) -> None:
        """Refuse an encoder that this MAPNet does not go with.

        Args:
            vocabulary: Tokens of the encoder.
            input_width: Width of its token embeddings; of no account to a MAPNet with embeddings of its own.

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
    """A pre-norm layer: attention from contexts to tokens, and a feed-forward block."""

    def __init__(self, config: MapNetConfig) -> None:
        super().__init__()
        width, inner = config.width, config.feed_forward * config.width
        self.heads = config.heads
        self.attention_norm, self.feed_forward_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key_value, self.output = (nn.Linear(width, n * width) for n in (1, 2, 1))
        self.widen, self.narrow = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, context: Tensor, tokens: Tensor, seen: Tensor) -> Tensor:
        """Map contexts ``[rows, positions, width]`` to the same.

        ``seen`` is ``[rows, 1, positions, positions + 1]`` bool, the last for a key and value of zero.
        """
        query = self.query(self.attention_norm(context)).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        pair = self.key_value(tokens).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        key, value = F.pad(pair, (0, 0, 0, 1))
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=seen)
        context = context + self.output(mixed.transpose(1, 2).flatten(2))
        return context + self.narrow(F.gelu(self.widen(self.feed_forward_norm(context))))


def _neighbours(tokens: Tensor, reach: int) -> Tensor:
    """``[rows, positions, 2 reach width]``: the tokens up to ``reach`` before and after each; zero past the ends."""
    length, padded = tokens.shape[1], F.pad(tokens, (0, 0, reach, reach))
    return torch.cat([padded[:, reach + step :][:, :length] for step in range(-reach, reach + 1) if step], dim=-1)
