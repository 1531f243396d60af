"""Open outputs and inputs as commands do, and return what they contain in a form that can be compared."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

EMPTY = "an empty gallery"


def digest(*values: Any) -> str:
    """Return a digest of arrays, lists and numbers."""
    found = hashlib.sha256()
    for value in values:
        if isinstance(value, np.ndarray):
            found.update(f"{value.dtype} {value.shape}".encode())
            found.update(np.ascontiguousarray(value).tobytes())
        else:
            found.update(repr(value).encode())
    return found.hexdigest()[:16]


def open_anything(place: Path) -> str:
    """Open an output of any kind with the reader of its kind.

    Raises:
        UserError: If the output is missing or damaged.
    """
    return READERS[kind_of(place)](place)


def kind_of(place: Path) -> str:
    """Return the kind of an output from its name."""
    names = ("set", "prints", "others", "gallery", "indexed", "embeddings", "model", "calibrated", "run", "report")
    kinds = ("dataset", "dataset", "dataset", "gallery", "gallery", "embeddings", "model", "model", "run", "report")
    return dict(zip(names, kinds, strict=True)).get(place.name, "file")


def dataset(folder: Path) -> str:
    """Open a dataset and read all prints; the result is only that of `columns` if `verify` notices damage."""
    from fingerprint_accel.data.shards import open_dataset
    from fingerprint_accel.errors import UserError
    from fingerprint_accel.extraction.verifying import verify

    found, shards = columns(folder), open_dataset(folder)
    images = np.empty((len(shards), shards.info.canvas, shards.info.canvas), np.uint8)
    shards.read(np.arange(len(shards)), images)
    try:
        verify(folder, progress=False)
    except UserError:
        return found
    return f"{found} {digest(images)}"


def columns(folder: Path) -> str:
    """Open a dataset and read everything but the images."""
    from fingerprint_accel.data.shards import open_dataset

    shards = open_dataset(folder)
    rows = np.arange(len(shards))
    minutiae, counts = shards.minutiae(rows)
    sources = shards.table["source"].to_pylist()
    return digest(
        shards.fingers, shards.impressions, shards.key_of_finger, minutiae, counts, sources, shards.nfiq2(),
        shards.info.ppi, shards.info.canvas, shards.info.encoding, shards.info.enhanced,
    )  # fmt: skip


def gallery(folder: Path) -> str:
    """Open a gallery, and read all names and embeddings, ordered by name."""
    from fingerprint_accel.extraction.gallery import Gallery

    found = Gallery(folder)
    if not len(found):
        return EMPTY
    rows = np.arange(len(found))
    known = found.known(rows)
    order = sorted(rows.tolist(), key=lambda row: known[row])
    return digest(found.model, found.dims, found.cells, [known[row] for row in order], found.vectors(rows)[order])


def index(folder: Path) -> str:
    """Search a gallery with its approximate index."""
    from fingerprint_accel.extraction.approximate import ApproximateSearch
    from fingerprint_accel.extraction.gallery import Gallery

    found = Gallery(folder)
    hits = ApproximateSearch(found).search(found.vectors(np.arange(3)), 3)
    return digest(hits.similarity, hits.row)


def embeddings(folder: Path) -> str:
    """Open a folder of embeddings."""
    from fingerprint_accel.extraction.embeddings_folder import open_embeddings

    found = open_embeddings(folder)
    return digest(found.vectors(), found.finger, found.impression, found.quality, found.failed)


def model(folder: Path) -> str:
    """Open a model with its weights and notes."""
    from fingerprint_accel.extraction.extractor import FingerprintExtractor

    extractor = FingerprintExtractor.from_pretrained(folder)
    weights = [value.numpy() for value in extractor.model.state_dict().values()]
    notes = {name: value for name, value in extractor.notes.items() if "seconds" not in name}
    return digest(
        *weights, notes, extractor.ppi, extractor.canvas, str(extractor.preprocess_config), extractor.enhanced
    )


def run(folder: Path) -> str:
    """Read the checkpoint from which a run would be resumed."""
    from fingerprint_accel.models.saved_model import find_checkpoint

    newest = find_checkpoint(folder)
    return "no checkpoint" if newest is None else checkpoint(newest)


def checkpoint(folder: Path) -> str:
    """Read a checkpoint."""
    from fingerprint_accel.training.checkpoint import load_checkpoint

    found = load_checkpoint(folder)
    tensors = {**found.model, **found.training, **{f"ema.{name}": value for name, value in (found.ema or {}).items()}}
    state = {name: value for name, value in found.state.items() if name not in ("sha256", "checksum")}
    return digest(sorted(tensors), *(tensors[name].numpy() for name in sorted(tensors)), sorted(state.items()))


def report(folder: Path) -> str:
    """Check that the files of an evaluation are whole."""
    import json

    from .commands import snapshot

    json.loads((folder / "metrics.json").read_text())
    return digest(sorted(snapshot(folder).items()))


def file(path: Path) -> str:
    """Check that a file is whole."""
    from .commands import snapshot

    return digest(sorted(snapshot(path).items()))


READERS: dict[str, Callable[[Path], str]] = {
    "dataset": dataset,
    "gallery": gallery,
    "embeddings": embeddings,
    "model": model,
    "run": run,
    "report": report,
    "file": file,
}
