"""One evaluation: embeddings, comparisons, error rates, files to read."""

from __future__ import annotations

import io
import json
import platform
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from fingerprint_accel import __version__
from fingerprint_accel.data.inspection import contact_sheet
from fingerprint_accel.data.shards import Shards, open_dataset
from fingerprint_accel.errors import UserError
from fingerprint_accel.evaluation.bootstrap import bootstrap_eer
from fingerprint_accel.evaluation.history import find_metrics
from fingerprint_accel.evaluation.metrics import DEFINITIONS, TAR_FARS, Metrics, compute_metrics
from fingerprint_accel.evaluation.plots import det_png, histogram_png, training_png
from fingerprint_accel.evaluation.protocols import PROTOCOLS, Scores, score_protocol
from fingerprint_accel.evaluation.report import report_html
from fingerprint_accel.extraction.extractor import FingerprintExtractor, open_extractor

SAMPLED_FINGERS, SAMPLED_IMPRESSIONS = 4, 4
SAMPLES_WIDTH = 1280  # pixels, at most; the page is about 960 wide


@dataclass(frozen=True)
class Evaluation:
    """Scores, error rates, and the 95 % bootstrap interval of the EER over fingers."""

    scores: Scores
    metrics: Metrics
    eer_interval: tuple[float, float]

    def rates(self) -> list[tuple[str, str]]:
        """Names and values to print; a dash where the comparisons cannot resolve a rate."""
        metrics = self.metrics
        too_few = f"- (needs more than {metrics.nonmated:,} non-mated comparisons)"

        def rate(value: float | None) -> str:
            return too_few if value is None else f"{value:.2%}"

        low, high = self.eer_interval
        rows = [
            ("EER", f"{metrics.eer:.2%}"),
            ("EER, 95 % interval over fingers", f"{low:.2%} to {high:.2%}"),
            ("FMR100", rate(metrics.fmr100)),
            ("FMR1000", rate(metrics.fmr1000)),
            ("ZeroFMR", rate(metrics.zero_fmr)),
        ]
        rows += [(f"TAR at FAR {far:g}", rate(metrics.tar.get(far))) for far in TAR_FARS]
        rows += [("mated comparisons", f"{metrics.mated:,}"), ("non-mated comparisons", f"{metrics.nonmated:,}")]
        return rows


def evaluate(extractor: FingerprintExtractor, shards: Shards, protocol: str, batch_size: int = 64) -> Evaluation:
    """Embeds a dataset and compares its prints.

    Raises:
        UserError: the dataset does not fit the model, or has too few fingers for the protocol.
    """
    embeddings = extractor.extract(shards, batch_size=batch_size)
    scores = score_protocol(protocol, embeddings, shards.fingers, shards.impressions)
    metrics = compute_metrics(scores.mated, scores.nonmated)
    return Evaluation(scores, metrics, bootstrap_eer(scores))


def _samples_png(shards: Shards) -> bytes:
    sheet = contact_sheet(shards, SAMPLED_FINGERS, columns=SAMPLED_IMPRESSIONS).convert("L")
    sheet.thumbnail((SAMPLES_WIDTH, 4 * SAMPLES_WIDTH))
    buffer = io.BytesIO()
    sheet.save(buffer, format="PNG")
    return buffer.getvalue()


def draw_pictures(model: Path, shards: Shards, evaluation: Evaluation) -> dict[str, bytes]:
    """PNG files by name: `det`, `scores`, `samples`, and `training` where the model lies in a run that has records."""
    pictures = {
        "det": det_png(evaluation.scores, evaluation.metrics),
        "scores": histogram_png(evaluation.scores, evaluation.metrics),
        "samples": _samples_png(shards),
    }
    records = find_metrics(model)
    training = training_png(records) if records else None
    return {**pictures, "training": training} if training else pictures


def evaluate_command(model: Path, dataset: Path, protocol: str, out: Path, batch_size: int) -> None:
    """Evaluates and writes `metrics.json`, `report.html` and its pictures into `out`; prints a table.

    Raises:
        UserError: a model or dataset that cannot be used.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; give --out a folder")
    if batch_size < 1:
        raise UserError(f"--batch-size {batch_size}: must be at least 1")
    extractor = open_extractor(model)
    shards = open_dataset(dataset)
    evaluation = evaluate(extractor, shards, protocol, batch_size)
    pictures = draw_pictures(model, shards, evaluation)
    config = extractor.model.config
    facts = [
        ("model", extractor.origin),
        ("network", f"DeepPrint {config.variant}, {config.trunk}, {config.embedding_dim} numbers"),
        ("dataset", str(dataset)),
        ("prints", f"{len(shards)}"),
        ("fingers", f"{shards.info.fingers}"),
        ("ppi", f"{shards.info.ppi}"),
        ("versions", f"fingerprint_accel {__version__}, torch {torch.__version__}, Python {platform.python_version()}"),
    ]
    values = {
        "protocol": protocol,
        "protocol_definition": PROTOCOLS[protocol],
        **asdict(evaluation.metrics),
        "tar": {f"{far:g}": evaluation.metrics.tar.get(far) for far in TAR_FARS},
        "eer_interval_95": list(evaluation.eer_interval),
        "nonmated_possible": evaluation.scores.pairs.nonmated_possible,
        "facts": dict(facts),
        "definitions": DEFINITIONS,
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "metrics.json").write_text(json.dumps(values, indent=2) + "\n")
    (out / "training.png").unlink(missing_ok=True)  # an earlier model's, where this one has none
    for name, png in pictures.items():
        (out / f"{name}.png").write_bytes(png)
    rates = evaluation.rates()
    name = model.parent.name if model.name == "model" else model.name
    title = f"{name} on {dataset.name}"
    page = report_html(title, facts, rates, pictures, shards, evaluation.scores, protocol)
    (out / "report.html").write_text(page)
    width = max(len(name) for name, _ in rates)
    print("\n" + "\n".join(f"{name:<{width}}  {value}" for name, value in rates))
    print(f"\nreport: {out / 'report.html'}")
