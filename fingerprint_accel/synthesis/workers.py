"""Fingers and impressions one by one on the cores of a CPU, and together again.

Kernels share their work out by the number of threads, and a sum can come out with another last bit. So each item is
computed by one thread, and threads take turns over items: the same bits in any batch, on any number of cores.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any, TypeVar

import torch
import torch.nn.functional as F

Item = TypeVar("Item")
Result = TypeVar("Result")


def _single() -> None:
    """Gives the calling thread one thread; asking first, because torch sets up a thread's number when first asked."""
    torch.get_num_threads()
    torch.set_num_threads(1)


@lru_cache(maxsize=1)
def _pool(workers: int) -> ThreadPoolExecutor:
    together = threading.Barrier(workers)
    pool = ThreadPoolExecutor(workers, "synthesis", initializer=_single)
    for ready in [pool.submit(together.wait) for _ in range(workers)]:
        ready.result()
    torch.set_num_threads(workers)  # threads that others start later take the number that was set last
    return pool


def each(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """[function(item) for item in items], each on one thread, as many at a time as torch has threads."""
    workers = torch.get_num_threads()
    if workers == 1:
        return [function(item) for item in items]
    return list(_pool(workers).map(function, items))


def join(parts: Sequence[Result]) -> Result:
    """Batches as one: dataclasses of tensors, or of such dataclasses. What is shorter along the second dimension is
    padded with zeros."""

    def together(values: list[Any]) -> Any:
        if not isinstance(values[0], torch.Tensor):
            return join(values)
        if values[0].ndim == 1:
            return torch.cat(values)
        most = max(value.shape[1] for value in values)
        return torch.cat([F.pad(value, (0, 0) * (value.ndim - 2) + (0, most - value.shape[1])) for value in values])

    tensors = zip(*(vars(part).values() for part in parts), strict=True)
    return type(parts[0])(*(together(list(values)) for values in tensors))
