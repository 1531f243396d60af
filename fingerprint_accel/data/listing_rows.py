"""Rows of a listing: each print of each file, with the key of its finger."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from fingerprint_accel.data.captures import join_name, read_records, split_name
from fingerprint_accel.data.decoding import ImageError
from fingerprint_accel.data.image_record import SLAPS, ImageRecord, RecordError
from fingerprint_accel.data.layouts import Named

CHUNK = 65536
TRANSACTION_NUMBER = "1.009"  # field of ANSI/NIST files
FIELDS = [
    ("path", pa.string()),
    ("record", pa.int32()),  # of a container; 0: the file is an image
    ("cut", pa.int16()),  # position of the finger to cut out of a slap; 0: the image shows one finger
    ("slap", pa.int16()),  # position code of the slap where the file does not state it
    ("position", pa.int16()),  # of the finger; 0: not known
    ("person", pa.string()),  # whose finger it is; empty: not known
    ("finger_key", pa.string()),
    ("subject", pa.string()),  # number of a transaction that may go before the key; null: the key is complete
    ("impression", pa.int64()),  # -1: rank among the finger's files
    ("ppi", pa.int32()),  # 0: as the record states it, or as given on the command line
    ("minutiae", pa.string()),
]


class Rows:
    """Collects rows and turns every CHUNK of them into Arrow, so that few Python objects live at a time."""

    def __init__(self, key: Sequence[str]) -> None:
        self.rows: list[tuple] = []
        self.parts: list[pa.RecordBatch] = []
        self.rejected: list[tuple[str, str]] = []
        self.key = key
        self._templates: list[str] = []
        self._template_parts: list[pa.Array] = []

    def add(self, path: str, named: Named, minutiae: str | None = None) -> None:
        """An image file: one print, or the fingers of a slap."""
        if named.slap:
            for finger in SLAPS[named.slap]:
                key = f"{named.finger_key}_{finger:02d}"
                who = finger, named.person, key
                self._add(path, 0, finger, named.slap, *who, None, named.impression, named.ppi, minutiae)
        else:
            who = named.position, named.person, named.finger_key or path
            self._add(path, 0, 0, 0, *who, None, named.impression, named.ppi, minutiae)

    def add_container(self, root: Path, path: str, named: Named | None, minutiae: str | None = None) -> None:
        """A container: all its prints, or the one that `path#record` names. `named` is what names or the csv say."""
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
                reason = "does not state the finger's position, and is not the only print of the file"
                self.rejected.append((join_name(file, record.number, 0), reason))
            else:
                self._add_record(file, record, named, alone, minutiae)

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
            key = unicodedata.normalize("NFC", key)
            ppi = named.ppi if named is not None else 0
            code = finger or (named.position if named is not None else 0)
            who = code, unicodedata.normalize("NFC", person), key
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
        """A minutiae file."""
        self._templates.append(path)
        if len(self._templates) == CHUNK:
            self._template_parts.append(pa.array(self._templates, pa.string()))
            self._templates = []

    def templates(self) -> pa.Array:
        """Paths of all minutiae files."""
        return pa.concat_arrays([*self._template_parts, pa.array(self._templates, pa.string())])

    def table(self) -> pa.Table:
        """All rows, with complete keys."""
        self._flush()
        return _with_subjects(pa.Table.from_batches(self.parts))


def _with_subjects(table: pa.Table) -> pa.Table:
    """Completes keys that are a position alone: by the number of the transaction, or by the file's name where the
    transaction has none, or shares it with another file. This is also the person."""
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
