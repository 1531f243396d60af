"""Enrol all prints of a folder of embeddings that `fingerprint-accel extract` has written, in batches.

Each batch is enrolled in one transaction, so a killed command continues: prints that are enrolled already are skipped.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from fingerprint_accel.data.layouts import LayoutError, names_layout
from fingerprint_accel.data.persons import person_in
from fingerprint_accel.errors import UserError, require
from fingerprint_accel.extraction.embeddings_folder import CONFIG, PRINTS, EmbeddingsFolder, open_folder
from fingerprint_accel.extraction.embeddings_folder import REMEDY as OF_FOLDER
from fingerprint_accel.extraction.enrolment import Enrolled, replaced_of
from fingerprint_accel.extraction.enrolment_inputs import Wanted
from fingerprint_accel.extraction.galleries import open_or_create
from fingerprint_accel.extraction.gallery_parts import Known
from fingerprint_accel.text import printable
from fingerprint_accel.untrusted import DAMAGED, Fields, reason_of

BATCH = 50_000  # prints in a transaction: about 55 MB of rows, a second of work
TEXTS = ("source", "finger_key", "person")  # columns of `prints.parquet`; only `source` is always there


def enroll_embeddings(gallery: Path | str, folder: Path, wanted: Wanted) -> Enrolled:
    """Enrol the prints of a folder of embeddings.

    A print of a dataset is named FINGER/IMPRESSION. A print of an image folder is named after its file, with the name
    of the folder before it.

    Args:
        gallery: gallery folder, or URL of a PostgreSQL database. It is created if necessary.
        folder: folder of embeddings.
        wanted: options of the enrolment: `names`, `person` and `replace`.

    Raises:
        UserError: if the embeddings are damaged, shortened or binary, or were computed by another model than those of
            the gallery. Batches before a damaged file remain enrolled.
    """
    opened = open_folder(folder)
    fields = Fields(opened.config, folder / CONFIG, OF_FOLDER)
    dims, form = fields.part("model").integer("embedding_dim", 1, 2**16), opened.format
    fits = form.kind != "binary" and form.length == dims
    remedy = "run `extract` without --length and --template binary"
    require(
        fits,
        f"{folder}: {form.kind} templates of {form.length} numbers; {remedy}",
    )
    target = open_or_create(gallery, dims, opened.identity, form.cells, wanted.template)
    before, new, there = len(target), 0, 0
    with tqdm(total=len(opened.failed), desc="enrolling", unit="print") as bar:
        for vectors, known, rows in _batches(opened, wanted):
            added = target.append(vectors, known, wanted.replace)
            new, there = new + added, there + len(known) - added
            bar.update(rows)
    total, failed = len(target), int(opened.failed.sum())
    replaced = replaced_of(new, before, total, wanted)
    return Enrolled(new, replaced, there, len(opened.failed) - failed, failed, 0, total)


def _batches(opened: EmbeddingsFolder, wanted: Wanted) -> Iterator[tuple[np.ndarray, list[Known], int]]:
    """Yield embeddings (n, D) float32, the record of each of the n prints, and the number of rows that were read."""
    table = _prints(opened.folder / PRINTS)
    record = _Records(opened, wanted)
    parts: list[np.ndarray] = []
    known: list[Known] = []
    start, rows = 0, 0
    for shard in opened.shards():
        some = table.slice(start, len(shard.quality)).to_pylist()
        parts.append(shard.vectors()[~shard.failed])
        facts = zip(some, shard.impression.tolist(), shard.quality.tolist(), shard.failed.tolist(), strict=True)
        known += [record.of(row, impression, quality) for row, impression, quality, failed in facts if not failed]
        start, rows = start + len(some), rows + len(some)
        if len(known) >= BATCH:
            yield np.concatenate(parts), known, rows
            parts, known, rows = [], [], 0
    if rows:
        yield np.concatenate(parts), known, rows


class _Records:
    """Makes the records of prints from the rows of `prints.parquet`."""

    def __init__(self, opened: EmbeddingsFolder, wanted: Wanted) -> None:
        fields = Fields(opened.config, opened.folder / CONFIG, OF_FOLDER)
        self._where, self._person = opened.folder / PRINTS, wanted.person
        self._prefix = Path(fields.part("arguments").text("data", "")).name
        self._read = names_layout(wanted.names) if wanted.names else None

    def of(self, row: dict[str, Any], impression: int, quality: float) -> Known:
        """Return the record of a print."""
        source, key = row["source"], row.get("finger_key")
        name = f"{key}/{impression}" if key is not None else printable(f"{self._prefix}/{source}")
        person, position = row.get("person", ""), row.get("position", 0)
        if key is not None and not person and not position:
            person, position = person_in(key)
        if self._read is not None:
            try:
                named = self._read(source if key is None else key)
            except LayoutError as error:
                raise UserError(f"{self._where}: {printable(key or source)}: {error}") from error
            person, position = named.person, named.position
        return Known(name, self._person or person, position, source, impression, round(quality, 3))


def _prints(path: Path) -> pa.Table:
    """Read `prints.parquet`, and check the types of its columns.

    Raises:
        UserError: if the file is damaged.
    """
    try:
        table = pq.read_table(path)
        types = {name: table.schema.field(name).type for name in table.schema.names}
        good = "source" in types and all(pa.types.is_string(types[name]) for name in TEXTS if name in types)
        good &= "position" not in types or pa.types.is_int16(types["position"])
        good &= not any(column.null_count for column in table.columns)
        table.validate(full=True)
    except (OSError, *DAMAGED, pa.ArrowException) as error:
        raise UserError(f"{path}: damaged ({reason_of(error)}); {OF_FOLDER}") from error
    require(good, f"{path}: damaged (a column that `extract` does not write); {OF_FOLDER}")
    return table
