"""Read the tensors of a file that `torch.save` wrote, and that may be damaged or made by an attacker.

PyTorch executes no code from the file (`weights_only=True`), but it trusts the sizes in it. This module checks them
first. The file is a zip archive with the description of the tensors, `data.pkl`, and a part for each storage.
"""

from __future__ import annotations

import os
import pickletools
import re
import struct
import warnings
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch

from fingerprint_accel.untrusted import UnreadableError, open_regular

MOST_ENTRIES = 20_000  # flx has about 1,000 weights, each with two tensors of optimizer state
MOST_DIRECTORY, MOST_DESCRIPTION = 2**22, 2**20  # bytes of the zip directory, and of data.pkl
MOST_OPERATIONS = 300_000  # of data.pkl; a tensor needs about 30
CHUNK = 2**20
# Classes and functions that PyTorch needs to build tensors. Others, such as bytearray, can allocate any size.
BUILDS_TENSORS = re.compile(
    r"collections OrderedDict|torch\._utils _rebuild_(tensor_v2|parameter)|torch(\.storage)? \w+Storage|"
    r"torch (Size|device|bool|b?float\d+|u?int\d+)"
)


def read_torch_file(path: Path) -> Any:
    """Read a file of `torch.save` that contains tensors, numbers, strings, lists and dictionaries.

    The memory for tensors is at most the size of the file, and only the parts that the caller uses are loaded. All
    parts are compared with their checksums.

    Raises:
        OSError: If the file is missing or cannot be opened.
        UnreadableError: If the file is damaged, or contains other objects.
    """
    with open_regular(path) as file:
        try:
            _check_archive(file)
        except UnreadableError:
            raise
        except (OSError, ValueError, zipfile.BadZipFile, RuntimeError, EOFError, struct.error, LookupError) as error:
            raise UnreadableError("is damaged") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # PyTorch raises many kinds of errors for a damaged description
        raise UnreadableError("is damaged") from error


def _check_archive(file: BinaryIO) -> None:
    """Check sizes, checksums and the description of the tensors in a zip archive."""
    size = os.fstat(file.fileno()).st_size
    directory = _check_directory(file, size)
    archive = zipfile.ZipFile(file)
    entries = archive.infolist()
    stored = all(entry.compress_type == zipfile.ZIP_STORED and not entry.flag_bits & 1 for entry in entries)
    total = sum(entry.file_size for entry in entries)
    names = {entry.filename for entry in entries}
    # PyTorch has a zip reader of its own, which must find the same entries.
    if not stored or total > size or len(names) != len(entries) or archive.start_dir != directory:
        raise UnreadableError("is no archive that torch.save writes")
    descriptions = [entry for entry in entries if re.fullmatch(r"[^/]+/data\.pkl", entry.filename)]
    if len(entries) > MOST_ENTRIES or len(descriptions) != 1 or descriptions[0].file_size > MOST_DESCRIPTION:
        raise UnreadableError("has too many parts, or no description")
    _check_description(archive.read(descriptions[0]))
    for entry in entries:
        with archive.open(entry) as part:
            while part.read(CHUNK):  # raises BadZipFile at the end if the checksum differs
                pass


def _check_directory(file: BinaryIO, size: int) -> int:
    """Check the size of the directory of a zip archive, before it is read as a whole, and return its position."""
    file.seek(max(0, size - 42))
    end = file.read(42)
    if len(end) < 42 or end[20:24] != b"PK\5\6" or end[40:] != b"\0\0":
        raise UnreadableError("is no archive that torch.save writes")
    length, start = struct.unpack("<LL", end[32:40])
    if end[:4] == b"PK\6\7":  # a second record with sizes in 64 bits
        file.seek(min(size, struct.unpack("<Q", end[8:16])[0]))
        length, start = struct.unpack("<40xQQ", file.read(56))
    if length > MOST_DIRECTORY or start + length > size:
        raise UnreadableError("has too many parts")
    return int(start)


def _check_description(pickled: bytes) -> None:
    """Check that a pickle names no other classes and functions than those that build tensors.

    PyTorch refuses all other ways to name them.
    """
    for number, (code, argument, _) in enumerate(pickletools.genops(pickled)):
        if number > MOST_OPERATIONS:
            raise UnreadableError("has too many parts")
        if code.name == "STACK_GLOBAL" or (code.name == "GLOBAL" and not BUILDS_TENSORS.fullmatch(str(argument))):
            raise UnreadableError("holds more than tensors")
