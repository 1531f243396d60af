"""The images of one record batch, in memory-mapped bytes: raw, or each row as one lz4 block."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from fingerprint_accel.data.encoding import decode
from fingerprint_accel.data.mapping import MappedFile
from fingerprint_accel.data.shard_writing import DatasetInfo
from fingerprint_accel.errors import UserError


class ImageChunk:
    """The image column of one record batch.

    Args:
        column: of the record batch.
        info: canvas and encoding of the dataset.
        folder: the dataset, for messages.
        file: that holds it.

    Raises:
        UserError: the rows are not in the dataset's encoding.
    """

    def __init__(self, column: pa.BinaryArray, info: DatasetInfo, folder: Path, file: MappedFile) -> None:
        _, offset_buffer, data = column.buffers()
        self._offsets = np.frombuffer(offset_buffer, np.int32)[column.offset : column.offset + len(column) + 1]
        self._file, self._start = file, file.offset(data.address)
        self._canvas, self._encoding = info.canvas, info.encoding
        raw = bool((np.diff(self._offsets) == info.canvas**2).all())
        if raw != (info.encoding == "raw"):
            found = "raw" if raw else f"not {info.canvas} x {info.canvas} bytes each"
            raise UserError(
                f"{folder}: mixed encodings: fingerprint.json says {info.encoding}, but {len(column)} prints are "
                f"{found}; import it again"
            )
        self._bytes = np.frombuffer(data, np.uint8)
        self._rows = None
        if raw:
            self._rows = self._bytes[self._offsets[0] : self._offsets[-1]].reshape(len(column), -1)

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def stored(self, row: int) -> np.ndarray:
        """(bytes,) uint8 of a print as they lie in the file, without a copy."""
        return self._bytes[self._offsets[row] : self._offsets[row + 1]]

    def image(self, stored: np.ndarray) -> np.ndarray:
        """What is stored of a print -> (canvas, canvas) uint8; a view where the encoding is raw.

        Raises:
            UserError: the print is damaged.
        """
        try:
            return decode(pa.py_buffer(stored), self._encoding, self._canvas)
        except ValueError as error:
            raise UserError(f"{self._file.path}: holds a damaged print ({error}); copy or import it again") from error

    def read(self, rows: np.ndarray, out: np.ndarray, seconds: dict[str, float] | None = None) -> None:
        """Copies rows (B,) into `out` (B, canvas ** 2) uint8; adds up what reading and decoding took.

        Raises:
            UserError: a print is damaged.
        """
        started = time.perf_counter()
        if self._rows is not None:
            np.take(self._rows, rows, axis=0, out=out, mode="clip")
            decoding = time.perf_counter()
        else:
            stored = [self.stored(row).copy() for row in rows.tolist()]
            decoding = time.perf_counter()
            for place, row in enumerate(stored):
                out[place] = self.image(row).reshape(-1)
        if seconds is not None:
            seconds["disk"] += decoding - started
            seconds["decode"] += time.perf_counter() - decoding

    def wanted(self, rows: np.ndarray) -> None:
        """Has the system fetch ascending rows (B,) in the background."""
        starts = self._offsets[rows].astype(np.int64)
        self._file.wanted(self._start + starts, self._offsets[rows + 1] - starts)
