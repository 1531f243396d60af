"""Keep what the package writes private: the permissions of new files and folders, and no core files.

This module imports only `errors` of the package.
"""

from __future__ import annotations

import contextlib
import functools
import operator
import os
import re
import resource
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

from fingerprint_accel.errors import UserError

VARIABLE = "FINGERPRINT_ACCEL_UMASK"
OWNER_ONLY = 0o077
_lock = threading.Lock()
_masks: list[int] = []  # umask of each `private_files` block that is running
_before = (0, 0)  # umask and limit of core files to restore at the end of the last block


def umask() -> int:
    """Return the permissions that new files and folders do not get, as a umask.

    By default, only their owner can use them. The environment variable `FINGERPRINT_ACCEL_UMASK` changes this: `027`
    lets the group read, `007` lets the group write, and `022` lets everybody read.

    Raises:
        UserError: If the value of the variable is not a umask, or takes permissions from the owner.
    """
    text = os.environ.get(VARIABLE, "")
    if not text:
        return OWNER_ONLY
    if not re.fullmatch("0{0,2}[0-7]{1,2}", text):
        raise UserError(f"{VARIABLE}={text}: give three octal digits that begin with 0, for example 027")
    return int(text, 8)


@contextlib.contextmanager
def private_files(mask: int | None = None) -> Iterator[None]:
    """In a `with` block, create files and folders without the permissions of a umask, and no core file after a crash.

    A core file would contain the prints in memory. All threads of this process and all processes that it starts are
    affected. If several blocks run at once in different threads, the permissions of all their masks are taken. The
    function can also be used as a decorator.

    Args:
        mask: The umask. Default: `umask()`.

    Raises:
        UserError: If `FINGERPRINT_ACCEL_UMASK` is not a umask.
    """
    mask = umask() if mask is None else mask
    _enter(mask)
    try:
        yield
    finally:
        _leave(mask)


def _enter(mask: int) -> None:
    global _before
    with _lock:
        soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
        earlier = os.umask(_taken([*_masks, mask]))
        if not _masks:
            _before = (earlier, soft)
            # The limit is 1 byte, because programs that collect core files ignore the limit 0.
            resource.setrlimit(resource.RLIMIT_CORE, (1 if hard == resource.RLIM_INFINITY else min(1, hard), hard))
        _masks.append(mask)


def _leave(mask: int) -> None:
    with _lock:
        _masks.remove(mask)
        os.umask(_taken(_masks) if _masks else _before[0])
        if not _masks:
            hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
            with contextlib.suppress(ValueError):  # the hard limit was lowered in the block
                resource.setrlimit(resource.RLIMIT_CORE, (_before[1], hard))


def _taken(masks: list[int]) -> int:
    return functools.reduce(operator.or_, masks, 0)


def follow_umask(path: Path) -> None:
    """Give a new file or folder the permissions that other new files and folders have.

    Some libraries create files that only their owner can read, whatever the umask is.
    """
    with _lock:
        mask = _taken(_masks) if _masks else umask()
    mode = path.stat().st_mode
    path.chmod((mode & 0o7000) | (0o777 if stat.S_ISDIR(mode) else 0o666) & ~mask)
