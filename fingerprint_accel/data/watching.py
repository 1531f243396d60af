"""Notice shards that are damaged, or that change while a command reads them.

Shards are memory-mapped, so that a training run would train on whatever somebody writes to them, and would not notice
that a shard was moved or deleted until the run is resumed.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path

from fingerprint_accel.data.mapping import FileState
from fingerprint_accel.data.shards import Shards
from fingerprint_accel.errors import UserError
from fingerprint_accel.executors import cores
from fingerprint_accel.untrusted import regular_descriptor

EVERY = 5.0  # seconds between two looks at the size, time and inode of all shards
BLOCK = 2**22  # bytes hashed at a time, which takes about 3 ms
SHARE = 0.01  # share of the time of all cores for the first comparison of the shards
AT_ONCE = 0.5  # share of the time of one core for shards that have changed
RUN_AGAIN = "restore it from a copy, then run the same command again"


class ShardWatcher:
    """Context manager that watches the shards of datasets in a thread.

    The thread compares each shard once with its SHA-256 checksum, slowly, so that training keeps its speed: about 15
    MB/s for each core. Every few seconds it looks at the sizes, times and inodes of all shards, and compares those that
    have changed at once. A shard that was only touched, or replaced by an equal copy, is accepted.

    Args:
        datasets: The datasets to watch. Without any, no thread is started.
        remedy: What the user can do if a shard has changed, for the error message.
    """

    def __init__(self, datasets: Iterable[Shards], remedy: str = RUN_AGAIN) -> None:
        self._remedy = remedy
        self._expected: dict[Path, str] = {}
        self._states: dict[Path, FileState] = {}  # states of the shards when they were last known to be intact
        self._larger_than_memory = False
        for shards in datasets:
            self._larger_than_memory |= shards.larger_than_memory
            for file in shards.files:
                self._expected[file.path] = shards.info.sha256[file.path.name]
                self._states[file.path] = file.state
        self._share = SHARE if self._larger_than_memory else min(AT_ONCE, SHARE * cores())
        self._unread, self._changed = deque(self._expected), deque[Path]()
        self._missing: set[Path] = set()
        self._found = ""
        self._leaving = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="shards", daemon=True)

    def __enter__(self) -> ShardWatcher:
        if self._expected:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._leaving.set()
        if self._thread.is_alive():
            self._thread.join(EVERY)  # it may wait for a disk that does not answer

    def check(self) -> None:
        """Check whether the thread has found a damaged or changed shard. This takes less than a microsecond.

        Raises:
            UserError: If it has.
        """
        if self._found:
            raise UserError(self._found)

    def finish(self) -> None:
        """Stop the thread if it runs, look at all shards once more, and compare those that have changed.

        Raises:
            UserError: If a shard has changed or is missing.
        """
        self.__exit__()
        for _ in range(2):  # a missing shard counts when it is missing twice
            self._look()
        while self._changed and not self._found:
            for _ in self._compare(self._changed.popleft()):
                pass
        self.check()

    def _watch(self) -> None:
        """Compare shards with their checksums, and look at all shards in between. The thread runs this method."""
        urgent, patient = self._comparisons(self._changed), self._comparisons(self._unread)
        next_look = time.monotonic() + EVERY
        while not self._found:
            started, share = time.monotonic(), AT_ONCE
            hashed = next(urgent)
            if not hashed:
                hashed, share = next(patient), self._share
            took = time.monotonic() - started
            if self._leaving.wait(took * (1 / share - 1) if hashed else EVERY / 4):
                return
            if (started := time.monotonic()) > next_look:
                self._look()
                # Looking at thousands of shards on a slow network disk can take seconds.
                next_look = time.monotonic() + EVERY + 20 * (time.monotonic() - started)

    def _comparisons(self, queue: deque[Path]) -> Iterator[bool]:
        """Compare the shards of a queue one after the other. Yield True after each block, and False without a shard."""
        while True:
            if queue:
                yield from self._compare(queue[0])
                queue.popleft()
            else:
                yield False

    def _look(self) -> None:
        """Compare the states of all shards with those when they were intact."""
        for path, known in self._states.items():
            try:
                now = FileState.of(path.stat())
            except OSError as error:  # a shard that is being replaced may be missing for a moment
                if path in self._missing:
                    self._report(path, f"is missing or cannot be read ({error.strerror})")
                self._missing.add(path)
                continue
            self._missing.discard(path)
            if now.size != known.size:
                self._report(path, f"has {now.size} bytes instead of {known.size}")
            elif now != known and path not in self._changed:
                self._changed.append(path)

    def _compare(self, path: Path) -> Iterator[bool]:
        """Compare a shard with its checksum. The generator yields True after each block."""
        digest, buffer, position = hashlib.sha256(), memoryview(bytearray(BLOCK)), 0
        try:
            descriptor = regular_descriptor(path)
        except (OSError, ValueError):
            return  # the next looks report it
        try:
            state = FileState.of(os.fstat(descriptor))
            while size := os.preadv(descriptor, [buffer], position):
                digest.update(buffer[:size])
                if self._larger_than_memory:  # leave the memory to the shards that training reads
                    os.posix_fadvise(descriptor, position, size, os.POSIX_FADV_DONTNEED)
                position += size
                yield True
        except OSError as error:
            self._report(path, f"cannot be read ({error.strerror})")
            return
        finally:
            os.close(descriptor)
        if position != (size := self._states[path].size):  # it has changed since the last look
            self._report(path, f"has {position} bytes instead of {size}")
        elif digest.hexdigest() != self._expected[path]:
            self._report(path, "differs from its sha256")
        else:
            self._states[path] = state

    def _report(self, path: Path, what: str) -> None:
        self._found = self._found or f"{path}: {what}; {self._remedy}"
