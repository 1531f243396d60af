"""Cross-validation: evaluate the model of each fold on the prints that were held out of its training data."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fingerprint_accel.config import Config
from fingerprint_accel.data.loader import Subset, subset_of_prints
from fingerprint_accel.data.shards import open_dataset
from fingerprint_accel.data.splitting import split_prints
from fingerprint_accel.durable import write_json
from fingerprint_accel.evaluation.calibration import PROTOCOL, embedded
from fingerprint_accel.extraction.extractor import FingerprintExtractor
from fingerprint_accel.extraction.poses import UPRIGHT
from fingerprint_accel.metrics.curve import resolvable, sorted_curve
from fingerprint_accel.metrics.protocols import Scores, score_protocol
from fingerprint_accel.metrics.verification import FMRS, sensible_fmr
from fingerprint_accel.outputs import FolderKind, json_with
from fingerprint_accel.text import aligned

RESULTS = "cross_validation.json"
FOLDER = FolderKind(
    "a folder of a cross-validation", json_with(RESULTS, "folds", "pooled"), r"cross_validation\.json", whole=False
)


def held_out_prints(config: Config) -> Subset:
    """Return the prints that were not used for training in a run, but held out for validation.

    Args:
        config: configuration of the run.

    Raises:
        UserError: if the dataset cannot be opened, or is too small for the fold.
    """
    shards = open_dataset(config.data)
    return subset_of_prints(shards, split_prints(shards, config.reading).validation)


def measure_folds(folds: Sequence[Config], out: Path, device: str) -> str:
    """Evaluate the model of each fold on the prints held out of its training, and write `cross_validation.json`.

    All pairs of the held-out prints of a fold are compared, each print in a single pose. The pooled rates use the
    comparisons of all folds with a common threshold. The FNMR is measured at the smallest FMR in `FMRS` for which each
    fold has enough non-mated comparisons for ten false matches. If no FMR in `FMRS` meets this condition, each fold
    only needs enough comparisons for one false match. If this condition cannot be met either, no FNMR is measured.

    Args:
        folds: configurations of the trained folds.
        out: folder to write to.
        device: device that computes the embeddings.

    Returns:
        Text table with one row for each fold, and rows for the mean, the standard deviation and the pooled rates.
    """
    subsets = [held_out_prints(fold) for fold in folds]
    scores = [_scores(fold, subset, device) for fold, subset in zip(folds, subsets, strict=True)]
    fewest = min(len(found.nonmated) for found in scores)
    fmr = sensible_fmr(fewest) or next((rate for rate in reversed(FMRS) if resolvable(rate, fewest)), None)
    rows = [
        {"fold": fold.reading.fold, "fingers": subset.classes, "prints": len(subset)}
        | rates(found.mated, found.nonmated, fmr)
        for fold, subset, found in zip(folds, subsets, scores, strict=True)
    ]
    names = ["eer"] if fmr is None else ["eer", "fnmr"]
    values = {name: np.array([row[name] for row in rows]) for name in names}
    mated, nonmated = (np.concatenate([getattr(found, kind) for found in scores]) for kind in ("mated", "nonmated"))
    results: dict[str, Any] = {
        "data": folds[0].data,
        "split_by": folds[0].reading.split_by or "finger",
        "protocol": PROTOCOL,
        "fmr": fmr,
        "folds": rows,
        "mean": {name: float(found.mean()) for name, found in values.items()},
        "standard_deviation": {name: float(found.std(ddof=1)) for name, found in values.items()},
        "pooled": {
            "fingers": len(np.unique(np.concatenate([subset.shards.fingers[subset.rows] for subset in subsets]))),
            "prints": sum(map(len, subsets)),
            **rates(mated, nonmated, fmr),
        },
    }
    write_json(out / RESULTS, results)
    return _table(results)


def rates(mated: np.ndarray, nonmated: np.ndarray, fmr: float | None) -> dict[str, Any]:
    """Compute the EER, and the FNMR at a given FMR, from similarities.

    Args:
        mated: similarities of the mated comparisons.
        nonmated: similarities of the non-mated comparisons.
        fmr: FMR at which the FNMR is computed; None leaves out the FNMR.

    Returns:
        Dictionary with the numbers of comparisons `mated` and `nonmated`, the rate `eer`, and the rate `fnmr` unless
        `fmr` is None.
    """
    curve = sorted_curve(mated, nonmated)
    found = {"mated": len(mated), "nonmated": len(nonmated), "eer": curve.eer()[0]}
    return found if fmr is None else {**found, "fnmr": curve.fnmr_at_fmr(fmr)[0]}


def _scores(fold: Config, subset: Subset, device: str) -> Scores:
    """Compare all pairs of the held-out prints of a fold with the model of that fold."""
    extractor = FingerprintExtractor.from_pretrained(Path(fold.out) / "model").to(device)
    embeddings, fingers = embedded(extractor, subset, UPRIGHT, len(subset), sys.stderr.isatty())
    return score_protocol(PROTOCOL, embeddings, fingers, np.zeros_like(fingers), cells=extractor.cells)


def _table(results: dict[str, Any]) -> str:
    """Format the contents of `cross_validation.json` as a text table."""
    fmr = results["fmr"]
    counts = ("fingers", "prints", "mated", "nonmated")
    shares = ("eer",) if fmr is None else ("eer", "fnmr")
    header = ["fold", "fingers", "prints", "mated", "non-mated", "EER", *([] if fmr is None else [_at(fmr)])]
    lines = [(row["fold"], row) for row in results["folds"]]
    lines += [("mean", results["mean"]), ("standard deviation", results["standard_deviation"])]
    lines += [("pooled", results["pooled"])]
    rows = [
        [name, *(f"{row[count]:,}" if count in row else "" for count in counts), *(f"{row[at]:.2%}" for at in shares)]
        for name, row in lines
    ]
    return aligned([header, *rows], words=1)


def _at(fmr: float) -> str:
    """Return the column title for the FNMR at a given FMR, such as "FNMR at FMR 0.1 %"."""
    return f"FNMR at FMR {100 * fmr:g} %"
