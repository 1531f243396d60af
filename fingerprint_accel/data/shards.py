"""Read dataset folders through zero-copy views of memory-mapped Arrow shards."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import numpy as np
import pyarrow as pa

from fingerprint_accel.data.arrow_shard import digest_without_pixels, record_batches
from fingerprint_accel.data.image_chunk import ImageChunk
from fingerprint_accel.data.mapping import MappedFile, memory_of_machine, resident_files
from fingerprint_accel.data.minutiae_index import MinutiaeIndex
from fingerprint_accel.data.shard_writing import DatasetInfo
from fingerprint_accel.data.templates import IMPLAUSIBLE
from fingerprint_accel.data.truth_index import TruthIndex
from fingerprint_accel.errors import UserError, require
from fingerprint_accel.untrusted import DAMAGED, reason_of

# Size of all columns except the images, in bytes. Up to this size, digests and all numbers are checked when a dataset
# is opened (20 ms). In larger datasets, minutiae and ground truth are checked when they are read.
CHECKED_AT_ONCE = 2**26
RESIDENT = 2**30  # limit of mapped files in the resident memory of this process, bytes
REMEDY = "restore it from a copy, or import it again"


class Shards:
    """Dataset folder opened for reading; use `open_dataset` to create an instance.

    Images and minutiae stay in the memory-mapped files until they are read.

    Args:
        folder: path of the dataset folder.
        info: contents of its `fingerprint.json`.
        files: shards of the dataset, memory-mapped.
        batches: record batches of each shard.

    Attributes:
        folder: path of the dataset folder.
        info: resolution, canvas, encoding and counts of the dataset.
        table: Arrow table of all rows.
        fingers: (N,) int32 finger index of each print, from 0 to F - 1 for F fingers.
        impressions: (N,) int64 impression number of each print.
        key_of_finger: finger key (identifier chosen by the owner of the data) of each finger, by finger index.
        minutia_count: (N,) int32 number of minutiae of each print.
        most_minutiae: largest number of minutiae of a print.
        has_truth: whether the dataset has the columns `pose` and `contact`; they may be unknown for some prints.
        has_nfiq2: whether the dataset has the column `nfiq2`; the score is -1 where it is unknown.
        larger_than_memory: whether the files are larger than the memory that this process may use.
    """

    def __init__(
        self, folder: Path, info: DatasetInfo, files: list[MappedFile], batches: list[list[pa.RecordBatch]]
    ) -> None:
        self.folder, self.info = folder, info
        self._files, self._batches = files, batches
        self.table = pa.Table.from_batches(itertools.chain.from_iterable(batches))
        self.impressions = self._numbers("impression").astype(np.int64, copy=False)
        self.fingers = _dense(self._numbers("finger"), info.fingers)
        self.key_of_finger = self._keys()
        self._images = [
            ImageChunk(batch.column(0), info, file)
            for file, of_file in zip(files, batches, strict=True)
            for batch in of_file
        ]
        self._chunk_start = np.cumsum([0] + [len(chunk) for chunk in self._images])
        place = self.table.schema.get_field_index("minutiae")
        columns = [[batch.column(place) for batch in of_file] for of_file in batches]
        self._minutiae = MinutiaeIndex(files, columns, self._refuse)
        self.minutia_count = self._minutiae.counts
        self.most_minutiae = int(self.minutia_count.max(initial=0))
        self.has_truth = "pose" in self.table.column_names
        self.has_nfiq2 = "nfiq2" in self.table.column_names
        self._truth = (
            TruthIndex(self.table["pose"].chunks, self.table["contact"].chunks, folder) if self.has_truth else None
        )
        size = sum(map(len, files))
        if size - sum(chunk.span[1] - chunk.span[0] for chunk in self._images) <= CHECKED_AT_ONCE:
            self._check_all()
        self.larger_than_memory = size > memory_of_machine()
        self._unmaps = size > RESIDENT
        if self._unmaps:  # opening has loaded pages of every record batch
            self._unmap()
        self._resident_before = resident_files()
        if self.larger_than_memory:
            for file in files:
                file.read_only_what_is_touched()

    def __len__(self) -> int:
        return len(self.fingers)

    @property
    def files(self) -> list[MappedFile]:
        """The shards of the dataset."""
        return self._files

    def _check_all(self) -> None:
        """Check everything except the pixels: the digests of the shards, and all numbers.

        Raises:
            UserError: if a shard differs from its digest, or a number is not finite or out of range.
        """
        images = iter(self._images)
        for file, batches in zip(self._files, self._batches, strict=True):
            known = self.info.xxh3_without_pixels.get(file.path.name)
            spans = [next(images).span for _ in batches]
            if known is not None and digest_without_pixels(file, spans) != known:
                raise UserError(f"{file.path}: differs from its checksum; {REMEDY}")
        self._minutiae.check()
        if self._truth is not None:
            self._truth.check()
        self.nfiq2()

    def _numbers(self, column: str) -> np.ndarray:
        """Return a numeric column as an array (N,). The method avoids `to_numpy`, which would import pandas.

        Raises:
            UserError: if a number is below the range of the column.
        """
        numbers = np.concatenate([np.from_dlpack(chunk) for chunk in self.table[column].chunks])
        lowest = -1 if column == "nfiq2" else 0
        if numbers.min(initial=0) < lowest:
            row = int(np.flatnonzero(numbers < lowest)[0])
            raise UserError(f"{self._path_of(row)}: contains a print with {column} {numbers[row]}; {REMEDY}")
        return numbers

    def _path_of(self, row: int) -> Path:
        """Return the path of the shard that contains a row."""
        ends = np.cumsum([sum(map(len, batches)) for batches in self._batches])
        return self._files[int(np.searchsorted(ends, row, side="right"))].path

    def _keys(self) -> list[str]:
        """Return the key of each finger, read from the first row of the finger.

        The method avoids `pa.array`, which would import pandas.

        Raises:
            UserError: if the fingers are not those of `fingerprint.json`, or a key is empty.
        """
        count = int(self.fingers.max()) + 1
        first = np.full(max(count, self.info.fingers), len(self), np.int64)
        np.minimum.at(first, self.fingers, np.arange(len(self)))
        found = int(np.count_nonzero(first < len(self)))
        if found != self.info.fingers or len(first) != found:
            raise UserError(
                f"{self.folder}: holds {found} fingers, but fingerprint.json says {self.info.fingers}; {REMEDY}"
            )
        rows = pa.Array.from_buffers(pa.int64(), len(first), [None, pa.py_buffer(first)])
        keys: list[str] = self.table["finger_key"].combine_chunks().take(rows).to_pylist()
        if "" in keys:
            raise UserError(f"{self._path_of(int(first[keys.index('')]))}: contains an empty finger key; {REMEDY}")
        return keys

    def nfiq2(self) -> np.ndarray:
        """Return the NFIQ 2 scores of all prints as an (N,) int16 array, from 0 to 100; -1 if unknown.

        Raises:
            UserError: if a score is out of range.
        """
        if not self.has_nfiq2:
            return np.full(len(self), -1, np.int16)
        scores = self._numbers("nfiq2")
        highest = int(scores.max(initial=-1))
        require(highest <= 100, f"{self.folder}: contains an NFIQ 2 score of {highest}; {REMEDY}")
        return scores

    def image(self, row: int) -> np.ndarray:
        """Return the image of one print as a (canvas, canvas) uint8 array.

        A raw image is a view of the file, not a copy.
        """
        chunk, place = self._place(row)
        return chunk.image(chunk.stored(place))

    def stored(self, row: int) -> bytes:
        """Return the image of one print as stored in the file: raw or lz4-encoded bytes."""
        chunk, place = self._place(row)
        return chunk.stored(place).tobytes()

    def _place(self, row: int) -> tuple[ImageChunk, int]:
        number = int(np.searchsorted(self._chunk_start, row, side="right")) - 1
        return self._images[number], row - int(self._chunk_start[number])

    def read(self, rows: np.ndarray, out: np.ndarray, seconds: dict[str, float] | None = None) -> None:
        """Read the images of prints into a buffer. Reading is fastest if the rows are in ascending order.

        Args:
            rows: (B,) int64 rows of the dataset.
            out: (B, canvas, canvas) uint8 contiguous buffer to fill.
            seconds: if given, the time for reading is added to its entry `disk` and the time for decoding to `decode`.

        Raises:
            UserError: if a print is damaged.
        """
        flat = out.reshape(len(rows), -1)
        chunks = np.searchsorted(self._chunk_start, rows, side="right") - 1
        if (np.diff(chunks) >= 0).all():
            for chunk, here in self._by_chunk(chunks):
                self._images[chunk].read(rows[here] - self._chunk_start[chunk], flat[here], seconds)
        else:
            order = np.argsort(chunks, kind="stable")
            ascending = np.empty_like(flat)
            self.read(rows[order], ascending.reshape(out.shape), seconds)
            flat[order] = ascending
        # This keeps the resident memory near RESIDENT bytes for files of any size.
        if self._unmaps and resident_files() - self._resident_before > RESIDENT:
            self._unmap()

    def _by_chunk(self, chunks: np.ndarray) -> Iterator[tuple[int, slice]]:
        """Group rows of the dataset by the record batch that contains them.

        Args:
            chunks: (B,) index of the record batch of each row, ascending.

        Yields:
            Index of each record batch, and the slice of `chunks` that holds its rows.
        """
        bounds = np.flatnonzero(np.diff(chunks, prepend=-1, append=len(self._images)))
        for start, stop in itertools.pairwise(bounds.tolist()):
            yield int(chunks[start]), slice(start, stop)

    def wanted(self, rows: np.ndarray) -> None:
        """Ask the operating system to load the images of some prints from disk in the background.

        Args:
            rows: (B,) rows of the dataset, in ascending order.
        """
        chunks = np.searchsorted(self._chunk_start, rows, side="right") - 1
        for chunk, here in self._by_chunk(chunks):
            self._images[chunk].wanted(rows[here] - self._chunk_start[chunk])

    def _unmap(self) -> None:
        for file in self._files:
            file.unmap_pages()

    def minutiae(self, rows: np.ndarray, out: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Read the minutiae of prints.

        Args:
            rows: (B,) int64 rows of the dataset.
            out: (B, M, 4) float32 buffer to fill, where M is at least `most_minutiae`. Default: a new array, where M is
                the largest number of minutiae of these prints.

        Returns:
            (B, M, 4) float32 x, y (canvas pixels), angle (radians) and quality, padded with zeros; and (B,) int64
            number of minutiae of each print.

        Raises:
            UserError: if minutiae are not finite or out of range.
        """
        counts = self.minutia_count[rows].astype(np.int64)
        if out is None:
            out = np.empty((len(rows), max(1, int(counts.max(initial=0))), 4), np.float32)
        self._minutiae.read(rows, out)
        return out, counts

    def truth(self, rows: np.ndarray, pose: np.ndarray, contact: np.ndarray) -> None:
        """Read the ground truth of synthetic prints into buffers.

        Args:
            rows: (B,) int64 rows of the dataset.
            pose: (B, 3) float32 buffer for rotation (radians) and shift (canvas pixels); NaN for unknown poses.
            contact: (B, GRID, GRID) bool buffer for contact masks; False for unknown masks.

        Raises:
            UserError: if a pose is not finite or out of range.
        """
        if self._truth is None:
            pose[:], contact[:] = np.nan, False
        else:
            self._truth.read(rows, pose, contact)

    def truth_known(self, rows: np.ndarray) -> np.ndarray:
        """Return a (B,) bool mask that is True if the ground truth is known.

        `rows` are (B,) int64 rows of the dataset.
        """
        return np.zeros(len(rows), bool) if self._truth is None else self._truth.known()[rows]

    def _refuse(self, row: int) -> NoReturn:
        finger = self.key_of_finger[self.fingers[row]]
        raise UserError(
            f"{self._path_of(row)}: {IMPLAUSIBLE} (finger {finger}, "
            f"impression {self.impressions[row]}); import it again, which leaves such minutiae out"
        )


