"""DET curve, score histograms and training curves, in colours that all can tell apart (Okabe and Ito)."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fingerprint_accel.evaluation.history import History, read_history, smoothed
from fingerprint_accel.evaluation.curve import det_curve
from fingerprint_accel.evaluation.metrics import Metrics
from fingerprint_accel.evaluation.protocols import Scores

BLUE, ORANGE = "#0072B2", "#D55E00"
SIZE = (5.6, 4.6)  # inches; the page shows two side by side
WIDE = (11.2, 4.2)
LINES = {"learning_rate": ":", "augmentation": "-.", "margin": "--"}


def _png(figure: Figure) -> bytes:
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


def det_png(scores: Scores, metrics: Metrics) -> bytes:
    """FNMR over FMR, both logarithmic, as PNG; rates of zero lie on the edge."""
    fmr, fnmr, _ = det_curve(scores.mated, scores.nonmated)
    lowest_fmr, lowest_fnmr = 0.5 / len(scores.nonmated), 0.5 / len(scores.mated)
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.add_subplot()
    axes.step(np.maximum(fmr, lowest_fmr), np.maximum(fnmr, lowest_fnmr), where="post", color=BLUE, label="DET")
    diagonal = [max(lowest_fmr, lowest_fnmr), 1]
    axes.plot(diagonal, diagonal, color="0.7", linestyle="--", linewidth=1, label="FNMR = FMR")
    axes.plot(metrics.eer, metrics.eer, "o", color=ORANGE, label=f"EER {metrics.eer:.2%}")
    axes.set(xscale="log", yscale="log", xlim=(lowest_fmr, 1), ylim=(lowest_fnmr, 1))
    axes.set(xlabel="false match rate", ylabel="false non-match rate", title="Detection error trade-off")
    axes.grid(True, which="both", alpha=0.2)
    axes.legend(frameon=False)
    return _png(figure)


def histogram_png(scores: Scores, metrics: Metrics) -> bytes:
    """Shares of mated and non-mated scores by similarity, as PNG."""
    low = min(scores.mated.min(), scores.nonmated.min())
    high = max(scores.mated.max(), scores.nonmated.max())
    bins = np.linspace(low, high if high > low else low + 1e-3, 61).tolist()
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.add_subplot()
    for values, name, colour in ((scores.nonmated, "non-mated", ORANGE), (scores.mated, "mated", BLUE)):
        weights = np.full(len(values), 1 / len(values))
        axes.hist(values, bins, weights=weights, color=colour, alpha=0.6, label=f"{name} ({len(values):,})")
    if np.isfinite(metrics.eer_threshold):
        axes.axvline(metrics.eer_threshold, color="0.2", linestyle="--", linewidth=1, label="threshold at EER")
    axes.set(xlabel="cosine similarity", ylabel="share of comparisons", title="Scores")
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.legend(frameon=False)
    return _png(figure)


def training_png(metrics_jsonl: Path) -> bytes | None:
    """Loss, and validation EER where there is one, over optimizer steps, as PNG; None without training records."""
    history = read_history(metrics_jsonl)
    if not np.isfinite(history.loss).any():
        return None
    validated = np.isfinite(history.eer).any()
    figure = Figure(figsize=WIDE, layout="constrained")
    panels = figure.subplots(1, 2 if validated else 1, squeeze=False)[0]
    _draw_loss(panels[0], history)
    if validated:
        _draw_eer(panels[1], history)
    for axes in panels:
        last = max(history.step.max(), history.validation_step.max(initial=0))
        axes.set(xlabel="optimizer step", xlim=(0, 1.02 * last))
        axes.xaxis.set_major_locator(MaxNLocator(7, integer=True))
        axes.grid(True, alpha=0.2)
    return _png(figure)


def _draw_loss(axes: Axes, history: History) -> None:
    """Every record light, their mean strong, and schedules faint on scales of their own."""
    marker = "." if len(history.step) < 3 else ""
    axes.plot(history.step, history.loss, color=BLUE, alpha=0.3, linewidth=1, label="recorded")
    axes.plot(history.step, smoothed(history.loss), color=BLUE, linewidth=2, marker=marker, label="smoothed")
    axes.set(ylabel="loss", title="Training loss")
    lines = axes.get_lines()
    shares = axes.twinx()
    shares.set(ylim=(-0.02, 1.6), yticks=[])  # leaves the top to the legend
    for name, values in history.schedules.items():
        highest = np.nanmax(values)
        if highest > 0:
            label = f"{name.replace('_', ' ')}, up to {highest:.3g}"
            style = LINES[name]
            lines += shares.plot(history.step, values / highest, color="0.6", linestyle=style, linewidth=1, label=label)
    axes.legend(handles=lines, frameon=False)


def _draw_eer(axes: Axes, history: History) -> None:
    best = int(np.nanargmin(history.eer))
    step, eer = history.validation_step[best], history.eer[best]
    axes.plot(history.validation_step, 100 * history.eer, "o-", color=ORANGE, markersize=4)
    axes.plot(step, 100 * eer, "o", color=BLUE, markersize=8, label=f"lowest: {eer:.2%} at step {step:,.0f}")
    axes.set(ylabel="EER, %", title="Equal error rate on validation fingers")
    axes.set_ylim(0, 105 * np.nanmax(history.eer) or 1)
    axes.legend(frameon=False)
