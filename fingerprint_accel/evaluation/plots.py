"""DET curve and score histograms, in colours that all can tell apart (Okabe and Ito)."""

from __future__ import annotations

import io

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from fingerprint_accel.evaluation.metrics import Metrics, det_curve
from fingerprint_accel.evaluation.protocols import Scores

BLUE, ORANGE = "#0072B2", "#D55E00"


def _png(figure: Figure) -> bytes:
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


def det_png(scores: Scores, metrics: Metrics) -> bytes:
    """FNMR over FMR, both logarithmic, as PNG; rates of zero lie on the edge."""
    fmr, fnmr, _ = det_curve(scores.mated, scores.nonmated)
    lowest_fmr, lowest_fnmr = 0.5 / len(scores.nonmated), 0.5 / len(scores.mated)
    figure = Figure(figsize=(5.6, 5.2), layout="constrained")
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
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for values, name, colour in ((scores.nonmated, "non-mated", ORANGE), (scores.mated, "mated", BLUE)):
        weights = np.full(len(values), 1 / len(values))
        axes.hist(values, bins, weights=weights, color=colour, alpha=0.6, label=f"{name} ({len(values):,})")
    if np.isfinite(metrics.eer_threshold):
        axes.axvline(metrics.eer_threshold, color="0.2", linestyle="--", linewidth=1, label="threshold at EER")
    axes.set(xlabel="cosine similarity", ylabel="share of comparisons", title="Scores")
    axes.legend(frameon=False)
    return _png(figure)
