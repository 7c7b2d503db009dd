"""Scores single tokens by what they do to the gradient: the oracle beside a fitted network, the loss and the logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gradvar.errors import GradvarError
from gradvar.huggingface.texts import readable, with_texts
from gradvar.masking.masks import Sentences
from gradvar.masking.scores import SCORES, Score
from gradvar.measure import sampling_order
from gradvar.provenance import command, versions
from gradvar.report.tokens import ScoredSentence, TokenScores

if TYPE_CHECKING:
    from gradvar.huggingface.masked_lm import MaskedLM

_MEASURED = ("oracle", "loss", "logit")
_FITTED = "mapnet"
SHOWN = 3
"""Sentences that the report of another study shows, where it has measured the oracle anyway."""


def score_tokens(
    objective: MaskedLM,
    chosen: int | str | Sequence[int] | Sequence[str] = 4,
    *,
    seed: int = 0,
    tokenizer: Any = None,
    notices: Sequence[str] = (),
    progress: Callable[[int, int], None] | None = None,
) -> TokenScores:
    """Score every token of some sentences, each as a target of random masks.

    The scores are root mean squares over the objective's contexts (``MaskedLM(..., contexts=4)``): ``oracle``, the norm
    of the gradient of the token's own loss, in gradient units; ``loss``, in nats; ``logit``, ``|p - y|``; and
    ``mapnet`` where the objective has a fitted network. What the objective has measured before, it does not again.

    Args:
        objective: The masked LM.
        chosen: How many sentences to sample from its data, or their indices, or texts of one's own.
        seed: Seed of the sample and of the contexts.
        tokenizer: For texts; None loads the one of the objective's checkpoint.
        notices: What a reader should know of the texts, one line each.
        progress: Called with the cells done and the cells in all.

    Returns:
        The scores.

    Raises:
        GradvarError: If there are no such sentences, a text cannot be masked, or a score is not finite.

    Examples:
        >>> import gradvar
        >>> objective = gradvar.MaskedLM.from_checkpoint(gradvar.DEMO_CHECKPOINT, gradvar.DEMO_TEXT, max_length=32)
        >>> result = gradvar.score_tokens(objective, "She went into the garden.")
        >>> result.names
        ('oracle', 'mapnet', 'loss', 'logit')
        >>> sentence = result.sentences[0]
        >>> [sentence.tokens[position] for position in sentence.highest("loss", 2)]
        ['garden', 'went']
    """  # noqa: DOC502
    texts = [chosen] if isinstance(chosen, str) else chosen
    if not isinstance(texts, int) and any(isinstance(text, str) for text in texts):
        objective, found = with_texts(objective, [str(text) for text in texts], tokenizer)
        notices, chosen = (*notices, *found), range(len(objective))
    data = _sampled(objective, chosen, seed)  # type: ignore[arg-type]  # texts have become indices
    sentences = objective.sentences(data, seed)
    kinds: dict[str, Score] = {name: SCORES[name] for name in _MEASURED}
    if _FITTED in objective.known_scores:
        kinds[_FITTED] = objective.known_scores[_FITTED]
    totals = sentences.totals.tolist()
    names, write = _tokens(objective), readable(objective.vocabulary.ids)
    scored = []
    for row, datum in enumerate(data):
        scored.append(_scored(objective, datum, sentences.rows([row]), kinds, names, write))
        if progress:
            contexts = objective.scoring.contexts
            progress(contexts * sum(totals[: row + 1]), contexts * sum(totals))
    described = objective.describe()
    study = {name: x for name, x in described["study"].items() if name not in ("weighting", "population")}
    return TokenScores(
        sentences=tuple(scored),
        study={"sentences": len(data), **study, "contexts": objective.scoring.contexts, "seed": seed},
        provenance={"command": command(), "versions": versions(), **described["provenance"]},
        notices=tuple(notices),
    )


def _sampled(objective: MaskedLM, chosen: int | Sequence[int], seed: int) -> list[int]:
    """Choose the sentences, the first ones of the same order as a study's."""
    most = len(objective)
    if isinstance(chosen, int):
        if chosen < 1:
            raise GradvarError(f"--sentences {chosen}: at least 1 is needed")
        if chosen > most:
            raise GradvarError(
                f"asked for {chosen} sentences, but the data hold {most}; lower --sentences or give more text"
            )
        return sampling_order(most, seed)[:chosen].tolist()
    data = [int(datum) for datum in chosen]
    if not data:
        raise GradvarError("no sentence was chosen; give one at least")
    if wrong := [datum for datum in data if not 0 <= datum < most]:
        raise GradvarError(f"there is no sentence {wrong[0]}; the data hold 0 to {most - 1}")
    return data


def _scored(
    objective: MaskedLM,
    datum: int,
    sentence: Sentences,
    kinds: dict[str, Score],
    names: dict[int, str],
    write: Callable[[str], str],
) -> ScoredSentence:
    """Score the one sentence that there is."""
    length = int(sentence.attended.sum())
    maskable = sentence.maskable[0, :length].cpu().numpy()
    scores = {}
    for name, score in kinds.items():
        values = score(sentence, objective.scoring)[0, :length].double().cpu().numpy()
        values = np.where(maskable, values, 0.0)
        if not np.isfinite(values).all():
            raise GradvarError(f"the score '{name}' of sentence {datum} is not finite; try --dtype float64")
        scores[name] = values
    tokens = [names[i] for i in sentence.ids[0, :length].tolist()]
    return ScoredSentence(datum, tuple(tokens), tuple(write(token) for token in tokens), maskable, scores)


def _tokens(objective: MaskedLM) -> dict[int, str]:
    return {i: token for token, i in objective.vocabulary.ids.items()}
