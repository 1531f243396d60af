"""Which files to import: a listing that holds a million paths compactly, as Arrow arrays."""

from __future__ import annotations

import csv
import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fingerprint_accel.data.images import SUFFIXES as IMAGE_SUFFIXES
from fingerprint_accel.data.layouts import LAYOUTS, NAMES, LayoutError, Named, guess
from fingerprint_accel.errors import UserError

CHUNK = 65536  # rows that are Python objects at a time
SCHEMA = pa.schema(
    {
        "path": pa.string(),
        "finger_key": pa.string(),
        "impression": pa.int32(),  # -1: rank among the finger's files
        "ppi": pa.int32(),  # 0: as given on the command line
        "minutiae": pa.string(),
    }
)


@dataclass
class Listing:
    """Files to import and files that are not.

    Attributes:
        root: what relative paths are relative to.
        table: columns path, finger_key, impression, ppi, minutiae.
        rejected: path and reason.
    """

    root: Path
    table: pa.Table
    rejected: list[tuple[str, str]]


def _table(rows: Iterator[tuple]) -> pa.Table:
    parts = []
    while some := list(itertools.islice(rows, CHUNK)):
        columns = [pa.array([row[place] for row in some], kind) for place, kind in enumerate(SCHEMA.types)]
        parts.append(pa.record_batch(columns, schema=SCHEMA))
        del some  # before the next are made
    return pa.Table.from_batches(parts, SCHEMA)


def image_paths(folder: Path, prefix: str = "") -> Iterator[str]:
    """Paths of image files below a folder, in sorted order, relative to it."""
    with os.scandir(folder) as entries:
        found = sorted((entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries)
    for name, is_folder in found:
        if is_folder:
            yield from image_paths(folder / name, f"{prefix}{name}/")
        elif not name.startswith(".") and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES:  # noqa: PTH122
            yield prefix + name


def list_files(source: Path, layout: str) -> Listing:
    """Lists what a layout finds at SRC.

    Raises:
        UserError: SRC is missing, holds no image, or nothing in it follows the layout.
    """
    if layout not in NAMES:
        raise UserError(f"--layout {layout}: there are {', '.join(NAMES)}")
    if layout == "csv":
        return _list_csv(source)
    if not source.is_dir():
        raise UserError(f"{source}: no such folder; give the folder that holds the images")
    rejected: list[tuple[str, str]] = []
    table = _table(_named_rows(image_paths(source), LAYOUTS[layout], rejected))
    if not len(table) and not rejected:
        raise UserError(f"{source}: holds no image file ({', '.join(sorted(IMAGE_SUFFIXES))})")
    if not len(table):
        fitting = guess([path for path, _ in rejected[:50]])
        remedy = f"try --layout {fitting[0]}" if fitting else "see `import --help`, or list the files in a csv"
        raise UserError(f"{source}: no file follows layout {layout} ({rejected[0][0]}: {rejected[0][1]}); {remedy}")
    table = _from_zero(table) if layout == "flx" else _ranked(table)
    return Listing(source, _without_duplicates(table, rejected), rejected)


def _named_rows(
    paths: Iterable[str], layout: Callable[[str], Named], rejected: list[tuple[str, str]]
) -> Iterator[tuple]:
    """Rows of the table; what the layout refuses is added to `rejected`."""
    for path in paths:
        try:
            named = layout(path)
        except LayoutError as error:
            rejected.append((path, str(error)))
        else:
            yield path, named.finger_key, -1 if named.impression is None else named.impression, named.ppi, None


def _list_csv(source: Path) -> Listing:
    rejected: list[tuple[str, str]] = []
    try:
        with source.open(newline="", encoding="utf-8-sig") as file:
            table = _table(_csv_rows(csv.DictReader(file), source, rejected))
    except OSError as error:
        raise UserError(f"{source}: cannot be read ({error.strerror}); with --layout csv SRC is the file") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{source}: not a csv file in UTF-8 ({error})") from error
    if not len(table):
        raise UserError(f"{source}: no usable line" + (f" ({rejected[0][1]})" if rejected else ""))
    return Listing(source.parent, _without_duplicates(table, rejected), rejected)


def _csv_rows(reader: csv.DictReader, source: Path, rejected: list[tuple[str, str]]) -> Iterator[tuple]:
    """As `_named_rows`."""
    missing = [name for name in ("path", "finger", "impression") if name not in (reader.fieldnames or [])]
    if missing:
        raise UserError(f"{source}: no column {missing[0]}; the header is path,finger,impression[,ppi][,minutiae]")
    for row in reader:
        try:
            yield _csv_row(row)
        except LayoutError as error:
            where = row["path"] or f"{source.name} line {reader.line_num}"
            rejected.append((where, f"line {reader.line_num}: {error}"))


def _csv_row(row: dict[str, str]) -> tuple:
    path, finger = row["path"], row["finger"]
    if not path:
        raise LayoutError("no path")
    if not finger:
        raise LayoutError("no finger")
    try:
        impression, ppi = int(row["impression"]), int(row.get("ppi") or 0)
    except (TypeError, ValueError):
        raise LayoutError("impression and ppi must be whole numbers") from None
    if not 0 <= impression < 32768:
        raise LayoutError("impression must lie between 0 and 32767")
    if ppi and not 50 <= ppi <= 5000:
        raise LayoutError(f"ppi {ppi} is out of range")
    return path, finger, impression, ppi, row.get("minutiae") or None


def _with_impressions(table: pa.Table, impressions: np.ndarray) -> pa.Table:
    place = table.schema.get_field_index("impression")
    return table.set_column(place, "impression", pa.array(impressions, pa.int32()))


def finger_codes(table: pa.Table) -> np.ndarray:
    """(N,) int64: a number for the finger of every row."""
    return pc.dictionary_encode(table["finger_key"]).combine_chunks().indices.to_numpy().astype(np.int64)


def _from_zero(table: pa.Table) -> pa.Table:
    """Moves impressions that count from 1 to count from 0, as flx does."""
    impressions = table["impression"].to_numpy()
    return _with_impressions(table, impressions - min(1, int(impressions.min())))


def _without_duplicates(table: pa.Table, rejected: list[tuple[str, str]]) -> pa.Table:
    """Keeps the first of the files that claim one impression of one finger, and rejects the others."""
    claim = finger_codes(table) << 32 | table["impression"].to_numpy().astype(np.int64)
    _, first, whose = np.unique(claim, return_index=True, return_inverse=True)
    if len(first) == len(table):
        return table
    kept = np.zeros(len(table), bool)
    kept[first] = True
    paths = table["path"]
    for row in np.flatnonzero(~kept).tolist():
        rejected.append((paths[row].as_py(), f"same finger and impression: as {paths[int(first[whose[row]])]}"))
    return table.filter(pa.array(kept))


def _ranked(table: pa.Table) -> pa.Table:
    """Numbers the impressions that have none, in order of path within each finger."""
    impressions = table["impression"].to_numpy().copy()
    open_rows = impressions < 0
    if open_rows.any():
        codes = finger_codes(table)
        order = np.argsort(codes, kind="stable")  # the listing is sorted by path
        firsts = np.flatnonzero(np.diff(codes[order], prepend=-1))
        rank = np.empty(len(order), np.int32)
        rank[order] = np.arange(len(order)) - np.repeat(firsts, np.diff(firsts, append=len(order)))
        impressions[open_rows] = rank[open_rows]
    return _with_impressions(table, impressions)
