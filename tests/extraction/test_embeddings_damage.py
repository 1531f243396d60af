"""Folders of embeddings with changed files: each change is named in one line, also without checksums."""

import hashlib
import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file, save_file

from fingerprint_accel.durable import OTHER_FILES, write_json
from fingerprint_accel.errors import UserError
from fingerprint_accel.extraction import embeddings_folder
from fingerprint_accel.extraction.embeddings_folder import open_embeddings
from fingerprint_accel.extraction.template_formats import TemplateFormat
from fingerprint_accel.extraction.verifying import verify

DIMS = 16
SHARDS = [f"embeddings-0000{shard}-of-00002.safetensors" for shard in range(2)]


def sealed(folder, **changes):
    """Writes `config.json` with checksums that fit, as in a folder from a stranger; `changes` replace its values."""
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    config = {
        "format_version": 2,
        "prints": 12,
        "failed": 1,
        "model": {"identity": "0123456789abcdef"},
        "template": {"kind": "float32", "length": DIMS, "cells": 0},
        "sha256": {name: digests[name] for name in SHARDS},
        OTHER_FILES: {name: digests[name] for name in ("prints.parquet", "failed.jsonl")},
    }
    write_json(folder / "config.json", config | changes)


@pytest.fixture
def folder(tmp_path):
    """Eight and four prints, of which row 3 has failed."""
    folder = tmp_path / "out"
    folder.mkdir()
    vectors = np.random.default_rng(0).standard_normal((12, DIMS)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors[3] = 0
    for name, rows in zip(SHARDS, (slice(0, 8), slice(8, 12)), strict=True):
        count = len(vectors[rows])
        columns = {
            "embeddings": vectors[rows],
            "quality": np.full(count, 0.5, np.float32),
            "finger": np.arange(count, dtype=np.int32),
            "impression": np.full(count, -1, np.int64),
        }
        save_file(columns, folder / name)
    pq.write_table(pa.table({"source": [f"{row}.png" for row in range(12)]}), folder / "prints.parquet")
    (folder / "failed.jsonl").write_text('{"row": 3, "source": "3.png", "reason": "blank: no contrast"}\n')
    sealed(folder)
    return folder


def refused(folder, message):
    with pytest.raises(UserError, match=message) as error:
        open_embeddings(folder)
    assert "\n" not in str(error.value)


def test_a_whole_folder_opens_and_is_verified_as_a_whole(folder):
    found = open_embeddings(folder)
    assert np.flatnonzero(found.failed).tolist() == [3]
    assert found.finger.tolist() == [*range(8), *range(4)]
    assert verify(folder, progress=False)[0] == 4, "the lists too"


@pytest.mark.parametrize("name", [*SHARDS, "prints.parquet", "failed.jsonl"])
def test_a_changed_bit_in_any_file_is_found(folder, monkeypatch, name):
    data = bytearray((folder / name).read_bytes())
    data[-9] ^= 1
    (folder / name).write_bytes(data)
    refused(folder, f"{folder / name}: differs from its sha256; restore it from a copy, or run `extract` again")
    monkeypatch.setattr(embeddings_folder, "MOST_COMPARED", 0)  # as in a large one
    with pytest.raises(UserError, match=f"{folder / name}: differs from its sha256"):
        verify(folder, progress=False)


@pytest.mark.parametrize("name", [*SHARDS, "prints.parquet", "failed.jsonl"])
def test_a_missing_file_or_a_pipe_is_named(folder, name):
    (folder / name).unlink()
    refused(folder, f"{folder / name}: cannot be read")
    os.mkfifo(folder / name)
    refused(folder, rf"{folder / name}: cannot be read \(is not a regular file\)")


def changed(columns, name, place, value):
    columns[name] = columns[name].copy()
    columns[name][place] = value
    return columns


SHARD_CHANGES = {
    "NaN": lambda found: changed(found, "embeddings", (1, 2), np.nan),
    "long": lambda found: changed(found, "embeddings", 1, 0.5),
    "quality NaN": lambda found: changed(found, "quality", 1, np.nan),
    "quality 2": lambda found: changed(found, "quality", 1, 2),
    "finger -7": lambda found: changed(found, "finger", 1, -7),
    "impression -7": lambda found: changed(found, "impression", 1, -7),
    "another length": lambda found: found | {"embeddings": np.ascontiguousarray(found["embeddings"][:, :8])},
    "double": lambda found: found | {"embeddings": found["embeddings"].astype(np.float64)},
    "fewer": lambda found: found | {"finger": found["finger"][:5].copy()},
    "no rows": lambda found: found | {"quality": np.array(1, np.float32)},
    "no quality": lambda found: {name: column for name, column in found.items() if name != "quality"},
}


@pytest.mark.parametrize("change", SHARD_CHANGES.values(), ids=SHARD_CHANGES)
def test_values_that_extract_does_not_write_are_refused(folder, change):
    save_file(change(load_file(folder / SHARDS[0])), folder / SHARDS[0])
    sealed(folder)
    refused(folder, f"{folder / SHARDS[0]}: damaged .*; restore it from a copy, or run `extract` again")


@pytest.mark.parametrize("data", [b"", b"\xff" * 8, (2**40).to_bytes(8, "little") + b"{}", b"\x02\0\0\0\0\0\0\0{}"])
def test_a_shard_that_is_no_safetensors_file(folder, data):
    (folder / SHARDS[1]).write_bytes(data)
    sealed(folder)
    refused(folder, f"{folder / SHARDS[1]}: damaged")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"template": {"kind": "float64", "length": DIMS}}, "template: kind must be one of float32, int8, binary"),
        ({"template": {"kind": "float32", "length": 0}}, "template: length must be an integer from 1"),
        ({"template": {"kind": "float32", "length": True}}, "template: length must be an integer"),
        ({"template": {"kind": "float32", "length": 10**30}}, "template: length must be an integer"),
        ({"template": {"kind": "binary", "length": 12}}, "length 12 does not fit binary and 0 cells"),
        ({"template": {"kind": "float32", "length": DIMS, "cells": 5}}, "length 16 does not fit float32 and 5 cells"),
        ({"template": None}, "template must be an object"),
        ({"sha256": {"../embeddings.safetensors": "0" * 64}}, "sha256 must be names of files in this folder"),
        ({"sha256": {SHARDS[0]: "0" * 64}}, "sha256 does not list the files embeddings-00000-of-00001"),
        ({"sha256": {SHARDS[0]: None}}, "sha256 must be names"),
        (
            {"sha256_of_other_files": {"/etc/passwd": "0" * 64}},
            "sha256_of_other_files must be names of files",
        ),
        ({"prints": 13}, "prints.parquet: has 12 rows, not 13"),
        ({"prints": 2**40}, "prints.parquet: has 12 rows, not 1099511627776"),  # more than memory can hold
        ({"failed": 2}, "failed.jsonl: lists 1 rows, not 2"),
    ],
)
def test_a_description_with_values_out_of_range(folder, changes, message):
    sealed(folder, **changes)
    refused(folder, message)


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 99999, '{"prints": NaN}', "\0"])
def test_a_description_that_is_no_object(folder, text):
    (folder / "config.json").write_text(text)
    refused(folder, rf"{folder}/config\.json: ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"row": 12, "reason": "a"}', "row must be an integer from 0 to 11, not 12"),
        ('{"row": -9, "reason": "a"}', "row must be an integer"),
        ('{"row": 3.0, "reason": "a"}', "row must be an integer"),
        ('{"row": 3}', "reason is missing"),
        ('{"row": 5, "reason": "a"}', "lists a row that has an embedding"),
        ('{"row": 3, "reason": "a"}\n{"row": 3, "reason": "a"}', "lists row 3 twice"),
        ("3", "line 1: contains no JSON object"),
        ("[" * 99999, "line 1: nested too deeply"),
    ],
)
def test_failures_that_cannot_be(folder, text, message):
    (folder / "failed.jsonl").write_text(text + "\n")
    sealed(folder)
    refused(folder, rf"failed\.jsonl: .*{message}")


