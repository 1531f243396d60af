"""Parts of a gallery: Arrow files of prints, each with the embeddings and records of the prints of one enrolment.

The name of a part contains the beginning of its SHA-256, and its schema contains a copy of `gallery.json`. A part is
checked when it is opened, except the values of its embeddings, which are checked when they are read. A gallery stores
embeddings as float32, or as int8 with one scale each; see `int8_templates`.

This module does not import torch, so that commands which only check files start fast.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fingerprint_accel.data.layouts import position_name
from fingerprint_accel.data.mapping import MappedFile
from fingerprint_accel.durable import json_text
from fingerprint_accel.errors import UserError, require
from fingerprint_accel.extraction.int8_templates import dequantise, quantise
from fingerprint_accel.similarity import are_normalised
from fingerprint_accel.untrusted import DAMAGED, Fields, UnreadableError, open_regular, parse_json, reason_of

FORMAT_VERSION = 1
PART_NAME = re.compile(r"part-(\d{6})-([0-9a-f]{16})\.arrow")
LAST_POSITION = 99  # finger position codes of ANSI/NIST-ITL have at most two digits
MOST_DIMS = 2**16
FLOAT32, INT8 = "float32", "int8"  # values of `template` in `gallery.json`
REMEDY = "restore it from a copy, or delete it and enrol its prints again"


class NothingSelectedError(UserError):
    """Raised if a gallery has no print of a finger position or person."""


class Known(NamedTuple):
    """Record of a print in a gallery, without its embedding.

    Attributes:
        name: name of the print, unique in the gallery.
        person: person to whom the print belongs; empty if unknown.
        position: finger position code of ANSI/NIST-ITL, for example 7 for the left index finger; 0 if unknown.
        source: path or description of the original print; empty if unknown.
        impression: number of the impression of the finger; -1 if unknown.
        quality: quality of the print, 0 to 1, see `print_quality`; -1 if unknown.
    """

    name: str
    person: str = ""
    position: int = 0
    source: str = ""
    impression: int = -1
    quality: float = -1.0


COLUMNS: dict[str, dict[str, pa.DataType]] = {
    FLOAT32: {"embedding": pa.float32()},
    INT8: {"embedding": pa.int8(), "scale": pa.float32()},
}
"""Columns that contain the embeddings, by `template`: the type of a number, and of the scale of an embedding."""
TYPES = {
    **{"name": pa.string(), "person": pa.string(), "position": pa.int16(), "source": pa.string()},
    **{"impression": pa.int64(), "quality": pa.float64()},
}


def as_facts(dims: int, model: str, cells: int, template: str = FLOAT32) -> dict[str, Any]:
    """Return the contents of `gallery.json`; the metadata of every file of prints contains a copy.

    Args:
        dims: dimension of the embeddings.
        model: identity of the model that computes the embeddings.
        cells: number of grid cells of a dense template, 0 for other templates; see `similarity`.
        template: how embeddings are stored, "float32" or "int8".
    """
    return {"format_version": FORMAT_VERSION, "dims": dims, "model": model, "cells": cells, "template": template}


def checked_facts(values: dict[str, Any], where: Path | str, remedy: str) -> dict[str, Any]:
    """Check the types and ranges of the description of a gallery, and return it in the form of `as_facts`.

    Args:
        values: description, read from `gallery.json` or from the metadata of a file of prints.
        where: file or table that contains the description, for error messages.
        remedy: what the user can do if the description is wrong, for error messages.

    Raises:
        UserError: if a value is missing, has the wrong type or is out of range.
    """
    fields = Fields(values, where, remedy)
    fields.integer("format_version", FORMAT_VERSION, FORMAT_VERSION)
    dims, model, cells = (
        fields.integer("dims", 1, MOST_DIMS),
        fields.text("model"),
        fields.integer("cells", 0, MOST_DIMS, 0),  # missing in old files
    )
    require(not cells or dims % cells == 0, f"{where}: {dims} dims cannot be divided by {cells} cells; {remedy}")
    template = fields.text("template", FLOAT32, list(COLUMNS))  # missing in old files
    return as_facts(dims, model, cells, template)


def nothing_selected(position: int, person: str) -> str:
    """Return an error message for a gallery without a print of this finger position (0 for any) and person."""
    finger = f"finger position {position} ({position_name(position)})" if position else ""
    which = " and ".join(words for words in (f"person {person}" if person else "", finger) if words)
    return f"no print of {which} is enrolled{', and none of unknown position' if position else ''}"


def part_files(folder: Path) -> list[Path]:
    """List the paths of the files of prints in a gallery folder, oldest first."""
    return sorted(path for path in folder.glob("part-*") if PART_NAME.fullmatch(path.name))


def part_number(name: str) -> int:
    """Return the sequence number that the name of a file of prints contains."""
    return int(name[5:11])


def new_part(embeddings: np.ndarray, prints: Sequence[Known], facts: dict[str, Any]) -> pa.RecordBatch:
    """Build the contents of a file of prints.

    Args:
        embeddings: (N, D) float32.
        prints: record of each print.
        facts: description of the gallery, see `as_facts`; the metadata of the file contains it.
    """
    stored = {"embedding": np.ascontiguousarray(embeddings, np.float32)}
    if facts["template"] == INT8:
        stored = dict(zip(COLUMNS[INT8], quantise(stored["embedding"]), strict=True))
    columns = {name: pa.array(values.ravel()) for name, values in stored.items()}
    columns["embedding"] = pa.FixedSizeListArray.from_arrays(columns["embedding"], embeddings.shape[1])
    batch = pa.RecordBatch.from_pydict(columns | record_columns(prints))
    return batch.replace_schema_metadata({"gallery": json_text(facts)})


def record_columns(prints: Sequence[Known]) -> dict[str, pa.Array]:
    """Convert the records of prints to Arrow arrays, one per field.

    Raises:
        UserError: if a record is not valid: a text that is not UTF-8, an empty name, or a position out of range.
    """
    try:
        columns = [pa.array([each[field] for each in prints], kind) for field, kind in enumerate(TYPES.values())]
    except (ValueError, TypeError, pa.ArrowException) as error:
        raise UserError(
            f"a print cannot be enrolled ({reason_of(error)}); correct its name, person or source"
        ) from error
    batch = pa.RecordBatch.from_arrays(columns, names=list(TYPES))
    wrong = _wrong_record(batch)
    require(not wrong, f"a print cannot be enrolled ({wrong}); correct it")
    return dict(zip(TYPES, columns, strict=True))


def read_part(path: Path, compare: bool) -> tuple[pa.RecordBatch, dict[str, Any]]:
    """Open a file of prints with memory mapping, and check everything except the values of its embeddings.

    Args:
        path: Arrow file.
        compare: whether to compare the SHA-256 of the file with the one in its name.

    Returns:
        Contents of the file, and the description of the gallery that the file belongs to.

    Raises:
        UserError: if the file is damaged, or contains values that no enrolment writes: missing values, texts that are
            not UTF-8, empty names, and finger positions out of range.
    """
    try:
        if compare and not is_intact(path):
            raise UserError(f"{path}: differs from its sha256; {REMEDY}")
        opened = pa.ipc.open_file(MappedFile(path).buffer)
        if opened.num_record_batches != 1:
            raise pa.ArrowInvalid(f"{opened.num_record_batches} record batches")
        batch = opened.get_batch(0)
        batch.validate(full=True)
        facts = checked_facts(parse_json(opened.schema.metadata[b"gallery"]), path, REMEDY)
        wrong = _wrong_types(batch.schema, facts) or _wrong_record(batch)
    except UserError:
        raise
    except (OSError, *DAMAGED, KeyError, TypeError, pa.ArrowException) as error:
        raise UserError(f"{path}: damaged ({reason_of(error)}); {REMEDY}") from error
    require(not wrong, f"{path}: damaged ({wrong}); {REMEDY}")
    return batch, facts


def is_intact(path: Path) -> bool:
    """Return whether the SHA-256 of a file begins with the last 16 characters of its name, without the suffix.

    Raises:
        OSError: if the file cannot be opened.
    """
    with contextlib.suppress(UnreadableError), open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest().startswith(path.stem[-16:])
    return False


def _wrong_types(schema: pa.Schema, facts: dict[str, Any]) -> str:
    """Return how the columns of a file of prints differ from those that an enrolment writes; empty if they do not.

    Args:
        schema: schema of the file.
        facts: description of the gallery, see `as_facts`.
    """
    stored = COLUMNS[facts["template"]]
    types = stored | {"embedding": pa.list_(stored["embedding"], facts["dims"])} | TYPES
    if len(set(schema.names)) < len(schema) or not {*stored, "name"}.issubset(schema.names):
        return "a column is missing or repeated"
    for name in set(types).intersection(schema.names):  # old files have names alone
        if schema.field(name).type != types[name]:
            return f"the column {name} has the type {str(schema.field(name).type)[:40]}"
    return ""


def _wrong_record(batch: pa.RecordBatch) -> str:
    """Return what is wrong with the values of a file of prints, except embeddings; empty if nothing is."""
    for name in {*COLUMNS[INT8], *TYPES}.intersection(batch.schema.names):
        if batch[name].null_count or (name == "embedding" and batch[name].values.null_count):
            return f"the column {name} has missing values"
    if len(batch) and pc.min(pc.binary_length(batch["name"])).as_py() == 0:
        return "a print has no name"
    if len(batch) and "position" in batch.schema.names:
        found = pc.min_max(batch["position"])
        if not 0 <= found["min"].as_py() <= found["max"].as_py() <= LAST_POSITION:
            return f"a finger position is not from 0 to {LAST_POSITION}"
    if len(batch) and "impression" in batch.schema.names and pc.min(batch["impression"]).as_py() < -1:
        return "an impression number is negative"
    if len(batch) and "quality" in batch.schema.names:
        quality = np.from_dlpack(batch["quality"])
        if not ((quality == -1) | ((quality >= 0) & (quality <= 1))).all():
            return "a quality is not from 0 to 1"
    return ""


def known_in(part: pa.RecordBatch, row: int) -> Known:
    """Return the record of one print in a file; fields that older files do not contain have their default values."""
    return Known(*(part[column][row].as_py() for column in Known._fields if column in part.schema.names))


def positions_in(part: pa.RecordBatch) -> np.ndarray:
    """Return the finger position code of each print in a file, (n,) int16; 0 if unknown."""
    stated = "position" in part.schema.names
    return np.from_dlpack(part["position"]) if stated else np.zeros(len(part), np.int16)


def vectors_in(part: pa.RecordBatch, rows: slice | np.ndarray) -> np.ndarray:
    """Return the embeddings of some prints of a file, (n, D) float32.

    A slice of float32 embeddings is a view of the memory-mapped file. Int8 embeddings are dequantised, so a caller
    should read only a block of prints at a time.

    Args:
        part: contents of the file.
        rows: slice, or row numbers (n,) int64.
    """
    dims = part.schema.field("embedding").type.list_size
    stored = np.from_dlpack(part["embedding"].flatten()).reshape(-1, dims)[rows]
    return dequantise(stored, np.from_dlpack(part["scale"])[rows]) if stored.dtype == np.int8 else stored


def check_vectors(vectors: np.ndarray, where: Path | str, remedy: str = REMEDY) -> None:
    """Raise a UserError unless embeddings are finite and of unit length, or zero.

    A dense template is zero if the print shows no cell.

    Args:
        vectors: (..., D) float32.
        where: file or argument that contains the embeddings, for the error message.
        remedy: what the user can do, for the error message.
    """
    good = are_normalised(vectors)
    require(good, f"{where}: contains embeddings that are not finite and of unit length; {remedy}")
