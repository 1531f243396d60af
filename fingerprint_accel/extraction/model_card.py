"""The page that goes with an exported model: what it is, how to use it, what it was made of."""

from __future__ import annotations

from typing import Any

import yaml

from fingerprint_accel import __version__
from fingerprint_accel.config import ModelConfig
from fingerprint_accel.extraction.calibration import NOTE, Calibration, Way
from fingerprint_accel.extraction.model_index import NOTE as METRICS
from fingerprint_accel.extraction.model_index import Metric, compared, model_index, noted_metrics

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


TAGS = ["fingerprint", "biometrics", "embedding", "deepprint", "pytorch"]


def front_matter(name: str, notes: dict[str, Any]) -> str:
    """What model hubs read at the top of a card, as YAML; the licence is the first word of the note of that name."""
    licence = str(notes.get("licence", "unknown")).split(",")[0].lower()
    facts: dict[str, Any] = {
        "license": licence,
        "library_name": "fingerprint_accel",
        "pipeline_tag": "image-feature-extraction",
        "tags": TAGS,
    }
    if index := model_index(name, notes):
        facts["model-index"] = index
    return yaml.safe_dump(facts, sort_keys=False)


def model_card(name: str, model: ModelConfig, ppi: int, canvas: int, enhanced: bool, notes: dict[str, Any]) -> str:
    """Markdown for a model exported to a folder called `name`; `notes` become a list of facts, and tables of metrics
    and of the calibration.

    Raises:
        UserError: metrics or a calibration that cannot be read.
    """
    text = CARD.format(
        front_matter=front_matter(name, notes),
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
    metrics, calibration = noted_metrics(notes), Calibration.from_notes(notes)
    parts = [text, facts, metrics and metrics_section(metrics), calibration and calibration_section(calibration)]
    return "\n".join(part for part in parts if part)


def metrics_section(metrics: list[Metric]) -> str:
    """Numbers that a release keeps with its model, as Markdown; rates are shares."""
    rows = [f"| {metric.dataset} | {metric.name or metric.metric} | {metric.value:.4g} |" for metric in metrics]
    return (
        "## Results\n\nRates are shares: 0.01 is 1 %.\n\n"
        + "\n".join(["| dataset | metric | value |", "|---|---|--:|", *rows])
        + "\n"
    )


def calibration_section(calibration: Calibration) -> str:
    """Rates and thresholds as Markdown."""
    header = "| compared | prints | fingers | mated | non-mated | EER | FMR | threshold | FNMR |"
    rows = [header, "|---|--:|--:|--:|--:|--:|--:|--:|--:|"]
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
    ]
    return [
        [*(shared if number == 0 else [""] * len(shared)), *cells]
        for number, cells in enumerate(rates or [["-", "-", "-"]])
    ]
