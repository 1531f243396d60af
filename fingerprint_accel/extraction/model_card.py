"""The page that goes with an exported model: what it is, how to use it, what it was made of, and what was measured.

Its front matter is for model hubs: https://github.com/huggingface/hub-docs/blob/main/modelcard.md.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import yaml

from fingerprint_accel import __version__
from fingerprint_accel.config import ModelConfig
from fingerprint_accel.errors import UserError
from fingerprint_accel.extraction.calibration import NOTE, Calibration, Way

METRICS = "metrics"  # their name among a model's notes
TASK = "image-feature-extraction"
DATASET_TYPE = "fingerprints"
TAGS = ["fingerprint", "biometrics", "embedding", "deepprint", "pytorch"]
CARD = """---
{front_matter}---

# {title}

Fixed-length fingerprint embedding, {dims} numbers of unit length; compare two by their dot product.
Canvases: {canvas} x {canvas} pixels at {ppi} ppi{enhanced}. Written by fingerprint_accel {version}.

```python
from fingerprint_accel import FingerprintExtractor

extractor = FingerprintExtractor.from_pretrained("{name}")
embeddings = extractor.extract(["a.png", "b.png"], ppi=500)  # (2, {dims}) float32
print(extractor.compare("a.png", "b.png", ppi=500))
```
"""


@dataclass(frozen=True)
class Metric:
    """One number that was measured.

    Attributes:
        dataset: what it was measured on.
        metric: identifier, such as "eer" or "fnmr".
        value: the number, a share where it is a rate: 0.01 for 1 %.
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


def model_card(name: str, model: ModelConfig, ppi: int, canvas: int, enhanced: bool, notes: dict[str, Any]) -> str:
    """Markdown for a model exported to a folder called `name`; `notes` become a list of facts, and tables of metrics
    and of the calibration.

    Raises:
        UserError: metrics or a calibration that cannot be read.
    """
    metrics, calibration = _noted_metrics(notes), Calibration.from_notes(notes)
    measured = metrics + (_calibration_metrics(calibration) if calibration else [])
    text = CARD.format(
        front_matter=_front_matter(name, notes, measured),
        title=f"DeepPrint {model.variant} ({model.trunk})",
        dims=model.embedding_dim,
        canvas=canvas,
        ppi=ppi,
        enhanced=", ridges enhanced as `import --enhance` does" if enhanced else "",
        version=__version__,
        name=name,
    )
    facts = "".join(
        f"- {key.replace('_', ' ')}: {value}\n" for key, value in notes.items() if key not in (NOTE, METRICS)
    )
    parts = [text, facts, metrics and _metrics_section(metrics), calibration and _calibration_section(calibration)]
    return "\n".join(part for part in parts if part)


def _noted_metrics(notes: dict[str, Any]) -> list[Metric]:
    """Those that a release keeps with its model: a list of the fields of `Metric`."""
    try:
        return [Metric(**{**values, "value": float(values["value"])}) for values in notes.get(METRICS) or []]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"the model's metrics cannot be read ({error}); give a list of dataset, metric and value"
        ) from error


def _calibration_metrics(calibration: Calibration) -> list[Metric]:
    """EER and FNMR of every way of comparing that a model was calibrated for."""
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


def _front_matter(name: str, notes: dict[str, Any], metrics: list[Metric]) -> str:
    """YAML; the licence is the first word of the note of that name, and `model-index` holds the metrics by dataset."""
    facts: dict[str, Any] = {
        "license": str(notes.get("licence", "unknown")).split(",")[0].lower(),
        "library_name": "fingerprint_accel",
        "pipeline_tag": TASK,
        "tags": TAGS,
    }
    by_dataset: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for metric in metrics:
        entry = {"type": metric.metric, "value": metric.value, "name": metric.name or metric.metric}
        args = {"args": metric.args} if metric.args else {}
        by_dataset.setdefault((metric.dataset_type, metric.dataset), []).append({**entry, **args})
    results = [
        {
            "task": {"type": TASK, "name": "fingerprint verification"},
            "dataset": {"type": kind, "name": dataset},
            "metrics": measured,
        }
        for (kind, dataset), measured in by_dataset.items()
    ]
    if results:
        facts["model-index"] = [{"name": name, "results": results}]
    return yaml.safe_dump(facts, sort_keys=False)


def _metrics_section(metrics: list[Metric]) -> str:
    """Numbers that a release keeps with its model, as Markdown; rates are shares."""
    rows = [f"| {metric.dataset} | {metric.name or metric.metric} | {metric.value:.4g} |" for metric in metrics]
    head = "## Results\n\nRates are shares: 0.01 is 1 %.\n\n| dataset | metric | value |\n|---|---|--:|"
    return "\n".join([head, *rows]) + "\n"


def _calibration_section(calibration: Calibration) -> str:
    """Rates and thresholds as Markdown."""
    rows = ["| compared | prints | fingers | mated | non-mated | EER | FMR | threshold | FNMR |"]
    rows.append("|---|--:|--:|--:|--:|--:|--:|--:|--:|")
    for way in calibration.ways:
        rows += [f"| {' | '.join(cells)} |" for cells in _rows(way)]
    kind = "synthetic prints" if calibration.synthetic else "prints"
    told = f"Measured on {kind} of `{calibration.source}`, protocol {calibration.protocol}."
    if calibration.center:
        told += "\nTemplates are centred: the mean template of these prints is subtracted from each."
    if calibration.synthetic:
        told += (
            "\nThe thresholds do not hold on real fingers, which are more alike to the network than synthetic ones:"
            "\n`compare`, `search` and `demo` decide nothing by them. `fingerprint-accel calibrate` measures others."
        )
    return f"## Calibration\n\n{told}\n\n" + "\n".join(rows) + "\n"


def _rows(way: Way) -> list[list[str]]:
    """A line for each rate; what they share stands in the first."""
    counts = [f"{count:,}" for count in (way.prints, way.fingers, way.mated, way.nonmated)]
    shared = [compared(way.poses), *counts, f"{way.eer:.2%}"]
    rates = [
        [f"{100 * float(rate):g} %", f"{value:.4f}", f"{way.fnmr[rate]:.2%}"] for rate, value in way.thresholds.items()
    ] or [["-", "-", "-"]]
    return [[*shared, *rates[0]], *([""] * len(shared) + cells for cells in rates[1:])]