def test_sources_of_other_prints(folder):
    pq.write_table(pa.table({"source": ["a"]}), folder / "prints.parquet")
    sealed(folder)
    refused(folder, r"prints\.parquet: has 1 rows, not 12")
    (folder / "prints.parquet").write_bytes(b"PAR1" + bytes(99) + b"PAR1")
    sealed(folder)
    refused(folder, r"prints\.parquet: damaged")


@pytest.mark.parametrize("kind", ["int8", "binary"])
def test_other_templates_have_their_own_types(folder, kind):
    template = TemplateFormat(kind, DIMS)
    for name in SHARDS:
        found = load_file(folder / name)
        blank = ~found["embeddings"].any(axis=1)
        stored = template.encode(found["embeddings"])
        stored[blank] = 0
        save_file(found | {"embeddings": stored}, folder / name)
    sealed(folder, template={"kind": kind, "length": DIMS, "cells": 0})
    assert open_embeddings(folder).vectors().shape == (12, DIMS)
    sealed(folder)
    refused(folder, f"{SHARDS[0]}: damaged")


def test_a_folder_of_before_is_read(folder):
    """Without checksums of the lists and of the description."""
    config = json.loads((folder / "config.json").read_text())
    for name in ("checksum", OTHER_FILES):
        del config[name]
    (folder / "config.json").write_text(json.dumps(config))
    assert len(open_embeddings(folder).quality) == 12
