"""The dataset folder, read through zero-copy views of its memory-mapped shards."""

from __future__ import annotations

import hashlib
import itertools
import json
from pathlib import Path

import numpy as np
import pyarrow as pa

from fingerprint_accel.data.encoding import ENCODINGS, decode
from fingerprint_accel.data.order import mix64
from fingerprint_accel.data.shard_writing import FORMAT_VERSION, DatasetInfo, file_sha256
from fingerprint_accel.errors import UserError


class Shards:
    """An open dataset folder. Images and minutiae stay in the memory-mapped files until they are read.

    Attributes:
        folder: where it lies.
        info: ppi, canvas and counts.
        fingers: (N,) int32 dense finger id of each row.
        impressions: (N,) int16.
        key_of_finger: the owner's id of each dense finger id.
    """

    def __init__(self, folder: Path, info: DatasetInfo, tables: list[tuple[pa.Buffer, pa.Table]]) -> None:
        self.folder, self.info = folder, info
        self.table = pa.concat_tables([table for _, table in tables])
        self.fingers = self._numbers("finger").astype(np.int32)
        self.impressions = self._numbers("impression").astype(np.int16)
        _, first = np.unique(self.fingers, return_index=True)
        self.key_of_finger: list[str] = self.table["finger_key"].take(pa.array(first)).to_pylist()
        raw = info.encoding == "raw"
        self._views = [self._image_view(chunk) for chunk in self.table["image"].chunks] if raw else []
        self._chunk_start = np.cumsum([0] + [len(view) for view in self._views])
        self._files = [np.frombuffer(buffer, np.uint8)[: buffer.size // 4 * 4].view(np.float32) for buffer, _ in tables]
        self._minutia_index(tables)

    def __len__(self) -> int:
        return len(self.fingers)

    def _numbers(self, column: str) -> np.ndarray:
        return self.table[column].to_numpy()

    def _image_view(self, chunk: pa.BinaryArray) -> np.ndarray:
        _, offset_buffer, data = chunk.buffers()
        offsets = np.frombuffer(offset_buffer, np.int32)[chunk.offset : chunk.offset + len(chunk) + 1]
        length = self.info.canvas**2
        if not (np.diff(offsets) == length).all():
            raise UserError(
                f"{self.folder}: images are not all {self.info.canvas} x {self.info.canvas} bytes; re-import"
            )
        return np.frombuffer(data, np.uint8)[offsets[0] : offsets[-1]].reshape(len(chunk), length)

    def _minutia_index(self, tables: list[tuple[pa.Buffer, pa.Table]]) -> None:
        """Where each row's minutiae start, counted in float32 from the start of its file."""
        self._minutia_file = np.empty(len(self), np.int32)
        self._minutia_start = np.empty(len(self), np.int64)
        self._minutia_count = np.empty(len(self), np.int32)
        row = 0
        for number, (whole, table) in enumerate(tables):
            for chunk in table["minutiae"].chunks:
                offsets = np.frombuffer(chunk.buffers()[1], np.int32)[chunk.offset : chunk.offset + len(chunk) + 1]
                data = chunk.values.buffers()[1]
                stored = data is not None and data.size > 0
                origin = np.int64((data.address - whole.address) // 4 + chunk.values.offset if stored else 0)
                here = slice(row, row + len(chunk))
                self._minutia_file[here] = number
                self._minutia_start[here] = origin + offsets[:-1]
                self._minutia_count[here] = np.diff(offsets) // 4
                row += len(chunk)

    def image(self, row: int) -> np.ndarray:
        """(canvas, canvas) uint8 view of one print; no copy."""
        if self.info.encoding != "raw":
            return decode(self.table["image"][int(row)].as_buffer(), self.info.encoding, self.info.canvas)
        chunk = int(np.searchsorted(self._chunk_start, row, side="right")) - 1
        side = self.info.canvas
        return self._views[chunk][row - self._chunk_start[chunk]].reshape(side, side)

    def read(self, rows: np.ndarray, out: np.ndarray) -> None:
        """Copies prints into `out`; fastest when `rows` ascend.

        Args:
            rows: (B,) int64.
            out: (B, canvas, canvas) uint8, contiguous.
        """
        if self.info.encoding != "raw":
            for place, row in enumerate(rows):
                out[place] = self.image(row)
            return
        flat = out.reshape(len(rows), -1)
        chunks = np.searchsorted(self._chunk_start, rows, side="right") - 1
        if (np.diff(chunks) >= 0).all():
            bounds = np.flatnonzero(np.diff(chunks, prepend=-1, append=len(self._views)))
            for start, stop in itertools.pairwise(bounds):
                chunk = chunks[start]
                local = rows[start:stop] - self._chunk_start[chunk]
                np.take(self._views[chunk], local, axis=0, out=flat[start:stop], mode="clip")
        else:
            order = np.argsort(chunks, kind="stable")
            ascending = np.empty_like(flat)
            self.read(rows[order], ascending.reshape(out.shape))
            flat[order] = ascending

    def minutiae(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Minutiae of prints, padded with zeros: (B, M, 4) float32 and their numbers (B,) int64."""
        counts = self._minutia_count[rows].astype(np.int64)
        padded = np.zeros((len(rows), max(1, int(counts.max(initial=0))), 4), np.float32)
        for number in np.unique(self._minutia_file[rows]) if counts.any() else ():
            chosen = np.flatnonzero((self._minutia_file[rows] == number) & (counts > 0))
            wanted = np.arange(padded.shape[1])[None] < counts[chosen, None]
            which, place = np.nonzero(wanted)
            position = self._minutia_start[rows[chosen]][which] + 4 * place
            padded[chosen[which], place] = self._files[number][position[:, None] + np.arange(4)]
        return padded, counts

    def verify(self) -> None:
        """Compares every shard with its sha256.

        Raises:
            UserError: a shard has changed since it was written.
        """
        for name, expected in self.info.sha256.items():
            if file_sha256(self.folder / name) != expected:
                raise UserError(f"{self.folder / name}: sha256 differs from fingerprint.json; copy or import it again")


def open_dataset(folder: Path | str) -> Shards:
    """Opens a dataset folder.

    Raises:
        UserError: not a dataset folder, another format version, or a shard that is missing or cut off.
    """
    folder = Path(folder)
    try:
        info = DatasetInfo(**json.loads((folder / "fingerprint.json").read_text()))
    except OSError as error:
        raise UserError(f"{folder}: not a dataset folder (no fingerprint.json); make one with `import`") from error
    except (ValueError, TypeError) as error:
        raise UserError(f"{folder / 'fingerprint.json'}: damaged or of another version; import again") from error
    if info.format_version != FORMAT_VERSION or info.encoding not in ENCODINGS:
        raise UserError(
            f"{folder}: format {info.format_version} ({info.encoding}), this version reads {FORMAT_VERSION}"
        )
    tables = []
    for name in info.sha256:
        try:
            file = pa.memory_map(str(folder / name))
            whole = file.read_buffer(file.size())
            tables.append((whole, pa.ipc.open_stream(whole).read_all()))
        except (OSError, pa.ArrowException) as error:
            raise UserError(
                f"{folder / name}: missing or damaged ({str(error)[:80]}); copy or import it again"
            ) from error
    shards = Shards(folder, info, tables)
    if len(shards) != info.prints:
        raise UserError(f"{folder}: holds {len(shards)} prints, fingerprint.json says {info.prints}; import it again")
    return shards


def split_fingers(keys: list[str], fraction: float, seed: int = 0) -> np.ndarray:
    """(F,) bool, True for the fingers held out for validation.

    Each finger is decided by a hash of its key alone, so that adding data moves no finger to the other side.
    """
    digests = b"".join(hashlib.blake2b(key.encode(), digest_size=8).digest() for key in keys)
    hashed = mix64(np.frombuffer(digests, np.uint64) ^ np.uint64(seed))
    return hashed < np.uint64(min(2**64 - 1, int(fraction * 2**64)))
