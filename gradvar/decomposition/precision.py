"""When a study is precise enough to stop: the half-widths of its intervals."""

from __future__ import annotations

from math import inf

from gradvar.decomposition.components import Components


def half_widths(components: Components) -> dict[str, float]:
    """Measure how precise a study is.

    Args:
        components: Of the whole gradient.

    Returns:
        Half the width of every component's 95 % interval over the variance of one cell (``V_data + V_mask``), and
        of every share's, by name. Infinite where there is no interval; a share that is not resolved because its
        component came out negative is left to the component.
    """
    whole = float(components.values.sum())
    found = {}
    for level, name in enumerate(components.levels):
        component, share = components.component(level), components.share(level)
        for what, estimate, size in (("variance", component, whole), ("share", share, 1.0)):
            if not estimate.resolved:
                continue
            if estimate.low is None or estimate.high is None or size <= 0:
                found[f"{name} {what}"] = inf
            else:
                found[f"{name} {what}"] = (estimate.high - estimate.low) / 2 / size
    return found
