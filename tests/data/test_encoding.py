import json

import datasets
import numpy as np
import pyarrow as pa
import pytest
from shard_writer import ShardWriter

from fingerprint_accel.data.encoding import decode, decode_canvas, encode
from fingerprint_accel.data.shard_writing import Record
from fingerprint_accel.data.shards import open_dataset
from fingerprint_accel.errors import UserError
from tests.editing import edited

SIDE = 64


def images(count):
    """From noise, which lz4 makes longer, to white paper."""
    generator = np.random.default_rng(1)
    noise = generator.integers(0, 256, (count, SIDE, SIDE), dtype=np.uint8)
    noise[:, np.arange(SIDE) > 20] = 255
    noise[0] = generator.integers(0, 256, (SIDE, SIDE))
    noise[-1] = 255
    return noise


@pytest.mark.parametrize("encoding", ["raw", "lz4"])
def test_there_and_back(encoding):
    for image in images(5):
        stored = encode(image, encoding)
        np.testing.assert_array_equal(decode(pa.py_buffer(stored), encoding, SIDE), image)
        np.testing.assert_array_equal(decode(pa.py_buffer(encode(image.T, encoding)), encoding, SIDE), image.T)
    with pytest.raises(ValueError, match=r"orrupt|bytes instead of"):
        decode(pa.py_buffer(stored[: len(stored) // 2]), encoding, SIDE)


@pytest.mark.parametrize("encoding", ["raw", "lz4"])
def test_bytes_of_a_row_become_an_array_of_its_own(encoding):
    image = images(3)[1]
    stored = encode(image, encoding)
    found = decode_canvas(stored, SIDE, encoding)
    np.testing.assert_array_equal(found, image)
    found[:] = 0  # it may be written to
    np.testing.assert_array_equal(decode_canvas(stored, SIDE, encoding), image)
    with pytest.raises(UserError, match=f"not a canvas of 32 x 32 pixels in encoding {encoding}"):
        decode_canvas(stored, 32, encoding)
    with pytest.raises(UserError, match="encoding 'png': must be one of raw, lz4"):
        decode_canvas(stored, SIDE, "png")


@pytest.mark.parametrize("encoding", ["raw", "lz4"])
def test_what_is_written_is_read(tmp_path, encoding):
    written = images(50)
    with ShardWriter(tmp_path / "set", 300, SIDE, rows_per_shard=20, encoding=encoding, enhanced=True) as writer:
        for row, image in enumerate(written):
            writer.add(Record(image, f"{row // 2}", row % 2, "", np.full((row % 3, 4), row, np.float32)))
    table = datasets.load_from_disk(str(tmp_path / "set"))
    lengths = [len(row) for row in table["image"]]
    if encoding == "raw":
        assert set(lengths) == {SIDE**2}
    else:
        assert lengths[0] > SIDE**2 > 2 * np.median(lengths)
    shards = open_dataset(tmp_path / "set")
    assert (shards.info.encoding, shards.info.enhanced, shards.info.prints) == (encoding, True, 50)
    out = np.empty_like(written)
    shards.read(np.arange(50)[::-1], out)
    np.testing.assert_array_equal(out[::-1], written)
    rows = [pa.ipc.open_stream(path.read_bytes()).read_all().num_rows for path in sorted(shards.folder.glob("*.arrow"))]
    assert rows == [20, 20, 10]


def test_an_older_folder_opens(tmp_path):
    """Before there was enhancement, `fingerprint.json` did not mention it."""
    with ShardWriter(tmp_path / "set", 300, SIDE) as writer:
        writer.add(Record(images(1)[0], "a", 0, "", np.empty((0, 4), np.float32)))
    file = tmp_path / "set" / "fingerprint.json"
    assert json.loads(file.read_text())["enhanced"] is False
    edited(file, enhanced=None, xxh3_without_pixels=None, sha256_of_other_files=None)
    assert open_dataset(tmp_path / "set").info.enhanced is False


def test_unknown_encoding(tmp_path):
    with pytest.raises(UserError, match="--encoding zip: unknown; there are raw, lz4"):
        ShardWriter(tmp_path / "set", 300, SIDE, encoding="zip")
    assert list(tmp_path.iterdir()) == []
