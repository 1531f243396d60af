"""DET and ROC curves, score histograms, CMC and pose sweeps, in colours that all can tell apart (Okabe and Ito)."""

from __future__ import annotations

import io
from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from fingerprint_accel.evaluation.pose_sweep import PoseSweep
from fingerprint_accel.metrics.curve import det_curve
from fingerprint_accel.metrics.identification import Searches
from fingerprint_accel.metrics.protocols import Scores
from fingerprint_accel.metrics.verification import FMRS, Metrics

BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"
SIZE = (5.6, 4.6)  # inches; the page shows two side by side
POINTS = 4000  # of a curve, at most, for each kind of score
PERCENT = FuncFormatter(lambda value, _: f"{100 * value:g} %")


def as_png(figure: Figure) -> bytes:
    """The figure as a file."""
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


def _panel(title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, which="major", alpha=0.25)
    return figure, axes


def _in_percent(*axes: object) -> None:
    for axis in axes:
        axis.set_major_formatter(PERCENT)  # type: ignore[attr-defined]
        axis.set_minor_formatter(NullFormatter())  # type: ignore[attr-defined]


def det_png(scores: Mapping[str, Scores], metrics: Metrics) -> bytes:
    """FNMR over FMR of one model or two, both logarithmic, as PNG; rates of zero lie on the edge.

    Args:
        scores: by name of the model, the evaluated one first.
        metrics: of the first.
    """
    first = next(iter(scores.values()))
    lowest_fmr, lowest_fnmr = 0.5 / len(first.nonmated), 0.5 / len(first.mated)
    figure, axes = _panel("Detection error trade-off (DET)")
    diagonal = [max(lowest_fmr, lowest_fnmr), 1]
    axes.plot(diagonal, diagonal, color="0.7", linestyle="--", linewidth=1, label="FNMR = FMR")
    for (name, shown), colour in zip(scores.items(), (BLUE, GREEN), strict=False):
        fmr, fnmr, _ = det_curve(shown.mated, shown.nonmated, POINTS)
        x, y = np.maximum(fmr, lowest_fmr), np.maximum(fnmr, lowest_fnmr)
        axes.step(x, y, where="post", color=colour, linewidth=1.8, label=name)
    axes.plot(metrics.eer, metrics.eer, "o", color=ORANGE, zorder=3, label=f"EER {metrics.eer:.2%}")
    axes.set(xscale="log", yscale="log", xlim=(lowest_fmr, 1), ylim=(lowest_fnmr, 1))
    axes.set(xlabel="false match rate", ylabel="false non-match rate")
    _in_percent(axes.xaxis, axes.yaxis)
    axes.legend(frameon=False)
    return as_png(figure)


def roc_png(scores: Mapping[str, Scores]) -> bytes:
    """True match rate (1 - FNMR) over FMR, FMR logarithmic, as PNG; arguments as `det_png`."""
    first = next(iter(scores.values()))
    lowest_fmr, lowest = 0.5 / len(first.nonmated), 1.0
    figure, axes = _panel("Receiver operating characteristic (ROC)")
    for (name, shown), colour in zip(scores.items(), (BLUE, GREEN), strict=False):
        fmr, fnmr, _ = det_curve(shown.mated, shown.nonmated, POINTS)
        axes.step(np.maximum(fmr, lowest_fmr), 1 - fnmr, where="post", color=colour, linewidth=1.8, label=name)
        lowest = min(lowest, float((1 - fnmr)[fmr > 0].min(initial=1.0)))
    for rate in FMRS[1:4]:
        if rate > lowest_fmr:
            axes.axvline(rate, color="0.8", linewidth=0.8, zorder=0)
    axes.set(xscale="log", xlim=(lowest_fmr, 1), ylim=(max(0.0, lowest - 0.05), 1.005))
    axes.set(xlabel="false match rate", ylabel="true match rate")
    _in_percent(axes.xaxis, axes.yaxis)
    axes.legend(frameon=False, loc="lower right")
    return as_png(figure)


def histogram_png(scores: Scores, metrics: Metrics) -> bytes:
    """Shares of mated and non-mated scores by similarity, as PNG; failed comparisons are left out."""
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
    _in_percent(axes.yaxis)
    axes.legend(frameon=False)
    return as_png(figure)


def cmc_png(searches: Mapping[str, Searches]) -> bytes:
    """Share of searches with the mated reference among the k most similar, over k, as PNG; arguments as `det_png`."""
    figure, axes = _panel("Cumulative match characteristic (CMC)")
    for (name, shown), colour in zip(searches.items(), (BLUE, GREEN), strict=False):
        rates = shown.cmc()
        marker = "o" if len(rates) <= 20 else ""
        axes.plot(np.arange(1, len(rates) + 1), rates, color=colour, marker=marker, markersize=4, label=name)
        axes.set_xlim(0.5, len(rates) + 0.5)
    lowest = min(shown.cmc(1)[0] for shown in searches.values())
    axes.set_ylim(max(0.0, lowest - max(0.02, 0.5 * (1 - lowest))), 1.005)
    enrolled = next(iter(searches.values())).enrolled
    axes.set(xlabel=f"rank, of {enrolled:,} references", ylabel="identification rate")
    last = int(axes.get_xlim()[1])
    step = max(1, round(last / 5))
    axes.set_xticks([1, *range(max(2, step), last + 1, step)])
    _in_percent(axes.yaxis)
    axes.legend(frameon=False, loc="lower right")
    return as_png(figure)


def sweep_png(sweep: PoseSweep) -> bytes:
    """EER over the largest turn, a line for each largest shift, as PNG."""
    figure, axes = _panel("Probes turned and shifted")
    shifts = sorted({cell.shift for cell in sweep.cells})
    for shift, colour, marker in zip(shifts, (BLUE, GREEN, ORANGE), "os^", strict=False):
        line = [cell for cell in sweep.cells if cell.shift == shift]
        label = f"shifted by up to {shift:g} mm" if shift else "not shifted"
        turns = [cell.angle for cell in line]
        axes.plot(turns, [cell.eer for cell in line], color=colour, marker=marker, markersize=5, label=label)
        axes.set_xticks(turns)
    axes.set_ylim(bottom=0)
    axes.set(xlabel="turned by up to, degrees", ylabel="EER")
    _in_percent(axes.yaxis)
    axes.legend(frameon=False)
    return as_png(figure)
