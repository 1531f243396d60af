"""Connect to PostgreSQL, and turn its errors into one line for the user.

Passwords are neither printed nor stored. The module imports psycopg when the first connection is opened, because the
package is optional.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from fingerprint_accel.errors import UserError, require
from fingerprint_accel.untrusted import reason_of

if TYPE_CHECKING:
    import psycopg

URL = re.compile(r"postgres(?:ql)?:", re.IGNORECASE)  # also with a slash too few, which `connect` reports
OLDEST_PGVECTOR = (0, 7, 0)  # the first version with halfvec, binary_quantize and distances of bit strings
PATIENCE_MS = 60_000  # time to wait for a lock of another command
KEEPALIVE = {"keepalives_idle": "30", "keepalives_interval": "10", "keepalives_count": "3"}  # a lost server is noticed
AGAIN = "run the same command again"

REMEDIES = {
    "08": f"the connection was lost; {AGAIN}",
    "0A000": "install pgvector 0.7 or newer on the server (Debian: postgresql-18-pgvector), then run the command again",
    "25006": "the server is read-only, for example a standby; give the URL of the primary server",
    "3D000": "create the database (createdb), or correct the URL",
    "28": "correct the user of the URL, and give the password by PGPASSWORD or ~/.pgpass",
    "42501": "ask the owner of the database for the right",
    "42P01": "`fingerprint-accel enroll` makes a gallery",
    "42703": "its tables were made by another program or version; give another database or schema",
    "42883": "pgvector is older than 0.7 or outside of search_path; update it (ALTER EXTENSION vector UPDATE)",
    "42704": "pgvector is older than 0.7 or outside of search_path; update it (ALTER EXTENSION vector UPDATE)",
    "53100": "free space on the server; then run the command again",
    "53300": "wait until other clients have disconnected, or raise max_connections",
    "54000": "shorten the name, person or source of the prints",
    "55P03": "another command is changing the gallery; try again later",
    "57": f"the server stopped the command; {AGAIN}",
    "58P01": "install pgvector 0.7 or newer on the server (Debian: postgresql-18-pgvector), then run the command again",
}
"""Remedies by SQLSTATE, or by its first two characters, which are its class."""


def is_url(place: object) -> bool:
    """Return whether a gallery is given by the URL of a PostgreSQL database, not by a folder."""
    return URL.match(str(place)) is not None


def shown(url: str) -> str:
    """Return a URL without password and options, for messages: postgresql://USER@HOST/DATABASE."""
    scheme, user, address = _split(url)
    users, at, hosts = f"{user}{address}".rpartition("@")
    return f"{scheme}{users.partition(':')[0]}{at}{hosts}"


def _split(url: str) -> tuple[str, str, str]:
    """Split a URL into SCHEME://, USER:PASSWORD@ as libpq reads it, and HOST/DATABASE without options.

    For libpq, user and password end at the first @ that no / precedes. They may contain ? and #. Options have the form
    ?NAME=VALUE.
    """
    start = re.match(r"[^:]*:/{0,2}", url)
    scheme = start[0] if start else ""
    rest = url.removeprefix(scheme)
    found = re.match(r"[^/@]*@", rest)
    user = found[0] if found else ""
    return scheme, user, re.split(r"\?(?=[^@]*=)", rest.removeprefix(user))[0]


def connect(url: str) -> psycopg.Connection[Any]:
    """Connect to a database. psycopg begins a transaction only with `connection.transaction()`.

    Host, user and password that the URL lacks come from the variables of libpq (`PGPASSWORD`, ...) and `~/.pgpass`.

    Raises:
        UserError: if psycopg is not installed, the URL is malformed, or the server cannot be reached.
    """
    place = shown(url)
    try:
        import psycopg
        from psycopg.conninfo import conninfo_to_dict
    except ImportError as error:
        raise UserError(f"{place}: needs psycopg: pip install 'fingerprint-accel[engine]'") from error
    remedy = "write it as postgresql://USER@HOST/DATABASE, with %40 for @ and the like in a password"
    malformed = f"{place}: not a valid URL; {remedy}"
    scheme, _, address = _split(url)
    require(scheme.endswith("://"), malformed)
    require("@" not in address, malformed)  # libpq would name a part of the password as host or database
    try:
        given = conninfo_to_dict(url)
    except psycopg.Error as error:  # its message may contain a part of the password
        raise UserError(malformed) from error
    options = {**KEEPALIVE, "application_name": "fingerprint-accel"}
    options |= {} if "PGCONNECT_TIMEOUT" in os.environ else {"connect_timeout": "10"}
    with engine_errors(place):
        opened = psycopg.connect(**{**options, **given}, autocommit=True)  # type: ignore[arg-type]
        # Compiling a query takes longer than it saves here. A command waits a minute for a lock, as for a folder.
        opened.execute(f"SET jit = off; SET lock_timeout = {PATIENCE_MS}; SET client_encoding = 'UTF8'")
    return opened


@contextlib.contextmanager
def engine_errors(place: str) -> Iterator[None]:
    """Turn an error of PostgreSQL in a `with` block into a `UserError` with one line.

    Args:
        place: URL without password, see `shown`.

    Raises:
        UserError: if PostgreSQL reports an error. The message contains the reason and the remedy.
    """
    import psycopg

    try:
        yield
    except psycopg.Error as error:
        raise UserError(f"{place}: {_reason(error)}; {_remedy(error)}") from error


@contextlib.contextmanager
def repeatable() -> Iterator[None]:
    """Add to an error in a `with` block that asks for the same command again what an enrolment does then.

    Raises:
        UserError: the error, with the addition.
    """
    try:
        yield
    except UserError as error:
        if not str(error).endswith(AGAIN):
            raise
        raise UserError(f"{error}: what is enrolled already is skipped") from error


def _reason(error: psycopg.Error) -> str:
    """Return the reason of an error in a few words: the message of the server, or the last line of libpq."""
    primary = error.diag.message_primary
    if primary:
        return reason_of(ValueError(primary))
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and not line.startswith("\t")]
    words = lines[-1].rpartition("failed: ")[2] if lines else type(error).__name__
    return reason_of(ValueError(words))


def _remedy(error: psycopg.Error) -> str:
    state = error.sqlstate or ""
    remedy = REMEDIES.get(state) or REMEDIES.get(state[:2])
    if remedy:
        return remedy
    # libpq reports no SQLSTATE before it is connected
    if any(word in str(error) for word in ("authentication", "password", 'role "')):
        return REMEDIES["28"]
    if "does not exist" in str(error):
        return REMEDIES["3D000"]
    if not state:
        return f"check that the server runs and can be reached; then {AGAIN}"
    return f"PostgreSQL reports the error {state}; see the log of the server"
