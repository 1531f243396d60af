"""Check the structure of a FAISS index file before FAISS reads it.

FAISS trusts the sizes in a file: it allocates what they state, and reads and writes beyond its buffers if they
contradict each other. A stranger can write any sizes, with a checksum that fits.
"""

from __future__ import annotations

import os
import struct
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np

from fingerprint_accel.untrusted import UnreadableError, open_regular

INDEX = "<4siqqqBi"  # FAISS's header of an index: kind, dims, vectors, two unused numbers, is trained, metric
INNER_PRODUCT, QT_8BIT = 0, 0  # values of FAISS


def check_index_file(path: Path, dims: int, most: int) -> None:
    """Check that a file has the structure of an index `IVF...,SQ8` for the inner product.

    The layout is that of `faiss/impl/index_write.cpp`. The function reads the header and the sizes of the lists only.

    Args:
        path: the index.
        dims: dimension of the references.
        most: largest number of references.

    Raises:
        OSError: if the file cannot be opened.
        UnreadableError: if the file has another structure.
    """
    with open_regular(path) as file:
        kind, width, count, _, _, trained, metric = _take(file, INDEX)
        cells, _ = _take(file, "<qq")
        _expect((kind, width, trained, metric), (b"IwSq", dims, 1, INNER_PRODUCT))
        _expect((0 <= count <= most, 1 <= cells <= most), (True, True))
        kind, width, centres, _, _, trained, metric = _take(file, INDEX)
        _expect((kind, width, centres, trained, metric), (b"IxFI", dims, cells, 1, INNER_PRODUCT))
        _expect(_take(file, "<q"), (cells * dims,))
        file.seek(4 * cells * dims, os.SEEK_CUR)  # centres of the cells
        _expect(_take(file, "<Bq"), (0, 0))  # no map from references to cells
        quantiser, _, _, *sizes = _take(file, "<iifqqq")
        _expect((quantiser, *sizes), (QT_8BIT, dims, dims, 2 * dims))
        file.seek(4 * 2 * dims, os.SEEK_CUR)  # ranges of the elements
        _expect(_take(file, "<qB4sqq"), (dims, 1, b"ilar", cells, dims))
        lists = _sizes_of_lists(file, cells)
        _expect((int(lists.min(initial=0)) >= 0, int(lists.sum())), (True, count))
        _expect((os.fstat(file.fileno()).st_size - file.tell(),), (count * (dims + 8),))  # codes and row numbers


def _sizes_of_lists(file: BufferedReader, cells: int) -> np.ndarray:
    """Read the number of references in each cell; FAISS writes pairs (cell, number) if most cells are empty."""
    kind, length = _take(file, "<4sq")
    _expect((kind in (b"full", b"sprs"), 0 <= length <= 2 * cells), (True, True))
    values = np.array(_take(file, f"<{length}q"), np.int64)
    if kind == b"full":
        _expect((length,), (cells,))
        return values
    _expect((length % 2,), (0,))
    places, sizes = values.reshape(-1, 2).T
    _expect((bool(((places >= 0) & (places < cells)).all()), len(np.unique(places))), (True, len(places)))
    return sizes


def _take(file: BufferedReader, layout: str) -> tuple[Any, ...]:
    data = file.read(struct.calcsize(layout))
    if len(data) < struct.calcsize(layout):
        raise UnreadableError("is cut off")
    return struct.unpack(layout, data)


def _expect(found: tuple[Any, ...], expected: tuple[Any, ...]) -> None:
    if found != expected:
        raise UnreadableError(f"is no index of this gallery ({found} instead of {expected})")
