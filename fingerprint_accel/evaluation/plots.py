"""Plots of an evaluation: DET, ROC and CMC curves and score histograms.

The colours are from the colour-blind safe palette by Okabe and Ito.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter

from fingerprint_accel.metrics.curve import sorted_curve
from fingerprint_accel.metrics.identification import Searches
from fingerprint_accel.metrics.protocols import Scores
from fingerprint_accel.metrics.verification import FMRS, Metrics

BLUE, ORANGE, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
SIZE = (5.6, 4.6)  # inches; the report page shows two plots side by side
POINTS = 4000  # a curve has about this many points at mated scores, and as many at non-mated scores


def as_png(figure: Figure) -> bytes:
    """Render a figure as the contents of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


def _panel(title: str) -> tuple[Figure, Axes]:
    """Create a figure with one empty plot in the common style; return the figure and the axes of the plot."""
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.add_subplot(title=title)
    axes.set_prop_cycle(color=[BLUE, GREEN, ORANGE, PURPLE])  # first the evaluated model, then the other model
    style_axes(axes)
    return figure, axes


def style_axes(axes: Axes) -> None:
    """Give axes the style of all plots: a faint grid, and no lines at the top and the right."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, which="major", alpha=0.25)


def show_percent(axis: Axis) -> None:
    """Label an axis in percent; the values on the axis are shares from 0 to 1."""
    axis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
    axis.set_minor_formatter(NullFormatter())


def det_points(scores: Scores) -> tuple[np.ndarray, np.ndarray]:
    """Return the points of a DET curve as two (N,) arrays, FMR and FNMR, in order of rising FMR.

    A rate of 0, which a logarithmic axis cannot show, is replaced by 0.5 divided by the number of comparisons.
    """
    fmr, fnmr, _ = sorted_curve(scores.mated, scores.nonmated).operating_points(POINTS)
    return np.maximum(fmr, 0.5 / len(scores.nonmated)), np.maximum(fnmr, 0.5 / len(scores.mated))


def _finished(figure: Figure, *percent: Axis, **legend: Any) -> bytes:
    """Add a legend to a figure, label some axes in percent, and return the figure as a PNG file.

    Args:
        figure: the figure.
        percent: axes to label in percent.
        legend: arguments of `Axes.legend`.
    """
    for axis in percent:
        show_percent(axis)
    figure.axes[0].legend(frameon=False, **legend)
    return as_png(figure)


def curve_pngs(scores: Mapping[str, Scores], metrics: Metrics) -> dict[str, bytes]:
    """Plot the DET and ROC curves of one or two models and return PNG files with the keys "det" and "roc".

    Rates of zero, which a logarithmic axis cannot show, are drawn at the edge of the plot.

    Args:
        scores: dictionary from the name of each model to its similarities in the verification test. The evaluated model
            is the first entry.
        metrics: error rates of the evaluated model.
    """
    lowest_fmr, lowest_fnmr, lowest = 0.5 / metrics.nonmated, 0.5 / metrics.mated, 1.0
    det, axes = _panel("Detection error trade-off (DET)")
    roc, true = _panel("Receiver operating characteristic (ROC)")
    diagonal = [max(lowest_fmr, lowest_fnmr), 1]
    axes.plot(diagonal, diagonal, color="0.7", linestyle="--", linewidth=1, label="FNMR = FMR")
    for name, shown in scores.items():
        fmr, fnmr, _ = sorted_curve(shown.mated, shown.nonmated).operating_points(POINTS)
        axes.step(*det_points(shown), where="post", linewidth=1.8, label=name)
        true.step(np.maximum(fmr, lowest_fmr), 1 - fnmr, where="post", linewidth=1.8, label=name)
        lowest = min(lowest, float((1 - fnmr)[fmr > 0].min(initial=1.0)))
    axes.plot(metrics.eer, metrics.eer, "o", color=ORANGE, zorder=3, label=f"EER {metrics.eer:.2%}")
    axes.set(xscale="log", yscale="log", xlim=(lowest_fmr, 1), ylim=(lowest_fnmr, 1))
    axes.set(xlabel="false match rate", ylabel="false non-match rate")
    for rate in FMRS[1:4]:
        if rate > lowest_fmr:
            true.axvline(rate, color="0.8", linewidth=0.8, zorder=0)
    true.set(xscale="log", xlim=(lowest_fmr, 1), ylim=(max(0.0, lowest - 0.05), 1.005))
    true.set(xlabel="false match rate", ylabel="true match rate")
    return {
        "det": _finished(det, axes.xaxis, axes.yaxis),
        "roc": _finished(roc, true.xaxis, true.yaxis, loc="lower right"),
    }


def histogram_png(scores: Scores, metrics: Metrics) -> bytes:
    """Plot a histogram of mated and non-mated similarities as a PNG file.

    Comparisons with a print that failed to acquire are left out.

    Args:
        scores: similarities of the verification test.
        metrics: error rates; the threshold of the EER is marked.
    """
    both = [values[np.isfinite(values)] for values in (scores.nonmated, scores.mated)]
    low, high = min(values.min() for values in both), max(values.max() for values in both)
    bins = np.linspace(low, high if high > low else low + 1e-3, 61).tolist()
    figure, axes = _panel("Scores")
    for values, name, colour in zip(both, ("non-mated", "mated"), (ORANGE, BLUE), strict=True):
        weights = np.full(len(values), 1 / len(values))
        axes.hist(values, bins, weights=weights, color=colour, alpha=0.6, label=f"{name} ({len(values):,})")
    if np.isfinite(metrics.eer_threshold):
        axes.axvline(metrics.eer_threshold, color="0.2", linestyle="--", linewidth=1, label="threshold at EER")
    axes.set(xlabel="cosine similarity", ylabel="share of comparisons")
    axes.xaxis.set_major_locator(MaxNLocator(6))
    return _finished(figure, axes.yaxis)


def fnir_png(searches: Mapping[str, Searches]) -> bytes:
    """Plot FNIR over FPIR, the DET curve of open-set identification, as a PNG file.

    Rates of zero, which a logarithmic axis cannot show, are drawn at the edge of the plot.

    Args:
        searches: open-set searches by the label of their curve.
    """
    figure, axes = _panel("Open-set identification (DET)")
    lowest_fpir, lowest_fnir = 1.0, 1.0
    for name, shown in searches.items():
        mated, nonmated = shown.mated[shown.is_mated], shown.best_other[~shown.is_mated]
        edges = 0.5 / len(nonmated), 0.5 / len(mated)
        lowest_fpir, lowest_fnir = min(lowest_fpir, edges[0]), min(lowest_fnir, edges[1])
        fpir, fnir, _ = sorted_curve(mated, nonmated).operating_points(POINTS)
        axes.step(np.maximum(fpir, edges[0]), np.maximum(fnir, edges[1]), where="post", linewidth=1.8, label=name)
    axes.set(xscale="log", yscale="log", xlim=(lowest_fpir, 1), ylim=(lowest_fnir, 1))
    axes.set(xlabel="false-positive identification rate", ylabel="false-negative identification rate")
    return _finished(figure, axes.xaxis, axes.yaxis)


def cmc_png(searches: Mapping[str, Searches]) -> bytes:
    """Plot cumulative match characteristics (CMC) as a PNG file.

    Args:
        searches: closed-set searches by the label of their curve. All have the same references.
    """
    figure, axes = _panel("Cumulative match characteristic (CMC)")
    for name, shown in searches.items():
        rates = shown.cmc()
        marker = "o" if len(rates) <= 20 else ""
        axes.plot(np.arange(1, len(rates) + 1), rates, marker=marker, markersize=4, label=name)
    last, enrolled = len(rates), shown.enrolled  # equal for both models
    lowest = min(shown.cmc(1)[0] for shown in searches.values())
    axes.set(xlim=(0.5, last + 0.5), ylim=(max(0.0, lowest - max(0.02, 0.5 * (1 - lowest))), 1.005))
    axes.set(xlabel=f"rank, of {enrolled:,} references", ylabel="identification rate")
    step = max(1, round(last / 5))
    axes.set_xticks([1, *range(max(2, step), last + 1, step)])
    return _finished(figure, axes.yaxis, loc="lower right")
