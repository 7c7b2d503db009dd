"""What the numbers of the theorem's experiment say: ratios, the verdict by the rules stated before, and the figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import drawing
import ledger
import measuring
import numpy as np
import ratio
from scipy import stats

RIVALS = {"masks count like sentences, V/(B K)": (1, 1), "masks count for nothing, V/B": (1, 0)}
"""What else one could think: the exponents of B and K."""
PARTS = {"predicted": "from 512 sentences", "again": "again, from up to 2,048 sentences"}
"""The predictions, and how they are called."""
_MARKERS = "osD^"


@dataclass(frozen=True)
class Kind:
    """One kind of batch: ``B`` sentences with ``K`` masks each.

    Attributes:
        batch: ``B``.
        masks: ``K``.
        measured: The measured variance.
        error: Its standard error.
        predicted: The predicted variance.
    """

    batch: int
    masks: int
    measured: ratio.Interval
    error: float
    predicted: ratio.Interval

    @property
    def ratio(self) -> ratio.Interval:
        """Measured over predicted."""
        return ratio.of_two(self.measured, self.predicted)


@dataclass(frozen=True)
class Compared:
    """Prediction and measurements at one stage.

    Attributes:
        name: The stage.
        kinds: What has been measured.
        components: ``[2]`` of data and mask.
        covariance: ``[2, 2]`` of their errors.
        population: Sentences of the text.
    """

    name: str
    kinds: tuple[Kind, ...]
    components: np.ndarray
    covariance: np.ndarray
    population: int

    def pooled(self, level: float = 0.95) -> ratio.Interval:
        """Average the ratios of all kinds of batches."""
        coefficients = [ratio.coefficients(kind.batch, kind.masks, self.population) for kind in self.kinds]
        measured, errors = [kind.measured[0] for kind in self.kinds], [kind.error for kind in self.kinds]
        return ratio.pooled(measured, errors, np.array(coefficients), self.components, self.covariance, level)

    def rival(self, kind: Kind, powers: tuple[int, int]) -> ratio.Interval:
        """Return what a rival formula predicts, with a normal interval."""
        value, error = self.components.sum(), np.sqrt(self.covariance.sum())
        reach = stats.norm.ppf(0.975) * error
        scale = kind.batch ** powers[0] * kind.masks ** powers[1]
        return value / scale, (value - reach) / scale, (value + reach) / scale


def read(rows: Sequence[dict[str, str]], part: str = "predicted") -> list[Compared]:
    """Put measurements beside their prediction.

    Args:
        rows: Of the CSV; stages that lack their prediction, or any measurement, are left out.
        part: Which of the predictions, see `PARTS`.

    Returns:
        The stages, by regime and step.
    """
    if not any(row["part"] == "measured" for row in rows):
        return []
    found = []
    for name, own in measuring.by_stage(rows).items():
        predicted = {(row["batch"], row["masks"]): row for row in own if row["part"] == part}
        measured = [row for row in own if row["part"] == "measured" and (row["batch"], row["masks"]) in predicted]
        if not measured:
            continue
        whole = predicted["", ""]
        kinds = [
            Kind(int(r["batch"]), int(r["masks"]), _interval(r), float(r["variance_se"]), _interval(predicted[key]))
            for r in measured
            for key in [(r["batch"], r["masks"])]
        ]
        data, both, mask = (float(whole[f"covariance_{part}"]) for part in ("data", "both", "mask"))
        components = np.array([float(whole["data"]), float(whole["mask"])])
        kinds.sort(key=lambda kind: (kind.batch, kind.masks))
        covariance = np.array([[data, both], [both, mask]])
        found.append(Compared(name, tuple(kinds), components, covariance, int(whole["population"])))
    return found


def _interval(row: dict[str, str]) -> ratio.Interval:
    value, low, high = (float(row[f"variance{end}"]) for end in ("", "_low", "_high"))
    return value, low, high


def holds(found: ratio.Interval) -> bool:
    """Whether a ratio's interval has 1 inside."""
    return found[1] <= 1 <= found[2]


def verdict(compared: Sequence[Compared]) -> tuple[bool, list[str]]:
    """Judge by the rules that the experiment's header states.

    Args:
        compared: At least one stage.

    Returns:
        Whether the theorem holds here; and the sentences that say so.
    """
    ratios = [kind.ratio for stage in compared for kind in stage.kinds]
    inside = sum(map(holds, ratios))
    needed = int(stats.binom.ppf(0.05, len(ratios), 0.95))
    level = 1 - 0.05 / len(compared)
    means = [stage.pooled(level) for stage in compared]
    good = inside >= needed and all(map(holds, means))
    low, high = min(mean[0] for mean in means), max(mean[0] for mean in means)
    lines = [
        f"Measured over predicted: {inside} of {len(ratios)} intervals have 1 inside ({needed} needed)",
        f"the stages' mean ratios are {low:.3f} to {high:.3f}, {sum(map(holds, means))} of {len(means)} "
        f"intervals at {100 * level:.4g} % have 1 inside: the theorem {'holds' if good else 'does not hold'} here",
    ]
    several = [(stage, kind) for stage in compared for kind in stage.kinds if kind.masks > 1]
    for name, powers in RIVALS.items() if several else ():
        count = sum(holds(ratio.of_two(kind.measured, stage.rival(kind, powers))) for stage, kind in several)
        lines.append(f"{name}: {count} of {len(several)} with K > 1")
    return good, lines


