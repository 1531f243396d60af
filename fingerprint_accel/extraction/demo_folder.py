"""Where the demo keeps dropped prints: a folder for their owner alone that is gone when the demo ends."""

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
# What ends a process unless it is caught, except Ctrl-C, which has Python's handler, and faults of the process itself.
_NAMES = ("HUP", "QUIT", "ABRT", "USR1", "USR2", "ALRM", "TERM", "XCPU", "VTALRM", "PROF", "IO", "PWR", "STKFLT")
ENDING = tuple(getattr(signal, f"SIG{name}") for name in _NAMES if hasattr(signal, f"SIG{name}"))


@contextlib.contextmanager
def dropped_prints() -> Iterator[Path]:
    """Yields a folder of mode 0700 that is removed in the end, also by a signal; first removes what killed demos left.

    A signal that is ignored, as under nohup, stays ignored.

    Raises:
        SystemExit: a signal came; its code is 128 plus the number of the signal.
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
            if handler is not None:  # None: not installed by Python, which cannot put it back
                signal.signal(number, handler)


def remove_leftovers() -> None:
    """Removes this user's folders of demos that run no longer: nobody locks them."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):  # locked by a running demo, on a disk without locks, or gone already
            if folder.lstat().st_uid != os.getuid():
                continue
            lock = _open(folder)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder)
            finally:
                os.close(lock)


def _new_folder() -> tuple[Path, int]:
    """A folder, and the descriptor that locks it for as long as this process lives."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX))
        with contextlib.suppress(FileNotFoundError):
            lock = _open(folder)
            with contextlib.suppress(OSError):  # a disk without locks: there no demo takes a folder for a leftover
                fcntl.flock(lock, fcntl.LOCK_EX)
            if folder.exists():
                return folder, lock
            os.close(lock)
        # another demo, starting up, removed the folder before it was locked


def _open(folder: Path) -> int:
    return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)


def _end(number: int, frame: FrameType | None) -> NoReturn:
    _ignore_signals()
    raise SystemExit(128 + number)


def _ignore_signals() -> None:
    """A second signal must not interrupt the removal."""
    for number in (signal.SIGINT, *ENDING):
        if signal.getsignal(number) is not None:
            signal.signal(number, signal.SIG_IGN)
