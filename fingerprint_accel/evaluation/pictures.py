"""All pictures of one evaluation."""

from __future__ import annotations

import io
from pathlib import Path

from fingerprint_accel.data.inspection import contact_sheet
from fingerprint_accel.data.shards import Shards
from fingerprint_accel.evaluation.history import find_metrics
from fingerprint_accel.evaluation.plots import cmc_png, det_png, histogram_png, roc_png, sweep_png
from fingerprint_accel.evaluation.results import Evaluation
from fingerprint_accel.evaluation.training_plots import training_png

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
    """PNG files by name: `det`, `roc`, `scores`, `cmc`, `samples`; `sweep` where there was one, and `training` where
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
    if evaluation.sweep is not None:
        pictures["sweep"] = sweep_png(evaluation.sweep)
    records = find_metrics(model)
    training = training_png(records) if records else None
    return {**pictures, "training": training} if training else pictures
