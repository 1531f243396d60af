"""Write a dataset folder row by row, for benchmarks and tests that need prints that no command makes."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from fingerprint_accel.data.encoding import check_encoding
from fingerprint_accel.data.shard_writing import (
    DATASET,
    MOST_ROWS,
    SHARD_NAMES,
    Record,
    publish_dataset,
    seal_dataset,
    write_shard,
)
from fingerprint_accel.data.templates import IMPLAUSIBLE, plausible
from fingerprint_accel.durable import file_sha256
from fingerprint_accel.errors import UserError
from fingerprint_accel.outputs import check_folder, put_in_place


class ShardWriter:
    """Writes a dataset folder, one shard at a time in memory. The folder appears, complete, on `close`.

    Use it as a context manager: after an exception no files are left.

    Args:
        out: Folder to make.
        ppi: Resolution of the canvases, pixels per inch.
        canvas: Side of a canvas, pixels.
        rows_per_shard: Prints in a file.
        overwrite: Replace an existing dataset folder.
        encoding: Encoding of the images, "raw" or "lz4".
        enhanced: Whether the added images are enhanced.
        truth: Whether the dataset has the columns `pose` and `contact`.
        nfiq2: Whether the dataset has the column `nfiq2`.

    Raises:
        UserError: `out` exists and may not be replaced (`outputs.check_folder`), or the encoding is unknown.
    """

    def __init__(
        self,
        out: Path,
        ppi: int,
        canvas: int,
        rows_per_shard: int = MOST_ROWS,
        overwrite: bool = False,
        encoding: str = "raw",
        enhanced: bool = False,
        truth: bool = False,
        nfiq2: bool = False,
    ) -> None:
        check_encoding(encoding)
        check_folder(out, DATASET, overwrite)
        self.out, self.ppi, self.canvas, self.rows_per_shard = Path(out), ppi, canvas, rows_per_shard
        self.encoding, self.enhanced, self.columns = encoding, enhanced, {"truth": truth, "nfiq2": nfiq2}
        self.folder = self.out.with_name(f".{self.out.name}.tmp")
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        self._fingers: dict[str, int] = {}
        self._pending: list[Record] = []
        self._facts: list[dict[str, Any]] = []

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._close()
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)

    def add(self, record: Record) -> None:
        """Append a print. Fingers are numbered in order of appearance.

        Raises:
            UserError: Its minutiae are not finite, or out of range.
        """
        assert isinstance(record.image, np.ndarray), "expects an unencoded image"
        assert record.image.shape == (self.canvas, self.canvas), "one canvas size per dataset"
        assert record.image.dtype == np.uint8, "canvases are uint8"
        assert self.columns["truth"] or record.truth is None, "the dataset has no columns for the truth"
        if not plausible(record.minutiae):
            raise UserError(
                f"{record.source}: {IMPLAUSIBLE} (finger {record.finger_key}, impression {record.impression}); "
                "mend or leave them out"
            )
        finger = self._fingers.setdefault(record.finger_key, len(self._fingers))
        self._pending.append(dataclasses.replace(record, finger=finger))
        if len(self._pending) == self.rows_per_shard:
            self._flush()

    def _flush(self) -> None:
        """Write the collected prints as a shard."""
        if self._pending:
            path = self.folder / f"data-{len(self._facts):05d}.arrow"
            facts = write_shard(path, self._pending, self.canvas, self.encoding, **self.columns)
            self._facts.append(facts | {"sha256": file_sha256(path)})
            self._pending = []

    def _close(self) -> None:
        """Write the last shard and publish the folder."""
        self._flush()
        names = [SHARD_NAMES.format(shard, len(self._facts)) for shard in range(len(self._facts))]
        for shard, name in enumerate(names):
            (self.folder / f"data-{shard:05d}.arrow").rename(self.folder / name)
        publish_dataset(
            self.folder, names, self._facts, self.ppi, self.canvas, self.encoding, self.enhanced, **self.columns
        )
        seal_dataset(self.folder)
        put_in_place(self.folder, self.out, DATASET)
