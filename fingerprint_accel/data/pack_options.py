"""What a packed dataset is to be like, and whether that can be."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fingerprint_accel.data.encoding import check_encoding
from fingerprint_accel.data.import_plan import versions
from fingerprint_accel.data.importing import check_canvas
from fingerprint_accel.data.print_file import Enhance
from fingerprint_accel.data.shard_writing import DATASET, ROWS_PER_SHARD, file_sha256
from fingerprint_accel.data.shards import open_dataset
from fingerprint_accel.errors import UserError
from fingerprint_accel.outputs import check_folder

DEFAULT_PPI, DEFAULT_CANVAS = 300, 320  # of folders of images, where nothing else says


@dataclass(frozen=True)
class PackOptions:
    """What the packed dataset is to be like; 0 or "" is what the first source is.

    Attributes:
        ppi: resolution, pixels per inch.
        canvas: side of a print, pixels.
        encoding: of the images, "raw" or "lz4".
        rows_per_shard: prints per file.
        join_fingers: equal finger keys of different sources are one finger.
        enhance: done once to every canvas (`preprocess.stored.enhance_canvas`).
        seed: of the order in which prints are written.
        source_ppi: resolution of the images in sources that are folders of images.
    """

    ppi: int = 0
    canvas: int = 0
    encoding: str = ""
    rows_per_shard: int = ROWS_PER_SHARD
    join_fingers: bool = False
    enhance: Enhance | None = None
    seed: int = 0
    source_ppi: int = 500


def is_dataset(folder: Path) -> bool:
    """Whether a folder says that it is a dataset; if not it is a folder of images."""
    return (folder / "fingerprint.json").is_file()


def check_places(sources: Sequence[Path], out: Path) -> None:
    """Raises UserError where a source is missing or given twice, or `out` may not be written."""
    for source in sources:
        if not source.is_dir():
            raise UserError(f"{source}: no such folder; give a dataset folder, or a folder of images named as flx does")
        if not is_dataset(source) and any(source.glob("*.arrow")):
            raise UserError(f"{source}: no fingerprint.json beside its shards; copy or import it again")
    check_folder(out, DATASET, inputs=sources)
    for source, times in Counter(sources).items():
        if times > 1:
            raise UserError(f"{source}: given {times} times; give every source once")


def completed(options: PackOptions, sources: Sequence[Path]) -> PackOptions:
    """The options with what they leave to the first source.

    Raises:
        UserError: a number out of range, or prints that are enhanced where others are not or are to be again.
    """
    infos = [open_dataset(source).info if is_dataset(source) else None for source in sources]
    enhanced = [info is not None and info.enhanced for info in infos]
    if any(enhanced) and options.enhance is not None:
        raise UserError(f"{sources[enhanced.index(True)]}: enhanced already; leave out --enhance")
    if len(set(enhanced)) > 1:
        which, other = sources[enhanced.index(True)], sources[enhanced.index(False)]
        raise UserError(f"{which}: enhanced, but {other} is not; pack {other} with --enhance by itself first")
    first = infos[0]
    ppi = options.ppi or (first.ppi if first else DEFAULT_PPI)
    canvas = options.canvas or (first.canvas if first else DEFAULT_CANVAS)
    encoding = options.encoding or (first.encoding if first else "raw")
    check_canvas("--ppi", ppi, canvas)
    check_encoding(encoding)
    if options.rows_per_shard < 1:
        raise UserError(f"--rows-per-shard {options.rows_per_shard}: must be at least 1")
    if not 50 <= options.source_ppi <= 5000:
        raise UserError(f"--source-ppi {options.source_ppi}: must lie between 50 and 5000")
    return replace(options, ppi=ppi, canvas=canvas, encoding=encoding)


def arguments(options: PackOptions, sources: Sequence[Path]) -> dict[str, Any]:
    """All that the bytes of the packed dataset depend on, as JSON: with the versions that make them."""
    marks = [file_sha256(source / "fingerprint.json") if is_dataset(source) else "images" for source in sources]
    return {
        "sources": [[str(source), mark] for source, mark in zip(sources, marks, strict=True)],
        "ppi": options.ppi,
        "canvas": options.canvas,
        "encoding": options.encoding,
        "rows_per_shard": options.rows_per_shard,
        "join_fingers": options.join_fingers,
        "enhance": options.enhance is not None,
        "seed": options.seed,
        "source_ppi": options.source_ppi,
        **versions(options.enhance is not None),
    }
