"""Part by part from prints to templates: the same bytes whoever makes a part, and however many do.

Parts and the batches they are cut into have a fixed size; on a CPU each batch is computed by one thread.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save

from fingerprint_accel import __version__
from fingerprint_accel.data.part_folder import PartFolder
from fingerprint_accel.errors import UserError, require
from fingerprint_accel.extraction.extractor import FingerprintExtractor
from fingerprint_accel.extraction.print_sources import DatasetPrints, ImageFolder, open_prints
from fingerprint_accel.extraction.template_formats import Kind, TemplateFormat, shortened
from fingerprint_accel.synthesis.workers import each

BATCHES_PER_PART = 32  # enough for the cores of a CPU; a part is soon done, and its canvases fit in memory
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

    Raises:
        UserError: a number out of range.
    """

    template: Kind = "float32"
    length: int = 0
    minimum_quality: float = 0.0
    batch_size: int = 0
    bf16: bool = False

    def __post_init__(self) -> None:
        require(0 <= self.minimum_quality <= 1, f"--minimum-quality {self.minimum_quality}: must lie between 0 and 1")
        require(self.batch_size >= 0, f"--batch-size {self.batch_size}: must not be negative")


@dataclass(frozen=True)
class Work:
    """One extraction on this process.

    Attributes:
        extractor: on its device.
        prints: what to embed.
        options: as given, with every default resolved.
        format: of the templates.
    """

    extractor: FingerprintExtractor
    prints: DatasetPrints | ImageFolder
    options: Options
    format: TemplateFormat

    @property
    def part_size(self) -> int:
        """Prints of a part."""
        return BATCHES_PER_PART * self.options.batch_size

    def rows(self, part: int) -> range:
        """Rows of a part."""
        return range(part * self.part_size, min((part + 1) * self.part_size, len(self.prints.table)))

    def arguments(self, data: Path, ppi: int) -> dict[str, Any]:
        """All that the bytes of the embeddings depend on."""
        return {
            "data": str(data.resolve()),
            "data_digest": self.prints.digest,
            "ppi": ppi if isinstance(self.prints, ImageFolder) else self.extractor.ppi,
            "model": self.extractor.identity,
            "usual_norm": self.extractor.notes.get("usual_norm"),
            **dataclasses.asdict(self.options),
            "device": self.extractor.device.type,
            "fingerprint_accel": __version__,
            "torch": torch.__version__,
        }

    def embed(self, rows: range, done: Callable[[int], None]) -> tuple[np.ndarray, np.ndarray, dict[int, str]]:
        """Templates (n, ...), quality (n,) float32, and reasons by row for those that failed.

        Args:
            rows: to embed.
            done: is told of every batch how many prints it had.
        """
        canvases, reasons = self.prints.read(rows)
        batches = torch.from_numpy(canvases).split(self.options.batch_size)

        def of_batch(images: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
            embeddings, quality = self.extractor.with_quality(images.to(self.extractor.device))
            done(len(images))
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


def prepare_work(data: Path, model: str, ppi: int, options: Options, device: torch.device) -> Work:
    """Opens model and prints, and resolves defaults.

    Raises:
        UserError: no such model or prints, prints that do not fit the model, or a length that it cannot give.
    """
    extractor = FingerprintExtractor.from_pretrained(model).to(device)
    extractor.bf16 = options.bf16
    dims = extractor.model.config.embedding_dim
    length, branches = options.length or dims, len(extractor.model.branch_dims)
    if not branches <= length <= dims or length % branches:
        raise UserError(f"--length {length}: the model gives {dims} numbers" + ", half of each branch" * (branches > 1))
    if extractor.cells and length < dims:
        raise UserError(f"--length {length}: the model is dense, and its templates of {dims} numbers cannot be cut")
    batch_size = options.batch_size or (BATCH_ON_CPU if device.type == "cpu" else BATCH_ON_GPU)
    options = dataclasses.replace(options, length=length, batch_size=batch_size)
    template = TemplateFormat(options.template, length, extractor.cells)
    return Work(extractor, open_prints(data, ppi, extractor), options, template)


def make_part(work: Work, parts: PartFolder, part: int, done: Callable[[int], None]) -> None:
    """Embeds a part, which is on disk once this returns; `done` is told of every batch how many prints it had."""
    templates, quality, reasons = work.embed(work.rows(part), done)
    failed = json.dumps({str(row): reasons[row] for row in sorted(reasons)})
    with parts.writing(part) as file:
        file.write(save({"embeddings": templates, "quality": quality}, {"failed": failed}))
