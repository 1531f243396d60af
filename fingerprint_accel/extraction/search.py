"""Enrolment and search: prints under their names, and the references of a gallery that are most like a print."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from fingerprint_accel.data.shards import Shards, open_dataset
from fingerprint_accel.errors import UserError, require
from fingerprint_accel.extraction.approximate import ApproximateSearch
from fingerprint_accel.extraction.calibration import Basis, decision_basis
from fingerprint_accel.extraction.extractor import FingerprintExtractor, Image
from fingerprint_accel.extraction.gallery import Gallery
from fingerprint_accel.similarity import fused


def prints_to_enroll(prints: list[Path]) -> tuple[Shards | list[Path], list[str], list[str]]:
    """One dataset folder or image files -> what `FingerprintExtractor.extract` takes, names, and finger of each print.

    Raises:
        UserError: a folder among images.
    """
    if len(prints) == 1 and prints[0].is_dir():
        shards = open_dataset(prints[0])
        keys = shards.table["finger_key"].to_pylist()
        return shards, [f"{key}/{number}" for key, number in zip(keys, shards.impressions, strict=True)], keys
    for path in prints:
        require(not path.is_dir(), f"{path}: a folder; give image files, or one dataset folder alone")
    fingers = [str(path.parent if path.parent.name else path.resolve().parent.name) for path in prints]
    return prints, [str(path) for path in prints], fingers


def fused_by_finger(embeddings: np.ndarray, fingers: list[str], cells: int) -> tuple[np.ndarray, list[str]]:
    """embeddings (N, D) float32 of unit length, and the finger of each print -> (F, D), one template for each finger
    (see `similarity.fused`), and the F fingers in the order in which they come first."""
    rows: dict[str, list[int]] = {}
    for row, finger in enumerate(fingers):
        rows.setdefault(finger, []).append(row)
    return np.stack([fused(embeddings[here], cells) for here in rows.values()]), list(rows)


def open_gallery(folder: Path, extractor: FingerprintExtractor) -> Gallery:
    """A gallery that this model has filled; raises UserError where it is none, or another model's."""
    gallery = Gallery(folder)
    if gallery.model != extractor.identity:
        raise UserError(
            f"{folder}: filled by another model ({gallery.model}, not {extractor.identity}); "
            "give --model the one that filled it, or another gallery"
        )
    return gallery


def _basis(extractor: FingerprintExtractor) -> Basis:
    return decision_basis(extractor.notes, len(extractor.search_poses))


def columns(extractor: FingerprintExtractor) -> list[str]:
    """Names of what `find` tells of a reference; "match at FMR" only for a model that may decide."""
    return ["rank", "similarity", *(["match at FMR"] if _basis(extractor).thresholds else []), "name"]


def find(
    extractor: FingerprintExtractor, gallery: Gallery, probe: Image, ppi: int, top: int, indexed: bool = False
) -> tuple[list[list[Any]], list[str]]:
    """Searches a gallery for the references most similar to an image.

    With `indexed` only those that an index by FAISS proposes are compared. The best candidates of a dense model are
    compared again, with the probe in every pose of `search_poses`.

    Returns:
        A row of `columns` for each reference, best first; "match at FMR" is the lowest false match rate of the model's
        thresholds at which it passes, "-" for none. And two lines: what was searched in which time, and what decisions
        rest on.

    Raises:
        UserError: an image without a print, an empty gallery, `top` below 1, or an index without FAISS.
    """
    require(top >= 1, f"--top {top}: must be at least 1")
    embedding = extractor.extract([probe], ppi, extractor.search_poses, progress=False)
    started = time.perf_counter()
    index = ApproximateSearch(gallery) if indexed else None
    if index and index.added:
        seconds = time.perf_counter() - started
        print(f"{index.added:,} prints added to the index in {seconds:.1f} s", file=sys.stderr)
    started = time.perf_counter()
    hits = index.search(embedding, top) if index else gallery.search(embedding, top, extractor.device)
    milliseconds = 1000 * (time.perf_counter() - started)
    basis = _basis(extractor)
    thresholds = sorted((float(rate), threshold) for rate, threshold in basis.thresholds.items())
    rows: list[list[Any]] = []
    for value, name in zip(hits.similarity[0].tolist(), gallery.names(hits.row[0]), strict=True):
        passed = next((f"{rate:g}" for rate, threshold in thresholds if value >= threshold), "-")
        rows.append([len(rows) + 1, f"{value:.3f}", *([passed] if thresholds else []), name])
    how = "searched by index among" if index else "compared with"
    rates = "; the rates are those of one comparison" if thresholds else ""
    return rows, [f"{how} {len(gallery):,} prints in {milliseconds:.0f} ms{rates}", basis.line]
