"""Search a gallery for the prints that are most similar to an image, for `fingerprint-accel search` and the demo.

A gallery is a folder with the embeddings of enrolled prints, which are called references.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from fingerprint_accel.data.image_record import SINGLE_FINGERS
from fingerprint_accel.data.layouts import LayoutError, finger_position, position_name
from fingerprint_accel.errors import UserError, require
from fingerprint_accel.extraction.calibration import Basis, decision_basis
from fingerprint_accel.extraction.extractor import FingerprintExtractor, Image
from fingerprint_accel.extraction.galleries import EnrolledPrints, open_enrolled, open_index
from fingerprint_accel.extraction.gallery_parts import Known
from fingerprint_accel.text import printable


def open_gallery(place: Path | str, extractor: FingerprintExtractor) -> EnrolledPrints:
    """Open a gallery, and check that its embeddings were computed by this model.

    Args:
        place: gallery folder, or URL of a PostgreSQL database.
        extractor: the model.

    Raises:
        UserError: if there is no gallery at this place, or it was filled by another model.
    """
    gallery = open_enrolled(place)
    gallery.check_model(extractor.identity)
    return gallery


def _basis(extractor: FingerprintExtractor) -> Basis:
    """Return the thresholds of the model that apply to a search, and their source."""
    return decision_basis(extractor.notes, len(extractor.search_poses))


def columns(extractor: FingerprintExtractor) -> list[str]:
    """Return the column titles of the table that `find` returns.

    The column "match at FMR" exists only if the model has thresholds that may be used for decisions.
    """
    return ["rank", "similarity", *(["match at FMR"] if _basis(extractor).thresholds else []), "name"]


def position_code(text: str) -> int:
    """Convert the value of the option `--position` to a finger position code of ANSI/NIST-ITL.

    Args:
        text: code or name of a finger position, for example "7" or "left_index"; may be empty.

    Returns:
        The code; 0 for an empty text.

    Raises:
        UserError: if the text is not the position of a single finger.
    """
    if not text:
        return 0
    try:
        code = finger_position(text)
    except LayoutError as error:
        raise UserError(f"--position {text}: {error}") from error
    require(code > 0 and code in SINGLE_FINGERS, f"--position {text}: must be one finger, for example 7 or left_index")
    return code


def find(
    extractor: FingerprintExtractor,
    gallery: EnrolledPrints,
    probe: Image,
    ppi: int,
    top: int,
    indexed: bool = False,
    position: int = 0,
    person: str = "",
) -> tuple[list[list[Any]], list[Known], list[str]]:
    """Search a gallery for the references that are most similar to an image.

    With a dense model (see `similarity`), the best candidates are compared again with the probe in all poses of
    `FingerprintExtractor.search_poses`.

    Args:
        extractor: model that filled the gallery.
        gallery: gallery to search.
        probe: image file, PIL image, or uint8 array (H, W) or (H, W, 3), ridges dark.
        ppi: resolution of the probe, pixels per inch.
        top: number of references to return.
        indexed: compare only candidates from an index; see `galleries.open_index`.
        position: finger position code; only references of this position and of unknown position are compared. 0 for
            all.
        person: compare only references of this person; empty for all.

    Returns:
        Three lists. The first has one row per reference, best first, with the columns that `columns` returns. "match at
        FMR" is the lowest FMR at whose threshold the reference matches, or "-". The second has the record of each
        reference. The third has two lines of text: a description of the search, and the source of the thresholds.

    Raises:
        UserError: if the image shows no print or too small a part of one, if the gallery has no print to compare with,
            if `top` is below 1, or if `indexed` is set and the index cannot be built.
    """
    require(top >= 1, f"--top {top}: must be at least 1")
    among = gallery.selected(position, person) if len(gallery) else None
    embedding = extractor.embed_to_compare([probe], ppi, extractor.search_poses)
    started = time.perf_counter()
    index = open_index(gallery) if indexed else None
    if index and index.added:
        seconds = time.perf_counter() - started
        print(f"{index.added:,} prints added to the index in {seconds:.1f} s", file=sys.stderr)
    started = time.perf_counter()
    found = index.search(embedding, top, among) if index else gallery.search(embedding, top, extractor.device, among)
    milliseconds = 1000 * (time.perf_counter() - started)
    basis = _basis(extractor)
    thresholds = sorted((float(rate), threshold) for rate, threshold in basis.thresholds.items())
    rows: list[list[Any]] = []
    hits = found.of_probe(0)
    known = gallery.known(hits.row)
    for value, each in zip(hits.similarity.tolist(), known, strict=True):
        passed = next((f"{rate:g}" for rate, threshold in thresholds if value >= threshold), "-")
        rows.append([len(rows) + 1, f"{value:.3f}", *([passed] if thresholds else []), printable(each.name)])
    how = "searched with an index:" if index else "compared with"
    count = f"{len(gallery):,} prints"
    if among is not None:
        words = [
            f"person {printable(person)}" if person else "",
            f"position {_words(position)} or unknown" if position else "",
        ]
        count = f"{gallery.count(among):,} of {count} ({', '.join(filter(None, words))})"
    rates = "; each FMR is that of a single comparison" if thresholds else ""
    return rows, known, [f"{how} {count} in {milliseconds:.0f} ms{rates}", basis.line]


def details(known: list[Known]) -> tuple[list[str], list[list[str]]]:
    """Format the person, finger position and source of references as table columns.

    Columns that are empty for all references are left out. A source that is equal to the name of the print is treated
    as empty.

    Args:
        known: record of each reference.

    Returns:
        Titles of the columns, and one row of texts per reference, with "-" for an empty value.
    """
    told = {
        "person": [printable(each.person) for each in known],
        "finger": [_words(each.position) for each in known],
        "source": ["" if each.source == each.name else printable(each.source) for each in known],
    }
    titles = [title for title, texts in told.items() if any(texts)]
    return titles, [[told[title][row] or "-" for title in titles] for row in range(len(known))]


def _words(position: int) -> str:
    """Return the name of a finger position code in words, such as "left index"."""
    return position_name(position).replace("_", " ")
