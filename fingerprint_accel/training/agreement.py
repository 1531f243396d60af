"""Let all processes of a run end together, with one line, if one of them meets an error."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

from fingerprint_accel.errors import RepeatedError, UserError

PATIENCE = 1.0  # seconds in which ranks with the same error reach the same line


@contextlib.contextmanager
def one_error(accelerator: Accelerator) -> Iterator[None]:
    """If a rank raises a `UserError` in a `with` block, raise it on all ranks after the block.

    All ranks must enter the block. The block must not contain communication between ranks, because a rank leaves it at
    its first error.

    Raises:
        UserError: On the first rank with an error.
        RepeatedError: On all other ranks. It has the same message, which they do not print.
    """
    failed: UserError | None = None
    try:
        yield
    except UserError as error:
        failed = error
    own = "" if failed is None else str(failed) or "error"
    texts = gather_object([own]) if accelerator.num_processes > 1 else [own]
    first = next((rank for rank, text in enumerate(texts) if text), None)
    if first is None:
        return
    if failed is not None and (len(texts) == 1 or first == accelerator.process_index):
        raise failed
    raise RepeatedError(texts[first])


@contextlib.contextmanager
def said_once() -> Iterator[None]:
    """If several ranks raise the same `UserError` in a `with` block, raise a `RepeatedError` on all but one of them.

    Ranks without an error do not take part, so the block may contain communication. Different errors are all raised.

    Raises:
        UserError: The error, on the rank that was first.
        RepeatedError: The error, on the other ranks. It is not printed.
    """
    try:
        yield
    except UserError as error:
        if isinstance(error, RepeatedError) or not dist.is_initialized():
            raise
        try:
            first = _is_first(str(error))
        except RuntimeError:  # the store of the process group has ended with its process
            first = True
        if first:
            raise
        raise RepeatedError(str(error)) from error


def _is_first(text: str) -> bool:
    """Return whether this rank is the first one with this text, after all ranks or a second have told their text.

    The process that holds the store must not end before the others have asked.
    """
    store, until = dist.distributed_c10d._get_default_store(), time.monotonic() + PATIENCE
    place = store.add(f"error: {text}", 1)
    while store.add(f"error: {text}", 0) < dist.get_world_size() and time.monotonic() < until:
        time.sleep(0.02)
    return bool(place == 1)


def from_main_process(accelerator: Accelerator, value: Any) -> Any:
    """Return the value of rank 0 on all ranks. All ranks must call this function."""
    found = [value]
    if accelerator.num_processes > 1:
        broadcast_object_list(found)
    return found[0]
