"""Delete temporary files at the end of a program, also if a signal ends it.

This module imports no other module of the package.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

# Signals that end a process by default, except SIGINT, which Python handles, and faults such as SIGSEGV.
_NAMES = ("HUP", "QUIT", "USR1", "USR2", "ALRM", "TERM", "XCPU", "VTALRM", "PROF", "IO", "PWR", "STKFLT")
ENDING = tuple(getattr(signal, f"SIG{name}") for name in _NAMES if hasattr(signal, f"SIG{name}"))
SUFFIX = ".tmp"


@contextlib.contextmanager
def end_by_exception() -> Iterator[None]:
    """In a `with` block, raise `SystemExit` when a signal ends the process, so that temporary files are deleted.

    Signals that are ignored, as under nohup, remain ignored. Outside of the main thread, this function does nothing.

    Raises:
        SystemExit: After a signal, with the exit code 128 + the number of the signal.
    """
    with _handlers([number for number in ENDING if signal.getsignal(number) is signal.SIG_DFL], _end):
        yield


def _end(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


@contextlib.contextmanager
def _handlers(numbers: Iterable[int], handler: Any) -> Iterator[None]:
    """Handle signals by `handler` in a `with` block. Outside of the main thread, this function does nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: dict[int, Any] = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


@contextlib.contextmanager
def temporary_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """Create a temporary folder that only its owner can use, and delete it at the end of a `with` block.

    Folders of the same parent and prefix that killed processes of this user have left are deleted first. A running
    process holds a lock on its folder.

    Args:
        parent: Folder in which to create the folder.
        prefix: Beginning of the name of the folder.
    """
    for left in parent.glob(f"{glob.escape(prefix)}*{SUFFIX}"):
        with contextlib.suppress(OSError):  # in use, a file, a link, or on a file system without locks
            if left.lstat().st_uid == os.getuid():
                lock = _open(left)
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(left)
                finally:
                    os.close(lock)
    folder, lock = _new_folder(parent, prefix)
    try:
        yield folder
    finally:
        # A second signal must not interrupt the deletion. `getsignal` is None for handlers that Python cannot restore.
        ours = [number for number in (signal.SIGINT, *ENDING) if signal.getsignal(number) is not None]
        with _handlers(ours, signal.SIG_IGN):
            shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _new_folder(parent: Path, prefix: str) -> tuple[Path, int]:
    """Create a temporary folder and lock it. Return its path and the file descriptor that holds the lock."""
    while True:
        folder = Path(tempfile.mkdtemp(SUFFIX, prefix, parent))
        with contextlib.suppress(FileNotFoundError):
            lock = _open(folder)
            with contextlib.suppress(OSError):  # without file locks, no process deletes the folder of another
                fcntl.flock(lock, fcntl.LOCK_EX)
            if folder.exists():
                return folder, lock
            os.close(lock)
        # Another process deleted the folder before this process could lock it. Try again.


def _open(folder: Path) -> int:
    """Open a folder for locking, and return the file descriptor. Symbolic links are not followed."""
    return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
