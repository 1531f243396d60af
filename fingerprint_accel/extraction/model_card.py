"""The model card: `README.md` of an exported model, for readers and for model hubs such as Hugging Face.

The front matter follows https://github.com/huggingface/hub-docs/blob/main/modelcard.md.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import yaml

from fingerprint_accel import __version__
from fingerprint_accel.config import ModelConfig
from fingerprint_accel.errors import UserError, require
from fingerprint_accel.extraction.calibration import NOTE, Calibration, Way
from fingerprint_accel.untrusted import Fields

METRICS = "metrics"
"""Key in the notes of a model under which measured metrics are stored."""
PIPELINE = "image-feature-extraction"
"""Name of the model's task on model hubs."""
TASK = {"type": "fingerprint-verification", "name": "Fingerprint verification"}
"""Task that the metrics were measured for, as model hubs name it."""
DATASET_TYPE = "fingerprints"
INTERVAL = "interval_95"
"""Key in `Metric.args` of the 95 % interval of a metric."""
RATES = ("eer", "fmr", "fnmr", "fnir", "fta")
"""Identifiers of the metrics that are shown in percent."""
TAGS = ["fingerprint", "biometrics", "embedding", "deepprint", "pytorch"]
CARD = """---
{front_matter}---

# {title}

This model maps an image of a fingerprint to an embedding of fixed length: {dims} numbers of unit length.
{similarity}
It works on canvases of {canvas} x {canvas} pixels at {ppi} ppi{enhanced}. Written by fingerprint_accel {version}.

```python
from fingerprint_accel import FingerprintExtractor

extractor = FingerprintExtractor.from_pretrained("{name}")
embeddings = extractor.extract(["a.png", "b.png"], ppi=500)  # (2, {dims}) float32
print(extractor.compare("a.png", "b.png", ppi=500))
```
"""
PLAIN = "The similarity of two prints is the dot product of their embeddings."
DENSE = (
    "The embedding has a part for each cell of a grid over the finger. The similarity of two prints is computed over\n"
    "the cells that both prints show; `extractor.compare` does so."
)


@dataclass(frozen=True)
class Metric:
    """One measured metric of a model.

    Attributes:
        dataset: name of the dataset that the metric was measured on.
        metric: identifier of the metric, such as "eer" or "fnmr".
        value: value of the metric; rates are fractions, so 0.01 means 1 %.
        name: name of the metric for readers; empty for the identifier.
        dataset_type: identifier of the dataset or of its type, as model hubs need it.
        args: settings of the measurement, such as the FMR of an FNMR, and `interval_95`.
    """

    dataset: str
    metric: str
    value: float
    name: str = ""
    dataset_type: str = DATASET_TYPE
    args: dict[str, Any] = field(default_factory=dict)


def model_card(name: str, model: ModelConfig, ppi: int, canvas: int, enhanced: bool, notes: dict[str, Any]) -> str:
    """Return the card of a model as Markdown with YAML front matter.

    Args:
        name: name of the model folder.
        model: configuration of the network.
        ppi: resolution of the canvases (the images that the network takes), pixels per inch.
        canvas: side of the canvases, pixels.
        enhanced: whether the ridges of the canvases are enhanced.
        notes: notes of the model. Metrics and the calibration become tables, other notes become a list.

    Raises:
        UserError: if the metrics or the calibration cannot be read.
    """
    metrics, calibration = noted_metrics(notes), Calibration.from_notes(notes)
    measured = metrics + (_calibration_metrics(calibration) if calibration else [])
    text = CARD.format(
        front_matter=_front_matter(name, notes, measured),
        title=f"DeepPrint {model.variant} ({model.trunk})",
        dims=model.embedding_dim,
        similarity=DENSE if model.variant.endswith("Dense") else PLAIN,
        canvas=canvas,
        ppi=ppi,
        enhanced=", ridges enhanced as `import --enhance` does" if enhanced else "",
        version=__version__,
        name=name,
    )
    facts = "".join(
        f"- {key.replace('_', ' ')}: {value}\n" for key, value in notes.items() if key not in (NOTE, METRICS)
    )
    facts = f"## Facts\n\n{facts}" if facts else ""
    parts = [text, facts, metrics and _metrics_section(metrics), calibration and _calibration_section(calibration)]
    return "\n".join(part for part in parts if part)


def noted_metrics(notes: dict[str, Any]) -> list[Metric]:
    """Return the metrics that the notes of a model contain.

    Raises:
        UserError: if an entry does not have the fields of `Metric`.
    """
    entries = notes.get(METRICS) or []
    if not isinstance(entries, list) or not all(isinstance(values, dict) for values in entries):
        raise UserError("the metrics of the model cannot be read; each needs dataset, metric and value")
    return [_metric(Fields(values, "the metrics of the model", "measure them again")) for values in entries]


