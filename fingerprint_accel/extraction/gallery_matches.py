"""Find enrolled prints by name or person in the files of a gallery, for enrolment and removal."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fingerprint_accel.errors import require
from fingerprint_accel.extraction.gallery_parts import Known, known_in, vectors_in

SAME = 0.9999  # minimum similarity of two embeddings of the same image; rounding differs between devices


def first_of_name(embeddings: np.ndarray, known: Sequence[Known]) -> np.ndarray:
    """Find repeated names in a list of prints to enrol.

    Args:
        embeddings: (N, D) float32 of unit length.
        known: record of each print, with its name.

    Returns:
        (N,) bool, true for the first print of each name, false for repetitions.

    Raises:
        UserError: if two prints have the same name but different embeddings.
    """
    first, new = dict[str, int](), np.ones(len(known), bool)
    for row, each in enumerate(known):
        before = first.setdefault(each.name, row)
        if before != row:
            same = is_same(embeddings[before], embeddings[row])
            require(same, f"{each.name}: two different prints have this name; rename one of them")
            new[row] = False
    return new


def is_enrolled(
    stored: np.ndarray, record: Known | None, embedding: np.ndarray, wanted: Known, replace: bool, place: Path | str
) -> bool:
    """Return whether a print to enrol equals the enrolled print of the same name.

    Args:
        stored: (D,) embedding of the enrolled print.
        record: record of the enrolled print; not used without `replace`.
        embedding: (D,) embedding of the print to enrol.
        wanted: record of the print to enrol.
        replace: whether the record must be equal too, and the enrolled print may have another embedding.
        place: gallery, for the error message.

    Raises:
        UserError: if the enrolled print has another embedding, and `replace` is not set.
    """
    if is_same(stored, embedding):
        return not replace or record == wanted
    require(
        replace,
        f"{wanted.name}: already enrolled from another image; --replace replaces it, "
        f"`fingerprint-accel remove {place} --name` deletes it",
    )
    return False


def conflicts(
    parts: Sequence[pa.RecordBatch],
    embeddings: np.ndarray,
    known: Sequence[Known],
    new: np.ndarray,
    replace: bool,
    folder: Path,
) -> list[np.ndarray]:
    """Find enrolled prints that have the same name as a print to enrol, and exclude prints that are already enrolled.

    A print is already enrolled if its name and embedding are in the gallery; with `replace`, its record must be equal
    too. For such prints, the entry of `new` is set to false in place.

    Args:
        parts: contents of the files of a gallery.
        embeddings: (N, D) float32 of unit length, the prints to enrol.
        known: record of each print to enrol.
        new: (N,) bool, true for the prints to consider; changed in place.
        replace: whether a print with another embedding or another record replaces the enrolled one.
        folder: gallery, for the error message.

    Returns:
        One (n,) bool mask for each file, true for an enrolled print with the same name as a print whose entry in `new`
        is true after the call.

    Raises:
        UserError: if an enrolled print has the same name but another embedding, and `replace` is not set.
    """
    wanted = pa.array([each.name for each in known], pa.string())
    row_of = {known[row].name: row for row in np.flatnonzero(new).tolist()}
    met = []
    for number, part in enumerate(parts):
        rows = np.flatnonzero(pc.is_in(part["name"], value_set=wanted).to_numpy(zero_copy_only=False))
        names = part["name"].take(pa.array(rows)).to_pylist()
        for row, name, vector in zip(rows.tolist(), names, vectors_in(part, rows), strict=True):
            place = row_of[name]
            met.append((number, row, place))
            record = known_in(part, row) if replace else None
            if is_enrolled(vector, record, embeddings[place], known[place], replace, folder):
                new[place] = False
    masks = [np.zeros(len(part), bool) for part in parts]
    for number, row, place in met:
        masks[number][row] = new[place]
    return masks


def having(parts: Sequence[pa.RecordBatch], column: str, values: Iterable[str]) -> tuple[list[np.ndarray], list[str]]:
    """Find enrolled prints that have one of the given names or persons.

    Text is compared in Unicode normalisation form NFC.

    Args:
        parts: contents of the files of a gallery.
        column: column to search, "name" or "person".
        values: texts to find.

    Returns:
        One (n,) bool mask for each file, true for prints that have one of the values; and a sorted list of the values
        that no print has.
    """
    wanted = {unicodedata.normalize("NFC", value) for value in values}
    masks, found = [], set[str]()
    for part in parts:
        mask = np.zeros(len(part), bool)
        if column in part.schema.names:
            texts = pc.utf8_normalize(part[column], form="NFC")
            mask = pc.is_in(texts, value_set=pa.array(sorted(wanted), pa.string())).to_numpy(zero_copy_only=False)
            found |= set(texts.filter(pa.array(mask)).to_pylist())
        masks.append(mask)
    return masks, sorted(wanted - found)


def is_same(first: np.ndarray, second: np.ndarray) -> bool:
    """Return whether two embeddings (D,) are of the same image. Embeddings of prints that show no cell are zero."""
    return bool(first @ second >= SAME) or not (first.any() or second.any())
