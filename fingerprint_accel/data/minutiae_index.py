"""Access to the minutiae of all prints of a dataset, which stay in its memory-mapped shards."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import NoReturn

import numpy as np
import pyarrow as pa

from fingerprint_accel.data.mapping import MappedFile
from fingerprint_accel.data.templates import plausible
from fingerprint_accel.errors import UserError

MOST_MINUTIAE = 2**16  # of a print; a batch has room for the largest number of minutiae in each of its prints


class MinutiaeIndex:
    """Location of the minutiae of each print: file, position in the file and number of minutiae.

    Args:
        files: shards of the dataset, memory-mapped.
        columns: column `minutiae` of each record batch of each shard.
        refuse: function that raises an error for a row whose minutiae are not finite or out of range.

    Attributes:
        counts: (N,) int32 number of minutiae of each print.
        bytes: total size of all minutiae, bytes.

    Raises:
        UserError: if a print has a broken or an implausible number of minutiae.
    """

    def __init__(
        self,
        files: Sequence[MappedFile],
        columns: Sequence[Sequence[pa.ListArray]],
        refuse: Callable[[int], NoReturn],
    ) -> None:
        self._refuse = refuse
        self._floats = [np.frombuffer(file.buffer, np.float32, len(file) // 4) for file in files]
        places, origins, numbers = [], [], []
        for number, (file, chunks) in enumerate(zip(files, columns, strict=True)):
            for chunk in chunks:
                offsets = np.frombuffer(chunk.buffers()[1], np.int32)[chunk.offset : chunk.offset + len(chunk) + 1]
                values = chunk.values
                data = values.buffers()[1]
                stored = data is not None and data.size > 0
                place = file.offset(data.address) if stored else 0
                if place % 4:
                    raise UserError(f"{file.path}: contains minutiae that are not aligned; import it again")
                places.append(offsets)
                origins.append(place // 4 + values.offset if stored else 0)
                numbers.append(number)
        lengths = [len(offsets) - 1 for offsets in places]
        start = np.concatenate([offsets[:-1] for offsets in places])
        size = np.concatenate([offsets[1:] for offsets in places]) - start
        if size.size and (np.bitwise_or.reduce(size) % 4 or size.max() > 4 * MOST_MINUTIAE):
            row = int(np.flatnonzero((size % 4 != 0) | (size > 4 * MOST_MINUTIAE))[0])
            path = files[np.repeat(numbers, lengths)[row]].path
            raise UserError(f"{path}: contains a print with {size[row]} numbers as its minutiae; import it again")
        self.counts = size >> 2  # (x, y, angle, quality) each
        self.bytes = int(size.sum(dtype=np.int64)) * 4
        self._start = start + np.repeat(np.array(origins, np.int64), lengths)
        self._file = np.repeat(np.array(numbers, np.int32), lengths)
        self._chunks = np.cumsum([0, *lengths])

    def check(self) -> None:
        """Check the minutiae of all prints, and call `refuse` if one is not finite or out of range."""
        for first, after in itertools.pairwise(self._chunks.tolist()):
            end = self._start[after - 1] + 4 * self.counts[after - 1]
            # Rows of a record batch are next to each other in the file.
            if not plausible(self._floats[self._file[first]][self._start[first] : end]):
                rows = np.arange(first, after)
                self.read(rows, np.empty((len(rows), int(self.counts[rows].max()), 4), np.float32))

    def read(self, rows: np.ndarray, out: np.ndarray) -> None:
        """Read the minutiae of prints, and call `refuse` if one of them is not finite or out of range.

        Args:
            rows: (B,) int64 rows of the dataset.
            out: (B, M, 4) float32 buffer, which is filled with x, y, angle and quality, and padded with zeros.
        """
        out[:] = 0
        counts = self.counts[rows]
        for number in np.unique(self._file[rows]) if counts.any() else ():
            chosen = np.flatnonzero((self._file[rows] == number) & (counts > 0))
            wanted = np.arange(out.shape[1])[None] < counts[chosen, None]
            which, place = np.nonzero(wanted)
            position = self._start[rows[chosen]][which] + 4 * place
            values = self._floats[number][position[:, None] + np.arange(4)]
            if not plausible(values):
                at_fault = next(row for row, value in enumerate(values) if not plausible(value))
                self._refuse(int(rows[chosen[which[at_fault]]]))
            out[chosen[which], place] = values
