"""Check the notes of a model that was read from a file: the dictionary in `config.json` that describes the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from fingerprint_accel.errors import UserError
from fingerprint_accel.extraction.calibration import Calibration
from fingerprint_accel.extraction.centring import from_text
from fingerprint_accel.extraction.model_card import noted_metrics
from fingerprint_accel.extraction.network import USUAL_NORM
from fingerprint_accel.untrusted import Fields

LEAST_AREA = "least_print_area_mm2"  # key in the notes of a model, for the minimum area of a print in comparisons


def check_notes(notes: dict[str, Any], folder: Path, dims: int) -> None:
    """Check the notes of a model that was read from a file.

    Args:
        notes: the notes.
        folder: folder of the model, for error messages.
        dims: number of elements of an embedding.

    Raises:
        UserError: if a value that the package uses has another type or is out of range.
    """
    fields = Fields(notes, "notes of the model", "export or calibrate the model again")
    try:
        if LEAST_AREA in notes:
            fields.number(LEAST_AREA, 0, 1e5)
        if notes.get(USUAL_NORM) is not None:
            fields.number(USUAL_NORM, 0, 1e6)
        calibration = Calibration.from_notes(notes)
        if calibration is not None and calibration.center:
            from_text(calibration.center, dims, torch.device("cpu"))
        noted_metrics(notes)
    except UserError as error:
        raise UserError(f"{folder}: {error}") from error
