"""Search: the references of a gallery that are most like a print, and what is known of them."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from fingerprint_accel.data.image_record import SINGLE_FINGERS
from fingerprint_accel.data.layouts import LayoutError, finger_position, position_name
from fingerprint_accel.errors import UserError, require
from fingerprint_accel.extraction.approximate import ApproximateSearch
from fingerprint_accel.extraction.calibration import Basis, decision_basis
from fingerprint_accel.extraction.extractor import FingerprintExtractor, Image
from fingerprint_accel.extraction.gallery import Gallery
from fingerprint_accel.extraction.gallery_files import Known


def open_gallery(folder: Path, extractor: FingerprintExtractor) -> Gallery:
    """A gallery that this model has filled; raises UserError where it is none, or another model's."""
    gallery = Gallery(folder)
    gallery.check_model(extractor.identity)
    return gallery


def _basis(extractor: FingerprintExtractor) -> Basis:
    return decision_basis(extractor.notes, len(extractor.search_poses))


def columns(extractor: FingerprintExtractor) -> list[str]:
    """Names of what `find` tells of a comparison; "match at FMR" only for a model that may decide."""
    return ["rank", "similarity", *(["match at FMR"] if _basis(extractor).thresholds else []), "name"]


def position_code(text: str) -> int:
    """Finger position code of `--position`: `7`, `left_index`; 0 for an empty text.

    Raises:
        UserError: it is not one finger.
    """
    if not text:
        return 0
    try:
        code = finger_position(text)
    except LayoutError as error:
        raise UserError(f"--position {text}: {error}") from error
    require(code > 0 and code in SINGLE_FINGERS, f"--position {text}: must be one finger, as 7 or left_index")
    return code


def find(
    extractor: FingerprintExtractor,
    gallery: Gallery,
    probe: Image,
    ppi: int,
    top: int,
    indexed: bool = False,
    position: int = 0,
) -> tuple[list[list[Any]], list[Known], list[str]]:
    """Searches a gallery for the references most similar to an image.

    With `indexed` only those that an index by FAISS proposes are compared. With `position` only prints of that finger
    position are, and prints whose position is not known. The best candidates of a dense model are compared again, with
    the probe in every pose of `search_poses`.

    Returns:
        A row of `columns` for each reference, best first; "match at FMR" is the lowest false match rate of the model's
        thresholds at which it passes, "-" for none. What is known of each. And two lines: what was searched in which
        time, and what decisions rest on.

    Raises:
        UserError: an image without a print or with too little of one, an empty gallery or one without a print of that
            position, `top` below 1, or an index without FAISS.
    """
    require(top >= 1, f"--top {top}: must be at least 1")
    among = gallery.of_position(position) if position and len(gallery) else None
    embedding = extractor.embed_to_compare([probe], ppi, extractor.search_poses)
    started = time.perf_counter()
    index = ApproximateSearch(gallery) if indexed else None
    if index and index.added:
        seconds = time.perf_counter() - started
        print(f"{index.added:,} prints added to the index in {seconds:.1f} s", file=sys.stderr)
    started = time.perf_counter()
    hits = index.search(embedding, top, among) if index else gallery.search(embedding, top, extractor.device, among)
    milliseconds = 1000 * (time.perf_counter() - started)
    basis = _basis(extractor)
    thresholds = sorted((float(rate), threshold) for rate, threshold in basis.thresholds.items())
    rows: list[list[Any]] = []
    known = gallery.known(hits.row[0])
    for value, each in zip(hits.similarity[0].tolist(), known, strict=True):
        passed = next((f"{rate:g}" for rate, threshold in thresholds if value >= threshold), "-")
        rows.append([len(rows) + 1, f"{value:.3f}", *([passed] if thresholds else []), each.name])
    how = "searched by index among" if index else "compared with"
    count = f"{len(gallery):,} prints"
    if among is not None:
        count = f"{int(among.sum()):,} of {count}, those of the {_words(position)} or of unknown position,"
    rates = "; the rates are those of one comparison" if thresholds else ""
    return rows, known, [f"{how} {count} in {milliseconds:.0f} ms{rates}", basis.line]


def details(known: list[Known]) -> tuple[list[str], list[list[str]]]:
    """Titles and texts of what is known of references beside their names: person, finger and source, those of them that
    any of the references has; a source that is the name says nothing more."""
    told = {
        "person": [each.person for each in known],
        "finger": [_words(each.position) for each in known],
        "source": ["" if each.source == each.name else each.source for each in known],
    }
    titles = [title for title, texts in told.items() if any(texts)]
    return titles, [[told[title][row] or "-" for title in titles] for row in range(len(known))]


def _words(position: int) -> str:
    return position_name(position).replace("_", " ")
