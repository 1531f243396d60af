"""Read the folder of embeddings that `fingerprint-accel extract` writes.

A template is an embedding in its storage format. The folder contains:

- `embeddings-*.safetensors`: templates, quality, finger and impression, one row per print in the order of the dataset.
- `prints.parquet`: source of each print, which is the path or description of the original image; for a dataset the
  name of its finger, for an image folder person and finger position.
- `failed.jsonl`: prints that could not be embedded, with reasons.
- `config.json`: model, template format, options and checksums.

All files are checked when the folder is opened. Their checksums are compared too, unless the folder is large.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file

from fingerprint_accel.data.import_summary import kind_of
from fingerprint_accel.durable import OTHER_FILES, file_sha256
from fingerprint_accel.errors import UserError, require
from fingerprint_accel.extraction.template_formats import DTYPES, TemplateFormat
from fingerprint_accel.outputs import FolderKind, json_with
from fingerprint_accel.similarity import are_normalised
from fingerprint_accel.text import aligned
from fingerprint_accel.untrusted import (
    DAMAGED,
    MOST_COMPARED,
    Fields,
    UnreadableError,
    check_tensors,
    open_regular,
    read_json,
    read_json_lines,
    reason_of,
)

FORMAT_VERSION = 2  # version 1 has a single file embeddings.safetensors; it can be read too
PRINTS, FAILED, CONFIG = "prints.parquet", "failed.jsonl", "config.json"
OF_VERSION_1 = "embeddings.safetensors"
SHARD_NAMES = "embeddings-{:05d}-of-{:05d}.safetensors"
MOST_FAILED = 2**28  # bytes of `failed.jsonl`: a million failures
MOST_NUMBERS, MOST_PRINTS = 2**16, 2**40
REMEDY = "restore it from a copy, or run `extract` again"
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


@dataclass(frozen=True)
class EmbeddingsFolder:
    """A folder of embeddings whose description is checked, to read its N prints file by file.

    Attributes:
        folder: the folder.
        config: contents of `config.json`.
        format: storage format of the templates.
        names: names of the files of templates, in order.
        failed: (N,) bool, true for prints that could not be embedded.
    """

    folder: Path
    config: dict[str, Any]
    format: TemplateFormat
    names: list[str]
    failed: np.ndarray

    @property
    def identity(self) -> str:
        """Identity of the model, and of the key that protects the templates; see `FingerprintExtractor.identity`."""
        return Fields(self.config, self.folder / CONFIG, REMEDY).part("model").text("identity")

    def shards(self) -> Iterator[Embeddings]:
        """Read the files of templates one after the other, and check them.

        Raises:
            UserError: if a file is damaged, or the files do not have one row for each print.
        """
        start = 0
        for name in self.names:
            shard = _read_shard(self.folder / name, self.format)
            stop = start + len(shard["quality"])
            failed = self.failed[start:stop]
            require(len(failed) == stop - start, f"{self.folder}: has more rows than {CONFIG} states; {REMEDY}")
            require(
                not shard["embeddings"][failed].any(),
                f"{self.folder / FAILED}: lists a row that has an embedding; {REMEDY}",
            )
            known = {name: shard[name] for name in ("finger", "impression", "quality")}
            yield Embeddings(
                self.folder, shard["embeddings"], **known, failed=failed, format=self.format, config=self.config
            )
            start = stop
        prints = len(self.failed)
        require(start == prints, f"{self.folder}: has {start} rows, but {CONFIG} states {prints}; {REMEDY}")


def open_folder(folder: Path | str) -> EmbeddingsFolder:
    """Open a folder of embeddings, and check everything but the values of its templates.

    Raises:
        UserError: if the folder is missing, or one of its files is damaged.
    """
    folder = Path(folder)
    try:
        config = read_json(folder / CONFIG, REMEDY)
    except FileNotFoundError as error:
        raise UserError(f"{folder}: no embeddings; `fingerprint-accel extract` writes them") from error
    fields = Fields(config, folder / CONFIG, REMEDY)
    template = _template(fields.part("template"), folder / CONFIG)
    names = _shard_names(fields.digests("sha256"), folder / CONFIG)
    _compare(folder, {**fields.digests("sha256"), **fields.digests(OTHER_FILES)})
    rows = _rows(folder / PRINTS)
    prints = fields.integer("prints", 0, MOST_PRINTS, rows)
    require(rows == prints, f"{folder / PRINTS}: has {rows} rows, not {prints}; {REMEDY}")
    failed = _failed(folder / FAILED, prints)
    count = fields.integer("failed", 0, prints, int(failed.sum()))
    require(count == failed.sum(), f"{folder / FAILED}: lists {failed.sum()} rows, not {count}; {REMEDY}")
    return EmbeddingsFolder(folder, config, template, names, failed)


def open_embeddings(folder: Path | str) -> Embeddings:
    """Open a folder of embeddings that `fingerprint-accel extract` wrote, read it completely, and check its files.

    Raises:
        UserError: if the folder is missing, or one of its files is damaged.
    """
    opened = open_folder(folder)
    shards = list(opened.shards())
    names = ("templates", "finger", "impression", "quality")
    columns = {name: np.concatenate([getattr(shard, name) for shard in shards]) for name in names}
    return Embeddings(opened.folder, **columns, failed=opened.failed, format=opened.format, config=opened.config)


def _template(fields: Fields, where: Path) -> TemplateFormat:
    """Read the storage format of the templates.

    Raises:
        UserError: if a value has the wrong type or is out of range.
    """
    kind = fields.text("kind", choices=list(DTYPES))
    length, cells = fields.integer("length", 1, MOST_NUMBERS), fields.integer("cells", 0, MOST_NUMBERS, 0)
    fits = (kind != "binary" or length % 8 == 0) and (not cells or length % cells == 0)
    require(fits, f"{where}: template: length {length} does not fit {kind} and {cells} cells; {REMEDY}")
    return TemplateFormat(kind, length, cells)  # type: ignore[arg-type]


def _shard_names(digests: dict[str, str], where: Path) -> list[str]:
    """Return the names of the files of templates in their order.

    Raises:
        UserError: if one of the files is not listed.
    """
    names = [SHARD_NAMES.format(shard, len(digests)) for shard in range(len(digests))] or [OF_VERSION_1]
    whole = set(digests) in ({*names}, {OF_VERSION_1}, set())
    require(whole, f"{where}: sha256 does not list the files {names[0]}, ...; {REMEDY}")
    return list(digests) if set(digests) == {OF_VERSION_1} else names


def _compare(folder: Path, digests: dict[str, str]) -> None:
    """Compare files with their checksums if they have at most `MOST_COMPARED` bytes together.

    Raises:
        UserError: if a file is missing or differs from its checksum.
    """
    sizes = 0
    for name in digests:
        try:
            with open_regular(folder / name) as file:
                sizes += file.seek(0, 2)
        except (OSError, UnreadableError) as error:
            raise UserError(f"{folder / name}: cannot be read ({reason_of(error)}); {REMEDY}") from error
    if sizes <= MOST_COMPARED:
        for name, digest in digests.items():
            require(file_sha256(folder / name) == digest, f"{folder / name}: differs from its sha256; {REMEDY}")


def _read_shard(path: Path, template: TemplateFormat) -> dict[str, np.ndarray]:
    """Read a file of templates, and check types, shapes and values.

    Raises:
        UserError: if the file is damaged, or contains values that `extract` does not write.
    """
    try:
        check_tensors(path)
        shard = load_file(path)
        templates, quality, finger, impression = (
            shard[name] for name in ("embeddings", "quality", "finger", "impression")
        )
    except (OSError, *DAMAGED, KeyError, TypeError, SafetensorError) as error:
        raise UserError(f"{path}: damaged ({reason_of(error)}); {REMEDY}") from error
    rows, dtype = len(quality) if quality.ndim else 0, np.dtype(DTYPES[template.kind])
    good = (
        templates.shape == (rows, template.bytes // dtype.itemsize)
        and templates.dtype == dtype
        and {quality.shape, finger.shape, impression.shape} == {(rows,)}
        and quality.dtype == np.float32
        and finger.dtype == np.int32
        and np.issubdtype(impression.dtype, np.signedinteger)  # int16 in folders of version 1
        and bool(((quality >= 0) & (quality <= 1)).all())  # false for NaN
        and bool((finger >= -1).all() and (impression >= -1).all())
        and (template.kind != "float32" or are_normalised(templates))
    )
    require(good, f"{path}: damaged (a type, shape or value is not one that `extract` writes); {REMEDY}")
    return shard


def _failed(path: Path, prints: int) -> np.ndarray:
    """Read which prints could not be embedded; return (N,) bool.

    Raises:
        UserError: if the file is missing or damaged.
    """
    failed = np.zeros(prints, bool)
    try:
        for line in read_json_lines(path, MOST_FAILED):
            fields = Fields(line, path, REMEDY)
            fields.text("reason")
            row = fields.integer("row", 0, prints - 1)
            require(not failed[row], f"{path}: lists row {row} twice; {REMEDY}")
            failed[row] = True
    except UserError:
        raise
    except (OSError, UnreadableError) as error:
        raise UserError(f"{path}: damaged ({reason_of(error)}); {REMEDY}") from error
    return failed


def _rows(path: Path) -> int:
    """Return the number of rows of the list of sources.

    Raises:
        UserError: if the file is missing or damaged.
    """
    try:
        open_regular(path).close()
        return int(pq.read_metadata(path).num_rows)
    except (OSError, *DAMAGED, pa.ArrowException) as error:
        raise UserError(f"{path}: damaged ({reason_of(error)}); {REMEDY}") from error


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
        for name in read_json(out / CONFIG, REMEDY)["sha256"]:
            with safe_open(out / name, "np") as file:
                quality.append(file.get_tensor("quality"))
        self.quality: np.ndarray = np.concatenate(quality)
        self.failed = Counter(kind_of(line["reason"]) for line in read_json_lines(out / FAILED, MOST_FAILED))
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