def findings(rows: Sequence[dict[str, str]]) -> list[str]:
    """Say what the pre-stated prediction is worth, and then the one that was made again."""
    first, again = (read(rows, part) for part in PARTS)
    lines = verdict(first)[1] if first else []
    more = "; ".join(verdict(again)[1][:2]) if again else ""
    return lines + ([f"predicted again, {more[0].lower()}{more[1:]}"] if more else [])


def headline(rows: Sequence[dict[str, str]]) -> str:
    """Say in a sentence what each prediction that has measurements is worth."""
    told = [_short(title, found) for part, title in PARTS.items() if (found := read(rows, part))]
    return f"The variance of batches: {'; '.join(told)}."


def draw(book: ledger.Ledger) -> None:
    """Draw the figure beside the numbers, as far as they go; print the verdict.

    Args:
        book: The numbers.
    """
    every = {title: found for part, title in PARTS.items() if (found := read(book.rows(), part))}
    if not every:
        print(f"{book.path.name}: no prediction has a measurement yet; nothing to draw")
        return
    print(*(f"  {line}" for line in findings(book.rows())), sep="\n")
    names = list(dict.fromkeys(stage.name for found in every.values() for stage in found))
    columns, rows = len(names), 1 + len(every)
    made, axes = drawing.figure(
        columns, rows, 1.0 + 2.4 * columns, 1.2 + 2.4 * rows, sharex=True, sharey="row", squeeze=False
    )
    for row, (title, found) in zip(axes[1:], every.items(), strict=True):
        for stage in found:
            _ratios(row[names.index(stage.name)], stage)
        row[0].set_ylabel(f"measured / predicted, 95 %\n{title}")
    for stage in next(iter(every.values())):
        _variances(axes[0][names.index(stage.name)], stage)
    for axis in axes[-1]:
        axis.set_xlabel("K, masks of a sentence")
    axes[0][0].set_ylabel("variance × B, in variances of one cell")
    made.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    drawing.headline(made, headline(book.rows()))
    drawing.save(made, book.path.with_suffix(""))


def _short(title: str, compared: Sequence[Compared]) -> str:
    """Say in a few words what a prediction is worth."""
    told = "holds" if verdict(compared)[0] else "fails"
    ratios = [kind.ratio for stage in compared for kind in stage.kinds]
    inside = sum(map(holds, ratios))
    return f"predicted {title}, the theorem {told} ({inside} of {len(ratios)} intervals have 1 inside)"


def _variances(axes: Any, stage: Compared) -> None:
    """Show that all B fall on one curve of K, and on which."""
    data, mask = stage.components / stage.components.sum()
    masks = np.geomspace(1, max(2, *(kind.masks for kind in stage.kinds)), 50)
    for _, power in RIVALS.values():
        axes.plot(masks, masks**-power, color=drawing.GREY, linestyle="--", linewidth=0.8)
    axes.plot(masks, data + mask / masks, color="black", linewidth=1.2, label="V_data + V_mask/K, predicted")
    axes.plot(
        [],
        [],
        color=drawing.GREY,
        linestyle="--",
        linewidth=0.8,
        label="masks like sentences (below), for nothing (above)",
    )
    _points(axes, stage, [np.array(kind.measured) * kind.batch / stage.components.sum() for kind in stage.kinds])
    drawing.finish(axes, stage.name, "", "")
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter("{x:.3g}")


def _ratios(axes: Any, stage: Compared) -> None:
    value, low, high = stage.pooled()
    axes.axhspan(low, high, color=drawing.GREY, alpha=0.2, linewidth=0)
    axes.axhline(1, color="black", linewidth=0.8)
    _points(axes, stage, [kind.ratio for kind in stage.kinds])
    drawing.finish(axes, f"mean {value:.3f} [{low:.3f}, {high:.3f}]", "", "")
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted({kind.masks for kind in stage.kinds}))
    axes.xaxis.set_major_formatter("{x:.0f}")


def _points(axes: Any, stage: Compared, values: Sequence[Any]) -> None:
    batches = sorted({kind.batch for kind in stage.kinds})
    for index, batch in enumerate(batches):
        chosen = [(kind.masks, value) for kind, value in zip(stage.kinds, values, strict=True) if kind.batch == batch]
        at = [masks * 1.1 ** (index - (len(batches) - 1) / 2) for masks, _ in chosen]
        middle, low, high = np.array([value for _, value in chosen]).T
        errors = np.clip([middle - low, np.where(np.isfinite(high), high, middle) - middle], 0, None)
        style = {"color": drawing.COLOURS[index % 4], "marker": _MARKERS[index % 4], "markersize": 4}
        axes.errorbar(at, middle, errors, linestyle="", capsize=2, linewidth=1, label=f"B = {batch}", **style)
