"""Access to the images of one Arrow record batch in a memory-mapped shard."""

from __future__ import annotations

import time

import numpy as np
import pyarrow as pa

from fingerprint_accel.data.encoding import decode, largest_encoded
from fingerprint_accel.data.mapping import MappedFile
from fingerprint_accel.data.shard_writing import DatasetInfo
from fingerprint_accel.errors import UserError


class ImageChunk:
    """Reader for the image column of one Arrow record batch, which is a block of rows of a dataset.

    Args:
        column: the image column, encoded as raw pixels or with one lz4 block per row.
        info: description of the dataset; its canvas and encoding are used.
        file: memory-mapped file that contains the column.

    Attributes:
        span: positions in the file of the first byte of the images, and of the byte after the last one.

    Raises:
        UserError: if the rows do not have the encoding of the dataset.
    """

    def __init__(self, column: pa.BinaryArray, info: DatasetInfo, file: MappedFile) -> None:
        _, offset_buffer, data = column.buffers()
        self._offsets = np.frombuffer(offset_buffer, np.int32)[column.offset : column.offset + len(column) + 1]
        self._file, self._start = file, file.offset(data.address)
        self._canvas, self._encoding = info.canvas, info.encoding
        self.span = self._start + int(self._offsets[0]), self._start + int(self._offsets[-1])
        sizes = self._offsets[1:] - self._offsets[:-1]
        least, most = int(sizes.min()), int(sizes.max())
        raw = least == most == info.canvas**2
        if raw != (info.encoding == "raw"):
            found = "raw" if raw else f"not {info.canvas} x {info.canvas} bytes each"
            raise UserError(
                f"{file.path}: mixed encodings: fingerprint.json says {info.encoding}, but {len(column)} prints are "
                f"{found}; import the dataset again"
            )
        if least < 1 or most > largest_encoded(info.canvas):
            raise UserError(f"{file.path}: contains an image of {least if least < 1 else most} bytes; import it again")
        self._bytes = np.frombuffer(data, np.uint8)
        self._rows = None
        if raw:
            self._rows = self._bytes[self._offsets[0] : self._offsets[-1]].reshape(len(column), -1)

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def stored(self, row: int) -> np.ndarray:
        """Return the encoded image of a print as a 1-D uint8 array, which is a view of the file."""
        return self._bytes[self._offsets[row] : self._offsets[row + 1]]

    def image(self, stored: np.ndarray) -> np.ndarray:
        """Decode bytes from the method `stored`, and return a (canvas, canvas) uint8 image. Raw images are not copied.

        Raises:
            UserError: if the bytes are damaged.
        """
        try:
            return decode(pa.py_buffer(stored), self._encoding, self._canvas)
        except ValueError as error:
            raise UserError(f"{self._file.path}: holds a damaged print ({error}); copy or import it again") from error

    def read(self, rows: np.ndarray, out: np.ndarray, seconds: dict[str, float] | None = None) -> None:
        """Read and decode the images of B prints into a buffer.

        Args:
            rows: (B,) rows of the record batch.
            out: (B, canvas ** 2) uint8 buffer to fill, one image per row.
            seconds: if given, the time for reading is added to its entry `disk` and the time for decoding to `decode`.

        Raises:
            UserError: if a print is damaged.
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
        """Ask the operating system to load the images of some prints from disk in the background.

        Args:
            rows: (B,) rows of the record batch, in ascending order.
        """
        starts = self._offsets[rows].astype(np.int64)
        self._file.wanted(self._start + starts, self._offsets[rows + 1] - starts)
