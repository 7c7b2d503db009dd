"""The contenders of `engine.py`: every way to the cells' gradients.

A contender is a step over the same cells. Those that form per-cell gradients work a sentence at a time, as
`gradvar` does on a CPU, and hand them to the same accumulators, in the middle of a study.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from study import Outcome, Study
from torch import Tensor, nn

from gradvar.decomposition.accumulator import MomentAccumulator
from gradvar.objective import Batch
from gradvar.persample.onepass import OnePass
from gradvar.persample.parameters import select
from gradvar.persample.reference import Reference
from gradvar.persample.rules import Call, rules_of

Step = Callable[[], Outcome]


def ordinary(study: Study, at_once: int | None = None) -> Step:
    """The ordinary forward and backward, all cells in one batch or `at_once` at a time."""
    cells = study.case.cells
    size = at_once or cells

    def step() -> Outcome:
        study.model.zero_grad(set_to_none=True)
        for start in range(0, cells, size):
            study.losses(study.part(start, start + size)).sum().backward()
        return Outcome(None, sum(t.parameter.nbytes for t in study.targets))

    return step


def loop(study: Study) -> Step:
    """A backward pass a cell; nothing is done with the gradients but their norms."""

    def step() -> Outcome:
        norm2 = torch.stack(list(study.exact_norm2(list(range(study.case.cells))).values())).sum(dim=0)
        return Outcome(norm2, 0, sum(t.parameter.nbytes for t in study.targets))

    return step


def engine(study: Study, make: type[OnePass] | type[Reference]) -> Step:
    """One of gradvar's engines, a sentence at a time."""
    built = make(study.model, study.targets)
    accumulators: dict[int, MomentAccumulator] = {}

    def step() -> Outcome:
        if not accumulators:
            accumulators.update(study.accumulators())
        for sentence, batch in study.sentences():
            built.accumulate(study.losses, batch, accumulators, study.case.sentences + sentence)
        scratch = getattr(built, "_scratch", None)
        return study.outcome(
            accumulators, built.bytes_per_datum(study.case.masks) if scratch is None else scratch.nbytes
        )

    return step


def per_cell(study: Study, gradients_of: Callable[[Batch], Callable[[nn.Parameter], Tensor | None]]) -> Step:
    """A contender that gives explicit per-cell gradients of a batch; reduced and dropped sentence by sentence."""
    accumulators: dict[int, MomentAccumulator] = {}

    def step() -> Outcome:
        if not accumulators:
            accumulators.update(study.accumulators())
        scratch = 0
        for sentence, batch in study.sentences():
            take = gradients_of(batch)
            held = 0
            for target in study.targets:
                found = take(target.parameter)
                if found is None:
                    raise RuntimeError(f"no per-cell gradient of '{target.name}'")
                held += found.nbytes
                accumulators[id(target.parameter)].add(
                    found.contiguous().view(1, study.case.masks, *target.shape), study.case.sentences + sentence
                )
            scratch = max(scratch, held)
        return study.outcome(accumulators, scratch)

    return step


def taking(attribute: str) -> Callable[[nn.Parameter], Tensor | None]:
    """Take what a library left at a parameter, and its own gradient away with it."""

    def take(parameter: nn.Parameter) -> Tensor | None:
        found = getattr(parameter, attribute, None)
        setattr(parameter, attribute, None)
        parameter.grad = None
        return found

    return take


