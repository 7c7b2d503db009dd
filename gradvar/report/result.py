"""The result of a study: frozen dataclasses that know how to be a table, a figure, text and JSON."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from gradvar.decomposition.allocation import Advice, batch_variance
from gradvar.decomposition.components import Components
from gradvar.decomposition.estimate import Estimate
from gradvar.objective import unit_of

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure
    from pandas import DataFrame

    from gradvar.report.tokens import TokenScores

SCHEMA = "gradvar/decomposition/v1"


@dataclass(frozen=True)
class Layer:
    """The components of one layer: the parameters of one module.

    Attributes:
        name: The module's name.
        group: ``embedding``, ``attention``, ``mlp``, ``norm``, ``head`` or ``other``.
        parameters: Number of parameters.
        shared_with: Other modules that use the same parameters.
        components: Variance by level.
        shares: Share of this layer's variance by level.
        gradient_norm2: ``|mu|^2``.
        statistics: What they were computed from.
    """

    name: str
    group: str
    parameters: int
    shared_with: tuple[str, ...]
    components: dict[str, Estimate]
    shares: dict[str, Estimate]
    gradient_norm2: Estimate
    statistics: Components = field(repr=False, compare=False)

    def to_json(self) -> dict[str, Any]:
        """Return the fields for JSON."""
        return {
            "name": self.name,
            "group": self.group,
            "parameters": self.parameters,
            "shared_with": list(self.shared_with),
            "components": _json(self.components),
            "shares": _json(self.shares),
            "gradient_norm2": self.gradient_norm2.to_json(),
        }


@dataclass(frozen=True)
class DisjointDraw:
    """What one draw is under ``disjoint:K``, where the mask level's variance is that of the mean of K masks.

    Attributes:
        masks: K.
        variance_of_one: ``V_mask`` of a single mask; the draw's is ``V_mask/K + (1 - 1/K) Cov``.
        covariance: ``Cov`` of two masks of a draw.
    """

    masks: int
    variance_of_one: Estimate
    covariance: Estimate

    def to_json(self) -> dict[str, Any]:
        """Return the fields for JSON."""
        return {
            "masks": self.masks,
            "variance_of_one": self.variance_of_one.to_json(),
            "covariance": self.covariance.to_json(),
        }


@dataclass(frozen=True, repr=False)
class Decomposition:
    """Where the variance of a gradient comes from.

    Every number is an :class:`~gradvar.Estimate`. "Variance" is the trace of the covariance over the
    parameters studied, for one cell (one draw at every level).

    Attributes:
        levels: Names of the levels, outermost first.
        proposal: How the inner draws were made.
        components: Variance by level.
        shares: Share of the variance by level.
        gradient_norm2: ``|mu|^2``, squared norm of the expected gradient.
        noise_scale: Component over ``|mu|^2`` by level, and ``total``: the batch size (in draws of the
            outermost level) at which this noise is as large as the signal.
        headroom: Largest part of the innermost component that can be removed by ``importance`` sampling of whole
            masks, by ``position`` weights, and by ``stratification`` (disjoint masks); the last two where asked for.
        layers: The same by layer.
        advice: How many inner draws a datum should have at equal cost.
        study: What was asked for.
        provenance: What ran.
        notices: What a reader should know, one line each.
        statistics: What the totals were computed from.
        data: ``[N]`` indices of the data in the population, in the order of the study.
        losses: ``[N, cells]`` loss of each cell.
        cell_norm2: ``[N, cells]`` squared gradient norm of each cell.
        draw: What a draw of the mask level is, where it is several disjoint masks.
        tokens: What single tokens of some of the sentences scored, where that was measured.
    """

    levels: tuple[str, ...]
    proposal: str
    components: dict[str, Estimate]
    shares: dict[str, Estimate]
    gradient_norm2: Estimate
    noise_scale: dict[str, Estimate]
    headroom: dict[str, Estimate]
    layers: tuple[Layer, ...]
    advice: Advice
    study: dict[str, Any]
    provenance: dict[str, Any]
    notices: tuple[str, ...]
    statistics: Components = field(compare=False)
    data: np.ndarray = field(compare=False)
    losses: np.ndarray = field(compare=False)
    cell_norm2: np.ndarray = field(compare=False)
    draw: DisjointDraw | None = None
    tokens: TokenScores | None = field(default=None, compare=False)

    def variance(self, batch: float, *draws: int) -> Estimate:
        """Estimate the variance of a batch gradient.

        Args:
            batch: Draws of the outermost level (sentences), ``B``.
            *draws: Draws at each inner level; one each if omitted.

        Returns:
            ``sum_l V_l / (B n_1 ... n_l)``, for two levels ``V_data/B + V_mask/(B K)``.
        """
        return batch_variance(self.statistics, batch, draws or (1,) * (len(self.levels) - 1))

    def to_frame(self) -> DataFrame:
        """Return a pandas table: a row a layer, the total first; intervals in columns ``*_low``, ``*_high``."""
        import pandas

        rows = [_row("total", "total", (), self)]
        rows += [_row(layer.name, layer.group, layer.shared_with, layer) for layer in self.layers]
        return pandas.DataFrame(rows)

    @property
    def parameters(self) -> int:
        """Number of parameters studied."""
        return sum(layer.parameters for layer in self.layers)

    @property
    def unit(self) -> str:
        """What one draw of the outermost level is called."""
        return unit_of(self.levels)

    def plot(self, kind: str = "layers") -> Figure:
        """Draw a matplotlib figure.

        Args:
            kind: ``layers`` (components by layer), ``batch`` (variance against batch and masks) or ``cells``
                (distribution of the cells' gradient norms).

        Returns:
            The figure, not attached to any window.
        """
        from gradvar.report.figures import FIGURES

        return FIGURES[kind](self)

    def to_json(self) -> dict[str, Any]:
        """Return everything, in the schema ``gradvar/decomposition/v1``."""
        return {
            "schema": SCHEMA,
            "levels": list(self.levels),
            "proposal": self.proposal,
            "components": _json(self.components),
            "shares": _json(self.shares),
            "gradient_norm2": self.gradient_norm2.to_json(),
            "noise_scale": _json(self.noise_scale),
            "headroom": _json(self.headroom),
            **({} if self.draw is None else {"draw": self.draw.to_json()}),
            "layers": [layer.to_json() for layer in self.layers],
            "advice": self.advice.to_json(),
            "study": self.study,
            "provenance": self.provenance,
            "notices": list(self.notices),
        }

    def __repr__(self) -> str:
        """Render the summary as plain text."""
        from gradvar.report.text import summary

        return summary(self)


def _json(estimates: dict[str, Estimate]) -> dict[str, Any]:
    return {name: estimate.to_json() for name, estimate in estimates.items()}


def _row(name: str, group: str, shared_with: tuple[str, ...], part: Layer | Decomposition) -> dict[str, Any]:
    row: dict[str, Any] = {
        "layer": name,
        "group": group,
        "parameters": part.parameters,
        "shared_with": ";".join(shared_with),
    }
    columns = {f"variance_{level}": estimate for level, estimate in part.components.items()}
    columns |= {f"share_{level}": estimate for level, estimate in part.shares.items()}
    columns |= {"gradient_norm2": part.gradient_norm2}
    for column, estimate in columns.items():
        row |= {column: estimate.estimate, f"{column}_low": estimate.low, f"{column}_high": estimate.high}
    missing = {column: estimate.reason for column, estimate in columns.items() if estimate.reason}
    row["unresolved"] = "; ".join(f"{column}: {reason}" for column, reason in missing.items()) or None
    return row
