"""`fingerprint-accel extract`: the embeddings of a whole dataset, shard by shard, resumable.

Shards and the batches they are cut into have a fixed size, and on a CPU each batch is computed by one thread: the same
bytes on any number of threads, processes and machines.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.numpy import save_file

from fingerprint_accel import __version__
from fingerprint_accel.data.importing import IMAGE_PPI
from fingerprint_accel.data.listing import list_prints, name_of
from fingerprint_accel.data.print_file import ImageFile, Reading, Target, prepare
from fingerprint_accel.data.shard_writing import INFO
from fingerprint_accel.data.shards import open_dataset
from fingerprint_accel.durable import file_sha256, write_json
from fingerprint_accel.errors import require
from fingerprint_accel.executors import open_workers
from fingerprint_accel.extraction.embeddings_folder import (
    CONFIG,
    FAILED,
    FOLDER,
    FORMAT_VERSION,
    PRINTS,
    SHARD_NAMES,
    ExtractionSummary,
)
from fingerprint_accel.extraction.extractor import FingerprintExtractor
from fingerprint_accel.extraction.template_formats import Kind, TemplateFormat, shortened
from fingerprint_accel.jobs import Facts, Job, run, state_of_files
from fingerprint_accel.outputs import check_folder
from fingerprint_accel.preprocess.enhance import enhance_canvas
from fingerprint_accel.synthesis.workers import each

BATCHES_PER_SHARD = 64  # enough for the cores of a CPU; a shard is soon done, and its canvases fit in memory
BATCH_ON_CPU, BATCH_ON_GPU = 8, 64


@dataclass(frozen=True)
class Options:
    """What is kept of a print.

    Attributes:
        template: how embeddings are stored.
        length: numbers to keep, the first of each branch; 0 for all.
        minimum_quality: prints below count as failure to extract.
        batch_size: prints at a time; 0 for `BATCH_ON_CPU` or `BATCH_ON_GPU`.
        bf16: run the network in bf16.
        inverted, mirror: of image files, as of `print_file.Reading`.

    Raises:
        UserError: a number out of range.
    """

    template: Kind = "float32"
    length: int = 0
    minimum_quality: float = 0.0
    batch_size: int = 0
    bf16: bool = False
    inverted: Literal["auto", "yes", "no"] = "auto"
    mirror: bool = False

    def __post_init__(self) -> None:
        require(0 <= self.minimum_quality <= 1, f"--minimum-quality {self.minimum_quality}: must lie between 0 and 1")
        require(self.batch_size >= 0, f"--batch-size {self.batch_size}: must not be negative")


EVERYTHING = Options()


def extract_all(
    data: Path,
    out: Path,
    model: str = "small",
    ppi: int = IMAGE_PPI,
    options: Options = EVERYTHING,
    *,
    cluster: str = "",
    device: str = "auto",
    overwrite: bool = False,
    progress: bool = True,
) -> ExtractionSummary:
    """Embeds every print of a dataset, or of a folder of images; goes on from what the same call has left.

    Args:
        data: dataset folder, or folder of images.
        out: folder to write.
        model: as of `FingerprintExtractor.from_pretrained`.
        ppi: of images, pixels per inch; a dataset knows its own.
        options: what is kept of a print.
        cluster, device: what does the work, as of `executors.open_workers`.
        overwrite: replace `out` if it is a folder of embeddings, and shards that another call has left.
        progress: shows a progress bar.

    Raises:
        UserError: as `Work`, `executors.open_workers` and `jobs.run`.
    """
    started = time.perf_counter()
    check_folder(out, FOLDER, inputs=[data, *([model] if Path(model).exists() else [])])
    with open_workers(0, cluster, device, threads=True) as team:
        job = ExtractJob(data, model, ppi, options, team.device)
        made = run(job, out, team.executor, overwrite, progress)
    return ExtractionSummary(out, job.work.format, made, time.perf_counter() - started)


class ExtractJob(Job):
    """An extraction, shard by shard; arguments as of `extract_all`, with the device of the workers."""

    label, kind, pattern = "extracting", FOLDER, SHARD_NAMES

    def __init__(self, data: Path, model: str, ppi: int, options: Options, device: str) -> None:
        if not options.batch_size:
            options = dataclasses.replace(options, batch_size=BATCH_ON_CPU if device == "cpu" else BATCH_ON_GPU)
        self._settings = data, model, ppi, options, device
        open_work.cache_clear()  # what lies there may have changed since another call
        self.work = work = open_work(*self._settings)
        self.arguments: dict[str, Any] = {
            "data": str(data.resolve()),
            "data_digest": work.prints.digest,
            "ppi": ppi if isinstance(work.prints, ImageFolder) else work.extractor.ppi,
            "model": work.extractor.identity,
            "usual_norm": work.extractor.notes.get("usual_norm"),
            **dataclasses.asdict(options),
            "length": work.format.length,
            "device": device,
            "fingerprint_accel": __version__,
            "torch": torch.__version__,
        }
        self.bytes_per_print = work.format.bytes + 10
        self._per_shard, rows = BATCHES_PER_SHARD * options.batch_size, len(work.prints.table)
        self.sizes = [min(self._per_shard, rows - start) for start in range(0, rows, self._per_shard)]

    def task(self, shard: int) -> Callable[[Path], Facts]:
        """As of `Job`."""
        start = shard * self._per_shard
        return functools.partial(_write_shard, self._settings, range(start, start + self.sizes[shard]))

    def publish(self, folder: Path, facts: list[Facts]) -> None:
        """As of `Job`."""
        prints, template, extractor = self.work.prints, self.work.format, self.work.extractor
        pq.write_table(prints.table, folder / PRINTS)
        failed = [
            {"row": row, "source": prints.table["source"][row].as_py(), "reason": reason}
            for known in facts
            for row, reason in known["failed"]
        ]
        (folder / FAILED).write_text("".join(json.dumps(failure) + "\n" for failure in failed))
        config = {
            "format_version": FORMAT_VERSION,
            "prints": len(prints.table),
            "failed": len(failed),
            "model": {
                "identity": extractor.identity,
                "origin": extractor.origin,
                "variant": extractor.model.config.variant,
                "trunk": extractor.model.config.trunk,
                "embedding_dim": extractor.model.config.embedding_dim,
                "cells": extractor.cells,
                "ppi": extractor.ppi,
                "canvas": extractor.canvas,
                "enhanced": extractor.enhanced,
            },
            "template": {**vars(template), "bytes": template.bytes, "scale": template.scale},
            "sha256": {name: known["sha256"] for name, known in zip(self.names, facts, strict=True)},
            "arguments": self.arguments,
        }
        write_json(folder / CONFIG, config)


class DatasetPrints:
    """The prints of a dataset folder: `finger` (N,) int32, `impression` (N,) int64, a `table` of N rows that says what
    they are, and a `digest` that tells them from others."""

    def __init__(self, folder: Path, extractor: FingerprintExtractor) -> None:
        self.shards = open_dataset(folder)
        extractor.check_dataset(self.shards)
        self.finger, self.impression = self.shards.fingers, self.shards.impressions
        self.table = self.shards.table.select(["source", "finger_key"])
        self.digest = file_sha256(folder / INFO)[:16]

    def read(self, rows: range) -> tuple[np.ndarray, dict[int, str]]:
        """(n, canvas, canvas) uint8, and nothing that failed."""
        side = self.shards.info.canvas
        canvases = np.empty((len(rows), side, side), np.uint8)
        self.shards.read(np.arange(rows.start, rows.stop), canvases)
        return canvases, {}


class ImageFolder:
    """The images below a folder, in the order of their paths, as `DatasetPrints`; finger and impression are -1."""

    def __init__(self, folder: Path, reading: Reading, extractor: FingerprintExtractor) -> None:
        require(folder.is_dir(), f"{folder}: no such folder; give a dataset folder, or a folder of images")
        require(50 <= reading.ppi <= 5000, f"--ppi {reading.ppi}: must lie between 50 and 5000")
        self.folder, self.reading = folder, reading
        self.target = Target(extractor.ppi, extractor.canvas, enhance_canvas if extractor.enhanced else None)
        listing = list_prints(folder)
        self._prints = listing.table
        self.table = pa.table({"source": [name_of(listing.table, row) for row in range(len(listing.table))]})
        self.finger = np.full(len(self.table), -1, np.int32)
        self.impression = np.full(len(self.table), -1, np.int64)
        self.digest = state_of_files(folder / name.as_py() for name in self._prints["path"])

    def read(self, rows: range) -> tuple[np.ndarray, dict[int, str]]:
        """(n, canvas, canvas) uint8, white where there is no print, and the reasons by row."""
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


class Work:
    """What a process needs to extract: the network on its device, the prints, options and the format of templates.

    Raises UserError where model or prints are missing or do not fit each other, or the model cannot give the length.
    """

    def __init__(self, data: Path, model: str, ppi: int, options: Options, device: str) -> None:
        self.options = options
        self.extractor = extractor = FingerprintExtractor.from_pretrained(model).to(torch.device(device))
        extractor.bf16 = options.bf16
        dims = extractor.model.config.embedding_dim
        length, branches = options.length or dims, len(extractor.model.branch_dims)
        halves = ", half of each branch" if branches > 1 else ""
        fits = branches <= length <= dims and length % branches == 0
        require(fits, f"--length {length}: the model gives {dims} numbers{halves}")
        require(
            not extractor.cells or length == dims,
            f"--length {length}: the model is dense, and its templates of {dims} numbers cannot be cut",
        )
        self.format = TemplateFormat(options.template, length, extractor.cells)
        is_dataset, reading = (data / INFO).exists(), Reading(ppi, options.inverted, options.mirror)
        self.prints = DatasetPrints(data, extractor) if is_dataset else ImageFolder(data, reading, extractor)

    def embed(self, rows: range) -> tuple[np.ndarray, np.ndarray, dict[int, str]]:
        """Templates (n, ...), quality (n,) float32, and reasons by row for those that failed."""
        canvases, reasons = self.prints.read(rows)
        batches = torch.from_numpy(canvases).split(self.options.batch_size)

        def of_batch(images: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
            embeddings, quality = self.extractor.with_quality(images.to(self.extractor.device))
            return embeddings.cpu().numpy(), quality.cpu().numpy()

        on_cpu = self.extractor.device.type == "cpu"
        found = each(of_batch, batches) if on_cpu else [of_batch(images) for images in batches]
        embeddings, quality = (np.concatenate(values) for values in zip(*found, strict=True))
        quality[[row - rows.start for row in reasons]] = 0
        for row in np.flatnonzero(quality < self.options.minimum_quality).tolist():
            reasons.setdefault(rows.start + row, f"quality below {self.options.minimum_quality}: {quality[row]:.3f}")
        branches = len(self.extractor.model.branch_dims)
        templates = self.format.encode(shortened(embeddings, self.format.length, branches))
        templates[[row - rows.start for row in reasons]] = 0
        return templates, quality, reasons


open_work = functools.lru_cache(maxsize=1)(Work)  # once in a process


def _write_shard(settings: tuple[Path, str, int, Options, str], rows: range, path: Path) -> Facts:
    """Embeds some rows, in a worker."""
    work = open_work(*settings)
    templates, quality, reasons = work.embed(rows)
    here = slice(rows.start, rows.stop)
    known = {"finger": work.prints.finger[here], "impression": work.prints.impression[here]}
    save_file({"embeddings": templates, "quality": quality, **known}, path)
    return {"failed": sorted(reasons.items())}
