"""Stop all ranks after the same step when one rank receives a stop signal, and detect ranks that are lost.

A thread on each rank exchanges the status of all ranks four times a second. The threads use a gloo process group of
their own, so that training steps never wait for them. If one rank has received a signal, the threads hold each rank at
the end of its current step. The threads find the latest of these steps, and let all ranks run to the end of the
following step. A held rank has already taken part in the collectives of its current step, so the other ranks can finish
this step too.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import torch.distributed as dist
from accelerate import Accelerator

from fingerprint_accel.errors import LOST, LostProcessError, UserError
from fingerprint_accel.training.run_folder import resume_advice

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
TICK = 0.25  # seconds between two exchanges of the status
GONE = "another process of the run is gone (killed, out of memory, or its machine was lost)"
FAREWELL = 10.0  # seconds for a last exchange after training has failed, which sends the error to the other ranks
GRACE = 3.0  # seconds in which the training thread can end by itself, before its process is ended


@dataclass(frozen=True)
class Status:
    """Status of a rank, which it sends to the other ranks.

    Attributes:
        stop: Name of the stop signal that the rank has received, or "".
        failed: Text of the error that has ended training on this rank, or "".
        prints: Whether this rank prints the error itself, as one line for the user.
        done: Whether training has ended on this rank without an error.
    """

    stop: str = ""
    failed: str = ""
    prints: bool = False
    done: bool = False


class PreemptionMonitor:
    """Context manager that watches for stop signals and lost ranks during training.

    Use it in the main thread, because Python handles signals there.

    Args:
        accelerator: Accelerator of the run.
        timeout: Seconds without an answer after which a rank is considered lost.
        folder: Run folder. Error messages name its newest checkpoint.
        step: Number of optimizer steps done, if the run resumes.

    Attributes:
        signal: Name of the signal that stops the run, or "". It is the same on all ranks.

    Raises:
        LostProcessError: At the end of the `with` block, if another rank has failed or is lost. This error replaces a
            `RuntimeError` that has ended training on this rank. Its message is empty if the other rank has raised a
            `UserError`, because it prints this error itself.
    """

    def __init__(self, accelerator: Accelerator, timeout: int, folder: Path, step: int = 0) -> None:
        self.rank, self.processes, self.timeout = accelerator.process_index, accelerator.num_processes, timeout
        self.folder = folder
        self.signal = ""
        self._own_signal = ""
        self._acknowledged = False
        self._passed, self._target = step, 0
        self._held = False
        self._turn = threading.Condition()
        self._word = Status()
        self._leaving = threading.Event()
        self._lost: str | None = None
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
        self._word = Status(failed=failed, prints=isinstance(error, UserError), done=not failed)
        self._leaving.set()
        if self._thread is not None:
            self._thread.join(FAREWELL if failed else None)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._lost is not None and (error is None or isinstance(error, RuntimeError)):
            raise LostProcessError(self._lost) from error
        if isinstance(error, RuntimeError) and _is_timeout(error):
            raise LostProcessError(self._line(self._silence())) from error

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._own_signal = signal.Signals(number).name
        self._acknowledge(self._own_signal)

    def _acknowledge(self, name: str) -> None:
        """Tell the user on rank 0, once, that the run stops after the current step.

        The method writes to stderr without print(), because the method runs in a signal handler, which may interrupt
        another print().

        Args:
            name: Name of the stop signal.
        """
        if self.rank == 0 and not self._acknowledged:
            self._acknowledged = True
            with contextlib.suppress(OSError):
                os.write(2, f"\n{name}: stopping after the current step, then saving a checkpoint\n".encode())

    def stop_here(self, step: int) -> bool:
        """Return whether training must end after this step, because a rank has received a stop signal.

        All ranks must call this method at the end of each step. If a rank has received a stop signal, the call blocks
        until all ranks have agreed on the step after which they stop.

        Args:
            step: Number of optimizer steps done.
        """
        if self._thread is None:
            self.signal = self._own_signal
            return bool(self.signal)
        with self._turn:
            self._turn.wait_for(lambda: not self._held)
            self._passed = step
            return step == self._target

    def _poll(self) -> None:
        """Exchange the status of all ranks repeatedly, until all ranks are done, or a rank has failed or is lost.

        The background thread of this rank runs this method.
        """
        try:
            while True:
                words = self._tell(Status(self._own_signal) if not self._leaving.is_set() else self._word)
                broken = {rank: word for rank, word in enumerate(words) if word.failed}
                own = broken.pop(self.rank, None)
                if broken:
                    rank, word = next(iter(broken.items()))
                    self._end("" if word.prints else self._line(f"rank {rank} has failed ({word.failed})"))
                if broken or own or all(word.done for word in words):
                    return
                stop = next((word.stop for word in words if word.stop), "")
                if stop and not self._target:
                    self._acknowledge(stop)
                    self._agree(stop)
                time.sleep(TICK)
        except RuntimeError as error:  # a connection of gloo was lost, or a rank did not answer in time
            self._end(self._line(self._silence() if _is_timeout(error) else GONE))

    def _tell(self, word: Any) -> list[Any]:
        """Send `word` to all ranks, and return the objects that all ranks have sent, in order of rank."""
        words: list[Any] = [None] * self.processes
        dist.all_gather_object(words, word, group=self._group)
        return words

    def _agree(self, name: str) -> None:
        """Agree with the other ranks on the step after which all ranks stop.

        Meanwhile, each rank is held at the end of its current step, so that no rank runs past the agreed step.

        Args:
            name: Name of the stop signal.
        """
        with self._turn:
            self._held = True
            passed = self._passed
        latest = max(self._tell(passed))
        with self._turn:
            self.signal, self._target, self._held = name, latest + 1, False
            self._turn.notify_all()

    def _line(self, what: str) -> str:
        return f"rank {self.rank}: {what}, after step {self._passed} of this rank; {resume_advice(self.folder)}"

    def _silence(self) -> str:
        return f"another process of the run has not answered within {self.timeout} s"

    def _end(self, line: str) -> None:
        """Store the message that another rank is lost, and end this process if its training does not end by itself.

        The training thread may be blocked, waiting for ranks that will never answer.

        Args:
            line: The error message, or "" if the other rank prints it.
        """
        self._lost = line
        with self._turn:
            self._held = False
            self._turn.notify_all()
        if not self._leaving.wait(GRACE):
            if line:
                print(f"\nerror: {line}", file=sys.stderr, flush=True)
            os._exit(LOST)


def _is_timeout(error: RuntimeError) -> bool:
    return "timed out" in str(error).lower()  # torch has no separate exception for timeouts
