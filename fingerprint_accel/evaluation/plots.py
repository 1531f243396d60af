"""DET and ROC curves, score histograms and CMC, in colours that all can tell apart (Okabe and Ito)."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from fingerprint_accel.data.inspection import contact_sheet
from fingerprint_accel.data.shards import Shards
from fingerprint_accel.evaluation.history import History, find_metrics, read_history, smoothed
from fingerprint_accel.evaluation.results import Evaluation
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


WIDE = (11.2, 4.2)  # inches
LINES = {"learning_rate": ":", "augmentation": "-.", "margin": "--"}


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
    return as_png(figure)


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


SAMPLED_FINGERS, SAMPLED_IMPRESSIONS = 4, 4
SAMPLES_WIDTH = 1280  # pixels, at most; the page is about 1000 wide


def model_name(model: Path) -> str:
    """What to call a model: its folder's name, that of its run for RUN/model."""
    place = model.absolute()
    return place.parent.name if place.name == "model" else place.name


def _samples_png(shards: Shards) -> bytes:
    sheet = contact_sheet(shards, SAMPLED_FINGERS, columns=SAMPLED_IMPRESSIONS).convert("L")
    sheet.thumbnail((SAMPLES_WIDTH, 4 * SAMPLES_WIDTH))
    buffer = io.BytesIO()
    sheet.save(buffer, format="PNG")
    return buffer.getvalue()


def draw_pictures(model: Path, shards: Shards, evaluation: Evaluation) -> dict[str, bytes]:
    """PNG files by name: `det`, `roc`, `scores`, `cmc`, `samples`, and `training` where
    the model lies in a run that has records."""
    name, rival = model_name(model), evaluation.rival
    scores, closed = {name: evaluation.scores}, {name: evaluation.identification.closed}
    if rival is not None:
        other = rival.name if rival.name != name else f"{name} (the other)"
        scores[other], closed[other] = rival.scores, rival.closed
    pictures = {
        "det": det_png(scores, evaluation.metrics),
        "roc": roc_png(scores),
        "scores": histogram_png(evaluation.scores, evaluation.metrics),
        "cmc": cmc_png(closed),
        "samples": _samples_png(shards),
    }
    records = find_metrics(model)
    training = training_png(records) if records else None
    return {**pictures, "training": training} if training else pictures
