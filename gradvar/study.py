"""From an objective to a result: measure, estimate, advise."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from gradvar import ranks
from gradvar.decomposition import ceilings
from gradvar.decomposition.allocation import advise
from gradvar.decomposition.components import Components
from gradvar.decomposition.estimate import Estimate, unresolved
from gradvar.decomposition.moments import total
from gradvar.errors import GradvarError
from gradvar.masking.proposal import Proposal
from gradvar.measure import Goal, Measurement, measure
from gradvar.objective import Objective, is_masked_lm, unit_of
from gradvar.persample.parameters import compile_pattern
from gradvar.provenance import command, versions
from gradvar.report.result import Decomposition, DisjointDraw, Layer
from gradvar.runner import check_engine_name

if TYPE_CHECKING:
    from gradvar.huggingface.masked_lm import MaskedLM
    from gradvar.report.tokens import TokenScores

_OPTIONS = {"data": "sentences", "mask": "masks", "dropout": "dropout"}
"""What sets the draws of each of a masked LM's levels, here and on the command line."""


def decompose(
    objective: Objective,
    *,
    sentences: int = 64,
    masks: int | Sequence[int] = 8,
    headroom: bool = False,
    precision: float | None = None,
    max_sentences: int | None = None,
    seed: int = 0,
    engine: str = "auto",
    parameters: str | None = None,
    memory: int | None = None,
    cost_sentence: float | None = None,
    cost_mask: float | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Decomposition:
    """Split the variance of an objective's gradient into its levels of randomness.

    Args:
        objective: A masked LM (:class:`gradvar.MaskedLM`) or any :class:`~gradvar.Objective`.
        sentences: Draws of the outermost level (data).
        masks: Draws at each inner level, such as ``(8, 2)`` for 8 masks with 2 draws of dropout each; one number
            if there is one inner level. Under ``disjoint:K`` a draw is a group of K masks: give a multiple of K.
        headroom: Measure what position weights and disjoint masks could remove of a masked LM's mask variance, too. It
            takes the gradients of all positions, some thirty times the study.
        precision: Add groups of sentences until the half-width of every component's interval is at most this part
            of the variance of one cell, and that of every share at most this; ``sentences`` is then the first look.
        max_sentences: Most sentences of a study with ``precision``; None takes all there are.
        seed: Seed of every random choice.
        engine: ``onepass``, ``reference`` (slow, any model), or ``auto``: the first, and the second where the
            first cannot.
        parameters: Regular expression; only parameters whose name it finds are studied.
        memory: Bytes that the process may hold; by default most of what is free.
        cost_sentence: Cost of one more sentence beside its masks, for the advice; by default both are measured.
        cost_mask: Cost of one more mask (forward and backward), in the same unit.
        progress: Called with the cells done and the cells in all.

    Returns:
        The decomposition, with 95 % intervals.

    Raises:
        GradvarError: If something that was asked for cannot be done; the message says what to change.

    Examples:
        >>> import gradvar
        >>> objective = gradvar.MaskedLM.from_checkpoint(gradvar.DEMO_CHECKPOINT, gradvar.DEMO_TEXT, max_length=32)
        >>> result = gradvar.decompose(objective, sentences=8, masks=4)
        >>> print(result.shares["mask"])
        0.838 [0.79, 0.885]
        >>> print(result.variance(256, 2))  # of a batch of 256 sentences with 2 masks each
        0.881 [0.753, 1.13]
        >>> print(result.noise_scale["total"])
        not resolved (at least 196)
    """  # noqa: DOC502
    inner = (masks,) if isinstance(masks, int) else tuple(masks)
    if isinstance(getattr(objective, "proposal", None), Proposal):
        objective = objective.studying(parameters)  # type: ignore[attr-defined]  # a masked LM
    together = _masks_of_a_draw(objective)
    if headroom:
        _check_headroom(objective)
    if together > 1:
        inner = _grouped(objective, inner, together)
    counts = (sentences, *inner)
    _check_counts(objective, counts)
    check_request(engine, parameters, cost_sentence, cost_mask, precision, max_sentences, sentences)
    goal = None if precision is None else Goal(precision, max_sentences or max(len(objective), sentences))
    start = time.perf_counter()
    pairs = headroom or together > 1
    measured = measure(objective, counts, seed, engine, parameters, memory, progress, goal, pairs)
    norms = total(list(measured.moments.values())).cell_norm2
    draw, levels = None, tuple(objective.levels)
    if together > 1:
        cells = Components(total(list(measured.moments.values())), levels)
        of_one, covariance = (cells.linear(np.array(c, dtype=float)) for c in ((0, 1, 1), (0, 1, 0)))
        draw = DisjointDraw(together, of_one.clip(0, np.inf), covariance)
        measured = replace(measured, moments={name: m.grouped() for name, m in measured.moments.items()})
        levels = (levels[0], levels[2])
    whole = Components(total(list(measured.moments.values())), levels, measured.zero == measured.moments.keys())
    one = np.ones(len(levels))
    noise = {level: whole.noise_scale(np.eye(len(levels))[i]) for i, level in enumerate(levels)}
    data_cost = getattr(objective, "seconds_per_datum", 0.0)
    described: dict[str, dict[str, Any]] = getattr(objective, "describe", dict)()
    return Decomposition(
        levels=levels,
        proposal=str(getattr(objective, "proposal", "uniform/simple")),
        components={level: whole.component(i) for i, level in enumerate(levels)},
        shares={level: whole.share(i) for i, level in enumerate(levels)},
        gradient_norm2=whole.gradient_norm2(),
        noise_scale=noise | {"total": whole.noise_scale(one)},
        headroom=_headroom(objective, measured, whole, seed, headroom, draw is None),
        layers=_layers(objective, measured, levels),
        advice=advise(
            whole,
            data_cost if cost_sentence is None else cost_sentence,
            together * (measured.seconds_per_cell if cost_mask is None else cost_mask),
            together,
        ),
        study={
            **_study_counts(tuple(objective.levels), (len(measured.data), *counts[1:])),
            **({"precision": precision, "max_sentences": goal.most, "ended": measured.ended} if goal else {}),
            **described.get("study", {}),
            "engine": measured.engine,
            "dtype": str(measured.targets[0].parameter.dtype).removeprefix("torch."),
            "seed": seed,
        },
        provenance={
            "command": command(),
            "versions": versions(),
            **described.get("provenance", {}),
            "device": _device_name(measured),
            "processes": ranks.world(),
            "wall_seconds": time.perf_counter() - start,
            "cells_per_second": measured.cells_per_second,
        },
        notices=(*measured.notices, *_concentrated(whole, objective)),
        statistics=whole,
        data=measured.data,
        losses=measured.losses,
        cell_norm2=norms,
        draw=draw,
        tokens=_tokens(objective, measured, seed) if headroom else None,
    )


def check_request(
    engine: str,
    parameters: str | None,
    cost_sentence: float | None,
    cost_mask: float | None,
    precision: float | None,
    max_sentences: int | None,
    sentences: int,
) -> None:
    """Refuse what :func:`decompose` would refuse whatever the objective, before one is loaded.

    Args:
        engine: Name of the engine.
        parameters: Regular expression of parameter names.
        cost_sentence: Cost of a new sentence.
        cost_mask: Cost of another mask.
        precision: Half-width to reach.
        max_sentences: Most sentences.
        sentences: Sentences of the first look.

    Raises:
        GradvarError: If there is no such engine, the pattern is malformed, or the costs or bounds make no sense.
    """
    check_engine_name(engine)
    compile_pattern(parameters)
    for name, cost in (("--cost-sentence", cost_sentence), ("--cost-mask", cost_mask)):
        if cost is not None and not (np.isfinite(cost) and (cost > 0 or (cost == 0 and name == "--cost-sentence"))):
            raise GradvarError(f"{name} {cost} is not a positive number")
    if (cost_sentence is None) != (cost_mask is None):
        raise GradvarError("--cost-sentence and --cost-mask share a unit; give both, or neither to have them timed")
    if precision is not None and not 0 < precision < 1:
        raise GradvarError(f"--precision {precision} is not between 0 and 1; 0.05 asks for 5 % of a cell's variance")
    if max_sentences is not None and precision is None:
        raise GradvarError("--max-sentences bounds a study that grows; give --precision too, or --sentences alone")
    if max_sentences is not None and max_sentences < sentences:
        raise GradvarError(f"--max-sentences {max_sentences} is less than --sentences {sentences}, the first look")
    if precision is not None and sentences < 4:
        raise GradvarError(f"--sentences {sentences}: a study with --precision begins with at least 4 sentences")


def cell_table(objective: MaskedLM, result: Decomposition) -> dict[str, list[Any]]:
    """Return every cell of a study, for ``cells.parquet``: what was drawn, its loss and squared gradient norm.

    The draws are made again: they are a function of the seed.

    Args:
        objective: The masked LM that was studied.
        result: Its decomposition.

    Returns:
        Columns by name, a value a cell.
    """
    counts = result.statistics.counts[1:] + (() if result.draw is None else (result.draw.masks,))
    table = objective.cell_table(result.data.tolist(), counts, result.study["seed"])
    return table | {"loss": result.losses.ravel().tolist(), "grad_norm2": result.cell_norm2.ravel().tolist()}


def _masks_of_a_draw(objective: Objective) -> int:
    """How many masks are drawn together: K for disjoint ones, else one."""
    proposal = getattr(objective, "proposal", None)
    return 1 if proposal is None else int(proposal.design.cells)


def _grouped(objective: Objective, inner: tuple[int, ...], together: int) -> tuple[int, int]:
    """Cut a sentence's masks into groups of disjoint ones."""
    if len(inner) != 1:
        raise GradvarError("disjoint masks are not studied together with dropout; leave --dropout out")
    if inner[0] % together or inner[0] < 2 * together:
        raise GradvarError(
            f"--masks {inner[0]}: under disjoint:{together} a draw is {together} masks, and two draws a sentence are "
            f"the least; give a multiple of {together} from {2 * together} up"
        )
    return inner[0] // together, together


def _check_headroom(objective: Objective) -> None:
    if str(getattr(objective, "proposal", "")) != "uniform/simple" or len(objective.levels) != 2:
        raise GradvarError("--headroom is what uniform masks leave to others; leave --proposal and --dropout out")


def _headroom(
    objective: Objective, measured: Measurement, whole: Components, seed: int, asked: bool, independent: bool
) -> dict[str, Estimate]:
    """Estimate the ceilings: all three if asked, else what is free."""
    if not independent:
        reason = "it is a ceiling for uniform masks; leave --proposal out"
        return dict.fromkeys(("importance", "position", "stratification"), unresolved(reason))
    if not asked:
        free = {"importance": whole.importance_headroom()}
        return free | dict.fromkeys(("position", "stratification"), unresolved(ceilings.NOT_ASKED))
    from gradvar.ceilings import gradient_norms, headroom, masks_of

    lm: MaskedLM = objective  # type: ignore[assignment]  # as _check_headroom made sure
    sentences = lm.sentences(measured.data.tolist(), seed)
    masks = masks_of(lm, sentences, measured, whole.counts[1], seed)
    norms = gradient_norms(lm, sentences)
    return headroom(whole, sentences, masks, norms, lm.weights_of(measured.data.tolist()))


def _tokens(objective: Objective, measured: Measurement, seed: int) -> TokenScores:
    """Show the first sentences by scores that the ceilings have measured already."""
    from gradvar.shading import SHOWN, score_tokens

    lm: MaskedLM = objective  # type: ignore[assignment]  # as _check_headroom made sure
    return score_tokens(lm, measured.data[:SHOWN].tolist(), seed=seed)


def _check_counts(objective: Objective, counts: tuple[int, ...]) -> None:
    levels = tuple(objective.levels)
    names = [f"--{_OPTIONS[level]}" for level in levels] if is_masked_lm(levels) else list(levels)
    if len(counts) != len(objective.levels):
        raise GradvarError(
            f"{len(counts)} numbers of draws for the levels {', '.join(objective.levels)}; give one each"
        )
    for name, count in zip(names, counts, strict=True):
        if count < 2:
            raise GradvarError(f"{name} {count}: the variance of a level needs at least 2 draws of it")


def _study_counts(levels: tuple[str, ...], counts: tuple[int, ...]) -> dict[str, Any]:
    """Say how many draws each level had: by the options' names, or ``masks`` for all inner levels of a user's own."""
    if levels[1:] == ("group", "mask"):
        return {"sentences": counts[0], "masks": counts[1] * counts[2]}
    if is_masked_lm(levels):
        return {_OPTIONS[level]: count for level, count in zip(levels, counts, strict=True)}
    return {"sentences": counts[0], "masks": counts[1] if len(counts) == 2 else list(counts[1:])}


def _layers(objective: Objective, measured: Measurement, levels: tuple[str, ...]) -> tuple[Layer, ...]:
    """Add up the moments of each module's parameters."""
    members: dict[str, list[str]] = {}
    shared: dict[str, list[str]] = {}
    group = getattr(objective, "layer_group", lambda layer: "other")
    for target in measured.targets:
        owners = [name.rpartition(".")[0] for name in target.names]
        members.setdefault(owners[0], []).append(target.name)
        shared.setdefault(owners[0], []).extend(owners[1:])
    layers = []
    for name, parameters in members.items():
        parts = [measured.moments[parameter] for parameter in parameters]
        statistics = Components(total(parts), levels, measured.zero.issuperset(parameters))
        layers.append(
            Layer(
                name=name,
                group=group(name),
                parameters=statistics.moments.dimension,
                shared_with=tuple(dict.fromkeys(s for s in shared[name] if s != name)),
                components={level: statistics.component(i) for i, level in enumerate(levels)},
                shares={level: statistics.share(i) for i, level in enumerate(levels)},
                gradient_norm2=statistics.gradient_norm2(),
                statistics=statistics,
            )
        )
    return tuple(layers)


def _concentrated(whole: Components, objective: Objective) -> list[str]:
    """Warn of components that hang on few data, whose intervals are too narrow then."""
    warnings = []
    unit, data = unit_of(objective.levels), whole.counts[0]
    for level, name in enumerate(whole.levels):
        few, part = whole.concentration(level)
        if part > 0.5:
            warnings.append(
                f"{few} of {data} {unit}s carry {100 * part:.0f} % of the {name} variance; its interval may be too "
                f"narrow: take more {unit}s, or look at the largest"
            )
    return warnings


def _device_name(measured: Measurement) -> str:
    device = measured.targets[0].parameter.device
    if device.type == "cuda":
        import torch

        return torch.cuda.get_device_name(device)
    return f"cpu ({platform.machine()})"
