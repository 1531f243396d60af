"""Comparisons that a file lists: pairs of names in a csv, or a verification benchmark of flx."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from fingerprint_accel.data.shards import Shards
from fingerprint_accel.errors import UserError
from fingerprint_accel.evaluation.flx_benchmarks import verification_rows
from fingerprint_accel.metrics.protocols import Pairs

YES, NO = ("1", "true", "yes", "mated"), ("0", "false", "no", "non-mated")
HEADER = "reference,probe[,mated]"


def read_pairs(file: Path, shards: Shards) -> Pairs:
    """Reads a list of comparisons; what is listed twice counts twice.

    A csv has the columns reference, probe and, if wanted, mated (1 or 0, which must agree with the dataset). Names are
    FINGER/IMPRESSION or, where it is unique, the `source` of a print. A file that ends in .json is a verification
    benchmark of flx, see `compat.flx_benchmarks`.

    Args:
        file: to read.
        shards: the dataset whose prints it names.

    Raises:
        UserError: a file that cannot be read, an unknown name, a print compared with itself, no mated or no non-mated
            comparison, or a `mated` that the dataset contradicts.
    """
    claimed = None
    if file.suffix.lower() == ".json":
        pairs = verification_rows(file, shards)
    else:
        table = _read_csv(file)
        names = _names(shards)
        pairs = np.stack([_rows(file, table[column], names, shards) for column in ("reference", "probe")], axis=1)
        claimed = _claims(file, table)
    if not len(pairs):
        raise UserError(f"{file}: lists no comparison")
    itself = np.flatnonzero(pairs[:, 0] == pairs[:, 1])
    if len(itself):
        raise UserError(f"{file}: comparison {itself[0] + 1} compares a print with itself; take it out")
    mated = shards.fingers[pairs[:, 0]] == shards.fingers[pairs[:, 1]]
    if claimed is not None and (claimed != mated).any():
        number = int(np.flatnonzero(claimed != mated)[0])
        fingers = "one finger" if mated[number] else "two fingers"
        raise UserError(f"{file}: comparison {number + 1} says mated {int(claimed[number])}, but the dataset {fingers}")
    for kind, there in (("mated", mated.any()), ("non-mated", not mated.all())):
        if not there:
            raise UserError(f"{file}: lists no {kind} comparison among {len(pairs):,}; error rates need both kinds")
    return Pairs(pairs[mated], pairs[~mated], int((~mated).sum()))


def _read_csv(file: Path) -> pa.Table:
    texts = dict.fromkeys(("reference", "probe", "mated"), pa.string())
    try:
        table = pyarrow.csv.read_csv(
            file, convert_options=pyarrow.csv.ConvertOptions(column_types=texts, strings_can_be_null=False)
        )
    except OSError as error:
        reason = "no such file" if not file.exists() else str(error)[:80]
        raise UserError(f"{file}: cannot be read ({reason}); give --pairs-file a csv or json") from error
    except pa.ArrowInvalid as error:
        raise UserError(f"{file}: not a csv of comparisons ({str(error)[:80]}); the header is {HEADER}") from error
    for column in ("reference", "probe"):
        if column not in table.column_names:
            raise UserError(f"{file}: no column {column}; the header is {HEADER}")
    return table


def _names(shards: Shards) -> pa.Array:
    """(2N,) FINGER/IMPRESSION of every row, then its source."""
    table = shards.table
    keys = pc.binary_join_element_wise(table["finger_key"], pc.cast(table["impression"], pa.string()), "/")
    return pa.concat_arrays([*keys.cast(pa.string()).chunks, *table["source"].cast(pa.string()).chunks])


def _rows(file: Path, wanted: pa.ChunkedArray, names: pa.Array, shards: Shards) -> np.ndarray:
    """(n,) int64 row of each name."""
    count = len(shards)
    place = pc.fill_null(pc.index_in(wanted, value_set=names), -1).to_numpy().astype(np.int64)
    unknown = np.flatnonzero(place < 0)
    if len(unknown):
        others = f" and {len(unknown) - 1:,} more" if len(unknown) > 1 else ""
        name = wanted[int(unknown[0])].as_py()
        raise UserError(
            f"{file}: comparison {unknown[0] + 1}: {shards.folder} has no print {name!r}{others}; "
            f"names are FINGER/IMPRESSION ({names[0]}) or sources ({names[count]})"
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
    """(n,) bool: what the column `mated` says, if there is one."""
    if "mated" not in table.column_names:
        return None
    words = pc.utf8_lower(pc.utf8_trim_whitespace(table["mated"]))
    yes, no = (pc.is_in(words, value_set=pa.array(known)).to_numpy() for known in (YES, NO))
    unclear = np.flatnonzero(~yes & ~no)
    if len(unclear):
        value = table["mated"][int(unclear[0])].as_py()
        raise UserError(f"{file}: comparison {unclear[0] + 1}: mated is {value!r}; write 1 or 0")
    return yes
