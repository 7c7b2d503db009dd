"""The result of fitting a MAPNet: what it is worth, as text, figure, JSON and files."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Group, RenderableType
from rich.text import Text

from gradvar.decomposition.estimate import Estimate
from gradvar.mapnet.calibration import Calibration
from gradvar.report.text import plain_table, plain_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

    from gradvar.mapnet.network import MapNet

FIT_SCHEMA = "gradvar/mapnet-fit/v1"


@dataclass(frozen=True, repr=False)
class Fit:
    """A fitted MAPNet, judged on held-out sentences.

    Shares are of predicted variance: of single positions' second moments, targets not interacting. ``compare`` measures
    the whole, on masks of its own.

    Attributes:
        network: The network.
        flops_share: FLOPs of its forward pass over those of the encoder's.
        calibration: To what power its scores are raised, and how much of uniform is mixed in.
        proposal: The proposal to use: a calibrated one, or ``uniform/simple`` where that is not better.
        rank_correlation: Spearman's, with the measured gradient norms of a sentence's positions.
        ceiling_share: Variance removed by the raw scores over the most that position weights can remove.
        captured_share: The same over what the oracle's scores remove.
        calibrated_ceiling_share: Of the calibrated proposal, on sentences that had no part in its choice.
        others: Ceiling shares of scores that need no network, and of the oracle.
        curve: ``(sentences seen, ceiling share)`` through the fit: at powers of two, and at the end of every epoch, one
            of which was kept.
        study: What was asked for.
        provenance: What ran.
    """

    network: MapNet
    flops_share: float
    calibration: Calibration
    proposal: str
    rank_correlation: Estimate
    ceiling_share: Estimate
    captured_share: Estimate
    calibrated_ceiling_share: Estimate
    others: dict[str, Estimate]
    curve: tuple[tuple[int, Estimate], ...]
    study: dict[str, Any]
    provenance: dict[str, Any] = field(compare=False)

    def record(self) -> dict[str, Any]:
        """Return what the network's own file should say of how it was fitted."""
        return {"proposal": self.proposal, "study": self.study, "provenance": self.provenance}

    def to_json(self) -> dict[str, Any]:
        """Return everything but the weights, in the schema ``gradvar/mapnet-fit/v1``."""
        config = self.network.config
        calibration = self.calibration
        return {
            "schema": FIT_SCHEMA,
            "proposal": self.proposal,
            "rank_correlation": self.rank_correlation.to_json(),
            "ceiling_share": self.ceiling_share.to_json(),
            "captured_share": self.captured_share.to_json(),
            "calibrated_ceiling_share": self.calibrated_ceiling_share.to_json(),
            "others": {name: value.to_json() for name, value in self.others.items()},
            "curve": [{"sentences": seen, "ceiling_share": share.to_json()} for seen, share in self.curve],
            "calibration": {
                "exponent": calibration.exponent,
                "epsilon": calibration.epsilon,
                "fell_back": calibration.fell_back,
                "sentence": calibration.sentence(),
            },
            "network": vars(config)
            | {
                "parameters": sum(p.numel() for p in self.network.parameters()),
                "flops_share": self.flops_share,
            },
            "study": self.study,
            "provenance": self.provenance,
        }

    def to_frame(self) -> DataFrame:
        """Return the learning curve as a pandas table."""
        import pandas

        return pandas.DataFrame(
            [
                {"sentences": n, "ceiling_share": e.estimate, "ceiling_share_low": e.low, "ceiling_share_high": e.high}
                for n, e in self.curve
            ]
        )

    def plot(self) -> Figure:
        """Draw the learning curve: ceiling share against sentences seen."""
        from matplotlib.figure import Figure

        from gradvar.report.figures import COLOURS, GREY

        figure = Figure(figsize=(7, 4.2), layout="constrained")
        axes = figure.subplots()
        points = [
            (seen, e.estimate, e.estimate if e.low is None else e.low, e.estimate if e.high is None else e.high)
            for seen, e in self.curve
            if seen and e.estimate is not None
        ]
        xs, ys, low, high = np.array(points).reshape(-1, 4).T
        axes.plot(xs, ys, "o-", color=COLOURS[0], markersize=4, label="MAPNet, raw scores")
        axes.fill_between(xs, low, high, color=COLOURS[0], alpha=0.15, linewidth=0)
        for (name, share), style in zip(self.others.items(), ("-", "--", "-.", ":", (0, (1, 4))), strict=False):
            if share.estimate is not None and share.estimate > -0.5:
                axes.axhline(share.estimate, color=GREY, linestyle=style, linewidth=1, label=f"{name} itself")
        axes.axhline(0, color="black", linewidth=0.8)
        axes.set_ylim(bottom=max(-0.6, min([0.0, *ys.tolist()]) - 0.1), top=1.05)
        if len(xs):
            axes.set_xscale("log", base=2)
        axes.set_xlabel("sentences seen (with repetitions)")
        axes.set_ylabel("ceiling share on held-out sentences, 95 % interval")
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, fontsize=8)
        removed = self.ceiling_share.estimate
        part = "an unknown part" if removed is None else f"{100 * removed:.0f} %"
        title = f"The fitted MAPNet removes {part} of what position weights can remove"
        axes.set_title(title, fontsize=10, loc="left", wrap=True)
        return figure

    def __repr__(self) -> str:
        """Render the summary as plain text."""
        return plain_text(render_fit(self))


def render_fit(fit: Fit) -> RenderableType:
    """Build what a terminal shows."""
    study, config = fit.study, fit.network.config
    parameters = sum(p.numel() for p in fit.network.parameters())
    parts: list[RenderableType] = [
        Text(f"A MAPNet fitted to {study['sentences']} sentences, judged on {study['held_out']} others", style="bold"),
        Text(
            f"width {config.width}, {parameters:,} parameters, {fit.flops_share:.1%} of the encoder's FLOPs; "
            f"target {study['target']}, loss {study['loss']}"
        ),
        Text(""),
    ]
    table = plain_table("on held-out sentences", "")
    table.add_row("rank correlation with gradient norms", str(fit.rank_correlation))
    table.add_row("ceiling share, raw scores", str(fit.ceiling_share))
    table.add_row("captured share, raw scores", str(fit.captured_share))
    table.add_row("ceiling share, calibrated", str(fit.calibrated_ceiling_share))
    for name, share in fit.others.items():
        table.add_row(f"ceiling share of {name} itself", str(share))
    parts += [table, Text(""), Text(fit.calibration.sentence()), Text(f"Use it as --proposal {fit.proposal}")]
    return Group(*parts)
