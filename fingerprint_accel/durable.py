"""Files that outlast a crash of the machine, and their checksums. A leaf module."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import threading
from pathlib import Path
from typing import Any


def fsync_path(path: Path) -> None:
    """Has a file, or the names in a folder, written to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_file(path: Path, content: str | bytes) -> None:
    """Writes or replaces a file; a reader or a crash never meets half of it. Makes the folder it lies in."""
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
    """Writes or replaces a JSON file, as `write_file` does; numbers that are not finite are a ValueError."""
    write_file(path, json.dumps(values, indent=2, allow_nan=False) + "\n")


def draft_of(path: Path) -> Path:
    """What a file is called while it is written, by no other thread on any machine at the same time."""
    return path.with_name(f".{socket.gethostname()}-{os.getpid()}-{threading.get_ident()}-{path.name}.tmp")


def file_sha256(path: Path) -> str:
    """Of the content of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
