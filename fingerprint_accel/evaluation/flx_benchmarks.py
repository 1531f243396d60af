"""Read benchmark files of flx, another implementation of DeepPrint.

flx stores prints as {"array_subject": [...], "array_impression": [...]}. A verification benchmark has two such lists,
`array_sample1` and `array_sample2`. An identification benchmark is a list of folds. Each fold has a `gallery`,
`probes`, and a list `mated` with one value for each probe.

flx counts subjects and impressions from 0, and the file of subject 0, impression 0 is called `1_1`. If the lowest
finger of a dataset is 0, the dataset is assumed to count fingers from 0, otherwise from 1. The same holds for
impressions. In finger keys such as 12_5 (NIST SD4: pair and finger), the first number is the subject.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from fingerprint_accel.data.shards import Shards
from fingerprint_accel.errors import UserError
from fingerprint_accel.metrics.identification import Fold
from fingerprint_accel.untrusted import DAMAGED, UnreadableError, read_bytes, reason_of

SAMPLES = ("array_sample1", "array_sample2")
WRONG = (KeyError, TypeError, ValueError, OverflowError)  # raised if the values have another structure
MOST_JSON = 2**26  # bytes: three million comparisons
MOST_PARTS = 100_000  # brackets and quotation marks; each can take 70 bytes of memory


def read_listed(file: Path, limit: int) -> bytes:
    """Read a file of comparisons of at most `limit` bytes; raise a UserError if it cannot be read."""
    try:
        return read_bytes(file, limit)
    except (OSError, UnreadableError) as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else reason_of(error)
        raise UserError(f"{file}: cannot be read ({reason}); give a csv or json file to --pairs-file") from error


def read_flx(file: Path, shards: Shards) -> np.ndarray | list[Fold]:
    """Read a benchmark file of flx, as rows of the dataset.

    Args:
        file: file to read.
        shards: dataset that contains the listed prints.

    Returns:
        Comparisons (n, 2) int64, rows of reference and probe; or, for an identification benchmark, a list of folds with
        rows of references and probes.

    Raises:
        UserError: if the file is not a benchmark of flx, contradicts the dataset, or names a print that the dataset
            does not contain.
    """
    values = _read_json(file)
    if isinstance(values, list) and values and isinstance(values[0], dict) and "gallery" in values[0]:
        return _flx_folds(file, values, shards)
    return _flx_pairs(file, values, shards)


def _read_json(file: Path) -> Any:
    """Read a JSON file; raise a UserError if it cannot be read."""
    try:
        data = read_listed(file, MOST_JSON)
        if sum(map(data.count, (b"{", b"[", b'"'))) > MOST_PARTS:
            raise UnreadableError("too many brackets")
        return json.loads(data)
    except UserError:
        raise
    except DAMAGED as error:
        raise UserError(
            f"{file}: not a JSON file ({reason_of(error)}); give a benchmark file of flx, or a .csv"
        ) from error


def _flx_pairs(file: Path, values: Any, shards: Shards) -> np.ndarray:
    """Return the comparisons of a verification benchmark of flx, as rows of the dataset.

    Args:
        file: benchmark file, for error messages.
        values: contents of the file.
        shards: dataset of the prints.

    Returns:
        (n, 2) int64, rows of reference and probe of each comparison.

    Raises:
        UserError: if the contents are not a verification benchmark, or name a print that the dataset does not contain.
    """
    try:
        both = np.stack([_numbers(values[sample]) for sample in SAMPLES], axis=1)
    except WRONG as error:
        raise UserError(
            f"{file}: not a verification benchmark of flx; it must have array_sample1 and array_sample2, "
            "each with array_subject and array_impression of equal length"
        ) from error
    return _flx_rows(file, both.reshape(-1, 2), shards).reshape(-1, 2)


def _flx_folds(file: Path, values: Any, shards: Shards) -> list[Fold]:
    """Return the references and probes of each fold of an identification benchmark of flx, as rows of the dataset.

    Args:
        file: benchmark file, for error messages.
        values: contents of the file.
        shards: dataset of the prints.

    Raises:
        UserError: if the contents are not an identification benchmark, contradict the dataset, or contain no mated
            search.
    """
    try:
        parts = [
            (_numbers(fold["gallery"]), _numbers(fold["probes"]), _integers(fold["mated"]).astype(bool))
            for fold in values
        ]
    except WRONG as error:
        raise UserError(
            f"{file}: not an identification benchmark of flx; every fold must have gallery, probes and mated"
        ) from error
    folds = []
    for number, (gallery, probes, mated) in enumerate(parts, 1):
        references, searched = _flx_rows(file, gallery, shards), _flx_rows(file, probes, shards)
        if not len(references) or not len(searched):
            raise UserError(f"{file}: fold {number} has no reference or no probe; remove this fold")
        enrolled = shards.fingers[references]
        if len(np.unique(enrolled)) < len(enrolled):
            raise UserError(f"{file}: fold {number} enrols a finger twice; list one reference for each finger")
        if not np.array_equal(np.isin(shards.fingers[searched], enrolled), mated):
            raise UserError(f"{file}: fold {number}: `mated` contradicts the gallery; correct it")
        folds.append((references, searched))
    if not any(mated.any() for *_, mated in parts):
        raise UserError(f"{file}: none of the listed searches is mated; identification rates need mated searches")
    return folds


def _numbers(prints: dict[str, list[int]]) -> np.ndarray:
    """Convert n prints in the format of flx to an (n, 2) array of subject and impression, counted from 0."""
    return np.array([_integers(prints[name]) for name in ("array_subject", "array_impression")]).T


def _integers(values: list[int]) -> np.ndarray:
    """Convert a list of n integers to an (n,) int64 array; raise a TypeError if it contains anything else."""
    found = np.array(values)
    if found.ndim != 1 or (found.size and found.dtype.kind not in "bi"):
        raise TypeError("not a list of integers")
    return found.astype(np.int64)


def _flx_rows(file: Path, numbers: np.ndarray, shards: Shards) -> np.ndarray:
    """Find the rows of prints in a dataset from their subject and impression numbers.

    Args:
        file: benchmark file, for error messages.
        numbers: (n, 2) subject and impression, counted from 0 as in flx.
        shards: dataset of the prints.

    Returns:
        (n,) int64 row of each print.

    Raises:
        UserError: if the finger keys of the dataset are not numbers, or a print is missing.
    """
    found = [re.fullmatch(r"(\d{1,9})(?:_\d+)?", key) for key in shards.key_of_finger]
    fingers = np.array([int(match[1]) if match else -1 for match in found], np.int64)
    if (fingers < 0).any() or len(np.unique(fingers)) < len(fingers):
        key = shards.key_of_finger[int(np.argmin(fingers))]
        raise UserError(
            f"{file}: flx names fingers by numbers, but {shards.folder} has fingers like {key!r}; "
            "import it with --layout flx"
        )
    impressions = shards.impressions.astype(np.int64)
    first = np.array([min(1, int(fingers.min())), min(1, int(impressions.min()))])
    keys = zip(fingers[shards.fingers].tolist(), impressions.tolist(), strict=True)
    row_of = {key: row for row, key in enumerate(keys)}
    rows = np.array([row_of.get(tuple(each), -1) for each in (numbers + first).tolist()], np.int64)
    missing = np.flatnonzero(rows < 0)
    if len(missing):
        subject, impression = (numbers[missing[0]] + first).tolist()
        raise UserError(
            f"{file}: {shards.folder} has no impression {impression} of finger {subject} "
            f"(flx's subject {numbers[missing[0], 0]}); {len(missing):,} of {len(numbers):,} prints are missing"
        )
    return rows
