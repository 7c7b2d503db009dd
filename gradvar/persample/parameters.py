"""Which parameters are studied, under which names, and how they look as matrices."""

import re
from collections import defaultdict
from dataclasses import dataclass

from torch import nn

from gradvar.errors import GradvarError


@dataclass(frozen=True, eq=False)
class Target:
    """A parameter under study; tied parameters are one target with several names.

    Attributes:
        names: Every name in the model, the first one first.
        parameter: The tensor.
    """

    names: tuple[str, ...]
    parameter: nn.Parameter

    @property
    def name(self) -> str:
        """The first name."""
        return self.names[0]

    @property
    def shape(self) -> tuple[int, int]:
        """``(rows, columns)``: the first dimension against the others; a vector is one row."""
        p = self.parameter
        return (p.shape[0], p.numel() // p.shape[0]) if p.ndim > 1 else (1, p.numel())


def compile_pattern(pattern: str | None) -> re.Pattern[str]:
    """Compile the pattern of :func:`select`, or say in one line what is wrong with it."""
    try:
        return re.compile(pattern or "")
    except re.error as error:
        raise GradvarError(f"--parameters '{pattern}' is not a regular expression: {error}") from error


def select(model: nn.Module, pattern: str | None = None) -> list[Target]:
    """List the trainable parameters whose name matches, each once; those without an element are left out.

    Args:
        model: The model.
        pattern: Regular expression searched in the names; None takes all.

    Returns:
        The targets in the model's order.

    Raises:
        GradvarError: If the pattern is malformed or matches nothing, or a parameter has too few digits.
    """
    wanted = compile_pattern(pattern)
    names = defaultdict(list)
    found = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if parameter.requires_grad and parameter.numel():
            names[id(parameter)].append(name)
            found[id(parameter)] = parameter
    targets = [Target(tuple(names[key]), parameter) for key, parameter in found.items()]
    targets = [t for t in targets if any(wanted.search(name) for name in t.names)]
    if not targets:
        example = next(iter(names.values()), ["none"])[0]
        raise GradvarError(f"--parameters '{pattern}' matches no trainable parameter; names look like '{example}'")
    for target in targets:
        if target.parameter.dtype.itemsize < 4:
            kind = str(target.parameter.dtype).removeprefix("torch.")
            raise GradvarError(f"parameter '{target.name}' is {kind}, too coarse for a variance; use model.float()")
    return targets
