"""What an extraction leaves: the parts joined in one folder, and a summary."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from safetensors import safe_open

from fingerprint_accel.data.importing import kind_of
from fingerprint_accel.data.part_folder import PartFolder
from fingerprint_accel.durable import sync
from fingerprint_accel.extraction.bulk_work import Work
from fingerprint_accel.extraction.embeddings_folder import (
    CONFIG,
    EMBEDDINGS,
    FAILED,
    FOLDER,
    FORMAT_VERSION,
    PRINTS,
    Tensor,
    write_safetensors,
)
from fingerprint_accel.extraction.extractor import FingerprintExtractor
from fingerprint_accel.extraction.template_formats import DTYPES, TemplateFormat
from fingerprint_accel.outputs import put_in_place
from fingerprint_accel.text import aligned


@dataclass(frozen=True)
class ExtractionSummary:
    """What an extraction did.

    Attributes:
        out: the folder.
        quality: (N,) float32.
        failed: prints that could not be embedded, by reason.
        format: of the templates.
        megabytes: of the folder.
        made: prints that this run embedded; the others were there.
        seconds: that this run took.
    """

    out: Path
    quality: np.ndarray
    failed: Counter[str]
    format: TemplateFormat
    megabytes: float
    made: int
    seconds: float

    def table(self) -> str:
        """The summary as aligned text."""
        prints, failed = len(self.quality), self.failed.total()
        low, median, high = np.percentile(self.quality, [10, 50, 90])
        speed = f" ({self.made / max(1e-9, self.seconds):.0f} prints/s)" if self.made else ""
        template = f"{self.format.kind}, {self.format.length} numbers, {self.format.bytes} bytes"
        rows = [("prints", f"{prints}"), ("failure to extract", f"{failed} ({failed / prints:.2%})")]
        rows += [(f"  {reason}", f"{number}") for reason, number in self.failed.most_common(5)]
        rows += [
            ("template", template),
            ("quality", f"median {median:.2f}, 10 % below {low:.2f}, 10 % above {high:.2f}"),
            ("MB", f"{self.megabytes:.1f}"),
            ("seconds", f"{self.seconds:.1f}{speed}"),
            ("embeddings", str(self.out)),
        ]
        return aligned(rows)

    def show(self) -> None:
        """Prints the table, and where to find what failed."""
        print(self.table())
        if self.failed:
            print(f"prints that failed and reasons: {self.out / FAILED}")


def publish(work: Work, parts: PartFolder, out: Path) -> None:
    """Joins the parts, one at a time in memory, in a folder that appears whole."""
    temporary = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    prints, template = work.prints, work.format

    def of_parts(name: str) -> Iterator[np.ndarray]:
        for part in range(parts.count):
            with safe_open(parts.path(part), "np") as file:
                yield file.get_tensor(name)

    rows, dtype = len(prints.table), np.dtype(DTYPES[template.kind])
    tensors = {
        "embeddings": Tensor(dtype, (rows, template.columns), of_parts("embeddings")),
        "quality": Tensor(np.dtype(np.float32), (rows,), of_parts("quality")),
        "finger": Tensor.whole(prints.finger),
        "impression": Tensor.whole(prints.impression),
    }
    write_safetensors(temporary / EMBEDDINGS, tensors)
    pq.write_table(prints.table, temporary / PRINTS)
    failed = [failure for part in range(parts.count) for failure in _failures(work, parts, part)]
    (temporary / FAILED).write_text("".join(json.dumps(failure) + "\n" for failure in failed))
    config = {
        "format_version": FORMAT_VERSION,
        "prints": rows,
        "failed": len(failed),
        "model": _model_facts(work.extractor),
        "template": {**vars(template), "bytes": template.bytes, "scale": template.scale},
        "arguments": parts.arguments,
    }
    (temporary / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    for path in temporary.iterdir():
        sync(path)
    put_in_place(temporary, out, FOLDER)


def _failures(work: Work, parts: PartFolder, part: int) -> Iterator[dict[str, Any]]:
    with safe_open(parts.path(part), "np") as file:
        reasons = json.loads(file.metadata()["failed"])
    for row, reason in reasons.items():
        yield {"row": int(row), "source": work.prints.table["source"][int(row)].as_py(), "reason": reason}


def _model_facts(extractor: FingerprintExtractor) -> dict[str, Any]:
    config = extractor.model.config
    return {
        "identity": extractor.identity,
        "origin": extractor.origin,
        "variant": config.variant,
        "trunk": config.trunk,
        "embedding_dim": config.embedding_dim,
        "cells": extractor.cells,
        "ppi": extractor.ppi,
        "canvas": extractor.canvas,
        "enhanced": extractor.enhanced,
    }


def summarise(work: Work, out: Path, made: int, seconds: float) -> ExtractionSummary:
    """Reads from a finished folder what is worth saying; `made` prints in `seconds` are this run's."""
    with safe_open(out / EMBEDDINGS, "np") as file:
        quality = file.get_tensor("quality")
    with (out / FAILED).open() as log:
        failed = Counter(kind_of(json.loads(line)["reason"]) for line in log)
    size = sum(path.stat().st_size for path in out.iterdir()) / 1e6
    return ExtractionSummary(out, quality, failed, work.format, size, made, seconds)
