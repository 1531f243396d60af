"""Let all processes of a run end together, with one line, if one of them meets an error."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

from fingerprint_accel.errors import RepeatedError, UserError


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


def from_main_process(accelerator: Accelerator, value: Any) -> Any:
    """Return the value of rank 0 on all ranks. All ranks must call this function."""
    found = [value]
    if accelerator.num_processes > 1:
        broadcast_object_list(found)
    return found[0]
