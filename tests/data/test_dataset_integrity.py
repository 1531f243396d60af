"""Datasets that are damaged, or made by an attacker, are refused with one line that names the file."""

import itertools
import os

import numpy as np
import pyarrow as pa
import pytest
from small_datasets import dataset

from fingerprint_accel.data.arrow_shard import pixel_range, record_batches
from fingerprint_accel.data.mapping import MappedFile
from fingerprint_accel.data.shard_writing import seal_dataset
from fingerprint_accel.data.shards import open_dataset
from fingerprint_accel.errors import UserError
from fingerprint_accel.extraction.verifying import verify
from tests.editing import edited

KEYS = [f"key{number}" for number in range(5)]
SHARD = "data-00000-of-00002.arrow"


@pytest.fixture
def folder(tmp_path):
    """Ten prints in two shards, with the columns of the ground truth and of the quality."""
    return dataset(tmp_path / "set", KEYS, truth=True, nfiq2=True)


def unsealed(folder):
    """Removes all checksums but those of the whole shards, as an attacker would."""
    edited(folder / "fingerprint.json", xxh3_without_pixels=None, sha256_of_other_files=None)


def rewrite(folder, change, **options):
    """Writes the first shard again, with the columns that `change` returns for its columns."""
    with pa.ipc.open_stream((folder / SHARD).read_bytes()) as stream:
        batch = stream.read_next_batch()
    columns = change(dict(zip(batch.schema.names, batch.columns, strict=True)))
    batch = pa.record_batch(columns)
    with pa.ipc.new_stream(folder / SHARD, batch.schema, **options) as stream:
        stream.write_batch(batch)
    unsealed(folder)


def put(column, value):
    """A change of the first value of a column."""

    def change(columns):
        values = [value, *columns[column].to_pylist()[1:]]
        return columns | {column: pa.array(values, columns[column].type)}

    return change


def cast(column, kind):
    return lambda columns: columns | {column: columns[column].cast(kind)}


def not_utf8(columns):
    keys = columns["finger_key"]
    text = bytearray(keys.buffers()[2])
    text[0] = 0xFF
    return columns | {
        "finger_key": pa.Array.from_buffers(pa.string(), len(keys), [None, keys.buffers()[1], pa.py_buffer(text)])
    }


def far_offset(columns):
    sources = columns["source"]
    offsets = np.frombuffer(sources.buffers()[1], np.int32).copy()
    offsets[3] = 10**6
    return columns | {
        "source": pa.Array.from_buffers(pa.string(), len(sources), [None, pa.py_buffer(offsets), sources.buffers()[2]])
    }


