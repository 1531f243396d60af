"""Run tasks in this process, on the cores or GPUs of this machine, or on a Dask cluster."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import resource_tracker
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from fingerprint_accel.errors import UserError, require

Result = TypeVar("Result")
SECONDS_TO_CONNECT = 30
WORKER_KILLED = (
    "a worker process was killed, probably because the memory was full; run the same command with fewer --workers to "
    "continue"
)
FAILED = 2  # exit code of a worker that has printed an error, see `data.bus_errors`


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0))


class InProcess(Executor):
    """Executor that runs each task immediately in the calling thread."""

    def submit(self, fn: Callable[..., Result], /, *args: Any, **kwargs: Any) -> Future[Result]:
        """Call `fn(*args, **kwargs)` and return a finished future. An error of `fn` is raised by this call."""
        future: Future[Result] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


@dataclass(frozen=True)
class Workers:
    """An executor, and the device on which the tasks of the executor compute.

    Attributes:
        executor: Runs the tasks.
        device: "cpu" or "cuda".
    """

    executor: Executor
    device: str


@contextlib.contextmanager
def open_workers(workers: int = 0, cluster: str = "", device: str = "cpu", threads: bool = False) -> Iterator[Workers]:
    """Open an executor in a `with` statement, and close it at the end. An exception also stops the running tasks.

    Args:
        workers: Number of processes on this machine. 0 starts one per core, and 1 runs the tasks in this process.
        cluster: Address of a Dask scheduler (`tcp://head:8786`) or its scheduler file. The workers of the
            scheduler run the tasks, instead of processes on this machine.
        device: "cpu", "cuda" (one process for each GPU of this machine), or "auto" (GPUs if there are any).
        threads: Whether each task uses all cores by itself. If true, tasks on a CPU run in this process.

    Raises:
        UserError: If the device or cluster is not available, or a worker was killed.
    """
    require(workers >= 0, f"--workers {workers}: must not be negative")
    require(device in ("auto", "cpu", "cuda"), f"--device {device}: unknown device; choose auto, cpu or cuda")
    if cluster:
        with _dask(cluster) as executor:
            yield Workers(executor, _checked(device, executor.submit(gpus).result() if device != "cpu" else 0))
        return
    there = gpus() if device != "cpu" else 0
    device = _checked(device, there)
    count = there if device == "cuda" else 1 if threads else workers or cores()
    if count == 1:
        yield Workers(InProcess(), device)
        return
    with _processes(count, device == "cuda") as executor:
        yield Workers(executor, device)


def gpus() -> int:
    """Return the number of GPUs that this process may use. It is 0 if ACCELERATE_USE_CPU is set."""
    import torch  # imported here, because most tasks do not need it

    hidden = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    return 0 if hidden else torch.cuda.device_count()


def _checked(device: str, there: int) -> str:
    require(device != "cuda" or there > 0, "--device cuda: torch finds no GPU on this machine; use --device cpu")
    return "cuda" if there else "cpu"


@contextlib.contextmanager
def _processes(count: int, on_gpus: bool) -> Iterator[Executor]:
    context = multiprocessing.get_context("spawn")  # a fork would copy the locks of threads and a CUDA context
    turn = context.Value("i", 0) if on_gpus else None
    pool = _RenewedPool(lambda: _QuietPool(count, context, _begin_worker, (turn,)))
    others = set(multiprocessing.active_children())
    try:
        yield pool
    except BaseException as error:
        for process in set(multiprocessing.active_children()) - others:
            process.kill()  # waiting for the end of a task could take minutes
        if isinstance(error, BrokenExecutor):
            check_workers(pool)
            raise UserError(WORKER_KILLED) from error
        raise
    finally:
        pool.shutdown(cancel_futures=True)


class _RenewedPool(Executor):
    """Executor that replaces its process pool when a process of the pool has died.

    The tasks that were submitted before raise `BrokenExecutor`. If the process has printed an error, the next task
    raises a `UserError`.
    """

    def __init__(self, make: Callable[[], _QuietPool]) -> None:
        self._make, self._pool = make, make()

    def submit(self, fn: Callable[..., Result], /, *args: Any, **kwargs: Any) -> Future[Result]:
        """Submit a task to the pool, or to a new one if the pool is broken."""
        try:
            return self._pool.submit(fn, *args, **kwargs)
        except BrokenExecutor:
            self._pool.shutdown(cancel_futures=True)
            check_workers(self)
            self._pool = self._make()
            return self._pool.submit(fn, *args, **kwargs)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the pool, as `Executor.shutdown` describes."""
        self._pool.shutdown(wait, cancel_futures=cancel_futures)


