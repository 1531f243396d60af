"""What a model reaches, as model hubs read it: `model-index` in the front matter of a card.

Format: https://github.com/huggingface/hub-docs/blob/main/modelcard.md. Values are shares, 0.01 for 1 %.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from fingerprint_accel.errors import UserError
from fingerprint_accel.extraction.calibration import Calibration

NOTE = "metrics"  # its name among a model's notes
TASK = {"type": "image-feature-extraction", "name": "fingerprint verification"}
DATASET_TYPE = "fingerprints"


@dataclass(frozen=True)
class Metric:
    """One number that was measured.

    Attributes:
        dataset: what it was measured on.
        metric: identifier, such as "eer" or "fnmr".
        value: the number, a share where it is a rate.
        name: for people; default the identifier.
        dataset_type: identifier of the dataset.
        args: settings of the measurement, such as the FMR of an FNMR.
    """

    dataset: str
    metric: str
    value: float
    name: str = ""
    dataset_type: str = DATASET_TYPE
    args: dict[str, Any] = field(default_factory=dict)


def noted_metrics(notes: dict[str, Any]) -> list[Metric]:
    """Those that a release keeps with its model: a list of the fields of `Metric`.

    Raises:
        UserError: a list that cannot be read.
    """
    try:
        metrics = [Metric(**values) for values in notes.get(NOTE) or []]
        return [Metric(**{**vars(metric), "value": float(metric.value)}) for metric in metrics]
    except (TypeError, ValueError) as error:
        raise UserError(
            f"the model's metrics cannot be read ({error}); give a list of dataset, metric and value"
        ) from error


def calibration_metrics(calibration: Calibration | None) -> list[Metric]:
    """EER and FNMR of every way of comparing that a model was calibrated for."""
    if calibration is None:
        return []
    found = []
    kind = f"synthetic-{DATASET_TYPE}" if calibration.synthetic else DATASET_TYPE
    for way in calibration.ways:
        shared = {"protocol": calibration.protocol, "poses": way.poses}
        found.append(Metric(calibration.source, "eer", way.eer, f"EER, {compared(way.poses)}", kind, shared))
        for rate, value in way.fnmr.items():
            name = f"FNMR at FMR {100 * float(rate):g} %, {compared(way.poses)}"
            found.append(Metric(calibration.source, "fnmr", value, name, kind, {**shared, "fmr": float(rate)}))
    return found


def compared(poses: int) -> str:
    """How prints were compared, in words."""
    return "as they are" if poses == 1 else f"best of {poses} poses"


def model_index(name: str, notes: dict[str, Any]) -> list[dict[str, Any]]:
    """The value of `model-index`; empty where nothing is known of a model.

    Args:
        name: of the model.
        notes: kept with it; its own metrics come first, then those of its calibration.

    Raises:
        UserError: metrics or a calibration that cannot be read.
    """
    by_dataset: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for metric in [*noted_metrics(notes), *calibration_metrics(Calibration.from_notes(notes))]:
        entry: dict[str, Any] = {
            "type": metric.metric,
            "value": metric.value,
            "name": metric.name or metric.metric,
        }
        if metric.args:
            entry["args"] = metric.args
        by_dataset.setdefault((metric.dataset_type, metric.dataset), []).append(entry)
    results = [
        {"task": dict(TASK), "dataset": {"type": kind, "name": dataset}, "metrics": metrics}
        for (kind, dataset), metrics in by_dataset.items()
    ]
    return [{"name": name, "results": results}] if results else []
