"""Write files that survive a crash of the machine, and compute checksums.

This module imports no other module of the package.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import threading
from pathlib import Path
from typing import Any


def fsync_path(path: Path) -> None:
    """Flush the content of a file, or the list of entries of a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_file(path: Path, content: str | bytes) -> None:
    """Write or replace a file atomically, and flush it to the disk. A missing parent folder is created."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    fsync_path(path.parent)


def write_json(path: Path, values: Any) -> None:
    """Write or replace a JSON file atomically.

    Raises:
        ValueError: If `values` contain NaN or infinity.
    """
    write_file(path, json.dumps(values, indent=2, allow_nan=False) + "\n")


def draft_of(path: Path) -> Path:
    """Return a temporary path beside `path`. A file is first written to the temporary path and then renamed to `path`.

    The name contains the machine, the process and the thread, so that two writers do not use the same file.
    """
    return path.with_name(f".{socket.gethostname()}-{os.getpid()}-{threading.get_ident()}-{path.name}.tmp")


def file_sha256(path: Path) -> str:
    """Return the SHA-256 checksum of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
