"""The masked-LM objective: sentences at the outer level, masks with their corruption inside, dropout inside those."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from gradvar import checkpoints
from gradvar.dropout import keyed_dropout
from gradvar.errors import GradvarError
from gradvar.huggingface.checkpoint import load_checkpoint, locate
from gradvar.huggingface.corpus import Corpus, load_corpus
from gradvar.huggingface.forward import embedding_shape
from gradvar.huggingface.masked_model import MaskedModel
from gradvar.huggingface.scoring import Scoring
from gradvar.mapnet.files import CONFIG as MAPNET
from gradvar.mapnet.network import MapNet
from gradvar.mapnet.score import MapNetScore
from gradvar.masking.cells import Cells
from gradvar.masking.corruption import Replacement
from gradvar.masking.epochs import EpochStratified
from gradvar.masking.masks import Sentences
from gradvar.masking.proposal import Proposal, parse_proposal
from gradvar.masking.scores import Permuted, Score
from gradvar.masking.sets import check_fits
from gradvar.masking.uniform import target_count
from gradvar.objective import Batch

Weighting = Literal["sentence", "token"]
UNIFORM = Proposal()
_LENGTH = 128  # tokens of a sentence, where nothing is known of how a checkpoint was trained


class MaskedLM(MaskedModel):
    """Masked language modelling with masks of fixed size, uniform ones or those of a proposal.

    A cell is sentence ``x`` (``T`` maskable positions) with a set ``S`` of ``k = max(1, floor(mask_rate T + 1/2))``
    targets and its corruption. Its loss is ``w(x) sum_{i in S} a_i(S) (-log p(x_i | corrupted x))`` with ``w = 1``
    (``sentence``) or ``w = k(x) / mean k`` over the corpus (``token``), and the proposal's weights ``a_i``: ``1/k`` for
    uniform k-subsets. Special tokens are never targets and never random replacements. Under ``disjoint:K`` the levels
    are data, group and mask: a group is one draw of K masks. Dropout is off, or (``dropout``) a further level: each
    mask is then seen through several draws of the model's dropout, at the rates that the model has.

    Args:
        model: Hugging Face masked LM; it is put in evaluation mode.
        tokenizer: Its tokenizer, with a mask token.
        corpus: The population of sentences.
        mask_rate: Share of the maskable positions that become targets, in (0, 1); a proposal may have its own.
        replacement: Probabilities of the corruptions.
        weighting: ``sentence`` gives every cell weight one; ``token`` weighs it by its targets.
        dropout: Make the model's dropout the innermost level.
        proposal: How masks are chosen: a :class:`~gradvar.Proposal`, or its text such as ``logit/pps~0.1``.
        contexts: How often every position is a target when scores are measured.
        mapnet: A fitted network, or the folder of one, for the scores ``mapnet`` and ``mapnet-permuted``.
        engine: What measures the scores' gradients: ``onepass``, ``reference`` or ``auto``.

    Raises:
        GradvarError: If a value is out of range, a sentence has no maskable position, disjoint masks do not fit, or
            ``dropout`` is asked for and the model has none, or one that all cells of a batch share.
    """

    checkpoint: str | None = None
    checkpoint_sha256: str | None = None

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        corpus: Corpus,
        *,
        mask_rate: float = 0.15,
        replacement: Replacement = Replacement(),
        weighting: Weighting = "sentence",
        dropout: bool = False,
        proposal: Proposal | str = UNIFORM,
        contexts: int = 2,
        mapnet: MapNet | str | Path | None = None,
        engine: str = "auto",
    ) -> None:
        if not 0 < mask_rate < 1:
            raise GradvarError(f"--mask-rate {mask_rate} is not between 0 and 1")
        if weighting not in ("sentence", "token"):
            raise GradvarError(f"--weighting '{weighting}' is unknown; use sentence or token")
        if contexts < 1:
            raise GradvarError(f"--contexts {contexts}: a score is measured in 1 context at least")
        sample = torch.from_numpy(corpus.sequences[0].astype(np.int64)).unsqueeze(0)
        super().__init__(model.eval(), tokenizer, sample, replacement)
        self.corpus = corpus
        self.weighting: Weighting = weighting
        self._maskable = np.array([self.vocabulary.maskable_in(sequence) for sequence in corpus.sequences])
        if (self._maskable == 0).any():
            raise GradvarError(
                f"sentence {int(np.argmax(self._maskable == 0))} of {corpus.source} holds only special tokens; "
                "nothing in it can be masked"
            )
        if dropout:
            _check_dropout(model, sample.to(self.device))
        self._dropout = dropout
        self._own_rate = mask_rate
        self.scoring = Scoring(self, contexts, engine)
        self.known_scores: dict[str, Score] = {} if mapnet is None else self._fitted(mapnet)
        self._propose(self.read(proposal))

    def _fitted(self, mapnet: MapNet | str | Path) -> dict[str, Score]:
        """Scores by a fitted network."""
        network = mapnet if isinstance(mapnet, MapNet) else MapNet.from_pretrained(_folder_of(mapnet))
        network.check_fits(*embedding_shape(self.model))
        score = MapNetScore(network.to(self.device).eval())
        return {"mapnet": score, "mapnet-permuted": Permuted(score)}

    def read(self, proposal: Proposal | str) -> Proposal:
        """Read a proposal, if it is not one yet, with the scores that this objective knows."""
        return parse_proposal(proposal, self.known_scores) if isinstance(proposal, str) else proposal

    def _propose(self, proposal: Proposal) -> None:
        """Take a proposal, and what follows from it."""
        if isinstance(proposal.design, EpochStratified):
            raise GradvarError(
                f"{proposal} is about the epochs of a training run; each of its masks is a uniform one: study "
                "uniform/simple"
            )
        self.proposal = proposal
        self.mask_rate = self._own_rate if proposal.mask_rate is None else proposal.mask_rate
        together = ("group", "mask") if proposal.design.cells > 1 else ("mask",)
        self.levels: tuple[str, ...] = ("data", *together, *(("dropout",) if self._dropout else ()))
        totals = torch.from_numpy(self._maskable)
        self._counts = target_count(totals, self.mask_rate)
        if proposal.design.cells > 1:
            check_fits(proposal.design.cells, totals, self._counts)
        mean = self._counts.double().mean()
        token = self.weighting == "token"
        self._weights = self._counts / mean if token else torch.ones(len(self.corpus), dtype=torch.float64)
        self._scores: dict[int, np.ndarray] = {}  # of the proposal, by a sentence's key

    def under(self, proposal: Proposal | str) -> MaskedLM:
        """Return the same objective with masks of another proposal; both share the model, the text and what was scored.

        Args:
            proposal: A proposal or its text.

        Returns:
            The other objective.
        """
        other = copy(self)
        other._propose(self.read(proposal))
        return other

    @classmethod
    def from_checkpoint(
        cls,
        checkpoint: str | Path,
        data: str | Path,
        *,
        max_length: int | None = None,
        pack: bool = True,
        dtype: str = "float32",
        device: str = "cpu",
        allow_random_head: bool = False,
        **options: Any,
    ) -> MaskedLM:
        """Load a checkpoint and a text.

        Args:
            checkpoint: A folder as ``save_pretrained`` writes it, or a hub name.
            data: A ``.txt``, ``.jsonl`` or ``.parquet`` file, plain or as ``.xz`` or ``.gz``, or a hub data set.
            max_length: Tokens of a sentence, special tokens included; None takes what the run was trained with, whose
                checkpoint it is, or 128.
            pack: Join the paragraphs of a document and cut them to that length; otherwise a line a sentence.
            dtype: ``float32`` or ``float64``, whatever the checkpoint holds.
            device: ``cpu``, ``cuda`` or ``cuda:N``.
            allow_random_head: Accept a checkpoint without a masked-LM head.
            **options: ``mask_rate``, ``replacement``, ``weighting``, ``dropout``, ``proposal``, ``contexts``,
                ``mapnet`` and ``engine``.

        Returns:
            The objective.

        Raises:
            GradvarError: If the checkpoint or the data cannot be used.

        Examples:
            >>> import gradvar
            >>> objective = gradvar.MaskedLM.from_checkpoint(gradvar.DEMO_CHECKPOINT, gradvar.DEMO_TEXT, max_length=32)
            >>> objective.levels, len(objective)
            (('data', 'mask'), 1476)
            >>> batch = objective.draw([0, 1], (3,), seed=0)  # two sentences, three masks each
            >>> objective.losses(batch).shape
            torch.Size([6])
        """  # noqa: DOC502
        return cls.load(
            checkpoint,
            lambda tokenizer, length: load_corpus(data, tokenizer, length, pack),
            max_length=max_length,
            dtype=dtype,
            device=device,
            allow_random_head=allow_random_head,
            **options,
        )

    @classmethod
    def load(
        cls,
        checkpoint: str | Path,
        read: Callable[[Any, int], Corpus],
        *,
        max_length: int | None = None,
        dtype: str = "float32",
        device: str = "cpu",
        allow_random_head: bool = False,
        **options: Any,
    ) -> MaskedLM:
        """Load a checkpoint with a population of one's own.

        Args:
            checkpoint: As :meth:`from_checkpoint` takes it.
            read: Makes the corpus, given the tokenizer and the tokens of its longest sentence.
            max_length: As :meth:`from_checkpoint` takes it.
            dtype: As :meth:`from_checkpoint` takes it.
            device: As :meth:`from_checkpoint` takes it.
            allow_random_head: As :meth:`from_checkpoint` takes it.
            **options: As :meth:`from_checkpoint` takes them.

        Returns:
            The objective.

        Raises:
            GradvarError: If the checkpoint or the data cannot be used.
        """
        loaded = load_checkpoint(checkpoint, dtype=dtype, device=device, allow_random_head=allow_random_head)
        known = checkpoints.trained_length(loaded.folder) or _LENGTH
        length = known if max_length is None else max_length
        if length > loaded.max_length:
            raise GradvarError(f"--max-length {length} is beyond the {loaded.max_length} positions of {checkpoint}")
        if options.get("mapnet") is None and (loaded.folder / MAPNET).is_file():
            options["mapnet"] = loaded.folder  # the one that was trained with it
        objective = cls(loaded.model, loaded.tokenizer, read(loaded.tokenizer, length), **options)
        objective.checkpoint, objective.checkpoint_sha256 = str(checkpoint), loaded.sha256
        return objective

    def __len__(self) -> int:
        """Count the sentences of the corpus."""
        return len(self.corpus)

    def studying(self, parameters: str | None) -> MaskedLM:
        """Return the same objective with scores by the gradients of some parameters only.

        Args:
            parameters: Regular expression of their names; None takes all.

        Returns:
            The other objective.
        """
        other = copy(self)
        other.scoring = self.scoring.of(parameters)
        other._scores = self._scores if other.scoring is self.scoring else {}
        return other

    @cached_property
    def token_counts(self) -> Tensor:  # type: ignore[override]  # it takes a pass over the corpus
        """``[vocabulary]`` float64: how often the corpus has each ordinary token."""
        return self.vocabulary.counts_in(self.corpus.sequences)

    def sentences(self, data: Sequence[int], seed: int) -> Sentences:
        """Return sentences as a proposal sees them, on the model's device.

        Args:
            data: ``[rows]`` indices into the corpus.
            seed: Of everything random about their scores.

        Returns:
            The sentences.
        """
        cells = Cells(data, (), seed)
        sequences = [self.corpus.sequences[i] for i in data]
        found = self.vocabulary.sentences(sequences, self._counts[cells.datum], cells.keys[:, 0])
        return Sentences(*(part.to(self.device) for part in found.parts))

    def scores(self, sentences: Sentences) -> Tensor:
        """Score sentences by the proposal: ``[rows, positions]`` float64, each measured once."""
        keys = sentences.keys.tolist()
        new = [row for row, key in enumerate(keys) if key not in self._scores]
        if new:
            some = sentences.rows(new)
            found = self.proposal.scores(some, self.scoring)
            for row, values, attended in zip(new, found, some.attended, strict=True):
                self._scores[keys[row]] = values[: int(attended.sum())].cpu().numpy()
        rows = [torch.from_numpy(self._scores[key]) for key in keys]
        return nn.utils.rnn.pad_sequence(rows, batch_first=True).to(self.device)

    def draw(self, data: Sequence[int], draws: tuple[int, ...], seed: int) -> Batch:
        """Draw the masks and corruptions of some sentences, and the keys of their dropout.

        Every choice is a hash of (seed, sentence, mask index, position), so it depends on nothing else:
        not on the chunk, the order, the padding or the device. A dropout's mask hashes (seed, sentence, mask index,
        dropout index, its number in the model's forward, element); see :func:`gradvar.keyed_dropout`.

        Args:
            data: ``[sentences]`` indices into the corpus.
            draws: Draws at each inner level: ``(masks,)`` of each sentence; ``(groups, K)`` under ``disjoint:K``; the
                dropouts of each mask behind these.
            seed: Seed of every choice.

        Returns:
            With ``cells = sentences * prod(draws)`` rows, a sentence's masks and a mask's dropouts
            together: ``input_ids`` ``[cells, positions]`` corrupted, ``attention_mask`` of that shape where
            something is padded, ``target_positions``, ``target_ids`` and ``target_weights`` ``[cells, targets]``,
            whose surplus slots (fewer targets than the longest sentence) have weight zero; ``dropout`` ``[cells]``
            keys, where it is a level.
        """
        together = self.proposal.design.cells
        if together > 1 and draws[1] != together:
            raise ValueError(f"a group of {self.proposal} has {together} masks, not {draws[1]}")
        sentences = self.sentences(data, seed)
        keys = Cells(data, draws[:1], seed).keys[:, 1].view(len(data), -1).to(self.device)
        masks = self.proposal.draw(sentences, self.scores(sentences), keys, self.scoring)
        batch = self.corrupted(sentences, masks)
        times = len(masks.keys) // len(data)
        weights = self._weights[torch.as_tensor(list(data))].to(self.device).repeat_interleave(times)
        batch["target_weights"] = masks.weights * weights.unsqueeze(1)
        if self._dropout:
            batch = {name: tensor.repeat_interleave(draws[-1], dim=0) for name, tensor in batch.items()}
            batch["dropout"] = Cells(data, draws, seed).keys[:, -1].to(self.device)
        return batch

    @property
    def room(self) -> int:
        """How many disjoint masks fit into every sentence."""
        return int((torch.from_numpy(self._maskable) // self._counts).min())

    @property
    def mean_length(self) -> float:
        """Mean number of maskable positions."""
        return float(self._maskable.mean())

    def weights_of(self, data: Sequence[int]) -> np.ndarray:
        """Return what the losses of some sentences are multiplied with: ``[rows]``."""
        return self._weights[torch.as_tensor(list(data))].numpy()

    @property
    def seconds_per_datum(self) -> float:
        """Measured time to read and tokenise a sentence."""
        return self.corpus.seconds_per_sentence

    def describe(self) -> dict[str, dict[str, Any]]:
        """Return what a report says of this objective: its part of ``study`` and of ``provenance``."""
        r = self.replacement
        return {
            "study": {
                "mask_rate": self.mask_rate,
                "max_length": self.corpus.max_length,
                "replacement": [r.mask, r.random, r.keep],
                "weighting": self.weighting,
                "population": len(self.corpus),
                **({"contexts": self.scoring.contexts} if self.proposal.score != UNIFORM.score else {}),
            },
            "provenance": {
                "checkpoint": self.checkpoint,
                "checkpoint_sha256": self.checkpoint_sha256,
                "data": self.corpus.source,
                "data_sha256": self.corpus.sha256,
            },
        }

    def cell_table(self, data: Sequence[int], draws: tuple[int, ...], seed: int) -> dict[str, list[Any]]:
        """Return what each cell was, for `cells.parquet`: columns by name, a value a cell."""
        names = ("sentence", *self.levels[1:], "input_ids", "corrupted_ids", "target_positions", "target_ids", "weight")
        names = (*names, "target_weights")
        table: dict[str, list[Any]] = {name: [] for name in names}
        for sentence in data:
            original = self.corpus.sequences[sentence].tolist()
            batch = {name: tensor.cpu() for name, tensor in self.draw([sentence], draws, seed).items()}
            for cell, indices in enumerate(np.ndindex(*draws)):
                table["sentence"].append(int(sentence))
                for level, index in zip(self.levels[1:], indices, strict=True):
                    table[level].append(index)
                table["input_ids"].append(original)
                table["corrupted_ids"].append(batch["input_ids"][cell].tolist())
                table["target_positions"].append(batch["target_positions"][cell].tolist())
                table["target_ids"].append(batch["target_ids"][cell].tolist())
                table["weight"].append(float(self._weights[sentence]))
                table["target_weights"].append(batch["target_weights"][cell].tolist())
        return table


def _folder_of(mapnet: str | Path) -> str | Path:
    """Return the folder of a MAPNet; that of a run stands for its last whole checkpoint."""
    return locate(mapnet) if Path(mapnet).is_dir() else mapnet


def _check_dropout(model: nn.Module, sample: Tensor) -> None:
    """Refuse a model whose dropout is no level of randomness: there is none, or cells share it."""
    pair = sample.expand(2, -1)
    with torch.no_grad(), keyed_dropout(model, torch.arange(2)) as dropout:
        model(input_ids=pair)
    if not dropout.calls:
        raise GradvarError(
            f"{type(model).__name__} has no dropout: every rate in its configuration is 0; leave --dropout out, or "
            "set its rates"
        )
