"""Run commands and functions as forks of this process, which has imported everything that they need.

A fork of a process that has imported torch and the package starts in milliseconds instead of seconds. The driver must
therefore not use threads: it only forks, waits, and compares files.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import resource
import select
import signal
import socket
import struct
import sys
import time
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.starting import ended

PATIENCE = 10.0  # seconds in which the children of a killed process end
TIMED_OUT = 99  # exit code of a child that was killed because it took longer than its time limit


def nothing() -> None:
    """Do nothing."""


@dataclass(frozen=True)
class Ended:
    """How a child has ended.

    Attributes:
        code: Exit code; negative if a signal has ended the child; `TIMED_OUT` after a timeout.
        out: Text on stdout.
        err: Text on stderr.
        seconds: Duration.
        megabytes: Peak of the resident memory above the memory at the start.
        orphans: Number of processes that the child has started and that did not end with it.
    """

    code: int
    out: str
    err: str
    seconds: float
    megabytes: float
    orphans: int = 0

    @property
    def errors(self) -> list[str]:
        """Lines on stderr that report an error."""
        return [line for line in self.err.replace("\r", "\n").splitlines() if "error: " in line]

    @property
    def verdict(self) -> str:
        """`ok`, `named` (one line that reports an error), or how the child failed."""
        if self.code == TIMED_OUT:
            return "beyond budget"
        if "Traceback (most recent call last)" in self.err:
            return "traceback"
        if self.code < 0:
            return "crash"
        if self.code == 0:
            return "ok"
        return "named" if self.code != 1 and len(self.errors) <= 1 else "traceback"


class Child:
    """A fork that runs `action`.

    Args:
        action: What the child does.
        folder: Working directory of the child.
        before: Called in the child before `action`.
        environment: Variables to add to the environment.
    """

    def __init__(
        self,
        action: Callable[[], Any],
        folder: Path,
        before: Callable[[], Any] = nothing,
        environment: dict[str, str] | None = None,
    ) -> None:
        self.memory = mmap.mmap(-1, mmap.PAGESIZE)
        self.files = [os.memfd_create(name) for name in ("out", "err")]  # no disk, because disks may be full
        self.started = time.monotonic()
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if not self.pid:
            self._become(action, folder, before, environment or {})
        self._descriptor = os.pidfd_open(self.pid)
        self._poll = select.poll()
        self._poll.register(self._descriptor, select.POLLIN)

    def _become(
        self, action: Callable[[], Any], folder: Path, before: Callable[[], Any], environment: dict[str, str]
    ) -> None:
        code = 1
        try:
            die_with_parent()
            os.setpgid(0, 0)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            for number, file in enumerate(self.files, 1):
                os.dup2(file, number)
            sys.stdout = os.fdopen(os.dup(1), "w", buffering=1)
            sys.stderr = os.fdopen(os.dup(2), "w", buffering=1)
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
            os.chdir(folder)
            os.environ.update(environment)
            sys.modules["__main__"] = types.ModuleType("__main__")  # spawned workers would import this program
            self.memory[:8] = struct.pack("q", resident())
            before()
            code = ended(action)
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            with contextlib.suppress(BaseException):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal to the child, if it still runs."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._descriptor, number)

    def kill_group(self) -> None:
        """Kill the child and the processes that it has started."""
        self.kill()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    def resident(self) -> int:
        """Return the resident memory of the child, in bytes."""
        return resident(self.pid)

    def runs(self, seconds: float = 0.0) -> bool:
        """Wait until the child ends, at most `seconds`, and return whether it still runs."""
        return not self._poll.poll(max(0, round(1000 * seconds)))

    def wait(self, timeout: float = 120.0) -> Ended:
        """Wait for the end of the child. After `timeout` seconds the child and its children are killed."""
        late = self.runs(timeout)
        if late:
            self.kill_group()
        _, status, usage = os.wait4(self.pid, 0)
        seconds = time.monotonic() - self.started
        orphans = self._orphans()
        os.close(self._descriptor)
        texts = [_content(file) for file in self.files]
        start = struct.unpack("q", self.memory[:8])[0]
        self.memory.close()
        code = TIMED_OUT if late else os.waitstatus_to_exitcode(status)
        return Ended(code, *texts, seconds, max(0.0, usage.ru_maxrss / 1024 - start / 2**20), orphans)

    def _orphans(self) -> int:
        """Return the number of processes that the child has started and that do not end by themselves; kill them."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            try:
                os.killpg(self.pid, 0)
            except (ProcessLookupError, PermissionError):
                return 0
            time.sleep(0.005)
        alive = [file for file in Path("/proc").glob("[0-9]*/stat") if _group_of(file) == self.pid]
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        return len(alive)


def _group_of(stat: Path) -> int:
    """Return the process group of a process that is not a zombie, or 0."""
    try:
        state, _, group = stat.read_text().rpartition(")")[2].split()[:3]
    except OSError:
        return 0
    return 0 if state == "Z" else int(group)


def _content(descriptor: int) -> str:
    """Return all text that was written to a file, and close it."""
    with os.fdopen(descriptor, "rb") as file:
        file.seek(0)
        return file.read().decode(errors="replace")


def die_with_parent() -> None:
    """Make the kernel kill this process when its parent ends, so that a stopped suite leaves no process."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def resident(process: int | str = "self") -> int:
    """Return the resident memory of a process in bytes; 0 if it has ended."""
    try:
        fields = Path(f"/proc/{process}/statm").read_text().split()
    except OSError:
        return 0
    return int(fields[1]) * resource.getpagesize()


def command_line(words: Sequence[str]) -> Callable[[], None]:
    """Return a function that runs `fingerprint-accel` with these words."""

    def action() -> None:
        from fingerprint_accel.cli import main

        sys.argv = ["fingerprint-accel", *words]
        main()

    return action


def training(words: Sequence[str]) -> Callable[[], None]:
    """Return a function that runs a training recipe with these words."""

    def action() -> None:
        from fingerprint_accel.config import Config
        from fingerprint_accel.recipe import run_recipe

        sys.argv = ["recipe", *words]
        run_recipe(Config(), "")

    return action


def run(action: Callable[[], Any], folder: Path, timeout: float = 120.0, **options: Any) -> Ended:
    """Run a function in a child and wait for its end; see `Child`."""
    return Child(action, folder, **options).wait(timeout)


def ranks(count: int) -> list[dict[str, str]]:
    """Return the environment of each process of a training launch, as `torchrun` sets it."""
    if count == 1:
        return [{}]
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = str(found.getsockname()[1])
    size = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [{**size, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]
