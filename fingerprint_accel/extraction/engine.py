"""A gallery in PostgreSQL with pgvector, for galleries that outgrow one machine or need a database server.

The class has the methods of `gallery.Gallery` that enrolment, search and removal use; see `galleries`. The tables are
described in `engine_table`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Self

import numpy as np

from fingerprint_accel.errors import UserError, require
from fingerprint_accel.extraction.engine_connection import connect, engine_errors, repeatable, shown
from fingerprint_accel.extraction.engine_erasing import RECORD_ERASURE, erase
from fingerprint_accel.extraction.engine_queries import spellings
from fingerprint_accel.extraction.engine_reader import EngineReader
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
from fingerprint_accel.extraction.gallery_matches import first_of_name, is_enrolled
from fingerprint_accel.extraction.gallery_parts import Known, check_vectors, record_columns

ATTEMPTS = 5  # of an enrolment, if other commands enrol the same prints at the same time


class Engine(EngineReader):
    """A gallery in a PostgreSQL database: one embedding per print, its name, and what is known about the print.

    Arguments, attributes and the methods to search are those of `engine_reader.EngineReader`.
    """

    @classmethod
    def open_or_create(cls, url: str, dims: int, model: str, cells: int = 0) -> Self:
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

    @repeatable()
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
            if is_enrolled(template, there, embeddings[place], known[place], replace, self.place):
                new[place] = False
            else:
                gone.append(row[0])
        return new, gone

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
