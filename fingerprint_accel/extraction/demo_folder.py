"""Temporary folder for the image files that a user drops on the demo page.

Only the owner can read the folder. It is deleted when the demo ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

PREFIX = "fingerprint-accel-demo-"
# Signals that end a process by default, except SIGINT, which Python handles, and faults such as SIGSEGV.
_NAMES = ("HUP", "QUIT", "ABRT", "USR1", "USR2", "ALRM", "TERM", "XCPU", "VTALRM", "PROF", "IO", "PWR", "STKFLT")
ENDING = tuple(getattr(signal, f"SIG{name}") for name in _NAMES if hasattr(signal, f"SIG{name}"))


@contextlib.contextmanager
def dropped_prints() -> Iterator[Path]:
    """Create a temporary folder of mode 0700, and delete it on exit or when a signal ends the process.

    Folders that were left behind by killed demos are deleted first. Signals that are ignored, as under nohup, remain
    ignored.

    Yields:
        Path of the folder.

    Raises:
        SystemExit: after a signal, with the exit code 128 + the signal number.
    """
    remove_leftovers()
    before: dict[int, Any] = {number: signal.getsignal(number) for number in (signal.SIGINT, *ENDING)}
    for number in ENDING:
        if before[number] is signal.SIG_DFL:
            signal.signal(number, _end)
    try:
        folder, lock = _new_folder()
        try:
            yield folder
        finally:
            _ignore_signals()
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)
    finally:
        for number, handler in before.items():
            if handler is not None:  # None means that the handler was not set by Python, so it cannot be restored
                signal.signal(number, handler)


def remove_leftovers() -> None:
    """Delete the temporary folders that killed demos of this user left behind.

    A running demo holds a lock on its folder, so a folder without a lock belongs to no running demo.
    """
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):  # locked by a running demo, a file system without locks, or deleted
            if folder.lstat().st_uid != os.getuid():
                continue
            lock = _open(folder)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder)
            finally:
                os.close(lock)


def _new_folder() -> tuple[Path, int]:
    """Create a temporary folder and lock it; return its path and the file descriptor that holds the lock."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX))
        with contextlib.suppress(FileNotFoundError):
            lock = _open(folder)
            with contextlib.suppress(OSError):  # without file locks, `remove_leftovers` deletes nothing either
                fcntl.flock(lock, fcntl.LOCK_EX)
            if folder.exists():
                return folder, lock
            os.close(lock)
        # Another demo deleted the folder at its start, before this process could lock it. Try again.


def _open(folder: Path) -> int:
    """Open a folder for locking, and return the file descriptor; symbolic links are not followed."""
    return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)


def _end(number: int, frame: FrameType | None) -> NoReturn:
    """Handle a signal: end the process with the exit code 128 + the signal number."""
    _ignore_signals()
    raise SystemExit(128 + number)


def _ignore_signals() -> None:
    """Ignore the signals that end a process, so that a second one cannot interrupt the deletion of the folder."""
    for number in (signal.SIGINT, *ENDING):
        if signal.getsignal(number) is not None:
            signal.signal(number, signal.SIG_IGN)
