"""Name the file if reading a memory-mapped file fails, because the file became shorter or its disk has failed.

The operating system reports such a failure as the signal SIGBUS, whose default action ends the process without a word.
The `signal` module of Python cannot handle it: Python runs handlers between two bytecode instructions, but the
processor repeats the read until the handler has run. This module therefore installs a handler in C with `ctypes`.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
import weakref
from pathlib import Path

EXIT_CODE = 2
SA_SIGINFO = 4
SI_ADDR = 16  # offset of the address in `siginfo_t` on 64-bit Linux
SUPPORTED = sys.platform == "linux" and sys.maxsize > 2**32
_HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)


class _Action(ctypes.Structure):
    """`struct sigaction` of glibc and musl."""

    _fields_ = (
        ("handler", ctypes.c_void_p),
        ("mask", ctypes.c_ulong * 16),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    )


_mapped: dict[int, tuple[int, Path]] = {}  # from the address of each mapped file to its size and path
_previous = _Action()
_installing, _ending = threading.Lock(), threading.Lock()
_installed = False


def watch(address: int, size: int, path: Path) -> None:
    """Name `path` if reading its mapping fails. The first call installs the handler of the signal.

    Args:
        address: Address of the mapping.
        size: Size of the mapping, bytes.
        path: The file.
    """
    global _installed
    _mapped[address] = (size, path)
    if not _installed:
        with _installing:
            if SUPPORTED and not _installed:
                handler = ctypes.cast(_handler, ctypes.c_void_p)
                _sigaction(ctypes.byref(_Action(handler=handler, flags=SA_SIGINFO)), ctypes.byref(_previous))
            _installed = True


def watch_mapped(path: Path, owner: object) -> None:
    """Name `path` if reading it fails, for a file that another library has mapped.

    Args:
        path: The file.
        owner: Object that owns the mapping. The file is forgotten when it is deleted.
    """
    number = str(path.stat().st_ino)
    for line in Path("/proc/self/maps").read_text(errors="surrogateescape").splitlines() if SUPPORTED else ():
        where, _, _, _, inode, *name = line.split(maxsplit=5)
        if inode == number and name and name[0].endswith(path.name):
            start, end = (int(address, 16) for address in where.split("-"))
            watch(start, end - start, path)
            weakref.finalize(owner, forget, start)


def forget(address: int) -> None:
    """Revoke a call of `watch`, before the file is unmapped."""
    _mapped.pop(address, None)


# Python code in a signal handler is safe enough here, because the handler only runs if a read of file content faults.
# The faulting thread is then inside such a read (in numpy, pyarrow or lz4) and not in the memory allocator, and it
# either holds the GIL, which ctypes recognises, or it has released the GIL, and ctypes acquires it. The handler ends
# the process, so it does not matter in which state the read has left the objects of the thread.
@_HANDLER
def _handler(number: int, info: int, context: int) -> None:
    address = ctypes.c_void_p.from_address(info + SI_ADDR).value or 0
    for start, (size, path) in list(_mapped.items()):
        if start <= address < start + size:
            if _ending.acquire(blocking=False):
                os.write(2, f"\nerror: {_line(path, size)}\n".encode(errors="surrogateescape"))
            else:  # another thread writes the line, and ends the process
                time.sleep(1)
            os._exit(EXIT_CODE)
    # Another memory-mapped file: return to the previous handler, for which the processor repeats the read.
    _sigaction(ctypes.byref(_previous), None)


def _line(path: Path, size: int) -> str:
    try:
        shorter = path.stat().st_size < size
    except OSError:
        shorter = False
    what = "became shorter while it was read" if shorter else "cannot be read any more, because its disk has failed"
    return f"{path}: {what}; restore it from a copy, then run the same command again (training: with --resume auto)"


def _sigaction(action: object, previous: object) -> None:
    ctypes.CDLL(None).sigaction(int(signal.SIGBUS), action, previous)
