"""Write files that survive a crash of the machine, and compute checksums.

This module imports only `privacy` of the package.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fingerprint_accel.privacy import private_files

OTHER_FILES = "sha256_of_other_files"  # entry of a description with the checksums of the files that are no shards
CHECKSUM = "checksum"  # entry of a JSON object with the checksum of all other entries


@contextlib.contextmanager
def errors_naming(path: Path) -> Iterator[None]:
    """Set the file name of an `OSError` in a `with` block, if it names no file or a temporary one.

    Errors of `write` and `fsync`, for example on a full disk, name no file.
    """
    try:
        yield
    except OSError as error:
        name = Path(os.fsdecode(error.filename)).name if isinstance(error.filename, str | bytes) else ""
        if not name or (name.startswith(".") and name.endswith(".tmp")):
            error.filename, error.filename2 = str(path), None
        raise


def fsync_path(path: Path) -> None:
    """Flush the content of a file, or the list of entries of a folder, to the disk."""
    with errors_naming(path):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@private_files()
def make_folder(path: Path) -> None:
    """Create a folder and its missing parents, and flush their names to the disk."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        fsync_path(folder.parent)


@private_files()
def write_file(path: Path, content: str | bytes) -> None:
    """Write or replace a file atomically, and flush it to the disk. A missing parent folder is created.

    Raises:
        OSError: If the file cannot be written. The error names `path`. An existing file is not changed.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    with errors_naming(path):
        make_folder(path.parent)
        try:
            with temporary.open("wb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            with contextlib.suppress(OSError):  # the first error is the one to report
                temporary.unlink(missing_ok=True)
        fsync_path(path.parent)


def write_json(path: Path, values: Any, checksum: bool = True) -> None:
    """Write or replace a JSON file atomically.

    Args:
        path: The file.
        values: Content of the file, a dictionary if `checksum` is True.
        checksum: Whether to add an entry with the checksum of all other entries. `untrusted.read_json` compares it.

    Raises:
        ValueError: If `values` contain NaN or infinity.
    """
    write_file(path, json_text(values, checksum))


def json_text(values: Any, checksum: bool = True) -> str:
    """Return the text that `write_json` writes. The arguments are the same."""
    if checksum:
        values = {**values, CHECKSUM: checksum_of(values)}
    return json.dumps(values, indent=2, allow_nan=False) + "\n"


def checksum_of(values: dict[str, Any]) -> str:
    """Return the checksum of a JSON object. It does not depend on the order of entries or on white space."""
    plain = json.loads(json.dumps(values))  # as a reader sees it: tuples are lists, and all keys are strings
    return hashlib.sha256(json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def draft_of(path: Path) -> Path:
    """Return a temporary path beside `path`. A file is first written to the temporary path and then renamed to `path`.

    The name contains the machine, the process and the thread, so that two writers do not use the same file.
    """
    return path.with_name(f".{socket.gethostname()}-{os.getpid()}-{threading.get_ident()}-{path.name}.tmp")


def is_being_written(draft: Path) -> bool:
    """Return whether the process that writes a file of `draft_of` may still run.

    For a process of another machine the result is True, because it cannot be found out here.
    """
    machine = f".{socket.gethostname()}-"
    process = draft.name.removeprefix(machine).partition("-")[0]
    if not draft.name.startswith(machine) or not process.isdecimal():
        return True
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # the process of another user
        return True
    return True


def file_sha256(path: Path) -> str:
    """Return the SHA-256 checksum of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