NOT_FINITE = [1.0, float("nan"), 0.5, 0.5]
WRONG = {
    "finger -1": (put("finger", -1), "contains a print with finger -1"),
    "impression -1": (put("impression", -1), "contains a print with impression -1"),
    "no key": (put("finger_key", None), "contains null values"),
    "no finger": (put("finger", None), "contains null values"),
    "no source": (put("source", None), "contains null values"),
    "no number in minutiae": (put("minutiae", [None] * 4), "contains null values"),
    "empty key": (put("finger_key", ""), "contains an empty finger key"),
    "half a minutia": (put("minutiae", [1.0] * 6), "a print with 6 numbers as its minutiae"),
    "NaN in minutiae": (put("minutiae", NOT_FINITE), "minutiae that are not finite"),
    "infinite pose": (put("pose", [0.0, float("inf"), 0.0]), "a pose that is not finite"),
    "half a pose": (put("pose", [0.0, float("nan"), 0.0]), "a pose that is not finite"),
    "contact mask of another size": (put("contact", b"1"), "contact masks of another size"),
    "quality 101": (put("nfiq2", 101), "an NFIQ 2 score of 101"),
    "quality -2": (put("nfiq2", -2), "contains a print with nfiq2 -2"),
    "image of another size": (put("image", b"1" * 63), "mixed encodings"),
    "fingers as int64": (cast("finger", pa.int64()), "contains columns of another name or type"),
    "large strings": (cast("finger_key", pa.large_string()), "contains columns of another name or type"),
    "dictionary": (cast("finger_key", pa.dictionary(pa.int32(), pa.string())), "columns of another name or type"),
    "extension type": (
        lambda columns: (
            columns | {"nfiq2": pa.ExtensionArray.from_storage(pa.bool8(), columns["nfiq2"].cast(pa.int8()))}
        ),
        "columns of another name or type",
    ),
    "no column source": (lambda columns: {n: c for n, c in columns.items() if n != "source"}, "columns of another"),
    "another column": (lambda columns: columns | {"age": columns["finger"]}, "columns of another name or type"),
    "no row": (lambda columns: {name: column[:0] for name, column in columns.items()}, "contains no rows"),
    "keys that are not UTF-8": (not_utf8, "missing or damaged"),
    "offset outside the file": (far_offset, "missing or damaged"),
    "another number of fingers": (put("finger", 77), "holds 6 fingers, but fingerprint.json says 5"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_columns_are_refused(folder, name):
    """A finger of -1 trained the last finger, null keys and NaN ended in a traceback, if at all."""
    change, message = WRONG[name]
    rewrite(folder, change)
    with pytest.raises(UserError, match=message) as caught:
        open_dataset(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("column", ["pose", "nfiq2", "minutiae"])
def test_large_datasets_are_checked_when_they_are_read(folder, column, monkeypatch):
    monkeypatch.setattr("fingerprint_accel.data.shards.CHECKED_AT_ONCE", 10)
    rewrite(folder, put(column, {"pose": [float("inf")] * 3, "nfiq2": 101, "minutiae": NOT_FINITE}[column]))
    shards, rows = open_dataset(folder), np.arange(2)
    read = {
        "pose": lambda: shards.truth(rows, np.empty((2, 3), np.float32), np.empty((2, 40, 40), bool)),
        "nfiq2": shards.nfiq2,
        "minutiae": lambda: shards.minutiae(rows),
    }
    with pytest.raises(UserError, match=str(folder)):
        read[column]()
    for other in read.keys() - {column}:
        read[other]()


@pytest.mark.parametrize("codec", ["lz4", "zstd"])
def test_compressed_shards_are_refused_before_they_expand(folder, codec, monkeypatch):
    """A compressed buffer of some kilobytes expands to gigabytes."""
    rewrite(folder, dict, options=pa.ipc.IpcWriteOptions(compression=codec))
    monkeypatch.setattr(pa.ipc, "read_record_batch", lambda *_: pytest.fail("was expanded"))
    with pytest.raises(UserError, match=f"{SHARD}: missing or damaged .contains compressed columns"):
        open_dataset(folder)


def test_a_shard_without_a_record_batch(folder):
    with pa.ipc.open_stream((folder / SHARD).read_bytes()) as stream:
        schema = stream.schema
    with pa.ipc.new_stream(folder / SHARD, schema):
        pass
    with pytest.raises(UserError, match=f"{SHARD}: missing or damaged .contains no rows"):
        open_dataset(folder)


@pytest.mark.parametrize("compressed", [False, True])
def test_every_changed_byte_of_the_metadata_ends_well(folder, compressed):
    """Without digests, a changed byte outside the pixels is refused in one line, or is another valid dataset."""
    if compressed:
        rewrite(folder, dict, options=pa.ipc.IpcWriteOptions(compression="lz4"))
    unsealed(folder)
    whole = (folder / SHARD).read_bytes()
    generator, refused = np.random.default_rng(0), 0
    metadata = 8 + int.from_bytes(whole[4:8], "little") + 2500  # schema, and the description of the record batch
    for place in generator.choice(metadata, 300, replace=False).tolist():
        changed = bytearray(whole)
        changed[place] ^= 1 << generator.integers(8)
        (folder / SHARD).write_bytes(changed)
        try:
            shards = open_dataset(folder)
            shards.minutiae(np.arange(len(shards)))
        except UserError as error:
            refused += 1
            assert str(folder) in str(error)
            assert "\n" not in str(error)
    assert refused > 30


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"canvas": 100_000}, "canvas must be an integer from 1 to 2048, not 100000"),
        ({"ppi": 0}, "ppi must be an integer from 50 to 2000, not 0"),
        ({"sha256": {"../set/data-00000-of-00002.arrow": "0" * 64}}, "sha256 must be names of files in this folder"),
        ({"prints": 11}, "holds 10 prints, but fingerprint.json says 11"),
        ({"sha256": {}}, "holds 0 prints"),
        ({"encoding": "png"}, "encoding must be one of raw, lz4"),
    ],
)
def test_a_wrong_description_is_refused(folder, values, message):
    edited(folder / "fingerprint.json", **values)
    with pytest.raises(UserError, match=message):
        open_dataset(folder)


