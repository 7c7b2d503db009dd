"""Held-out sequences under the live encoder, as the other parts of gradvar study a masked LM."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from gradvar.huggingface.corpus import Corpus
from gradvar.huggingface.masked_lm import MaskedLM
from gradvar.measure import sampling_order
from gradvar.training.joint import JointModel, evaluating
from gradvar.training.sequences import Limits, Sequences

_SEED = 0  # of what is taken where not all is


class HeldOut:
    """Makes objectives of held-out sequences.

    Args:
        joint: The model in training; its modes are left as they are.
        tokenizer: Its tokenizer.
        limits: Of the model.
    """

    def __init__(self, joint: JointModel, tokenizer: Any, limits: Limits) -> None:
        self._joint, self._tokenizer, self._limits = joint, tokenizer, limits
        self._last: tuple[Any, Corpus] | None = None

    def studied(self, dataset: Any, count: int | None = None, **options: Any) -> MaskedLM:
        """Return sequences to be studied under uniform masks.

        Args:
            dataset: Sequences with ``input_ids``.
            count: How many of them, always the same; None for all.
            **options: As :class:`~gradvar.MaskedLM` takes them.

        Returns:
            The objective.
        """
        if self._last is None or self._last[0] is not dataset:
            sequences = Sequences(dataset, "eval_dataset", self._limits)
            rows = tuple(sequences[i] for i in range(len(sequences)))
            self._last = (dataset, Corpus(rows, "held-out text", "", max(map(len, rows)), 0.0))
        corpus = self._last[1]
        if count is not None and count < len(corpus):
            some = sorted(sampling_order(len(corpus), _SEED)[:count].tolist())
            corpus = replace(corpus, sequences=tuple(corpus.sequences[i] for i in some))
        with evaluating(self._joint):
            return MaskedLM(self._joint.encoder, self._tokenizer, corpus, **options)

    def trained(self, dataset: Any, contexts: int, count: int | None = None) -> MaskedLM:
        """Return the objective of the training, with other sequences and under uniform masks.

        Args:
            dataset: Sequences with ``input_ids``.
            contexts: Contexts of measured scores.
            count: How many of them, always the same; None for all.

        Returns:
            The objective, with mask rate, corruption and weighting of the training, and its scores.
        """
        joint = self._joint
        found = self.studied(
            dataset,
            count,
            mask_rate=joint.mask_rate,
            replacement=joint.masked.replacement,
            weighting=joint.masking.weighting,
            mapnet=joint.mapnet,
            contexts=contexts,
        )
        if joint.token_counts is not None:
            found.token_counts = joint.token_counts
        return found
