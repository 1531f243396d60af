"""Erase deleted prints from the files of PostgreSQL.

PostgreSQL keeps a deleted row in its file until the space is used again, also after a plain VACUUM. VACUUM FULL writes
a new file without it. While a transaction runs that began before the deletion, for example a backup by pg_dump, the row
is kept for this transaction, so the partition stays listed until a later command rewrites it.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from fingerprint_accel.extraction.engine_connection import engine_errors

if TYPE_CHECKING:
    import psycopg

RECORD_ERASURE = """
    WITH gone AS ({}), listed AS (
        INSERT INTO fingerprint_erasures (part, deleted)
        SELECT DISTINCT part, pg_current_xact_id() FROM gone
    ) SELECT count(*) FROM gone"""
"""Query around a DELETE that returns `part`, the partition of each row. It returns the number of deleted rows."""
LISTED = """
    SELECT part, max(deleted)::text FROM fingerprint_erasures
    WHERE part IN (SELECT relid::regclass::text FROM pg_partition_tree('fingerprint_prints') WHERE isleaf)
    GROUP BY part ORDER BY part"""
IS_ERASED = """
    SELECT age(relfrozenxid) < age(%(deleted)s::xid8::xid)
        OR %(deleted)s::xid8 >= pg_snapshot_xmax(pg_current_snapshot())
    FROM pg_class WHERE oid = %(part)s::regclass"""
"""Whether a table was rewritten when no transaction could see rows that were deleted in a given transaction. After
`pg_restore`, the transaction may lie in the future, and the table has no deleted rows."""

FORGET = "DELETE FROM fingerprint_erasures WHERE part = %s AND deleted <= %s::xid8"


def erase(connection: psycopg.Connection[Any], place: str) -> None:
    """Rewrite the partitions from which rows were deleted. A note is printed if a partition cannot be rewritten now.

    Args:
        connection: connection to the database, outside of a transaction.
        place: URL without password, for messages.

    Raises:
        UserError: if the server cannot be reached, or the disk is full.
    """
    kept = []
    with engine_errors(place):
        listed = connection.execute(LISTED).fetchall()
        for part, deleted in tqdm(listed, desc="erasing", unit="partition", delay=2):
            connection.execute(f"VACUUM (FULL) {part}")  # a regclass as text is quoted
            row = connection.execute(IS_ERASED, {"deleted": deleted, "part": part}).fetchone()
            if row and row[0]:
                connection.execute(FORGET, (part, deleted))
            else:
                kept.append(part)
    if kept:
        print(
            f"note: {place}: deleted prints cannot be found any more, but remain in the data files of {len(kept)} "
            "partitions, because another transaction is open (a backup?) or you do not own the table; later, the owner "
            "can run `VACUUM FULL fingerprint_prints`, or `remove` again",
            file=sys.stderr,
        )
