"""Work on several processes that never outlive the one that started them."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Event
from typing import TypeVar

from fingerprint_accel.errors import UserError

Task = TypeVar("Task")
Result = TypeVar("Result")
IN_FLIGHT = 4  # tasks per worker
_stop: Event | None = None  # of the pool that this process works for
_working = False  # whether this process has been given a task


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def in_parallel(
    function: Callable[[Task], Result], tasks: Iterable[Task], workers: int
) -> Generator[Result, None, None]:
    """Yields function(task) for every task, in order, with a bounded number in flight.

    Close the generator (`contextlib.closing`) to end the workers; those under way finish their task, or notice
    `stopping`. When this process is killed they end at once.

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
    context = multiprocessing.get_context("spawn")
    their_end, our_end = context.Pipe(duplex=False)
    stop = context.Event()
    pool = ProcessPoolExecutor(workers, context, initializer=_start, initargs=(their_end, stop))
    in_flight: deque[Future[Result]] = deque()
    try:
        for task in tasks:
            with _without_interrupts():  # this starts the workers
                in_flight.append(pool.submit(_work, function, task))
            if len(in_flight) == IN_FLIGHT * workers:
                yield in_flight.popleft().result()
        while in_flight:
            yield in_flight.popleft().result()
    except BrokenProcessPool as error:
        raise UserError("a worker process was killed, perhaps for want of memory; give fewer --workers") from error
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)
        their_end.close()
        our_end.close()


def batched(items: Iterable[Task], size: int) -> Iterator[list[Task]]:
    """Lists of `size` items, the last perhaps shorter."""
    items = iter(items)
    return iter(lambda: list(itertools.islice(items, size)), [])


def stopping() -> bool:
    """Whether this is a worker whose results nobody waits for any more. Long tasks ask now and then, and return."""
    return _stop is not None and _stop.is_set()


def _start(parent: Connection, stop: Event) -> None:
    """First thing in a worker: watches its parent."""
    global _stop
    _stop = stop

    def watch() -> None:
        while not parent.poll(0.2):  # true as soon as nobody holds the other end
            if stop.is_set() and not _working:
                break  # it still imports what its first task needs
        os._exit(1)

    threading.Thread(target=watch, name="parent", daemon=True).start()


def _work(function: Callable[[Task], Result], task: Task) -> Result:
    """Does a task. From now on the worker must not be cut off: the parent would wait for the rest of a result."""
    global _working
    _working = True
    return function(task)


@contextlib.contextmanager
def _without_interrupts() -> Iterator[None]:
    """Holds Ctrl-C back; processes started meanwhile never see it, and leave the answer to their parent."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