def _metric(fields: Fields) -> Metric:
    args = fields.part("args")
    if INTERVAL in args.values:
        require(len(args.numbers(INTERVAL)) == 2, f"metrics of the model: {INTERVAL} needs two numbers")
    return Metric(
        dataset=fields.text("dataset"),
        metric=fields.text("metric"),
        value=fields.number("value"),
        name=fields.text("name", default=""),
        dataset_type=fields.text("dataset_type", default=DATASET_TYPE),
        args=args.values,
    )


def _calibration_metrics(calibration: Calibration) -> list[Metric]:
    """Return the EER and FNMR of a calibration as metrics, once for each number of poses that it was measured with."""
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
    """Return a text for the number of poses of a comparison: "as they are" for 1, "best of 5 poses" for 5."""
    return "as they are" if poses == 1 else f"best of {poses} poses"


def _front_matter(name: str, notes: dict[str, Any], metrics: list[Metric]) -> str:
    """Return the YAML front matter of the model card, which model hubs read.

    The license is the note `licence` up to the first comma. `model-index` contains the metrics, grouped by dataset.
    """
    facts: dict[str, Any] = {
        "license": str(notes.get("licence", "unknown")).split(",")[0].lower(),
        "library_name": "fingerprint_accel",
        "pipeline_tag": PIPELINE,
        "tags": TAGS,
    }
    by_dataset: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for metric in metrics:
        entry: dict[str, Any] = {"type": metric.metric, "value": metric.value, "name": metric.name or metric.metric}
        args = {"args": metric.args} if metric.args else {}
        entry = {**entry, **args, "verified": False}  # only the author of the model has measured it
        by_dataset.setdefault((metric.dataset_type, metric.dataset), []).append(entry)
    results = [
        {
            "task": dict(TASK),
            "dataset": {"type": kind, "name": dataset},
            "metrics": measured,
        }
        for (kind, dataset), measured in by_dataset.items()
    ]
    if results:
        facts["model-index"] = [{"name": name, "results": results}]
    return yaml.safe_dump(facts, sort_keys=False)


def _metrics_section(metrics: list[Metric]) -> str:
    """Return a Markdown table of the metrics, with a row for each dataset and a column for each metric."""
    names = list(dict.fromkeys(metric.name or metric.metric for metric in metrics))
    datasets: dict[str, dict[str, str]] = {}
    for metric in metrics:
        datasets.setdefault(metric.dataset, {})[metric.name or metric.metric] = _shown(metric)
    rows = [f"| {name} | {' | '.join(found.get(each, '') for each in names)} |" for name, found in datasets.items()]
    head = ["## Results", "", f"| dataset | {' | '.join(names)} |", f"|---|{'--:|' * len(names)}"]
    intervals = "In parentheses: 95 % intervals, by bootstrap over fingers.\n"
    note = ["", intervals] if any(INTERVAL in metric.args for metric in metrics) else [""]
    return "\n".join([*head, *rows, *note])


def _shown(metric: Metric) -> str:
    """Format the value of a metric and its interval, for example "1.11 % (0.00 to 2.86)"."""
    if metric.metric not in RATES:
        return f"{metric.value:.4g}"
    low, high = metric.args.get(INTERVAL, (None, None))
    interval = "" if low is None else f" ({100 * low:.2f} to {100 * high:.2f})"
    return f"{100 * metric.value:.2f} %{interval}"


def _calibration_section(calibration: Calibration) -> str:
    """Return the rates and thresholds of a calibration as a section in Markdown."""
    rows = ["| compared | prints | fingers | mated | non-mated | EER | FMR | threshold | FNMR |"]
    rows.append("|---|--:|--:|--:|--:|--:|--:|--:|--:|")
    for way in calibration.ways:
        rows += [f"| {' | '.join(cells)} |" for cells in _rows(way)]
    kind = "synthetic prints" if calibration.synthetic else "prints"
    basis = f"Measured on {kind} of `{calibration.source}`, protocol {calibration.protocol}."
    if calibration.center:
        basis += "\nTemplates are centred: the mean template of these prints is subtracted from every template."
    if calibration.synthetic:
        basis += (
            "\nThe thresholds do not hold on real fingers, because the network gives different real fingers a higher"
            "\nsimilarity than different synthetic fingers. Therefore `compare`, `search` and `demo` show no decision."
            "\n`fingerprint-accel calibrate` measures thresholds on your own prints."
        )
    return f"## Calibration\n\n{basis}\n\n" + "\n".join(rows) + "\n"


def _rows(way: Way) -> list[list[str]]:
    """Return table rows for one comparison method: one row per FMR. The first row also contains the EER and counts."""
    counts = [f"{count:,}" for count in (way.prints, way.fingers, way.mated, way.nonmated)]
    shared = [compared(way.poses), *counts, f"{way.eer:.2%}"]
    rates = [
        [f"{100 * float(rate):g} %", f"{value:.4f}", f"{way.fnmr[rate]:.2%}"] for rate, value in way.thresholds.items()
    ] or [["-", "-", "-"]]
    return [[*shared, *rates[0]], *([""] * len(shared) + cells for cells in rates[1:])]