@pytest.mark.parametrize("what", ["pipe", "device", "folder", "empty file"])
def test_a_shard_that_is_no_regular_file(folder, what):
    """A pipe without a writer waited for ever."""
    path = folder / SHARD
    path.unlink()
    {
        "pipe": lambda: os.mkfifo(path),
        "device": lambda: path.symlink_to("/dev/zero"),
        "folder": path.mkdir,
        "empty file": path.touch,
    }[what]()
    with pytest.raises(UserError, match=f"{SHARD}: missing or damaged"):
        open_dataset(folder)


def flipped(folder, place):
    """Flips a bit of the files of a folder, which are seen as one row of bits without the pixels of shards."""
    for path in sorted(folder.iterdir()):
        data = bytearray(path.read_bytes())
        spans = [(0, len(data))]
        if path.suffix == ".arrow":
            file = MappedFile(path)
            (pixels,) = [pixel_range(file, batch.column(0)) for batch in record_batches(file)]
            spans = [(0, pixels[0]), (pixels[1], len(data))]
        for start, stop in spans:
            if place < 8 * (stop - start):
                data[start + place // 8] ^= 1 << place % 8
                return path, bytes(data)
            place -= 8 * (stop - start)
    return None


def test_every_flipped_bit_outside_pixels_is_noticed(folder):
    """378 of 400 flipped bits outside pixels went unnoticed: now none by `verify`, and none of a shard when opened."""
    (folder / "rejected.jsonl").write_text('{"path": "a", "reason": "b"}\n')
    seal_dataset(folder)
    total = next(place for place in itertools.count(0, 4000) if flipped(folder, place) is None)
    generator, opened = np.random.default_rng(0), 0
    for place in generator.integers(0, total - 4000, 60).tolist():
        path, changed = flipped(folder, place)
        whole = path.read_bytes()
        path.write_bytes(changed)
        with pytest.raises(UserError, match=path.name):
            verify(folder, progress=False)
        if path.suffix == ".arrow" or path.name == "fingerprint.json":
            opened += 1
            with pytest.raises(UserError, match=path.name):
                open_dataset(folder)
        path.write_bytes(whole)
    assert opened > 30
    (folder / "cache-0123456789abcdef.arrow").write_bytes(b"of datasets.Dataset.map")
    assert verify(folder, progress=False)[0] == 2 + 3, "two shards, and all other files but the description"


def test_a_flipped_bit_in_the_word_checksum_is_noticed(folder):
    path = folder / "fingerprint.json"
    text = path.read_bytes()
    for place in range(8 * len("checksum")):
        word = bytearray(b"checksum")
        word[place // 8] ^= 1 << place % 8
        path.write_bytes(text.replace(b"checksum", bytes(word)))
        with pytest.raises(UserError, match=r"fingerprint.json: damaged"):
            open_dataset(folder)


def test_large_datasets_are_not_hashed_when_opened(folder, monkeypatch):
    """Opening 1.5 million prints takes 0.15 s; `verify` and the background check of a training run hash them."""
    monkeypatch.setattr("fingerprint_accel.data.shards.CHECKED_AT_ONCE", 10)
    monkeypatch.setattr("fingerprint_accel.data.shards.digest_without_pixels", lambda *_: pytest.fail("was hashed"))
    assert len(open_dataset(folder)) == 10


def test_a_file_that_another_worker_still_writes_is_not_sealed(tmp_path):
    """The description named it, and no reader accepted the dataset."""
    folder = dataset(tmp_path / "set", "ab")
    (folder / ".machine-7-7-data-00000-of-00001.arrow.tmp").write_bytes(b"half")
    seal_dataset(folder)
    assert list(open_dataset(folder).key_of_finger) == ["a", "b"]
