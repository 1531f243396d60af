"""Read files that list comparisons or searches: a csv with pairs of names, or a benchmark file of flx.

flx is another implementation of DeepPrint. It stores prints as {"array_subject": [...], "array_impression": [...]}. A
verification benchmark has two such lists, `array_sample1` and `array_sample2`. An identification benchmark is a list of
folds. Each fold has a `gallery`, `probes`, and a list `mated` with one value for each probe.

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
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from fingerprint_accel.data.shards import Shards
from fingerprint_accel.errors import UserError
from fingerprint_accel.metrics.identification import Fold
from fingerprint_accel.metrics.protocols import Pairs

YES, NO = ("1", "true", "yes", "mated"), ("0", "false", "no", "non-mated")
HEADER = "reference,probe[,mated]"
SAMPLES = ("array_sample1", "array_sample2")
WRONG = (KeyError, TypeError, ValueError, OverflowError)  # raised if the values have another structure


def read_pairs_file(file: Path, shards: Shards) -> Pairs | list[Fold]:
    """Read a list of comparisons, or the folds of an identification benchmark of flx.

    A csv file has the columns reference, probe and optionally mated (1 or 0, which must agree with the dataset). A
    print is named FINGER/IMPRESSION, or by its `source` if no other print has the same source. A file that ends in
    .json is a benchmark file of flx, another implementation of DeepPrint. Repeated comparisons are kept.

    Args:
        file: file to read.
        shards: dataset that contains the listed prints.

    Returns:
        The comparisons, or, for an identification benchmark, a list of folds with references and probes.

    Raises:
        UserError: if the file cannot be read, names a print that the dataset does not contain, compares a print with
            itself, enrols a finger twice, has no mated or no non-mated comparison or no mated search, or if its column
            `mated` contradicts the dataset.
    """
    claimed = None
    if file.suffix.lower() == ".json":
        values = _read_json(file)
        if isinstance(values, list) and values and isinstance(values[0], dict) and "gallery" in values[0]:
            return _flx_folds(file, values, shards)
        pairs = _flx_pairs(file, values, shards)
    else:
        table = _read_csv(file)
        names = _names(shards)
        pairs = np.stack([_rows(file, table[column], names, shards) for column in ("reference", "probe")], axis=1)
        claimed = _claims(file, table)
    if not len(pairs):
        raise UserError(f"{file}: no comparison in this file")
    itself = np.flatnonzero(pairs[:, 0] == pairs[:, 1])
    if len(itself):
        raise UserError(f"{file}: comparison {itself[0] + 1} compares a print with itself; remove this line")
    mated = shards.fingers[pairs[:, 0]] == shards.fingers[pairs[:, 1]]
    if claimed is not None and (claimed != mated).any():
        number = int(np.flatnonzero(claimed != mated)[0])
        fingers = "the same finger" if mated[number] else "different fingers"
        raise UserError(
            f"{file}: comparison {number + 1} has mated {int(claimed[number])}, but in the dataset its prints are of "
            f"{fingers}; correct the column mated"
        )
    for kind, there in (("mated", mated.any()), ("non-mated", not mated.all())):
        if not there:
            raise UserError(
                f"{file}: none of {len(pairs):,} comparisons is {kind}; error rates need mated and non-mated ones"
            )
    return Pairs(pairs[mated], pairs[~mated], int((~mated).sum()))


def _read_csv(file: Path) -> pa.Table:
    """Read a csv of comparisons; the columns reference, probe and mated are read as strings.

    Raises:
        UserError: if the file cannot be read, or has no column reference or probe.
    """
    texts = dict.fromkeys(("reference", "probe", "mated"), pa.string())
    try:
        table = pyarrow.csv.read_csv(
            file, convert_options=pyarrow.csv.ConvertOptions(column_types=texts, strings_can_be_null=False)
        )
    except OSError as error:
        reason = "no such file" if not file.exists() else str(error)[:80]
        raise UserError(f"{file}: cannot be read ({reason}); give a csv or json file to --pairs-file") from error
    except pa.ArrowInvalid as error:
        raise UserError(f"{file}: not a csv of comparisons ({str(error)[:80]}); its header must be {HEADER}") from error
    for column in ("reference", "probe"):
        if column not in table.column_names:
            raise UserError(f"{file}: no column {column}; the header must be {HEADER}")
    return table


def _names(shards: Shards) -> pa.Array:
    """Return the (2N,) names by which a list of comparisons can refer to the N prints of a dataset.

    The first N names have the form FINGER/IMPRESSION, the other N names are the sources of the prints.
    """
    table = shards.table
    keys = pc.binary_join_element_wise(table["finger_key"], pc.cast(table["impression"], pa.string()), "/")
    return pa.concat_arrays([*keys.cast(pa.string()).chunks, *table["source"].cast(pa.string()).chunks])


def _rows(file: Path, wanted: pa.ChunkedArray, names: pa.Array, shards: Shards) -> np.ndarray:
    """Return the row number in a dataset for each of the given names of prints.

    Args:
        file: file that contains the names, for error messages.
        wanted: (n,) names.
        names: (2N,) names of the prints of the dataset, from `_names`.
        shards: the dataset.

    Returns:
        (n,) int64 row of each named print.

    Raises:
        UserError: if a name is unknown, or is the source of several prints.
    """
    count = len(shards)
    place = pc.fill_null(pc.index_in(wanted, value_set=names), -1).to_numpy().astype(np.int64)
    unknown = np.flatnonzero(place < 0)
    if len(unknown):
        others = f" and {len(unknown) - 1:,} more" if len(unknown) > 1 else ""
        name = wanted[int(unknown[0])].as_py()
        raise UserError(
            f"{file}: comparison {unknown[0] + 1}: {shards.folder} has no print {name!r}{others}; "
            f"write FINGER/IMPRESSION ({names[0]}) or a source ({names[count]})"
        )
    by_source = np.flatnonzero(place >= count)
    if len(by_source):
        sources = pc.value_counts(names[count:])
        repeated = sources.field("values").filter(pc.greater(sources.field("counts"), 1))
        clash = pc.is_in(wanted.take(pa.array(by_source)), value_set=repeated).to_numpy()
        if clash.any():
            name = wanted[int(by_source[np.flatnonzero(clash)[0]])].as_py()
            raise UserError(f"{file}: {name!r} is the source of several prints; write FINGER/IMPRESSION ({names[0]})")
    return place % count


def _claims(file: Path, table: pa.Table) -> np.ndarray | None:
    """Read the column `mated` of a list of comparisons.

    Args:
        file: file that was read, for error messages.
        table: contents of the file.

    Returns:
        (n,) bool, whether each comparison is listed as mated; None if the file has no column `mated`.

    Raises:
        UserError: if a value is not one of the words in `YES` and `NO`, such as 1 and 0.
    """
    if "mated" not in table.column_names:
        return None
    words = pc.utf8_lower(pc.utf8_trim_whitespace(table["mated"]))
    yes, no = (pc.is_in(words, value_set=pa.array(known)).to_numpy() for known in (YES, NO))
    unclear = np.flatnonzero(~yes & ~no)
    if len(unclear):
        value = table["mated"][int(unclear[0])].as_py()
        raise UserError(f"{file}: comparison {unclear[0] + 1}: mated is {value!r}; write 1 or 0")
    return yes


def _read_json(file: Path) -> Any:
    """Read a JSON file; raise a UserError if it cannot be read."""
    try:
        return json.loads(file.read_text())
    except OSError as error:
        raise UserError(
            f"{file}: cannot be read ({error.strerror}); give a csv or json file to --pairs-file"
        ) from error
    except ValueError as error:
        raise UserError(f"{file}: not a JSON file ({error}); give a benchmark file of flx, or a .csv") from error


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
            (_numbers(fold["gallery"]), _numbers(fold["probes"]), np.array(fold["mated"], bool)) for fold in values
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
    return np.array([prints["array_subject"], prints["array_impression"]], np.int64).T


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
