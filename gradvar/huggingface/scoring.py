"""What scores ask of a masked LM: losses and gradients at every position, as a target in random contexts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradvar.decomposition.norms import NormAccumulator
from gradvar.errors import EngineError, GradvarError, NotFiniteError
from gradvar.masking.designs import SetScores, position_order
from gradvar.masking.hashing import hash_key
from gradvar.masking.masks import Masks, Sentences
from gradvar.masking.scores import Quantity
from gradvar.persample.check import autograd_gradients
from gradvar.persample.engine import Engine
from gradvar.persample.parameters import Target, select
from gradvar.runner import make_engine

if TYPE_CHECKING:
    from gradvar.huggingface.masked_model import MaskedModel

_CONTEXT, _CORRUPTION = 20, 21  # streams of hashes
_CELLS_CPU, _CELLS_GPU = 16, 256  # cells of a forward and backward pass


class Scoring:
    """Measures quantities at the positions of sentences, each sentence once; a :class:`~gradvar.masking.scores.Task`.

    In one context every position is a target once: a random order of the ``T`` maskable positions is cut into
    ``ceil(T/k)`` masks of ``k``, the last one filled up from the beginning. Each of these masks is uniform, and, given
    that ``i`` is in it, so are the others.

    Args:
        objective: The masked LM.
        contexts: How many contexts.
        engine: What is to measure gradients: ``onepass``, ``reference``, or ``auto``.
        parameters: Regular expression of the names of the parameters whose gradients count; None takes all.
    """

    def __init__(
        self, objective: MaskedModel, contexts: int, engine: str = "auto", parameters: str | None = None
    ) -> None:
        self.objective, self.contexts = objective, contexts
        self.engine, self._parameters = engine, parameters
        self._known: dict[tuple[Quantity, int, int], Tensor] = {}
        self._made: list[tuple[Engine, list[Target]]] = []  # one, once it is made; shared by all that are fresh

    def of(self, parameters: str | None) -> Scoring:
        """Return one that counts the gradients of some parameters only, with nothing measured yet."""
        return (
            self if parameters == self._parameters else Scoring(self.objective, self.contexts, self.engine, parameters)
        )

    def fresh(self, contexts: int | None = None) -> Scoring:
        """Return the same, with nothing measured yet, perhaps for another number of contexts."""
        other = Scoring(self.objective, contexts or self.contexts, self.engine, self._parameters)
        other._made = self._made
        return other

    def at_targets(self, quantity: Quantity, sentences: Sentences) -> Tensor:
        """Measure every position as a target; see :class:`~gradvar.masking.scores.Task`."""
        self._check(quantity)
        rows = []
        for row, (key, count) in enumerate(zip(sentences.keys.tolist(), sentences.counts.tolist(), strict=True)):
            if (quantity, key, count) not in self._known:
                one = sentences.rows([row])
                one = Sentences(*(x[:, : int(one.attended.sum())] if x.ndim > 1 else x for x in one.parts))
                found: dict[Quantity, Tensor]
                found = {"gradient": self._gradients(one)} if quantity == "gradient" else self._forward(one)
                self._known |= {(name, key, count): values.cpu() for name, values in found.items()}
            rows.append(self._known[quantity, key, count].T)
        together = nn.utils.rnn.pad_sequence(rows, batch_first=True)  # [rows, positions, contexts]
        together = F.pad(together, (0, 0, 0, sentences.ids.shape[1] - together.shape[1]))
        return together.permute(2, 0, 1).to(sentences.ids.device)

    def at_masks(self, quantity: Quantity, sentences: Sentences, masks: Masks) -> Tensor:
        """Measure the targets of given masks, each as one of its mask's.

        Args:
            quantity: What to measure.
            sentences: ``[rows]`` of them.
            masks: ``[cells]`` of them, a multiple of ``rows``.

        Returns:
            ``[cells, targets]`` float64; anything where not valid.
        """
        batch = self.objective.corrupted(sentences, masks)
        if quantity == "gradient":
            return self._norms(_single_targets(batch)).view(masks.positions.shape)
        self._check(quantity)
        return self._measured(batch)[quantity]

    def _check(self, quantity: Quantity) -> None:
        model = self.objective.model
        if quantity == "last-layer" and _decoder(model) is None:
            raise GradvarError(f"{type(model).__name__} names no output embeddings; there is no last layer to score by")

    def norms_of_sets(self, sentences: Sentences) -> SetScores:
        """Return a function that measures gradient norms of whole cells; see :class:`~gradvar.masking.scores.Task`."""

        def norms(positions: Tensor, valid: Tensor, keys: Tensor) -> Tensor:
            counts = valid.sum(dim=1, keepdim=True)
            masks = Masks(positions, valid, valid.double() / counts, keys)
            batch = self.objective.corrupted(sentences, masks) | {"target_weights": masks.weights}
            return self._norms(batch)

        return norms

    def token_embeddings(self, ids: Tensor) -> Tensor:
        """Look tokens up in the model's own table; see :class:`~gradvar.masking.scores.Task`."""
        table: Any = self.objective.model
        return table.get_input_embeddings().weight.detach()[ids]

    def token_counts(self) -> Tensor:
        """Count the tokens of the corpus; see :class:`~gradvar.masking.scores.Task`."""
        return self.objective.token_counts

    def vocabulary(self) -> Mapping[str, int]:
        """Map tokens to ids."""
        return self.objective.vocabulary.ids

    def _covering(self, sentence: Sentences) -> tuple[Tensor, Tensor]:
        """``[contexts, masks, k]`` positions of one sentence and ``[contexts, masks]`` keys of their corruption."""
        total, count = int(sentence.totals), int(sentence.counts)
        number = torch.arange(self.contexts, device=sentence.ids.device)
        keys = hash_key(_CONTEXT, sentence.keys, number)
        order = position_order(keys, sentence.ids.shape[1]).masked_fill(
            ~sentence.maskable, torch.iinfo(torch.int64).max
        )
        ranked = order.argsort(dim=1)[:, :total]
        masks = -(-total // count)
        place = torch.arange(masks * count, device=keys.device) % total
        positions = ranked[:, place].view(self.contexts, masks, count).sort(dim=2).values
        return positions, hash_key(_CORRUPTION, keys.unsqueeze(1), torch.arange(masks, device=keys.device))

    def _cover(self, sentence: Sentences) -> tuple[dict[str, Tensor], Tensor]:
        """Batch of all masks of one sentence's contexts, and their positions ``[contexts, masks, k]``."""
        positions, keys = self._covering(sentence)
        flat = positions.flatten(0, 1)
        valid = torch.ones_like(flat, dtype=torch.bool)
        return self.objective.corrupted(sentence, Masks(flat, valid, valid.double(), keys.flatten())), positions

    def _forward(self, sentence: Sentences) -> dict[Quantity, Tensor]:
        """``[contexts, positions]`` root mean squares of all that takes no gradient."""
        batch, positions = self._cover(sentence)
        shape = sentence.ids.shape[1]
        return {name: _by_position(values, positions, shape) for name, values in self._measured(batch).items()}

    def _measured(self, batch: dict[str, Tensor]) -> dict[Quantity, Tensor]:
        """``[cells, targets]`` of all that takes no gradient; ``last-layer`` where the model names its decoder."""
        found: dict[Quantity, list[Tensor]] = {"loss": [], "logit": []}
        with torch.no_grad():
            for part in _chunks(batch, self._at_once):
                with _hidden_states(self.objective.model) as hidden:
                    logits = self.objective.logits(part)
                log_p = F.log_softmax(logits, dim=-1)  # as precise as the model: in float64 it takes twice as long
                target = part["target_ids"].unsqueeze(-1)
                loss = -log_p.gather(-1, target)
                error = log_p.exp_().scatter_add_(-1, target, torch.full_like(loss, -1.0)).norm(dim=-1)
                found["loss"].append(loss.squeeze(-1).double())
                found["logit"].append(error.double())
                for states in hidden[-1:]:
                    if states.shape[1] != logits.shape[1]:
                        rows = torch.arange(len(states), device=states.device).unsqueeze(1)
                        states = states[rows, part["target_positions"]]
                    found.setdefault("last-layer", []).append(error.double() * states.double().norm(dim=-1))
        return {name: torch.cat(values) for name, values in found.items()}

    def _gradients(self, sentence: Sentences) -> Tensor:
        """``[contexts, positions]`` root mean squares of the gradient norms of single targets."""
        batch, positions = self._cover(sentence)
        norms = self._norms(_single_targets(batch)).view(-1, positions.shape[-1])
        return _by_position(norms, positions, sentence.ids.shape[1])

    def _norms(self, batch: dict[str, Tensor]) -> Tensor:
        """``[cells]`` float64 gradient norms."""
        if not self._made:
            self._made.append(self._make_engine(batch))
        return torch.cat([self._norms_of(part) for part in _chunks(batch, self._at_once)])

    def _norms_of(self, batch: dict[str, Tensor]) -> Tensor:
        engine, targets = self._made[0]
        cells = len(batch["input_ids"])
        sums = {
            id(t.parameter): NormAccumulator(*t.shape, cells, t.parameter.dtype, t.parameter.device) for t in targets
        }
        try:
            engine.accumulate(self.objective.losses, batch, sums, 0)
        except EngineError:
            if self.engine != "auto" or engine.name == "reference":
                raise
            self._made[0] = (make_engine("reference", self.objective, targets), targets)
            return self._norms_of(batch)
        squares = torch.stack([accumulator.tables.cell_norm2[0] for accumulator in sums.values()]).sum(dim=0)
        if not bool(squares.isfinite().all()):
            raise NotFiniteError("a gradient is not finite while scores are measured; try --dtype float64")
        return squares.sqrt()

    def _make_engine(self, batch: dict[str, Tensor]) -> tuple[Engine, list[Target]]:
        model = self.objective.model
        targets = select(model, self._parameters)
        reached = autograd_gradients(self.objective.losses, {name: x[:1] for name, x in batch.items()}, model)
        unreached = frozenset(t.name for t in targets if id(t.parameter) not in reached)
        try:
            return make_engine(self.engine, self.objective, targets, unreached), targets
        except EngineError:
            if self.engine != "auto":
                raise
        return make_engine("reference", self.objective, targets), targets

    @property
    def _at_once(self) -> int:
        return _CELLS_CPU if self.objective.device.type == "cpu" else _CELLS_GPU


def _chunks(batch: dict[str, Tensor], size: int) -> Iterator[dict[str, Tensor]]:
    cells = len(batch["input_ids"])
    for start in range(0, cells, size):
        yield {name: tensor[start : start + size] for name, tensor in batch.items()}


def _single_targets(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Make a cell of every target of every cell."""
    count = batch["target_positions"].shape[1]
    cells = {name: tensor.repeat_interleave(count, dim=0) for name, tensor in batch.items()}
    for name in ("target_positions", "target_ids"):
        cells[name] = batch[name].reshape(-1, 1)
    return cells | {"target_weights": torch.ones_like(cells["target_ids"], dtype=torch.float64)}


def _by_position(values: Tensor, positions: Tensor, length: int) -> Tensor:
    """Root mean squares by position of values ``[contexts * masks, k]`` at ``[contexts, masks, k]`` positions."""
    at = positions.flatten(1)
    squares = values.double().square().view(at.shape)
    sums, counts = (
        squares.new_zeros(len(at), length).scatter_add(1, at, x) for x in (squares, torch.ones_like(squares))
    )
    return (sums / counts.clamp(min=1)).sqrt()


def _decoder(model: nn.Module) -> nn.Module | None:
    """The layer that makes logits of hidden states, if the model tells."""
    named: Any = getattr(model, "get_output_embeddings", lambda: None)
    decoder: nn.Module | None = named()
    return decoder


@contextmanager
def _hidden_states(model: nn.Module) -> Iterator[list[Tensor]]:
    # Yields the list that the decoder's inputs will be put into.
    seen: list[Tensor] = []
    if (decoder := _decoder(model)) is None:
        yield seen
        return
    handle = decoder.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    try:
        yield seen
    finally:
        handle.remove()
