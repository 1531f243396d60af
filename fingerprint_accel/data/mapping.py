"""Memory-mapped files with hints to the operating system (`madvise`) about the pages in use."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from fingerprint_accel.data import bus_errors
from fingerprint_accel.untrusted import UnreadableError, regular_descriptor

PAGE = mmap.PAGESIZE
# `mmap.mmap` offers these functions as methods, but keeps a file descriptor open for each file.
_C = ctypes.CDLL(None, use_errno=True)
_MMAP, _MUNMAP, _MADVISE = _C.mmap, _C.munmap, _C.madvise
_MMAP.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
_MMAP.restype = ctypes.c_void_p
_MUNMAP.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_MADVISE.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_FAILED = ctypes.c_void_p(-1).value


@dataclass(frozen=True)
class FileState:
    """State of a file, which changes if the file is written or replaced.

    Attributes:
        device: number of the device that contains the file.
        inode: number of the file on its device.
        size: size of the file, bytes.
        modified: time of the last write, nanoseconds.
        changed: time of the last write or change of name or permissions, nanoseconds. Programs cannot set it.
    """

    device: int
    inode: int
    size: int
    modified: int
    changed: int

    @classmethod
    def of(cls, stated: os.stat_result) -> FileState:
        """Return the state of a file from the result of `os.stat`."""
        return cls(stated.st_dev, stated.st_ino, stated.st_size, stated.st_mtime_ns, stated.st_ctime_ns)


class _Mapping:
    """Owner of a mapping, which ends with this object. The arguments are those of mmap(2)."""

    def __init__(self, descriptor: int, size: int, path: Path) -> None:
        self.address, self.size = 0, size
        found = _MMAP(None, size, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, 0)
        if found == _FAILED:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(path))
        self.address = found
        bus_errors.watch(found, size, path)

    # The defaults keep the functions alive until the interpreter has shut down.
    def __del__(self, forget: Callable[[int], None] = bus_errors.forget, unmap: Any = _MUNMAP) -> None:
        if self.address:
            forget(self.address)
            unmap(self.address, self.size)


class MappedFile:
    """File that is memory-mapped for reading.

    No file descriptor stays open, so the number of mapped files is not limited. If the file becomes shorter while it is
    read, the process ends with an error message that names the file, see `bus_errors`.

    Attributes:
        path: path of the file.
        buffer: contents of the file, without a copy. The mapping exists as long as the buffer.
        state: state of the file when it was mapped.

    Raises:
        OSError: if the file cannot be opened.
        UnreadableError: if it is not a regular file, or is empty.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        descriptor = regular_descriptor(path)
        try:
            self.state = FileState.of(os.fstat(descriptor))
            if not self.state.size:
                raise UnreadableError("is empty")
            mapping = _Mapping(descriptor, self.state.size, path)
        finally:
            os.close(descriptor)
        self.buffer = pa.foreign_buffer(mapping.address, mapping.size, mapping)

    def __len__(self) -> int:
        return self.buffer.size

    def offset(self, address: int) -> int:
        """Convert a memory address in the mapping to an offset in the file, bytes."""
        return address - self.buffer.address

    def read_only_what_is_touched(self) -> None:
        """Disable the read-ahead of the operating system, which wastes reads if rows are read in random order."""
        self._advise("MADV_RANDOM", 0, len(self))

    def wanted(self, starts: np.ndarray, length: np.ndarray) -> None:
        """Ask the operating system to load parts of the file in the background.

        Args:
            starts: (N,) offsets of the parts in ascending order, bytes.
            length: (N,) lengths of the parts, bytes.
        """
        for start, end in _merged(starts // PAGE * PAGE, starts + length):
            self._advise("MADV_WILLNEED", start, end - start)

    def unmap_pages(self) -> None:
        """Remove the pages of the file from the memory of this process.

        The pages stay in the page cache of the operating system while there is free memory.
        """
        self._advise("MADV_DONTNEED", 0, len(self))

    def _advise(self, advice: str, start: int, length: int) -> None:
        option = getattr(mmap, advice, None)
        if option is not None:
            _MADVISE(self.buffer.address + start, min(length, len(self) - start), option)


def _merged(starts: np.ndarray, ends: np.ndarray) -> Iterable[tuple[int, int]]:
    """Merge intervals that touch or overlap.

    Args:
        starts: (N,) starts of the intervals, ascending.
        ends: (N,) ends of the intervals, ascending.

    Returns:
        Start and end of each merged interval.
    """
    apart = np.flatnonzero(starts[1:] > ends[:-1])
    first, last = np.concatenate([[0], apart + 1]), np.concatenate([apart, [len(starts) - 1]])
    return zip(starts[first].tolist(), ends[last].tolist(), strict=True)


def resident_files() -> int:
    """Return the number of bytes of mapped files that are in the memory of this process.

    The result can exceed the number of bytes read, because the operating system may map large pages. It is 0 on systems
    without `/proc`.
    """
    try:
        return int(Path("/proc/self/statm").read_text().split()[2]) * PAGE
    except OSError:
        return 0


def memory_of_machine() -> int:
    """Return the memory that this process may use, in bytes.

    The result is the memory of the machine, or the limit of the control group of the process if that limit is lower.
    """
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in _control_group_files():
        with contextlib.suppress(OSError, ValueError):  # the file is missing or contains "max"
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
