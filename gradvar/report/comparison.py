"""The result of comparing proposals: frozen dataclasses that know how to be a table, figures, text and JSON."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from gradvar.decomposition.estimate import Estimate
from gradvar.decomposition.merit import Disjoint

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

    from gradvar.report.tokens import TokenScores

COMPARISON_SCHEMA = "gradvar/comparison/v1"


@dataclass(frozen=True)
class Row:
    """One proposal beside uniform masks.

    Ratios are to the mask variance of ``uniform/simple``, for K masks a draw to that of K independent ones.

    Attributes:
        proposal: As it is written.
        score: The score alone.
        design: The design alone.
        declared_unbiased: Whether the design makes the expected gradient that of uniform masks for every model.
        own_cells: Whether it was measured on cells of its own, and not by its weights on the uniform ones.
        variance_ratio: Variance over masks.
        bias2_ratio: Squared norm of the expected gradient's difference from the uniform one.
        mse_ratio: Their sum: the mean squared error of one draw.
        mse_ratio_at_batch: The same for the average over a batch, in which the bias stays as it is.
        ess: Effective sample size of the weights, ``(sum w)^2 / (n sum w^2)``.
        max_weight: Largest weight, in units of a uniform draw's: that there can be under set designs and ``pps``, of
            what was seen under others.
        cost_ratio: Cost of a draw: scoring, drawing, forward and backward.
        cost_ratio_without_scoring: The same with scores for nothing.
        efficiency: ``MSE_uniform cost_uniform / (MSE cost)`` of one draw, the data's variance included.
        efficiency_at_batch: The same for a batch.
        efficiency_without_scoring: The same for a batch, with scores for nothing.
        cosine: Of the angle between the expected gradients.
        batch_gain: Factor by which a small uniform batch must grow to be as well aligned, at equal cost.
        batch_gain_at_batch: The same for the batch asked for.
    """

    proposal: str
    score: str
    design: str
    declared_unbiased: bool
    own_cells: bool
    variance_ratio: Estimate
    bias2_ratio: Estimate
    mse_ratio: Estimate
    mse_ratio_at_batch: Estimate
    ess: Estimate
    max_weight: Estimate
    cost_ratio: Estimate
    cost_ratio_without_scoring: Estimate
    efficiency: Estimate
    efficiency_at_batch: Estimate
    efficiency_without_scoring: Estimate
    cosine: Estimate
    batch_gain: Estimate
    batch_gain_at_batch: Estimate

    def to_json(self) -> dict[str, Any]:
        """Return the fields for JSON."""
        found = {name: value for name, value in self.estimates().items() if name not in _ALIGNMENT}
        return {
            "proposal": self.proposal,
            "score": self.score,
            "design": self.design,
            "declared_unbiased": self.declared_unbiased,
            "own_cells": self.own_cells,
            **{name: value.to_json() for name, value in found.items()},
            "alignment": {name: getattr(self, name).to_json() for name in _ALIGNMENT},
        }

    def estimates(self) -> dict[str, Estimate]:
        """Return everything that is an estimate, by name."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Estimate)}


_ALIGNMENT = ("cosine", "batch_gain", "batch_gain_at_batch")


@dataclass(frozen=True, repr=False)
class Comparison:
    """Ways to choose masks, side by side on the same sentences.

    Attributes:
        headroom: The three ceilings, as parts of the mask variance: ``importance``, ``position``, ``stratification``.
        disjoint: Whether disjoint masks pay.
        proposals: A row a proposal, in the order asked for; ``uniform/simple`` first.
        variance: ``data`` and ``mask`` variance of one uniform cell, and ``gradient_norm2``.
        study: What was asked for.
        provenance: What ran.
        notices: What a reader should know, one line each.
        tokens: What single tokens of some of the sentences scored, where that was kept.
    """

    headroom: dict[str, Estimate]
    disjoint: Disjoint
    proposals: tuple[Row, ...]
    variance: dict[str, Estimate]
    study: dict[str, Any]
    provenance: dict[str, Any]
    notices: tuple[str, ...]
    tokens: TokenScores | None = field(default=None, compare=False)

    def __getitem__(self, proposal: str) -> Row:
        """Return the row of a proposal."""
        for row in self.proposals:
            if row.proposal == proposal:
                return row
        raise KeyError(proposal)

    def to_frame(self) -> DataFrame:
        """Return a pandas table: a row a proposal, intervals in columns ``*_low``, ``*_high``."""
        import pandas

        rows = []
        for row in self.proposals:
            values: dict[str, Any] = {"proposal": row.proposal, "declared_unbiased": row.declared_unbiased}
            for name, estimate in row.estimates().items():
                values |= {name: estimate.estimate, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
            missing = [f"{name}: {e.reason}" for name, e in row.estimates().items() if e.reason]
            rows.append(values | {"unresolved": "; ".join(missing) or None})
        return pandas.DataFrame(rows)

    def plot(self, kind: str = "mse") -> Figure:
        """Draw a matplotlib figure.

        Args:
            kind: ``mse`` (error by proposal, in variance and squared bias) or ``gain`` (batch gain at equal cost).

        Returns:
            The figure, not attached to any window.
        """
        from gradvar.report.comparison_figures import COMPARISON_FIGURES

        return COMPARISON_FIGURES[kind](self)

    def to_json(self) -> dict[str, Any]:
        """Return everything, in the schema ``gradvar/comparison/v1``."""
        return {
            "schema": COMPARISON_SCHEMA,
            "headroom": {name: value.to_json() for name, value in self.headroom.items()},
            "disjoint": {
                "covariance": self.disjoint.covariance.to_json(),
                "balance": self.disjoint.balance.to_json(),
                "masks_per_sentence": self.disjoint.masks,
            },
            "variance": {name: value.to_json() for name, value in self.variance.items()},
            "proposals": [row.to_json() for row in self.proposals],
            "study": self.study,
            "provenance": self.provenance,
            "notices": list(self.notices),
        }

    def __repr__(self) -> str:
        """Render the summary as plain text."""
        from gradvar.report.comparison_text import comparison_summary

        return comparison_summary(self)
