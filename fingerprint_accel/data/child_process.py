"""Run native code on untrusted data in child processes, so that a crash does not end the program.

Child processes are started when they are needed, are reused, and end with this process. They are started with exec.
A fork would copy the locks of threads and the CUDA context, and `multiprocessing` would require
`if __name__ == "__main__":` in every script.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fingerprint_accel.data.child_server import ANSWER, OUT_OF_MEMORY, SIZE
from fingerprint_accel.errors import UserError

PACKAGES = str(Path(__file__).resolve().parents[2])
# Signals that native code can cause. All other signals come from outside the process, for example SIGKILL when memory
# runs out.
CRASHES = {signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGSYS, signal.SIGTRAP}
# Seconds without an answer after which a process is killed. The process limits its own CPU time. This limit ends a
# process that waits, or that runs on a machine with far too many processes.
WALL_SECONDS = 300
PATIENCE = 5.0  # seconds in which a process must end after it has closed its output
PAUSE = 1.0  # seconds to wait before a request is repeated whose process was killed from outside
CRASHED, TIME, MEMORY = "crashed", "time", "memory"


@dataclass(frozen=True)
class Program:
    """A program for child processes.

    Attributes:
        code: Python code that calls `child_server.serve`.
        purpose: what the process does, for error messages, for example "decodes images".
        most: largest answer, bytes.
        valid: function that returns whether an answer is well-formed. It is not if memory of the process is corrupted.
        check: Python code that shows the error if the process does not start, for error messages.
    """

    code: str
    purpose: str
    most: int
    valid: Callable[[bytes], bool]
    check: str


class Refused(ValueError):  # noqa: N818  (the caller turns it into an error of its own)
    """Raised if the process answers that the data cannot be used. The message is the reason."""


class Failed(Exception):  # noqa: N818  (the caller turns it into an error of its own)
    """Raised if the process ends without an answer, because of the data.

    Attributes:
        kind: CRASHED, TIME (the time limit was exceeded) or MEMORY (the memory limit was exceeded).
        how: signal or exit code with which the process has ended.
    """

    def __init__(self, kind: str, how: str) -> None:
        super().__init__(f"{kind} ({how})")
        self.kind, self.how = kind, how


class _Died(Exception):  # noqa: N818  (not an error in itself: the caller inspects the exit code)
    """Raised when a child process ends without an answer."""


class _Child:
    """Child process, and the pipes to it.

    Attributes:
        answered: number of requests that the process has answered.

    Raises:
        UserError: if the process does not start.
    """

    def __init__(self, program: Program) -> None:
        self.program, self.answered = program, 0
        # -S skips the module `site`, which takes as long to start as Python itself. The child gets `sys.path` of this
        # process. PACKAGES is added because an editable installation may not be on the path.
        path = [*(entry for entry in sys.path if isinstance(entry, str)), PACKAGES]
        command = [sys.executable, "-S", "-c", f"import sys; sys.path[:] = {path!a}; {program.code}"]
        environment = {
            **os.environ,
            "PATH": "",  # Pillow must not start Ghostscript
            "OPENBLAS_NUM_THREADS": "1",  # numpy would reserve address space, which is limited, for every core
            # glibc fills new memory with zeros. Decoders that read memory before they write it would otherwise give
            # results that depend on earlier files.
            "MALLOC_PERTURB_": "255",
        }
        try:
            self._process = subprocess.Popen(
                command, bufsize=0, env=environment,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            )  # fmt: skip
        except OSError as error:
            raise UserError(
                f"cannot start the process that {program.purpose} ({error.strerror}); free memory or end other "
                "processes"
            ) from error
        assert self._process.stdin is not None and self._process.stdout is not None
        self._input, self._output = self._process.stdin, self._process.stdout
        self._poll = select.poll()
        self._poll.register(self._output, select.POLLIN)
        _children.add(self)
        if not self._output.read(1):  # the process writes one byte when it is ready
            raise UserError(
                f"the process that {program.purpose} does not start ({_how(self.end(PATIENCE))}); "
                f"run {sys.executable} -c '{program.check}' to see the error"
            )

    def call(self, data: bytes) -> bytes:
        """Send a request, and return the answer. After an answer, the process is added to the idle processes.

        Raises:
            Refused: if the process answers that the data cannot be used.
            Failed: if there is no answer in time. The process is then ended.
            _Died: if the process ends without an answer.
        """
        try:
            for part in (SIZE.pack(len(data)), data):
                rest = memoryview(part)
                while rest:
                    rest = rest[self._input.write(rest) :]
        except BrokenPipeError:
            raise _Died from None
        good, size = ANSWER.unpack(self._read(ANSWER.size))
        if size > self.program.most:
            raise _Died  # the answer is invalid, so the process is in a broken state
        answer = bytes(self._read(size))
        if good and not self.program.valid(answer):
            raise _Died
        self.answered += 1
        _idle[self.program].append(self)
        if not good:
            raise Refused(answer.decode(errors="replace"))
        return answer

    def _read(self, size: int) -> bytearray:
        data = bytearray(size)
        rest = memoryview(data)
        while rest:
            # Wait in steps of one second, so that a job that was paused (SIGSTOP) does not exceed the limit at once.
            if not any(self._poll.poll(1000) for _ in range(WALL_SECONDS)):
                raise Failed(TIME, _how(self.end()))
            count = self._output.readinto(rest)  # type: ignore[attr-defined]
            if not count:
                raise _Died
            rest = rest[count:]
        return data

    def end(self, patience: float = 0) -> int:
        """End the process, and return its exit code. The code is negative if a signal has ended the process.

        Args:
            patience: seconds to wait for the process to end by itself before it is killed.
        """
        self.disconnect()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(patience)
        self._process.kill()
        return self._process.wait()

    def disconnect(self) -> None:
        """Close this side of the pipes to the process."""
        _children.discard(self)
        with contextlib.suppress(ValueError):
            _idle[self.program].remove(self)
        self._input.close()
        self._output.close()


# Operations on a deque or a set are atomic, so no lock is needed. A lock could be held by another thread during a fork.
_idle: defaultdict[Program, deque[_Child]] = defaultdict(deque)
_children: set[_Child] = set()


def call(program: Program, data: bytes, name: str) -> bytes:
    """Send a request to a child process that is reused for many requests, and return the answer.

    If the process dies, the request is repeated in a new process, because an earlier request may have corrupted the
    memory of the old process. If a new process is killed from outside, the request is repeated once more.

    Args:
        program: program of the process.
        data: the request.
        name: name of the file that the request is about, for error messages.

    Raises:
        Refused: if the process answers that the data cannot be used.
        Failed: if the data crash the process, or exceed a limit.
        UserError: if the process does not start, or was killed from outside.
    """
    try:
        child = _idle[program].pop()
    except IndexError:
        child = _Child(program)
    killed = False
    while True:
        fresh = child.answered == 0
        try:
            return child.call(data)
        except (Refused, Failed):
            raise
        except _Died:
            code = child.end(PATIENCE)
            if code == -signal.SIGPROF:  # the time limit of the request, in an old process too
                raise Failed(TIME, _how(code)) from None
            if fresh:
                if code != -signal.SIGKILL or killed:
                    raise _reason(code, name, program) from None
                killed = True
                time.sleep(PAUSE)
            child = _Child(program)
        except BaseException:  # after Ctrl-C, the pending answer would be read as that of the next request
            child.end()
            raise


def _reason(code: int, name: str, program: Program) -> Exception:
    """Return the exception to raise if a new child process has died.

    Args:
        code: exit code of the process, or the negative number of the signal that ended it.
        name: name of the file.
        program: program of the process.
    """
    if code == OUT_OF_MEMORY:
        return Failed(MEMORY, _how(code))
    if code >= 0 or -code in CRASHES:
        return Failed(CRASHED, _how(code))
    return UserError(
        f"{name}: the process that {program.purpose} was killed ({_how(code)}), perhaps because memory ran out; "
        "try again with fewer workers"
    )


def _how(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def end_children() -> None:
    """End all child processes. The next request starts a new process."""
    for child in list(_children):
        child.end()


def _forget_all() -> None:
    """Close all pipes to child processes in a forked process.

    The child processes belong to the parent process. They would outlive the parent if the forked process kept the
    pipes open.
    """
    for child in list(_children):
        child.disconnect()


atexit.register(end_children)
os.register_at_fork(after_in_child=_forget_all)
