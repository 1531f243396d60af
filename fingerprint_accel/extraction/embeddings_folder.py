"""Read the folder of embeddings that `fingerprint-accel extract` writes.

A template is an embedding in its storage format. The folder contains:

- `embeddings-*.safetensors`: templates, quality, finger and impression, one row per print in the order of the dataset.
- `prints.parquet`: source of each print, which is the path or description of the original image.
- `failed.jsonl`: prints that could not be embedded, with reasons.
- `config.json`: model, template format, options and checksums.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file

from fingerprint_accel.data.import_summary import kind_of
from fingerprint_accel.errors import UserError
from fingerprint_accel.extraction.template_formats import TemplateFormat
from fingerprint_accel.outputs import FolderKind, json_with
from fingerprint_accel.text import aligned

FORMAT_VERSION = 2  # version 1 has a single file embeddings.safetensors; it can be read too
PRINTS, FAILED, CONFIG = "prints.parquet", "failed.jsonl", "config.json"
SHARD_NAMES = "embeddings-{:05d}-of-{:05d}.safetensors"
FOLDER = FolderKind(
    "a folder of embeddings",
    json_with(CONFIG, "format_version", "template", "arguments"),
    r"embeddings(-\d+-of-\d+)?\.safetensors|prints\.parquet|failed\.jsonl|config\.json",
)


@dataclass(frozen=True)
class Embeddings:
    """Embeddings of N prints, read from a folder.

    Attributes:
        folder: folder that the embeddings were read from.
        templates: (N, ...) templates in their storage format; use `vectors` for float32 embeddings.
        finger: (N,) int32, finger identifier of each print; -1 if unknown.
        impression: (N,) int64, impression number of each print; -1 if unknown.
        quality: (N,) float32, quality of each print, 0 to 1.
        failed: (N,) bool, true for prints that could not be embedded.
        format: storage format of `templates`.
        config: contents of `config.json`.
    """

    folder: Path
    templates: np.ndarray
    finger: np.ndarray
    impression: np.ndarray
    quality: np.ndarray
    failed: np.ndarray
    format: TemplateFormat
    config: dict[str, Any]

    def vectors(self) -> np.ndarray:
        """Decode the templates, and return (N, D) float32 of unit length; rows of failed prints are zero."""
        found = self.format.decode(self.templates)
        return np.where(self.failed[:, None], np.float32(0), found)


def open_embeddings(folder: Path | str) -> Embeddings:
    """Open a folder of embeddings that `fingerprint-accel extract` wrote.

    Raises:
        UserError: if the folder is missing or damaged.
    """
    folder = Path(folder)
    try:
        config = json.loads((folder / CONFIG).read_text())
        facts = config["template"]
        template = TemplateFormat(facts["kind"], int(facts["length"]), int(facts.get("cells", 0)))
        shards = [load_file(folder / name) for name in config.get("sha256", ["embeddings.safetensors"])]
        templates, finger, impression, quality = (
            np.concatenate([shard[name] for shard in shards])
            for name in ("embeddings", "finger", "impression", "quality")
        )
        failed = np.zeros(len(quality), bool)
        for line in (folder / FAILED).read_text().splitlines():
            failed[json.loads(line)["row"]] = True
        return Embeddings(folder, templates, finger, impression, quality, failed, template, config)
    except (OSError, ValueError, KeyError, TypeError, IndexError, SafetensorError) as error:
        raise UserError(f"{folder}: no embeddings, or damaged ({str(error)[:80]}); `extract` writes them") from error


class ExtractionSummary:
    """Summary of an extraction, read from its output folder.

    Args:
        out: folder of embeddings.
        template: storage format of the templates.
        made: number of prints that this call embedded. The other prints were embedded by an earlier call, which was
            interrupted.
        seconds: duration of this call, seconds.

    Attributes:
        quality: (N,) float32, quality of each print, 0 to 1.
        failed: number of prints that could not be embedded, by reason.
        megabytes: size of the folder, MB.
    """

    def __init__(self, out: Path, template: TemplateFormat, made: int, seconds: float) -> None:
        self.out, self.format, self.made, self.seconds = out, template, made, seconds
        quality = []
        for name in json.loads((out / CONFIG).read_text())["sha256"]:
            with safe_open(out / name, "np") as file:
                quality.append(file.get_tensor("quality"))
        self.quality: np.ndarray = np.concatenate(quality)
        with (out / FAILED).open() as log:
            self.failed = Counter(kind_of(json.loads(line)["reason"]) for line in log)
        self.megabytes = sum(path.stat().st_size for path in out.iterdir()) / 1e6

    def table(self) -> str:
        """Return the summary as a text table."""
        prints, failed = len(self.quality), self.failed.total()
        low, median, high = np.percentile(self.quality, [10, 50, 90])
        speed = f" ({self.made / max(1e-9, self.seconds):.0f} prints/s)" if self.made else ""
        rows = [("prints", f"{prints}"), ("failure to extract", f"{failed} ({failed / prints:.2%})")]
        rows += [(f"  {reason}", f"{number}") for reason, number in self.failed.most_common(5)]
        rows += [
            ("template", f"{self.format.kind}, {self.format.length} numbers, {self.format.bytes} bytes"),
            ("quality", f"median {median:.2f}, 10 % below {low:.2f}, 10 % above {high:.2f}"),
            ("MB", f"{self.megabytes:.1f}"),
            ("seconds", f"{self.seconds:.1f}{speed}"),
            ("embeddings", str(self.out)),
        ]
        return aligned(rows)

    def show(self) -> None:
        """Print the summary table and, if prints failed, the path of the list of failures."""
        print(self.table())
        if self.failed:
            print(f"failed prints with reasons: {self.out / FAILED}")