@contextmanager
def cells_in_front(model: nn.Module) -> Iterator[None]:
    """Hand BERT its position and type ids a row a cell: both libraries take a broadcast row for a single cell."""

    def spread(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        ids = kwargs["input_ids"]
        positions = torch.arange(ids.shape[1]).repeat(len(ids), 1)
        return args, {"position_ids": positions, "token_type_ids": torch.zeros_like(ids), **kwargs}

    if not hasattr(model, "bert"):
        yield
        return
    handle = model.register_forward_pre_hook(spread, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def without_second_bias(model: nn.Module) -> nn.Module:
    """Remove BERT's second name of the decoder's bias: with it Opacus differentiates the whole head, and fails."""
    if hasattr(model, "bert"):
        del model.cls.predictions.bias
    return model


def opacus(study: Study) -> Step:
    """Opacus: explicit per-cell gradients left at the parameters."""
    from opacus import GradSampleModule

    # Its hooks run in training mode only.
    GradSampleModule(without_second_bias(study.model).train(), loss_reduction="sum")
    study.targets = select(study.model)

    def gradients_of(batch: Batch) -> Callable[[nn.Parameter], Tensor | None]:
        with cells_in_front(study.model):
            study.losses(batch).sum().backward()
        return taking("grad_sample")

    return per_cell(study, gradients_of)


def opacus_ghost(study: Study) -> Step:
    """Opacus with ghost norms: the cells' norms and nothing else."""
    from opacus.grad_sample import GradSampleModuleFastGradientClipping

    wrapped = GradSampleModuleFastGradientClipping(without_second_bias(study.model).train(), loss_reduction="sum")

    def step() -> Outcome:
        norms = []
        for _, batch in study.sentences():
            study.model.zero_grad(set_to_none=True)
            with cells_in_front(study.model):
                study.losses(batch).sum().backward()
            norms.append(wrapped.get_norm_sample())
        return Outcome(torch.cat(norms).double().square(), sum(t.parameter.nbytes for t in study.targets))

    return step


def backpack(study: Study, only: tuple[type[nn.Module], ...] = ()) -> Step:
    """BackPACK: explicit per-cell gradients of the whole model, or of the modules of some types."""
    from backpack import backpack as extensions_on
    from backpack import extend
    from backpack.extensions import BatchGrad

    for module in [m for m in study.model.modules() if isinstance(m, only)] if only else [study.model]:
        extend(module)
    if only:
        studied = {id(p) for m in study.model.modules() if isinstance(m, only) for p in m.parameters(recurse=False)}
        study.targets = [t for t in study.targets if id(t.parameter) in studied]

    def gradients_of(batch: Batch) -> Callable[[nn.Parameter], Tensor | None]:
        with cells_in_front(study.model), extensions_on(BatchGrad()):
            study.losses(batch).sum().backward()
        return taking("grad_batch")

    return per_cell(study, gradients_of)


def stitched(study: Study) -> Step:
    """Hooks as one stitches them: whole per-cell gradients of every layer, kept at the parameters until the end."""

    def remember(module: nn.Module, args: tuple, output: Tensor) -> None:
        x = args[0]

        def arrived(dy: Tensor) -> None:
            cells = len(dy)
            for name, rule in rules_of(module).items():
                parameter = getattr(module, name, None)
                if parameter is None:
                    continue
                shape = (parameter.shape[0], -1) if parameter.ndim > 1 else (1, parameter.numel())
                found = torch.empty(cells, *parameter.reshape(shape).shape)
                rule(Call(module, x.detach(), args, {}, [dy]))(slice(0, cells), slice(0, found.shape[1]), found, True)
                known = getattr(parameter, "cell_gradients", None)
                parameter.cell_gradients = found if known is None else known.add_(found)

        output.register_hook(arrived)

    for module in study.model.modules():
        if rules_of(module):
            module.register_forward_hook(remember)

    def gradients_of(batch: Batch) -> Callable[[nn.Parameter], Tensor | None]:
        with cells_in_front(study.model):
            study.losses(batch).sum().backward()
        return taking("cell_gradients")

    return per_cell(study, gradients_of)


CONTENDERS: dict[str, tuple[bool, Callable[[Study], Step]]] = {
    "ordinary": (True, ordinary),
    "ordinary-1": (True, lambda study: ordinary(study, study.case.masks)),
    "onepass": (True, lambda study: engine(study, OnePass)),
    "loop": (True, loop),
    "reference": (True, lambda study: engine(study, Reference)),
    "hooks": (True, stitched),
    "opacus": (True, opacus),
    "opacus-untied": (False, opacus),
    "opacus-ghost": (True, opacus_ghost),
    "opacus-ghost-untied": (False, opacus_ghost),
    "backpack": (True, backpack),
    "backpack-linear": (True, lambda study: backpack(study, (nn.Linear,))),
    "backpack-linear-untied": (False, lambda study: backpack(study, (nn.Linear,))),
}
"""Whether the decoder shares the embedding's weights, and how the contender's step is made."""
