"""Tables of a gallery in PostgreSQL with pgvector.

- `fingerprint_gallery` has one row, which describes the gallery: model, dimension and cells.
- `fingerprint_prints` has one row for each print, in `PARTITIONS` partitions by a hash of the name. A removed print is
  deleted from the files of PostgreSQL by rewriting its partition, so partitions bound the cost.
- `fingerprint_erasures` lists partitions that must still be rewritten because rows were deleted from them.

The templates have 16 bits per number (halfvec). `bits` contains the signs of the numbers. The index `BITS` is a copy of
these bits only, so that a search with `--index` reads 0.1 KB per print instead of 1.2 KB.

PostgreSQL collects samples of columns for its planner. They would contain names after a print was removed, so no
statistics are collected for the columns that contain personal data.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fingerprint_accel.errors import UserError, require
from fingerprint_accel.extraction.engine_connection import OLDEST_PGVECTOR, engine_errors
from fingerprint_accel.extraction.gallery_parts import FORMAT_VERSION, as_facts, checked_facts

if TYPE_CHECKING:
    import psycopg

PARTITIONS = 64
MOST_DIMS = 4000  # a row must fit into a page of 8 KB
BITS = "fingerprint_prints_bits"
CREATING = 0x66705F6163636C  # key of the advisory lock that a command holds while it creates the tables
NO_STATISTICS = ("id", "name", "person", "source", "template", "bits")
REMEDY = "give another database or schema, or restore a backup"


def table_statements(dims: int, cells: int) -> list[str]:
    """Return the SQL statements that create the tables of a gallery.

    Args:
        dims: dimension of the embeddings.
        cells: number of grid cells of a dense template, 0 for other templates; see `similarity`.
    """
    dense = f"energy halfvec({cells:d}) NOT NULL, shown halfvec({cells:d}) NOT NULL," if cells else ""
    columns = f"""
        id bigint PRIMARY KEY,
        position smallint NOT NULL CHECK (position >= 0),
        quality real NOT NULL,
        impression bigint NOT NULL,
        name text NOT NULL CHECK (name <> ''),
        person text NOT NULL,
        source text NOT NULL,
        template halfvec({dims:d}) NOT NULL,
        {dense}
        bits bit({dims:d}) GENERATED ALWAYS AS (binary_quantize(template)::bit({dims:d})) STORED
    """
    parts = [
        f"CREATE TABLE fingerprint_prints_{number:02d} PARTITION OF fingerprint_prints "
        f"FOR VALUES WITH (MODULUS {PARTITIONS}, REMAINDER {number})"
        for number in range(PARTITIONS)
    ]
    quiet = ", ".join(f"ALTER {name} SET STATISTICS 0" for name in NO_STATISTICS)
    return [
        "CREATE TABLE fingerprint_gallery (one boolean PRIMARY KEY DEFAULT true CHECK (one), "
        "format_version int NOT NULL, dims int NOT NULL, cells int NOT NULL, model text NOT NULL)",
        "CREATE TABLE fingerprint_erasures (part text NOT NULL, deleted xid8 NOT NULL)",
        f"CREATE TABLE fingerprint_prints ({columns}) PARTITION BY HASH (id)",
        *parts,
        "CREATE INDEX fingerprint_prints_person ON fingerprint_prints (person) WHERE person <> ''",
        "CREATE INDEX fingerprint_prints_position ON fingerprint_prints (position)",
        f"ALTER TABLE fingerprint_prints {quiet}",
    ]


def create_tables(connection: psycopg.Connection[Any], place: str, dims: int, model: str, cells: int) -> None:
    """Create the tables of a gallery if they are missing. A gallery without prints takes the model of the call.

    Args:
        connection: connection to the database.
        place: URL without password, for error messages.
        dims: dimension of the embeddings.
        model: identity of the model that computes the embeddings.
        cells: number of grid cells of a dense template, 0 for other templates; see `similarity`.

    Raises:
        UserError: if pgvector is missing or too old, the user lacks a right, or the dimension is too large.
    """
    require(dims <= MOST_DIMS, f"{place}: stores embeddings of at most {MOST_DIMS:,} numbers, not {dims:,}")
    with engine_errors(place), connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (CREATING,))
        found = stored_facts(connection, place)
        wanted = as_facts(dims, model, cells)
        if found is not None:
            if found == wanted or _is_filled(connection):
                return
            stored_facts(connection, place, " FOR UPDATE")  # waits for enrolments that have begun, and stops new ones
            if _is_filled(connection):
                return
            connection.execute("DROP TABLE fingerprint_prints, fingerprint_erasures, fingerprint_gallery")
        connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
        _check_pgvector(connection, place)
        for statement in table_statements(dims, cells):
            connection.execute(statement)
        connection.execute(
            "INSERT INTO fingerprint_gallery (format_version, dims, cells, model) VALUES (%s, %s, %s, %s)",
            (FORMAT_VERSION, dims, cells, model),
        )


def _is_filled(connection: psycopg.Connection[Any]) -> bool:
    """Return whether a gallery has prints. Those of transactions that have not ended are not seen."""
    row = connection.execute("SELECT EXISTS (SELECT FROM fingerprint_prints)").fetchone()
    return bool(row and row[0])


def stored_facts(connection: psycopg.Connection[Any], place: str, lock: str = "") -> dict[str, Any] | None:
    """Read the description of the gallery in a database, in the form of `as_facts`; return None if there is none.

    Args:
        connection: connection to the database.
        place: URL without password, for error messages.
        lock: clause of the query that locks the row until the end of the transaction, for example " FOR KEY SHARE".

    Raises:
        UserError: if the description is not one that `create_tables` writes.
    """
    with engine_errors(place):
        there = connection.execute("SELECT to_regclass('fingerprint_gallery') IS NOT NULL").fetchone()
        if not (there and there[0]):
            return None
        columns = "format_version, dims, cells, model"
        rows = connection.execute(f"SELECT {columns} FROM fingerprint_gallery LIMIT 2{lock}").fetchall()
    require(len(rows) == 1, f"{place}: the table fingerprint_gallery has {len(rows)} rows, not one; {REMEDY}")
    values = dict(zip(("format_version", "dims", "cells", "model"), rows[0], strict=True))
    return checked_facts(values, f"{place}: fingerprint_gallery", REMEDY)


def _check_pgvector(connection: psycopg.Connection[Any], place: str) -> None:
    """Raise a UserError unless pgvector is at least `OLDEST_PGVECTOR`."""
    row = connection.execute("SELECT extversion FROM pg_extension WHERE extname = 'vector'").fetchone()
    version = str(row[0]) if row else "none"
    numbers = tuple(int(part) for part in version.split(".") if part.isdecimal())
    if numbers < OLDEST_PGVECTOR:
        raise UserError(f"{place}: pgvector {version} is too old; run ALTER EXTENSION vector UPDATE (0.7 or newer)")


def build_index(connection: psycopg.Connection[Any], place: str) -> bool:
    """Build the index of signs if it is missing; return whether it was missing.

    PostgreSQL then keeps the index up to date. VACUUM is run after the build, because a search needs to read the table
    too for pages that were not vacuumed.

    Args:
        connection: connection to the database, outside of a transaction.
        place: URL without password, for error messages.

    Raises:
        UserError: if the user does not own the tables, or the disk is full.
    """
    with engine_errors(place), connection.transaction():
        there = connection.execute("SELECT to_regclass(%s) IS NOT NULL", (BITS,)).fetchone()
        if there and there[0]:
            return False
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (CREATING,))
        connection.execute(f"CREATE INDEX IF NOT EXISTS {BITS} ON fingerprint_prints (position) INCLUDE (id, bits)")
    with engine_errors(place):
        connection.execute("VACUUM (ANALYZE) fingerprint_prints")
    return True
