"""Read the prints to import from a csv file that lists images with their fingers and impressions."""

from __future__ import annotations

import csv
import posixpath
from collections.abc import Sequence
from pathlib import Path

from fingerprint_accel.data.csv_file import open_csv
from fingerprint_accel.data.image_record import SLAPS
from fingerprint_accel.data.layouts import (
    MOST_PATH,
    LayoutError,
    Named,
    check_impression,
    check_key,
    check_path,
    check_ppi,
    finger_position,
)
from fingerprint_accel.data.listing_rows import Rows, is_container
from fingerprint_accel.data.walking import IMAGE_SUFFIXES
from fingerprint_accel.errors import UserError
from fingerprint_accel.untrusted import UnreadableError, reason_of

MOST_WRONG = 100_000  # lines that cannot be used, after which the file is rejected as a whole


def rows_of_csv(source: Path, key: Sequence[str]) -> Rows:
    """Collect the prints in a csv file.

    Args:
        source: the csv file.
        key: identifiers of the ANSI/NIST fields that identify the subject.

    Raises:
        UserError: if the file is not a csv, a column is missing, or a large number of lines cannot be used.
    """
    rows = Rows(key)
    try:
        with open_csv(source) as reader:
            _read_csv(source, reader, rows)
    except OSError as error:
        raise UserError(f"{source}: cannot be read ({error.strerror}); with --layout csv, give a csv file") from error
    except UnreadableError as error:
        raise UserError(f"{source}: cannot be read ({error}); with --layout csv, give a csv file") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{source}: not a csv file in UTF-8 ({reason_of(error)}); save it as such") from error
    return rows


def _read_csv(source: Path, reader: csv.DictReader[str], rows: Rows) -> None:
    """Add the prints in a csv file to the rows of a listing.

    Args:
        source: path of the csv file.
        reader: reader of the opened file.
        rows: rows of the listing, to which the prints are added.

    Raises:
        UserError: if a column is missing, or a large number of lines cannot be used.
    """
    missing = [name for name in ("path", "finger", "impression") if name not in (reader.fieldnames or [])]
    if missing:
        header = "path,finger,impression[,ppi][,minutiae][,position][,person]"
        raise UserError(f"{source}: no column {missing[0]}; the header must be {header}")
    for row in reader:
        try:
            path, named = _csv_row(row)
            minutiae = check_path(row.get("minutiae") or "") or None
        except LayoutError as error:
            where = (row["path"] or "")[:MOST_PATH] or f"{source.name} line {reader.line_num}"
            rows.rejected.append((where, f"line {reader.line_num}: {error}"))
            if len(rows.rejected) > MOST_WRONG:
                raise UserError(
                    f"{source}: more than {MOST_WRONG} lines cannot be used (line {reader.line_num}: {error}); "
                    "correct the file"
                ) from error
            continue
        # files with the suffix of an image are not opened here
        if posixpath.splitext(path)[1].lower() in IMAGE_SUFFIXES or not is_container(source.parent, path):
            rows.add(path, named, minutiae)
        else:
            rows.add_container(source.parent, path, named, minutiae)


def _csv_row(row: dict[str, str]) -> tuple[str, Named]:
    path, finger = row["path"], row["finger"]
    if not path:
        raise LayoutError("no path: fill in the column path")
    if not finger:
        raise LayoutError("no finger: fill in the column finger")
    try:
        impression, ppi = int(row["impression"]), int(row.get("ppi") or 0)
    except (TypeError, ValueError):
        raise LayoutError("impression and ppi must be whole numbers") from None
    position = finger_position(row["position"]) if row.get("position") else 0
    slap, single = (position, 0) if position in SLAPS else (0, position)
    key, person = check_key(finger), check_key(row.get("person") or "")
    return check_path(path), Named(key, check_impression(impression), check_ppi(ppi), slap, person, single)
