"""Where shards are made: in this process, on the cores or GPUs of this machine, or by the workers of a Dask cluster."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any, TypeVar

from fingerprint_accel.errors import UserError, require

Result = TypeVar("Result")
SECONDS_TO_CONNECT = 30


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


class InProcess(Executor):
    """Works at once, in the thread that submits."""

    def submit(self, fn: Callable[..., Result], /, *args: Any, **kwargs: Any) -> Future[Result]:
        """Call `fn(*args, **kwargs)` and return its finished future. Errors of `fn` are raised here."""
        future: Future[Result] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


@dataclass(frozen=True)
class Workers:
    """What makes shards.

    Attributes:
        executor: takes the tasks.
        device: "cpu" or "cuda": what the tasks compute on.
    """

    executor: Executor
    device: str


@contextlib.contextmanager
def open_workers(workers: int = 0, cluster: str = "", device: str = "cpu", threads: bool = False) -> Iterator[Workers]:
    """Opens what makes shards, and ends it; an exception ends what is under way.

    Args:
        workers: processes on this machine: 0 for one per core, 1 for this process alone.
        cluster: address of a Dask scheduler (`tcp://head:8786`), or the file that it wrote (`--scheduler-file`); its
            workers take the place of processes on this machine.
        device: "cpu"; "cuda" for a process on each GPU of this machine; or "auto" for GPUs where there are any.
        threads: a task uses all cores by itself, so that one process is enough on a CPU.

    Raises:
        UserError: no such device or cluster, or a worker was killed.
    """
    require(workers >= 0, f"--workers {workers}: must not be negative")
    require(device in ("auto", "cpu", "cuda"), f"--device {device}: unknown; there are auto, cpu, cuda")
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
    """GPUs that this process may use; accelerate's ACCELERATE_USE_CPU hides them."""
    import torch  # most work has no use for it

    hidden = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    return 0 if hidden else torch.cuda.device_count()


def _checked(device: str, there: int) -> str:
    require(device != "cuda" or there > 0, "--device cuda: torch finds no GPU here; take --device cpu")
    return "cuda" if there else "cpu"


@contextlib.contextmanager
def _processes(count: int, on_gpus: bool) -> Iterator[Executor]:
    context = multiprocessing.get_context("spawn")  # a fork would copy the locks of threads and a CUDA context
    turn = context.Value("i", 0) if on_gpus else None
    pool = _QuietPool(count, context, _begin_worker, (turn,))
    others = set(multiprocessing.active_children())
    try:
        yield pool
    except BaseException as error:
        for process in set(multiprocessing.active_children()) - others:
            process.kill()  # a shard can take minutes
        if isinstance(error, BrokenExecutor):
            raise UserError(
                "a worker process was killed, perhaps for want of memory; give fewer --workers, the same command goes "
                "on"
            ) from error
        raise
    finally:
        pool.shutdown(cancel_futures=True)


class _QuietPool(ProcessPoolExecutor):
    """Processes that never see Ctrl-C: their parent answers it. (`submit` starts them, one by one.)"""

    def submit(self, fn: Callable[..., Result], /, *args: Any, **kwargs: Any) -> Future[Result]:
        resource_tracker.ensure_running()  # else the first process to be spawned starts it, which lets Ctrl-C in again
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            return super().submit(fn, *args, **kwargs)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin_worker(turn: Any) -> None:
    """Ties a worker to its parent, and to a GPU where `turn` counts the workers that have one."""
    threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()
    if turn is not None:
        import torch  # only workers with a GPU need it

        with turn.get_lock():
            torch.cuda.set_device(turn.value % torch.cuda.device_count())
            turn.value += 1


def _end_with_parent() -> None:
    """Workers of the standard library wait forever for tasks of a parent that was killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@contextlib.contextmanager
def _dask(cluster: str) -> Iterator[Executor]:
    try:
        from distributed import Client, KilledWorker
    except ImportError as error:
        raise UserError("--cluster needs Dask; pip install 'fingerprint-accel[cluster]'") from error
    try:
        client = (
            Client(scheduler_file=cluster) if Path(cluster).is_file() else Client(cluster, timeout=SECONDS_TO_CONNECT)
        )
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"--cluster {cluster}: no Dask scheduler answers ({type(error).__name__}); give the address that "
            "`dask scheduler` prints, or the file of its --scheduler-file"
        ) from error
    executor = client.get_executor(pure=False)
    try:
        yield executor
    except KilledWorker as error:
        raise UserError(f"--cluster {cluster}: {str(error)[:200]}") from error
    finally:
        executor.shutdown(wait=False)
        client.close()
