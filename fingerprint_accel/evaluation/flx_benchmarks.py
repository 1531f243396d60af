"""Benchmark files of flx: which prints are compared with which, and who is searched among whom.

flx writes prints as {"array_subject": [...], "array_impression": [...]}. A benchmark for verification holds two such
lists, `array_sample1` and `array_sample2`. One for identification is a list of folds, each with a `gallery` and
`probes` and, for every probe, whether it is `mated`.

flx counts subjects and impressions from 0 and calls the file of subject 0, impression 0 `1_1`. A dataset whose lowest
finger is 0 is taken to count fingers from 0 as flx does, any other from 1; likewise its impressions. Of keys like 12_5
(NIST SD4: pair and finger) the first number counts.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from fingerprint_accel.data.shards import Shards
from fingerprint_accel.errors import UserError

SAMPLES = ("array_sample1", "array_sample2")


def is_identification(file: Path) -> bool:
    """Whether a file is a benchmark for identification.

    Raises:
        UserError: no JSON file.
    """
    values = _read(file)
    return isinstance(values, list) and bool(values) and isinstance(values[0], dict) and "gallery" in values[0]


def verification_rows(file: Path, shards: Shards) -> np.ndarray:
    """(n, 2) int64 rows of the comparisons that a benchmark for verification lists.

    Raises:
        UserError: another file, finger keys that are no numbers, or a print that the dataset lacks.
    """
    values = _read(file)
    try:
        both = np.stack([_numbers(values[sample]) for sample in SAMPLES], axis=1)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise UserError(
            f"{file}: not a verification benchmark of flx; it holds array_sample1 and array_sample2, "
            "each with array_subject and array_impression of one length"
        ) from error
    return _rows(file, both.reshape(-1, 2), shards).reshape(-1, 2)


def identification_rows(file: Path, shards: Shards) -> list[tuple[np.ndarray, np.ndarray]]:
    """Rows of references and of probes for every fold of a benchmark for identification.

    Raises:
        UserError: as `verification_rows`; a finger that is enrolled twice, or a search whose `mated` contradicts the
            dataset.
    """
    found = []
    try:
        parts = [
            (_numbers(fold["gallery"]), _numbers(fold["probes"]), np.array(fold["mated"], bool)) for fold in _read(file)
        ]
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise UserError(
            f"{file}: not an identification benchmark of flx; every fold holds gallery, probes and mated"
        ) from error
    for number, (gallery, probes, mated) in enumerate(parts, 1):
        references, searched = _rows(file, gallery, shards), _rows(file, probes, shards)
        if not len(references) or not len(searched):
            raise UserError(f"{file}: fold {number} has no reference or no probe")
        enrolled = shards.fingers[references]
        if len(np.unique(enrolled)) < len(enrolled):
            raise UserError(f"{file}: fold {number} enrols a finger twice; give one reference of each")
        if not np.array_equal(np.isin(shards.fingers[searched], enrolled), mated):
            raise UserError(f"{file}: fold {number}: `mated` contradicts the gallery")
        found.append((references, searched))
    return found


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_text())
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}); give --pairs-file a csv or json") from error
    except ValueError as error:
        raise UserError(f"{file}: not JSON ({error})") from error


def _numbers(prints: dict[str, list[int]]) -> np.ndarray:
    """(n, 2) subject and impression of prints as flx writes them."""
    return np.array([prints["array_subject"], prints["array_impression"]], np.int64).T


def _rows(file: Path, numbers: np.ndarray, shards: Shards) -> np.ndarray:
    """(n,) int64 rows of prints by flx's numbers (n, 2)."""
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
    known = (fingers[shards.fingers] << 16) + impressions
    order = np.argsort(known)
    wanted = ((numbers + first) @ np.array([1 << 16, 1])).astype(np.int64)
    place = np.minimum(np.searchsorted(known[order], wanted), len(order) - 1)
    missing = np.flatnonzero(known[order][place] != wanted)
    if len(missing):
        subject, impression = (numbers[missing[0]] + first).tolist()
        raise UserError(
            f"{file}: {shards.folder} has no impression {impression} of finger {subject} "
            f"(flx's subject {numbers[missing[0], 0]}); {len(missing):,} of {len(numbers):,} prints are missing"
        )
    rows: np.ndarray = order[place]
    return rows
