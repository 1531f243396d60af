"""The embeddings of a whole dataset on disk: written in constant memory, opened with one call.

`embeddings.safetensors` holds numbers, a row for each print in the dataset's order; `prints.parquet` says where each
came from, `failed.jsonl` which of them could not be embedded and why, `config.json` what made them.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from fingerprint_accel.errors import UserError
from fingerprint_accel.extraction.template_formats import TemplateFormat
from fingerprint_accel.outputs import FolderKind, json_with

FORMAT_VERSION = 1
EMBEDDINGS, PRINTS, FAILED, CONFIG = "embeddings.safetensors", "prints.parquet", "failed.jsonl", "config.json"
FOLDER = FolderKind(
    "a folder of embeddings",
    json_with(CONFIG, "format_version", "template", "arguments"),
    "|".join(map(re.escape, (EMBEDDINGS, PRINTS, FAILED, CONFIG))),
)
DTYPES = {"float32": "F32", "int32": "I32", "int16": "I16", "int8": "I8", "uint8": "U8"}  # as safetensors calls them


@dataclass(frozen=True)
class Tensor:
    """A tensor that is written piece by piece.

    Attributes:
        dtype: of numpy.
        shape: of the whole.
        pieces: rows in order, arrays of that dtype.
    """

    dtype: np.dtype
    shape: tuple[int, ...]
    pieces: Iterable[np.ndarray]

    @classmethod
    def whole(cls, values: np.ndarray) -> Tensor:
        """A tensor in one piece."""
        return cls(values.dtype, values.shape, [values])

    @property
    def bytes(self) -> int:
        """Size."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


def write_safetensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Writes tensors, wide numbers first so that all are aligned; one piece at a time is in memory."""
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].dtype.itemsize, item[0]))
    header: dict[str, Any] = {"__metadata__": {"format": "np"}}
    start = 0
    for name, tensor in ordered:
        stop = start + tensor.bytes
        header[name] = {
            "dtype": DTYPES[tensor.dtype.name],
            "shape": list(tensor.shape),
            "data_offsets": [start, stop],
        }
        start = stop
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for _, tensor in ordered:
            written = sum(file.write(np.ascontiguousarray(piece).data) for piece in tensor.pieces)
            assert written == tensor.bytes, "the pieces make the whole"
        file.flush()
        os.fsync(file.fileno())


@dataclass(frozen=True)
class Embeddings:
    """Prints of a dataset as `fingerprint-accel extract` has left them.

    Attributes:
        folder: where they lie.
        templates: (N, ...) as stored, see `TemplateFormat`.
        finger: (N,) int32, -1 where it is not known.
        impression: (N,) int16, likewise.
        quality: (N,) float32, 0 to 1.
        failed: (N,) bool, failure to extract.
        format: how the templates are stored.
        config: what `config.json` says.
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
        """(N, D) float32 of unit length; zeros where the extraction failed."""
        found = self.format.decode(self.templates)
        return np.where(self.failed[:, None], np.float32(0), found)


def open_embeddings(folder: Path | str) -> Embeddings:
    """Opens what `fingerprint-accel extract` has written.

    Raises:
        UserError: it is missing or damaged.
    """
    folder = Path(folder)
    try:
        config = json.loads((folder / CONFIG).read_text())
        facts = config["template"]
        template = TemplateFormat(facts["kind"], int(facts["length"]), int(facts.get("cells", 0)))
        tensors = load_file(folder / EMBEDDINGS)
        failed = np.zeros(len(tensors["quality"]), bool)
        for line in (folder / FAILED).read_text().splitlines():
            failed[json.loads(line)["row"]] = True
        return Embeddings(
            folder,
            tensors["embeddings"],
            tensors["finger"],
            tensors["impression"],
            tensors["quality"],
            failed,
            template,
            config,
        )
    except (OSError, ValueError, KeyError, TypeError, IndexError, SafetensorError) as error:
        raise UserError(f"{folder}: no embeddings, or damaged ({str(error)[:80]}); `extract` makes them") from error
