"""Memory-mapped files: what the system is told about the pages that are wanted next, or no longer."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa

PAGE = mmap.PAGESIZE
_MADVISE = ctypes.CDLL(None).madvise  # an `mmap.mmap` has it as a method, but holds a file descriptor for each file
_MADVISE.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


class MappedFile:
    """A file mapped into memory for reading. It holds no file descriptor, so there may be any number of them.

    Attributes:
        buffer: all of it, without a copy; it keeps the mapping alive.

    Raises:
        OSError: it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with pa.memory_map(str(path)) as file:
            self.buffer = file.read_buffer(file.size())

    def __len__(self) -> int:
        return self.buffer.size

    def offset(self, address: int) -> int:
        """Where in the file a memory address of the mapping lies, bytes."""
        return address - self.buffer.address

    def read_only_what_is_touched(self) -> None:
        """Switches off the system's own read-ahead, which guesses wrong where rows come in random order."""
        self._advise("MADV_RANDOM", 0, len(self))

    def wanted(self, starts: np.ndarray, length: np.ndarray) -> None:
        """Has the system fetch pieces in the background: starts (N,) ascending and length (N,), bytes."""
        for start, end in _merged(starts // PAGE * PAGE, starts + length):
            self._advise("MADV_WILLNEED", start, end - start)

    def unmap_pages(self) -> None:
        """Takes its pages out of this process's memory; they stay in the system's cache while there is room."""
        self._advise("MADV_DONTNEED", 0, len(self))

    def _advise(self, advice: str, start: int, length: int) -> None:
        option = getattr(mmap, advice, None)
        if option is not None:
            _MADVISE(self.buffer.address + start, min(length, len(self) - start), option)


def _merged(starts: np.ndarray, ends: np.ndarray) -> Iterable[tuple[int, int]]:
    """Ascending pieces, joined where they touch."""
    apart = np.flatnonzero(starts[1:] > ends[:-1])
    first, last = np.concatenate([[0], apart + 1]), np.concatenate([apart, [len(starts) - 1]])
    return zip(starts[first].tolist(), ends[last].tolist(), strict=True)


def resident_files() -> int:
    """Bytes of mapped files in this process's resident memory; 0 where the system does not tell.

    It is more than was read: a system that caches a file in large pieces maps them whole.
    """
    try:
        return int(Path("/proc/self/statm").read_text().split()[2]) * PAGE
    except OSError:
        return 0


def memory_of_machine() -> int:
    """Bytes of memory that this process may use at most: of the machine, or of its control group."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in _control_group_files():
        with contextlib.suppress(OSError, ValueError):  # not there, or "max"
            limits.append(int(path.read_text()))
    return min(limits)


def _control_group_files() -> Iterable[Path]:
    root, memberships = Path("/sys/fs/cgroup"), ["0::/", "0:memory:/"]
    with contextlib.suppress(OSError):
        memberships += Path("/proc/self/cgroup").read_text().splitlines()
    for line in memberships:
        _, controllers, group = line.split(":", 2)
        if controllers == "":
            yield root / group.lstrip("/") / "memory.max"
        elif "memory" in controllers.split(","):
            yield root / "memory" / group.lstrip("/") / "memory.limit_in_bytes"
