"""A gallery in PostgreSQL with pgvector, for galleries that outgrow one machine or need a database server.

The class has the methods of `gallery.Gallery` that enrolment, search and removal use; see `galleries`. The tables are
described in `engine_table`. PostgreSQL compares the probe with every print that the filters select and returns the best
candidates, whose similarity is then computed as in a folder. Rows are numbered by the ids of the table.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from fingerprint_accel.errors import UserError, require
from fingerprint_accel.extraction.engine_connection import connect, engine_errors, shown
from fingerprint_accel.extraction.engine_erasing import RECORD_ERASURE, erase
from fingerprint_accel.extraction.engine_queries import (
    BY_ID,
    EVERYTHING,
    Among,
    distance_of,
    signs_of,
    spellings,
)
from fingerprint_accel.extraction.engine_rows import (
    COLUMNS,
    DENSE,
    RECORD,
    copy_rows,
    print_id,
    read_record,
    read_templates,
)
from fingerprint_accel.extraction.engine_table import create_tables, stored_facts
from fingerprint_accel.extraction.gallery_matches import first_of_name, is_same
from fingerprint_accel.extraction.gallery_parts import (
    Known,
    NothingSelectedError,
    check_vectors,
    nothing_selected,
    record_columns,
)
from fingerprint_accel.extraction.gallery_search import RESCORED, Hits, rescored
from fingerprint_accel.extraction.protection import mismatch

MARGIN = 20  # candidates per print to return, because PostgreSQL ranks by float16 probes
ATTEMPTS = 5  # of an enrolment, if other commands enrol the same prints at the same time


class Engine:
    """A gallery in a PostgreSQL database: one embedding per print, its name, and what is known about the print.

    Args:
        url: postgresql://USER@HOST/DATABASE of an existing gallery; `open_or_create` creates one.

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
    def open_or_create(cls, url: str, dims: int, model: str, cells: int = 0) -> Engine:
        """Open a gallery, or create its tables if they are missing. A gallery without prints takes the model.

        Args:
            url: postgresql://USER@HOST/DATABASE.
            dims: dimension of the embeddings.
            model: identity of the model that computes the embeddings, see `FingerprintExtractor.identity`.
            cells: number of grid cells of a dense template, 0 for other templates; see `similarity`.

        Raises:
            UserError: if the database contains a gallery of another model, or pgvector is missing.
        """
        with connect(url) as connection:
            create_tables(connection, shown(url), dims, model, cells)
        gallery = cls(url)
        gallery.check_model(model)
        return gallery

    @classmethod
    def open_if_filled(cls, url: str) -> Engine | None:
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

    def append(self, embeddings: np.ndarray, prints: Sequence[str | Known], replace: bool = False) -> int:
        """Enrol prints in one transaction: either all of them or none; see `gallery.Gallery.append`.

        Args:
            embeddings: (N, D) float32 of unit length.
            prints: name or record of each print.
            replace: replace an enrolled print of the same name if its embedding or its record differs.

        Returns:
            Number of prints that were added, including prints that replaced enrolled ones.

        Raises:
            UserError: for the same reasons as `gallery.Gallery.append`, and if the server cannot be reached.
        """
        require(
            embeddings.shape == (len(prints), self.dims),
            f"{self.place}: {len(prints)} names need embeddings ({len(prints)}, {self.dims}), not {embeddings.shape}",
        )
        known = [Known(each) if isinstance(each, str) else each for each in prints]
        check_vectors(embeddings, f"{self.place}: the argument", "normalise them")
        record_columns(known)  # raises an error if a record is not valid
        from psycopg.errors import UniqueViolation

        first = first_of_name(embeddings, known)
        new, erased = first, False
        look = bool(known) and bool(self._by_id("id", [print_id(known[0].name)]))
        for attempt in range(ATTEMPTS):
            try:
                with engine_errors(self.place), self._changing():
                    if attempt or look:  # otherwise, assume that none of the prints is enrolled yet
                        new, gone = self._conflicts(embeddings, known, first, replace)
                        erased = self._delete("id = ANY(%(ids)s)", {"ids": gone}) > 0
                    self._copy(embeddings[new], [each for each, is_new in zip(known, new, strict=True) if is_new])
                break
            except UserError as error:
                if not isinstance(error.__cause__, UniqueViolation) or attempt == ATTEMPTS - 1:
                    raise
        if erased:
            erase(self.connection, self.place)
        return int(new.sum())

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        """Run a `with` block in a transaction, in which the gallery cannot be replaced by one of another model."""
        with self.connection.transaction():
            found = stored_facts(self.connection, self.place, " FOR KEY SHARE")
            same = found == self._facts
            require(same, f"{self.place}: was filled by another model in the meantime; try again")
            yield

    def _copy(self, embeddings: np.ndarray, known: Sequence[Known]) -> None:
        columns = ", ".join(COLUMNS + (DENSE if self.cells else ()))
        command = f"COPY fingerprint_prints ({columns}) FROM STDIN (FORMAT BINARY)"
        if known:
            with self.connection.cursor().copy(command) as copy:
                for piece in copy_rows(embeddings, known, self.cells):
                    copy.write(piece)

    def _conflicts(
        self, embeddings: np.ndarray, known: Sequence[Known], first: np.ndarray, replace: bool
    ) -> tuple[np.ndarray, list[int]]:
        """Find prints that are enrolled already; return which prints to add (N,) bool, and the ids of rows to delete.

        Raises:
            UserError: if an enrolled print has the same name but another embedding, and `replace` is not set.
        """
        row_of = {print_id(each.name): row for row, each in enumerate(known) if first[row]}
        found = self._by_id(f"id, template, {RECORD}", list(row_of))
        new, gone = first.copy(), []
        templates = read_templates([row[1] for row in found], self.dims, self._table)
        for row, template in zip(found, templates, strict=True):
            place, there = row_of[row[0]], read_record(row[2:], self._table)
            name = known[place].name
            require(there.name == name, f"{name}: has the same hash as {there.name}; rename the print")
            same = is_same(template, embeddings[place])
            if same and not (replace and there != known[place]):
                new[place] = False
                continue
            if not replace:
                raise UserError(
                    f"{name}: already enrolled from another image; --replace replaces it, "
                    f"`fingerprint-accel remove {self.place} --name` deletes it"
                )
            gone.append(row[0])
        return new, gone

    def _by_id(self, columns: str, ids: Sequence[int]) -> list[tuple]:
        return self._rows(BY_ID.format(columns), {"ids": list(ids)})

    @property
    def _table(self) -> str:
        return f"{self.place}: fingerprint_prints"

    def remove(self, person: str = "", names: Iterable[str] = ()) -> int:
        """Delete all prints of a person, or the prints with the given names, also from the files of PostgreSQL.

        The rows are deleted in one transaction. Then the partitions that contained them are rewritten.

        Args:
            person: person to delete; empty to delete by name.
            names: names of prints to delete; ignored if `person` is given.

        Returns:
            Number of prints that were deleted.

        Raises:
            UserError: if the person or one of the names is not enrolled; nothing is deleted then.
        """
        erase(self.connection, self.place)  # what a killed command has left
        with engine_errors(self.place), self._changing():
            if person:
                count = self._delete("person = ANY(%(person)s)", {"person": list(spellings(person))})
                require(count > 0, f"{self.place}: no print of person {person} is enrolled")
            else:
                count = self._delete_names(set(names))
        erase(self.connection, self.place)
        return count

    def _delete_names(self, names: set[str]) -> int:
        ids = {print_id(spelling): name for name in names for spelling in spellings(name)}
        found = {ids[row[0]] for row in self._by_id("id", list(ids))}
        missing = sorted(names - found)
        require(not missing, f"{self.place}: no print of name {', '.join(missing[:3])} is enrolled")
        return self._delete("id = ANY(%(ids)s)", {"ids": list(ids)})

    def _delete(self, condition: str, values: dict[str, Any]) -> int:
        """Delete rows, and record that their partitions must be rewritten; return the number of rows."""
        deleted = f"DELETE FROM fingerprint_prints WHERE {condition} RETURNING tableoid::regclass::text AS part"
        return int(self._rows(RECORD_ERASURE.format(deleted), values)[0][0])

    def selected(self, position: int = 0, person: str = "") -> Among | None:
        """Select the prints of a finger position and of a person; see `gallery.Gallery.selected`."""
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
        return Hits(np.stack([hit.similarity[0] for hit in hits]), np.stack([hit.row[0] for hit in hits]))

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
