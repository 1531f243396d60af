"""Write and read safetensors files, with errors of the operating system and bounds on damaged files."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from fingerprint_accel.privacy import follow_umask
from fingerprint_accel.untrusted import UnreadableError, check_tensors, reason_of


@dataclass(frozen=True)
class TensorInfo:
    """Format of a tensor in a safetensors file: the name of its number format, such as "F32", and its shape."""

    dtype: str
    shape: tuple[int, ...]


# Errors of safetensors and torch for a header that is valid JSON, but describes no tensors.
_DAMAGED = (SafetensorError, ValueError, KeyError, TypeError, AttributeError, RuntimeError)


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write or replace a safetensors file. The caller flushes it to the disk.

    Raises:
        OSError: If the file cannot be written. safetensors itself raises an error without an error number.
    """
    try:
        save_file(dict(tensors), path, metadata={"format": "pt"})
        follow_umask(path)
    except SafetensorError as error:
        found = re.search(r"\(os error (\d+)\)", str(error))
        number = int(found[1]) if found else errno.EIO
        raise OSError(number, os.strerror(number), str(path)) from error


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Read the formats of all tensors of a safetensors file by name, without reading the tensors.

    Raises:
        OSError: If the file is missing or cannot be opened.
        UnreadableError: If it is damaged.
    """
    check_tensors(path)
    try:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  (not a dictionary)
            return {name: TensorInfo(part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()}
    except _DAMAGED as error:
        raise UnreadableError(reason_of(error)) from error


def read_tensors(path: Path, rows: Callable[[str], slice | None] = lambda name: None) -> dict[str, torch.Tensor]:
    """Read the tensors of a safetensors file.

    Args:
        path: The file.
        rows: Function from the name of a tensor to the rows to read, or None for the whole tensor. Scalars are always
            read.

    Raises:
        OSError: If the file is missing or cannot be opened.
        UnreadableError: If it is damaged.
    """
    check_tensors(path)
    tensors = {}
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  (not a dictionary)
                wanted, stored = rows(name), file.get_slice(name)
                whole = wanted is None or not stored.get_shape()
                tensors[name] = file.get_tensor(name) if whole else stored[wanted]
    except _DAMAGED as error:
        raise UnreadableError(reason_of(error)) from error
    return tensors


def not_finite(tensors: Mapping[str, torch.Tensor]) -> str | None:
    """Return the name of a tensor that contains NaN or infinity, or None if all numbers are finite."""
    floats = ((name, tensor) for name, tensor in tensors.items() if tensor.is_floating_point())
    # The sum of the absolute values would overflow in float16; the extremes are NaN or infinite if one number is.
    bad = (
        name for name, tensor in floats if tensor.numel() and not torch.isfinite(torch.stack(tensor.aminmax())).all()
    )
    return next(bad, None)
