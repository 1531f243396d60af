"""Stops all ranks at the same step after a signal, and ends the run if a rank is lost.

A thread on each rank exchanges the status of its rank with the other threads four times a second, over a gloo group of
its own. This happens on the host, so that no step waits for a device or for another rank. After a signal to one rank,
the threads hold every rank at the end of its current step, find the latest of these steps, and let all ranks run to the
end of the step after it. A held rank cannot block another one: it has contributed its gradients to all steps so far,
and the threads answer for ranks that are busy.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from dataclasses import dataclass
from datetime import timedelta
from types import FrameType, TracebackType
from typing import Any

import torch.distributed as dist
from accelerate import Accelerator

from fingerprint_accel.errors import LOST, LostProcessError

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
TICK = 0.25  # seconds between two exchanges
GONE = "another process of the run is gone (killed, out of memory, or its machine was lost)"
FAREWELL = 10.0  # seconds for the error of a failed rank to reach the others, so that they can name it
GRACE = 3.0  # seconds for the training thread to end before the process is terminated


@dataclass(frozen=True)
class Status:
    """Status of a rank.

    Attributes:
        stop: Name of the signal that the rank received, or "".
        failed: The error that ended its training, or "".
        done: Whether the rank has finished its last step.
    """

    stop: str = ""
    failed: str = ""
    done: bool = False


class PreemptionMonitor:
    """Watches for stop signals and lost ranks during training. Use it as a context manager in the main thread.

    Args:
        accelerator: Accelerator of the run.
        timeout: Seconds without an answer after which a rank counts as lost.
        step: Number of optimizer steps done before.

    Attributes:
        signal: Name of the signal that stops the run; the same on all ranks.

    Raises:
        LostProcessError: On exit, in place of the error of this rank, if another rank caused it.
    """

    def __init__(self, accelerator: Accelerator, timeout: int, step: int = 0) -> None:
        self.rank, self.processes, self.timeout = accelerator.process_index, accelerator.num_processes, timeout
        self.signal = ""
        self._own_signal = ""
        self._passed, self._target = step, 0
        self._held = False
        self._turn = threading.Condition()
        self._word = Status()
        self._leaving = threading.Event()
        self._lost = ""
        self._thread: threading.Thread | None = None
        self._before: dict[signal.Signals, Any] = {}
        self._group: Any = None

    def __enter__(self) -> PreemptionMonitor:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        if self.processes > 1:
            self._group = dist.new_group(backend="gloo", timeout=timedelta(seconds=self.timeout))
            self._thread = threading.Thread(target=self._poll, name="watch", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        failed = ""
        if error is not None and getattr(error, "code", None) is None:  # `Stopped` has a code and is no failure
            failed = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        self._word = Status(failed=failed, done=not failed)
        self._leaving.set()
        if self._thread is not None:
            self._thread.join(FAREWELL if failed else None)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._lost and (error is None or isinstance(error, RuntimeError)):
            raise LostProcessError(self._lost) from error
        if isinstance(error, RuntimeError) and _is_timeout(error):
            raise LostProcessError(self._line(self._silence())) from error

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._own_signal = signal.Signals(number).name

    def stop_here(self, step: int) -> bool:
        """Return whether training ends after this step. All ranks call this at the end of each step."""
        if self._thread is None:
            self.signal = self._own_signal
            return bool(self.signal)
        with self._turn:
            self._turn.wait_for(lambda: not self._held)
            self._passed = step
            return step == self._target

    def _poll(self) -> None:
        """Exchange statuses in the thread until all ranks are done, or a rank failed or is lost."""
        try:
            while True:
                words = self._tell(Status(self._own_signal) if not self._leaving.is_set() else self._word)
                broken = {rank: word.failed for rank, word in enumerate(words) if word.failed}
                own = broken.pop(self.rank, "")
                if broken:
                    rank, text = next(iter(broken.items()))
                    self._end(f"rank {rank} has failed ({text})")
                if broken or own or all(word.done for word in words):
                    return
                stop = next((word.stop for word in words if word.stop), "")
                if stop and not self._target:
                    self._agree(stop)
                time.sleep(TICK)
        except RuntimeError as error:  # gloo lost a connection, or a rank did not answer in time
            self._end(self._silence() if _is_timeout(error) else GONE)

    def _tell(self, word: Any) -> list[Any]:
        """Return the `word` of every rank, in order of rank."""
        words: list[Any] = [None] * self.processes
        dist.all_gather_object(words, word, group=self._group)
        return words

    def _agree(self, name: str) -> None:
        """Agree on the step after which all ranks stop. No rank can pass it, because all are held until then."""
        with self._turn:
            self._held = True
            passed = self._passed
        latest = max(self._tell(passed))
        with self._turn:
            self.signal, self._target, self._held = name, latest + 1, False
            self._turn.notify_all()

    def _line(self, what: str) -> str:
        return (
            f"rank {self.rank}: {what}, after step {self._passed} of this one; run the same command with --resume auto "
            "to continue from the last checkpoint"
        )

    def _silence(self) -> str:
        return f"another process of the run has not answered within {self.timeout} s"

    def _end(self, what: str) -> None:
        """Terminate this process if its training thread waits for ranks that will never answer."""
        self._lost = self._line(what)
        with self._turn:
            self._held = False
            self._turn.notify_all()
        if not self._leaving.wait(GRACE):
            print(f"\nerror: {self._lost}", file=sys.stderr, flush=True)
            os._exit(LOST)


def _is_timeout(error: RuntimeError) -> bool:
    return "timed out" in str(error).lower()  # torch has no separate exception for timeouts
