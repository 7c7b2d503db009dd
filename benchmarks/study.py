"""What the contenders of `engine.py` compute: random models of known sizes, cells, and the statistics of a step."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from gradvar.decomposition.accumulator import MomentAccumulator
from gradvar.huggingface.corpus import Corpus
from gradvar.huggingface.masked_lm import MaskedLM
from gradvar.objective import Batch
from gradvar.persample.parameters import Target, select

# Layers, width, heads.
BERT = {"tiny": (2, 128, 2), "mini": (4, 256, 4), "small": (4, 512, 8), "base": (12, 768, 12)}
MODERNBERT = {"modernbert-small": (6, 384, 6)}


@dataclass(frozen=True)
class Case:
    """What all contenders of a race compute: `sentences` times `masks` cells of `length` tokens."""

    model: str
    sentences: int
    masks: int
    length: int

    @property
    def cells(self) -> int:
        """Cells of a step."""
        return self.sentences * self.masks


@dataclass(frozen=True)
class Outcome:
    """What a step gave and held.

    Attributes:
        norm2: ``[cells]`` squared gradient norms, None where the contender has none.
        means: Bytes of the size of the parameters that outlive the step: gradients, or sums of them.
        scratch: Bytes of per-cell gradients held at once.
    """

    norm2: Tensor | None
    means: int
    scratch: int = 0


class Tokenizer:
    """As much of a tokenizer as an objective asks for."""

    def __init__(self, words: int, mask: int, special: list[int], pad: int) -> None:
        self._words, self.mask_token_id, self.all_special_ids, self.pad_token_id = words, mask, special, pad

    def __len__(self) -> int:
        return self._words

    def get_vocab(self) -> dict[str, int]:
        """Name the tokens by their ids."""
        return {f"w{word}": word for word in range(self._words)}


def build_model(name: str, length: int, tied: bool) -> tuple[nn.Module, Tokenizer]:
    """Build a random model without dropout, and its tokenizer's outline."""
    from transformers import BertConfig, BertForMaskedLM, ModernBertConfig, ModernBertForMaskedLM

    torch.manual_seed(0)
    if name in MODERNBERT:
        layers, width, heads = MODERNBERT[name]
        config = ModernBertConfig(  # its defaults: vocabulary of 50,368, full attention in every third layer
            num_hidden_layers=layers, hidden_size=width, num_attention_heads=heads, intermediate_size=3 * width // 2
        )
        config.tie_word_embeddings = tied
        special = [50280, 50281, 50282, 50283, 50284]
        return ModernBertForMaskedLM(config), Tokenizer(config.vocab_size, 50284, special, 50283)
    layers, width, heads = BERT[name]
    config = BertConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        max_position_embeddings=max(512, length),
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    config.tie_word_embeddings = tied
    return BertForMaskedLM(config), Tokenizer(config.vocab_size, 103, [0, 100, 101, 102, 103], 0)


class Study:
    """The cells of a case, and the statistics that every contender must come to."""

    def __init__(self, case: Case, tied: bool = True) -> None:
        self.case = case
        self.model, tokenizer = build_model(case.model, case.length, tied)
        rng = np.random.default_rng(0)
        tokens = rng.integers(1000, 30_000, (case.sentences, case.length), dtype=np.int32)
        corpus = Corpus(tuple(tokens), "random", "", case.length, 0.0)
        self.objective = MaskedLM(self.model, tokenizer, corpus)
        batch = self.objective.draw(range(case.sentences), (case.masks,), seed=0)
        self.batch = {name: tensor.contiguous() for name, tensor in batch.items()}  # Opacus wants views of it
        self.targets: list[Target] = select(self.model)

    def part(self, start: int, stop: int) -> Batch:
        """Take some of the cells."""
        return {name: tensor[start:stop] for name, tensor in self.batch.items()}

    def sentences(self) -> Iterator[tuple[int, Batch]]:
        """Take a sentence's cells at a time."""
        masks = self.case.masks
        return ((s, self.part(s * masks, (s + 1) * masks)) for s in range(self.case.sentences))

    def losses(self, batch: Batch) -> Tensor:
        """Run the model."""
        return self.objective.losses(batch)

    def accumulators(self) -> dict[int, MomentAccumulator]:
        """Start a study of twice the sentences; the step is its second half."""
        counts = (2 * self.case.sentences, self.case.masks)
        return {
            id(t.parameter): MomentAccumulator(*t.shape, counts, t.parameter.dtype, seed=seed)
            for seed, t in enumerate(self.targets)
        }

    def outcome(self, accumulators: dict[int, MomentAccumulator], scratch: int) -> Outcome:
        """Take what a step must come to from the second half, and make room for the next step."""
        tables = [accumulator.tables for accumulator in accumulators.values()]
        norm2 = torch.stack([t.cell_norm2[self.case.sentences :].flatten() for t in tables]).sum(dim=0)
        for t in tables:
            t.cell_norm2.zero_()
        return Outcome(norm2, sum(x.nbytes for t in tables for x in vars(t).values()), scratch)

    def start_and_end(self) -> float:
        """Time what a study takes beside its sentences: its sums, touched for the first time, and its end."""
        start = time.perf_counter()
        accumulators = self.accumulators().values()
        for accumulator in accumulators:
            accumulator.tables.sums.add_(0)
            accumulator.finish()
        return time.perf_counter() - start

    def exact_norm2(self, cells: list[int]) -> dict[int, Tensor]:
        """Squared gradient norms ``[cells]`` by plain autograd, by ``id(parameter)``."""
        found: dict[int, list[Tensor]] = {id(t.parameter): [] for t in self.targets}
        for cell in cells:
            gradients = torch.autograd.grad(
                self.losses(self.part(cell, cell + 1)).sum(), [t.parameter for t in self.targets], allow_unused=True
            )
            for norm2, gradient in zip(found.values(), gradients, strict=True):
                norm2.append(
                    torch.zeros(())
                    if gradient is None
                    else torch.linalg.vector_norm(gradient, dim=-1).double().square().sum()
                )
        return {key: torch.stack(norms).double() for key, norms in found.items()}
