"""The course of a training run, read back from its `metrics.jsonl`."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

SCHEDULES = ("learning_rate", "augmentation", "margin")


@dataclass(frozen=True)
class History:
    """Records of a run in the order of their steps; NaN where a record does not tell.

    Attributes:
        step: (N,) of the training records.
        loss: (N,).
        schedules: (N,) by name, those of `SCHEDULES` that were recorded.
        validation_step: (M,) of the validations.
        eer: (M,), from 0 to 1.
    """

    step: np.ndarray
    loss: np.ndarray
    schedules: dict[str, np.ndarray]
    validation_step: np.ndarray
    eer: np.ndarray


def find_run(model: Path) -> Path | None:
    """The run folder that a model belongs to, or None for a model without its run.

    Args:
        model: run folder, a checkpoint inside one, or its `model/` folder.
    """
    model = model.resolve()
    for place in (model, model.parent) if model.name == "model" else (model, model.parent.parent):
        inside = place == model or model.name == "model" or model.parent.name == "checkpoints"
        if inside and (place / "config.yaml").is_file():
            return place
    return None


def find_metrics(model: Path) -> Path | None:
    """`metrics.jsonl` of the run that a model belongs to (`find_run`), or None where there is none."""
    run = find_run(model)
    return run / "metrics.jsonl" if run and (run / "metrics.jsonl").is_file() else None


def _number(record: dict[str, Any], name: str) -> float:
    value = record.get(name)
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else math.nan


def read_history(metrics_jsonl: Path) -> History:
    """Reads a run's records; damaged lines are skipped, and so are losses of windows without a single update."""
    records: dict[str, list[dict[str, Any]]] = {"train": [], "validation": []}
    for line in metrics_jsonl.read_text(errors="replace").splitlines():
        try:
            record = json.loads(line)
        except ValueError:  # a line that was being written when the run was killed
            continue
        if isinstance(record, dict) and record.get("kind") in list(records) and math.isfinite(_number(record, "step")):
            records[record["kind"]].append(record)

    def column(kind: str, name: str) -> np.ndarray:
        ordered = sorted(records[kind], key=lambda record: record["step"])
        return np.array([_number(record, name) for record in ordered], dtype=np.float64)

    loss = column("train", "loss")
    loss[(loss == 0) & (column("train", "skipped") > 0)] = math.nan
    schedules = {name: column("train", name) for name in SCHEDULES}
    return History(
        step=column("train", "step"),
        loss=loss,
        schedules={name: values for name, values in schedules.items() if np.isfinite(values).any()},
        validation_step=column("validation", "step"),
        eer=column("validation", "eer"),
    )


def smoothed(values: np.ndarray) -> np.ndarray:
    """Mean over a centred window of about sqrt(N) of N values, shorter at both ends; NaNs are left out.

    A centred window does not lag behind the curve as an exponential mean does.
    """
    known = np.isfinite(values)
    kernel = np.ones(2 * int(math.sqrt(len(values)) / 2) + 1)
    total = np.convolve(np.where(known, values, 0.0), kernel, mode="same")
    count = np.convolve(known.astype(float), kernel, mode="same")
    return np.divide(total, count, out=np.full(len(values), math.nan), where=count > 0.5)
