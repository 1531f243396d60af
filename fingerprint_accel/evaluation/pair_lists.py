"""Read files that list comparisons or searches: a csv with pairs of names, or a benchmark file of flx."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from fingerprint_accel.data.shards import Shards
from fingerprint_accel.errors import UserError
from fingerprint_accel.evaluation.flx_benchmarks import read_flx, read_listed
from fingerprint_accel.metrics.identification import Fold
from fingerprint_accel.metrics.protocols import Pairs
from fingerprint_accel.untrusted import reason_of

YES, NO = ("1", "true", "yes", "mated"), ("0", "false", "no", "non-mated")
HEADER = "reference,probe[,mated]"
COLUMNS = ("reference", "probe", "mated")
MOST_CSV, MOST_HEADER, MOST_COLUMNS = 2**28, 2**14, 100  # bytes (ten million comparisons), bytes, number


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
        found = read_flx(file, shards)
        if isinstance(found, list):
            return found
        pairs = found
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
    data = pa.py_buffer(read_listed(file, MOST_CSV))
    try:
        # Arrow needs gigabytes for a million columns, so the header is read alone. It must fit in one block.
        options = pyarrow.csv.ReadOptions(block_size=MOST_HEADER)
        names = pyarrow.csv.open_csv(data, read_options=options).schema.names[: MOST_COLUMNS + 1]
        wrong = _wrong_header(names)
        if not wrong:
            texts = {column: pa.string() for column in COLUMNS if column in names}
            return pyarrow.csv.read_csv(
                data,
                convert_options=pyarrow.csv.ConvertOptions(
                    column_types=texts, include_columns=list(texts), strings_can_be_null=False
                ),
            )
    except (pa.ArrowException, UnicodeDecodeError, MemoryError) as error:
        wrong = f"not a csv of comparisons ({reason_of(error)})"
    raise UserError(f"{file}: {wrong}; the header must be {HEADER}")


def _wrong_header(names: list[str]) -> str:
    """Return what is wrong with the names of the columns of a csv of comparisons; empty if nothing is."""
    if len(names) > MOST_COLUMNS:
        return f"more than {MOST_COLUMNS} columns"
    repeated = [column for column in COLUMNS if names.count(column) > 1]
    missing = [column for column in COLUMNS[:2] if column not in names]
    if repeated:
        return f"several columns {repeated[0]}"
    return f"no column {missing[0]}" if missing else ""


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
            f"{file}: comparison {unknown[0] + 1}: {shards.folder} has no print {name[:80]!r}{others}; "
            f"write FINGER/IMPRESSION ({names[0]}) or a source ({names[count]})"
        )
    by_source = np.flatnonzero(place >= count)
    if len(by_source):
        sources = pc.value_counts(names[count:])
        repeated = sources.field("values").filter(pc.greater(sources.field("counts"), 1))
        clash = pc.is_in(wanted.take(pa.array(by_source)), value_set=repeated).to_numpy()
        if clash.any():
            name = wanted[int(by_source[np.flatnonzero(clash)[0]])].as_py()
            raise UserError(
                f"{file}: {name[:80]!r} is the source of several prints; write FINGER/IMPRESSION ({names[0]})"
            )
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
        raise UserError(f"{file}: comparison {unclear[0] + 1}: mated is {value[:80]!r}; write 1 or 0")
    return yes
