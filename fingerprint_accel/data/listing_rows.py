"""Collect the rows of a listing, which is the table of all prints to import: one row per print."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from fingerprint_accel.data.captures import join_name, read_records, split_name
from fingerprint_accel.data.decoding import ImageError
from fingerprint_accel.data.image_record import SLAPS, ImageRecord, RecordError
from fingerprint_accel.data.layouts import LayoutError, Named, check_key

CHUNK = 65536
TRANSACTION_NUMBER = "1.009"  # field of an ANSI/NIST transaction that holds its number
FIELDS = [
    ("path", pa.string()),
    ("record", pa.int32()),  # position of the record in a container file, from 1; 0 for an image file
    ("cut", pa.int16()),  # finger to cut out of a slap (an image of several fingers); 0 for an image of one finger
    ("slap", pa.int16()),  # position code of the slap if the file does not state it
    ("position", pa.int16()),  # position code of the finger; 0 if unknown
    ("person", pa.string()),  # identifier of the person; empty if unknown
    ("finger_key", pa.string()),
    ("subject", pa.string()),  # transaction number to put before an incomplete finger key; null if the key is complete
    ("impression", pa.int64()),  # -1 to number the files of the finger in order of path
    ("ppi", pa.int32()),  # 0 to use the resolution in the record or the default of the import
    ("minutiae", pa.string()),  # path of the minutiae file if a csv states it, else null
]


class Rows:
    """Collector of the rows of a listing.

    After every CHUNK rows, the rows are converted to Arrow, so that few Python objects exist at a time.

    Args:
        key: identifiers of the ANSI/NIST fields that identify the subject. If empty, the transaction number
            identifies the subject.

    Attributes:
        rows: rows that are not yet converted to Arrow.
        parts: rows that are converted to Arrow.
        rejected: path and reason of each rejected file or record.
    """

    def __init__(self, key: Sequence[str]) -> None:
        self.rows: list[tuple] = []
        self.parts: list[pa.RecordBatch] = []
        self.rejected: list[tuple[str, str]] = []
        self.key = key
        self._templates: list[str] = []
        self._template_parts: list[pa.Array] = []

    def add(self, path: str, named: Named, minutiae: str | None = None) -> None:
        """Add an image file: one print, or one print for each finger of a slap.

        Args:
            path: path of the file.
            named: information from the file name or the csv.
            minutiae: path of the minutiae file, if the csv states it.
        """
        if named.slap:
            for finger in SLAPS[named.slap]:
                key = f"{named.finger_key}_{finger:02d}"
                who = finger, named.person, key
                self._add(path, 0, finger, named.slap, *who, None, named.impression, named.ppi, minutiae)
        else:
            who = named.position, named.person, named.finger_key or path
            self._add(path, 0, 0, 0, *who, None, named.impression, named.ppi, minutiae)

    def add_container(self, root: Path, path: str, named: Named | None, minutiae: str | None = None) -> None:
        """Add the prints of a container file (a file with several images).

        Args:
            root: folder that `path` is relative to.
            path: path of the file; `path#record` selects one record.
            named: information from the file name or the csv, or None.
            minutiae: path of the minutiae file, if the csv states it.
        """
        file, number, _ = split_name(path)
        try:
            records = read_records(root / file, self.key or [TRANSACTION_NUMBER])
        except (RecordError, ImageError) as error:
            self.rejected.append((path, str(error)))
            return
        if number:
            records = [record for record in records if record.number == number]
        usable = [record for record in records if not record.reason]
        alone = sum(len(record.fingers) for record in usable) == 1
        for record in records:
            if record.reason:
                self.rejected.append((join_name(file, record.number, 0), record.reason))
            elif not alone and record.fingers == (0,):
                reason = "does not state the finger's position, and the file holds several prints: add the position"
                self.rejected.append((join_name(file, record.number, 0), reason))
            else:
                try:
                    self._add_record(file, record, named, alone, minutiae)
                except LayoutError as error:
                    self.rejected.append((join_name(file, record.number, 0), str(error)))

    def _add_record(
        self, path: str, record: ImageRecord, named: Named | None, alone: bool, minutiae: str | None
    ) -> None:
        is_slap = record.position in SLAPS
        for finger in record.fingers:
            position = f"_{finger:02d}" if finger else ""
            subject, impression, person = None, None, ""
            if self.key and record.subject:
                key, person = record.subject + position, record.subject
            elif named is not None and named.finger_key:
                key, impression = named.finger_key + ("" if alone else position), named.impression if alone else None
                person = named.person
            else:
                key, subject = position, record.subject
            key, subject = check_key(key), None if subject is None else check_key(subject)
            ppi = named.ppi if named is not None else 0
            code = finger or (named.position if named is not None else 0)
            who = code, check_key(person), key
            self._add(path, record.number, finger if is_slap else 0, 0, *who, subject, impression, ppi, minutiae)

    def _add(self, *row: object) -> None:
        *before, impression, ppi, minutiae = row
        self.rows.append((*before, -1 if impression is None else impression, ppi, minutiae))
        if len(self.rows) == CHUNK:
            self._flush()

    def _flush(self) -> None:
        columns = [pa.array([row[i] for row in self.rows], kind) for i, (_, kind) in enumerate(FIELDS)]
        self.parts.append(pa.record_batch(columns, names=[name for name, _ in FIELDS]))
        self.rows = []

    def add_template(self, path: str) -> None:
        """Add the path of a minutiae file."""
        self._templates.append(path)
        if len(self._templates) == CHUNK:
            self._template_parts.append(pa.array(self._templates, pa.string()))
            self._templates = []

    def templates(self) -> pa.Array:
        """Return the paths of all minutiae files."""
        return pa.concat_arrays([*self._template_parts, pa.array(self._templates, pa.string())])

    def table(self) -> pa.Table:
        """Return all rows as a table with complete finger keys, without the column `subject`."""
        self._flush()
        return _with_subjects(pa.Table.from_batches(self.parts))


def _with_subjects(table: pa.Table) -> pa.Table:
    """Complete the finger keys of a listing that consist of a finger position only.

    The number of the transaction (`TRANSACTION_NUMBER`) is put before the position, and also becomes the person. If a
    transaction has no number, or shares the number with a different file, the path of its file without suffix is used
    instead.
    """
    subjects = table["subject"]
    if subjects.null_count == len(table):
        return table.drop(["subject"])
    known = table.filter(pc.is_valid(subjects))
    files = known.group_by("subject").aggregate([("path", "count_distinct")])
    shared = files.filter(pc.greater(files["path_count_distinct"], 1))["subject"]
    stems = pc.replace_substring_regex(table["path"], r"([^/])\.[^./]+$", r"\1")
    by_name = pc.or_(pc.equal(subjects, ""), pc.is_in(subjects, shared.combine_chunks()))
    prefix = pc.fill_null(pc.if_else(by_name, stems, subjects), "")
    keys = pc.binary_join_element_wise(prefix, table["finger_key"], "")
    persons = pc.if_else(pc.is_valid(subjects), prefix, table["person"])
    for name, values in (("finger_key", keys), ("person", persons)):
        table = table.set_column(table.schema.get_field_index(name), name, values)
    return table.drop(["subject"])


def is_container(root: Path, path: str) -> bool:
    """Return whether a path, relative to the folder `root`, is that of a container file or one of its records."""
    try:
        return bool(read_records(root / split_name(path)[0]))
    except RecordError:
        return True
    except ImageError:
        return False
