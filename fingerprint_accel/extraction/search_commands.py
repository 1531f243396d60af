"""Enrolment and search on the command line."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fingerprint_accel.data.shards import Shards, open_dataset
from fingerprint_accel.errors import UserError
from fingerprint_accel.extraction.approximate import ApproximateSearch
from fingerprint_accel.extraction.calibration import Basis, decision_basis
from fingerprint_accel.extraction.extractor import FingerprintExtractor, Image, open_extractor
from fingerprint_accel.extraction.gallery import Gallery
from fingerprint_accel.extraction.gallery_files import KIND
from fingerprint_accel.outputs import check_folder
from fingerprint_accel.similarity import fused


def enroll_command(folder: Path, prints: list[Path], model: str, ppi: int, batch_size: int, fuse: bool = False) -> None:
    """Embeds images, or a dataset, and adds them to a gallery; with `fuse` one template of all prints of each finger.

    Raises:
        UserError: a gallery of another model, an image without a print, or a dataset among images.
    """
    extractor = open_extractor(model)
    source: Shards | list[Path]
    if len(prints) == 1 and prints[0].is_dir():
        source = open_dataset(prints[0])
        impressions = source.impressions
        keys = source.table["finger_key"].to_pylist()
        names = [f"{key}/{impression}" for key, impression in zip(keys, impressions, strict=True)]
        fingers = keys
    else:
        folders = [str(path) for path in prints if path.is_dir()]
        if folders:
            raise UserError(f"{folders[0]}: a folder; give image files, or one dataset folder alone")
        source, names = list(prints), [str(path) for path in prints]
        fingers = [str(path.parent if path.parent.name else path.resolve().parent.name) for path in prints]
    check_folder(folder, KIND, inputs=prints)
    if folder.is_dir() and any(folder.iterdir()):
        open_gallery(folder, extractor)  # asked before the work; an empty gallery is made after it
    embeddings = extractor.extract(source, ppi, batch_size=batch_size)
    if fuse:
        embeddings, names = fused_by_finger(embeddings, fingers, extractor.cells)
    dims = extractor.model.config.embedding_dim
    gallery = Gallery.open_or_create(folder, dims, extractor.identity, extractor.cells)
    new = gallery.append(embeddings, names)
    there = f" ({len(names) - new:,} were there already)" if new < len(names) else ""
    what = f"fingers enrolled from {len(source):,} prints" if fuse else "prints enrolled"
    print(f"{folder}: {new:,} {what}{there}, {len(gallery):,} in all")


def fused_by_finger(embeddings: np.ndarray, fingers: list[str], cells: int) -> tuple[np.ndarray, list[str]]:
    """One template for each finger, see `similarity.fused`, and the fingers in the order in which they come first.

    Args:
        embeddings: (N, D) float32 of unit length.
        fingers: N, the finger of each print.
        cells: of dense templates, else 0.

    Returns:
        (F, D) float32 of unit length, and F fingers.
    """
    rows: dict[str, list[int]] = {}
    for row, finger in enumerate(fingers):
        rows.setdefault(finger, []).append(row)
    return np.stack([fused(embeddings[here], cells) for here in rows.values()]), list(rows)


def search_basis(extractor: FingerprintExtractor) -> Basis:
    """What `find` may decide by."""
    return decision_basis(extractor.notes, len(extractor.search_poses))


@dataclass(frozen=True)
class Hit:
    """A reference that a search has found.

    Attributes:
        name: as it was enrolled.
        similarity: to the probe.
        rate: lowest false match rate of the model's thresholds at which it passes; "-" for none, and where the model
            has no thresholds to decide by.
    """

    name: str
    similarity: float
    rate: str


def find(
    extractor: FingerprintExtractor, gallery: Gallery, probe: Image, ppi: int, top: int, indexed: bool = False
) -> tuple[list[Hit], float]:
    """The references of a gallery most similar to an image, best first, and the seconds that the search took.

    With `indexed` only those that an index by FAISS proposes are compared. The best candidates of a dense model are
    compared again, with the probe in every pose of `search_poses`.

    Raises:
        UserError: an image without a print, an empty gallery, `top` below 1, or an index without FAISS.
    """
    if top < 1:
        raise UserError(f"--top {top}: must be at least 1")
    embedding = extractor.extract([probe], ppi, extractor.search_poses, progress=False)
    index = _index(gallery) if indexed else None
    started = time.perf_counter()
    hits = index.search(embedding, top) if index else gallery.search(embedding, top, extractor.device)
    seconds = time.perf_counter() - started
    thresholds = sorted(search_basis(extractor).thresholds.items(), key=lambda item: float(item[0]))
    found = []
    for value, name in zip(hits.similarity[0].tolist(), gallery.names(hits.row[0]), strict=True):
        passed = next((f"{float(rate):g}" for rate, threshold in thresholds if value >= threshold), "-")
        found.append(Hit(name, value, passed))
    return found, seconds


def _index(gallery: Gallery) -> ApproximateSearch:
    started = time.perf_counter()
    index = ApproximateSearch(gallery)
    if index.added:
        print(f"{index.added:,} prints added to the index in {time.perf_counter() - started:.1f} s", file=sys.stderr)
    return index


def search_command(folder: Path, probe: Path, model: str, ppi: int, top: int, index: bool = False) -> None:
    """Prints the references most similar to an image, and decisions where the model is calibrated on real fingers.

    Raises:
        UserError: a gallery of another model or with damage, or an image without a print.
    """
    extractor = open_extractor(model)
    gallery = open_gallery(folder, extractor)
    hits, seconds = find(extractor, gallery, probe, ppi, top, index)
    basis = search_basis(extractor)
    print("rank  similarity  " + ("match at FMR  " if basis.thresholds else "") + "name")
    for rank, hit in enumerate(hits, 1):
        print(f"{rank:>4}  {hit.similarity:>10.3f}  " + (f"{hit.rate:>12}  " if basis.thresholds else "") + hit.name)
    how = "searched by index among" if index else "compared with"
    rates = "; the rates are those of one comparison" if basis.thresholds else ""
    print(f"\n{how} {len(gallery):,} prints in {1000 * seconds:.0f} ms{rates}\n{basis.line}")


def open_gallery(folder: Path, extractor: FingerprintExtractor) -> Gallery:
    """A gallery that this model has filled.

    Raises:
        UserError: not a gallery, or another model's.
    """
    gallery = Gallery(folder)
    if gallery.model != extractor.identity:
        raise UserError(
            f"{folder}: filled by another model ({gallery.model}, not {extractor.identity}); "
            "give --model the one that filled it, or another gallery"
        )
    return gallery
