"""Search a gallery in PostgreSQL with pgvector, and read its prints.

PostgreSQL compares the probe with every print that the filters select and returns the best candidates, whose
similarity is then computed as in a folder. Rows are numbered by the ids of the table, see `engine_table`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch

from fingerprint_accel.errors import UserError, require
from fingerprint_accel.extraction.engine_connection import connect, engine_errors, shown
from fingerprint_accel.extraction.engine_queries import BY_ID, EVERYTHING, Among, distance_of, signs_of, spellings
from fingerprint_accel.extraction.engine_rows import RECORD, read_record, read_templates
from fingerprint_accel.extraction.engine_table import stored_facts
from fingerprint_accel.extraction.gallery_parts import Known, NothingSelectedError, check_vectors, nothing_selected
from fingerprint_accel.extraction.gallery_search import RESCORED, Hits, rescored
from fingerprint_accel.extraction.protection import mismatch

MARGIN = 20  # candidates per print to return, because PostgreSQL ranks by float16 probes


class EngineReader:
    """The prints of a gallery in a PostgreSQL database, to search and to read.

    Args:
        url: postgresql://USER@HOST/DATABASE of an existing gallery; `engine.Engine.open_or_create` creates one.

    Attributes:
        place: the URL without password and options.
        dims: dimension of the embeddings.
        model: identity of the model that computed the embeddings, and of the key that protects them (see `protection`).
        cells: number of grid cells of a dense template (see `similarity`); 0 for other templates.
        connection: connection to the database.

    Raises:
        UserError: if psycopg is not installed, the server cannot be reached, or the database has no gallery.
    """

    def __init__(self, url: str) -> None:
        self.place = shown(url)
        self.connection = connect(url)
        facts = stored_facts(self.connection, self.place)
        if facts is None:
            raise UserError(f"{self.place}: holds no gallery; `fingerprint-accel enroll` makes one")
        self._facts = facts
        self.dims, self.model, self.cells = facts["dims"], facts["model"], facts["cells"]

    @classmethod
    def open_if_filled(cls, url: str) -> Self | None:
        """Open a gallery; return None if the database has none, or one without prints.

        Raises:
            UserError: if psycopg is not installed, or the server cannot be reached.
        """
        with connect(url) as connection:
            if stored_facts(connection, shown(url)) is None:
                return None
        gallery = cls(url)
        return gallery if len(gallery) else None

    def check_model(self, identity: str) -> None:
        """Raise a UserError unless the gallery contains templates of a given model, protected by the same key if any.

        Args:
            identity: `FingerprintExtractor.identity` of the model.
        """
        require(self.model == identity, f"{self.place}: {mismatch(self.model, identity)}")

    def __len__(self) -> int:
        return self._count(EVERYTHING)

    def _count(self, among: Among) -> int:
        query = f"SELECT count(*) FROM fingerprint_prints WHERE {among.condition}"
        return int(self._rows(query, among.values)[0][0])

    def _rows(self, query: str, values: dict[str, Any]) -> list[tuple]:
        with engine_errors(self.place):
            return self.connection.execute(query, values, binary=True).fetchall()

    def _by_id(self, columns: str, ids: Sequence[int]) -> list[tuple]:
        return self._rows(BY_ID.format(columns), {"ids": list(ids)})

    @property
    def _table(self) -> str:
        return f"{self.place}: fingerprint_prints"

    def selected(self, position: int = 0, person: str = "") -> Among | None:
        """Select the prints of a finger position and of a person; see `gallery_reader.GalleryReader.selected`."""
        if not (position or person):
            return None
        among = Among(position, spellings(person) if person else ())
        count = self._count(among)
        if not count:
            raise NothingSelectedError(f"{self.place}: {nothing_selected(position, person)}")
        return Among(position, among.person, count)

    def of_persons(self, persons: Sequence[str]) -> np.ndarray:
        """Return the rows (n,) int64 of all prints of the given persons; see `known`."""
        among = Among(person=tuple(spelling for person in persons for spelling in spellings(person)))
        if not among.person:
            return np.empty(0, np.int64)
        found = self._rows(f"SELECT id FROM fingerprint_prints WHERE {among.condition}", among.values)
        return np.array([row[0] for row in found], np.int64)

    def count(self, among: Among | None) -> int:
        """Return the number of prints that a search compares; see `selected`."""
        return len(self) if among is None else among.count

    def known(self, rows: np.ndarray) -> list[Known]:
        """Return the record of each print in `rows` (n,)."""
        found = self._enrolled(RECORD, rows)
        return [read_record(found[row], self._table) for row in rows.tolist()]

    def vectors(self, rows: np.ndarray) -> np.ndarray:
        """Read the embeddings of the prints in `rows` (n,); return (n, D) float32."""
        if not len(rows):
            return np.empty((0, self.dims), np.float32)
        found = self._enrolled("template", rows)
        return read_templates([found[row][0] for row in rows.tolist()], self.dims, self._table)

    def _enrolled(self, columns: str, rows: np.ndarray) -> dict[int, tuple]:
        """Return columns of the prints in `rows` (n,), by row.

        Raises:
            UserError: if a print is not enrolled any more.
        """
        found = {row[0]: row[1:] for row in self._by_id(f"id, {columns}", np.unique(rows).tolist())}
        missing = any(row not in found for row in rows.tolist())
        require(not missing, f"{self.place}: prints were removed during the search; search again")
        return found

    def search(
        self,
        probes: np.ndarray,
        k: int = 10,
        device: torch.device | str = "cpu",
        among: Among | None = None,
        indexed: bool = False,
    ) -> Hits:
        """Find the k enrolled prints that are most similar to each probe.

        PostgreSQL compares the first pose of the probe with every print, and returns candidates. Their similarity is
        computed here, in all poses.

        Args:
            probes: (M, D) float32 of unit length; or (M, P, D) with P poses of each probe.
            k: number of prints to return for each probe, limited to the number of prints that are searched.
            device: not used; the comparison runs in PostgreSQL.
            among: prints to search; see `selected`.
            indexed: select candidates by the signs of their numbers; see `engine_index.EngineIndex`.

        Raises:
            UserError: if the gallery is empty, or the dimensions of the probes and the gallery embeddings differ.
        """
        require(
            probes.ndim in (2, 3) and probes.shape[-1] == self.dims,
            f"{self.place}: contains embeddings of {self.dims} numbers, the probes have {probes.shape[-1]}; "
            "use the model that filled the gallery",
        )
        check_vectors(probes, f"{self.place}: the argument", "normalise the probes")
        poses = probes[:, None] if probes.ndim == 2 else probes
        again = poses.shape[1] > 1 or indexed
        wanted = max(MARGIN * k if indexed else MARGIN + k, RESCORED if again else 0)
        hits = [self._best(each, k, wanted, among or EVERYTHING, indexed) for each in poses]
        least = min(len(hit.row[0]) for hit in hits)  # another command may add or remove prints between two probes
        return Hits(
            np.stack([hit.similarity[0, :least] for hit in hits]), np.stack([hit.row[0, :least] for hit in hits])
        )

    def _best(self, poses: np.ndarray, k: int, wanted: int, among: Among, indexed: bool) -> Hits:
        """Search for one probe, given as its poses (P, D). `wanted` is the number of candidates to compare here."""
        distance, values = signs_of(poses[0], self.cells) if indexed else distance_of(poses[0], self.cells)
        columns = "id" if indexed else "id, template"
        query = (
            f"SELECT {columns} FROM (SELECT {columns}, {distance} AS distance FROM fingerprint_prints "
            f"WHERE {among.condition} ORDER BY distance LIMIT %(wanted)s) found"
        )
        if indexed:
            template = "SELECT id, template FROM fingerprint_prints p WHERE p.id = found.id LIMIT 1"
            query = f"SELECT p.id, p.template FROM ({query}) found, LATERAL ({template}) p"
        found = self._rows(query, {**values, **among.values, "wanted": wanted})
        require(bool(found), f"{self.place}: no print is enrolled yet; add prints with `fingerprint-accel enroll`")
        ids = np.array([row[0] for row in found], np.int64)
        order = np.argsort(ids)
        ids, templates = ids[order], read_templates([row[1] for row in found], self.dims, self._table)[order]
        return rescored(
            lambda rows: templates[np.searchsorted(ids, rows)], poses[None], ids[None], min(k, len(ids)), self.cells
        )