def check_workers(executor: Executor) -> None:
    """Raise a `UserError` if a worker process of an executor has ended after it had printed an error."""
    workers = executor._pool.workers.values() if isinstance(executor, _RenewedPool) else ()
    deadline = time.monotonic() + 5
    # The exit code is not known at once, nor after `join`: the thread of the pool may be about to store it.
    while any(process.exitcode is None for process in workers) and time.monotonic() < deadline:
        time.sleep(0.01)
    if any(process.exitcode == FAILED for process in workers):
        raise UserError("a worker process has failed: see the error above")


def worker_died(error: BaseException) -> bool:
    """Return whether an error of a task means that the process died that ran the task."""
    return isinstance(error, BrokenExecutor) or type(error).__name__ == "KilledWorker"  # the latter is that of Dask


def exit_code_of(function: Callable[..., Any], *args: Any) -> int:
    """Run a function in a new process, and return its exit code: 0, or the negative number of a signal."""
    process = multiprocessing.get_context("spawn").Process(target=function, args=args, daemon=True)
    with _blocked_interrupt():
        process.start()
    try:
        process.join()
    finally:
        process.kill()
    return process.exitcode or 0


@contextlib.contextmanager
def _blocked_interrupt() -> Iterator[None]:
    """Block Ctrl-C while processes start, so that they ignore it. Only this process handles it."""
    resource_tracker.ensure_running()  # if the first spawn started the tracker, it would unblock Ctrl-C
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _QuietPool(ProcessPoolExecutor):
    """Process pool with worker processes that ignore Ctrl-C, because the parent process handles it.

    `submit` is overridden because it starts the worker processes.

    Attributes:
        workers: The worker processes by their number, also after the pool has broken.
    """

    workers: Mapping[int, Any] = MappingProxyType({})

    def submit(self, fn: Callable[..., Result], /, *args: Any, **kwargs: Any) -> Future[Result]:
        with _blocked_interrupt():
            future = super().submit(fn, *args, **kwargs)
        self.workers = self._processes
        return future


def _begin_worker(turn: Any) -> None:
    """Set up a worker process: make it end with its parent process, and choose its GPU.

    Args:
        turn: Shared counter of the workers that have chosen a GPU. None if the worker uses no GPU.
    """
    threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()
    if turn is not None:
        import torch  # imported here, because only workers with a GPU need it

        with turn.get_lock():
            torch.cuda.set_device(turn.value % torch.cuda.device_count())
            turn.value += 1


def _end_with_parent() -> None:
    """End this process when its parent process ends. Otherwise the worker of a killed parent would wait forever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@contextlib.contextmanager
def _dask(cluster: str) -> Iterator[Executor]:
    try:
        from distributed import Client, KilledWorker
    except ImportError as error:
        raise UserError("--cluster needs Dask: pip install 'fingerprint-accel[cluster]'") from error
    try:
        client = (
            Client(scheduler_file=cluster) if Path(cluster).is_file() else Client(cluster, timeout=SECONDS_TO_CONNECT)
        )
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"--cluster {cluster}: no Dask scheduler answers ({type(error).__name__}); give the address that "
            "`dask scheduler` prints, or its --scheduler-file"
        ) from error
    executor = client.get_executor(pure=False)
    try:
        yield executor
    except KilledWorker as error:
        raise UserError(f"--cluster {cluster}: {str(error)[:200]}") from error
    finally:
        executor.shutdown(wait=False)
        client.close()
