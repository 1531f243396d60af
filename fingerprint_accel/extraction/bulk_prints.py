"""Prints that `fingerprint-accel extract` reads: those of a dataset folder, or the images of a folder."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pyarrow as pa

from fingerprint_accel.data.listing import list_prints, name_of
from fingerprint_accel.data.print_file import ImageFile, Reading, Target, prepare
from fingerprint_accel.data.shard_writing import INFO
from fingerprint_accel.data.shards import open_dataset
from fingerprint_accel.durable import file_sha256
from fingerprint_accel.errors import require
from fingerprint_accel.extraction.extractor import FingerprintExtractor
from fingerprint_accel.preprocess.enhance import enhance_canvas
from fingerprint_accel.staging import state_of_files
from fingerprint_accel.synthesis.workers import each


class DatasetPrints:
    """The prints of a dataset folder, as input of an extraction.

    Args:
        folder: dataset folder.
        extractor: model that embeds the prints; the dataset must have its resolution and image size.

    Attributes:
        finger: (N,) int32, finger identifier of each print.
        impression: (N,) int64, impression number of each print.
        table: table of N rows with the columns `source` and `finger_key`.
        digest: hash that changes if the dataset changes.
    """

    def __init__(self, folder: Path, extractor: FingerprintExtractor) -> None:
        self.shards = open_dataset(folder)
        extractor.check_dataset(self.shards)
        self.finger, self.impression = self.shards.fingers, self.shards.impressions
        self.table = self.shards.table.select(["source", "finger_key"])
        self.digest = file_sha256(folder / INFO)[:16]
        self._reading = threading.Lock()  # a dataset unmaps its files while it is read

    def read(self, rows: range) -> tuple[np.ndarray, dict[int, str]]:
        """Read the images of a range of rows of the dataset.

        Returns:
            (n, canvas, canvas) uint8, ridges dark; and an empty dictionary, because no print of a dataset can fail.
        """
        side = self.shards.info.canvas
        canvases = np.empty((len(rows), side, side), np.uint8)
        with self._reading:
            self.shards.read(np.arange(rows.start, rows.stop), canvases)
        return canvases, {}


class ImageFolder:
    """The prints in the image files of a folder, ordered by path; has the same interface as `DatasetPrints`.

    Args:
        folder: folder of image files; subfolders are included.
        reading: options for reading the image files, such as their resolution.
        extractor: model that the images are prepared for.

    Attributes:
        finger: (N,) int32, -1 for all prints, because their fingers are unknown.
        impression: (N,) int64, -1 for all prints.
        table: table of N rows with the columns `source`, the path of each print, and `person` and `position`, which
            records state; empty and 0 if unknown.
        digest: hash that changes if a file changes.
    """

    def __init__(self, folder: Path, reading: Reading, extractor: FingerprintExtractor) -> None:
        require(folder.is_dir(), f"{folder}: no such folder; give a dataset folder, or a folder of images")
        require(50 <= reading.ppi <= 5000, f"--ppi {reading.ppi}: must lie between 50 and 5000")
        self.folder, self.reading = folder, reading
        enhance = enhance_canvas if extractor.enhanced else None
        self.target = Target(extractor.ppi, extractor.canvas, enhance, period=False)
        listing = list_prints(folder)
        self._prints = listing.table
        names = [name_of(listing.table, row) for row in range(len(listing.table))]
        self.table = listing.table.select(["person", "position"]).add_column(0, "source", pa.array(names, pa.string()))
        self.finger = np.full(len(self.table), -1, np.int32)
        self.impression = np.full(len(self.table), -1, np.int64)
        self.digest = state_of_files(folder / name.as_py() for name in self._prints["path"])

    def read(self, rows: range) -> tuple[np.ndarray, dict[int, str]]:
        """Read a range of prints and place each one on a canvas, a square white image.

        Args:
            rows: positions of the prints in `table`.

        Returns:
            (n, canvas, canvas) uint8, ridges dark, all white for a print that cannot be read; and a dictionary that
            maps the row of each unreadable print to the reason.
        """
        some = self._prints.slice(rows.start, len(rows)).select(["path", "record", "cut"]).to_pylist()
        files = [ImageFile(self.folder / row["path"], record=row["record"], cut=row["cut"]) for row in some]
        canvases = np.full((len(rows), self.target.canvas, self.target.canvas), 255, np.uint8)
        reasons = {}
        for row, prepared in enumerate(each(lambda file: prepare(file, self.reading, self.target), files)):
            if prepared.image is None:
                reasons[rows.start + row] = prepared.reason
            else:
                canvases[row] = prepared.image
        return canvases, reasons
