"""The folder in which a packing works: its plan, the shards it has finished, and how the dataset appears from them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from fingerprint_accel.data.part_folder import unfinished
from fingerprint_accel.data.shard_writing import (
    DATASET,
    INFO,
    REJECTED,
    DatasetInfo,
    features,
    file_sha256,
    shard_name,
    write_info,
)
from fingerprint_accel.durable import sync
from fingerprint_accel.errors import UserError
from fingerprint_accel.outputs import put_in_place


@dataclass(frozen=True)
class Done:
    """A finished shard: its hash, and how many of its prints have minutiae."""

    sha256: str
    with_minutiae: int


class Work:
    """`.OUT.pack` beside OUT: `plan.json`, `dataset/` with finished shards, `done/` with what is known of them.

    A shard counts as finished when it has its name: it is written under another, synchronised, hashed, entered in
    `done/`, and only then renamed. `finished.json` says that all is ready to be moved to OUT.
    """

    def __init__(self, out: Path, arguments: dict[str, Any]) -> None:
        self.out, self.arguments = out, arguments
        self.folder = out.with_name(f".{out.name}.pack")
        self.dataset, self.done = self.folder / "dataset", self.folder / "done"

    def stored(self) -> dict[str, Any] | None:
        """The plan of the shards that are there; None where there is nothing to be read."""
        return _read_json(self.folder / "plan.json")

    def finished(self) -> bool:
        """Whether this plan was cut off at the very end: OUT is there, this folder not yet deleted."""
        ready = _read_json(self.folder / "finished.json")
        if ready is None or self.stored() != self.arguments:
            return False
        file = self.out / INFO
        return file.is_file() and file_sha256(file) == ready["fingerprint"]

    def begin(self, overwrite: bool) -> None:
        """Makes ready, or takes over what an interrupted run of the same plan has left.

        Raises:
            UserError: it holds shards of another plan, and `overwrite` is not set.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        stored = self.stored()
        if stored == self.arguments:
            for path in [*self.dataset.glob("*.tmp"), *self.done.glob("*.tmp")]:
                path.unlink()
            return
        if any(self.dataset.glob("data-*.arrow")) and not overwrite:
            other = stored or {}
            differing = ", ".join(
                f"{name} {other.get(name)} not {value}"
                for name, value in self.arguments.items()
                if other.get(name) != value
            )
            raise UserError(
                f"{self.folder}: unfinished shards of another command ({differing}); "
                "end that command, delete the folder, or add --overwrite"
            )
        self._clear()
        for folder in (self.dataset, self.done):
            folder.mkdir()
        _write_json(self.folder / "plan.json", self.arguments)

    def shard(self, number: int, shards: int) -> Done | None:
        """What is known of a shard, if it is finished."""
        values = _read_json(self.done / f"{number:05d}.json")
        if values is None or not (self.dataset / shard_name(number, shards)).is_file():
            return None
        return Done(**values)

    def missing(self, shards: int) -> list[int]:
        """Shards still to be written, of so many."""
        return [number for number in range(shards) if self.shard(number, shards) is None]

    def write_shard(self, number: int, shards: int, batches: Iterator[pa.RecordBatch], truth: bool) -> Done:
        """Writes a shard, which is finished once this returns; `truth` as in `features`."""
        path = self.dataset / shard_name(number, shards)
        temporary = unfinished(path)
        with_minutiae = 0
        with temporary.open("wb") as file:
            with pa.ipc.new_stream(file, features(truth).arrow_schema) as stream:
                for batch in batches:
                    stream.write_batch(batch)
                    with_minutiae += pc.sum(pc.greater(pc.list_value_length(batch["minutiae"]), 0)).as_py()
            file.flush()
            os.fsync(file.fileno())
        done = Done(file_sha256(temporary), with_minutiae)
        _write_json(self.done / f"{number:05d}.json", vars(done))
        temporary.rename(path)
        sync(self.dataset)
        return done

    def publish(self, info: DatasetInfo, truth: bool) -> None:
        """Puts the dataset in its place and deletes the folder; `truth` as in `features`."""
        write_info(self.dataset, info, truth)
        rejected = sorted(self.folder.glob(f"import-*/{REJECTED}"))
        if rejected:
            (self.dataset / REJECTED).write_text("".join(path.read_text() for path in rejected))
        for path in self.dataset.glob("*.json*"):
            sync(path)
        _write_json(self.folder / "finished.json", {"fingerprint": file_sha256(self.dataset / INFO)})
        put_in_place(self.dataset, self.out, DATASET)
        self.remove()

    def remove(self) -> None:
        """Deletes the folder."""
        self._clear()
        self.folder.rmdir()

    def _clear(self) -> None:
        """Deletes what is in the folder, what tells its plan last."""
        for path in sorted(self.folder.iterdir(), key=Path.is_file):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()

    def remove_if_empty(self) -> None:
        """Deletes the folder where nothing in it is worth going on from."""
        imported = [*self.folder.glob(f"import-*/{INFO}"), *self.folder.glob(".import-*.parts/part-*")]
        if not imported and not any(self.dataset.glob("data-*.arrow")):
            self.remove()


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return values if isinstance(values, dict) else None


def _write_json(path: Path, values: dict[str, Any]) -> None:
    """Whole and on the disk, or not at all."""
    temporary = unfinished(path)
    temporary.write_text(json.dumps(values, indent=2) + "\n")
    sync(temporary)
    temporary.rename(path)
    sync(path.parent)
