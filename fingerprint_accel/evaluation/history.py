"""The training run of a model: its folder, and a plot of its loss and validation EER."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fingerprint_accel.evaluation.plots import BLUE, ORANGE, as_png
from fingerprint_accel.training.meters import MOST_METRICS
from fingerprint_accel.untrusted import UnreadableError, read_bytes, reason_of

WIDE = (11.2, 4.2)  # inches
SCHEDULES = {"learning_rate": ":", "augmentation": "-.", "margin": "--"}
Columns = dict[str, np.ndarray]


def find_run(model: Path) -> Path | None:
    """Return the folder of the training run of a model, or None if the model does not lie in a run folder.

    Args:
        model: run folder, a checkpoint folder in a run folder, or the folder `model` in a run folder.
    """
    place = model.resolve()
    places = [place]
    if place.name == "model":
        places.append(place.parent)
    if place.parent.name == "checkpoints":
        places.append(place.parents[1])
    return next((place for place in places if (place / "config.yaml").is_file()), None)


def read_history(metrics_jsonl: Path) -> tuple[Columns, Columns]:
    """Read the training and validation records of a run from its `metrics.jsonl`.

    Damaged lines are ignored. If the file cannot be read or is too large, the function prints a line. A loss is
    ignored if all updates since the previous record were skipped.

    Args:
        metrics_jsonl: path of the file.

    Returns:
        Two dictionaries from the name of a column to an array, sorted by step. The first one describes the N training
        records, with the columns `step` and `loss`, and the columns `learning_rate`, `augmentation` and `margin` if the
        run recorded these values. The second one describes the M validation records, with the columns `step` and `eer`,
        a fraction from 0 to 1. Missing values are NaN.
    """
    records: dict[str, list[dict[str, Any]]] = {"train": [], "validation": []}
    try:
        lines = read_bytes(metrics_jsonl, MOST_METRICS).splitlines()
    except (OSError, UnreadableError) as error:
        print(f"{metrics_jsonl}: {reason_of(error)}; its records are left out", file=sys.stderr)
        lines = []
    for line in lines:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):  # a line that was being written when the run was killed
            continue
        if isinstance(record, dict) and record.get("kind") in list(records) and math.isfinite(_number(record, "step")):
            records[record["kind"]].append(record)

    def columns(kind: str, *names: str) -> Columns:
        ordered = sorted(records[kind], key=lambda record: record["step"])
        return {name: np.array([_number(record, name) for record in ordered], np.float64) for name in names}

    train = columns("train", "step", "loss", "skipped", *SCHEDULES)
    train["loss"][(train["loss"] == 0) & (train.pop("skipped") > 0)] = math.nan
    for name in SCHEDULES:
        if not np.isfinite(train[name]).any():
            del train[name]
    return train, columns("validation", "step", "eer")


def _number(record: dict[str, Any], name: str) -> float:
    """Return a value of a record as a float, or NaN if the value is missing or not a finite number.

    Args:
        record: line of `metrics.jsonl`.
        name: key of the value.
    """
    value = record.get(name)
    # the comparison bounds integers that are too large for a float
    return float(value) if isinstance(value, int | float) and abs(value) <= 1e300 else math.nan


def smoothed(values: np.ndarray) -> np.ndarray:
    """Smooth N values with a moving average over a centred window of about sqrt(N) values, ignoring NaN values.

    The window is shorter at both ends. Unlike an exponential mean, a centred window does not lag behind the curve.
    """
    known = np.isfinite(values)
    kernel = np.ones(2 * int(math.sqrt(len(values)) / 2) + 1)
    total = np.convolve(np.where(known, values, 0.0), kernel, mode="same")
    count = np.convolve(known.astype(float), kernel, mode="same")
    return np.divide(total, count, out=np.full(len(values), math.nan), where=count > 0.5)


def training_png(metrics_jsonl: Path) -> bytes | None:
    """Plot the training loss and the validation EER over optimizer steps as a PNG file.

    Args:
        metrics_jsonl: path of the metrics file of the run.

    Returns:
        The contents of the file, or None if there is no training record with a loss.
    """
    train, validation = read_history(metrics_jsonl)
    if not np.isfinite(train["loss"]).any():
        return None
    validated = np.isfinite(validation["eer"]).any()
    figure = Figure(figsize=WIDE, layout="constrained")
    panels = figure.subplots(1, 2 if validated else 1, squeeze=False)[0]
    _draw_loss(panels[0], train)
    if validated:
        draw_eer(panels[1], validation)
    for axes in panels:
        last = max(train["step"].max(), validation["step"].max(initial=0))
        axes.set(xlabel="optimizer step", xlim=(0, 1.02 * last))
        axes.xaxis.set_major_locator(MaxNLocator(7, integer=True))
        axes.grid(True, alpha=0.2)
    return as_png(figure)


def _draw_loss(axes: Axes, train: Columns) -> None:
    """Draw the recorded losses and the smoothed loss of a training run.

    Learning rate, augmentation and margin are drawn in grey, each as a share of its maximum.
    """
    step, loss = train["step"], train["loss"]
    axes.plot(step, loss, color=BLUE, alpha=0.3, linewidth=1, label="recorded")
    axes.plot(step, smoothed(loss), color=BLUE, linewidth=2, marker="." if len(step) < 3 else "", label="smoothed")
    axes.set(ylabel="loss", title="Training loss")
    lines = axes.get_lines()
    shares = axes.twinx()
    shares.set(ylim=(-0.02, 1.6), yticks=[])  # leaves room for the legend at the top
    for name in [name for name in SCHEDULES if name in train]:
        highest = np.nanmax(train[name])
        if highest > 0:
            label = f"{name.replace('_', ' ')}, up to {highest:.3g}"
            style = SCHEDULES[name]
            lines += shares.plot(step, train[name] / highest, color="0.6", linestyle=style, linewidth=1, label=label)
    axes.legend(handles=lines, frameon=False)


def draw_eer(axes: Axes, validation: Columns) -> None:
    """Draw the validation EER over steps, and mark its minimum."""
    best = int(np.nanargmin(validation["eer"]))
    step, eer = validation["step"][best], validation["eer"][best]
    axes.plot(validation["step"], 100 * validation["eer"], "o-", color=ORANGE, markersize=4)
    axes.plot(step, 100 * eer, "o", color=BLUE, markersize=8, label=f"lowest: {eer:.2%} at step {step:,.0f}")
    axes.set(ylabel="EER, %", title="Equal error rate on validation fingers")
    axes.set_ylim(0, 105 * np.nanmax(validation["eer"]) or 1)
    axes.legend(frameon=False)