def _dense(fingers: np.ndarray, count: int) -> np.ndarray:
    """Renumber the fingers of a dataset without gaps, from 0 to `count` - 1.

    Indices are missing if an import has rejected all prints of a finger.

    Args:
        fingers: (N,) finger index of each print, possibly with gaps.
        count: number of fingers.

    Returns:
        (N,) int32 finger index of each print, without gaps.
    """
    if fingers.max(initial=-1) >= count:
        fingers = np.unique(fingers, return_inverse=True)[1]
    return fingers.astype(np.int32)


def open_dataset(folder: Path | str) -> Shards:
    """Open a dataset folder.

    Raises:
        UserError: if the folder is not a dataset folder or has another format version, or if a shard is missing,
            damaged or has another encoding. The error is also raised if a shard differs from its digest, or if minutiae
            or poses are not finite or out of range. Large datasets are not compared with their digests when they are
            opened, and their minutiae and poses are checked when they are read.
    """
    folder = Path(folder)
    info = DatasetInfo.read(folder)
    files, batches = [], []
    for name in info.sha256:
        try:
            files.append(MappedFile(folder / name))
            batches.append(record_batches(files[-1]))
        except (OSError, *DAMAGED, pa.ArrowException) as error:
            raise UserError(f"{folder / name}: missing or damaged ({reason_of(error)}); {REMEDY}") from error
    rows = sum(len(batch) for of_file in batches for batch in of_file)
    require(rows == info.prints, f"{folder}: holds {rows} prints, but fingerprint.json says {info.prints}; {REMEDY}")
    try:
        return Shards(folder, info, files, batches)
    except UserError:
        raise
    except (ValueError, pa.ArrowException) as error:
        raise UserError(f"{folder}: damaged ({reason_of(error)}); {REMEDY}") from error
