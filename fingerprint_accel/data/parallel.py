"""Work on several processes that never outlive the one that started them.

Each worker has a connection of its own, and nothing is shared: a worker that is killed in the middle of a message, or
would have held a lock, leaves the end of its connection and no riddle. (With a shared queue, as pools of the standard
library have, its parent can wait for ever for the rest of the message.)
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import queue
import signal
import threading
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator
from multiprocessing import connection, resource_tracker
from typing import Any, Generic, TypeVar

from fingerprint_accel.errors import UserError

Task = TypeVar("Task")
Result = TypeVar("Result")
IN_FLIGHT = 4  # tasks per worker
_stop = threading.Event()  # in a worker: nobody waits for its results any more


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def in_parallel(
    function: Callable[[Task], Result], tasks: Iterable[Task], workers: int
) -> Generator[Result, None, None]:
    """Yields function(task) for every task, in order, with a bounded number in flight.

    Close the generator (`contextlib.closing`) to end the workers; those under way finish their task, or notice
    `end_if_stopping`. When this process is killed they end at once.

    Args:
        function: a module's function; it and the tasks travel to the workers.
        tasks: taken as they are needed.
        workers: processes; 1 works in this one.

    Raises:
        UserError: a worker was killed.
    """
    if workers == 1:
        for task in tasks:
            yield function(task)
        return
    team: _Team[Task, Result] = _Team(function, workers)
    try:
        for task in tasks:
            team.give(task)
            if team.pending == IN_FLIGHT * workers:
                yield team.next_result()
        while team.pending:
            yield team.next_result()
    finally:
        team.close()


def batched(items: Iterable[Task], size: int) -> Iterator[list[Task]]:
    """Lists of `size` items, the last perhaps shorter."""
    items = iter(items)
    return iter(lambda: list(itertools.islice(items, size)), [])


class Stopping(Exception):  # noqa: N818  (it is no error)
    """A worker ends its task, because nobody waits for the result any more."""


def end_if_stopping() -> None:
    """Raises `Stopping` in a worker whose results nobody waits for any more. Long tasks call it now and then."""
    if _stop.is_set():
        raise Stopping


class _Worker:
    """A process, our end of the connection to it, and how many tasks it has not answered."""

    def __init__(self, function: Callable[..., Any]) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs,), daemon=True)
        with _without_interrupts():
            self.process.start()
        theirs.close()
        self.unanswered = 0
        self.connection.send(function)


class _Team(Generic[Task, Result]):
    """Workers, started as they are needed, and the answers that have come out of turn."""

    def __init__(self, function: Callable[[Task], Result], size: int) -> None:
        self.function, self.size = function, size
        self.workers: list[_Worker] = []
        self.given = self.taken = 0
        self.answers: dict[int, tuple[Result, BaseException | None]] = {}

    @property
    def pending(self) -> int:
        """Tasks whose results have not been taken."""
        return self.given - self.taken

    def give(self, task: Task) -> None:
        """Sends a task to the worker that has least to do."""
        with _killed_in_one_line():
            idle = any(worker.unanswered == 0 for worker in self.workers)
            if not idle and len(self.workers) < self.size:
                self.workers.append(_Worker(self.function))
            worker = min(self.workers, key=lambda worker: worker.unanswered)
            worker.connection.send((self.given, task))
        worker.unanswered += 1
        self.given += 1

    def next_result(self) -> Result:
        """Waits for the result of the earliest task that has not been taken; raises what the task raised."""
        by_connection: dict[Any, _Worker] = {worker.connection: worker for worker in self.workers}
        while self.taken not in self.answers:
            for ready in connection.wait(list(by_connection)):
                with _killed_in_one_line():
                    number, result, error = by_connection[ready].connection.recv()
                by_connection[ready].unanswered -= 1
                self.answers[number] = result, error
        result, error = self.answers.pop(self.taken)
        self.taken += 1
        if error is not None:
            raise error
        return result

    def close(self) -> None:
        """Tells the workers to stop and waits until they have."""
        for worker in self.workers:
            worker.connection.close()
        for worker in self.workers:
            worker.process.join()


@contextlib.contextmanager
def _killed_in_one_line() -> Iterator[None]:
    try:
        yield
    except (EOFError, OSError) as error:
        raise UserError("a worker process was killed, perhaps for want of memory; give fewer --workers") from error


def _serve(parent: connection.Connection) -> None:
    """What a worker does: tasks in the order in which they come, until the other end is closed."""
    tasks: queue.SimpleQueue[tuple[int, Any] | None] = queue.SimpleQueue()
    working = threading.Event()
    function: list[Callable[[Any], Any]] = []

    def listen() -> None:  # all the time, so that the parent never waits to send, and its end is noticed at once
        with contextlib.suppress(EOFError, OSError):
            function.append(parent.recv())  # imports what it needs
            while True:
                tasks.put(parent.recv())
        _stop.set()
        process = multiprocessing.parent_process()
        if not working.is_set() or process is None or not process.is_alive():
            os._exit(1)
        tasks.put(None)

    threading.Thread(target=listen, name="parent", daemon=True).start()
    while (item := tasks.get()) is not None:
        working.set()
        if _stop.is_set():
            break
        try:
            answer: tuple[int, Any, Exception | None] = item[0], function[0](item[1]), None
        except Exception as error:
            error.add_note(traceback.format_exc())
            answer = item[0], None, error
        try:
            parent.send(answer)
        except OSError:  # nobody listens
            break
        working.clear()


@contextlib.contextmanager
def _without_interrupts() -> Iterator[None]:
    """Holds Ctrl-C back; processes started meanwhile never see it, and leave the answer to their parent."""
    resource_tracker.ensure_running()  # else the first process to be spawned starts it, which lets Ctrl-C in again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
