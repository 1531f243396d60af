"""Answer requests in a child process with limits of time and memory. See `child_process`, which starts the process.

The module imports little, because a process starts for every worker.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import struct
from collections.abc import Callable, Sequence

SIZE = struct.Struct(">Q")  # header of a request: number of bytes that follow
ANSWER = struct.Struct(">?Q")  # header of an answer: success, number of bytes that follow (the reason if it failed)
OUT_OF_MEMORY = 3  # exit code of a process that exceeds its memory limit

Bytes = bytes | memoryview


def serve(answer: Callable[[bytes], Sequence[Bytes]], memory: int, seconds: float) -> None:
    """Answer the requests on stdin until stdin is closed.

    The process writes one byte to stdout when it is ready, and then one answer for each request.

    Args:
        answer: function that returns the parts of the answer to a request. A ValueError is answered with its message.
        memory: limit of the address space, bytes.
        seconds: limit of the CPU time of one request. A signal ends a process that exceeds it. `allow_seconds` extends
            it.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)  # schedulers signal all processes of a job; only the parent handles it
    _limit(resource.RLIMIT_AS, memory)
    # A core file would contain a print. The limit is 1, because a crash handler ignores the limit 0.
    _limit(resource.RLIMIT_CORE, 1)
    requests, answers = os.fdopen(0, "rb", closefd=False), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # text printed by native code must not mix with the answers
    answers.write(b"\0")
    answers.flush()
    while header := requests.read(SIZE.size):
        data = requests.read(SIZE.unpack(header)[0])
        signal.setitimer(signal.ITIMER_PROF, seconds)
        try:
            parts, good = answer(data), True
        except ValueError as error:
            parts, good = [" ".join(str(error).split()).encode(errors="replace")], False
        except MemoryError:  # earlier requests may have left too little memory, so the parent retries in a new process
            os._exit(OUT_OF_MEMORY)
        signal.setitimer(signal.ITIMER_PROF, 0)
        answers.write(ANSWER.pack(good, sum(len(part) for part in parts)))
        for part in parts:
            answers.write(part)
        answers.flush()


def allow_seconds(more: float) -> None:
    """Extend the time limit of the current request. Outside a child process, this does nothing."""
    left = signal.getitimer(signal.ITIMER_PROF)[0]
    if left:
        signal.setitimer(signal.ITIMER_PROF, left + more)


def _limit(kind: int, most: int) -> None:
    hard = resource.getrlimit(kind)[1]
    with contextlib.suppress(OSError, ValueError):  # not every system has every limit
        resource.setrlimit(kind, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
