"""What can be embedded as a whole: a dataset folder, or a folder of images. Both are read some rows at a time."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa

from fingerprint_accel.data.listing import image_paths
from fingerprint_accel.data.print_file import ImageFile, Target, prepare
from fingerprint_accel.data.shards import open_dataset
from fingerprint_accel.errors import UserError
from fingerprint_accel.extraction.extractor import FingerprintExtractor
from fingerprint_accel.preprocess.stored import enhance_canvas
from fingerprint_accel.synthesis.workers import each


class DatasetPrints:
    """The prints of a dataset folder.

    Attributes:
        finger: (N,) int32.
        impression: (N,) int16.
        table: of N rows, what the prints are.
        digest: beginning of a SHA-256 that tells these prints from others.

    Raises:
        UserError: no dataset, or not as the network wants it.
    """

    def __init__(self, folder: Path, extractor: FingerprintExtractor) -> None:
        self.shards = open_dataset(folder)
        extractor.check_dataset(self.shards)
        self.finger, self.impression = self.shards.fingers, self.shards.impressions
        self.table = self.shards.table.select(["source", "finger_key"])
        self.digest = hashlib.sha256((folder / "fingerprint.json").read_bytes()).hexdigest()[:16]

    def read(self, rows: range) -> tuple[np.ndarray, dict[int, str]]:
        """(n, canvas, canvas) uint8, and nothing that failed."""
        side = self.shards.info.canvas
        canvases = np.empty((len(rows), side, side), np.uint8)
        self.shards.read(np.arange(rows.start, rows.stop), canvases)
        return canvases, {}


class ImageFolder:
    """The images below a folder, in the order of their paths; which fingers they show is not known.

    Attributes:
        finger, impression, table, digest: as of `DatasetPrints`; finger and impression are -1.

    Raises:
        UserError: no folder, no image in it, or no ppi.
    """

    def __init__(self, folder: Path, ppi: int, extractor: FingerprintExtractor) -> None:
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder; give a dataset folder, or a folder of images")
        if not 50 <= ppi <= 5000:
            raise UserError(f"--ppi {ppi}: must lie between 50 and 5000")
        self.folder, self.ppi = folder, ppi
        self.target = Target(extractor.ppi, extractor.canvas, enhance_canvas if extractor.enhanced else None)
        self.table = pa.table({"source": pa.array(image_paths(folder), pa.string())})
        if not len(self.table):
            raise UserError(f"{folder}: holds no image file, and is no dataset folder")
        self.finger = np.full(len(self.table), -1, np.int32)
        self.impression = np.full(len(self.table), -1, np.int16)
        digest = hashlib.sha256()
        for name in self.table["source"]:
            known = (folder / name.as_py()).stat()
            digest.update(f"{name} {known.st_size} {known.st_mtime_ns}\n".encode())
        self.digest = digest.hexdigest()[:16]

    def read(self, rows: range) -> tuple[np.ndarray, dict[int, str]]:
        """(n, canvas, canvas) uint8, white where there is no print, and the reasons by row."""
        names = self.table["source"].slice(rows.start, len(rows)).to_pylist()
        files = [ImageFile(self.folder / name, self.ppi) for name in names]
        canvases = np.full((len(rows), self.target.canvas, self.target.canvas), 255, np.uint8)
        reasons = {}
        for row, prepared in enumerate(each(lambda file: prepare(file, self.target), files)):
            if prepared.image is None:
                reasons[rows.start + row] = prepared.reason
            else:
                canvases[row] = prepared.image
        return canvases, reasons


def open_prints(data: Path, ppi: int, extractor: FingerprintExtractor) -> DatasetPrints | ImageFolder:
    """A dataset folder if it is one, else a folder of images.

    Raises:
        UserError: neither, or not as the network wants it.
    """
    if (data / "fingerprint.json").exists():
        return DatasetPrints(data, extractor)
    return ImageFolder(data, ppi, extractor)
