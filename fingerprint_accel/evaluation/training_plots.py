"""Course of training, as pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fingerprint_accel.evaluation.history import History, read_history, smoothed
from fingerprint_accel.evaluation.plots import BLUE, ORANGE, as_png

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
