"""Extract the embeddings of a whole dataset, shard by shard, for `fingerprint-accel extract`.

A shard is a file with the embeddings of consecutive prints. An interrupted extraction resumes after its finished
shards. Shards and batches have a fixed size, and on a CPU each batch is computed by one thread. The output therefore
does not depend on the number of threads, processes or machines of the same kind.
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
import pyarrow.parquet as pq
import torch

from fingerprint_accel import __version__
from fingerprint_accel.data.importing import IMAGE_PPI
from fingerprint_accel.data.print_file import Reading
from fingerprint_accel.data.shard_writing import INFO
from fingerprint_accel.data.watching import ShardWatcher
from fingerprint_accel.durable import OTHER_FILES, errors_naming, file_sha256, write_file, write_json
from fingerprint_accel.errors import require
from fingerprint_accel.executors import open_workers
from fingerprint_accel.extraction.bulk_prints import DatasetPrints, ImageFolder
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
from fingerprint_accel.extraction.protection import read_key
from fingerprint_accel.extraction.template_formats import Kind, TemplateFormat, shortened
from fingerprint_accel.jobs import Job, run
from fingerprint_accel.outputs import check_folder
from fingerprint_accel.staging import Facts
from fingerprint_accel.synthesis.workers import each, overlapped
from fingerprint_accel.tensor_files import write_tensors

BATCHES_PER_SHARD = 64  # occupies all cores of a CPU, and the images of a shard fit in memory
BATCH_ON_CPU, BATCH_ON_GPU = 8, 64


@dataclass(frozen=True)
class Options:
    """Options of an extraction.

    Attributes:
        template: storage format of the embeddings: "float32", "int8" or "binary".
        length: dimension to which each embedding is shortened, with equally many values from each branch of the
            network; 0 keeps all values.
        minimum_quality: lowest accepted quality of a print, 0 to 1; prints below this quality are treated as failures
            to extract.
        batch_size: number of prints per batch; 0 for the default of the device (`BATCH_ON_CPU` or `BATCH_ON_GPU`).
        bf16: run the network in bfloat16.
        inverted: whether image files show light ridges on a dark background: "yes", "no", or "auto" to detect it.
        mirror: flip image files horizontally, because they show mirrored prints.
        protect: file of the key that protects the templates, see `protection`; None for templates without protection.

    Raises:
        UserError: if `minimum_quality` or `batch_size` is out of range.
    """

    template: Kind = "float32"
    length: int = 0
    minimum_quality: float = 0.0
    batch_size: int = 0
    bf16: bool = False
    inverted: Literal["auto", "yes", "no"] = "auto"
    mirror: bool = False
    protect: Path | None = None

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
    """Embed every print of a dataset or of a folder of images, and write the embeddings to a folder.

    If an earlier call with the same arguments was interrupted, its finished shards (output files) are kept.

    Args:
        data: dataset folder, or folder of images.
        out: folder to write.
        model: name of a bundled model, or path of a model; see `FingerprintExtractor.from_pretrained`.
        ppi: resolution of images that do not state theirs, pixels per inch; ignored for a dataset.
        options: options of the extraction.
        cluster: address or scheduler file of a Dask cluster; empty for this machine. See `executors.open_workers`.
        device: "cpu", "cuda", or "auto" for all GPUs if there are any.
        overwrite: replace an existing folder of embeddings at `out`, and delete unfinished shards of a call with other
            arguments.
        progress: show a progress bar.

    Returns:
        Summary with the numbers of prints and failures, the qualities and the duration, which can be printed as a
        table.

    Raises:
        UserError: if the model or the prints are missing or do not fit each other, if the model does not support one of
            the options, or if `out` exists and is not a folder of embeddings that may be replaced.
    """
    started = time.perf_counter()
    check_folder(out, FOLDER, inputs=[data, *([model] if Path(model).exists() else [])])
    with open_workers(0, cluster, device, threads=True) as team:
        job = ExtractJob(data, model, ppi, options, team.device)
        made = run(job, out, team.executor, overwrite, progress)
    return ExtractionSummary(out, job.work.format, made, time.perf_counter() - started)


class ExtractJob(Job):
    """Job (see `jobs.Job`) that embeds the prints of a dataset or folder, with one task per output file (shard).

    The arguments are those of `extract_all`, except `device`, which is the device of the workers: "cpu" or "cuda".
    """

    label, kind, pattern = "extracting", FOLDER, SHARD_NAMES

    def __init__(self, data: Path, model: str, ppi: int, options: Options, device: str) -> None:
        if not options.batch_size:
            options = dataclasses.replace(options, batch_size=BATCH_ON_CPU if device == "cpu" else BATCH_ON_GPU)
        self._settings = data, model, ppi, options, device
        open_work.cache_clear()  # the files may have changed since an earlier call in this process
        self.work = work = open_work(*self._settings)
        self.arguments: dict[str, Any] = {
            "data": str(data.resolve()),
            "data_digest": work.prints.digest,
            "ppi": ppi if isinstance(work.prints, ImageFolder) else work.extractor.ppi,
            "model": work.extractor.identity,
            "usual_norm": work.extractor.notes.get("usual_norm"),
            **dataclasses.asdict(options),
            "protect": protection.fingerprint if (protection := work.extractor.protection) else "",
            "length": work.format.length,
            "device": device,
            "fingerprint_accel": __version__,
            "torch": torch.__version__,
        }
        self.bytes_per_print = work.format.bytes + 10
        self._per_shard, rows = BATCHES_PER_SHARD * options.batch_size, len(work.prints.table)
        self.sizes = [min(self._per_shard, rows - start) for start in range(0, rows, self._per_shard)]

    def task(self, shard: int) -> Callable[[Path], Facts]:
        """Return a picklable function that embeds the prints of one shard and writes them to a file; see `Job.task`."""
        start = shard * self._per_shard
        rows = range(start, start + self.sizes[shard])
        return functools.partial(_write_shard, self._settings, self.arguments["protect"], rows)

    def publish(self, folder: Path, facts: list[Facts]) -> None:
        """Write `prints.parquet`, `failed.jsonl` and `config.json` into the output folder; see `Job.publish`.

        Args:
            folder: folder that contains the finished shards.
            facts: results of `_write_shard` for each shard, with the SHA-256 of its file.

        Raises:
            UserError: if the dataset has changed since it was opened.
        """
        prints, template, extractor = self.work.prints, self.work.format, self.work.extractor
        if isinstance(prints, DatasetPrints):
            ShardWatcher([prints.shards]).finish()
        with errors_naming(folder / PRINTS):
            pq.write_table(prints.table, folder / PRINTS)
        failed = [
            {"row": row, "source": prints.table["source"][row].as_py(), "reason": reason}
            for known in facts
            for row, reason in known["failed"]
        ]
        write_file(folder / FAILED, "".join(json.dumps(failure) + "\n" for failure in failed))
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
            OTHER_FILES: {name: file_sha256(folder / name) for name in (PRINTS, FAILED)},
            "arguments": self.arguments,
        }
        write_json(folder / CONFIG, config)


class Work:
    """Everything that a process needs to embed prints: model, prints, options and template format.

    The arguments are those of `extract_all`, except `device`, which is the device of the model.

    Raises:
        UserError: if the model, the prints or the key are missing or do not fit each other, or if the model cannot
            produce embeddings of the requested length.
    """

    def __init__(self, data: Path, model: str, ppi: int, options: Options, device: str) -> None:
        self.options = options
        self.extractor = extractor = FingerprintExtractor.from_pretrained(model).to(torch.device(device))
        extractor.bf16 = options.bf16
        extractor.protection = read_key(options.protect) if options.protect else None
        dims = extractor.model.config.embedding_dim
        length, branches = options.length or dims, len(extractor.model.branch_dims)
        halves = f" and be divisible by {branches}, the number of branches of the model" if branches > 1 else ""
        fits = branches <= length <= dims and length % branches == 0
        require(fits, f"--length {length}: must lie between {branches} and {dims}{halves}")
        require(
            not extractor.cells or length == dims,
            f"--length {length}: templates of a dense model cannot be shortened; leave out --length",
        )
        self.format = TemplateFormat(options.template, length, extractor.cells)
        is_dataset, reading = (data / INFO).exists(), Reading(ppi, options.inverted, options.mirror)
        self.prints = DatasetPrints(data, extractor) if is_dataset else ImageFolder(data, reading, extractor)

    def embed(self, rows: range) -> tuple[np.ndarray, np.ndarray, dict[int, str]]:
        """Embed a range of prints.

        Args:
            rows: rows of the prints in the dataset or the list of images.

        Returns:
            Templates (n, ...) in the storage format, zero for failed prints; quality (n,) float32, 0 to 1; and a
            dictionary that maps the row of each failed print to the reason.
        """
        self.extractor.running  # noqa: B018  (made once, before several threads need it)

        def of_batch(some: range) -> tuple[np.ndarray, np.ndarray, dict[int, str]]:
            canvases, unreadable = self.prints.read(some)
            embeddings, quality = self.extractor.with_quality(torch.from_numpy(canvases).to(self.extractor.device))
            return embeddings.cpu().numpy(), quality.cpu().numpy(), unreadable

        size = self.options.batch_size
        batches = [rows[start : start + size] for start in range(0, len(rows), size)]
        # Threads that read files and threads that compute share the cores better than one after the other.
        on_cpu = self.extractor.device.type == "cpu"
        found = each(of_batch, batches) if on_cpu else list(overlapped(of_batch, batches))
        embeddings, quality = (np.concatenate(values) for values in list(zip(*found, strict=True))[:2])
        reasons = {row: reason for *_, unreadable in found for row, reason in unreadable.items()}
        quality[[row - rows.start for row in reasons]] = 0
        for row in np.flatnonzero(quality < self.options.minimum_quality).tolist():
            reasons.setdefault(rows.start + row, f"quality below {self.options.minimum_quality}: {quality[row]:.3f}")
        branches = len(self.extractor.model.branch_dims)
        embeddings = shortened(embeddings, self.format.length, branches)
        if self.extractor.protection is not None:
            embeddings = self.extractor.protection.apply(embeddings, self.extractor.cells)
        templates = self.format.encode(embeddings)
        templates[[row - rows.start for row in reasons]] = 0
        return templates, quality, reasons


open_work = functools.lru_cache(maxsize=1)(Work)  # a process opens the model only once


def _write_shard(settings: tuple[Path, str, int, Options, str], key: str, rows: range, path: Path) -> Facts:
    """Embed a range of prints in a worker process, and write their templates to a shard file.

    Args:
        settings: arguments of `Work`.
        key: fingerprint of the key that protects the templates; empty for none.
        rows: rows of the prints.
        path: safetensors file to write.

    Returns:
        Row and reason of each print that failed, under the key "failed".
    """
    work = open_work(*settings)
    protection = work.extractor.protection
    require(
        key == (protection.fingerprint if protection else ""),
        f"{settings[3].protect}: the key was replaced during the extraction; restore it, or start again",
    )
    templates, quality, reasons = work.embed(rows)
    here = slice(rows.start, rows.stop)
    known = {"finger": work.prints.finger[here], "impression": work.prints.impression[here]}
    columns = {"embeddings": templates, "quality": quality, **known}
    write_tensors(path, {name: torch.from_numpy(np.array(column)) for name, column in columns.items()})
    return {"failed": sorted(reasons.items())}
