"""Run a function for each finger or impression on a single CPU thread, and join the results.

The CPU kernels of torch divide their work by the number of threads, which can change the last bit of a sum. This module
computes each item on a single thread, and several items in parallel. The results therefore do not depend on the batch
or the number of cores.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any, TypeVar

import torch
import torch.nn.functional as F

Item = TypeVar("Item")
Result = TypeVar("Result")


def _single() -> None:
    """Set the number of threads that torch uses in the calling thread to one.

    `torch.get_num_threads` must be called first, because the first call of that function initialises the number of
    threads and would override a number that was set before.
    """
    torch.get_num_threads()
    torch.set_num_threads(1)


@lru_cache(maxsize=1)
def _pool(workers: int) -> ThreadPoolExecutor:
    together = threading.Barrier(workers)
    pool = ThreadPoolExecutor(workers, "synthesis", initializer=_single)
    for ready in [pool.submit(together.wait) for _ in range(workers)]:
        ready.result()
    torch.set_num_threads(workers)  # threads that start later inherit the last value that was set
    return pool


def each(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """Apply a function to each item, and return the results in order.

    Each call of the function uses a single thread. Up to `torch.get_num_threads()` calls run in parallel.
    """
    workers = torch.get_num_threads()
    if workers == 1:
        return [function(item) for item in items]
    return list(_pool(workers).map(function, items))


def overlapped(function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    """Apply a function to each item in two threads, each with half of the cores, and yield the results in order.

    One thread can wait or read files while the other one computes. Two batches of a network with half of the cores
    each also take less time than one after the other with all cores.
    """
    cores = torch.get_num_threads()
    if cores == 1 or len(items) < 2:
        yield from map(function, items)
        return

    def halve() -> None:
        torch.get_num_threads()  # see `_single`
        torch.set_num_threads(cores // 2)

    try:
        with ThreadPoolExecutor(2, "overlapped", initializer=halve) as pool:
            yield from pool.map(function, items)
    finally:
        torch.set_num_threads(cores)


def join(parts: Sequence[Result]) -> Result:
    """Concatenate batches along the first dimension.

    A batch is a dataclass whose fields are tensors or nested batches. Tensors whose second dimensions differ are padded
    with zeros.
    """

    def together(values: list[Any]) -> Any:
        if not isinstance(values[0], torch.Tensor):
            return join(values)
        if values[0].ndim == 1:
            return torch.cat(values)
        most = max(value.shape[1] for value in values)
        return torch.cat([F.pad(value, (0, 0) * (value.ndim - 2) + (0, most - value.shape[1])) for value in values])

    tensors = zip(*(vars(part).values() for part in parts), strict=True)
    return type(parts[0])(*(together(list(values)) for values in tensors))
